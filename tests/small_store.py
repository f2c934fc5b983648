"""A real store of small tasks, and real commands on it that take a fifth of a second each."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from pictures import bars
from trained import once

from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.generations import rename, undo
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import Store, StoreMissing, files

TASKS = ([0, 4], [2, 7], [5, 9])
OPTIONS = LearnOptions(arch="mlp:8,8", method=Options(Schedule(epochs=1)))
OPERATIONS = ("create", "write", "sync", "rename", "unlink", "rmdir", "mkdir", "sync_folder", "touch", "overwrite")


def batch(number: int, images: int = 60) -> Batch:
    """The data of task ``number``, from 1."""
    x, y = bars(TASKS[number - 1], images, number)
    return Batch(x[:, None], y, f"task {number}")


def questions() -> Batch:
    """Images of all the tasks, without labels."""
    x, _ = bars([c for classes in TASKS for c in classes], 60, 99)
    return Batch(x[:, None], None, "questions")


def build(root: Path, tasks: int) -> Path:
    """The store of the first ``tasks`` tasks: a copy of the one that all tests share."""
    return Path(shutil.copytree(learned(tasks), root))


def learned(tasks: int) -> Path:
    """The store that is copied; nobody may change it."""

    def make(root: Path) -> None:
        if tasks > 1:
            build(root, tasks - 1)
        learn(str(root), batch(tasks), OPTIONS)

    return once(f"small{tasks}", make)


def learn_next(root: Path, number: int) -> None:
    learn(str(root), batch(number), OPTIONS)


def prune_second(root: Path) -> None:
    prune(str(root), PruneOptions(task="task2"), lambda plan: True)


def only(report: object) -> None:
    """Leaves out what an act returns."""


COMMANDS: dict[str, tuple[int, Callable[[Path], None]]] = {
    "first learn": (0, lambda root: learn_next(root, 1)),
    "later learn": (2, lambda root: learn_next(root, 3)),
    "prune": (3, prune_second),
    "undo": (3, lambda root: only(undo(str(root)))),
    "rename": (3, lambda root: only(rename(str(root), "task2", "birds"))),
    "copy": (2, lambda root: only(copy(str(learned(3)), str(root), CopyOptions(["task3"])))),
    "first copy": (0, lambda root: only(copy(str(learned(3)), str(root)))),
}
"""Name → tasks of the store before, and what is done to it."""
FEW = ("first learn", "later learn", "copy", "undo")
"""Those that ``make test`` tries as well."""


def state(root: Path) -> tuple[str, ...]:
    """Content hash and tasks, or nothing for a store that has none yet."""
    try:
        manifest = Store.open(root).manifest
    except StoreMissing:
        return ()
    return (manifest.content_hash(), *(t.name for t in manifest.tasks))


def told(root: Path) -> dict[str, list[bytes]]:
    """What each task answers by itself."""
    return {name: answers(root, name) for name in state(root)[1:]}


def answers(root: Path, task: str | None = None) -> list[bytes]:
    """Everything that a prediction says, to the bit: of one task, or without a task id."""
    report = predict(str(root), questions(), task=task)
    return [np.ascontiguousarray(v).tobytes() for v in (report.label, report.task, report.confidence)]


def in_child(act: Callable[[], int | None]) -> int:
    """The status with which a forked process ends that does so (what it returns, or 0): negative for a signal."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside idle threads
        pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = act() or 0
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_at(n: int, torn: bool) -> list[str]:
    """Lets n file operations of this process through and kills it before the next, or amid it if it is a write."""
    done: list[str] = []
    for name in OPERATIONS:
        real = getattr(files, name)

        def call(*args: Any, name: str = name, real: Callable[..., object] = real) -> object:
            if len(done) == n:
                if torn and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
            done.append(name)
            return real(*args)

        setattr(files, name, call)
    return done
