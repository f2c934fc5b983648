"""The store's file operations: whatever it does to a disk goes through these few functions.

The first ones, up to ``overwrite``, are single steps that raise OSError; a test that replaces them one by one sees,
and can break, every step of a commit. The others are made of these. Links are never followed: a store may come from
anywhere.
"""

from __future__ import annotations

import hashlib
import io
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from store_schema.errors import ObjectVanished, StoreDamaged, disk_errors

MODE = 0o664
FOLDER_MODE = 0o775
"""Before the umask: never writable by everyone."""


def create(path: Path) -> int:
    """A descriptor of a new file."""
    return os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, MODE)


def write(fd: int, data: memoryview) -> int:
    """Writes some of the bytes; tells how many."""
    return os.write(fd, data)


def sync(fd: int) -> None:
    """fsync of an open file."""
    os.fsync(fd)


def rename(source: Path, target: Path) -> None:
    """Puts a file in the place of another."""
    source.rename(target)


def unlink(path: Path) -> None:
    """Takes a name away."""
    path.unlink()


def mkdir(path: Path) -> None:
    """Makes one folder; an existing one is fine."""
    path.mkdir(mode=FOLDER_MODE, exist_ok=True)


def rmdir(path: Path) -> None:
    """Takes an empty folder away."""
    path.rmdir()


def sync_folder(path: Path) -> None:
    """fsync of a folder: a rename in it is durable after that."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def touch(path: Path) -> None:
    """Makes an empty file where there is none."""
    path.touch(mode=MODE)


def overwrite(path: Path, text: str) -> None:
    """Replaces the text of an existing file in place, which keeps its locks."""
    fd = os.open(path, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode(errors="replace"))
    finally:
        os.close(fd)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents durably; existing ones are fine. Raises DiskProblem."""
    with disk_errors(str(path)):
        missing = [p for p in (path, *path.parents) if not p.exists()]
        for folder in reversed(missing):
            mkdir(folder)
            sync_folder(folder.parent)


def write_durably(tmp: Path, target: Path, data: bytes) -> None:
    """Writes a new file in ``tmp``, fsyncs it, renames it to ``target`` and fsyncs the target's folder.

    The mode follows the umask. On failure the new file is removed and DiskProblem raised.
    """
    part = tmp / uuid.uuid4().hex
    with disk_errors(str(target)):
        fd = create(part)
        try:
            try:
                left = memoryview(data)
                while left:  # a write may be short
                    left = left[write(fd, left) :]
                sync(fd)
            finally:
                os.close(fd)
            rename(part, target)
        except BaseException:  # an interruption as well
            remove(part)
            raise
        sync_folder(target.parent)


def remove(path: Path) -> bool:
    """Unlinks a file and tells whether it is gone; one left over is swept by a later writer."""
    try:
        unlink(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def remove_folder(path: Path) -> bool:
    """Removes an empty folder and tells whether it is gone; one left over does no harm."""
    try:
        rmdir(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def read_regular(path: Path, limit: int) -> bytes:
    """The bytes of a regular file of at most ``limit`` bytes; symbolic links are not followed.

    Raises ObjectVanished when it is not there, StoreDamaged when it is something else or too large, and
    DiskProblem when it cannot be read.
    """
    with _regular(path, limit) as file:
        # As many as there are, not as there may be: room for so many bytes is taken before the first is read.
        return file.read(os.fstat(file.fileno()).st_size + 1)


def read_beginning(path: Path, limit: int, count: int) -> tuple[bytes, int]:
    """At most the first ``count`` bytes of a regular file, and its size; raises as :func:`read_regular` does."""
    with _regular(path, limit) as file:
        return file.read(count), os.fstat(file.fileno()).st_size


def digest(path: Path, limit: int) -> str:
    """sha256 of a regular file, in bounded memory; raises as :func:`read_regular` does."""
    with _regular(path, limit) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _regular(path: Path, limit: int) -> Iterator[io.BufferedReader]:
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
        yield file
