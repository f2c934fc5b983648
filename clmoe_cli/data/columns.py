"""Tables of numbers (CSV) as a batch: a row is an image ``[D]``, a column a feature, one column may be the labels.

A separator is one of ``SEPARATORS``, text is UTF-8, numbers have a decimal point, and every row has as many cells.
Columns are taken in their order, whatever their names. The first row is a header if a cell in it that ought to be a
number is none, or if it just counts the columns. Rows are read some at a time, and many lie on disk.
"""

from __future__ import annotations

import csv
import io
import itertools
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, NoReturn

import numpy as np

from clmoe_cli.continual.steps import OnStep, begun, silent
from clmoe_cli.data.batch import MAX_BYTES, Array, Batch, Choice, LabelUse, Raw
from clmoe_cli.data.npz import name_list, one_line
from clmoe_cli.data.spool import Spool
from clmoe_cli.data.targets import LABEL_KEYS, check_names
from clmoe_cli.data.transforms import shape_after
from store_schema.errors import BadInput

SEPARATORS = (";", "\t", "|", ",")
LABEL_NAMES = (*LABEL_KEYS, "label", "target", "class")
"""Names of a column that is taken for the labels when nobody says which one is."""
LONGEST = 1 << 24
"""Characters of one line."""
MOST_COLUMNS = 1 << 20
_SNIFFED = 20
_CELLS = 1 << 18
"""Cells that are turned into numbers at a time."""
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*", re.ASCII)
_INTEGER = re.compile(r"(0|-?[1-9][0-9]{0,17})")
_HINT = "save the table as CSV in UTF-8: a row for each example, numbers with a decimal point"
_COLUMN_HINT = "--label-column NAME, or its position: 0 is the first column, -1 the last"

Row = tuple[int, list[str]]
"""The line on which a row ends, from 1, and its cells."""


def read_table(
    file: IO[bytes],
    where: str,
    source: str,
    use: LabelUse,
    label_column: str | None,
    choice: Choice,
    on_step: OnStep = silent,
) -> Batch:
    """The rows of a table as float32 ``[N, D]``, their labels as int64 or text ``[N]``.

    ``file``: seekable, at its start; ``where`` names it in errors. ``label_column``: name or position of the column with
    the labels; without it one that is called as in ``LABEL_NAMES``, if there is one. Labels that all are integers come
    out as such. Raises BadInput for anything wrong with the table, DiskProblem.
    """
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    rows = _Rows(file, where)
    layout = _Layout.of(rows, label_column, use)
    width = layout.width
    if width == 0:
        rows.fail("no columns of numbers", found=name_list(list(layout.names or [])) or "one column", hint=_HINT)
    # A cell has a character at least, and one behind it.
    most = max(1, (size + 1) // (2 * (width + (layout.label is not None))))
    if most * width * 4 > MAX_BYTES:
        rows.fail("the table is too big", found=f"{size} bytes", expected=f"at most {MAX_BYTES // 2}")
    record = choice(Raw(False, (width,))) if callable(choice) else choice
    try:
        shape_after((width,), record)
    except ValueError as error:
        rows.fail(str(error), found=f"{width} columns of numbers", hint="leave --image-size out")
    labels, to = _Labels(), begun(on_step, "reading", size >> 20, "MiB")
    with Spool((most, width), np.dtype(np.float32), where) as spool:
        for block in rows.blocks(max(1, _CELLS // layout.columns)):
            if layout.label is not None and use != "ignored":
                labels.append(block, layout.label, rows)
            spool.append(_numbers(block, layout, rows))
            to(file.tell() >> 20)
        if spool.rows == 0:
            rows.fail("no rows in the table", found="a header alone" if layout.names else "nothing", hint=_HINT)
        images = spool.finish()
    found = labels.array(rows, layout) if layout.label is not None and use != "ignored" else None
    return Batch(images, found, source, record, notes=(f"{where}: {len(images)} rows, {layout.text()}",))


class _Rows:
    """The rows of a table, each with as many cells as the first; blank lines are none."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where = where
        self._lines = 0
        self.odd = False  # whether there is text that ``float`` might take for more than it says
        text = self._text(file)
        head = list(itertools.islice(text, _SNIFFED))
        if not head:
            self.fail("an empty file", expected="a table", hint=_HINT)
        self.separator = _separator(head)
        self._reader = csv.reader(itertools.chain(head, text), delimiter=self.separator, strict=True)
        self._all = self._checked()
        self.first = list(itertools.islice(self._all, 2))
        if not self.first:
            self.fail("an empty file", expected="a table", hint=_HINT)

    def drop_header(self) -> None:
        """The first row is none of the table's."""
        self.first = self.first[1:]

    def blocks(self, rows: int) -> Iterator[list[Row]]:
        """So many rows at a time."""
        rest = itertools.chain(self.first, self._all)
        while block := list(itertools.islice(rest, rows)):
            yield block

    def fail(self, what: str, line: int | None = None, **details: str) -> NoReturn:
        """BadInput that names the line."""
        raise BadInput(what, where=self.where, key=None if line is None else f"line {line}", **details)

    def _text(self, file: IO[bytes]) -> Iterator[str]:
        """Lines of text, without the mark that some programs put in front; none is long enough to fill memory."""
        while line := file.readline(LONGEST):
            self._lines += 1
            if len(line) == LONGEST:
                self.fail("a line is too long", self._lines, expected=f"at most {LONGEST} bytes", hint=_HINT)
            if self._lines == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    self.fail("not UTF-8", found="UTF-16", hint=_HINT)
            if b"\0" in line:
                self.fail("not a table of text", self._lines, found="a zero byte", hint=_HINT)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                self.fail("not UTF-8", self._lines, found=f"byte {line[error.start]:#04x}", hint=_HINT)
            self.odd = self.odd or "_" in text or not text.isascii()
            # Of a file with bare carriage returns the whole is one line.
            yield from io.StringIO(text, newline=None) if "\r" in text.rstrip("\r\n") else (text,)

    def _checked(self) -> Iterator[Row]:
        columns, blank = 0, 0
        try:
            for cells in self._reader:
                line = self._reader.line_num
                if not cells or (len(cells) == 1 and not cells[0].strip() and columns != 1):
                    blank = blank or line
                    continue
                if columns == 0:
                    columns = len(cells)
                    if columns > MOST_COLUMNS:
                        self.fail("too many columns", line, found=str(columns), expected=f"at most {MOST_COLUMNS}")
                elif blank and columns == 1:
                    self.fail("a cell is empty", blank, hint="fill it or leave the row out")
                blank = 0
                if len(cells) != columns:
                    hint = "every row needs as many cells as the first; put text with a separator in it in quotes"
                    self.fail("a row of another length", line, found=f"{len(cells)} cells", expected=f"{columns}", hint=hint)
                yield line, cells
        except csv.Error as error:
            self.fail("not a table", self._reader.line_num, found=one_line(error)[:120], hint=_HINT)


def _separator(head: Sequence[str]) -> str:
    """What parts the cells: what makes the most rows equally long, and then most columns."""

    def quality(separator: str) -> tuple[int, int]:
        try:
            lengths = [len(cells) for cells in csv.reader(head, delimiter=separator) if cells]
        except csv.Error:
            return 0, 0
        first = lengths[0] if lengths else 0
        return (sum(n == first for n in lengths) if first > 1 else 0), first

    return max(SEPARATORS, key=quality)


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

    def features(self, cells: Sequence[str]) -> list[str]:
        """The cells of a row that are numbers."""
        if self.label is None:
            return list(cells)
        return [*cells[: self.label], *cells[self.label + 1 :]]

    def text(self) -> str:
        """How the table is read, for people."""
        labels = "no labels" if self.label is None else f"labels from {self.name(self.label)}"
        header = "no header" if self.names is None else "a header"
        return f"{self.width} columns of numbers, {labels}, {header}"

    @staticmethod
    def of(rows: _Rows, label_column: str | None, use: LabelUse) -> _Layout:
        """Finds the header and the labels, and takes the header away; BadInput where they are not clear."""
        (line, first), columns = rows.first[0], len(rows.first[0][1])
        names = [unicodedata.normalize("NFC", cell.strip()) for cell in first]
        label, named = _label(rows, names, label_column)
        guess = _Layout(None, columns, label)
        cells = guess.features(first)
        counted = [str(i) for i in range(columns)], [str(i + 1) for i in range(columns)]
        header = named or any(cell.strip() and not _is_number(cell) for cell in cells) or (
            columns > 2 and any(cells == guess.features(c) for c in counted)
        )  # fmt: skip
        if label_column is None:
            found = [i for i, name in enumerate(names) if name in LABEL_NAMES]
            label = found[0] if header and len(found) == 1 else None
        if label is None and use == "required":
            found_names = name_list(names) if header else f"{columns} columns without names"
            rows.fail("no column of labels", found=found_names, expected="one that is named", hint=_COLUMN_HINT)
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


def _label(rows: _Rows, names: Sequence[str], label_column: str | None) -> tuple[int | None, bool]:
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
    found = f"columns {name_list(list(names))}" if len(names) > 1 else f"one column, {one_line(names[0][:60])}"
    rows.fail("no such column of labels", found=found, expected=one_line(wanted[:60]), hint=_COLUMN_HINT)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number, or one of the words for none that ``float`` knows."""
    return bool(_NUMBER.fullmatch(cell)) or cell.strip().lower().lstrip("+-") in ("nan", "inf", "infinity")


def _numbers(block: Sequence[Row], layout: _Layout, rows: _Rows) -> Array:
    """The features of some rows as float32 [n, D]; BadInput for the first cell that is no finite number."""
    count = len(block) * layout.width
    cells = [cells if layout.label is None else layout.features(cells) for _, cells in block]
    every = itertools.chain.from_iterable(cells)
    try:
        values = np.fromiter(map(float, every), np.float64, count)
    except ValueError:
        _name_the_first(block, layout, rows, lambda cell: not _NUMBER.fullmatch(cell))
        raise
    with np.errstate(over="ignore"):
        found = values.astype(np.float32)
    if not np.isfinite(found).all():
        _name_the_first(block, layout, rows, lambda cell: not _fits(cell))
    # ``float`` takes more than a table's numbers: 1_000, and digits of other scripts.
    if rows.odd and any("_" in text or not text.isascii() for text in map(",".join, cells)):
        _name_the_first(block, layout, rows, lambda cell: not _NUMBER.fullmatch(cell))
    return found.reshape(len(block), layout.width)


def _fits(cell: str) -> bool:
    with np.errstate(over="ignore"):
        return bool(np.isfinite(np.float32(float(cell))))


def _name_the_first(block: Sequence[Row], layout: _Layout, rows: _Rows, wrong: Callable[[str], bool]) -> None:
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

    def append(self, block: Sequence[Row], column: int, rows: _Rows) -> None:
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

    def array(self, rows: _Rows, layout: _Layout) -> Array:
        """All of them: int64 if each is an integer, else text."""
        texts, which = list(self.codes), np.concatenate(self.parts)
        assert layout.label is not None
        if all(map(_INTEGER.fullmatch, texts)):
            return np.array([int(text) for text in texts], np.int64)[which]
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
        return np.array(texts, np.str_)[which]
