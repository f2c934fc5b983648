"""Checking every file of a store in one run: each is checked by itself, so that one damaged file hides no other."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema import checkpoints, files, layout, objects
from store_schema.errors import (
    ClmoeError,
    DiskProblem,
    ObjectVanished,
    StoreDamaged,
    StoreIncompatible,
    StoreMissing,
    disk_errors,
)
from store_schema.records import Manifest
from store_schema.removal import subnetwork_digest
from store_schema.store import Store, check_format, manifest_of, without_task

Report = Callable[[ClmoeError, Path], None]
OnDone = Callable[[str, int, int], None]
"""Is told what is checked (files, tasks), how many of them are, and of how many."""


def _silent(what: str, done: int, total: int) -> None:
    pass


@dataclass(frozen=True)
class Finding:
    """A file and what is wrong with it; ``damage`` is false for files that do not belong to the store.

    ``unread``: the operating system did not let it be read, so that it may be whole.
    """

    file: str
    problem: str
    damage: bool
    unread: bool = False


def verify(path: str | Path, on_done: OnDone = _silent) -> list[Finding]:
    """Every damaged file of a store: hashes, structure, and the subnetwork hash of each task.

    A commit in the meantime sweeps files away, which is no damage: the check is made again then. Raises
    StoreMissing or StoreIncompatible when there is nothing to check, and DiskProblem.
    """
    root = Path(path)
    while True:
        before = _head(root)
        findings = _verify(root, on_done)
        if not findings or before == _head(root):
            return findings


def _head(root: Path) -> bytes | None:
    try:
        return files.read_regular(root / layout.HEAD, layout.MAX_HEAD)
    except ClmoeError:
        return None


def _verify(root: Path, on_done: OnDone) -> list[Finding]:
    findings: dict[str, Finding] = {}

    def found(error: ClmoeError, file: Path) -> None:
        name = error.where or str(file)
        # The file is named once, and what to do is said once for all.
        problem = str(ClmoeError(error.what, key=error.key, found=error.found, expected=error.expected))
        findings.setdefault(name, Finding(name, problem, True, isinstance(error, DiskProblem)))

    try:
        check_format(root)
    except (StoreMissing, StoreIncompatible):
        raise
    except ClmoeError as error:
        found(error, root / layout.FORMAT)
    present = list(objects.present(root))
    for done, path in enumerate(present):
        on_done("files", done, len(present))
        # Objects are named by their hash, so that each can be checked without a manifest.
        try:
            objects.check(path, files.digest(path, layout.MAX_OBJECT), path.stem)
        except ClmoeError as error:
            found(error, path)
    on_done("files", len(present), len(present))
    for key in checkpoints.present(root):
        try:
            for path in checkpoints.files_of(root, key):
                _check_checkpoint(path, key, found)
        except ClmoeError as error:
            found(error, layout.checkpoint_path(root, key))
    current = _current(root, found)
    if current is not None and current.generation == 0 and not findings:
        raise without_task(root)
    for path, number in layout.manifests(root):
        if current is not None and number not in (current.generation, current.generation - 1):
            findings[str(path)] = Finding(str(path), "a generation that nothing names", False)
            continue
        try:
            data = files.read_regular(path, layout.MAX_MANIFEST)
            child = current if current is not None and number < current.generation else None
            if child is not None and hashlib.sha256(data).hexdigest() != child.parent:
                raise StoreDamaged("damaged file", where=str(path), expected=f"sha256 {child.parent}")
            manifest = Manifest.from_bytes(data, str(path))
            if manifest.generation != number:
                other = f"generation {manifest.generation}"
                raise StoreDamaged("the manifest of another generation", where=str(path), found=other)
        except ClmoeError as error:
            found(error, path)
            continue
        check_contents(Store(root, manifest, b""), found, on_done)
    for stray in _strays(root):
        findings.setdefault(str(stray), Finding(str(stray), "not a file of the store", False))
    return list(findings.values())


def _check_checkpoint(path: Path, key: str, found: Report) -> None:
    try:
        checkpoints.read(path, key)
    except ObjectVanished:
        return  # nothing names a checkpoint: a learn that goes on replaces it
    except ClmoeError as error:
        found(error, path)


def _current(root: Path, found: Report) -> Manifest | None:
    """The manifest that HEAD names, if both are whole."""
    try:
        head = files.read_regular(root / layout.HEAD, layout.MAX_HEAD)
        return manifest_of(root, head)
    except ClmoeError as error:
        found(error, root / layout.HEAD)
        return None


def check_contents(store: Store, found: Report, on_done: OnDone = _silent) -> None:
    """Everything that one generation names: that it is there, its structure, and the hash of each subnetwork."""
    statistics: dict[str, Mapping[str, NDArray[Any]]] = {}
    done, total = 0, len(store.manifest.tasks)
    on_done("tasks", done, total)
    for expert in store.manifest.experts:
        try:
            store.read_base(expert.id)
            weights = store.read_expert(expert.id)
        except ClmoeError as error:
            found(error, store.root)
            weights = None
        changed: list[str] = []
        for task in store.manifest.tasks_of(expert.id):
            done += 1
            try:
                record = store.read_subnetwork(task.name)
            except ClmoeError as error:
                found(error, store.root)
                continue
            statistics[task.name] = record.gate
            if weights is not None and subnetwork_digest(weights, record.masks, task.name) != task.subnetwork_sha256:
                changed.append(f"task {task.name} changed")
            on_done("tasks", done, total)
        if changed:
            assert expert.weights is not None
            where = layout.object_path(store.root, expert.weights.sha256, expert.weights.suffix)
            found(StoreDamaged(f"the subnetwork of {' and that of '.join(changed)}", where=str(where)), where)
    on_done("tasks", total, total)
    for gate in store.manifest.gates:
        tasks = [t.name for t in store.manifest.tasks_of_shape(gate.input_shape, gate.input)]
        where = layout.object_path(store.root, gate.solved.sha256, gate.solved.suffix)
        try:
            store.read_eye(gate)
            store.read_network_eye(gate)
            solved = store.read_gate(gate.input_shape, gate.input)
        except ClmoeError as error:
            found(error, store.root)
            continue
        # A task's statistics are the truth; the gate only repeats a part of them.
        if solved is not None and all(name in statistics for name in tasks):
            means = [statistics[name].get("means", np.empty((0, 0))) for name in tasks]
            if not np.array_equal(solved.means, np.concatenate(means)):
                found(StoreDamaged("the gate differs from its tasks' statistics", where=str(where)), where)


def _strays(root: Path) -> list[Path]:
    """Files that are not the store's: not named like it, or not placed like it."""
    with disk_errors(str(root)):
        own = {*objects.present(root), *(path for path, _ in layout.manifests(root))}
        below = [*(root / layout.OBJECTS).rglob("*"), *(root / layout.MANIFESTS).iterdir()]
        strays = [path for path in root.iterdir() if path.name not in layout.NAMES]
    return sorted(strays + [path for path in below if path not in own and not path.is_dir()])
