"""Accuracy against frozen share: P6 at several densities, and at the default one without reading earlier tasks.

    python benchmarks/curve.py --root MNIST_ROOT --out bench-out/curve

Each row is a run of ``benchmarks/paper.py``'s experiment in which every task keeps just that density of new weights,
whatever it costs; ``default`` lets the tolerance decide (taken from ``benchmarks/paper.py``'s results, ``--paper``);
``blind`` as well, but nothing of earlier tasks is read.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from figures import write_rows
from matplotlib.figure import Figure
from paper import prepare, run_seed

from clmoe_cli.api.options import LearnOptions
from clmoe_cli.method import learn_task
from clmoe_cli.method.subnetwork.pruning import Tolerance

DENSITIES = (0.2, 0.02, 0.002)


def run(job: tuple[str, Path, int, float | None, bool]) -> dict[str, Any]:
    """One run; ``density`` None: the tolerance decides."""
    name, out, seed, density, blind = job
    method = learn_task.Options()
    if density is not None:
        method = learn_task.Options(tolerance=Tolerance(max_drop=1.0, starts=(max(0.2, density),), floor=density))
    return row(name, run_seed((out, seed, LearnOptions(seed=seed, method=method), blind, False)))


def row(name: str, found: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a run."""
    final = 100 * np.array(found["final"])
    return {
        "run": name,
        "seed": found["seed"],
        "layer_1_frozen_percent": found["frozen"][-1][0],
        "layer_2_frozen_percent": found["frozen"][-1][1],
        "layer_1_new_percent_a_task": float(np.mean([f[0] for f in np.diff(found["frozen"], axis=0, prepend=0.0)])),
        "accuracy_mean": float(final.mean()),
        "accuracy_least_task": float(final.min()),
        "one_expert": found["one_expert"],
    }


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Mean and least accuracy against the share of layer 1 that is frozen after all six tasks."""
    figure = Figure(figsize=(5.4, 3.6), layout="constrained")
    axis = figure.subplots()
    shown = sorted((r for r in rows if r["run"] != "blind"), key=lambda r: r["layer_1_frozen_percent"])
    share = [r["layer_1_frozen_percent"] for r in shown]
    axis.plot(share, [r["accuracy_mean"] for r in shown], marker="o", label="mean of six tasks")
    axis.plot(share, [r["accuracy_least_task"] for r in shown], marker=".", ls=":", label="least task")
    for row in rows:
        if row["run"] in ("default", "blind"):
            below = -12 if row["run"] == "blind" else 6
            place = (row["layer_1_frozen_percent"], row["accuracy_mean"])
            axis.annotate(row["run"], place, (6, below), textcoords="offset points")
    axis.set(xscale="log", xlabel="% of layer 1 frozen after six tasks", ylabel="test accuracy, %")
    axis.minorticks_off()
    axis.set_xticks(share, [f"{s:.1f}" for s in share])
    axis.legend(frameon=False)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="../shared/mnist")
    parser.add_argument("--out", type=Path, default=Path("bench-out/curve"))
    parser.add_argument("--paper", type=Path, default=Path("bench-out/paper"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    jobs: list[tuple[str, Path, int, float | None, bool]] = []
    for name, density, blind in (*((f"{100 * d:g} %", d, False) for d in DENSITIES), ("blind", None, True)):
        folder = options.out / name.replace(" %", "")
        folder.mkdir(parents=True, exist_ok=True)
        jobs.append((name, folder, options.seed, density, blind))
        prepare(options.root, folder, quick=False)
    with ProcessPoolExecutor(options.jobs) as processes:
        rows = list(processes.map(run, jobs))
    rows.append(row("default", json.loads((options.paper / f"seed{options.seed}.json").read_text())))
    (options.out / "curve.json").write_text(json.dumps(rows, indent=1))
    write_rows(options.out / "curve.csv", rows)
    draw(rows, options.out / "curve.png")
    print(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
