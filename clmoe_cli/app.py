"""The command line: flags and nothing else. A command is parse → call → render; torch is imported by the call."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Literal

import typer

from clmoe_cli import flags, render
from clmoe_cli.distributed import has_a_part, leading, leave, together
from clmoe_cli.flags import (
    BatchSizeOption,
    BoundariesOption,
    DeviceOption,
    ImageSizeOption,
    JsonOption,
    NameOption,
    QuietOption,
    RejectOption,
    RouteSizeOption,
    SegmentOption,
    SkipBrokenOption,
    StoreOption,
    TimeoutOption,
    VerboseOption,
)
from clmoe_cli.progress import note, progress

app = typer.Typer(
    name="clmoe",
    help="Continual learning: each task lives as a frozen subnetwork in a store that keeps it.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "auto_envvar_prefix": "CLMOE"},
)


DEFAULT_STORE = "./clmoe-store"


def _version(value: bool) -> None:
    if value:
        from clmoe_cli import __version__

        typer.echo(f"clmoe {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Continual learning: each task lives as a frozen subnetwork in a store that keeps it."""
    if not has_a_part(context.invoked_subcommand):
        raise typer.Exit


@app.command()
def learn(
    data: Annotated[
        str, typer.Option(help="Labelled images: an .npz, a folder of class folders, or - (npz on stdin).")
    ],
    store: StoreOption = DEFAULT_STORE,
    image_size: ImageSizeOption = None,
    skip_broken: SkipBrokenOption = False,
    name: NameOption = None,
    segment: SegmentOption = False,
    boundaries: BoundariesOption = None,
    arch: Annotated[str, typer.Option(help="Architecture of the experts.")] = "mlp:500,500",
    weights: flags.WeightsOption = None,
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
    epochs: flags.EpochsOption = 40,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new store [default: 0].")] = None,
    score: flags.ScoreOption = "gradient-weight",
    max_drop: flags.MaxDropOption = 0.3,
    expert: Annotated[str | None, typer.Option(help="Put the task into this expert, or into a 'new' one.")] = None,
    if_known: Annotated[str, typer.Option(help="What to do with data of a known task: skip, refine, new.")] = "skip",
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="Rate of false alarms of the onset.")] = 0.01,
    batch_size: BatchSizeOption = 128,
    device: DeviceOption = "auto",
    lock_timeout: TimeoutOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Learn a task: onset, placement, training, subnetwork, commit."""
    from clmoe_cli.commands.learn import learn as learn_one
    from clmoe_cli.commands.options import LearnOptions
    from clmoe_cli.commands.segment import check_boundaries, learn_stream
    from clmoe_cli.continual.learning import Options
    from clmoe_cli.continual.selection import Tolerance
    from clmoe_cli.continual.training import Schedule
    from clmoe_cli.devices import resolved
    from clmoe_cli.reading import Seeing, read

    check_boundaries(boundaries, segment)
    schedule = Schedule(epochs=epochs, batch_size=batch_size)
    method = Options(schedule, Tolerance(max_drop=max_drop / 100), score, resolved(device))
    options = LearnOptions(
        name=name,
        arch=arch,
        seed=seed,
        expert=expert,
        if_known=if_known,
        alpha=alpha,
        method=method,
        lock_timeout=lock_timeout,
        weights=weights,
    )
    quiet |= not leading()
    seeing = Seeing(features, features_weights, arch, method.device)
    with together(method.device):
        batch = read(data, "required", store, image_size, skip_broken, quiet, seeing=seeing)
        with progress(quiet) as shown:
            if segment:
                by_label = boundaries != "images"
                stream = learn_stream(store, batch, options, use_labels=by_label, **shown.callbacks())
                reports = [part.report for part in stream.segments]
            else:
                reports = [learn_one(store, batch, options, **shown.callbacks())]
    if not quiet:
        render.learn_notes(reports, verbose)
    if leading():
        render.show(stream if segment else reports[0], json_)


@app.command()
def detect(
    data: Annotated[str, typer.Option("--data", "--batch", help="Images: an .npz, a folder, or - (npz on stdin).")],
    store: StoreOption = DEFAULT_STORE,
    image_size: ImageSizeOption = None,
    skip_broken: SkipBrokenOption = False,
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
    use_labels: Annotated[bool, typer.Option("--use-labels", help="Let the file's labels decide as well.")] = False,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="Rate of false alarms.")] = 0.01,
    evidence: Annotated[str, typer.Option(help="Deviation to judge by: fisher, or gradient (the paper's).")] = "fisher",
    exit_code: Annotated[bool, typer.Option("--exit-code", help="Exit with 10 when the batch is new.")] = False,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Say whether a batch belongs to a known task."""
    from clmoe_cli.commands.detect import detect as call
    from clmoe_cli.devices import resolved
    from clmoe_cli.reading import Seeing, read

    labels: Literal["optional", "ignored"] = "optional" if use_labels else "ignored"
    where = resolved(device)
    seeing = Seeing(features, features_weights, device=where)
    batch = read(data, labels, store, image_size, skip_broken, quiet, seeing=seeing)
    report = call(store, batch, use_labels=use_labels, alpha=alpha, evidence=evidence, device=where)
    if verbose and not quiet:
        note(report.reason)
    render.show(report, json_)
    if exit_code and report.verdict == "new":
        raise typer.Exit(10)


@app.command()
def predict(
    batch: Annotated[str, typer.Option("--batch", "--data", help="Images: an .npz, a folder, or - (npz on stdin).")],
    store: StoreOption = DEFAULT_STORE,
    image_size: ImageSizeOption = None,
    skip_broken: SkipBrokenOption = False,
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
    output: Annotated[Path | None, typer.Option(help="Write .npz, .csv, .json or .ndjson instead of stdout.")] = None,
    route: Annotated[str, typer.Option(help="image: each by itself; batch: the file is one task.")] = "image",
    batch_size: RouteSizeOption = None,
    router: Annotated[str, typer.Option(help="Evidence: fused, gate, fisher, loss, gradient or paper.")] = "fused",
    task: Annotated[str | None, typer.Option(help="Answer among this task's classes, without routing.")] = None,
    reject: RejectOption = None,
    device: DeviceOption = "auto",
    json_: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Predict labels without a task id."""
    from clmoe_cli.commands.predict import predict as call
    from clmoe_cli.devices import resolved
    from clmoe_cli.reading import Seeing, read

    if output is not None:
        render.check_output(output)
    quiet |= not leading()
    where = resolved(device)
    with together(where):
        seeing = Seeing(features, features_weights, device=where)
        images = read(batch, "optional", store, image_size, skip_broken, quiet, task, seeing)
        report = call(
            store, images, route=route, batch_size=batch_size, router=router, task=task, reject=reject, device=where
        )
    if verbose and not quiet:
        note(f"{len(images.images)} images, router {report.router or 'none'}")
    if leading():
        render.show_predictions(report, output, json_, quiet)


@app.command()
def inspect(
    store: StoreOption = DEFAULT_STORE,
    verify: Annotated[bool, typer.Option("--verify", help="Check every file and every task's outputs.")] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Go back to the newest generation of which every file is whole.")
    ] = False,
    plot: flags.PlotOption = None,
    format_: flags.FormatOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Show experts, tasks, frozen percentages, overlaps, history and bytes."""
    from clmoe_cli.commands.inspect import inspect as call

    if format_ is not None:
        render.check_format(format_)
    report = call(store, check=verify, mend=repair)
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


@app.command()
def prune(
    store: StoreOption = DEFAULT_STORE,
    task: Annotated[str | None, typer.Option(help="Remove this task.")] = None,
    expert: Annotated[str | None, typer.Option(help="Remove this expert and all its tasks.")] = None,
    to_frozen: flags.ToFrozenOption = None,
    gc: flags.GcOption = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Act without asking.")] = False,
    lock_timeout: TimeoutOption = None,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Remove tasks; every other task's outputs stay bit-identical."""
    from clmoe_cli.commands.prune import PruneOptions
    from clmoe_cli.commands.prune import prune as call

    options = PruneOptions(task=task, expert=expert, to_frozen=to_frozen, gc=gc, lock_timeout=lock_timeout)
    with progress(quiet) as shown:
        report = call(store, options, render.confirmation(yes, quiet), on_wait=shown.waiting)
    if verbose and not quiet:
        note(f"{report.freed_bytes} bytes freed")
    render.show(report, json_)


@app.command()
def tasks(
    source: Annotated[str, typer.Argument(help="mnist5k (offline), mnist, fashion-mnist, kmnist or cifar10.")],
    out_dir: Annotated[Path, typer.Argument(help="Folder for task1.npz, task1.test.npz, …, mixed.test.npz.")],
    classes: Annotated[list[str], typer.Option(help="Labels of one task, as 1,5; once for each task.")],
    root: Annotated[Path | None, typer.Option(help="torchvision's root folder of the data set.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order and, for mnist5k, of the test part.")] = 0,
    json_: JsonOption = False,
    quiet: QuietOption = False,
    verbose: VerboseOption = False,
) -> None:
    """Cut tasks from a data set into npz files."""
    from clmoe_cli.commands.tasks import make_tasks, parse_classes

    groups = [parse_classes(text) for text in classes]
    report = make_tasks(source, str(out_dir), classes=groups, root=None if root is None else str(root), seed=seed)
    if verbose and not quiet:
        note(f"{len(report.files)} files in {out_dir}")
    render.show(report, json_)


def main(args: list[str] | None = None) -> None:
    """Runs the command line and exits with the contract's code."""
    from clmoe_cli.process import run, usable_streams

    # Before torch is imported: threads that spin for long while they wait make training ten times slower when
    # another process has one of the cores. Results are the same to the bit.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    usable_streams()
    leave(run(app, sys.argv[1:] if args is None else args))
