"""How commands read images: as the store's tasks read them, with notes on what is left out and what takes long."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.reading import How, read_source
from clmoe_cli.backbone.places import FOLDER, cache_folder
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import Batch, LabelUse
from clmoe_cli.data.several import grouped, joined
from clmoe_cli.report import render
from clmoe_cli.report.progress import note
from clmoe_cli.runtime.distributed.processes import refuse_pipe
from clmoe_cli.runtime.words import amount
from store_schema.errors import ClmoeError

__all__ = ["How", "BackboneSession", "Opened", "accuracy_texts", "read", "read_all"]


def read_all(sources: Sequence[str], labels: LabelUse, expected: Expected, how: How) -> Batch:
    """All sources as one batch.

    Raises what :func:`read` and :mod:`clmoe_cli.data.several` raise.
    """
    groups = grouped(sources)
    found = joined([read(group, labels, expected, how) for group in groups])
    for text in found.warnings if len(groups) > 1 else ():
        note(f"warning: {text}")
    return found


def read(source: str | tuple[str, ...], labels: LabelUse, expected: Expected, how: How) -> Batch:
    """The images of a source as the store expects them (:func:`clmoe_cli.api.reading.read_source`).

    What is not taken as it might be meant is said on stderr, also where it is
    ``quiet``. Raises UsageProblem for a pipe where several processes would read it, besides what reading raises.
    """
    if isinstance(source, str):
        refuse_pipe(source)
    before = how.backbone.computed if how.backbone else 0
    batch = read_source(source, labels, expected, how)
    for text in batch.warnings:
        note(f"warning: {text}")
    if not how.quiet:
        for text in batch.notes:
            note(text)
        render.skip_note(batch.skipped)
        extractor = how.backbone
        if extractor is not None and batch.input is not None and batch.input.features is not None:
            kept = len(batch.images) - (extractor.computed - before)
            more = f", {kept} of them kept from before" if kept else ""
            count = len(batch.images)
            note(f"features of {extractor.name}: {amount(count, 'picture')}{more}")
            if extractor.unkept:
                note(f"the features cannot be kept in {cache_folder()}; {FOLDER} names another folder")
    return batch


def accuracy_texts(folders: Sequence[str], store: str, device: str, how: How) -> Iterator[str]:
    """A line for each folder on how many of its images are answered right, or why that is not known.

    The store is opened for them once, as it is by now.
    """
    opened: Opened | None = None
    for folder in folders:
        try:
            opened = opened or Opened.existing(store)
            yield f"{folder}: {_accuracy(folder, opened, device, how)}"
        except ClmoeError as error:
            yield f"not measured: {error}"


def _accuracy(folder: str, opened: Opened, device: str, how: How) -> str:
    """How many images of a folder are answered right, as ``predict`` answers."""
    from clmoe_cli.api.checks import judged
    from clmoe_cli.api.predict import predict

    batch = read(folder, "optional", opened.expected, how)
    images, _ = judged(opened.expected, batch)
    report = predict(opened, images, device=device, on_step=how.on_step)
    if report.accuracy is None:
        return "not measured, since it has no labels"
    return f"{100 * report.accuracy:.2f} % of {amount(len(report.labels), 'image')} answered right"
