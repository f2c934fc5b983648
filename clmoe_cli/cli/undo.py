"""``clmoe undo`` and ``clmoe checkout``: their flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.report.progress import progress


def undo(
    store: flags.StoreOption = flags.DEFAULT_STORE,
    dry_run: flags.DryRunOption = False,
    lock_timeout: flags.TimeoutOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Take the last change back; a second undo brings it again."""
    _go_back(store, None, dry_run, lock_timeout, json_, quiet)


def checkout(
    generation: Annotated[int, typer.Argument(min=0, help="The generation, as clmoe log lists it.")],
    store: flags.StoreOption = flags.DEFAULT_STORE,
    dry_run: flags.DryRunOption = False,
    lock_timeout: flags.TimeoutOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Go back to a generation that the store still has."""
    _go_back(store, generation, dry_run, lock_timeout, json_, quiet)


def _go_back(
    store: str, generation: int | None, dry_run: bool, lock_timeout: float | None, json_: bool, quiet: bool
) -> None:
    from clmoe_cli.api.generations import undo as call
    from clmoe_cli.report import render

    with progress(quiet) as shown:
        report = call(store, generation, dry_run=dry_run, lock_timeout=lock_timeout, on_wait=shown.waiting)
    render.show(report, json_)
