"""Immutable objects: bytes in, sha256 out. An object is named by its content, so it is never written twice."""

from __future__ import annotations

import hashlib
import re
import shutil
from pathlib import Path

from store_schema import files, layout
from store_schema.errors import DiskProblem, StoreDamaged, disk_errors
from store_schema.records import ObjectRef, Suffix

RESERVE = 1 << 20
NAME = re.compile(rf"[0-9a-f]{{64}}\.({'|'.join(layout.SUFFIXES)})")


def put(root: Path, data: bytes, suffix: Suffix) -> ObjectRef:
    """Makes an object durable; one that is there already is verified and reused, or rewritten if damaged.

    Raises DiskProblem (also when there is too little space, before anything is written).
    """
    ref = ObjectRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), suffix=suffix)
    target = layout.object_path(root, ref.sha256, suffix)
    if target.parent.is_symlink():
        raise StoreDamaged("a symbolic link in the store", where=str(target.parent), expected="a folder")
    try:
        get(root, ref)
    except (StoreDamaged, DiskProblem):
        reserve(root, len(data))
        files.make_folder(target.parent)
        files.write_durably(root / layout.TMP, target, data)
    return ref


def get(root: Path, ref: ObjectRef) -> bytes:
    """An object's bytes, whose size and hash are right.

    Raises ObjectVanished (a StoreDamaged) when it is not there, StoreDamaged, DiskProblem.
    """
    path = layout.object_path(root, ref.sha256, ref.suffix)
    return verified(path, files.read_regular(path, ref.size), ref.sha256)


def verified(path: Path, data: bytes, sha256: str) -> bytes:
    """The bytes, if their hash is right; StoreDamaged if not."""
    check(path, hashlib.sha256(data).hexdigest(), sha256)
    return data


def check(path: Path, found: str, sha256: str) -> None:
    """Raises StoreDamaged where a file's hash is not the one that it should be."""
    if found != sha256:
        raise StoreDamaged(
            "damaged file", where=str(path), found=f"sha256 {found[:12]}…", expected=f"{sha256[:12]}…",
            hint="restore it from a copy of the store; clmoe inspect --verify lists every damaged file",
        )  # fmt: skip


def present(root: Path) -> list[Path]:
    """Every file that is named and placed like an object, in order; others are not the store's to touch."""
    with disk_errors(str(root / layout.OBJECTS)):
        folders = [f for f in (root / layout.OBJECTS).glob("*") if f.is_dir() and not f.is_symlink()]
        found = [path for folder in folders for path in folder.iterdir()]
    return sorted(p for p in found if NAME.fullmatch(p.name) and p.name[:2] == p.parent.name)


def reserve(root: Path, size: int) -> None:
    """Raises DiskProblem unless that many bytes, and a little more, are free."""
    with disk_errors(str(root)):
        free = shutil.disk_usage(root).free
    if free < size + RESERVE:
        raise DiskProblem(
            "no space left on device", where=str(root), found=f"{free} bytes free",
            expected=f"at least {size + RESERVE}", hint="free some space and run the command again",
        )  # fmt: skip
