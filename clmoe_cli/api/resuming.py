"""Continuing an interrupted ``learn``: what it had reached lies in the store, under a key that only it has."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path

import numpy as np

from clmoe_cli import __version__, method
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.data import Batch
from clmoe_cli.data.spool import blocks, rows_of
from clmoe_cli.method.subnetwork.time_limit import TimeLimit
from clmoe_cli.method.subnetwork.training_state import Journal, State
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.distributed.processes import PeerLost
from clmoe_cli.runtime.events import OnStep, begun, silent
from clmoe_cli.store_tensors import environment, tensor
from store_schema import BadInput, Checkpoint, Interrupted, Writer, checkpoints

PAUSE = 19.0
"""After a checkpoint, so many times its own duration pass before the next: at most a twentieth of the time."""


class Resuming:
    """Keeps the journal of one learn in the store until it has committed.

    As a context: a KeyboardInterrupt leaves it as Interrupted, which says how to continue, and the loss of another
    process as PeerLost; the progress is discarded at the end of a block that ran through. ``on_resume`` is told what an
    earlier run had reached, if there was one.
    """

    def __init__(
        self,
        locked: Writer,
        batch: Batch,
        options: LearnOptions,
        on_resume: Callable[[str], None],
        on_step: OnStep = silent,
    ) -> None:
        self.on_step = on_step
        self.locked, self.batch, self.options, self.on_resume = locked, batch, options, on_resume
        self.root, self.head, self.seed = locked.root, locked.store.head, locked.manifest.seed
        self.parent = hashlib.sha256(self.head).hexdigest()
        self.key, self.task, self.reached = "", "", ""
        self.number, self.next = 0, 0.0
        self.limit = TimeLimit(math.inf if options.time_limit is None else 60 * options.time_limit)

    def begin(self, task: str) -> Journal:
        """The journal of training that task.

        Raises StoreDamaged, DiskProblem, and BadInput where processes were not given the same.
        """
        self.key, self.task = _key(self.batch, self.options, self.parent, self.seed, self.on_step), task
        kept: State = {}
        found = checkpoints.load(self.root, self.key)
        if found is not None:
            kept = {name: tensor(value) for name, value in found.arrays.items()}
            self.number, self.reached = found.number, found.reached
            self.on_resume(found.reached)
        # What each of several processes goes through has to be the same, and where it begins.
        if not collectives.alike(f"{self.key} {task} {self.number} {self.reached}".encode()):
            raise BadInput(
                "the processes of this run do not read the same",
                where=self.batch.source,
                expected="the same data, store, arguments, versions and threads in all of them",
            )
        return Journal(kept, self._save, self.limit)

    def _save(self, state: State, reached: str) -> None:
        started = time.monotonic()
        if started < self.next or not collectives.leads():
            return
        arrays = {name: value.cpu().numpy() for name, value in state.items()}
        checkpoints.save(self.root, self.key, Checkpoint(self.number + 1, self.parent, self.task, reached, arrays))
        self.number, self.reached = self.number + 1, reached
        ended = time.monotonic()
        self.next = ended + PAUSE * (ended - started)

    def __enter__(self) -> Resuming:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if kind is None and self.key and collectives.leads():
            checkpoints.discard(self.root, self.key)
        if isinstance(error, KeyboardInterrupt) and self.locked.store.head != self.head:
            raise Interrupted("interrupted after the commit: the task is in the store") from error
        hint = f"run the same command again: it goes on after {self.reached}" if self.reached else None
        if isinstance(error, collectives.Lost):
            raise PeerLost(error, f"nothing was committed; {hint or 'run the command again'}") from error
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted("interrupted; the store is as it was before this command", hint=hint) from error


@cache
def _code() -> str:
    """sha256 of the code that trains: what one state of it has begun, another would end as neither does."""
    root = Path(method.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()


def _key(batch: Batch, options: LearnOptions, parent: str, seed: int, on_step: OnStep) -> str:
    """sha256 of all that decides the result: data, arguments, parent generation, seed, code, environment."""
    arguments = asdict(options)
    del arguments["lock_timeout"], arguments["time_limit"]
    arguments["method"]["device"] = options.method.device.partition(":")[0]  # whichever of several cards it is
    labels = batch.labels
    assert labels is not None
    about = {
        "arguments": arguments,
        "parent": parent,
        "seed": seed,
        "version": __version__,
        "code": _code(),
        "environment": environment(),
        "processes": collectives.world(),
        "images": [batch.images.dtype.str, batch.images.shape],
        "input": batch.input.model_dump() if batch.input else None,
        "labels": [labels.dtype.str, labels.shape],
    }
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    to = begun(on_step, "fingerprint", len(batch.images), "images")
    for array in (batch.images, labels):
        for first, block in blocks(array, rows_of(array.shape[1:], array.itemsize)):
            digest.update(np.ascontiguousarray(block).data)
            to(first + len(block))
    return digest.hexdigest()
