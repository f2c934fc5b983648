"""Do the defaults work without a flag? 8×8 digits, the 5,000 offline images, permuted pixels, 20 images a class.

    python benchmarks/defaults.py --root MNIST_ROOT --out bench-out/defaults

Each row is a store of its own: the tasks in their order, then what became of them. Held-out images are those that
no task was given; of MNIST only training images are used. ``foreign`` tasks must not be placed beside the others.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper import PAIRS, dense_reference
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.tasks import TasksOptions, make_tasks
from clmoe_cli.data import Batch, read_batch

Task = tuple[Batch, Batch, bool]
"""Images to learn, images to ask, and whether the task is foreign to those before it."""


def parted(
    images: np.ndarray[Any, Any], labels: np.ndarray[Any, Any], learn_images: int, foreign: bool = False
) -> Task:
    """Cuts images into those to learn and at most 2,000 to ask."""
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = np.ascontiguousarray(images[order]), labels[order]
    asked = slice(learn_images, learn_images + 2000)
    return Batch(images[:learn_images], labels[:learn_images], ""), Batch(images[asked], labels[asked], ""), foreign


def digits8() -> list[Task]:
    """Five pairs of scikit-learn's 8×8 digits, as vectors of 0 to 16, 250 images each to learn."""
    data = load_digits()
    pairs = [np.isin(data.target, pair) for pair in ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))]
    return [parted(data.data[own].astype(np.float32), data.target[own], 250) for own in pairs]


def offline(folder: Path) -> list[Task]:
    """P6 on the 5,000 offline images."""
    make_tasks("mnist5k", folder, TasksOptions(classes=PAIRS))
    files = [(folder / f"task{i}.npz", folder / f"task{i}.test.npz") for i in range(1, len(PAIRS) + 1)]
    return [
        (read_batch(str(learn), labels="required"), read_batch(str(test), labels="required"), False)
        for learn, test in files
    ]


def pair_of(data: MNIST, pair: tuple[int, ...]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Images [N, 1, 28, 28] and labels of these digits."""
    own = torch.isin(data.targets, torch.tensor(pair))
    return data.data[own][:, None].numpy(), data.targets[own].numpy()


def permuted(root: str) -> list[Task]:
    """Three pairs of MNIST as they are, then two of them with permuted pixels."""
    data = MNIST(root, train=True)
    tasks = [parted(*pair_of(data, pair), 3000) for pair in PAIRS[:3]]
    order = np.random.default_rng(5).permutation(784)
    for pair in PAIRS[:2]:
        images, labels = pair_of(data, pair)
        shuffled = images.reshape(len(images), 784)[:, order].reshape(images.shape)
        tasks.append(parted(shuffled, labels, 3000, foreign=True))
    return tasks


def ten_classes(root: str) -> list[Task]:
    """All ten digits as one task."""
    data = MNIST(root, train=True)
    return [parted(*pair_of(data, tuple(range(10))), 20_000)]


def measure(name: str, tasks: list[Task], out: Path) -> dict[str, Any]:
    """Learns the tasks one after another with default options, then asks."""
    store = str(out / name)
    rows = []
    for number, (batch, asked, foreign) in enumerate(tasks, 1):
        report = learn(store, batch, LearnOptions())
        rows.append(
            {
                "task": report.task,
                "status": report.status,
                "expert": report.expert,
                "foreign": foreign,
                "reads": list(report.reads),
                "seconds": report.seconds,
                "frozen": [layer.frozen_percent for layer in report.layers],
                "dense": dense_reference(batch, asked, "mlp:500,500", 0, number)[0],
            }
        )
    for row, (_, asked, _) in zip(rows, tasks, strict=True):
        row["accuracy"] = predict(store, asked, task=row["task"]).accuracy
        found = detect(store, Batch(asked.images[:128], None, ""))
        row["detect"] = [found.verdict, found.task, found.p_value]
    home = [row["expert"] for row in rows if not row["foreign"]]
    return {
        "name": name,
        "accuracy": float(np.mean([row["accuracy"] for row in rows])),
        "dense": float(np.mean([row["dense"] for row in rows])),
        "experts": len({row["expert"] for row in rows}),
        "foreign_apart": all(row["expert"] not in home for row in rows if row["foreign"]),
        "known_again": sum(row["detect"][:2] == ["known", row["task"]] for row in rows),
        "tasks": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/defaults"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases = {
        "digits-8x8": digits8(),
        "mnist5k": offline(options.out / "tasks"),
        "permuted": permuted(options.root),
        "ten-classes": ten_classes(options.root),
    }
    results = []
    for name, tasks in cases.items():
        results.append(measure(name, tasks, options.out))
        (options.out / "defaults.json").write_text(json.dumps(results, indent=1))
        print(json.dumps({key: value for key, value in results[-1].items() if key != "tasks"}), flush=True)


if __name__ == "__main__":
    main()
