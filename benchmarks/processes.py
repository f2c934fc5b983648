"""One task learned by one process, by one with two threads, and by two processes: seconds, masks, accuracy.

Float32 sums in another order, and over thousands of steps that grows. How much of it is the processes' doing is told by
a fourth way: one process, and every pixel moved to the next number that float32 has.

    python benchmarks/processes.py --root MNIST_ROOT --out bench-out/processes
    python benchmarks/processes.py --images 200 --epochs 2 --repeat 1 --arch mlp:100,100   (offline images: to try it)

Taken by turns, in an order that changes from one repetition to the next; every repetition has a seed of its own.
Training is timed from the first line of progress to the last, the whole of ``learn`` as it reports it. It needs a
machine with two idle cores.
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
from p6 import PAIRS
from sequence import table, write

from clmoe_cli.api.predict import predict
from clmoe_cli.api.tasks import TasksOptions, make_tasks, parse_classes
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.store_tensors import Loader
from store_schema import Store

Row = dict[str, Any]
NUDGED = "1 process, last bits of the images changed"
WAYS = {"1 process": (1, 1), "1 process, 2 threads": (1, 2), "2 processes": (2, 1), NUDGED: (1, 1)}
"""Name → processes, threads of each."""


def learn(data: Path, store: Path, way: str, flags: list[str]) -> Row:
    """Seconds of one learn: of training (between its lines of progress), of all as reported, of the command."""
    processes, threads = WAYS[way]
    launch = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [
        sys.executable,
        *launch,
        "-m",
        "clmoe_cli",
        "learn",
        "--data",
        str(data),
        "--store",
        str(store),
        "--json",
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    started, lines = time.monotonic(), []
    with subprocess.Popen(
        [*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        said = []
        for line in running.stderr:
            said.append(line)
            if "held-out" in line:
                lines.append(time.monotonic())
        report = json.loads(running.stdout.read() or "{}")
    if running.returncode:
        raise SystemExit(f"{way}: exit {running.returncode}: {''.join(said)}")
    if report["status"] != "learned" or len(lines) < 2:
        raise SystemExit(f"{way}: {report['status']} after {len(lines)} epochs")
    return {
        "training": lines[-1] - lines[0],
        "epochs": len(lines) - 1,
        "learn": report["seconds"],
        "command": time.monotonic() - started,
    }


def differences(first: Path, second: Path) -> Row:
    """Bits of the task's mask that differ, as a share of those that the first selects, and the overlap (kappa)."""
    a, b = (Loader(Store.open(store)).task("task1").mask for store in (first, second))
    differing = sum(int((a[name] != b[name]).sum()) for name in a)
    return {"differing": differing / max(1, masks.count(a)), "overlap": masks.agreement(a, b).overlap}


def nudge(data: Path, path: Path) -> None:
    """The same images as float32 in 0 to 1, each pixel above 0 the next larger number that there is."""
    batch = read_batch(str(data), labels="required")
    images = batch.scaled()
    np.savez(path, x=np.where(images > 0, np.nextafter(images, np.float32(2)), images), y=batch.labels)


def repetition(out: Path, data: Path, test: Batch, arch: str, number: int, flags: list[str]) -> dict[str, Row]:
    """Every way once; the one that begins is another one each time."""
    order = list(WAYS)[number % len(WAYS) :] + list(WAYS)[: number % len(WAYS)]
    name = arch.replace(":", "-").replace(",", "-")
    stores = {way: out / f"{name}-{number}-{i}" for i, way in enumerate(WAYS)}
    flags = [*flags, "--arch", arch, "--seed", str(number)]
    files = dict.fromkeys(WAYS, data) | {NUDGED: data.with_name("nudged.npz")}
    found = {way: learn(files[way], stores[way], way, flags) for way in order}
    for way, row in found.items():
        accuracy = predict(str(stores[way]), test, task="task1").accuracy
        row |= differences(stores["1 process"], stores[way]) | {"accuracy": accuracy}
        print(f"{arch} {number} {way}: {row}", file=sys.stderr, flush=True)
    return found


def summary(rows: list[dict[str, Row]]) -> dict[str, Row]:
    """Means over repetitions; speed-ups within each repetition, with the least and the greatest."""
    found: dict[str, Row] = {}
    for way in WAYS:
        mean = {key: float(np.mean([row[way][key] for row in rows])) for key in rows[0][way]}
        for key in ("training", "learn", "command"):
            ratios = [row["1 process"][key] / row[way][key] for row in rows]
            mean[f"{key}_speedup"] = [float(f(ratios)) for f in (np.mean, np.min, np.max)]
        found[way] = mean
    return found


def report(results: dict[str, dict[str, Row]], images: int) -> str:
    header = ("arch", "way", "training, s", "speed-up", "learn, s", "speed-up", "bits that differ", "kappa", "test")
    cells = []
    for arch, ways in results.items():
        for way, row in ways.items():
            speed = ["{:.2f} ({:.2f} to {:.2f})".format(*row[f"{key}_speedup"]) for key in ("training", "learn")]
            seconds = [f"{row[key]:.1f}" for key in ("training", "learn")]
            cells.append([arch, way, seconds[0], speed[0], seconds[1], speed[1]])
            cells[-1] += [f"{100 * row['differing']:.2f} %", f"{row['overlap']:.3f}", f"{100 * row['accuracy']:.2f} %"]
    return f"# Several processes: one task of {images} images\n\n" + table(header, cells)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", help="torchvision's root of MNIST; without it the 5,000 offline images")
    parser.add_argument("--out", type=Path, default=Path("bench-out/processes"))
    parser.add_argument("--arch", nargs="+", default=["mlp:500,500", "cnn:32,64,128"])
    parser.add_argument("--images", type=int, help="at most so many training images")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--batch-size", type=int, default=Schedule().batch_size)
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists: remove it first")
    source, folder = "mnist" if options.root else "mnist5k", options.out / "tasks"
    few = options.images and options.images // 2
    make_tasks(source, folder, TasksOptions(classes=[parse_classes(PAIRS[0])], root=options.root, per_class=few))
    data, test = folder / "task1.npz", read_batch(str(folder / "task1.test.npz"), labels="required")
    nudge(data, folder / "nudged.npz")
    flags = ["--epochs", str(options.epochs), "--batch-size", str(options.batch_size)]
    runs = {
        arch: [repetition(options.out, data, test, arch, number, flags) for number in range(options.repeat)]
        for arch in options.arch
    }
    results = {arch: summary(rows) for arch, rows in runs.items()}
    images = len(read_batch(str(data), labels="required").images)
    result = {"source": source, "images": images, "cores": os.cpu_count(), "results": results, "runs": runs}
    write(options.out, "processes", result, report(results, images))


if __name__ == "__main__":
    main()
