"""Colour pictures in folders: six tasks learned one after another, every picture by itself, beside joint training.

    python benchmarks/colour.py --out bench-out/colour

The pictures are those of ``scenes.py``; twelve classes, 1,000 training and 200 test pictures each. ``--train``,
``--test``, ``--tasks`` and ``--epochs`` make it small.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import sequence
from joint import load, reference
from scenes import TASKS, make_folders

from clmoe_cli.method.subnetwork.training import Schedule


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out/colour"))
    parser.add_argument("--arch", default="cnn:32,64,128")
    parser.add_argument("--side", type=int, default=32, help="pixels of a picture's side")
    parser.add_argument("--tasks", type=int, default=len(TASKS))
    parser.add_argument("--train", type=int, default=1000, help="training pictures of a class")
    parser.add_argument("--test", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store, data = options.out / f"store{options.seed}", options.out / "pictures"
    if store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    if not data.exists():
        make_folders(
            data,
            train=options.train,
            test=options.test,
            side=options.side,
            seed=options.seed,
            tasks=options.tasks,
        )
    tasks = TASKS[: options.tasks]
    trains, tests = ([data / f"task{i}" / part for i in range(1, len(tasks) + 1)] for part in ("train", "test"))
    flags = ("--arch", options.arch, "--seed", str(options.seed), "--epochs", str(options.epochs))
    result = sequence.learn_all(store, list(map(str, trains)), list(map(str, tests)), flags)
    result["routers"] = sequence.without_id(store, str(data / "mixed"))
    names = [name for classes in tasks for name in classes]
    own = [[names.index(name) for name in classes] for classes in tasks]
    parts = load(trains, names), load([data / "mixed"], names)
    result["joint"] = reference(*parts, own, options.arch, options.seed, options.epochs)
    result |= {"tasks": tasks, "arch": options.arch, "seed": options.seed, "train": options.train}
    title = f"Colour pictures with {options.arch}, {options.train} of each class, seed {options.seed}"
    told = "".join(f"\ntask{i}: {', '.join(classes)}  " for i, classes in enumerate(tasks, 1))
    sequence.write(options.out, "colour", result, sequence.report(title, result, result["joint"]) + told + "\n")


if __name__ == "__main__":
    main()
