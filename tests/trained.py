"""Stores that many tests need: learned once in a run of the tests, by whichever of its processes comes first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from filelock import FileLock
from pictures import batch

from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule

kept: Path | None = None
"""Where they are; what runs the tests says so."""
PAIRS = {"task1": (0, 3), "task2": (6, 9), "task3": (1, 8), "task4": (4, 11)}
OPTIONS = LearnOptions(arch="mlp:32,32", method=Options(Schedule(epochs=4)))


def once(name: str, make: Callable[[Path], None]) -> Path:
    """The folder that ``make`` makes at a path; nobody may change it."""
    folder = kept or Path(tempfile.mkdtemp())
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name).exists():
            part = folder / f"{name}.part"
            shutil.rmtree(part, ignore_errors=True)
            make(part)
            part.rename(folder / name)
    return folder / name


def bars_store(*names: str) -> Path:
    """A store that has learned these of ``PAIRS`` in this order, from 500 images each."""
    *before, last = names

    def make(root: Path) -> None:
        if before:
            shutil.copytree(bars_store(*before), root)
        learn(str(root), batch(PAIRS[last], 500, 1), replace(OPTIONS, name=last))

    return once("-".join(names), make)
