"""``clmoe prune``: its flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import expert_names, task_names
from clmoe_cli.report.progress import note, progress


def prune(
    store: flags.StoreOption = flags.DEFAULT_STORE,
    task: Annotated[str | None, typer.Option(autocompletion=task_names, help="Remove this task.")] = None,
    expert: Annotated[
        str | None, typer.Option(autocompletion=expert_names, help="Remove this expert and all its tasks.")
    ] = None,
    to_frozen: flags.ToFrozenOption = None,
    gc: flags.GcOption = False,
    dry_run: flags.DryRunOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Act without asking.")] = False,
    lock_timeout: flags.TimeoutOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Remove tasks; every other task's outputs stay bit-identical."""
    from clmoe_cli.api.prune import PruneOptions, would_prune
    from clmoe_cli.api.prune import prune as call
    from clmoe_cli.report import render

    options = PruneOptions(task=task, expert=expert, to_frozen=to_frozen, gc=gc, lock_timeout=lock_timeout)
    if dry_run:
        report = would_prune(store, options)
    else:
        with progress(quiet) as shown:
            report = call(store, options, render.confirmation(yes, quiet), on_wait=shown.waiting, on_step=shown.step)
    if verbose and not quiet:
        note(f"{report.freed_bytes} bytes freed")
    render.show(report, json_)
