"""``clmoe predict``: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli import flags
from clmoe_cli.completion import task_names
from clmoe_cli.distributed import leading, together
from clmoe_cli.progress import note, progress


def predict(
    batch: Annotated[str, typer.Option("--batch", "--data", help="Images: an .npz, a folder, or - (npz on stdin).")],
    store: flags.StoreOption = flags.DEFAULT_STORE,
    image_size: flags.ImageSizeOption = None,
    skip_broken: flags.SkipBrokenOption = False,
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
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
    explain: flags.ExplainOption = False,
    device: flags.DeviceOption = "auto",
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Predict labels without a task id."""
    from clmoe_cli import render
    from clmoe_cli.commands.predict import predict as call
    from clmoe_cli.devices import resolved
    from clmoe_cli.reading import Seeing, read

    if output is not None:
        render.check_output(output, json_)
    quiet |= not leading()
    where = resolved(device)
    with together(where), progress(quiet) as shown:
        seeing = Seeing(features, features_weights, device=where)
        images = read(batch, "optional", store, image_size, skip_broken, quiet, task, seeing, shown.step)
        report = call(
            store,
            images,
            route=route,
            batch_size=batch_size,
            router=router,
            task=task,
            reject=reject,
            device=where,
            on_part=render.print_rows if output == render.STDOUT and leading() else None,
            on_step=shown.step,
            explain=explain,
        )
    if leading():
        render.warnings(report.warnings)
    if verbose and not quiet:
        note(f"{len(images.images)} images, router {report.router or 'none'}")
    if leading():
        with progress(quiet) as shown:
            render.show_predictions(report, output, json_, quiet, shown.step)
