"""Pictures of reports, with matplotlib (the extra ``plot``), imported only when one is asked for."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from store_schema.errors import UsageProblem, disk_errors

if TYPE_CHECKING:
    from clmoe_cli.commands.inspect import InspectReport


def plot_frozen(report: InspectReport, path: Path) -> None:
    """Frozen percentage of each layer after each commit (the paper's Fig. 3a), one panel per expert.

    Raises UsageProblem without matplotlib or for a suffix that it cannot write, DiskProblem when writing fails.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageProblem("pictures need matplotlib", hint="pip install 'clmoe[plot]'") from error
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise UsageProblem("unknown picture format", where=str(path), expected=".png, .svg or .pdf")
    names = [expert["id"] for expert in report.experts] or ["–"]
    figure = Figure(figsize=(6.4, 3.2 * len(names)), layout="constrained")
    for axis, expert in zip(figure.subplots(len(names), squeeze=False)[:, 0], names, strict=True):
        entries = [(i, e["experts"][expert]) for i, e in enumerate(report.history, 1) if expert in e["experts"]]
        layers = [layer["name"] for layer in entries[0][1]["layers"]] if entries else []
        for j, layer in enumerate(layers):
            shares = [state["layers"][j]["frozen_percent"] for _, state in entries]
            axis.plot([i for i, _ in entries], shares, marker="o", label=layer)
        axis.set_title(f"expert {expert}")
        axis.set_ylabel("frozen weights (%)")
        axis.set_xticks(range(1, len(report.history) + 1), [e["task"] or e["action"] for e in report.history])
        axis.set_ylim(bottom=0)
        if layers:
            axis.legend(frameon=False)
    with disk_errors(str(path)):
        figure.savefig(path, dpi=150)
