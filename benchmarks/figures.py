"""Drawings and CSV tables of ``benchmarks/paper.py``: Figs. 2, 3a, 3b and Table 1 of the paper."""

from __future__ import annotations

import csv
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

Result = dict[str, Any]


def tables(results: list[Result], out: Path) -> None:
    """``fig2.csv``, ``fig3a.csv``, ``fig3b.csv``, ``table1.csv``: one row for each value and seed."""
    fig2 = [
        (r["seed"], task, step, e["phase"], e["loss"], e["held_out"], e["right"])
        for r in results
        for task, epochs in enumerate(r["losses"], 1)
        for step, e in enumerate(epochs, 1)
    ]
    _write(out / "fig2.csv", ("seed", "task", "epoch", "phase", "loss", "held_out_loss", "held_out_accuracy"), fig2)
    fig3a = [
        (r["seed"], after, layer, share)
        for r in results
        for after, row in enumerate(r["frozen"], 1)
        for layer, share in zip(r["layers"], row, strict=True)
    ]
    _write(out / "fig3a.csv", ("seed", "after_task", "layer", "frozen_percent"), fig3a)
    fig3b = [
        (r["seed"], after, task, share)
        for r in results
        for after, row in enumerate(r["accuracy"], 1)
        for task, share in enumerate(row, 1)
    ]
    _write(out / "fig3b.csv", ("seed", "after_task", "task", "accuracy"), fig3b)
    table1 = [
        (
            r["seed"],
            scores + 1,
            images + 1,
            layer,
            *(r["table1"][kind][scores][images][i] for kind in ("raw", "relative")),
        )
        for r in results
        for scores, images in product(range(len(r["table1"]["raw"])), repeat=2)
        for i, layer in enumerate(r["table1_layers"])
    ]
    _write(out / "table1.csv", ("seed", "scores_of", "images_of", "layer", "deviation", "relative_deviation"), table1)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV table with a column for every key that occurs, in order of appearance."""
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(dict.fromkeys(key for row in rows for key in row)))
        writer.writeheader()
        writer.writerows(rows)


def _write(path: Path, header: tuple[str, ...], rows: list[tuple[Any, ...]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)


def draw(results: list[Result], out: Path) -> None:
    """``fig2.png`` (first seed), ``fig3a.png``, ``fig3b.png``, ``table1.png`` (means over the seeds)."""
    tasks = len(results[0]["losses"])
    figure = Figure(figsize=(11, 5), layout="constrained")
    for task, axis in enumerate(figure.subplots(2, -(-tasks // 2)).flat):
        epochs = results[0]["losses"][task]
        axis.plot([e["loss"] for e in epochs], label="training")
        axis.plot([e["held_out"] for e in epochs], label="held out")
        starts = [i for i, e in enumerate(epochs) if i and e["phase"] != epochs[i - 1]["phase"]]
        for start in starts:
            axis.axvline(start - 0.5, color="grey", lw=0.5)
        axis.set(title=f"task {task + 1}", yscale="log", xlabel="epoch")
    axis.legend(frameon=False)
    figure.suptitle("Fig. 2: loss while each task is learned; lines: pruning begins, consolidation begins")
    figure.savefig(out / "fig2.png", dpi=120)

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axis = figure.subplots()
    frozen = np.array([r["frozen"] for r in results])
    for i, layer in enumerate(results[0]["layers"][:-1]):
        axis.errorbar(range(1, tasks + 1), frozen[:, :, i].mean(0), frozen[:, :, i].std(0), marker="o", label=layer)
    axis.set(
        title="Fig. 3a: frozen after each task",
        xlabel="tasks learned",
        ylabel="% of the layer's weights",
        ylim=(0, None),
    )
    other = axis.twinx()
    other.plot(range(1, tasks + 1), frozen[:, :, -1].mean(0), "k:", label="output rows")
    other.set(ylabel="% of the output rows", ylim=(0, 105))
    axis.legend(frameon=False)
    figure.savefig(out / "fig3a.png", dpi=120)

    figure = Figure(figsize=(5.4, 3.4), layout="constrained")
    axis = figure.subplots()
    for task in range(tasks):
        runs = np.array([[100 * r["accuracy"][after][task] for after in range(task, tasks)] for r in results])
        axis.errorbar(range(task + 1, tasks + 1), runs.mean(0), runs.std(0), marker="o", label=f"task {task + 1}")
    axis.set(title="Fig. 3b: test accuracy, own subnetwork only", xlabel="tasks learned", ylabel="%")
    axis.legend(frameon=False, ncols=2, fontsize="small")
    figure.savefig(out / "fig3b.png", dpi=120)

    layers = results[0]["table1_layers"]
    figure = Figure(figsize=(3.6 * len(layers), 3.6), layout="constrained")
    means = np.log10(np.mean([r["table1"]["relative"] for r in results], axis=0))
    for i, (layer, axis) in enumerate(zip(layers, figure.subplots(1, len(layers)), strict=True)):
        axis.imshow(means[:, :, i], cmap="viridis")
        for a, b in product(range(tasks), repeat=2):
            axis.text(b, a, f"{means[a, b, i]:.1f}", ha="center", va="center", color="white", fontsize="small")
        axis.set(title=layer, xlabel="images of task", ylabel="scores of task")
        axis.set_xticks(range(tasks), range(1, tasks + 1))
        axis.set_yticks(range(tasks), range(1, tasks + 1))
    figure.suptitle("Table 1: log10 of the mean relative score deviation")
    figure.savefig(out / "table1.png", dpi=120)
