"""The parts of tables for a terminal: columns, headlines, percentages."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table
from rich.text import Text


def console() -> Console:
    """Prints names and labels as they are: brackets and colons in them are no markup."""
    return Console(highlight=False, markup=False, emoji=False)


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
