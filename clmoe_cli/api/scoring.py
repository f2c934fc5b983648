"""How right predictions are, when the file has labels: accuracy, the confusion of tasks, calibration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.api.predictions import Confusion
from clmoe_cli.api.reports import Bin, ClassAccuracy, WrongAnswer
from clmoe_cli.data.labels import Label, LabelEncoder

BINS = 15


@dataclass(frozen=True)
class Scores:
    """What labels tell about predictions.

    ``accuracy``: share of right labels. ``accuracy_by_task``: the same over the images whose label the task knows.
    ``confusion``: for each set of tasks that know the same labels, how many images there are and which tasks
    answered them. ``calibration_error``: expected calibration error of the confidence, 0 to 1. ``per_class``: of each
    label of the file how many images and how many right. ``wrong``: which label was answered for which, the most
    frequent first. ``calibration``: how often answers of about the same confidence are right.
    """

    accuracy: float
    accuracy_by_task: dict[str, float]
    confusion: tuple[Confusion, ...]
    calibration_error: float
    per_class: tuple[ClassAccuracy, ...]
    wrong: tuple[WrongAnswer, ...]
    calibration: tuple[Bin, ...]


def score(
    truth: NDArray[np.generic],
    predicted: NDArray[np.int64],
    book: LabelEncoder,
    task: NDArray[np.str_],
    confidence: NDArray[np.float64],
    classes: Mapping[str, tuple[Label, ...]],
) -> Scores:
    """Compares labels [N] of a file with ``predicted`` codes, the tasks that answered, and the confidence, all [N].

    ``book``: what the codes mean; ``classes``: the labels of each task that could have answered. The integer 1
    and the string "1" are the same label, unless the book has both.
    """
    every, read = book.reading(truth)
    right = read == predicted
    codes, which = np.unique(read, return_inverse=True)
    knows = np.array([np.isin(codes, every.codes(own)) for own in classes.values()])  # [T, values]
    by_task = {}
    for name, own in zip(classes, knows, strict=True):
        here = own[which]
        if here.any():
            by_task[name] = float(right[here].mean())
    sets, of_value = np.unique(knows, axis=1, return_inverse=True)
    names = np.array(list(classes))
    confusion = []
    for i, known in enumerate(sets.T):
        here = of_value.reshape(-1)[which] == i
        answered, counts = np.unique(task[here], return_counts=True)
        confusion.append(
            Confusion(
                tasks=tuple(names[known].tolist()),
                images=int(here.sum()),
                answered={str(k): int(n) for k, n in zip(answered, counts, strict=True)},
            )
        )
    order = sorted(confusion, key=lambda row: [list(classes).index(name) for name in row.tasks] or [len(names)])
    bins = calibration(confidence, right)
    images, hits = np.bincount(which), np.bincount(which, right)
    per_class = [
        ClassAccuracy(every.labels[c], int(n), float(k / n)) for c, n, k in zip(codes, images, hits, strict=True)
    ]
    pairs, times = np.unique(np.stack([read, predicted])[:, ~right], axis=1, return_counts=True)
    wrong = [WrongAnswer(every.labels[a], every.labels[b], int(n)) for (a, b), n in zip(pairs.T, times, strict=True)]
    wrong.sort(key=lambda one: -one.images)
    return Scores(float(right.mean()), by_task, tuple(order), gap(bins), tuple(per_class), tuple(wrong), bins)


def calibration(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    """What each of 15 bins of equal width holds, of ``confidence`` [N] in 0 to 1; empty ones are left out."""
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    counts, hits = np.bincount(bins, minlength=BINS), np.bincount(bins, right, minlength=BINS)
    sums = np.bincount(bins, confidence, minlength=BINS)
    return tuple(Bin(int(counts[i]), int(hits[i]), float(sums[i] / counts[i])) for i in counts.nonzero()[0])


def gap(bins: Sequence[Bin]) -> float:
    """Expected calibration error of these bins (Naeini et al. 2015; Guo et al. 2017), 0 to 1."""
    off = sum(abs(one.confidence * one.images - one.right) for one in bins)
    return float(off / sum(one.images for one in bins))


def calibration_error(confidence: NDArray[np.float64], right: NDArray[np.bool_]) -> float:
    """Expected calibration error over 15 bins of equal width, 0 to 1."""
    return gap(calibration(confidence, right))
