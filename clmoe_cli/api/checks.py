"""Data that must not be learned from: they would drown what is there, or make a task forget."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from clmoe_cli.api import common
from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder, clashes
from clmoe_cli.data.npz import name_list
from clmoe_cli.method.images import Rows
from clmoe_cli.method.learn_task import FEW
from clmoe_cli.method.routing.calibration import MINIMUM
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, begun, silent
from clmoe_cli.runtime.words import amount, nfc, one_of
from store_schema import BadInput, ExpertRecord, Manifest, TaskRecord, UsageProblem

LARGEST = 1e4
"""Inputs beyond this, where the median image has a root mean square of about 1, would drown all others."""

CHUNK = limits.RANGE_IMAGES
BALANCE = 8
"""Refining needs of each class at least this fraction of an even share."""


def check_expert(opened: Opened, expert: str | None) -> None:
    """Refuses the name of an expert that the store has not (UsageProblem), before one is made that cannot have it."""
    if expert not in (None, "new"):
        known = [] if opened.snapshot is None else [e.id for e in opened.snapshot.manifest.experts]
        one_of("expert", str(expert), [*known, "new"])


def check_names(opened: Opened, options: LearnOptions) -> None:
    """Refuses an expert, a task and a seed that the store has not (UsageProblem); data need not be read for that."""
    check_expert(opened, options.expert)
    if options.refine is not None:
        one_of("task", options.refine, [] if opened.snapshot is None else list(opened.expected.classes))
    if opened.snapshot is not None:
        check_seed(opened.snapshot.manifest, options.seed)


def check_seed(manifest: Manifest, seed: int | None) -> None:
    """Refuses another seed than the store's (UsageProblem)."""
    if seed is not None and manifest.generation > 0 and seed != manifest.seed:
        raise UsageProblem(
            "the store has another seed",
            found=str(seed),
            expected=str(manifest.seed),
            hint="leave --seed out: a store keeps the seed that it was created with",
        )


def check_range(x: Rows, scale: float, batch: Batch, on_step: OnStep = silent) -> None:
    """Refuses images of which one is far beyond the others (BadInput).

    ``x``: those of ``batch``, [N, D] in units of the expert's input scale.
    """
    parts, done, to = [], 0, begun(on_step, "range", len(x), "images")
    for part in x.split(CHUNK):
        parts.append(part.abs().amax(dim=1))
        done += len(part)
        to(done)
    largest = torch.cat(parts)
    common.check_numbers(torch.isfinite(largest).numpy(), batch)
    beyond = largest > LARGEST
    if bool(beyond.any()):
        worst = int(largest.argmax())
        row = x[worst : worst + 1].flatten()
        at = int(row.abs().argmax())
        most, vectors = 2 * int(beyond.sum()) > len(beyond), len(batch.input_shape) == 1
        few, many = ("a row", "most rows") if vectors else ("an image", "most images")
        unit = "give the values in the unit that the store's tasks were learned in"
        raise BadInput(
            f"{many} have values far beyond the store's" if most else f"{few} has values far beyond the others",
            where=batch.source,
            key=common.place(batch, worst, at if vectors else None),
            found=f"{float(row[at]) / scale:.3g}",
            expected=f"at most {LARGEST / scale:.3g} in size",
            hint=unit if most else "repair it or leave it out",
        )


def check_values(experts: Sequence[ExpertRecord], batch: Batch, on_step: OnStep = silent) -> None:
    """Refuses images of which one is far beyond what any of the experts reads (BadInput)."""
    if batch.images.dtype == np.uint8:
        return
    scale = min(expert.input_scale for expert in experts)
    check_range(common.rows(batch, Scaling(scale)), scale, batch, on_step)


def check_unit(batch: Batch, scale: float, on_step: OnStep = silent) -> None:
    """Refuses images of which one is far beyond the others (BadInput), before any task has seen them.

    ``scale``: their :func:`clmoe_cli.api.common.input_scale`.
    """
    if batch.images.dtype != np.uint8:
        check_range(common.rows(batch, Scaling(scale)), scale, batch, on_step)


def check_labels(expected: Expected, batch: Batch) -> None:
    """Refuses integers that the store knows as text, and text that it knows as integers (BadInput).

    They would become twins: two classes that look the same. A store that has both takes both.
    """
    every = expected.classes
    found = clashes((label for classes in every.values() for label in classes), batch.classes())
    if not found:
        return
    texts = {nfc(str(label)) for label in found}
    task = next(name for name, classes in every.items() if texts & {nfc(str(label)) for label in classes})
    twin = next(label for label in every[task] if nfc(str(label)) in texts)
    as_text = isinstance(found[0], str)
    shown = ", ".join(repr(label) for label in found[:8]) + (", …" if len(found) > 8 else "")
    hint = "y.astype(int)" if as_text else "y.astype(str)"
    if batch.files is not None:
        hint = "name the class folders otherwise, or give the labels as integers: in an npz, or a table"
    raise BadInput(
        "labels clash with those of the store",
        where=batch.source,
        found=f"{shown} as {'text' if as_text else 'integers'}",
        expected=f"{'integers' if as_text else 'text'}, as {twin!r} of task {task}",
        hint=hint,
    )


def judged(expected: Expected, batch: Batch, folders: bool = False) -> tuple[Batch, str]:
    """A batch whose labels are to judge answers, and a warning where the store does not know some of them, else "".

    Folders of which no name is a class are no labels, and are left out, unless it is said that ``folders`` are.
    """
    if batch.labels is None or not expected.classes:
        return batch, ""
    known = LabelEncoder.of(*expected.classes.values())
    book, codes = known.reading(batch.labels)
    new = [str(label) for label in book.labels[len(known.labels) :]]
    foreign = name_list(new)
    count = int((codes >= len(known.labels)).sum())
    if count == len(codes) and batch.files is not None and not folders:
        text = f"no task has a class of the name of a folder ({foreign}): the folders are not taken for labels"
        return replace(batch, labels=None), text
    labels = "the label" if len(new) == 1 else "the labels"
    text = f"no task knows {labels} {foreign}: {count} of {amount(len(codes), 'image')} cannot be right"
    return batch, text if count else ""


def check_refining(batch: Batch, old: TaskRecord) -> None:
    """Refuses data that would teach a task less than they would make it forget (BadInput).

    Statistics are taken anew from them, so they must be many enough, and of every class of the task.
    """
    assert batch.labels is not None
    foreign = LabelEncoder.of(old.classes, batch.classes()).labels[len(old.classes) :]
    if foreign:
        raise BadInput(
            "classes that the task has not",
            where=batch.source,
            found=name_list([repr(label) for label in foreign]),
            expected=f"classes of task {old.name}",
            hint="leave these images out, or learn them as a task of their own",
        )
    least = max(FEW, min(old.images, 8 * MINIMUM))
    if len(batch.labels) < least:
        raise BadInput(
            "too few images to refine with",
            where=batch.source,
            found=str(len(batch.labels)),
            expected=f"at least {least}",
            hint="what is known of the task is measured anew on them: collect more first",
        )
    counts = np.bincount(LabelEncoder.of(old.classes).encode(batch.labels), minlength=len(old.classes))
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
