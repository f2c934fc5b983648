"""Ablation of the subnetwork selection: score rule × density, before and after consolidation, at once or in rounds.

    python benchmarks/ablation.py --root MNIST_ROOT --out bench-out/ablation

Each P6 task by itself: one dense network, then every rule from that same network. Accuracies are those of the
last 10,000 training images, which nothing here trains on; test images are not used.
"""

from __future__ import annotations

import argparse
import csv
import json
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import MNIST

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.learn_task import split
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.pruning import SCORES, importance, threshold_at
from clmoe_cli.method.subnetwork.training import Annealing, Run, Schedule, anneal, quality, train

PAIRS = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
DENSITIES = (0.03, 0.01, 0.005)
ROUNDS = (0.2, 0.066, 0.022)
"""Densities of the rounds before the last one, for the rows ``rounds``."""


def pair_of(root: str, pair: tuple[int, int]) -> tuple[Labelled, Labelled]:
    """Images to learn from, and the last 10,000 training images to judge by."""
    data = MNIST(root, train=True)
    x, y = data.data.reshape(-1, 784).float() / 255, data.targets
    own = torch.isin(y, torch.tensor(pair))
    first = torch.arange(len(y)) < len(y) - 10_000
    learn, judge = (Labelled(x[own & part], (y[own & part] == max(pair)).long()) for part in (first, ~first))
    return learn, judge


def measure(job: tuple[str, int, int]) -> list[dict[str, Any]]:
    """All rows of one task and seed."""
    root, number, seed = job
    torch.set_num_threads(1)
    data, asked = pair_of(root, PAIRS[number])
    generator = torch.Generator().manual_seed(100 * seed + number)
    net, schedule = MLP(784, (500, 500)), Schedule()
    parts = split(data, generator)
    fresh = net.initial_shared(generator) | net.initial_owned(2, generator)
    start = net.ordered(fresh)
    every = masks.ones_like({name: fresh[name] for name in net.shared_shapes()})
    run = Run(net, parts.training, parts.tuning, schedule, generator)
    dense, _ = train(run, start, every)
    common = {"task": number + 1, "seed": seed, "dense": quality(net, dense, asked).accuracy}

    def pruned(params: dict[str, torch.Tensor], mask: masks.Masks, density: float, score: str) -> masks.Masks:
        scores = importance(net, params, mask, parts.training, score)
        threshold = threshold_at(scores, density)
        return {name: (value >= threshold) & (value > 0) & mask[name] for name, value in scores.items()}

    def consolidated(params: dict[str, torch.Tensor], mask: masks.Masks, epochs: int) -> dict[str, torch.Tensor]:
        kept = masks.apply(params, mask)
        return anneal(run, kept, mask, Annealing("ablation", epochs, 3e-3))[0]

    rows = []
    for score, way in product(SCORES, ("at once", "rounds")):
        current, mask = dense, every
        for density in ROUNDS if way == "rounds" else ():
            mask = pruned(current, mask, density, score)
            current = consolidated(current, mask, 2)
        for density in DENSITIES:
            if way == "rounds" and density >= ROUNDS[-1]:
                continue
            chosen = pruned(current, mask, density, score)
            rows.append(
                {**common, "score": score, "way": way, "density": density}
                | {"before": quality(net, masks.apply(current, chosen), asked).accuracy}
                | {"after": quality(net, consolidated(current, chosen, 6), asked).accuracy}
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--tasks", type=int, nargs="+", default=[1, 2, 3, 4, 5, 6])
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [(options.root, number - 1, seed) for seed in options.seeds for number in options.tasks]
    with ProcessPoolExecutor(options.jobs) as processes:
        rows = [row for found in processes.map(measure, jobs) for row in found]
    with (options.out / "ablation.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    table = []
    for score, way, density in product(SCORES, ("at once", "rounds"), DENSITIES):
        same = [r for r in rows if (r["score"], r["way"], r["density"]) == (score, way, density)]
        if same:
            means = {
                key: round(100 * float(np.mean([r[key] for r in same])), 2) for key in ("dense", "before", "after")
            }
            table.append({"score": score, "way": way, "density": density, **means})
    (options.out / "ablation.json").write_text(json.dumps(table, indent=1))
    for line in table:
        print(json.dumps(line))


if __name__ == "__main__":
    main()
