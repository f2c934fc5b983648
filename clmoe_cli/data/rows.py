"""The text of a table as rows of cells: every row with as many cells as the first, and no line too long for memory."""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Iterator, Sequence
from typing import IO, NoReturn, TypeAlias

from clmoe_cli.data.npz import one_line
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.words import amount
from store_schema.errors import BadInput

SEPARATORS = (";", "\t", "|", ",")
LONGEST = limits.LINE_BYTES
MOST_COLUMNS = limits.COLUMNS
HINT = "save the table as CSV in UTF-8: a row for each example, numbers with a decimal point"
_SNIFFED = 20

Row: TypeAlias = tuple[int, list[str]]
"""The line on which a row ends, from 1, and its cells."""


class Rows:
    """The rows of a table, each with as many cells as the first; blank lines are none."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where = where
        self._lines = 0
        self.odd = False  # whether there is text that ``float`` might take for more than it says
        text = self._text(file)
        head = list(itertools.islice(text, _SNIFFED))
        if not head:
            self.fail("an empty file", expected="a table", hint=HINT)
        self.separator = _separator(head)
        if head[0].lstrip().startswith(("#", "%")) and len(head) > 1:
            below = _separator(head[1:])
            if head[0].count(below) < head[1].count(below):
                self.fail("the first line is a comment", 1, found=one_line(head[0].strip())[:60], hint="take it away")
        self._reader = csv.reader(itertools.chain(head, text), delimiter=self.separator, strict=True)
        self._all = self._checked()
        self.first = list(itertools.islice(self._all, 2))
        if not self.first:
            self.fail("an empty file", expected="a table", hint=HINT)

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
                self.fail("a line is too long", self._lines, expected=f"at most {LONGEST} bytes", hint=HINT)
            if self._lines == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
                if line.startswith((b"\xff\xfe", b"\xfe\xff")):
                    self.fail("not UTF-8", found="UTF-16", hint=HINT)
            if b"\0" in line:
                self.fail("not a table of text", self._lines, found="a zero byte", hint=HINT)
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                self.fail("not UTF-8", self._lines, found=f"byte {line[error.start]:#04x}", hint=HINT)
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
                    found = amount(len(cells), "cell")
                    self.fail("a row of another length", line, found=found, expected=f"{columns}", hint=hint)
                yield line, cells
        except csv.Error as error:
            self.fail("not a table", self._reader.line_num, found=one_line(error)[:120], hint=HINT)


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
