"""resnet18 from random weights on 64×64 colour pictures: two tasks in one expert, frozen exactly, in bounded time.

    python benchmarks/resnet.py --out bench-out/resnet --epochs 2

Checked: both tasks are in one expert; task 1's answers have the same bits after task 2; a picture alone gets the
label and task that it gets among the others, with a confidence that differs by at most 1e-5; seconds of each step.
The second task goes into the first one's expert by name. A check that fails ends with exit 1, after the report.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from p6 import clmoe
from scenes import TASKS, make_folders
from sequence import answers, digest, percent, table, write

T = TypeVar("T")
LARGEST = 1e-5
"""Difference of a confidence between a picture alone and among others (kernels differ by batch size)."""


def apart(store: Path, data: Path, count: int) -> dict[str, Any]:
    """Every so many pictures of the mixed test folder alone and all together: what differs."""
    paths = sorted((data / "mixed").rglob("*.png"))
    together = clmoe("predict", "--batch", str(data / "mixed"), store=store)["predictions"]
    every, folder = max(1, len(paths) // count), data / "alone"
    largest, same = 0.0, True
    for among, path in list(zip(together, paths, strict=True))[::every]:
        folder.mkdir()
        os.link(path, folder / path.name)
        alone = clmoe("predict", "--batch", str(folder), store=store)["predictions"][0]
        shutil.rmtree(folder)
        largest = max(largest, abs(alone["confidence"] - among["confidence"]))
        same &= (alone["label"], alone["task"]) == (among["label"], among["task"])
    return {"pictures_alone": len(paths[::every]), "same_answers": same, "largest_difference": largest}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out/resnet"))
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--side", type=int, default=64, help="pixels of a drawn picture's side")
    parser.add_argument("--image-size", type=int, default=64, help="passed on to learn; 0: not")
    parser.add_argument("--train", type=int, default=200, help="training pictures of a class")
    parser.add_argument("--test", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=4, help="at most so many in each phase")
    parser.add_argument("--batch-size", type=int, default=16, help="as of learn")
    parser.add_argument("--alone", type=int, default=6, help="about so many pictures are predicted alone")
    parser.add_argument("--seconds", type=float, default=1800, help="what both tasks may take")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    store, data = options.out / f"store{options.seed}", options.out / "pictures"
    if store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    if not data.exists():
        sizes = {"train": options.train, "test": options.test, "side": options.side, "seed": options.seed}
        make_folders(data, **sizes, tasks=2)
    flags = ["--arch", options.arch, "--seed", str(options.seed), "--epochs", str(options.epochs)]
    flags += ["--batch-size", str(options.batch_size)]
    flags += ["--image-size", str(options.image_size)] if options.image_size else []
    seconds: dict[str, float] = {}

    def timed(step: str, call: Callable[..., T], *args: Any, **more: Any) -> T:
        started = time.monotonic()
        found = call(*args, **more)
        seconds[step] = time.monotonic() - started
        print(f"{step}: {seconds[step]:.1f} s", file=sys.stderr, flush=True)
        return found

    trains, tests = ([str(data / f"task{i}" / part) for i in (1, 2)] for part in ("train", "test"))
    one = timed("learn task1", clmoe, "learn", "--data", trains[0], *flags, store=store)
    report, before = timed("predict task1", answers, store, tests[0], "--task", "task1")
    home = ("--expert", one["expert"])
    two = timed("learn task2", clmoe, "learn", "--data", trains[1], *home, *flags, store=store)
    _, after = answers(store, tests[0], "--task", "task1")
    given = [report["accuracy"], answers(store, tests[1], "--task", "task2")[0]["accuracy"]]
    mixed, _ = timed("predict mixed", answers, store, str(data / "mixed"))
    verified = timed("verify", clmoe, "inspect", "--verify", store=store)["verified"]
    alone = apart(store, data, options.alone)
    spent = seconds["learn task1"] + seconds["learn task2"]
    checks = {
        "both learned": one["status"] == two["status"] == "learned",
        "one expert": one["expert"] == two["expert"],
        "task 1 bit-identical after task 2": digest(before) == digest(after),
        "inspect --verify": verified,
        "alone as among others": alone["same_answers"] and alone["largest_difference"] <= LARGEST,
        f"learned within {options.seconds:.0f} s": spent <= options.seconds,
    }
    result = {
        "arch": options.arch,
        "classes": TASKS[:2],
        "train": options.train,
        "epochs": options.epochs,
        "accuracy_task_given": given,
        "accuracy_without_id": mixed["accuracy"],
        "frozen_percent": [sum(x["frozen_percent"] for x in r["layers"]) / len(r["layers"]) for r in (one, two)],
        "checks": checks,
        **alone,
        "seconds": seconds,
    }
    rows = [[name, "yes" if held else "NO"] for name, held in checks.items()]
    rows += [[f"task{i} given, %", percent(share)] for i, share in enumerate(given, 1)]
    rows += [["no id, %", percent(mixed["accuracy"])], ["largest difference alone", alone["largest_difference"]]]
    rows += [[f"{step}, s", f"{took:.0f}"] for step, took in seconds.items()]
    write(options.out, "resnet", result, f"# {options.arch}, two tasks\n\n" + table(("", ""), rows))
    if not all(checks.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
