"""The panels of a store's pictures; each draws into a figure of matplotlib's that it is given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clmoe_cli.report.overview import cut

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import FigureBase

    from clmoe_cli.api.inspect import InspectReport

PARTS = (("shared", "several tasks", "#0b5394"), ("single", "one task", "#7fb2e5"), ("free", "free", "#e8e8e8"))
"""Key of a layer's part, its name, its colour."""
EXPERTS, NAMED, BARS, NUMBERED = 6, 6, 40, 12
"""At most so many experts with curves, layers in a legend, bars, and tasks with numbers in the overlap matrix."""


def grid(count: int) -> tuple[int, int]:
    """Rows and columns for so many small pictures."""
    across = {1: 1, 2: 2, 4: 2}.get(count, 3)
    return math.ceil(max(count, 1) / across), across


def shown(report: InspectReport, limit: int = EXPERTS) -> list[dict[str, Any]]:
    """The experts with most tasks, in their order."""
    most = sorted(report.experts, key=lambda e: -len(e["tasks"]))[:limit]
    return [e for e in report.experts if e in most]


def _commits(report: InspectReport, expert: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """What each commit that concerns an expert left frozen of its layers, in percent."""
    found: list[tuple[str, list[float]]] = []
    before = None
    for entry in report.history:
        state = entry["experts"].get(expert["id"])
        if state is not None and (state != before or entry["task"] in expert["tasks"]):
            name = entry["task"] if entry["action"] == "learn" else f"{entry['action']} {entry['task'] or ''}"
            found.append((name.strip(), [layer["frozen_percent"] for layer in state["layers"]]))
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
    alike = len({tuple(layer["name"] for layer in e["layers"]) for e in experts}) == 1
    for axis, expert in zip(axes, experts, strict=False):
        names = [layer["name"] for layer in expert["layers"]]
        colours = mpl.colormaps["viridis"]([0.88 * i / max(1, len(names) - 1) for i in range(len(names))])
        commits = _commits(report, expert)
        after = np.reshape([state for _, state in commits], (-1, len(names)))
        axis.set_prop_cycle(color=colours)
        lines = axis.plot(range(1, len(commits) + 1), after, marker="o", ms=3)
        _names(axis.xaxis, [name for name, _ in commits], 9.0 / across)
        axis.set_title(_plain(f"expert {expert['id']}: {expert['arch']}", 36))
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
    left = [len(e["tasks"]) for e in report.experts if e not in experts]
    if left:
        figure.supxlabel(f"not drawn: {len(left)} more experts with {sum(left)} tasks", size="small", color="#555555")


def accuracy(figure: FigureBase, report: InspectReport) -> None:
    """Two points for each task: before pruning, and with its subnetwork."""
    found = [task["accuracy"] for task in report.tasks]
    measured = [i for i, a in enumerate(found) if a["dense"] is not None and a["subnetwork"] is not None]
    if not measured:
        _nothing(figure, "not measured")
        return
    axis = figure.subplots()
    dense = [100 * found[i]["dense"] for i in measured]
    sparse = [100 * found[i]["subnetwork"] for i in measured]
    at = [i + 1 for i in measured]
    axis.vlines(at, dense, sparse, color="#999999", lw=0.8)
    axis.plot(at, dense, "o", mfc="white", mec="#777777", ms=7, label="dense network, while learning", clip_on=False)
    axis.plot(at, sparse, "o", color="#0b5394", ms=4, label="its subnetwork, from then on", clip_on=False)
    low = min(*dense, *sparse)
    below = max(2.0, 0.15 * (100 - low))
    axis.set(ylabel="accuracy (%)", ylim=(max(0.0, low - below), 100.0), xlim=(0.4, len(found) + 0.6))
    axis.grid(axis="y", color="#dddddd", lw=0.6)
    _names(axis.xaxis, [task["name"] for task in report.tasks], 9.0)
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
    names = [task["name"] for task in report.tasks]
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


def bars(report: InspectReport) -> tuple[list[str], list[dict[str, int]]]:
    """Names and counts of the bars: of each layer, or of each expert (with most tasks) where that would be too many."""
    layers = [(f"{e['id']} {layer['name']}", [layer]) for e in report.experts for layer in e["layers"]]
    if len(layers) > BARS:
        layers = [(e["id"], e["layers"]) for e in shown(report, BARS)]
    counts = [{key: sum(layer[key] for layer in some) for key, *_ in PARTS} for _, some in layers]
    return [name for name, _ in layers], counts


def shares(figure: FigureBase, report: InspectReport) -> None:
    """A bar for each layer: what several tasks read, what one does, what none."""
    names, counts = bars(report)
    if not names:
        _nothing(figure)
        return
    axis = figure.subplots()
    wholes = [sum(count.values()) or 1 for count in counts]
    left = [0.0] * len(names)
    for key, label, colour in PARTS:
        widths = [100 * count[key] / whole for count, whole in zip(counts, wholes, strict=True)]
        axis.barh(range(len(names)), widths, left=left, color=colour, label=label)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for i, (count, whole) in enumerate(zip(counts, wholes, strict=True)):
        axis.text(101, i, f"{100 * count['free'] / whole:.1f} % free", va="center", size="small")
    axis.set_yticks(range(len(names)), [_plain(name, 36) for name in names])
    axis.set(xlabel="% of the shared weights", xlim=(0, 100), ylim=(len(names) - 0.5, -0.5))
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
