"""Tables of numbers (CSV) as a batch: a row is an image ``[D]``, a column a feature, one column may be the labels.

Text is UTF-8, numbers have a decimal point, and every row has as many cells (:mod:`clmoe_cli.data.rows`).
Columns are taken in their order, whatever their names. The first row is a header if a cell in it that ought to be a
number is none, or if it counts the columns from 0. Rows are read some at a time, and many lie on disk.
"""

from __future__ import annotations

import difflib
import io
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO

import numpy as np

from clmoe_cli.data.batch import MAX_BYTES, Array, Batch, LabelUse, Raw
from clmoe_cli.data.extraction import Extractor
from clmoe_cli.data.npz import name_list, one_line
from clmoe_cli.data.precision import RoundingCheck
from clmoe_cli.data.rows import HINT, Row, Rows
from clmoe_cli.data.spool import Spool
from clmoe_cli.data.targets import LABEL_NAMES, check_names, plain_names
from clmoe_cli.data.transforms import shape_after
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, begun, silent
from clmoe_cli.runtime.words import amount
from store_schema.errors import BadInput
from store_schema.records import InputRecord

_CELLS = limits.CELLS
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,17})")
_COLUMN_HINT = "--label-column NAME, or its position: 0 is the first column, -1 the last"


@dataclass(frozen=True)
class Table:
    """A table whose header is read: what its columns are is known.

    ``file``: the bytes that ``rows`` come from, ``size`` of them; ``most``: how many rows they can be; ``source``: as
    given by the user; ``use``: what is done with its labels.
    """

    file: IO[bytes]
    rows: Rows
    layout: _Layout
    source: str
    use: LabelUse
    size: int
    most: int
    on_step: OnStep = silent

    @staticmethod
    def of(
        file: IO[bytes], where: str, source: str, use: LabelUse, label_column: str | None, on_step: OnStep = silent
    ) -> Table:
        """Looks at a table. ``file``: seekable, at its start; ``where`` names it in errors.

        ``label_column``: name or position of the column with the labels; without it one that is called as in
        ``LABEL_NAMES``, if there is one. Raises BadInput for what is no table, DiskProblem.
        """
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        rows = Rows(file, where)
        layout = _Layout.of(rows, label_column, use)
        width = layout.width
        if width == 0:
            found = name_list(layout.names or ()) or "one column"
            rows.fail("no columns of numbers", found=found, hint=HINT)
        # A cell has a character at least, and one behind it.
        most = max(1, (size + 1) // (2 * (width + (layout.label is not None))))
        if most * width * 4 > MAX_BYTES:
            rows.fail("the table is too big", found=f"{size} bytes", expected=f"at most {MAX_BYTES // 2}")
        return Table(file, rows, layout, source, use, size, most, on_step)

    @property
    def raw(self) -> Raw:
        """A row of features."""
        return Raw(False, (self.layout.width,))

    def read(self, input: InputRecord | None, extractor: Extractor | None = None) -> Batch:
        """The rows as float32 ``[N, D]``, their labels as int64 or text ``[N]``.

        Labels that all are integers come out as such; there are no pictures for ``extractor``. Raises BadInput for
        anything wrong with the table, DiskProblem.
        """
        rows, layout, use, width = self.rows, self.layout, self.use, self.layout.width
        try:
            shape_after((width,), input)
        except ValueError as error:
            rows.fail(str(error), found=f"{width} columns of numbers", hint="leave --image-size out")
        rounding = RoundingCheck(width)
        labels, to = _Labels(), begun(self.on_step, "reading", self.size >> 20, "MiB")
        with Spool((self.most, width), np.dtype(np.float32), rows.where) as spool:
            for block in rows.blocks(max(1, _CELLS // layout.columns)):
                if layout.label is not None and use != "ignored":
                    labels.append(block, layout.label, rows)
                numbers = _numbers(block, layout, rows)
                rounding.add(numbers)
                spool.append(numbers.astype(np.float32))
                del numbers  # before the next block is read
                to(self.file.tell() >> 20)
            if spool.rows == 0:
                rows.fail("no rows in the table", found="a header alone" if layout.names else "nothing", hint=HINT)
            flaw = _flaw(rounding, layout, rows.where)
            if flaw is not None and use == "required":
                raise flaw
            images = spool.finish()
        found = labels.array(rows, layout) if layout.label is not None and use != "ignored" else None
        notes = (f"{rows.where}: {amount(len(images), 'row')}, {layout.text()}",)
        return Batch(images, found, self.source, input, notes=notes, flaw=flaw, columns=layout.named)


@dataclass(frozen=True)
class _Layout:
    """What the columns are: their ``names``, if there is a header, how many, and which one is the labels."""

    names: tuple[str, ...] | None
    columns: int
    label: int | None

    @property
    def width(self) -> int:
        """Columns that are features."""
        return self.columns - (self.label is not None)

    def name(self, column: int) -> str:
        """A column for people."""
        return f"column {column}" if self.names is None else f"column {one_line(self.names[column][:60])!r}"

    @property
    def named(self) -> tuple[str, ...] | None:
        """The names of the features; None without a header, or where it counts them."""
        counted = self.names == tuple(map(str, range(self.columns)))
        return None if self.names is None or counted else plain_names(self.features(self.names))

    def features(self, cells: Sequence[str]) -> list[str]:
        """The cells of a row that are numbers."""
        if self.label is None:
            return list(cells)
        return [*cells[: self.label], *cells[self.label + 1 :]]

    def text(self) -> str:
        """How the table is read, for people."""
        labels = "no labels" if self.label is None else f"labels from {self.name(self.label)}"
        header = "no header" if self.names is None else "a header"
        if self.names is not None and self.named is None:
            header = "a first row that counts the columns, which is taken for a header"
        return f"{amount(self.width, 'column')} of numbers, {labels}, {header}"

    @staticmethod
    def of(rows: Rows, label_column: str | None, use: LabelUse) -> _Layout:
        """Finds the header and the labels, and takes the header away; BadInput where they are not clear."""
        (line, first), columns = rows.first[0], len(rows.first[0][1])
        names = [unicodedata.normalize("NFC", cell.strip()) for cell in first]
        label, named = _label(rows, names, label_column)
        guess = _Layout(None, columns, label)
        cells = guess.features(first)
        counted = [str(i) for i in range(columns)]
        header = named or any(cell.strip() and not _is_number(cell) for cell in cells) or (
            columns > 2 and cells == guess.features(counted)
        )  # fmt: skip
        if label_column is None:
            found = [i for i, name in enumerate(names) if name in LABEL_NAMES]
            label = found[0] if header and len(found) == 1 else None
        if label is None and use == "required":
            several = [names[i] for i in found] if header and label_column is None else []
            rows.fail(
                "several columns may be the labels" if several else "no column of labels",
                found=name_list(several or names) if header else f"{amount(columns, 'column')} without names",
                expected="one of them, which you name" if several else "one called label, target, class or y",
                hint=_COLUMN_HINT,
            )
        if not header:
            return _Layout(None, columns, label)
        twice = sorted(name for name, times in Counter(names).items() if times > 1)
        if "" in names:
            hint = "name it, or leave it out: pandas' to_csv(index=False) writes no index"
            rows.fail("a column has no name", line, found=f"column {names.index('')}", hint=hint)
        if twice:
            rows.fail("several columns of one name", line, found=name_list(twice), hint="rename them")
        rows.drop_header()
        return _Layout(tuple(names), columns, label)


def _label(rows: Rows, names: Sequence[str], label_column: str | None) -> tuple[int | None, bool]:
    """The position of the column with the labels, and whether it was found by its name. An integer is a position."""
    if label_column is None:
        return None, False
    wanted = unicodedata.normalize("NFC", label_column.strip())
    if re.fullmatch(r"-?[0-9]{1,7}", wanted) and -len(names) <= int(wanted) < len(names):
        return int(wanted) % len(names), False
    if names.count(wanted) > 1:
        rows.fail("several columns of one name", 1, found=one_line(wanted), hint="rename them, or give its position")
    if wanted in names:
        return names.index(wanted), True
    found = f"columns {name_list(names)}" if len(names) > 1 else f"one column, {one_line(names[0][:60])}"
    close = difflib.get_close_matches(wanted.casefold(), [name.casefold() for name in names], n=1)
    near = next((name for name in names if [name.casefold()] == close), None)
    hint = _COLUMN_HINT if near is None else f"did you mean {one_line(near[:60])!r}?"
    return rows.fail("no such column of labels", found=found, expected=one_line(wanted[:60]), hint=hint)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number, or one of the words for none that ``float`` knows."""
    return bool(_NUMBER.fullmatch(cell)) or cell.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")


def _numbers(block: Sequence[Row], layout: _Layout, rows: Rows) -> Array:
    """The features of some rows as float64 [n, D]; BadInput for the first cell that is no number of float32."""
    count = len(block) * layout.width
    cells = [cells if layout.label is None else layout.features(cells) for _, cells in block]
    every = itertools.chain.from_iterable(cells)
    try:
        values = np.fromiter(map(float, every), np.float64, count)
    except ValueError:
        _name_the_first(block, layout, rows, lambda cell: not _NUMBER.fullmatch(cell))
        raise
    with np.errstate(over="ignore"):
        held = np.isfinite(values.astype(np.float32)).all()
    if not held:
        _name_the_first(block, layout, rows, lambda cell: not _fits(cell))
    # ``float`` takes more than a table's numbers: 1_000, and digits of other scripts.
    if rows.odd and any("_" in text or not text.isascii() for text in map(",".join, cells)):
        _name_the_first(block, layout, rows, lambda cell: not _NUMBER.fullmatch(cell))
    return values.reshape(len(block), layout.width)


def _flaw(rounding: RoundingCheck, layout: _Layout, where: str) -> BadInput | None:
    """What is wrong with a column whose differences float32 loses."""
    lost = rounding.lost()
    if lost is None:
        return None
    at, found, wanted, hint = lost
    column = at + (layout.label is not None and at >= layout.label)
    what = f"{layout.name(column)} loses its differences"
    return BadInput(what, where=where, found=found, expected=wanted, hint=hint)


def _fits(cell: str) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(float(cell))))


def _name_the_first(block: Sequence[Row], layout: _Layout, rows: Rows, wrong: Callable[[str], bool]) -> None:
    """BadInput for the first cell of a feature that is wrong, if one is."""
    for line, cells in block:
        for column, cell in enumerate(cells):
            if column != layout.label and wrong(cell):
                fail = partial(rows.fail, line=line, expected="a number")
                place = layout.name(column)
                if not cell.strip():
                    fail(f"{place} has an empty cell", hint="fill it or leave the row out")
                shown, hint = ascii(cell[:40]), f"leave the column out, or if these are the labels: {_COLUMN_HINT}"
                if re.fullmatch(r"\s*[+-]?[\d.]*,\d+\s*", cell, re.ASCII):
                    hint = "write numbers with a decimal point"
                elif _is_number(cell):
                    hint = "drop the row or repair it"
                fail(f"{place} has a cell that is no finite number", found=shown, hint=hint)


class _Labels:
    """Labels of the rows so far: a code for each row, and the text of each code, in order of appearance."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}
        self.lines: list[int] = []
        self.parts: list[Array] = []

    def append(self, block: Sequence[Row], column: int, rows: Rows) -> None:
        """Adds the labels of some rows."""
        known = self.codes
        texts = [unicodedata.normalize("NFC", cells[column].strip()) for _, cells in block]
        for text in dict.fromkeys(texts):
            if text not in known:
                line = block[texts.index(text)][0]
                check_names([text], rows.where, f"line {line}")
                known[text] = len(known)
                self.lines.append(line)
        self.parts.append(np.fromiter(map(known.__getitem__, texts), np.int64, len(texts)))

    def array(self, rows: Rows, layout: _Layout) -> Array:
        """All of them: int64 if each is an integer, else text."""
        texts, which = list(self.codes), np.concatenate(self.parts)
        assert layout.label is not None
        if all(map(_INTEGER.fullmatch, texts)):
            return _coded(np.array([int(text) for text in texts], np.int64), which)
        numbers = [i for i, text in enumerate(texts) if _NUMBER.fullmatch(text)]
        broken = [i for i in numbers if not _INTEGER.fullmatch(texts[i]) and not texts[i].isdigit()]
        place = layout.name(layout.label)
        if len(numbers) == len(texts) and broken:
            found, line = texts[broken[0]], self.lines[broken[0]]
            hint = "classes are integers or names; this tool learns no quantities"
            rows.fail(f"labels in {place} are numbers", line, found=found[:40], expected="integers or text", hint=hint)
        if len(numbers) == len(texts) - 1 and len(texts) > 2 and 0 not in numbers and layout.names is None:
            hint = "name the columns, or take the first line away"
            found = f"{texts[0]!r}, and integers below"
            rows.fail(f"the first label in {place} looks like a header", self.lines[0], found=found, hint=hint)
        return _coded(np.array(texts, np.str_), which)


def _coded(values: Array, codes: Array) -> Array:
    found: Array = values[codes]
    return found
