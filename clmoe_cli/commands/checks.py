"""Data that must not be learned from: they would drown what is there, or make a task forget."""

from __future__ import annotations

import math

import numpy as np
import torch

from clmoe_cli.commands.names import one_of
from clmoe_cli.continual.calibration import MINIMUM
from clmoe_cli.continual.images import Rows
from clmoe_cli.continual.learning import FEW
from clmoe_cli.continual.steps import OnStep, begun, silent
from clmoe_cli.data import Batch
from clmoe_cli.labels import Codebook
from store_schema import BadInput, Manifest, Store, StoreMissing, TaskRecord, UsageProblem

LARGEST = 1e4
"""Inputs beyond this, where the median image has a root mean square of about 1, would drown all others."""

CHUNK = 1024

BALANCE = 8
"""Refining needs of each class at least this fraction of an even share."""


def check_expert(store: str, expert: str | None) -> None:
    """Refuses the name of an expert (UsageProblem) before a store is made that cannot have it."""
    if expert not in (None, "new"):
        try:
            Store.open(store)
        except StoreMissing:
            one_of("expert", str(expert), ["new"])


def check_seed(manifest: Manifest, seed: int | None) -> None:
    """Refuses another seed than the store's (UsageProblem)."""
    if seed is not None and manifest.generation > 0 and seed != manifest.seed:
        raise UsageProblem(
            "the store has another seed",
            found=str(seed),
            expected=str(manifest.seed),
            hint="leave --seed out: a store keeps the seed that it was created with",
        )


def check_range(x: Rows, scale: float, source: str, on_step: OnStep = silent) -> None:
    """Refuses images [N, D], in units of the expert's input scale, of which one is far beyond the others (BadInput)."""
    parts, done, to = [], 0, begun(on_step, "range", len(x), "images")
    for part in x.split(CHUNK):
        parts.append(part.abs().amax(dim=1))
        done += len(part)
        to(done)
    largest = torch.cat(parts)
    if bool((largest > LARGEST).any()):
        worst = int(largest.argmax())
        raise BadInput(
            "an image has values far beyond the others",
            where=source,
            key=f"image {worst}",
            found=f"{float(largest[worst]) / scale:.3g}",
            expected=f"at most {LARGEST / scale:.3g}",
            hint="repair it or leave it out",
        )


def check_refining(batch: Batch, old: TaskRecord) -> None:
    """Refuses data that would teach a task less than they would make it forget (BadInput).

    Statistics are taken anew from them, so they must be many enough, and of every class of the task.
    """
    assert batch.labels is not None
    least = max(FEW, min(old.images, 8 * MINIMUM))
    if len(batch.labels) < least:
        raise BadInput(
            "too few images to refine with",
            where=batch.source,
            found=str(len(batch.labels)),
            expected=f"at least {least}",
            hint="what is known of the task is measured anew on them: collect more first",
        )
    counts = np.bincount(Codebook.of(old.classes).encode(batch.labels), minlength=len(old.classes))
    even = math.ceil(len(batch.labels) / (BALANCE * len(old.classes)))
    scarce = [f"{c!r} ({n})" for c, n in zip(old.classes, counts.tolist(), strict=True) if n < even]
    if scarce:
        raise BadInput(
            "some classes are missing or too rare to refine with",
            where=batch.source,
            found=", ".join(scarce),
            expected=f"at least {even} images of each class of task {old.name}",
            hint="the task would forget the others: add images of them",
        )
