"""``clmoe rename``: its arguments and flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import task_names
from clmoe_cli.report.progress import progress


def rename(
    old: Annotated[str, typer.Argument(autocompletion=task_names, help="The task.")],
    new: Annotated[str, typer.Argument(help="Its new name.")],
    store: flags.StoreOption = flags.DEFAULT_STORE,
    lock_timeout: flags.TimeoutOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Give a task another name; answers stay the same."""
    from clmoe_cli.api.generations import rename as call
    from clmoe_cli.report import render

    with progress(quiet) as shown:
        report = call(store, old, new, lock_timeout=lock_timeout, on_wait=shown.waiting)
    render.show(report, json_)
