"""What looks wrong with a task that was just learned: warnings that stop nothing."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence

import numpy as np

from clmoe_cli.api.measuring import Confusion
from clmoe_cli.api.reports import Caution
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label
from clmoe_cli.data.npz import name_list
from clmoe_cli.data.targets import LABEL_NAMES
from clmoe_cli.method import privacy
from clmoe_cli.method.learn_task import COMMON, FEW, held_size
from clmoe_cli.method.routing.calibration import MINIMUM
from clmoe_cli.runtime.words import amount
from store_schema import TaskRecord

IMBALANCE = 10
"""A class with so many times the images of another is named."""
NAMED = 5
ALIKE, ALIKE_AT_LEAST = 0.4, 0.25
"""Share of a class's held-out images that another class takes where both may be the same, as found and less its error.

Half of them are expected, and of a few images more or less are found.
"""
TELLING = 8
"""Fewer held-out images of a class count only with those of the task's other classes."""


def of_data(batch: Batch, known: Iterable[Label]) -> list[Caution]:
    """Warnings on labelled data before training; ``known``: the labels that the store has."""
    assert batch.labels is not None
    labels, counts = np.unique(batch.labels, return_counts=True)
    by_count = dict(zip(labels.tolist(), counts.tolist(), strict=True))
    found = []
    if len(by_count) == 1:
        text = f"one class only, {labels[0].item()!r}: nothing to tell apart within the task, so it gets no subnetwork"
        found.append(Caution("one-class", f"{text} and the gate alone knows it; were the labels meant to be one?"))
    least, most = min(by_count, key=lambda c: by_count[c]), max(by_count, key=lambda c: by_count[c])
    if by_count[most] >= IMBALANCE * by_count[least]:
        text = f"classes are out of balance: {by_count[most]} images of {most!r}, {by_count[least]} of {least!r}"
        found.append(
            Caution("imbalance", f"{text}; look at the accuracy of each class (clmoe inspect TASK), not at the mean")
        )
    scarce = [f"{c!r} ({n})" for c, n in by_count.items() if n < MINIMUM]
    if not held_size(list(by_count.values())):
        count = len(batch.labels)
        how = "accuracy comes from fits that leave a fifth out" if by_count[most] > 1 else "accuracy is not measured"
        images = amount(count, "image")
        text = f"only {images}" if count < FEW else f"only {images} of {len(by_count)} classes"
        more = f"{FEW} or more" if count < FEW else f"{COMMON} or more of most classes"
        found.append(Caution("few-images", f"{text}: all are trained on, and {how}; {more} let images be held out"))
    if scarce:
        text = f"fewer than {MINIMUM} images of {_listed(scarce)}: no p-values there, so that --reject passes them"
        found.append(Caution("few-images", text))
    hidden = [f"{c!r} ({n})" for c, n in by_count.items() if n < privacy.LEAST]
    if hidden:
        text = f"fewer than {privacy.LEAST} images of {_listed(hidden)}: so that none can be read back from the store"
        found.append(Caution("privacy", f"{text}, their mean is kept with noise only, which costs accuracy there"))
    return [*found, *_look_alike(by_count, known), *_like_labels(batch.columns or ())]


def _like_labels(columns: Sequence[str]) -> list[Caution]:
    """Features of a table that are called as labels are; ``y`` beside ``x`` is a coordinate."""
    lower = {name.lower() for name in columns}
    called = [n for n in columns if n in LABEL_NAMES and not (n.lower() == "y" and "x" in lower)]
    which = "it" if len(called) == 1 else "them"
    text = f"called like labels and read as features: {name_list(called)}"
    return [Caution("labels", f"{text}; leave {which} out where that tells the answer")] if called else []


def _look_alike(labels: Iterable[Label], known: Iterable[Label]) -> list[Caution]:
    """Labels that differ in case and blanks only from others of the data or of the store."""
    own = {label for label in labels if isinstance(label, str)}
    alike: dict[str, set[str]] = defaultdict(set)
    for label in own | {label for label in known if isinstance(label, str)}:
        alike[" ".join(label.casefold().split())].add(label)
    pairs = [" and ".join(map(repr, sorted(group))) for group in alike.values() if len(group) > 1 and group & own]
    if not pairs:
        return []
    return [Caution("look-alike", f"labels look alike and are different classes: {_listed(sorted(pairs))}")]


def of_task(task: TaskRecord) -> list[Caution]:
    """Warnings on what was learned."""
    return [*_unjudged(task), *_guessing(task)]


def _unjudged(task: TaskRecord) -> list[Caution]:
    """Classes of which no image was held out, being small, where the accuracy is of other classes alone."""
    each = zip(task.classes, task.accuracy.per_class or (), strict=bool(task.accuracy.per_class))
    missing = [repr(label) for label, found in each if not found.images]
    if not missing or not task.accuracy.held_out:
        return []
    text = f"no image of {_listed(missing)} was held out: whether these are answered right is not known"
    return [Caution("unjudged", f"{text}, and the accuracy is of the other classes")]


def _guessing(task: TaskRecord) -> list[Caution]:
    accuracy = task.accuracy
    if accuracy.within is None or accuracy.guessing is None or not accuracy.held_out or len(task.classes) < 2:
        return []
    n, chance = accuracy.held_out, accuracy.guessing
    error = math.sqrt(chance * (1 - chance) / n)
    # So few images, or so rare a second class, that even being right throughout might be chance: nothing can be said.
    if chance + 2 * error >= 1:
        return []
    guessed = accuracy.within <= chance + error
    # Where one class is most of the images, being right in each class tells more than being right.
    shares = [(c.images, c.accuracy) for c in accuracy.per_class or () if c.accuracy is not None]
    even = 1 / len(task.classes)
    spread = math.sqrt(sum(even * (1 - even) / images for images, _ in shares)) / max(1, len(shares))
    balanced = sum(share for _, share in shares) / max(1, len(shares))
    if not guessed or balanced > even + 2 * spread:
        return []
    text = f"images of {task.name} that were left out are answered no better than by guessing ({100 * chance:.1f} %)"
    return [Caution("guessing", f"{text}: look at the data")]


def of_time(limit: float | None, cut: Sequence[str]) -> list[Caution]:
    """For a task whose training time has ended; ``limit``: minutes, if this run has a limit. ``cut``: phases."""
    if not cut:
        return []
    allowed = "a time limit" if limit is None else f"the time limit of {limit:g} min"
    text = f"{allowed} ended training early ({_listed(list(cut))}): a whole task, with fewer epochs than it might use"
    return [Caution("time-limit", f"{text}; without --time-limit, or with --if-known refine later, it learns more")]


def of_conflict(new: TaskRecord, task: str | None, confused: Sequence[Confusion]) -> list[Caution]:
    """For data whose labels conflict with known tasks; ``new``: the task that they were learned as.

    ``task``: whose images look the same while the labels disagree. ``confused``: for which known classes the new ones
    are taken. The same images under two names are taken for either in about half of the cases.
    """
    back = f"clmoe prune --task {new.name} --yes takes it back"
    if task is not None:
        text = f"labels conflict with those of {task}, whose images look the same: both are now in the store"
        return [Caution("conflict", f"{text}; if that is a mistake, {back}")]
    throughout = _same(sum(one.taken for one in confused), new.accuracy.held_out)
    pairs = [
        f"{one.label!r} as {one.other!r} of {one.task} ({100 * one.taken / one.images:.0f} %)"
        for one in confused
        if (one.images >= TELLING or throughout) and _same(one.taken, one.images)
    ]
    if not pairs:
        return []
    text = f"held-out images of {new.name} are answered as classes of other tasks: {_listed(pairs)}"
    return [Caution("conflict", f"{text}; images of those suffer as much; if two names are one class, {back}")]


def _same(taken: int, images: int) -> bool:
    """Whether so many of a class's images are taken for another class as when both are one."""
    if taken < 2 or not images:
        return False
    share = taken / images
    surely = share - math.sqrt(share * (1 - share) / images)
    return share >= ALIKE and surely >= ALIKE_AT_LEAST


def _listed(texts: list[str]) -> str:
    more = f" and {len(texts) - NAMED} more" if len(texts) > NAMED else ""
    return ", ".join(texts[:NAMED]) + more
