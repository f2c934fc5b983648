"""P6 of the paper on all of MNIST, each ``learn`` a process of its own: accuracy, forgetting, frozen share, routing.

    python benchmarks/p6.py --root MNIST_ROOT --out bench-out

Prints one JSON object. Test images are used for these figures only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.store_tensors import Loader
from store_schema import Store

ROUTERS = ("fused", "gate", "gradient", "loss", "paper", "fisher")
PAIRS = ("1,5", "2,6", "3,7", "4,8", "5,9", "0,2")


def clmoe(*args: str, store: Path) -> Any:
    command = [sys.executable, "-m", "clmoe_cli", *args, "--json", "-q"]
    environment = {**os.environ, "CLMOE_STORE": str(store)}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{' '.join(args)}: exit {done.returncode}: {done.stderr}")
    return json.loads(done.stdout)


def outputs(store: Path, task: str, batch: Batch) -> torch.Tensor:
    x = torch.from_numpy(batch.scaled().reshape(len(batch.images), -1))
    found = Loader(Store.open(store)).task(task)
    return logits(found.net, found.params, x)


def batches(store: Path, tests: list[Batch], router: str, size: int, classes: list[set[int]]) -> tuple[float, int]:
    """Share of single-task batches that are answered by the right task, or by one that knows the labels."""
    right = total = 0
    for batch in tests:
        assert batch.labels is not None
        order = np.random.default_rng(0).permutation(len(batch.images))
        for index in np.split(order[: len(order) // size * size], len(order) // size):
            part = Batch(batch.images[index], batch.labels[index], batch.source)
            found = predict(str(store), part, router=router, route="batch")
            answered = int(found.task[0].removeprefix("task")) - 1
            right += set(batch.labels[index].tolist()) <= classes[answered]
            total += 1
    return right / total, total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store = options.out / f"p6-seed{options.seed}"
    if store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    options.out.mkdir(parents=True, exist_ok=True)
    flags = [flag for pair in PAIRS for flag in ("--classes", pair)]
    data = options.out / "tasks"
    clmoe("tasks", "mnist", str(data), "--root", options.root, *flags, store=store)
    tests = [read_batch(str(data / f"task{i}.test.npz"), labels="required") for i in range(1, 7)]
    classes = [set(map(int, pair.split(","))) for pair in PAIRS]
    first: dict[int, torch.Tensor] = {}
    identical, matrix, seconds, started = True, [], [], time.monotonic()
    for i in range(1, 7):
        report = clmoe("learn", "--data", str(data / f"task{i}.npz"), "--seed", str(options.seed), store=store)
        seconds.append(report["seconds"])
        print(f"task {i}: {report['status']} in {report['expert']}, {report['seconds']:.1f} s", file=sys.stderr)
        for j in range(1, i + 1):
            now = outputs(store, f"task{j}", tests[j - 1])
            identical &= torch.equal(first.setdefault(j, now), now)
        matrix.append([predict(str(store), tests[j - 1], task=f"task{j}").accuracy for j in range(1, i + 1)])
    shown = clmoe("inspect", store=store)
    routing = {r: batches(store, tests, r, 128, classes) for r in ROUTERS}
    mixed = read_batch(str(data / "mixed.test.npz"), labels="required")
    single = {r: predict(str(store), mixed, router=r).accuracy for r in ROUTERS}
    masks = {f"task{i}": Store.open(store).read_subnetwork(f"task{i}").masks for i in range(1, 7)}
    mates = next(e["tasks"] for e in shown["experts"] if "task3" in e["tasks"])
    alone = sum(
        int((bits & ~np.any([bits & False, *(masks[t][layer] for t in mates if t != "task3")], axis=0)).sum())
        for layer, bits in masks["task3"].items()
    )
    pruned = clmoe("prune", "--task", "task3", "--yes", store=store)
    left = [i for i in range(1, 7) if i != 3]
    pruning = {
        "freed_parameters": pruned["freed_parameters"],
        "used_by_no_other_task": alone,
        "others_bit_identical": all(torch.equal(first[i], outputs(store, f"task{i}", tests[i - 1])) for i in left),
    }
    result = {
        "seed": options.seed,
        "accuracy_by_task": matrix[-1],
        "accuracy_mean": sum(matrix[-1]) / 6,
        "accuracy_after_every_task": matrix,
        "outputs_bit_identical_after_every_task": identical,
        "experts": [(e["id"], e["tasks"], e["layers"]) for e in shown["experts"]],
        "history": [
            {
                k: [x["frozen_percent"] for x in v["layers"]] + [v["output_rows"]["frozen_percent"]]
                for k, v in e["experts"].items()
            }
            for e in shown["history"]
        ],
        "batch128_right": routing,
        "single_image_label_right": single,
        "prune_task3": pruning,
        "learn_seconds": seconds,
        "seconds": time.monotonic() - started,
        "bytes": shown["bytes"],
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
