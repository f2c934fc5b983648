"""The parts of tables for a terminal: columns, headlines, percentages."""

from __future__ import annotations

import os
import shutil
from typing import Any

from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

UNLIMITED = 100_000
SHORT = 10
"""Columns of a cell that is not wrapped."""
FOLDED = 16
"""Columns of a word that is not broken."""
NARROWEST = 20
"""Columns of a screen at least; COLUMNS=0 is what some programs say where they do not know."""


def console(width: int | None = None) -> Console:
    """Prints names and labels as they are: brackets and colons in them are no markup.

    ``width``: in columns, None for that of the terminal, or what ``COLUMNS`` says.
    """
    wanted = os.environ.get("COLUMNS", "").strip()
    if width is None and wanted.isdecimal() and int(wanted) < NARROWEST:
        width = max(NARROWEST, int(wanted) or shutil.get_terminal_size().columns)
    return Console(highlight=False, markup=False, emoji=False, width=width)


class Fitting:
    """The first of several renderables for which there is room, else the last."""

    def __init__(self, *choices: Any) -> None:
        self.choices = choices


def put(screen: Console, part: Any) -> None:
    """Prints a part of a report; where nobody looks at a screen a table is as wide as it needs to be.

    A pipe has no width: what is cut there is lost. ``COLUMNS`` gives it one. Where a table has no room, each of its
    rows is a block of lines.
    """
    if screen.is_terminal:
        screen.print(fitted(screen, part))
        return
    wide = "COLUMNS" not in os.environ
    part = (part.choices[0] if isinstance(part, Fitting) else part) if wide else fitted(screen, part)
    printer = screen
    if wide and isinstance(part, Table) and part.show_header:
        printer = console(max(screen.width, _measured(screen, part).maximum))
    with printer.capture() as printed:
        printer.print(part, soft_wrap=wide and isinstance(part, (str, Text)))
    # Blanks that fill a table's lines are noise to whatever reads them.
    screen.out("".join(f"{line.rstrip(' ')}\n" for line in printed.get().splitlines()), end="", highlight=False)


def fitted(screen: Console, part: Any) -> Any:
    """A part of a report as there is room for it on a screen."""
    choices = part.choices if isinstance(part, Fitting) else (part,)
    part = next((each for each in choices[:-1] if _measured(screen, each).maximum <= screen.width), choices[-1])
    return _stacked(part) if isinstance(part, Table) and part.show_header and not _has_room(screen, part) else part


def _measured(screen: Console, part: Any) -> Measurement:
    """How narrow and how wide a part can be."""
    return Measurement.get(screen, screen.options.update(width=UNLIMITED), part)


def _has_room(screen: Console, table: Table) -> bool:
    """Whether a table fits on a screen once sentences wrap at words, and then long words break; makes it do so."""
    free = screen.width - (len(table.columns) - 1) * (table.padding[1] + table.padding[3])
    cells = [[_measured(screen, cell) for cell in (column.header, *column.cells)] for column in table.columns]
    widest = [max(cell.maximum for cell in every) for every in cells]
    words = [max(cell.minimum for cell in every) for every in cells]
    for longest in (UNLIMITED, FOLDED):
        least = [wide if wide <= SHORT else min(word, longest) for wide, word in zip(widest, words, strict=True)]
        room, wanted = free - sum(least), sum(widest) - sum(least)
        if room >= 0:
            for column, wide, narrow in zip(table.columns, widest, least, strict=True):
                # Those that give way do so alike.
                column.width = wide if wanted <= room else narrow + (wide - narrow) * room // wanted
                column.overflow = "fold"
            return True
    return False


def _stacked(table: Table) -> Table:
    """The rows below each other, a line for each cell that is not empty, and an empty one after each row."""
    stacked = Table.grid(padding=(0, 1))
    stacked.add_column(overflow="fold")
    stacked.add_column(overflow="fold")
    for row in zip(*(column.cells for column in table.columns), strict=True):
        for column, cell in zip(table.columns, row, strict=True):
            if cell != "":
                stacked.add_row(f"{column.header}:" if column.header else "", cell)
        stacked.add_row()
    return stacked


def columns(*names: str) -> Table:
    """An empty table with these columns, the first to the left."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for i, name in enumerate(names):
        table.add_column(name, justify="left" if i == 0 else "right")
    return table


def headline(head: str, rest: str) -> Text:
    """A line that begins in bold."""
    return Text.assemble((head, "bold"), rest)


def percent(value: float | int | None) -> str:
    """A share of one in percent."""
    return "not measured" if value is None else f"{100 * value:.2f} %"


def sentences(said: dict[str, str]) -> Table:
    """Sentences by what they are about; long ones go on below their beginning."""
    table = Table.grid(padding=(0, 1))
    for about, sentence in said.items():
        table.add_row(f"{about}:", sentence)
    return table
