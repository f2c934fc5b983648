"""How commands read images: as the store's tasks read them, with notes on what is left out and what takes long."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from clmoe_cli.api.inputs import following
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import Batch, LabelUse, read_batch
from clmoe_cli.report import render
from clmoe_cli.report.progress import note
from clmoe_cli.runtime.distributed.processes import launched, leading
from clmoe_cli.runtime.events import OnStep, silent
from store_schema.errors import ClmoeError, UsageProblem

__all__ = ["How", "BackboneSession", "answered", "read"]


@dataclass(frozen=True)
class How:
    """What the options say of reading: ``--image-size``, ``--skip-broken`` and ``--label-column``."""

    image_size: int | None = None
    skip_broken: bool = False
    label_column: str | None = None


def read(
    source: str,
    labels: LabelUse,
    store: str,
    how: How,
    quiet: bool,
    task: str | None = None,
    seeing: BackboneSession | None = None,
    on_step: OnStep = silent,
) -> Batch:
    """The images of a source (:func:`clmoe_cli.data.read_batch`), by the rules of :mod:`clmoe_cli.api.inputs`.

    What is not taken as it might be meant is said on stderr, also where it is ``quiet``.
    Pictures that go through a backbone come out as its features [N, width]. Raises UsageProblem for a pipe where
    several processes would read it, besides what reading raises.
    """
    if launched() and (source == "-" or Path(source).is_fifo()):
        raise UsageProblem(
            "only one process can read a pipe",
            where="stdin" if source == "-" else source,
            hint="name a file or a folder",
        )
    seeing = seeing or BackboneSession()
    through = following(store, image_size=how.image_size, task=task, seeing=seeing, on_step=on_step)
    batch = read_batch(
        source,
        labels=labels,
        input=through,
        skip_broken=how.skip_broken,
        label_column=how.label_column,
        on_step=on_step,
    )
    if leading():
        for text in batch.warnings:
            note(f"warning: {text}")
    if not quiet:
        for text in batch.notes:
            note(text)
        render.skip_note(batch.skipped)
        if batch.input is not None and batch.input.features is not None:
            note(f"features of {batch.input.features.arch}: {len(batch.images)} pictures")
    return seeing.features(batch, on_step)


def answered(folder: str, store: str, how: How, seeing: BackboneSession, on_step: OnStep = silent) -> str:
    """A line on how many images of a folder are answered right, as ``predict`` answers; or why that is not known."""
    from clmoe_cli.api.checks import judged
    from clmoe_cli.api.predict import predict

    try:
        batch = read(folder, "optional", store, how, True, seeing=seeing, on_step=on_step)
        report = predict(store, judged(store, batch)[0], device=seeing.device, on_step=on_step)
    except ClmoeError as error:
        return f"not measured: {error}"
    if report.accuracy is None:
        return f"{folder}: not measured, since it has no labels"
    return f"{folder}: {100 * report.accuracy:.2f} % of {len(report.labels)} images are answered right"
