"""The store's file operations: all of its reading and writing goes through these few functions."""

from __future__ import annotations

import os
import stat
import uuid
from pathlib import Path

from store_schema.errors import ObjectVanished, StoreDamaged, disk_errors


def make_folder(path: Path) -> None:
    """Makes a folder and its parents durably; existing ones are fine."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    with disk_errors(str(path)):
        for folder in reversed(missing):
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)


def sync_folder(path: Path) -> None:
    """fsync of a folder: a rename in it is durable after that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(tmp: Path, target: Path, data: bytes) -> None:
    """Writes a new file in ``tmp``, fsyncs it, renames it to ``target`` and fsyncs the target's folder.

    The mode follows the umask. On failure the new file is removed and DiskProblem raised.
    """
    part = tmp / uuid.uuid4().hex
    with disk_errors(str(target)):
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o664)
        try:
            try:
                left = memoryview(data)
                while left:  # a write may be short
                    left = left[os.write(fd, left) :]
                os.fsync(fd)
            finally:
                os.close(fd)
            part.rename(target)
        except OSError:
            remove(part)
            raise
        sync_folder(target.parent)


def remove(path: Path) -> None:
    """Unlinks a file if that is possible; a file left over is swept by the next writer."""
    try:
        path.unlink()
    except OSError:
        return


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; symbolic links are not followed.

    Raises ObjectVanished when it is not there, StoreDamaged when it is something else or too large, and
    DiskProblem when it cannot be read.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError as error:
        raise ObjectVanished("missing file", where=str(path), hint="restore it from a copy of the store") from error
    except OSError as error:
        if path.is_symlink():
            raise StoreDamaged("a symbolic link in the store", where=str(path), expected="a regular file") from error
        with disk_errors(str(path)):
            raise
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode) or info.st_size > limit:
        os.close(fd)
        found = f"{info.st_size} bytes" if stat.S_ISREG(info.st_mode) else "something else"
        expected = f"a regular file of at most {limit} bytes"
        raise StoreDamaged("damaged file", where=str(path), found=found, expected=expected)
    with disk_errors(str(path)), os.fdopen(fd, "rb") as file:
        return file.read(limit + 1)
