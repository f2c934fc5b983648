"""A learn in progress: arrays by name, in ``checkpoints/<key>/<sha256>.safetensors``, replaced as it goes on.

The key is the hash of everything that decides what the learn ends with (data, arguments, parent generation,
environment), so that no other learn picks it up. Like an object, the file is named by its content: what is cut short or
damaged is never taken for a checkpoint, and the learn starts from the beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load as parse
from safetensors.numpy import save as serialise

from store_schema import files, layout, objects
from store_schema.errors import StoreDamaged, disk_errors
from store_schema.weights import check_header

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
