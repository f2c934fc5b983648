"""Predictions → a page for a browser: the wrong, the unsure and the unknown among the inputs, with small pictures."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.report.cells import percent
from clmoe_cli.report.html import page
from clmoe_cli.report.judging import CLASSES, Judged, Rows
from clmoe_cli.report.thumbnails import of_input

if TYPE_CHECKING:
    from clmoe_cli.api.predict import PredictReport
    from clmoe_cli.api.predictions import Prediction
    from clmoe_cli.data import Batch

SHOWN = 60
"""At most so many inputs of each sort are on a page."""
WORDS = {
    "task": "what one learn learned: some classes and their examples",
    "confidence": "how sure an answer is, from 0 to 100 %; calibrated if answers of 90 % are right nine times in ten",
    "wrong": "answered with another label than the data have",
    "unsure": "answered with less confidence than {unsure}",
    "unknown": "so unlike all that was learned that its p-value is below what --reject names",
    "p-value": "how usual an input is for the class that it is answered as: 0.5 is ordinary, 0.001 one in a thousand",
    "confusion": "which label was answered for which",
}


@dataclass(frozen=True)
class Shown:
    """An input on a page: its name, its picture (None: it is none), and lines on what was answered."""

    name: str
    uri: str | None
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Sort:
    """Inputs of one sort, what it is, and how many of how many are shown."""

    title: str
    about: str
    shown: tuple[Shown, ...]


def answers_page(report: PredictReport, batch: Batch) -> bytes:
    """The page of a report that shows all images of ``batch``; it holds pictures of some."""
    from clmoe_cli.api.predict import UNSURE

    rows = report.rows(candidates=False)
    scores = report.scores
    name = Path(batch.source).name or "stdin"
    return page(
        "answers.html.j2",
        f"Answers to {name}",
        name=name,
        cards=dict(_cards(report)),
        sorts=list(_sorts(report, batch, rows, UNSURE)),
        answers=_answers(rows),
        judged=None if scores is None else Judged.of(scores.per_class, scores.wrong, scores.calibration),
        words={word: text.format(unsure=percent(UNSURE)) for word, text in WORDS.items()},
        by=f"router {report.router}" if report.router else "the task was given",
    )


def _cards(report: PredictReport) -> Iterator[tuple[str, str]]:
    yield "images", f"{len(report.labels):,}"
    if report.scores is not None:
        yield "answered right", percent(report.scores.accuracy)
        yield "wrong", f"{len(report.rows_of('wrong')):,}"
    yield "unsure", f"{len(report.rows_of('unsure')):,}"
    if report.reject is not None:
        yield "unknown", f"{len(report.rows_of('unknown')):,}"
    if report.skipped:
        yield "broken, left out", f"{report.skipped:,}"


def _sorts(report: PredictReport, batch: Batch, rows: Sequence[Prediction], unsure: float) -> Iterator[Sort]:
    """The sorts of inputs that the report can tell."""
    sure, p_value = report.confidence, np.nan_to_num(report.p_value, nan=1.0)
    if report.right is not None:
        wrong = report.rows_of("wrong")
        yield _sort(
            "Wrong", "The surest come first.", wrong[np.argsort(-sure[wrong], kind="stable")], report, batch, rows
        )
    below = report.rows_of("unsure")
    about = f"Answers of less than {percent(unsure)} confidence, the least sure first."
    yield _sort("Unsure", about, below[np.argsort(sure[below], kind="stable")], report, batch, rows)
    if report.reject is not None:
        strange = report.rows_of("unknown")
        about = f"Inputs whose p-value is below {report.reject:g}, the strangest first."
        yield _sort("Unknown", about, strange[np.argsort(p_value[strange], kind="stable")], report, batch, rows)


def _sort(
    title: str,
    about: str,
    order: NDArray[np.int64],
    report: PredictReport,
    batch: Batch,
    rows: Sequence[Prediction],
) -> Sort:
    if not len(order):
        return Sort(title, "None.", ())
    every = f"All {len(order):,} are shown." if len(order) > 1 else "It is shown."
    some = f"{SHOWN} of {len(order):,} are shown." if len(order) > SHOWN else every
    shown = tuple(
        Shown(rows[i].file or f"image {rows[i].index}", of_input(batch, i), tuple(_lines(report, rows[i], i)))
        for i in order[:SHOWN].tolist()
    )
    return Sort(title, f"{about} {some}", shown)


def _lines(report: PredictReport, row: Prediction, i: int) -> Iterator[str]:
    wrong = report.right is not None and report.truth is not None and not report.right[i]
    if wrong and report.truth is not None:
        yield f"is {report.truth[i]}"
    yield f"{'answered ' if wrong else ''}{row.label}, {percent(row.confidence)}"
    yield f"of {row.task}"
    if row.known is False and row.p_value is not None:
        yield f"p = {row.p_value:.2g}"
    yield from report.in_words([i]) or ()
    for one in (row.top or ())[1:3]:
        yield f"or {one.label}, {percent(one.confidence)}"


def _answers(rows: Sequence[Prediction]) -> Rows:
    """How often each label was answered, by which task, with what confidence; the most frequent first."""
    found: dict[tuple[str, type, int | str], list[float]] = {}
    for row in rows:
        found.setdefault((row.task, type(row.label), row.label), []).append(row.confidence)
    order = sorted(found.items(), key=lambda each: -len(each[1]))[:CLASSES]
    head = ("answer", "task", "#images", "#confidence, mean")
    return head, [(label, task, f"{len(sure):,}", percent(sum(sure) / len(sure))) for (task, _, label), sure in order]
