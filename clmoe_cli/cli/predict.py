"""``clmoe predict``: its flags."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import among, task_names
from clmoe_cli.report.progress import note, progress
from clmoe_cli.runtime import choices
from clmoe_cli.runtime.distributed.processes import LAUNCH, leading, paid, together
from clmoe_cli.runtime.words import amount


def predict(
    sources: flags.SourcesArgument = None,
    batch: Annotated[str | None, typer.Option("--batch", "--data", help="The same, as an option.")] = None,
    store: flags.StoreOption = flags.DEFAULT_STORE,
    image_size: flags.ImageSizeOption = None,
    skip_broken: flags.SkipBrokenOption = False,
    label_column: flags.LabelColumnOption = None,
    labels: Annotated[
        str,
        typer.Option(
            autocompletion=among(choices.LABELS),
            help="What answers are judged by: labels and class folders that the store knows (auto), all of them "
            "(folder), nothing (ignore).",
        ),
    ] = "auto",
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
    feature_cache: flags.FeatureCacheOption = True,
    output: Annotated[
        Path | None,
        typer.Option(help="Write .npz, .csv, .json or .ndjson; - is ndjson on stdout, as images are decided."),
    ] = None,
    route: flags.RouteOption = "image",
    batch_size: flags.RouteSizeOption = None,
    router: flags.RouterOption = "fused",
    task: Annotated[
        str | None,
        typer.Option(autocompletion=task_names, help="Answer among this task's classes, without routing."),
    ] = None,
    reject: flags.RejectOption = None,
    top: Annotated[
        int | None,
        typer.Option(
            min=1,
            metavar="K",
            help="Give the K most likely labels of each image, with confidences; of a CSV file the columns top1_label, "
            "top1_confidence, top2_label, …",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            autocompletion=among(choices.ONLY),
            help="Print and write just these rows: wrong (the data have labels), unsure (below 80 % confidence), or "
            "unknown (with --reject).",
        ),
    ] = None,
    report_file: Annotated[
        Path | None,
        typer.Option(
            "--report",
            help="Write a page for a browser (.html): the wrong, the unsure and the unknown with small pictures, at "
            "most 60 of each; with labels also accuracy by class, confusion and calibration.",
        ),
    ] = None,
    explain: flags.ExplainOption = False,
    device: flags.DeviceOption = "auto",
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Predict labels without a task id."""
    from clmoe_cli.cli import early
    from clmoe_cli.report import render

    early.check_words(
        ("device", device, choices.DEVICES),
        ("router", router, choices.ROUTERS),
        ("value of --route", route, choices.ROUTES),
        ("value of --labels", labels, choices.LABELS),
        *(() if only is None else (("value of --only", only, choices.ONLY),)),
    )
    every = [*(sources or ()), *([] if batch is None else [batch])]
    early.check_sources(every)
    from clmoe_cli.api.checks import judged
    from clmoe_cli.api.predict import check_only
    from clmoe_cli.api.predict import predict as call
    from clmoe_cli.cli.reading import BackboneSession, How, Opened, read_all
    from clmoe_cli.runtime.devices import resolved

    if output is not None:
        render.check_output(output, json_)
    render.check_page(report_file)
    check_only(only, reject, labels != "ignore")
    where = resolved(device)
    with together(where), progress(quiet) as shown:
        started = time.monotonic()
        opened = Opened.existing(store)
        expected = opened.expected_by(task)
        backbone = BackboneSession(features, features_weights, device=where, keep=feature_cache)
        how = How(image_size, skip_broken, label_column, backbone, quiet, shown.step)
        images = read_all(every, "ignored" if labels == "ignore" else "optional", expected, how)
        images, warning = judged(expected, images, folders=labels == "folder")
        check_only(only, reject, images.labels is not None)
        report = call(
            opened,
            images,
            route=route,
            batch_size=batch_size,
            router=router,
            task=task,
            reject=reject,
            device=where,
            on_part=render.row_printer(only) if output == render.STDOUT and leading() else None,
            on_step=shown.step,
            explain=explain,
            top=top,
        )
        took = time.monotonic() - started
    if not paid(took) and not quiet:
        note(f"several processes do not pay here: this took {took:.1f} s, and starting them about {LAUNCH:.0f} s more")
    whole, report = report, report.only(only)
    if only is not None and not report.count and leading() and not quiet:
        note(f"none of {amount(whole.count, 'input')} is {only}")
    render.warnings(report.warnings)
    if warning:
        note(f"warning: {warning}")
    if verbose and not quiet:
        note(f"{amount(len(images.images), 'image')}, router {report.router or 'none'}")
    if not leading():
        return  # process 0 has the output
    with progress(quiet) as shown:
        render.show_predictions(report, output, json_, quiet, shown.step)
    if report_file is not None:
        render.write_answers(whole, images, report_file)
        if not quiet:
            note(f"wrote {report_file}")
