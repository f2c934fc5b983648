"""The panels of a store's pictures; each draws into a figure of matplotlib's that it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clmoe_cli.api.contents import together
from clmoe_cli.report.overview import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from clmoe_cli.api.contents import Expert, Shares
    from clmoe_cli.api.inspect import InspectReport

PARTS = (("several tasks", "#0b5394"), ("one task", "#7fb2e5"), ("free", "#e8e8e8"))
"""Who reads a part of a layer, and its colour: shared, single, free."""
EXPERTS, NAMED, BARS, NUMBERED = 6, 6, 40, 12
"""At most so many experts with curves, layers in a legend, bars, and tasks with numbers in the overlap matrix."""


def grid(count: int) -> tuple[int, int]:
    """Rows and columns for so many small pictures."""
    across = {1: 1, 2: 2, 4: 2}.get(count, 3)
    return math.ceil(max(count, 1) / across), across


def shown(report: InspectReport, limit: int = EXPERTS) -> list[Expert]:
    """The experts with most tasks, in their order."""
    most = sorted(report.experts, key=lambda e: -len(e.tasks))[:limit]
    return [e for e in report.experts if e in most]


def _commits(report: InspectReport, expert: Expert) -> list[tuple[str, list[float]]]:
    """What each commit that concerns an expert left frozen of its layers, in percent."""
    found: list[tuple[str, list[float]]] = []
    before = None
    for entry in report.history:
        state, task = entry.experts.get(expert.id), entry.task or ""
        if state is not None and (state != before or entry.task in expert.tasks):
            name = task if entry.action == "learn" else f"{entry.action} {task}"
            found.append((name.strip(), [layer.frozen_percent for layer in state.layers]))
        before = state
    return found


def frozen(figure: FigureBase, report: InspectReport) -> None:
    """A curve for each layer, small pictures for the experts, of what their commits left frozen."""
    import matplotlib as mpl
    import numpy as np

    experts = shown(report)
    if not experts:
        _nothing(figure)
        return
    rows, across = grid(len(experts))
    axes = list(figure.subplots(rows, across, squeeze=False).flat)
    alike = len({tuple(layer.name for layer in e.layers) for e in experts}) == 1
    for axis, expert in zip(axes, experts, strict=False):
        names = [layer.name for layer in expert.layers]
        colours = mpl.colormaps["viridis"]([0.88 * i / max(1, len(names) - 1) for i in range(len(names))])
        commits = _commits(report, expert)
        after = np.reshape([state for _, state in commits], (-1, len(names)))
        axis.set_prop_cycle(color=colours)
        lines = axis.plot(range(1, len(commits) + 1), after, marker="o", ms=3)
        _names(axis.xaxis, [name for name, _ in commits], 9.0 / across)
        axis.set_title(_plain(f"expert {expert.id}: {expert.arch}", 36))
        axis.set(ylabel="frozen (%)", ylim=(0, 1.08 * after.max(initial=0.0) or 1.0))
        axis.grid(axis="y", color="#dddddd", lw=0.6)
        few = np.unique(np.linspace(0, len(names) - 1, min(NAMED, len(names))).round().astype(int))
        legend = [lines[i] for i in few], [_plain(names[i], 30) for i in few]
        if not alike:
            axis.legend(*legend, loc="upper left")
    for axis in axes[len(experts) :]:
        axis.set_axis_off()
    if alike:
        some = None if len(names) <= NAMED else f"{len(names)} layers, among them"
        figure.legend(*legend, loc="outside right upper", title=some)
    left = [len(e.tasks) for e in report.experts if e not in experts]
    if left:
        figure.supxlabel(f"not drawn: {len(left)} more experts with {sum(left)} tasks", size="small", color="#555555")


def accuracy(figure: FigureBase, report: InspectReport) -> None:
    """Two points for each task: before pruning, and with its subnetwork."""
    found = [(task.accuracy.dense, task.accuracy.subnetwork) for task in report.tasks]
    measured = [(i, dense, own) for i, (dense, own) in enumerate(found, 1) if dense is not None and own is not None]
    if not measured:
        _nothing(figure, "not measured")
        return
    axis = figure.subplots()
    dense = [100 * share for _, share, _ in measured]
    sparse = [100 * share for _, _, share in measured]
    at = [i for i, _, _ in measured]
    axis.vlines(at, dense, sparse, color="#999999", lw=0.8)
    axis.plot(at, dense, "o", mfc="white", mec="#777777", ms=7, label="dense network, while learning", clip_on=False)
    axis.plot(at, sparse, "o", color="#0b5394", ms=4, label="its subnetwork, from then on", clip_on=False)
    low = min(*dense, *sparse)
    below = max(2.0, 0.15 * (100 - low))
    axis.set(ylabel="accuracy (%)", ylim=(max(0.0, low - below), 100.0), xlim=(0.4, len(found) + 0.6))
    axis.grid(axis="y", color="#dddddd", lw=0.6)
    _names(axis.xaxis, [task.name for task in report.tasks], 9.0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside upper right", ncols=2)


def overlap(figure: FigureBase, report: InspectReport) -> None:
    """The matrix as colours, with numbers where there is room."""
    import matplotlib as mpl
    import numpy as np

    if not report.tasks:
        _nothing(figure)
        return
    values = np.array([[np.nan if v is None else v for v in row] for row in report.overlap], dtype=float)
    axis = figure.subplots()
    colours = mpl.colormaps["Blues"].with_extremes(bad="#eeeeee")
    picture = axis.imshow(values, cmap=colours, vmin=0, vmax=1, interpolation="nearest")
    names = [task.name for task in report.tasks]
    _names(axis.xaxis, names, 4.0, 0)
    _names(axis.yaxis, names, 4.0, 0)
    axis.spines[:].set_visible(False)
    if len(names) <= NUMBERED:
        for (i, j), value in np.ndenumerate(values):
            colour = "white" if value > 0.6 else "black"
            axis.text(
                j, i, "" if np.isnan(value) else f"{value:.2f}", ha="center", va="center", size="small", color=colour
            )
    figure.colorbar(picture, ax=axis, shrink=0.6, label="kappa (grey: no expert in common)")


def bars(report: InspectReport) -> list[Shares]:
    """A bar for each layer, or for each expert (with most tasks) where that would be too many."""
    layers = [together(f"{e.id} {layer.name}", [layer]) for e in report.experts for layer in e.layers]
    return layers if len(layers) <= BARS else [together(e.id, e.layers) for e in shown(report, BARS)]


def shares(figure: FigureBase, report: InspectReport) -> None:
    """A bar for each layer: what several tasks read, what one does, what none."""
    found = bars(report)
    if not found:
        _nothing(figure)
        return
    axis = figure.subplots()
    left = [0.0] * len(found)
    for part, (label, colour) in enumerate(PARTS):
        widths = [100 * (bar.shared, bar.single, bar.free)[part] / (bar.parameters or 1) for bar in found]
        axis.barh(range(len(found)), widths, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, bar in enumerate(found):
        axis.text(101, i, f"{100 * bar.free / (bar.parameters or 1):.1f} % free", va="center", size="small")
    axis.set_yticks(range(len(found)), [_plain(bar.name, 36) for bar in found])
    axis.set(xlabel="% of the shared weights", xlim=(0, 100), ylim=(len(found) - 0.5, -0.5))
    axis.tick_params(axis="y", length=0)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower right", ncols=3)


def _names(axis: Any, names: Sequence[str], inches: float, first: int = 1) -> None:
    """Names at ``first``, … of an axis so long; only every so many where there is no room for all."""
    texts = [_plain(name, 16) for name in names]
    step = max(1, math.ceil(len(names) / (inches / 0.17)))
    upright = axis.axis_name == "x" and 0.09 * max(map(len, texts), default=0) * len(texts) > inches * step
    axis.set_ticks(range(first, len(names) + first)[::step], texts[::step], rotation=90 if upright else 0)


def _plain(text: str, length: int) -> str:
    """A name as a picture can take it."""
    return cut("".join(c if c.isprintable() else "?" for c in text), length)


def _nothing(figure: FigureBase, text: str = "nothing is learned yet") -> None:
    axis: Axes = figure.subplots()
    axis.set_axis_off()
    axis.text(0.5, 0.5, text, ha="center", va="center", color="#555555")
