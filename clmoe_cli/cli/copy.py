"""``clmoe copy``: its arguments and flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.cli import early, flags
from clmoe_cli.cli.completion import copied_names
from clmoe_cli.report.progress import progress


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="The store to copy from; it is only read.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="The store to copy to; made where there is none.")],
    task: Annotated[
        list[str] | None,
        typer.Option(autocompletion=copied_names, help="Copy this task; several times for several [default: all]."),
    ] = None,
    rename: Annotated[
        list[str] | None, typer.Option(metavar="OLD=NEW", help="Give the copy of a task another name.")
    ] = None,
    dry_run: flags.DryRunOption = False,
    lock_timeout: flags.TimeoutOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Copy tasks of a store into another one; answers stay the same."""
    from clmoe_cli.api.copying import CopyOptions
    from clmoe_cli.api.copying import copy as call
    from clmoe_cli.report import render

    options = CopyOptions(task or (), early.renamed(rename or ()), dry_run, lock_timeout)
    with progress(quiet) as shown:
        report = call(source, target, options, on_wait=shown.waiting, on_step=shown.step)
    render.show(report, json_)
