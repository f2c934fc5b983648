"""Table and drawing of ``benchmarks/gate.py``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

OTHERS = ("fisher", "loss", "gradient", "paper")
"""Routers beside ``fused`` and ``gate``."""


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds of each case."""
    rows: dict[str, Any] = {}
    for case in dict.fromkeys(r["case"] for r in results):
        own = [r for r in results if r["case"] == case]
        if case == "joint":
            found = 100 * np.array([r["accuracy"] for r in own])
            rows[case] = {"converged": [found[:, 0].mean(), found[:, 0].std()], "annealed": found[:, 1].mean()}
            continue
        rows[case] = {"seeds": len(own)}
        for key in ("fused", "gate", "given", *OTHERS):
            values = [100 * r[key] for r in own if key in r]
            if values:
                rows[case][key] = [float(np.mean(values)), float(np.std(values)), min(values), max(values)]
        rows[case]["ece"] = float(np.mean([r["fused_ece"] for r in own]))
        rows[case]["batch32_wrong"] = np.sum([r["batch32"] for r in own], axis=0).tolist()
        rows[case]["auroc_after_three"] = [r["auroc_after_three"] for r in own]
        rates = [rate for r in own for row in r["rejected"] for rate in row]
        rows[case]["rejected"] = [min(rates), float(np.mean(rates)), max(rates)]
        drift = [max(abs(row[i] - r["rejected"][i][i]) for row in r["rejected"][i:])
                 for r in own for i in range(len(r["pairs"]))]  # fmt: skip
        rows[case]["rejected_drift"] = max(drift)
        rows[case]["gate_share_of_learning"] = float(
            np.sum([r["gate_spent"] for r in own]) / np.sum([r["seconds"] for r in own])
        )
        rows[case]["gate_bytes_per_task"] = max(size for r in own for size in r["gate_bytes_per_task"])
        rows[case]["solved_bytes"] = max(r["solved_bytes"] for r in own)
        if "pruned_equals_never_saw" in own[0]:
            rows[case]["pruned_equals_never_saw"] = [r["pruned_equals_never_saw"] for r in own]
    return rows


def draw(found: dict[str, Any], path: Path) -> None:
    """Accuracy of the gate alone against megabytes a task and seconds for 10,000 images; joint training beside it."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    rows = found["frontier"]
    accuracy = [100 * row["accuracy"] for row in rows]
    for axis, key, label in zip(
        figure.subplots(1, 2, sharey=True),
        ("megabytes_per_pair", "seconds_for_10000"),
        ("MB of statistics a task of two classes", "seconds for 10,000 images, features included"),
        strict=True,
    ):
        axis.plot([row[key] for row in rows], accuracy, "o-")
        for row, right in zip(rows, accuracy, strict=True):
            axis.annotate(str(row["directions"]), (row[key], right), textcoords="offset points", xytext=(4, -11))
        axis.axhline(
            found["cases"]["joint"]["converged"][0], color="grey", ls="--", lw=1, label="the same MLP, jointly"
        )
        axis.set(xlabel=label, ylim=(97, 99.6))
    figure.axes[0].set(xscale="log", ylabel="test accuracy, %")
    figure.axes[0].legend(frameon=False, loc="lower right")
    figure.suptitle("The gate alone, by directions a class")
    figure.savefig(path, dpi=120)
