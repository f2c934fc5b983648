"""Knowledge transfer: few images of a later P6 task, learned after its predecessors against an empty store.

    python benchmarks/transfer.py --root MNIST_ROOT --stores STORE… --out bench-out/transfer

``STORE``: finished P6 stores, as ``benchmarks/paper.py`` leaves them. The store before task i is a copy from which
tasks i to 6 are pruned: what remains is bit-identical to what was there before they were learned. Three ways
are compared on the same images: ``store`` (default placement), ``blind`` (the same expert, nothing read) and ``empty``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from concurrent.futures import ProcessPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torchvision.datasets import MNIST

from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.data import Batch
from clmoe_cli.method.tasks.placement import Thresholds
from store_schema import Store

PAIRS = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
HELD_OUT = 10_000


def pool(root: str, pair: tuple[int, int], part: str) -> Batch:
    """Images of a pair: ``train`` (the first 50,000 of the training set), ``held-out`` (the rest), ``test``."""
    data = MNIST(root, train=part != "test")
    images, labels = data.data, data.targets
    if part != "test":
        cut = len(images) - HELD_OUT
        images, labels = (images[:cut], labels[:cut]) if part == "train" else (images[cut:], labels[cut:])
    own = torch.isin(labels, torch.tensor(pair))
    return Batch(images[own][:, None].contiguous().numpy(), labels[own].numpy(), part)


def few(batch: Batch, images: int, seed: int) -> Batch:
    """So many images of each class."""
    rng = np.random.default_rng(seed)
    assert batch.labels is not None
    index = np.concatenate([rng.permutation(np.flatnonzero(batch.labels == c))[:images] for c in batch.classes()])
    return Batch(batch.images[index], batch.labels[index], batch.source)


def measure(job: tuple[str, str, int, int, int, str, list[str]]) -> dict[str, Any]:
    """One task, one number of images, one seed: accuracy each way."""
    root, store, number, images, seed, part, ways = job
    torch.set_num_threads(1)
    pair = PAIRS[number - 1]
    data = few(pool(root, pair, "train"), images, seed)
    asked = pool(root, pair, part)
    row: dict[str, Any] = {"task": number, "pair": pair, "images": images, "seed": seed, "store": store}
    with tempfile.TemporaryDirectory() as folder:
        before = str(shutil.copytree(store, f"{folder}/before"))
        for later in range(number, len(PAIRS) + 1):
            prune(before, PruneOptions(task=f"task{later}"), lambda plan: True)
        for way in ways:
            place = f"{folder}/{way}"
            if way != "empty":
                shutil.copytree(before, place)
            home = Store.open(before).manifest.tasks[0].expert
            options = {
                "store": LearnOptions(name="few"),
                "blind": LearnOptions(name="few", expert=home, thresholds=Thresholds(least=2.0)),
                "empty": LearnOptions(name="few", seed=seed),
            }[way]
            report = learn(place, data, options)
            row[way] = predict(place, asked, task="few").accuracy
            row[f"{way}_reads"] = len(report.reads)
            row[f"{way}_selected"] = sum(layer.selected for layer in report.layers)
            row[f"{way}_seconds"] = report.seconds
    return row


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean accuracy each way, and the gain over an empty store in points with its standard error."""
    result = []
    for images in sorted({row["images"] for row in rows}):
        for tasks in (None, *sorted({row["task"] for row in rows if row["images"] == images})):
            same = [r for r in rows if r["images"] == images and tasks in (None, r["task"])]
            gain = 100 * np.array([r["store"] - r["empty"] for r in same])
            result.append(
                {"images_per_class": images, "task": tasks or "all", "n": len(same)}
                | {
                    way: round(100 * float(np.mean([r[way] for r in same])), 2)
                    for way in ("store", "blind", "empty")
                    if way in same[0]
                }
                | {"gain": round(float(gain.mean()), 2), "error": round(float(gain.std() / len(gain) ** 0.5), 2)}
                | {"read": float(np.mean([r["store_reads"] for r in same]))}
            )
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--stores", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/transfer"))
    parser.add_argument("--images", type=int, nargs="+", default=[10, 25, 50, 100])
    parser.add_argument("--tasks", type=int, nargs="+", default=[3, 4, 5, 6])
    parser.add_argument("--ways", nargs="+", default=["store", "empty"], help="also: blind")
    parser.add_argument("--part", choices=("test", "held-out"), default="test")
    parser.add_argument("--jobs", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        (options.root, store, task, images, seed, options.part, options.ways)
        for images, task, (seed, store) in product(options.images, options.tasks, enumerate(options.stores))
    ]
    rows: list[dict[str, Any]] = []
    with ProcessPoolExecutor(options.jobs) as processes:
        for row in processes.map(measure, jobs):
            rows.append(row)
            (options.out / "transfer.json").write_text(json.dumps({"summary": summarise(rows), "rows": rows}, indent=1))
    for line in summarise(rows):
        print(json.dumps(line))


if __name__ == "__main__":
    main()
