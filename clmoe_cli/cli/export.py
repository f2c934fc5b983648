"""``clmoe export``: its flags."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import task_names
from clmoe_cli.report.progress import note


def export(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The file to write: .safetensors or .onnx; with --all .onnx or .pt2.")
    ],
    task: Annotated[
        str | None,
        typer.Option(
            autocompletion=task_names,
            help="The task that is written; with --all, where tasks read several kinds of input: one of the kind.",
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Write the whole store as one model.")] = False,
    store: flags.StoreOption = flags.DEFAULT_STORE,
    sparse: Annotated[bool, typer.Option("--sparse", help="In safetensors: only the weights that are used.")] = False,
    features_weights: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="With --all: weights of the store's backbone, safetensors [default: the published ones].",
        ),
    ] = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Write a task or the whole store as a model that needs no clmoe."""
    from clmoe_cli.report import render
    from store_schema import UsageProblem

    if all_:
        from clmoe_cli.api.export_all import export_all

        if sparse:
            raise UsageProblem("--sparse is for the safetensors file of a task", hint="leave it out, or --all")
        whole = export_all(store, out, task=task, features_weights=features_weights)
        render.show(whole, json_)
        return
    from clmoe_cli.api.export import export as call

    if task is None:
        raise UsageProblem("nothing says what to export", expected="--task NAME, or --all for the whole store")
    report = call(store, task, out, sparse=sparse)
    render.warnings(report.warnings)
    if verbose and not quiet and report.standardised:
        note("the model's first layers standardise its inputs, as the expert does")
    elif verbose and not quiet and report.input_scale != 1.0:
        note(f"the expert's input scale, {report.input_scale:.6g}, is in the first layer's weights")
    render.show(report, json_)
