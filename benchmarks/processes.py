"""When several processes pay: a step, a whole task, and answers, by one process and by two on two cores.

    python benchmarks/processes.py --root MNIST_ROOT --out bench-out/processes
    python benchmarks/processes.py --part steps answers   (needs no digits; seven minutes)
    python benchmarks/processes.py --part task --images 200 --epochs 2 --repeat 1 --arch mlp:100,100   (to try it)

``steps``: seconds of a step of training by what it costs, by one process, by one with two threads, by two, and by two
agents of ``torchrun`` that meet over the network of this machine as two machines would. ``answers``: ``predict`` of
pictures through ``lite0`` and of digits, and whether the files are the same to the byte. ``task``: one task learned in
each way: seconds, masks, accuracy. Float32 sums in another order, and over thousands of steps that grows. How much of
it is the processes' doing is told by one more way: one process, and every pixel moved to the next number that float32
has.

Ways are taken by turns, in an order that changes from one repetition to the next; every repetition has a seed of its
own. Of a task, training is timed from the first line of progress to the last, the whole of ``learn`` as it reports it.
It needs a machine with two idle cores.
"""

from __future__ import annotations

import argparse
import contextlib
import filecmp
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from p6 import PAIRS
from pictures_per_second import make
from sequence import table, write

from clmoe_cli.api.predict import predict
from clmoe_cli.api.tasks import TasksOptions, make_tasks, parse_classes
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.training import Moving, Part, Run, Schedule, adam, dropout, run_epoch, step_seconds
from clmoe_cli.runtime.distributed.processes import leading, together
from clmoe_cli.store_tensors import Loader
from store_schema import Store

Row = dict[str, Any]
ONE, THREADS, TWO, MACHINES = "1 process", "1 process, 2 threads", "2 processes", "2 agents on loopback"
NUDGED = "1 process, last bits of the images changed"
WAYS = {ONE: (1, 1), THREADS: (1, 2), TWO: (2, 1), MACHINES: (2, 1), NUDGED: (1, 1)}
"""Name → processes, threads of each."""
STEPS = {
    "mlp:500,500": (1, 28, 28), "cnn:8,16": (1, 28, 28), "cnn:32,64,128": (3, 32, 32), "resnet9": (3, 32, 32),
}  # fmt: skip
"""Architectures, from cheap steps to dear ones, and the pictures that they read."""
TIMED = 4.0
"""Seconds of steps that are timed, about."""


@contextlib.contextmanager
def running(way: str, program: list[str]) -> Iterator[subprocess.Popen[str]]:
    """A program of Python in one of the ways; of two agents the first, which has the output of process 0."""
    processes, threads = WAYS[way]
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    torchrun = [sys.executable, "-m", "torch.distributed.run"]
    second = None
    if way == MACHINES:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = ("--master-addr=127.0.0.1", f"--master-port={free.getsockname()[1]}")
        how = ["--nnodes=2", "--nproc-per-node=1", *meeting]
        first = [*torchrun, *how, "--node-rank=0", *program]
        other = [*torchrun, *how, "--node-rank=1", *program]
        second = subprocess.Popen(other, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment)
    elif processes > 1:
        first = [*torchrun, "--standalone", f"--nproc-per-node={processes}", *program]
    else:
        first = [sys.executable, *program]
    pipe = subprocess.PIPE
    try:
        with subprocess.Popen(first, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            yield process
    finally:
        if second is not None:
            second.wait(timeout=60)


def clmoe(way: str, *args: object) -> float:
    """Seconds of a command that runs in one of the ways."""
    started = time.monotonic()
    with running(way, ["-m", "clmoe_cli", *map(str, args)]) as process:
        said = process.communicate()[1]
    if process.returncode:
        raise SystemExit(f"{way}: exit {process.returncode}: {said}")
    return time.monotonic() - started


def learn(data: Path, store: Path, way: str, flags: list[str]) -> Row:
    """Seconds of one learn: of training (between its lines of progress), of all as reported, of the command."""
    program = ["-m", "clmoe_cli", "learn", "--data", str(data), "--store", str(store)]
    program += ["--name", "task1", "--json", *flags]
    started, lines, said = time.monotonic(), [], []
    with running(way, program) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        for line in process.stderr:
            said.append(line)
            if "  validation " in line:
                lines.append(time.monotonic())
        report = json.loads(process.stdout.read() or "{}")
    if process.returncode:
        raise SystemExit(f"{way}: exit {process.returncode}: {''.join(said)}")
    if report["status"] != "learned" or len(lines) < 2:
        raise SystemExit(f"{way}: {report['status']} after {len(lines)} epochs")
    return {
        "training": lines[-1] - lines[0],
        "epochs": len(lines) - 1,
        "learn": report["seconds"],
        "command": time.monotonic() - started,
    }


def time_steps(arch: str, seconds: float) -> None:
    """Prints, as one of the processes of a run, how long a step of 128 made-up pictures takes."""
    with together("cpu"):
        generator = torch.Generator().manual_seed(0)
        shape = STEPS[arch]
        net = parse_arch(arch, shape)
        data = Labelled(torch.rand(1024, int(np.prod(shape)), generator=generator), torch.arange(1024) % 2)
        run = Run(net, data, data, Schedule(batch_size=128, patience=1), generator)
        params = net.ordered(net.initial_shared(generator) | net.initial_owned(2, generator))
        about = step_seconds(run, params, {})
        count = max(3, round(seconds / about))
        moving, drop = Moving.of(params, {}, adam(1e-3)), dropout(net.layers[0], run.schedule.dropout, generator)
        left, started = count, time.perf_counter()
        while left > 0:
            most = min(left, 8)
            run_epoch(run, moving, drop, part=Part(most=most))
            left -= most
        took = (time.perf_counter() - started) / count
        if leading():
            print(json.dumps({"step": took, "steps": count, "weights": sum(v.numel() for v in params.values())}))


def steps(repeat: int, seconds: float) -> dict[str, dict[str, Row]]:
    """Seconds of a step of each architecture in each way, the least of the repetitions, and its speed-up."""
    found: dict[str, dict[str, Row]] = {}
    ways = [way for way in WAYS if way != NUDGED]
    for arch in STEPS:
        rows: dict[str, list[Row]] = {way: [] for way in ways}
        for number in range(repeat):
            for way in ways[number % len(ways) :] + ways[: number % len(ways)]:
                with running(way, [__file__, "--step", arch, "--seconds", str(seconds)]) as process:
                    out, said = process.communicate()
                if process.returncode:
                    raise SystemExit(f"{arch}, {way}: exit {process.returncode}: {said}")
                rows[way].append(json.loads(out))
                print(arch, way, out.strip(), file=sys.stderr, flush=True)
        first = [row["step"] for row in rows[ONE]]
        found[arch] = {
            way: {
                **some[0],
                "step": min(row["step"] for row in some),
                "speedup": spread([one / row["step"] for one, row in zip(first, some, strict=True)]),
            }
            for way, some in rows.items()
        }
    return found


def spread(ratios: list[float]) -> list[float]:
    """Mean, least and greatest."""
    return [float(f(ratios)) for f in (np.mean, np.min, np.max)]


def answers(out: Path, pictures: int, repeat: int) -> dict[str, dict[str, Row]]:
    """``predict`` by one and by two processes, a thread each: seconds, of few pictures as well, and the same bytes.

    What few of them take is what starting takes; beyond it the speed-up is that of reading and deciding.
    """
    make(out / "pictures", pictures, (64, 64), 0)
    make(out / "few", 16, (64, 64), 1)
    make_tasks("mnist5k", out / "digits", TasksOptions(classes=[parse_classes(PAIRS[0])]))
    with np.load(out / "digits" / "task1.npz") as digits:
        x = np.concatenate([digits["x"]] * max(1, 10 * pictures // len(digits["x"])))
    np.savez(out / "digits.npz", x=x)
    np.savez(out / "digit.npz", x=x[:16])
    clmoe(ONE, "learn", "--data", out / "few", "--store", out / "lite0", "--features", "lite0", "--epochs", 2)
    clmoe(ONE, "learn", "--data", out / "digits" / "task1.npz", "--store", out / "plain", "--epochs", 2)
    asked = {
        f"{pictures} pictures of 64x64 through lite0": ("lite0", out / "pictures", out / "few"),
        f"{len(x)} digits": ("plain", out / "digits.npz", out / "digit.npz"),
    }
    found: dict[str, dict[str, Row]] = {}
    for what, (store, many, few) in asked.items():
        rows: dict[str, list[Row]] = {ONE: [], TWO: []}
        for number in range(repeat):
            for way in (ONE, TWO) if number % 2 == 0 else (TWO, ONE):
                flags = ("--store", out / store, "--no-feature-cache", "--reject", "0.01")
                start = clmoe(way, "predict", few, *flags, "--output", out / "few.csv")
                took = clmoe(way, "predict", many, *flags, "--output", out / f"{store}-{WAYS[way][0]}.csv")
                rows[way].append({"command": took, "start": start})
                print(what, way, rows[way][-1], file=sys.stderr, flush=True)
        same = filecmp.cmp(out / f"{store}-1.csv", out / f"{store}-2.csv", shallow=False)
        pairs = list(zip(rows[ONE], rows[TWO], strict=True))
        found[what] = {
            way: {
                **{key: float(np.mean([row[key] for row in some])) for key in some[0]},
                "speedup": spread([one["command"] / row["command"] for one, row in zip(rows[ONE], some, strict=True)]),
            }
            for way, some in rows.items()
        }
        beyond = [(a["command"] - a["start"]) / (b["command"] - b["start"]) for a, b in pairs]
        found[what][TWO] |= {"beyond_start": spread(beyond), "same_bytes": same}
    return found


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


def report_steps(found: dict[str, dict[str, Row]]) -> str:
    ways = list(next(iter(found.values())))
    header = ["arch", "weights", *(f"{way}, ms" for way in ways), *(f"{way}, speed-up" for way in ways if way != ONE)]
    cells = []
    for arch, rows in found.items():
        milliseconds = [f"{1e3 * row['step']:.3g}" for row in rows.values()]
        speed = ["{:.2f} ({:.2f} to {:.2f})".format(*row["speedup"]) for way, row in rows.items() if way != ONE]
        cells.append([arch, rows[ONE]["weights"], *milliseconds, *speed])
    return "# A step of 128 pictures\n\n" + table(header, cells)


def report_answers(found: dict[str, dict[str, Row]]) -> str:
    header = ("asked", "1 process, s", "2 processes, s", "of starting, s", "speed-up", "beyond starting", "same bytes")
    cells = []
    for what, ways in found.items():
        one, two = ways[ONE], ways[TWO]
        speed = ["{:.2f} ({:.2f} to {:.2f})".format(*two[key]) for key in ("speedup", "beyond_start")]
        starts = f"{one['start']:.1f}, {two['start']:.1f}"
        cells.append([what, f"{one['command']:.1f}", f"{two['command']:.1f}", starts, *speed, two["same_bytes"]])
    return "# Answers\n\n" + table(header, cells)


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


def task(options: argparse.Namespace) -> tuple[Row, str]:
    """One task in every way: what was found, and its table."""
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
    return {"source": source, "images": images, "results": results, "runs": runs}, report(results, images)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", help="torchvision's root of MNIST; without it the 5,000 offline images")
    parser.add_argument("--out", type=Path, default=Path("bench-out/processes"))
    parser.add_argument("--part", nargs="+", choices=("steps", "answers", "task"), default=("steps", "answers", "task"))
    parser.add_argument("--arch", nargs="+", default=["mlp:500,500", "cnn:32,64,128"])
    parser.add_argument("--images", type=int, help="at most so many training images of the task")
    parser.add_argument("--pictures", type=int, default=2000, help="that are asked about")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--batch-size", type=int, default=Schedule().batch_size)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=TIMED, help="of the steps that are timed, about")
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        time_steps(options.step, options.seconds)
        return
    if options.out.exists():
        raise SystemExit(f"{options.out} exists: remove it first")
    result: Row = {"cores": os.cpu_count()}
    texts = []
    if "steps" in options.part:
        result["steps"] = steps(options.repeat, options.seconds)
        texts.append(report_steps(result["steps"]))
    if "answers" in options.part:
        with tempfile.TemporaryDirectory() as scratch:
            result["answers"] = answers(Path(scratch), options.pictures, options.repeat)
        texts.append(report_answers(result["answers"]))
    if "task" in options.part:
        found, text = task(options)
        result |= found
        texts.append(text)
    write(options.out, "processes", result, "\n".join(texts))


if __name__ == "__main__":
    main()
