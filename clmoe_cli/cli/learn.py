"""``clmoe learn``: its flags."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from clmoe_cli.cli import flags
from clmoe_cli.cli.completion import homes, task_names
from clmoe_cli.report.progress import note, progress
from clmoe_cli.runtime.distributed.processes import leading, together

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clmoe_cli.api.reports import LearnReport


def learn(
    source: flags.DataArgument = None,
    data: Annotated[
        str | None,
        typer.Option(help="Labelled images: an .npz, a .csv, a folder of class folders, or - (npz or csv on stdin)."),
    ] = None,
    store: flags.StoreOption = flags.DEFAULT_STORE,
    image_size: flags.ImageSizeOption = None,
    skip_broken: flags.SkipBrokenOption = False,
    label_column: flags.LabelColumnOption = None,
    name: flags.NameOption = None,
    segment: flags.SegmentOption = False,
    boundaries: flags.BoundariesOption = None,
    arch: flags.ArchOption = "mlp:500,500",
    weights: flags.WeightsOption = None,
    features: flags.FeaturesOption = None,
    features_weights: flags.FeaturesWeightsOption = None,
    feature_cache: flags.FeatureCacheOption = True,
    epochs: flags.EpochsOption = 40,
    time_limit: flags.TimeLimitOption = None,
    augment: flags.AugmentOption = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Seed of a new store [default: 0].")] = None,
    score: flags.ScoreOption = "gradient-weight",
    max_drop: flags.MaxDropOption = 0.3,
    expert: Annotated[
        str | None, typer.Option(autocompletion=homes, help="Put the task into this expert, or into a 'new' one.")
    ] = None,
    if_known: flags.IfKnownOption = "skip",
    refine: Annotated[
        str | None,
        typer.Option(autocompletion=task_names, metavar="TASK", help="Improve this task by more data of its classes."),
    ] = None,
    alpha: Annotated[float, typer.Option(min=0.0, max=1.0, help="Rate of false alarms of the onset.")] = 0.01,
    evidence: flags.EvidenceOption = "gate",
    eyes: flags.EyesOption = None,
    batch_size: flags.BatchSizeOption = 128,
    device: flags.DeviceOption = "auto",
    dry_run: flags.DryRunOption = False,
    lock_timeout: flags.TimeoutOption = None,
    plot: flags.CurvesOption = None,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """Learn a task: onset, placement, training, subnetwork, commit."""
    from clmoe_cli.cli import early
    from clmoe_cli.report import render
    from clmoe_cli.runtime import choices

    early.check_arch(arch)
    early.check_words(
        ("device", device, choices.DEVICES),
        ("value of --if-known", if_known, choices.IF_KNOWN),
        ("score", score, choices.SCORES),
        ("evidence", evidence, choices.EVIDENCE),
        *(() if augment is None else (("augmentation", augment, choices.AUGMENT),)),
        *(() if eyes is None else (("value of --eyes", eyes, choices.EYES),)),
    )
    early.check_boundaries(boundaries, segment)
    early.check_refine(refine, segment)
    from clmoe_cli.report.curves import Curves, check_plot, plot_curves

    if plot is not None:
        check_plot(plot)
    given = early.source_of(source, data)
    from clmoe_cli.api.checks import check_names
    from clmoe_cli.api.learn import learn as learn_one
    from clmoe_cli.api.options import check_options, of_flags
    from clmoe_cli.api.planning import plan
    from clmoe_cli.api.segment import learn_stream
    from clmoe_cli.cli.reading import BackboneSession, How, Opened, accuracy_texts, read

    options = of_flags(
        name=name,
        arch=arch,
        weights=weights,
        epochs=epochs,
        time_limit=time_limit,
        augment=augment,
        seed=seed,
        score=score,
        max_drop=max_drop,
        expert=expert,
        if_known=if_known,
        refine=refine,
        alpha=alpha,
        evidence=evidence,
        eyes=eyes,
        batch_size=batch_size,
        device=device,
        lock_timeout=lock_timeout,
    )
    check_options(options)
    where = options.method.device
    unmeasured = quiet or dry_run
    backbone = BackboneSession(features, features_weights, arch, where, keep=feature_cache)
    curves = Curves()
    with together(where), progress(quiet) as shown:
        opened = Opened.at(store)
        check_names(opened, options)
        how = How(image_size, skip_broken, label_column, backbone, quiet, shown.step)
        batch = read(given, "required", opened.expected, how)
        if segment:
            stream = learn_stream(
                opened,
                batch,
                options,
                use_labels=boundaries != "images",
                dry_run=dry_run,
                on_segment=curves.hears_segments(shown.segment),
                **curves.hears(shown.callbacks()),
            )
            reports: Sequence[LearnReport] = stream.segments
        elif dry_run:
            reports = [plan(opened, batch, options, on_warning=shown.warning)]
        else:
            reports = [learn_one(opened, batch, options, **curves.hears(shown.callbacks()))]
        for text in () if unmeasured else accuracy_texts(batch.others, store, where, replace(how, quiet=True)):
            if not quiet:
                note(text)
    drawn = curves.drawn(reports)
    if not quiet:
        for report, curve in drawn if verbose else ():
            note(f"{report.task}: {curve.summary()}")
        render.learn_notes(reports, verbose)
    if not leading():
        return  # process 0 has the output
    render.show(stream if segment else reports[0], json_)
    if plot is not None and drawn:
        plot_curves(drawn, plot)
    if plot is not None and not quiet:
        note(f"wrote {plot}" if drawn else f"no curve, {plot} was not written: nothing was trained")
