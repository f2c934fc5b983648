"""How scores, steps, learning, predicting, reading a store and its bytes grow; ``growth.png``.

    python benchmarks/growth.py --root MNIST_ROOT --out bench-out/growth [--tasks 100] [--part width images …]

With tasks, classes, width and images. Digits as they are and with permuted pixels, two short epochs, one process; what
is learned does not matter here. Parts that are not asked for are those of an earlier ``growth.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kernels import scores, step
from matplotlib.figure import Figure
from sequence import table, write
from torchvision.datasets import MNIST

from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule

QUICK = Options(Schedule(epochs=2), Tolerance(epochs=1, final_epochs=2))
ASKED = 2000
COLUMNS = {
    "scores": "scores, ms", "step": "a step, ms", "learn": "learn, s", "predict": f"predict {ASKED}, s",
    "inspect": "inspect, s", "bytes": "MB on disk",
}  # fmt: skip
PARTS = ("classes", "width", "images", "tasks")
Rows = dict[int, dict[str, float]]


class Digits:
    """Images of digits, permuted by a number (0: as they are); classes beyond ten are digits permuted otherwise."""

    def __init__(self, root: str) -> None:
        data = MNIST(root, train=True)
        self.images, self.labels = data.data.numpy().reshape(-1, 784), data.targets.numpy()

    def batch(self, seed: int, classes: int, images: int, first: int = 0) -> Batch:
        """So many images; label ``first`` and those after it."""
        rng, parts = np.random.default_rng(seed), []
        for c in range(classes):
            order = np.random.default_rng((first + c) // 10).permutation(784) if first + c >= 10 else np.arange(784)
            own = np.flatnonzero(self.labels == (first + c) % 10)
            chosen = rng.choice(own, max(1, images // classes), replace=images // classes > len(own))
            parts.append(self.images[chosen][:, order])
        y = np.repeat(np.arange(first, first + classes), [len(part) for part in parts])
        mixed = rng.permutation(len(y))
        return Batch(np.concatenate(parts)[mixed].reshape(-1, 1, 28, 28), y[mixed], "digits")


def timed(use: Any) -> float:
    started = time.perf_counter()
    use()
    return time.perf_counter() - started


def measured(store: Path, took: float, asked: Batch) -> dict[str, float]:
    predicted = min(timed(lambda: predict(str(store), asked)) for _ in range(3))
    read = min(timed(lambda: inspect(str(store))) for _ in range(3))
    size = inspect(str(store)).bytes.total
    return {"learn": took, "predict": predicted, "inspect": read, "bytes": size}


def once(store: Path, batch: Batch, arch: str) -> dict[str, float]:
    """One task in a store of its own."""
    shutil.rmtree(store, ignore_errors=True)
    took = timed(lambda: learn(str(store), batch, LearnOptions(arch=arch, method=QUICK)))
    index = np.arange(ASKED) % len(batch.images)
    return measured(store, took, Batch(batch.images[index], None, "digits"))


def kernels(widths: int = 500, classes: int = 10, images: int = 256) -> dict[str, float]:
    """Milliseconds of the gradient scores of so many images, and of a step of 128."""
    sizes = (784, widths, widths)
    return {
        "scores": scores(3, images, sizes, classes)["milliseconds"],
        "step": step(3, widths=sizes, classes=classes)["milliseconds"],
    }


def after_tasks(store: Path, digits: Digits, tasks: int) -> Rows:
    """Task after task in one store, of two classes each."""
    shutil.rmtree(store, ignore_errors=True)
    found, asked = {}, digits.batch(1, 10, ASKED)
    for i in range(tasks):
        batch = digits.batch(i, 2, 600, first=2 * i)
        settings = LearnOptions(arch="mlp:500,500", if_known="new", method=QUICK)
        took = timed(lambda batch=batch, settings=settings: learn(str(store), batch, settings))
        if i + 1 in (1, 2, 6, 12, 25, 50, 100, tasks):
            found[i + 1] = measured(store, took, Batch(asked.images, None, "digits"))
    return found


def draw(found: dict[str, Rows], path: Path) -> None:
    """A row for each thing that grows, a column for what it grows with."""
    figure = Figure(figsize=(13, 13), layout="constrained")
    for row, (column, title) in zip(figure.subplots(len(COLUMNS), len(found)), COLUMNS.items(), strict=True):
        for axis, (what, rows) in zip(row, found.items(), strict=True):
            if column not in next(iter(rows.values())):
                axis.set_axis_off()
                continue
            unit = 1e6 if column == "bytes" else 1.0
            axis.plot(list(rows), [values[column] / unit for values in rows.values()], marker="o")
            axis.set(xlabel=what, xlim=(0, None), ylim=(0, None))
            axis.set_ylabel(title)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/growth"))
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--part", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    digits, store, one = Digits(options.root), options.out / "store", options.out / "one"
    options.out.mkdir(parents=True, exist_ok=True)
    once(one, digits.batch(0, 2, 500), "mlp:500,500")  # what is imported late is not measured
    measuring: dict[str, Callable[[], Rows]] = {
        "classes": lambda: {
            n: once(one, digits.batch(0, n, 200 * n), "mlp:500,500") | kernels(classes=n) for n in (2, 5, 10, 20, 50)
        },
        "width": lambda: {
            n: once(one, digits.batch(0, 2, 2000), f"mlp:{n},{n}") | kernels(n) for n in (100, 250, 500, 1000, 2000)
        },
        "images": lambda: {
            n: once(one, digits.batch(0, 2, n), "mlp:500,500") | kernels(images=n)
            for n in (500, 1000, 2000, 5000, 10_000)
        },
        "tasks": lambda: after_tasks(store, digits, options.tasks),
    }
    before = {} if set(options.part) == set(PARTS) else json.loads((options.out / "growth.json").read_text())
    found: dict[str, Rows] = {
        part: measuring[part]() if part in options.part else {int(n): row for n, row in before[part].items()}
        for part in PARTS
    }
    shutil.rmtree(one)
    draw(found, options.out / "growth.png")
    cells = [
        [what, n, *(f"{values[k] / (1e6 if k == 'bytes' else 1):.2f}" if k in values else "" for k in COLUMNS)]
        for what, rows in found.items()
        for n, values in rows.items()
    ]
    write(options.out, "growth", found, table(("", "number", *COLUMNS.values()), cells))


if __name__ == "__main__":
    main()
