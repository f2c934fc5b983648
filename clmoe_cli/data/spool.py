"""Arrays that need not fit into memory: beyond ``THRESHOLD`` they lie in a file without a name.

The rule: written once and in order, then read in any order. The file is unlinked before the first byte is in it, so
that nothing of it survives the process, however that ends. Bytes are written, never mapped while the disk may still
fill up, since a full disk kills whoever writes to a map. The user's own files are copied, never mapped: whoever
truncated one would kill its reader.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any, TypeAlias

import numpy as np

from clmoe_cli.runtime import limits
from store_schema.errors import BadInput, DiskProblem

Array: TypeAlias = np.ndarray[Any, Any]

THRESHOLD = limits.SPOOLED_BYTES
BLOCK = limits.BLOCK_BYTES
_PIECE = limits.PIECE_BYTES
_GATHERED = limits.GATHERED_ROWS
_DISK = "/var/tmp"
_HINT = "free some space there, or set TMPDIR to a folder with more"


def folder() -> str:
    """Where the files lie: ``TMPDIR``; without it /var/tmp, which is on disk where /tmp may be memory."""
    fallback = _DISK if os.access(_DISK, os.W_OK | os.X_OK) else tempfile.gettempdir()
    return os.environ.get("TMPDIR") or fallback


def rows_of(shape: tuple[int, ...], itemsize: int) -> int:
    """How many rows make at most ``BLOCK`` bytes; at least one. ``shape``: of one row, in items."""
    return max(1, BLOCK // max(1, math.prod(shape) * itemsize))


class Spool:
    """An array ``[n, *row]`` that is appended to, and then finished.

    Raises BadInput where memory is too small, DiskProblem where the disk is full or fails.
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[Any], where: str) -> None:
        """``shape``: with the most rows that there will be; ``where``: what is read, for errors."""
        self.row, self.dtype, self.rows = shape[1:], dtype, 0
        size = math.prod(shape) * dtype.itemsize
        self._held: Array | None = None
        self._file: IO[bytes] | None = None
        if size > THRESHOLD:
            self._file = _unnamed(size)
            return
        try:
            self._held = np.empty(shape, dtype)
        except MemoryError as error:
            what, found = "the data do not fit in memory", f"{size} bytes"
            raise BadInput(what, where=where, found=found, hint="split the file") from error

    def __enter__(self) -> Spool:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()

    def append(self, rows: Array) -> None:
        """Adds rows ``[k, *row]``."""
        start, self.rows = self.rows, self.rows + len(rows)
        if self._held is not None:
            self._held[start : self.rows] = rows
        elif self._file is not None:
            data = np.ascontiguousarray(rows, self.dtype).reshape(-1).view(np.uint8).data
            with _disk_errors():
                while data:
                    data = data[self._file.write(data[:_PIECE]) :]

    def finish(self) -> Array:
        """The rows appended so far, C-contiguous and writable."""
        if self._held is not None:
            return self._held[: self.rows]
        assert self._file is not None
        # Shared, not private: the system would account for a private map as if it were memory. Writable, since
        # torch wants that of an array even to read it; the file is nobody else's.
        held = mmap.mmap(self._file.fileno(), self.rows * math.prod(self.row) * self.dtype.itemsize)
        return np.frombuffer(held, self.dtype).reshape(self.rows, *self.row)


@contextlib.contextmanager
def pipe(
    stream: IO[bytes], limit: int, where: str, on_bytes: Callable[[int, bool], None] = lambda taken, ended: None
) -> Iterator[IO[bytes]]:
    """Everything from a pipe as a file at its start: in memory, beyond ``THRESHOLD`` on disk.

    ``on_bytes``: is told how many have come, and whether these are all. Raises BadInput for more than ``limit`` bytes,
    DiskProblem.
    """
    with tempfile.SpooledTemporaryFile(THRESHOLD, dir=folder()) as held:
        taken = 0
        on_bytes(0, False)
        while piece := stream.read(_PIECE):
            taken += len(piece)
            if taken > limit:
                wanted = f"at most {limit} bytes"
                hint = "give the file's path instead"
                raise BadInput("too much data in the pipe", where=where, expected=wanted, hint=hint)
            with _disk_errors():
                held.write(piece)
            on_bytes(taken, False)
        with _disk_errors():
            held.flush()
        held.seek(0)
        on_bytes(taken, True)
        yield held


def taken(array: Array, index: Array) -> Array:
    """A copy of the rows ``[n]`` at these positions, or where this mask is true; pages of the others stay on disk."""
    index = np.flatnonzero(index) if index.dtype == bool else index
    if _map_of(array) is None:
        return array[index]
    out = np.empty((len(index), *array.shape[1:]), array.dtype)
    for start in range(0, len(index), _GATHERED):
        part = slice(start, start + _GATHERED)
        out[part] = array[index[part]]
        release(array)
    return out


def transposed_blocks(flat: Array, shape: tuple[int, ...], rows: int) -> Iterator[Array]:
    """Copies of so many consecutive rows of an array of that shape that lies in ``flat`` in Fortran order."""
    columns = flat.reshape(-1, shape[0])
    # Neighbours in a row are far apart: without this, one block has the whole array's pages in memory.
    step = rows_of((shape[0],), flat.itemsize)
    for start in range(0, shape[0], rows):
        block = np.empty((len(columns), min(rows, shape[0] - start)), flat.dtype)
        for first in range(0, len(columns), step):
            part = slice(first, first + step)
            block[part] = columns[part, start : start + rows]
            release(flat)
        yield block.reshape(*shape[:0:-1], -1).T


def blocks(array: Array, rows: int) -> Iterator[tuple[int, Array]]:
    """Views of so many consecutive rows, each with the position of its first; what is done with is released."""
    for start in range(0, len(array), rows):
        yield start, array[start : start + rows]
        release(array)


def release(array: Array) -> None:
    """Gives back the memory that pages of a spooled array take; they are read again when they are asked for.

    Nothing happens to other arrays. Any view of the array will do.
    """
    held = _map_of(array)
    if held is not None and hasattr(held, "madvise"):
        held.madvise(mmap.MADV_DONTNEED)


def _map_of(array: Array) -> mmap.mmap | None:
    base: Any = array
    while isinstance(base, np.ndarray | memoryview):
        base = base.base if isinstance(base, np.ndarray) else base.obj
    return base if isinstance(base, mmap.mmap) else None


def _unnamed(size: int) -> IO[bytes]:
    place = folder()
    with _disk_errors():
        free = shutil.disk_usage(place).free
        if free < size:
            what = "no room on disk for data that do not fit in memory"
            raise DiskProblem(what, where=place, found=f"{free} bytes free", expected=f"{size} bytes", hint=_HINT)
        return tempfile.TemporaryFile(dir=place, buffering=0)


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        what, found = "cannot write data that do not fit in memory", error.strerror or str(error)
        raise DiskProblem(what, where=folder(), found=found, hint=_HINT) from error
