"""Pictures of a store, with matplotlib (the extra ``plot``), imported only when one is asked for."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clmoe_cli.report.panels import accuracy, bars, frozen, grid, overlap, shares, shown
from clmoe_cli.runtime.packages import missing
from store_schema.errors import UsageProblem

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

    from clmoe_cli.api.inspect import InspectReport

SETTINGS: Any = {
    "font.size": 9.0,
    "axes.titlesize": "medium",
    "figure.constrained_layout.w_pad": 0.1,
    "figure.constrained_layout.h_pad": 0.08,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": "small",
    # Names are data: a dollar in them is no formula. Text stays text, and the same report gives the same bytes.
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "clmoe",
}


@dataclass(frozen=True)
class Panel:
    """One picture: what it shows, width and height in inches, and what draws it."""

    title: str
    size: tuple[float, float]
    draw: Callable[[FigureBase], None]


def check_plotting() -> None:
    """UsageProblem without matplotlib."""
    if missing("matplotlib"):
        raise UsageProblem("pictures need matplotlib", hint="pip install 'clmoe[plot]'")


def panels(report: InspectReport) -> list[Panel]:
    """Frozen percentages and accuracy, as wide as a page; overlaps and shares, half as wide."""
    rows, _ = grid(len(shown(report)))
    high = len(bars(report))
    return [
        Panel("Frozen weights of each layer after each commit", (10, 0.5 + 2.6 * rows), lambda f: frozen(f, report)),
        Panel("Held-out accuracy of the tasks, in order of learning", (10, 2.9), lambda f: accuracy(f, report)),
        Panel("Overlap of the tasks' subnetworks", (5.6, 4.7), lambda f: overlap(f, report)),
        Panel("Weights by the number of tasks that read them", (5.6, 1.4 + 0.22 * high), lambda f: shares(f, report)),
    ]


def picture(report: InspectReport, kind: str) -> bytes:
    """All panels in one picture: the bytes of a ``png``, ``svg`` or ``pdf``."""
    return _drawn(_whole(report), kind)


def drawings(report: InspectReport) -> list[tuple[str, bytes]]:
    """Title and SVG of each panel."""
    found = []
    for panel in panels(report):
        with _settings():
            figure = _figure(panel.size)
            panel.draw(figure)
        found.append((panel.title, _drawn(figure, "svg")))
    return found


@contextmanager
def _settings() -> Iterator[None]:
    import matplotlib as mpl

    with mpl.rc_context(SETTINGS), warnings.catch_warnings():
        # A name in a script that matplotlib's font lacks is drawn as boxes; where text stays text it is whole.
        warnings.filterwarnings("ignore", message="Glyph", category=UserWarning)
        yield


def _figure(size: tuple[float, float]) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def _whole(report: InspectReport) -> Figure:
    """The two wide panels above each other, the two others side by side below."""
    wide, below = panels(report)[:2], panels(report)[2:]
    heights = [*(p.size[1] for p in wide), max(p.size[1] for p in below)]
    with _settings():
        figure = _figure((12, sum(heights)))
        rows = figure.subfigures(3, 1, height_ratios=heights, squeeze=False)[:, 0]
        places = list(rows[:2])
        for panel, half in zip(below, rows[2].subfigures(1, 2, squeeze=False)[0], strict=True):
            # What is lower than its neighbour keeps its height.
            ratios = [panel.size[1], max(0.01, heights[-1] - panel.size[1])]
            places.append(half.subfigures(2, 1, height_ratios=ratios, squeeze=False)[0, 0])
        for place, panel in zip(places, [*wide, *below], strict=True):
            place.suptitle(panel.title, x=0.01, ha="left", weight="bold")
            panel.draw(place)
    return figure


def _drawn(figure: Figure, kind: str) -> bytes:
    """The file's bytes, without the time of drawing."""
    nothing = {"png": {}, "pdf": {"CreationDate": None}, "svg": dict.fromkeys(("Date", "Creator", "Format", "Type"))}
    out = io.BytesIO()
    with _settings():
        figure.savefig(out, format=kind, dpi=150, metadata=nothing[kind])
    return out.getvalue()
