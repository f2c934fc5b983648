"""``learn --segment``: a stream of labelled images, cut where the task changes; each segment learned in turn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Unpack

import numpy as np
import torch

from clmoe_cli.api import common
from clmoe_cli.api.checks import check_labels, check_unit
from clmoe_cli.api.learn import learn
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnOptions, check, check_options
from clmoe_cli.api.planning import plan
from clmoe_cli.api.reports import LearnReport, Onset, SegmentReport, Status, StreamReport
from clmoe_cli.api.session import Callbacks, Listeners
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.tasks.stream import RARE, boundaries
from clmoe_cli.runtime.events import OnStep, begun
from clmoe_cli.store_tensors import derived_seed, generator
from store_schema import BadInput, ClmoeError

NEAR = 64
"""How far a boundary may be off, in images."""


def learn_stream(
    store: str | Opened,
    batch: Batch,
    options: LearnOptions | None = None,
    *,
    use_labels: bool = True,
    dry_run: bool = False,
    on_segment: Callable[[int, int, int, int], None] = lambda number, count, start, stop: None,
    **callbacks: Unpack[Callbacks],
) -> StreamReport:
    """Finds the segments of a batch in order of arrival and learns one after the other, each its own commit.

    ``use_labels``: boundaries are found from labels and images, else from the images alone; learning needs labels
    in any case. ``options.name`` becomes NAME.1, NAME.2, … by segment. ``dry_run``: nothing is learned; each segment is
    compared with the store as it is, and with the classes of the segments before it. ``on_segment`` is told which of
    how many begins, and where it starts and stops; ``callbacks``: those of ``learn``.

    Raises BadInput for a segment that cannot be learned, before anything is, and whatever
    :func:`clmoe_cli.api.learn.learn` raises; segments committed until then stay, and are known when the
    stream is given again.
    """
    options, listeners = options or LearnOptions(), Listeners(**callbacks)
    check_options(options)
    if batch.labels is None:
        check(batch, options)
    opened = Opened.at(store)
    check_labels(opened.expected, batch)
    cuts = [0, *_boundaries(batch, options.seed or 0, use_labels, listeners.on_step), len(batch.images)]
    parts = [_Part(batch, options, number, *edges) for number, edges in enumerate(pairwise(cuts), start=1)]
    if not use_labels:
        parts = [part.without_strays() for part in parts]
    for part in parts:
        part.check()
    done: list[SegmentReport] = []
    for number, part in enumerate(parts, start=1):
        on_segment(number, len(parts), part.start, part.stop)
        try:
            if dry_run:
                planned = plan(opened, part.batch, part.options, done, listeners.on_warning)
                report = _after(planned, done, part.options)
            else:
                report = learn(opened, part.batch, part.options, **callbacks)
        except ClmoeError as error:
            place = f"segment {len(done) + 1} of {len(parts)}, images {part.start} to {part.stop - 1}"
            error.where = f"{error.where}, {place}" if error.where else place
            if done and not dry_run:
                kept = "what came before it is in the store and stays known"
                error.hint = f"{error.hint}; {kept}" if error.hint else kept
            raise
        done.append(SegmentReport(**vars(report), start=part.start, stop=part.stop))
    return StreamReport(tuple(done))


def _after(planned: LearnReport, done: Sequence[LearnReport], options: LearnOptions) -> LearnReport:
    """What is planned for a segment, after those before it were learned, as far as labels tell.

    Classes of a segment that would have been learned by then are known; into which expert others go, only training
    tells.
    """
    before = [report for report in done if report.status == "learned"]
    if planned.status != "learned" or not before:
        return planned
    classes = {(type(label), label) for label in planned.classes}
    same = [report for report in before if classes <= {(type(label), label) for label in report.classes}]
    if not same or options.if_known == "new":
        reason = f"{planned.reason}; once the segments before it are learned, it may go into an expert of theirs"
        return replace(planned, reason=reason)
    known, status = same[0], _as_known(options)
    onset = Onset("known", None, (known.task,), f"its classes are those of {known.task}, which is learned by then")
    return replace(
        planned, task=known.task, expert=known.expert, status=status, new_expert=False, onset=onset, candidates=(),
        reads=(), reason="its task is that of a segment before it", plan=None,
    )  # fmt: skip


def _as_known(options: LearnOptions) -> Status:
    return "known" if options.if_known == "skip" else "refined"


class _Part:
    """One segment of a stream, its images from ``start`` up to ``stop``, and its own options."""

    def __init__(self, stream: Batch, options: LearnOptions, number: int, start: int, stop: int) -> None:
        assert stream.labels is not None
        self.start, self.stop = start, stop
        self.batch = stream.taken(slice(start, stop))
        name = None if options.name is None else f"{options.name}.{number}"
        self.options = replace(options, name=name, numbered=True)

    def without_strays(self) -> _Part:
        """Leaves out labels that are rare and occur only at an end of the segment: the neighbour's.

        A boundary found from the images alone may be some images off, and one image of another task would
        make its class a class of this task for good.
        """
        assert self.batch.labels is not None
        codes, counts = np.unique(self.batch.labels, return_inverse=True, return_counts=True)[1:]
        position = np.arange(len(codes))
        inside = (position >= NEAR) & (position < len(codes) - NEAR)
        stray = (counts < RARE * counts.max()) & (np.bincount(codes[inside], minlength=len(counts)) == 0)
        keep = ~stray[codes]
        self.batch = self.batch.taken(keep)
        return self

    def check(self) -> None:
        """What ``learn`` will check, with the place in the stream."""
        classes = self.batch.classes()
        if len(classes) < 2:
            raise BadInput(
                "a segment needs at least two classes",
                where=f"{self.batch.source}, images {self.start} to {self.stop - 1}",
                found=f"only {classes[0]!r}",
                expected="two or more",
                hint="shuffle each task's images among themselves, or learn without --segment",
            )
        check(self.batch, self.options)
        check_unit(self.batch, common.input_scale(self.batch))


def _boundaries(batch: Batch, seed: int, use_labels: bool, on_step: OnStep) -> list[int]:
    """Positions at which a segment begins, without 0; the same for the same file and seed."""
    assert batch.labels is not None
    # Scaling is left out: a segment's images are standardised by themselves, and a stream of uint8 stays small.
    x = torch.from_numpy(batch.images.reshape(len(batch.images), -1))
    y = torch.from_numpy(LabelEncoder.of(batch.classes()).encode(batch.labels)) if use_labels else None
    to = begun(on_step, "boundaries", len(x), "images")
    return boundaries(x, y, generator(derived_seed(seed, len(x), "segments")), on_done=to)
