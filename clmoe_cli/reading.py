"""How commands read images: as the store's tasks read them, with a note on what is left out."""

from __future__ import annotations

from clmoe_cli import render
from clmoe_cli.commands.inputs import following
from clmoe_cli.data import Batch, LabelUse, read_batch


def read(
    source: str,
    labels: LabelUse,
    store: str,
    image_size: int | None,
    skip_broken: bool,
    quiet: bool,
    task: str | None = None,
) -> Batch:
    """The images of a source (:func:`clmoe_cli.data.read_batch`), by the rules of :mod:`clmoe_cli.commands.inputs`."""
    through = following(store, image_size=image_size, task=task)
    batch = read_batch(source, labels=labels, input=through, skip_broken=skip_broken)
    if not quiet:
        render.skip_note(batch.skipped)
    return batch
