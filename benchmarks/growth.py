"""How learning, predicting, reading a store and its bytes grow with tasks, classes, width and images; ``growth.png``.

    python benchmarks/growth.py --root MNIST_ROOT --out bench-out/growth [--tasks 100]

Digits as they are and with permuted pixels, two short epochs, one process. What is learned does not matter here.
"""

from __future__ import annotations

import argparse
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from sequence import table, write
from torchvision.datasets import MNIST

from clmoe_cli.commands.inspect import inspect
from clmoe_cli.commands.learn import learn
from clmoe_cli.commands.options import LearnOptions
from clmoe_cli.commands.predict import predict
from clmoe_cli.continual.learning import Options
from clmoe_cli.continual.selection import Tolerance
from clmoe_cli.continual.training import Schedule
from clmoe_cli.data import Batch

QUICK = Options(Schedule(epochs=2), Tolerance(epochs=1, final_epochs=2))
ASKED = 2000
COLUMNS = ("learn", "predict", "inspect", "bytes")


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
    size = inspect(str(store)).bytes["total"]
    return {"learn": took, "predict": predicted, "inspect": read, "bytes": size}


def once(store: Path, batch: Batch, arch: str) -> dict[str, float]:
    """One task in a store of its own."""
    shutil.rmtree(store, ignore_errors=True)
    took = timed(lambda: learn(str(store), batch, LearnOptions(arch=arch, method=QUICK)))
    index = np.arange(ASKED) % len(batch.images)
    return measured(store, took, Batch(batch.images[index], None, "digits"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/growth"))
    parser.add_argument("--tasks", type=int, default=100)
    options = parser.parse_args()
    digits, store = Digits(options.root), options.out / "store"
    options.out.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(store, ignore_errors=True)
    once(store, digits.batch(0, 2, 500), "mlp:500,500")  # what is imported late is not measured
    found: dict[str, dict[int, dict[str, float]]] = {}
    found["classes"] = {n: once(store, digits.batch(0, n, 200 * n), "mlp:500,500") for n in (2, 5, 10, 20, 50)}
    found["width"] = {n: once(store, digits.batch(0, 2, 2000), f"mlp:{n},{n}") for n in (100, 250, 500, 1000, 2000)}
    found["images"] = {n: once(store, digits.batch(0, 2, n), "mlp:500,500") for n in (500, 1000, 2000, 5000, 10_000)}
    shutil.rmtree(store, ignore_errors=True)
    found["tasks"], asked = {}, digits.batch(1, 10, ASKED)
    for i in range(options.tasks):
        batch = digits.batch(i, 2, 600, first=2 * i)
        settings = LearnOptions(arch="mlp:500,500", if_known="new", method=QUICK)
        took = timed(lambda batch=batch, settings=settings: learn(str(store), batch, settings))
        if i + 1 in (1, 2, 6, 12, 25, 50, 100, options.tasks):
            found["tasks"][i + 1] = measured(store, took, Batch(asked.images, None, "digits"))
    figure = Figure(figsize=(13, 9), layout="constrained")
    for row, column in zip(figure.subplots(len(COLUMNS), len(found)), COLUMNS, strict=True):
        for axis, (what, rows) in zip(row, found.items(), strict=True):
            axis.plot(list(rows), [values[column] for values in rows.values()], marker="o")
            axis.set(xlabel=what, xscale="log", ylim=(0, None))
            axis.set_ylabel(column if column == "bytes" else f"{column}, s")
    figure.savefig(options.out / "growth.png", dpi=90)
    cells = [
        [what, n, *(f"{values[k]:.2f}" for k in COLUMNS[:3]), f"{values['bytes']:.0f}"]
        for what, rows in found.items()
        for n, values in rows.items()
    ]
    header = ("", "number", "learn, s", f"predict {ASKED} images, s", "inspect, s", "bytes")
    write(options.out, "growth", found, table(header, cells))


if __name__ == "__main__":
    main()
