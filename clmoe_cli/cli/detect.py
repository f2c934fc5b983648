"""``clmoe detect``: its flags."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.process import reader_may_leave
from clmoe_cli.report.progress import note, progress

EXITS = {"new": 10, "undecided": 11}
"""What ``--exit-code`` exits with; 0 for what is known."""


def detect(
    source: flags.SourcesArgument = None,
    data: Annotated[
        str | None, typer.Option("--data", "--batch", help="Images: an .npz, .npy or .csv, a folder, or - for stdin.")
    ] = None,
    store: flags.StoreOption = flags.DEFAULT_STORE,
    image_size: flags.ImageSizeOption = None,
    skip_broken: flags.SkipBrokenOption = False,
    label_column: flags.LabelColumnOption = None,
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
    feature_cache: flags.FeatureCacheOption = True,
    use_labels: Annotated[bool, typer.Option("--use-labels", help="Let the file's labels decide as well.")] = False,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="Rate of false alarms.")] = 0.01,
    evidence: flags.EvidenceOption = "gate",
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="Exit with 10 when the batch is new, with 11 when that is undecided.")
    ] = False,
    device: flags.DeviceOption = "auto",
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Say whether a batch is of a known task, new, or undecided."""
    from clmoe_cli.cli import early
    from clmoe_cli.report import render
    from clmoe_cli.runtime import choices

    early.check_words(("device", device, choices.DEVICES), ("evidence", evidence, choices.EVIDENCE))
    given = early.sources_of(source or (), data)
    from clmoe_cli.api.detect import detect as call
    from clmoe_cli.cli.reading import BackboneSession, How, Opened, read_all
    from clmoe_cli.runtime.devices import resolved

    labels: Literal["optional", "ignored"] = "optional" if use_labels else "ignored"
    where = resolved(device)
    backbone = BackboneSession(features, features_weights, device=where, keep=feature_cache)
    opened = Opened.existing(store)
    with progress(quiet) as shown:
        how = How(image_size, skip_broken, label_column, backbone, quiet, shown.step)
        batch = read_all(given, labels, opened.expected, how)
        report = call(
            opened, batch, use_labels=use_labels, alpha=alpha, evidence=evidence, device=where, on_step=shown.step
        )
    render.warnings(report.warnings)
    if verbose and not quiet:
        note(report.reason)
    if report.verdict == "undecided" and not (use_labels or quiet):
        note("if the data have labels, --use-labels may decide it")
    with reader_may_leave():  # the exit code tells all the same
        render.show(report, json_)
    if exit_code and report.verdict != "known":
        raise typer.Exit(EXITS[report.verdict])
