"""A single ``.npy`` array, read with the care of :mod:`clmoe_cli.data.npz`: images or features without labels."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from typing import IO

from numpy.lib import format as npy

from clmoe_cli.data.batch import MAX_BYTES
from clmoe_cli.data.npz import NpzReader

MAGIC = npy.MAGIC_PREFIX
NAME = "images"
"""What the array is called, since the file has no name for it."""


class NpyReader(NpzReader):
    """One array under the name ``images``; everything else as of :class:`~clmoe_cli.data.npz.NpzReader`."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where, self._left, self._file = where, MAX_BYTES, file
        with self._guard():
            self._size = file.seek(0, io.SEEK_END)

    @property
    def names(self) -> tuple[str, ...]:
        """The one name."""
        return (NAME,)

    @property
    def contents(self) -> str:
        """What is in the file, for people."""
        return "a single .npy array"

    def _bytes(self, name: str) -> int:
        return self._size

    @contextlib.contextmanager
    def _from_start(self) -> Iterator[IO[bytes]]:
        self._file.seek(0)
        yield self._file

    def _open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        return self._from_start()
