"""How scores, steps, learning, predicting, reading a store and its bytes grow; ``growth.png``.

    python benchmarks/growth.py --root MNIST_ROOT --out bench-out/growth [--tasks 100] [--part width images …]
    python benchmarks/growth.py --part vectors --vectors 1000 --out bench-out/growth   (needs no digits)

With tasks, classes, width and images. Digits as they are and with permuted pixels, two short epochs, one process; what
is learned does not matter here. ``vectors``: many small tasks of made-up features, with the bytes of their parts. Parts
that are not asked for are those of an earlier ``growth.json``.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from kernels import scores, step
from matplotlib.figure import Figure
from sequence import table, write
from task_bytes import PARTS as TASK_PARTS
from task_bytes import parts
from torchvision.datasets import MNIST

from clmoe_cli.api.copying import copy
from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import Store, layout

QUICK = Options(Schedule(epochs=2), Tolerance(epochs=1, final_epochs=2))
ASKED = 2000
COLUMNS = {
    "scores": "scores, ms", "step": "a step, ms", "learn": "learn, s", "predict": f"predict {ASKED}, s",
    "inspect": "inspect, s", "bytes": "MB on disk",
}  # fmt: skip
PARTS = ("classes", "width", "images", "tasks", "vectors")
COUNTS = (1, 3, 10, 30, 100, 300, 1000)
"""Tasks after which a store of many small ones is measured."""
WIDTH, EACH, ARCH = 64, 40, "mlp:32"
"""Numbers of a made-up vector, vectors of each class, and what learns them."""
ALONE, TOGETHER, LAST = 100, 50, 10
VECTORS = {
    "learn": "learn, s", "predict": "predict 1,000, s", "open": "open, s", "inspect": "inspect, s",
    "manifest": "manifest, kB", "gate": "gate, kB", "experts": "experts", "weights": "weights of a task, kB",
    "task": "its object, kB",
    **{f"task.{part}": f"{part}, kB" for part in TASK_PARTS}, "disk": "MB on disk",
}  # fmt: skip
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


def timed(use: Any, clock: Callable[[], float] = time.perf_counter) -> float:
    started = clock()
    use()
    return clock() - started


def worked(use: Any) -> float:
    """Seconds of the processor, which other programs beside take no part of; one thread each is what they mean."""
    return timed(use, time.process_time)


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


def made_up(number: int) -> tuple[Batch, Batch]:
    """A task of two classes of made-up vectors: those to learn, and as many to ask about."""
    rng = np.random.default_rng(number)
    means = rng.normal(0.0, 1.0, (2, 1, WIDTH))
    drawn = (means + 0.5 * rng.normal(size=(2, 2 * EACH, WIDTH))).astype(np.float32)
    labels = np.repeat(np.arange(2 * number, 2 * number + 2), EACH)
    learned, asked = (np.ascontiguousarray(drawn[:, half].reshape(-1, WIDTH)) for half in (np.s_[:EACH], np.s_[EACH:]))
    return Batch(learned, labels, "made up"), Batch(asked, labels, "made up")


def sizes(root: Path) -> dict[str, float]:
    """Bytes of a store's manifest, its gates, its last task and that task's share of its expert; all on disk."""
    store = Store.open(str(root))
    manifest, task = store.manifest, store.manifest.tasks[-1]
    expert = manifest.expert(task.expert)
    assert expert.weights is not None
    path = layout.object_path(root, task.subnetwork.sha256, task.subnetwork.suffix)
    return {
        "manifest": layout.manifest_path(root, manifest.generation).stat().st_size,
        "gate": sum(gate.solved.size for gate in manifest.gates),
        "experts": len(manifest.experts),
        "weights": expert.weights.size / len(manifest.tasks_of(expert.id)),
        "task": task.subnetwork.size,
        **{f"task.{part}": size for part, size in parts(path.read_bytes()).items()},
        "disk": sum(file.stat().st_size for file in root.rglob("*") if file.is_file()),
    }


def learn_vectors(store: Path, numbers: range) -> list[float]:
    """Learns these made-up tasks one after another, each where it places itself; processor seconds of each."""

    def one(number: int) -> None:
        learn(str(store), made_up(number)[0], LearnOptions(name=f"t{number}", arch=ARCH, if_known="new", method=QUICK))

    return [worked(lambda number=number: one(number)) for number in numbers]


def after_vectors(store: Path, tasks: int) -> Rows:
    """Many small tasks of made-up vectors in one store; ``learn``: the mean of the last ten.

    Beyond ``ALONE`` tasks others are learned in stores of ``TOGETHER`` and copied, but for the last ten before a store
    is measured.
    """
    found: Rows = {}
    seconds: list[float] = []
    have, part = 0, store.with_name("part")
    shutil.rmtree(store, ignore_errors=True)
    for count in sorted({*(n for n in COUNTS if n < tasks), tasks}):
        while count > ALONE and have < count - LAST:
            shutil.rmtree(part, ignore_errors=True)
            more = min(TOGETHER, count - LAST - have)
            learn_vectors(part, range(have, have + more))
            copy(str(part), str(store))
            have += more
        seconds += learn_vectors(store, range(have, count))
        have = count
        found[count] = {"learn": float(np.mean(seconds[-LAST:])), **asked_vectors(store, count), **sizes(store)}
        found[count] |= {"learn_least": min(seconds[-LAST:]), "learn_most": max(seconds[-LAST:])}
        print(count, found[count], file=sys.stderr, flush=True)
    shutil.rmtree(part, ignore_errors=True)
    return found


def asked_vectors(store: Path, count: int) -> dict[str, float]:
    """How long a store of so many made-up tasks takes to answer about 1,000 vectors of all of them, and to be read."""
    parts = [made_up(number)[1] for number in range(count)]
    x = np.concatenate([batch.images for batch in parts])
    y = np.concatenate([batch.labels for batch in parts if batch.labels is not None])
    chosen = np.random.default_rng(0).choice(len(x), 1000, replace=len(x) < 1000)
    mixed = Batch(x[chosen], y[chosen], "made up")
    return {
        "predict": min(worked(lambda: predict(str(store), mixed)) for _ in range(3)),
        "accuracy": predict(str(store), mixed).accuracy or 0.0,
        "open": min(worked(lambda: Store.open(str(store))) for _ in range(3)),
        "inspect": min(worked(lambda: inspect(str(store))) for _ in range(3)),
    }


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


def vectors_table(rows: Rows) -> str:
    """Seconds and bytes by the number of tasks; of ``learn`` the least and the greatest of the last ones as well."""
    unit = {"disk": 1e6} | {name: 1e3 for name, title in VECTORS.items() if title.endswith(", kB")}

    def cell(name: str, values: dict[str, float]) -> str:
        if name == "learn":
            return "{learn:.2f} ({learn_least:.2f} to {learn_most:.2f})".format(**values)
        return f"{values[name] / unit.get(name, 1):.{0 if name == 'experts' else 3}f}"

    return table(("tasks", *VECTORS.values()), [[n, *(cell(k, v) for k in VECTORS)] for n, v in rows.items()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="torchvision's root of MNIST, which all parts but vectors need")
    parser.add_argument("--out", type=Path, default=Path("bench-out/growth"))
    parser.add_argument("--tasks", type=int, default=100)
    parser.add_argument("--vectors", type=int, default=1000, help="tasks of made-up vectors")
    parser.add_argument("--part", nargs="*", choices=PARTS, default=PARTS)
    options = parser.parse_args()
    if options.root is None and set(options.part) != {"vectors"}:
        parser.error("--root is missing: parts other than vectors learn digits")
    options.out.mkdir(parents=True, exist_ok=True)
    made, earlier = options.out / "vectors", options.out / "growth.json"
    found: dict[str, Rows] = {}
    if set(options.part) != set(PARTS) and earlier.exists():
        found = {
            part: {int(n): row for n, row in rows.items()} for part, rows in json.loads(earlier.read_text()).items()
        }
    if options.root is not None:
        found |= of_digits(Digits(options.root), options)
    if "vectors" in options.part:
        learn(str(options.out / "warm"), made_up(0)[0], LearnOptions(arch=ARCH, method=QUICK))
        shutil.rmtree(options.out / "warm")
        found["vectors"] = after_vectors(made, options.vectors)
    others = {part: found[part] for part in PARTS[:-1] if part in found}
    if others:
        draw(others, options.out / "growth.png")
    cells = [
        [what, n, *(f"{values[k] / (1e6 if k == 'bytes' else 1):.2f}" if k in values else "" for k in COLUMNS)]
        for what, rows in others.items()
        for n, values in rows.items()
    ]
    text = table(("", "number", *COLUMNS.values()), cells) + "\n" if others else ""
    if "vectors" in found:
        text += "Tasks of two classes of made-up vectors, seconds of the processor:\n\n" + vectors_table(
            found["vectors"]
        )
    write(options.out, "growth", found, text)


def of_digits(digits: Digits, options: argparse.Namespace) -> dict[str, Rows]:
    """The parts that learn digits, those of them that are asked for."""
    store, one = options.out / "store", options.out / "one"
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
    found = {part: measure() for part, measure in measuring.items() if part in options.part}
    shutil.rmtree(one)
    return found


if __name__ == "__main__":
    main()
