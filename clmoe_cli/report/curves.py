"""``learn --plot``: the curves of training, with matplotlib (the extra ``plot``), imported only when asked for."""

from __future__ import annotations

import importlib.util
import itertools
import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clmoe_cli.data.npz import replacing
from store_schema.errors import UsageProblem

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from clmoe_cli.api.reports import LearnReport
    from clmoe_cli.api.session import Callbacks
    from clmoe_cli.method.subnetwork.training import Epoch

    OnSegment = Callable[[int, int, int, int], None]

SUFFIXES = (".png", ".svg", ".pdf")
BLOCKS = "▁▂▃▄▅▆▇█"
TINY = 1e-6
"""Losses below this are as good as none."""


def check_plot(path: Path) -> None:
    """Refuses a picture that could not be written, before any work is done: UsageProblem."""
    if path.suffix not in SUFFIXES:
        raise UsageProblem(
            "unknown picture format", where=str(path), found=path.suffix or "no suffix", expected=".png, .svg or .pdf"
        )
    if path.is_dir():
        raise UsageProblem("the picture is a folder", where=str(path), expected="the name of a file")
    if not path.parent.is_dir():
        raise UsageProblem("no such folder", where=str(path.parent), hint="make it first")
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageProblem("pictures need matplotlib", hint="pip install 'clmoe[plot]'")


@dataclass
class Curve:
    """The epochs of one learn, in order; ``after``: what an interrupted run had reached before the first of them."""

    epochs: list[Epoch] = field(default_factory=list)
    after: str | None = None

    def phases(self) -> list[tuple[str, list[Epoch]]]:
        """Name and epochs of each phase in order; of several rounds of pruning each is one."""
        found: list[tuple[str, list[Epoch]]] = []
        for epoch in self.epochs:
            # A phase that begins again counts from one.
            if not found or found[-1][1][-1].phase != epoch.phase or epoch.epoch <= found[-1][1][-1].epoch:
                found.append((epoch.phase, []))
            found[-1][1].append(epoch)
        return found

    def summary(self) -> str:
        """The validation loss in one line: a block an epoch on a logarithmic scale, a bar between phases."""
        losses = [e.held_out.loss for e in self.epochs]
        logs = [math.log(max(loss, TINY)) for loss in losses if math.isfinite(loss)] or [0.0]
        steps = (len(BLOCKS) - 1) / ((max(logs) - min(logs)) or 1.0)

        def block(epoch: Epoch) -> str:
            loss = epoch.held_out.loss
            return BLOCKS[round((math.log(max(loss, TINY)) - min(logs)) * steps)] if math.isfinite(loss) else "?"

        marks = "|".join("".join(map(block, epochs)) for _, epochs in self.phases())
        return f"{self.epochs[0].judged_by} loss {marks}  {losses[0]:.4f} to {losses[-1]:.4f}"


class Curves:
    """Collects what ``learn`` tells of its epochs: a :class:`Curve` for each segment of a stream, else one."""

    def __init__(self) -> None:
        self.parts: list[Curve] = []

    def hears(self, callbacks: Callbacks) -> Callbacks:
        """The callbacks of ``learn``, of which this hears as well."""

        def epoch(epoch: Epoch) -> None:
            self._last().epochs.append(epoch)
            callbacks["on_epoch"](epoch)

        def resume(reached: str) -> None:
            self._last().after = reached
            callbacks["on_resume"](reached)

        return {**callbacks, "on_epoch": epoch, "on_resume": resume}

    def hears_segments(self, on_segment: OnSegment) -> OnSegment:
        """The callback of ``learn_stream`` for its segments, of which this hears as well."""

        def segment(number: int, count: int, start: int, stop: int) -> None:
            self.parts.append(Curve())
            on_segment(number, count, start, stop)

        return segment

    def _last(self) -> Curve:
        if not self.parts:
            self.parts.append(Curve())
        return self.parts[-1]

    def drawn(self, reports: Sequence[LearnReport]) -> list[tuple[LearnReport, Curve]]:
        """The curves that have an epoch, each with its report; known data have none."""
        # Of a single task that was known nothing has been told, and there is not even an empty curve.
        return [(report, curve) for report, curve in zip(reports, self.parts, strict=False) if curve.epochs]


def plot_curves(drawn: Sequence[tuple[LearnReport, Curve]], path: Path) -> None:
    """Draws training loss, validation loss and validation accuracy over all epochs, two panels for each task.

    ``drawn``: at least one, by :meth:`Curves.drawn`. Phases are marked. The same curves give the same bytes. Raises
    DiskProblem when writing fails; an earlier picture stays as it was then.
    """
    import matplotlib
    from matplotlib.figure import Figure

    # No picture may be longer than 2¹⁶ pixels.
    figure = Figure(figsize=(8.0, min(4.8 * len(drawn), 400.0)), layout="constrained")
    panels = figure.subplots(2 * len(drawn), 1, squeeze=False, gridspec_kw={"height_ratios": [3, 2] * len(drawn)})
    for (report, curve), (upper, lower) in zip(drawn, panels[:, 0].reshape(-1, 2), strict=True):
        _panel(report, curve, upper, lower)
    kind = path.suffix[1:]
    dated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
    with replacing(path) as file, warnings.catch_warnings(), matplotlib.rc_context({"svg.hashsalt": "clmoe"}):
        warnings.simplefilter("ignore")  # of characters in names that the font lacks
        figure.savefig(file, format=kind, dpi=150, metadata=dated.get(kind))


def _panel(report: LearnReport, curve: Curve, upper: Any, lower: Any) -> None:
    at, phases = 0, curve.phases()
    for i, (_, epochs) in enumerate(phases):
        x = range(at + 1, at + 1 + len(epochs))
        # Lines end with their phase: pruning is a leap.
        upper.plot(x, [e.loss for e in epochs], color="C0", marker=".", label="_" if i else "training")
        upper.plot(
            x, [e.held_out.loss for e in epochs], color="C1", marker=".", label="_" if i else epochs[0].judged_by
        )
        lower.plot(x, [100 * e.held_out.accuracy for e in epochs], color="C1", marker=".")
        at += len(epochs)
        for axis in (upper, lower):
            axis.axvline(at + 0.5, color="0.85", linewidth=0.8, zorder=0)
    begin = 0.5
    for name, rounds in itertools.groupby(phases, key=lambda phase: phase[0]):
        lengths = [len(epochs) for _, epochs in rounds]
        said = name if len(lengths) == 1 else f"{name}, {len(lengths)} rounds"
        middle = begin + sum(lengths) / 2
        lower.annotate(said, (middle, 1.02), xycoords=("data", "axes fraction"), ha="center", fontsize=8)
        begin += sum(lengths)
    for axis in (upper, lower):
        axis.set_xlim(0.5, at + 0.5)
        axis.xaxis.get_major_locator().set_params(integer=True)
    if min(min(e.loss, e.held_out.loss) for e in curve.epochs) > 0:
        upper.set_yscale("log")
    title = f"{report.status} {report.task} in expert {report.expert}"
    if curve.after is not None:
        title += f"\nwithout the epochs of an interrupted run, which had reached {curve.after}"
    upper.set_title(title, parse_math=False)
    upper.set_ylabel("loss (nats)")
    upper.legend(frameon=False)
    upper.tick_params(labelbottom=False)
    lower.set_ylabel("right (%)")
    lower.set_xlabel("epoch")
