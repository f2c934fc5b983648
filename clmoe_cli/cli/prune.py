"""``clmoe prune``: its flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import expert_names, task_names
from clmoe_cli.report.progress import note, progress


def prune(
    tasks: Annotated[
        list[str] | None,
        typer.Argument(metavar="[TASK]...", autocompletion=task_names, help="Tasks to remove: what --task names."),
    ] = None,
    store: flags.StoreOption = flags.DEFAULT_STORE,
    task: Annotated[
        list[str] | None, typer.Option(autocompletion=task_names, help="Remove this task; several times for several.")
    ] = None,
    expert: Annotated[
        str | None, typer.Option(autocompletion=expert_names, help="Remove this expert and all its tasks.")
    ] = None,
    to_frozen: flags.ToFrozenOption = None,
    unfinished: Annotated[
        str | None,
        typer.Option(metavar="TASK", help="Discard what an interrupted learn of this task had reached (see log)."),
    ] = None,
    gc: flags.GcOption = False,
    dry_run: flags.DryRunOption = False,
    yes: Annotated[
        bool,
        typer.Option(
            "--yes",
            "-y",
            help="Act without asking. A script that leaves it out changes nothing, and the exit code is 0.",
        ),
    ] = False,
    lock_timeout: flags.TimeoutOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Remove tasks; every other task's outputs stay bit-identical."""
    from clmoe_cli.api.prune import PruneOptions, would_prune
    from clmoe_cli.api.prune import prune as call
    from clmoe_cli.report import render

    options = PruneOptions((*(tasks or ()), *(task or ())), expert, to_frozen, gc, lock_timeout, unfinished)
    if dry_run:
        report = would_prune(store, options)
    else:
        with progress(quiet) as shown:
            report = call(
                store,
                options,
                render.confirmation(yes, quiet, json_),
                on_wait=shown.waiting,
                on_step=shown.step,
                on_change=shown.changed,
            )
    if verbose and not quiet:
        note(f"{report.freed_bytes} bytes freed")
    render.show(report, json_)
