"""``clmoe inspect``: its flags."""

from __future__ import annotations

from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import task_names
from clmoe_cli.report.progress import note, progress


def inspect(
    name: Annotated[
        str | None,
        typer.Argument(metavar="[TASK]", autocompletion=task_names, help="The task to show: what --task names."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            autocompletion=task_names,
            metavar="TASK",
            help="Show one task: when and from what it was learned, its size, accuracy by class, wrong answers.",
        ),
    ] = None,
    store: flags.StoreOption = flags.DEFAULT_STORE,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file and every task's outputs.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Go back to the newest generation of which every file is whole.")
    ] = False,
    dry_run: flags.DryRunOption = False,
    plot: flags.PlotOption = None,
    report_file: flags.ReportOption = None,
    with_pictures: flags.WithPicturesOption = None,
    format_: flags.FormatOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Show experts, tasks, frozen shares, overlaps, history and bytes."""
    from clmoe_cli.api.inspect import inspect as call
    from clmoe_cli.api.inspect import inspect_task
    from clmoe_cli.cli import early
    from clmoe_cli.report import render

    wanted = early.one_task(name, task, store)
    if wanted is not None:
        whole_store: dict[str, object] = {
            "--verify": verify,
            "--repair": repair,
            "--plot": plot,
            "--report": report_file,
        }
        whole_store |= {"--with-pictures": with_pictures, "--format": format_}
        early.check_alone(wanted, whole_store)
        render.show(inspect_task(store, wanted), json_)
        return
    if format_ is not None:
        render.check_format(format_)
    render.check_pictures(plot, report_file)
    render.check_thumbnails(with_pictures, report_file)
    with progress(quiet) as shown:
        report = call(store, check=verify, mend=repair, dry_run=dry_run, on_step=shown.step)
        small = render.read_thumbnails(report, with_pictures, shown.step)
    if not quiet:
        render.repair_notes(report)
    for path in render.draw_pictures(report, plot, report_file, small):
        if not quiet:
            note(f"wrote {path}")
    if verbose and not quiet:
        note(f"generation {report.generation}, content {report.content_hash}")
    if format_ is not None and not json_:
        print(render.frozen_table(report, format_), end="")
    else:
        render.show(report, json_)
