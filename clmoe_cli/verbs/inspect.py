"""``clmoe inspect``: its flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli import flags, render
from clmoe_cli.progress import note


def inspect(
    store: flags.StoreOption = flags.DEFAULT_STORE,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file and every task's outputs.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Go back to the newest generation of which every file is whole.")
    ] = False,
    dry_run: flags.DryRunOption = False,
    plot: flags.PlotOption = None,
    format_: flags.FormatOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Show experts, tasks, frozen shares, overlaps, history and bytes."""
    from clmoe_cli.commands.inspect import inspect as call

    if format_ is not None:
        render.check_format(format_)
    report = call(store, check=verify, mend=repair, dry_run=dry_run)
    if not quiet:
        render.repair_notes(report)
    if plot is not None:
        from clmoe_cli.plots import plot_frozen

        plot_frozen(report, plot)
        if not quiet:
            note(f"wrote {plot}")
    if verbose and not quiet:
        note(f"generation {report.generation}, content {report.content_hash}")
    if format_ is not None and not json_:
        print(render.frozen_table(report, format_), end="")
    else:
        render.show(report, json_)
