"""``clmoe tasks``: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import sources
from clmoe_cli.report.progress import note, progress


def tasks(
    source: Annotated[
        str,
        typer.Argument(
            autocompletion=sources,
            help="mnist5k (offline), mnist, fashion-mnist, kmnist, cifar10, cifar100; "
            "of picture files: gtsrb, flowers102, oxford-pets, eurosat, food101.",
        ),
    ],
    out_dir: Annotated[
        Path,
        typer.Argument(
            help="Folder for task1.npz, task1.test.npz, …, mixed.test.npz; of picture files, class folders in task1, …."
        ),
    ],
    classes: Annotated[
        list[str] | None,
        typer.Option(help="Labels of one task, as 1,5, or names of picture files' classes; once for each task."),
    ] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Cut all classes into so many equal tasks.")] = None,
    order: Annotated[str, typer.Option(help="With --tasks: sorted, or random:SEED.")] = "sorted",
    root: Annotated[Path | None, typer.Option(help="torchvision's root folder of the data set.")] = None,
    per_class: Annotated[int | None, typer.Option(min=1, help="At most so many images of a class to learn.")] = None,
    seed: Annotated[
        int, typer.Option(min=0, help="Seed of the order and, for mnist5k and eurosat, of the test part.")
    ] = 0,
    dry_run: flags.DryRunOption = False,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Cut tasks from a data set into npz files or class folders."""
    from clmoe_cli.api.known_sets import PICTURES
    from clmoe_cli.api.tasks import TasksOptions, make_tasks, parse_classes
    from clmoe_cli.report import render

    groups = [parse_classes(text, names=source in PICTURES) for text in classes or ()]
    options = TasksOptions(groups, tasks, order, None if root is None else str(root), seed, per_class=per_class)
    with progress(quiet) as shown:
        report = make_tasks(source, str(out_dir), options, dry_run=dry_run, on_step=shown.step)
    if verbose and not (quiet or dry_run):
        note(f"{len(report.files)} {'folders' if source in PICTURES else 'files'} in {out_dir}")
    render.show(report, json_)
