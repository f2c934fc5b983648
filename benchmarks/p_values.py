"""What p-values of answers are worth on photographs: held-out training pictures alone, half of the tasks known.

    python benchmarks/p_values.py --photos PHOTOS --out bench-out/p-values [--only cifar100 gtsrb] [--seed 0]

Photographs through ``lite0``. A seeded fifth of the training pictures of each class is held out; the rest of the first
half of the tasks is learned by the gate. Three ways to judge, for each the share of known pictures with p at most 0.05
(5 % is meant), and recall and false alarms of batches of 32 of one task, known or new, at 0.01, and the AUROC of single
pictures:

- before: p of the class, and a picture counts by the class of all tasks that it fits best;
- best task: the largest p of a task's classes is ranked among those of left-out pictures of the task, and a picture
  counts by the task that it fits best;
- answering task: the same by the task that the gate answers. This is what ``detect`` and ``predict --reject`` do.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from datasets import Places, groups
from none_of_mine import TASKS, asked, held_out, solved, statistics, training
from sklearn.metrics import roc_auc_score
from torch import Tensor

from clmoe_cli.method.routing.gaussians import Gaussians
from clmoe_cli.method.tasks.novelty import Evidence, decide

WAYS = ("before", "best task", "answering task")
SIZE, BATCHES, ALPHA, REJECT = 32, 40, 0.01, 0.05


def judged(task: Gaussians, way: str, x: Tensor, at: Tensor) -> Tensor:
    """p-values [N] of features [N, d] as one of a task's, whose class ``at`` [N] the gate answers within it."""
    if way != "before":
        return task.answered(x, at)
    distances = task.all_distances(x)
    return torch.stack([task.usual(x, d, c) for c, d in enumerate(distances.unbind(dim=1))]).max(dim=0).values


def measured(x: Tensor, y: Tensor, tasks: list[list[int]], seed: int) -> dict[str, list[float]]:
    """For each way: share of known pictures with p ≤ ``REJECT``, recall, false alarms, AUROC."""
    held, half = held_out(y, seed, 0), len(tasks) // 2
    stored = []
    for own in tasks[:half]:
        here = ~held & torch.isin(y, torch.tensor(own))
        stored.append(statistics(x[here], y[here] - own[0], len(own)))
    gate = solved(stored)
    logs = asked(gate, stored, x[held])
    answering = gate.owner[logs.argmax(dim=1)]
    within = [logs[:, gate.owner == t].argmax(dim=1) for t in range(half)]
    home = torch.empty(int(held.sum()), dtype=torch.long)
    for number, own in enumerate(tasks):
        home[torch.isin(y[held], torch.tensor(own))] = number
    found = {}
    for way in WAYS:
        p = torch.stack([judged(task, way, x[held], at) for task, at in zip(stored, within, strict=True)])
        counted = p.gather(0, answering[None])[0] if way == "answering task" else p.max(dim=0).values
        every = [
            Evidence(
                p[t], within[t], frozenset(range(len(tasks[t]))), int(stored[t].counts.min()),
                won=answering == t if way == "answering task" else None,
            )
            for t in range(half)
        ]  # fmt: skip
        rng, new = np.random.default_rng(seed), {True: [], False: []}
        for number in range(len(tasks)):
            rows = (home == number).nonzero()[:, 0]
            for _ in range(BATCHES):
                own = rows[torch.from_numpy(rng.choice(len(rows), SIZE, replace=False))]
                part = {
                    str(t): replace(
                        e, p=e.p[own], predicted=e.predicted[own], won=None if e.won is None else e.won[own]
                    )
                    for t, e in enumerate(every)
                }
                new[number >= half].append(decide(part, None, ALPHA).verdict == "new")
        known = home < half
        found[way] = [
            float((counted[known] <= REJECT).double().mean()), float(np.mean(new[True])), float(np.mean(new[False])),
            float(roc_auc_score(known, counted)),
        ]  # fmt: skip
    return found


def main() -> None:
    """Prints a row for each data set and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", nargs="+", default=["cifar100", "cifar10", "gtsrb"], choices=list(TASKS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    lines = ["| data, seed | p-values | known, p ≤ 0.05 | recall | false alarms | AUROC |", "|" + " --- |" * 6]
    for name in args.only:
        places = Places(args.photos, None, args.out, args.seed)
        x, y = training(name, places, args.out / f"{name}.features.npz")
        tasks = [list(own) for own in groups(y.numpy(), TASKS[name])]
        for way, (low, recall, alarms, auroc) in measured(x, y, tasks, args.seed).items():
            shares = " | ".join(f"{100 * share:.1f} %" for share in (low, recall, alarms))
            lines.append(f"| {name}, {args.seed} | {way} | {shares} | {auroc:.3f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
