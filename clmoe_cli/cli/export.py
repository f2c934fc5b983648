"""``clmoe export``: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import task_names
from clmoe_cli.report.progress import note


def export(
    out: Annotated[Path, typer.Argument(metavar="OUT", help="The file to write: .safetensors or .onnx.")],
    task: Annotated[str, typer.Option(autocompletion=task_names, help="The task that is written.")],
    store: flags.StoreOption = flags.DEFAULT_STORE,
    sparse: Annotated[bool, typer.Option("--sparse", help="In safetensors: only the weights that are used.")] = False,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Write a task as an ordinary model, which needs no clmoe."""
    from clmoe_cli.api.export import export as call
    from clmoe_cli.report import render

    report = call(store, task, out, sparse=sparse)
    render.warnings(report.warnings)
    if verbose and not quiet and report.standardised:
        note("the model's first layers standardise its inputs, as the expert does")
    elif verbose and not quiet and report.input_scale != 1.0:
        note(f"the expert's input scale, {report.input_scale:.6g}, is in the first layer's weights")
    render.show(report, json_)
