"""A learn in progress: arrays by name, in ``checkpoints/<key>/<sha256>.safetensors``, replaced as it goes on.

The key is the hash of everything that decides what the learn ends with (data, arguments, parent generation,
environment), so that no other learn picks it up. Like an object, the file is named by its content: what is cut short or
damaged is never taken for a checkpoint, and the learn starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from store_schema import files, layout, objects
from store_schema.errors import DiskProblem, StoreDamaged, disk_errors
from store_schema.locking import locked
from store_schema.store import Store
from store_schema.weights import MAX_HEADER, check_header

Arrays = Mapping[str, NDArray[Any]]
DTYPES = {"F32": 4, "F64": 8, "I64": 8, "U8": 1, "BOOL": 1}


@dataclass(frozen=True)
class Checkpoint:
    """What a learn had reached: ``number`` counts its checkpoints, ``reached`` is a line for people."""

    number: int
    parent: str
    task: str
    reached: str
    arrays: Arrays


@dataclass(frozen=True)
class Unfinished:
    """A learn that has not committed: the ``task`` that it was learning, and what it had ``reached``.

    ``resumable``: the store is still as it was when that began, so that the same command goes on from there; else
    nothing will. ``bytes``: of the file.
    """

    key: str
    task: str
    reached: str
    number: int
    resumable: bool
    bytes: int


def save(root: Path, key: str, checkpoint: Checkpoint) -> int:
    """Puts a checkpoint in the place of the one before it; returns its bytes. Raises DiskProblem, StoreDamaged."""
    about = {"schema": layout.CHECKPOINT_SCHEMA, "key": key}
    about |= {name: getattr(checkpoint, name) for name in ("number", "parent", "task", "reached")}
    arrays = {name: np.asarray(checkpoint.arrays[name], order="C") for name in sorted(checkpoint.arrays)}
    data = serialise(arrays, metadata={"clmoe": json.dumps(about, sort_keys=True)})
    folder = _folder(root, key)
    objects.reserve(root, len(data))
    files.make_folder(folder)
    target = folder / f"{hashlib.sha256(data).hexdigest()}.safetensors"
    files.write_durably(root / layout.TMP, target, data)
    for old in files_of(root, key):
        if old != target:
            files.remove(old)
    return len(data)


def load(root: Path, key: str) -> Checkpoint | None:
    """The newest whole checkpoint of that key; None when there is none. Raises StoreDamaged for a link, DiskProblem."""
    found = []
    for path in files_of(root, key):
        try:
            found.append(read(path, key))
        except StoreDamaged:
            continue
    return max(found, key=lambda checkpoint: checkpoint.number, default=None)


def read(path: Path, key: str) -> Checkpoint:
    """Reads and checks one file. Raises StoreDamaged, DiskProblem."""
    data = objects.verified(path, files.read_regular(path, layout.MAX_OBJECT), path.stem)
    metadata = check_header(data, str(path), DTYPES)
    try:
        about = json.loads(metadata["clmoe"])
        if (about.pop("schema"), about.pop("key")) != (layout.CHECKPOINT_SCHEMA, key):
            raise ValueError("another schema or key")
        checkpoint = Checkpoint(**about, arrays=parse(data))
        if not isinstance(checkpoint.number, int):
            raise ValueError("its number")
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise StoreDamaged("not a valid checkpoint", where=str(path), found=str(error)) from error
    return checkpoint


def unfinished(store: Store) -> list[Unfinished]:
    """What interrupted learns (and one that runs) have reached, by task; files that are damaged are left out.

    Raises DiskProblem.
    """
    head, found = hashlib.sha256(store.head).hexdigest(), []
    for key in present(store.root):
        each = []
        with suppress(StoreDamaged):
            each = files_of(store.root, key)
        for path in each:
            with suppress(StoreDamaged):
                about, size = _about(path)
                task, reached = str(about["task"]), str(about["reached"])
                found.append(Unfinished(key, task, reached, int(about["number"]), about["parent"] == head, size))
    newest = {each.key: each for each in sorted(found, key=lambda each: each.number)}
    return sorted(newest.values(), key=lambda each: (each.task, each.key))


def _about(path: Path) -> tuple[dict[str, Any], int]:
    """What the header of a checkpoint says, and the size of the file; its arrays are neither read nor checked."""
    (data, size) = files.read_beginning(path, layout.MAX_OBJECT, 8 + MAX_HEADER)
    metadata = check_header(data, str(path), DTYPES, size)
    try:
        about = json.loads(metadata["clmoe"])
        if about["schema"] != layout.CHECKPOINT_SCHEMA or not {"task", "reached", "number", "parent"} <= set(about):
            raise ValueError("another schema")
        int(about["number"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise StoreDamaged("not a valid checkpoint", where=str(path), found=str(error)) from error
    return about, size


def discard_all(
    root: Path, keys: Sequence[str], *, timeout: float | None, on_wait: Callable[[str], None] = lambda holder: None
) -> int:
    """Deletes the checkpoints of these keys, under the lock; returns their bytes.

    Raises StoreLocked where another process holds it longer than ``timeout`` seconds, None for however long, and
    DiskProblem where something could not be deleted.
    """
    with locked(root, timeout, on_wait):
        freed = 0
        for key in keys:
            with disk_errors(str(layout.checkpoint_path(root, key))):
                freed += sum(path.lstat().st_size for path in files_of(root, key))
            discard(root, key)
        left = [str(path) for key in keys for path in files_of(root, key)]
    if left:
        raise DiskProblem("cannot delete the file", where=left[0], hint="check the permissions of the folder")
    return freed


def discard(root: Path, key: str) -> None:
    """Deletes a checkpoint; what cannot be deleted is left, since nothing depends on it."""
    for path in files_of(root, key):
        files.remove(path)
    files.remove_folder(_folder(root, key))


def present(root: Path) -> list[str]:
    """The keys for which there is a folder."""
    with disk_errors(str(root / layout.CHECKPOINTS)):
        return sorted(p.name for p in (root / layout.CHECKPOINTS).glob("*") if layout.KEY.fullmatch(p.name))


def files_of(root: Path, key: str) -> list[Path]:
    """The files of a key that are named like a checkpoint."""
    folder = _folder(root, key)
    with disk_errors(str(folder)):
        return sorted(p for p in folder.glob("*.safetensors") if objects.NAME.fullmatch(p.name))


def _folder(root: Path, key: str) -> Path:
    """The folder of a key; never a link, which would have us write to, and delete from, somewhere else."""
    path = layout.checkpoint_path(root, key)
    if path.is_symlink():
        raise StoreDamaged("a symbolic link in the store", where=str(path), expected="a folder")
    return path
