"""P6 of the paper with a convolutional expert, each ``learn`` a process of its own, beside joint training.

    python benchmarks/cnn.py --root MNIST_ROOT --out bench-out/cnn
    python benchmarks/cnn.py --images 200 --epochs 2 --arch mlp:100,100      (offline images: only to try it)

Reported: accuracy with the task given and of every image by itself, what later tasks changed, frozen shares, seconds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sequence
import torch
from joint import Images, reference
from paper import PAIRS

from clmoe_cli.api.tasks import TasksOptions, make_tasks
from clmoe_cli.data import read_batch
from clmoe_cli.method.subnetwork.training import Schedule


def once(files: Sequence[str]) -> Images:
    """All images of the files, those of a digit that is in several tasks from the first."""
    seen: set[int | str] = set()
    x, y = [], []
    for file in files:
        batch = read_batch(file, labels="required")
        assert batch.labels is not None
        new = ~np.isin(batch.labels, sorted(seen))
        x.append(batch.images[new])
        y.append(batch.labels[new])
        seen |= set(batch.classes())
    return Images(torch.from_numpy(np.concatenate(x)), torch.from_numpy(np.concatenate(y)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="torchvision's root of MNIST; without it the 5,000 offline images")
    parser.add_argument("--out", type=Path, default=Path("bench-out/cnn"))
    parser.add_argument("--arch", default="cnn:32,64,128")
    parser.add_argument("--images", type=int, help="at most so many training images a task")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--max-drop", type=float, default=0.3, help="as of learn")
    parser.add_argument("--part", choices=("learn", "joint", "both"), default="both", help="what to do of it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store, data = options.out / f"store{options.seed}", options.out / "tasks"
    if options.part != "joint" and store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    source = "mnist" if options.root else "mnist5k"
    few = options.images and options.images // 2
    make_tasks(source, data, TasksOptions(classes=PAIRS, root=options.root, per_class=few))
    trains, tests = ([str(data / f"task{i}{part}.npz") for i in range(1, 7)] for part in ("", ".test"))
    flags = ("--arch", options.arch, "--seed", str(options.seed), "--epochs", str(options.epochs))
    whole = None
    if options.part != "learn":
        parts = once(trains), once([str(data / "mixed.test.npz")])
        whole = reference(*parts, PAIRS, options.arch, options.seed, options.epochs)
        print(json.dumps(whole))
    if options.part == "joint":
        return
    result = sequence.learn_all(store, trains, tests, (*flags, "--max-drop", str(options.max_drop)))
    result["routers"] = sequence.without_id(store, str(data / "mixed.test.npz"))
    result |= {"source": source, "seed": options.seed, "images": options.images, "max_drop": options.max_drop}
    result |= {"arch": options.arch, "joint": whole}
    title = f"P6 with {options.arch} on {source}, seed {options.seed}"
    sequence.write(options.out, "cnn", result, sequence.report(title, result, whole))


if __name__ == "__main__":
    main()
