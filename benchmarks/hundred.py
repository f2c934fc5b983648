"""A hundred tasks in one store, each learned by a process of its own: 20 pixel permutations × 5 digit pairs.

    python benchmarks/hundred.py --root MNIST_ROOT --out bench-out/hundred

The families come interleaved: a pair of each permutation, then the next pair of each. Reported: seconds of
each ``learn``, which expert took which family, overlaps within and between experts, bytes per task, and whether
every task's outputs at the end are bit-identical to those just after it was learned; how long ``predict`` takes for
10,000 images of all tasks beside the same store after its first six.
Training images only.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import MNIST

from clmoe_cli.data import Batch
from clmoe_cli.data.npz import write_npz
from clmoe_cli.method.networks.base import logits
from clmoe_cli.store_tensors import Loader
from store_schema import Store

FEW = 6
CHECKED = 1700
ASKED = 10_000
PAIRS = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))


def clmoe(store: Path, *args: str) -> Any:
    """One command in its own process."""
    command = [sys.executable, "-m", "clmoe_cli", *args, "--store", str(store), "--json", "-q"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ})
    if done.returncode:
        raise SystemExit(f"{' '.join(args)}: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def family(root: str, number: int, pair: tuple[int, int], images: int) -> tuple[Batch, Batch]:
    """Images of a pair under permutation ``number`` (0: as they are): some to learn, some to check with."""
    data = MNIST(root, train=True)
    own = torch.isin(data.targets, torch.tensor(pair)).nonzero()[:, 0]
    own = own[torch.randperm(len(own), generator=torch.Generator().manual_seed(100 * number + pair[0]))]
    order = torch.randperm(784, generator=torch.Generator().manual_seed(number)) if number else torch.arange(784)
    pixels = data.data[own].reshape(-1, 784)[:, order].reshape(-1, 1, 28, 28).numpy()
    labels = data.targets[own].numpy()
    parts = (slice(0, images), slice(images, images + CHECKED))
    learned, checked = (Batch(pixels[part], labels[part], "") for part in parts)
    return learned, checked


def outputs(loader: Loader, task: str, batch: Batch) -> torch.Tensor:
    """Logits [N, C] of a task's subnetwork."""
    found = loader.task(task)
    return logits(found.net, found.params, torch.from_numpy(batch.scaled().reshape(len(batch.images), -1)))


def overlaps(loader: Loader) -> dict[str, float]:
    """Mean overlap (kappa) of pairs of tasks within an expert and between experts."""
    found: dict[bool, list[float]] = defaultdict(list)
    tasks = [loader.task(t.name) for t in loader.manifest.tasks]
    bits = torch.stack([torch.cat([m.flatten() for m in t.mask.values()]) for t in tasks]).float()
    both, size = bits @ bits.T, bits.shape[1]
    share = bits.mean(dim=1)
    chance = size * (share[:, None] * (1 - share) + (1 - share[:, None]) * share)
    kappa = 1 - (bits.sum(1)[:, None] + bits.sum(1) - 2 * both) / chance
    for i in range(len(tasks)):
        for j in range(i):
            found[tasks[i].expert == tasks[j].expert].append(float(kappa[i, j]))
    return {"within": float(np.mean(found[True])), "between": float(np.mean(found[False]))}


def predict_seconds(out: Path, stores: dict[int, Path], checks: list[Batch], runs: int = 5) -> dict[str, Any]:
    """Seconds of ``predict`` for 10,000 images of a store's own tasks, a process each, the stores by turns."""
    for count in stores:
        each = -(-ASKED // count)
        x = np.concatenate([batch.images[:each] for batch in checks[:count]])[:ASKED]
        write_npz(str(out / f"asked{count}.npz"), {"x": x})
    seconds: dict[int, list[float]] = {count: [] for count in stores}
    for _ in range(runs):
        for count, store in stores.items():
            started = time.perf_counter()
            clmoe(store, "predict", "--batch", str(out / f"asked{count}.npz"), "--output", str(out / "answers.npz"))
            seconds[count].append(time.perf_counter() - started)
    few, many = (np.array(seconds[count]) for count in sorted(stores))
    return {"seconds": seconds, "ratio": float(np.median(many) / np.median(few)), "ratios": (many / few).tolist()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/hundred"))
    parser.add_argument("--families", type=int, default=20)
    parser.add_argument("--arch", default="mlp:200,200")
    parser.add_argument("--images", type=int, default=2000)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    store, data = options.out / "store", options.out / "task.npz"
    if store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    first: dict[str, torch.Tensor] = {}
    checks: dict[str, Batch] = {}
    rows: list[dict[str, Any]] = []
    for pair in PAIRS:
        for number in range(options.families):
            batch, check = family(options.root, number, pair, options.images)
            assert batch.labels is not None
            write_npz(str(data), {"x": batch.images, "y": batch.labels})
            name = f"p{number}-{pair[0]}{pair[1]}"
            report = clmoe(store, "learn", "--data", str(data), "--name", name, "--arch", options.arch)
            loader = Loader(Store.open(store))
            checks[name], first[name] = check, outputs(loader, name, check)
            assert check.labels is not None
            right = first[name].argmax(dim=1).numpy() == np.searchsorted(np.array(pair), check.labels)
            reads = {task.split("-")[0] for task in report["reads"]}
            rows.append(
                {
                    "task": name,
                    "family": number,
                    "expert": report["expert"],
                    "status": report["status"],
                    "seconds": report["seconds"],
                    "accuracy": float(right.mean()),
                    "compared": len(report["candidates"]),
                    "reads_other_families": bool(reads - {f"p{number}"}),
                    "bytes": sum(f.stat().st_size for f in store.rglob("*") if f.is_file()),
                }
            )
            (options.out / "tasks.json").write_text(json.dumps(rows, indent=1))
            if len(rows) == FEW:
                shutil.copytree(store, options.out / "few")
            print(f"{len(rows):3d} {name} {report['expert']} {report['seconds']:.1f} s", file=sys.stderr, flush=True)
    loader = Loader(Store.open(store))
    seconds = [row["seconds"] for row in rows]
    asking = predict_seconds(options.out, {FEW: options.out / "few", len(rows): store}, list(checks.values()))
    homes: dict[int, set[str]] = defaultdict(set)
    for row in rows:
        homes[row["family"]].add(row["expert"])
    sizes = {t.name: loader.manifest.task(t.name).subnetwork.size for t in loader.manifest.tasks}
    result = {
        "tasks": len(rows),
        "experts": len(loader.manifest.experts),
        "all_learned": all(row["status"] == "learned" for row in rows),
        "accuracy_mean": float(np.mean([row["accuracy"] for row in rows])),
        "accuracy_min": min(row["accuracy"] for row in rows),
        "bit_identical_at_the_end": all(torch.equal(first[n], outputs(loader, n, checks[n])) for n in first),
        "seconds_tenth": seconds[min(9, len(seconds) - 1)],
        "seconds_last": seconds[-1],
        "seconds_tasks_6_to_15": float(np.mean(seconds[5:15])),
        "seconds_last_ten": float(np.mean(seconds[-10:])),
        "predict_10000": asking,
        "families_in_one_expert": sum(len(found) == 1 for found in homes.values()),
        "tasks_that_read_another_family": sum(row["reads_other_families"] for row in rows),
        "overlap": overlaps(loader),
        "bytes_of_a_task_object_mean": float(np.mean(list(sizes.values()))),
        "bytes_of_the_newest_generation_per_task": sum(r.size for r in loader.manifest.objects()) / len(rows),
        "frozen_percent_max": max(
            100.0 * float(m.double().mean()) for e in loader.manifest.experts for m in loader.frozen(e.id).values()
        ),
    }
    (options.out / "hundred.json").write_text(json.dumps(result, indent=1))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
