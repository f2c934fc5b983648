"""Tables of how right answers are: by class, which label for which, and how often confidence is right."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from clmoe_cli.api.reports import Bin, ClassAccuracy, WrongAnswer
from clmoe_cli.api.scoring import BINS, gap
from clmoe_cli.report.cells import percent

Rows = tuple[Sequence[str], list[Sequence[object]]]
"""A table: names of the columns, those that begin with # hold numbers, and its rows."""
TAKEN_FOR = 3
"""Of each class at most so many wrong answers are named."""
MATRIX = 25
"""At most so many labels have a row and a column of a matrix."""
PAIRS = 40
"""Of more labels so many pairs of a label and a wrong answer are listed, the most frequent."""
CLASSES = 200
"""At most so many classes have a row of a page."""
GONE = "a class that is gone"
Named = tuple[type, int | str | None]


@dataclass(frozen=True)
class Judged:
    """What a page shows of answers whose labels are known: three tables and what to know about each of them."""

    confusion: Rows | None
    about_confusion: str
    classes: Rows
    about_classes: str
    calibration: Rows
    about_calibration: str

    @staticmethod
    def of(
        per_class: Sequence[ClassAccuracy], wrong: Sequence[WrongAnswer] | None, bins: Sequence[Bin] | None
    ) -> Judged:
        """The tables; None for what was not kept. Bins of several tasks are added up."""
        head, rows = class_rows(per_class, wrong or ())
        left = len(rows) - CLASSES
        more = f" {left} more classes, answered better, are left out." if left > 0 else ""
        shape = _shape(per_class, wrong or ())
        confusion = shape if wrong is not None else None
        return Judged(
            confusion,
            _about(per_class, wrong or ()),
            (head, rows[:CLASSES]),
            f"The class that was answered worst comes first.{more}",
            (CALIBRATION, calibration_rows(bins or ())),
            _calibrated(bins),
        )


def class_rows(per_class: Sequence[ClassAccuracy], wrong: Sequence[WrongAnswer]) -> Rows:
    """Of each class its images, how many were answered right, and as what others were: the worst first."""
    answered: dict[Named, list[WrongAnswer]] = defaultdict(list)
    for one in wrong:
        answered[_key(one.label)].append(one)
    rows: list[Sequence[object]] = []
    for own in sorted(per_class, key=lambda own: 2.0 if own.accuracy is None else own.accuracy):
        most = sorted(answered[_key(own.label)], key=lambda one: -one.images)
        named = ", ".join(f"{_shown(one.answered)} ({one.images})" for one in most[:TAKEN_FOR])
        more = ", …" if len(most) > TAKEN_FOR else ""
        rows.append((own.label, own.images, percent(own.accuracy), f"{named}{more}"))
    return ("class", "#images", "#right", "wrong ones answered as"), rows


CALIBRATION = ("#confidence", "#images", "#right")
"""The columns of :func:`calibration_rows`."""


def calibration_rows(bins: Sequence[Bin]) -> list[Sequence[object]]:
    """Bins of rising confidence: the mean, how many images, and how many of them were right."""
    return [(percent(one.confidence), one.images, percent(one.right / one.images)) for one in together(bins)]


def together(bins: Sequence[Bin]) -> list[Bin]:
    """The bins of several sets of images as those of one."""
    found: dict[int, list[Bin]] = defaultdict(list)
    for one in bins:
        found[min(int(one.confidence * BINS), BINS - 1)].append(one)
    joined = []
    for _, same in sorted(found.items()):
        images = sum(one.images for one in same)
        mean = sum(one.confidence * one.images for one in same) / images
        joined.append(Bin(images, sum(one.right for one in same), mean))
    return joined


def _calibrated(bins: Sequence[Bin] | None) -> str:
    if bins is None:
        return "Not kept: the tasks were learned by a version that did not keep it."
    if not bins:
        return "No image could be left out."
    off = f"on average confidence and share differ by {100 * gap(together(bins)):.1f} points"
    return f"Of the images that were answered with about this confidence, so many were answered right; {off}."


def _shape(per_class: Sequence[ClassAccuracy], wrong: Sequence[WrongAnswer]) -> Rows:
    """A matrix where there are few labels, else the most frequent wrong answers."""
    labels = _labels(per_class, wrong)
    counts = Counter[tuple[Named, Named]]()
    for one in wrong:
        counts[_key(one.label), _key(one.answered)] += one.images
    if len(labels) > MATRIX:
        order = sorted(wrong, key=lambda one: -one.images)[:PAIRS]
        return ("label", "answered as", "#images"), [(one.label, _shown(one.answered), one.images) for one in order]
    images, right = Counter[Named](), Counter[Named]()
    for own in per_class:
        images[_key(own.label)] += own.images
        right[_key(own.label)] += round(own.images * (own.accuracy or 0.0))
    rows: list[Sequence[object]] = []
    for label in (each for each in labels if each in images):
        cells = [right[label] if label == other else counts[label, other] for other in labels]
        rows.append((_shown(label[1]), images[label], *(n or "" for n in cells)))
    return ("label", "#images", *(f"#{_shown(label[1])}" for label in labels)), rows


def _about(per_class: Sequence[ClassAccuracy], wrong: Sequence[WrongAnswer]) -> str:
    many = len(_labels(per_class, wrong)) > MATRIX
    what = "A row for each label, a column for each answer."
    if many:
        pairs = len(wrong)
        what = f"The {min(PAIRS, pairs)} most frequent of {pairs} pairs of a label and a wrong answer."
    counted = sum(one.images for one in wrong)
    missed = sum(own.images - round(own.images * (own.accuracy or 0.0)) for own in per_class)
    rest = missed - counted
    return what if rest <= 0 else f"{what} {rest} more wrong answers, of rarer pairs, were not kept."


def _labels(per_class: Sequence[ClassAccuracy], wrong: Sequence[WrongAnswer]) -> list[Named]:
    """All labels and answers, each once: labels first."""
    every = [*(_key(own.label) for own in per_class), *(_key(one.answered) for one in wrong)]
    return list(dict.fromkeys(every))


def _key(label: int | str | None) -> Named:
    return type(label), label


def _shown(label: int | str | None) -> str:
    return GONE if label is None else str(label)
