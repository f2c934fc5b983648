"""Writes docs/commands.md from the commands themselves (``make docs``)."""

from __future__ import annotations

from pathlib import Path

import typer
from typer.cli import get_docs_for_click

from clmoe_cli.cli.app import app

PAGE = Path(__file__).with_name("commands.md")


def page() -> str:
    """The reference of all commands as markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="clmoe")
    return get_docs_for_click(obj=command, ctx=context, name="clmoe").strip() + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
