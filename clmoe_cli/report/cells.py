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


def put(screen: Console, part: Any) -> None:
    """Prints a part of a report; where nobody looks at a screen a table is as wide as it needs to be.

    A pipe has no width: what is cut there is lost. ``COLUMNS`` gives it one.
    """
    if not screen.is_terminal and "COLUMNS" not in os.environ:
        part = getattr(part, "choices", [part])[0]
        if isinstance(part, Table) and part.show_header:
            free = screen.options.update(width=UNLIMITED)
            screen = console(max(screen.width, Measurement.get(screen, free, part).maximum))
        screen.print(part, soft_wrap=isinstance(part, (str, Text)))
        return
    screen.print(part)


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
