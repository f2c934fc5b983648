"""Features of pictures that a backbone has seen before, in one SQLite file of the user's cache.

A key is a hash of the pixels that the backbone reads and of the backbone's record: the same pixels through the same
network have the same features, wherever they lie. SQLite keeps the file whole under kills and several processes. What
the file says is checked, and a file that cannot be used costs time, never an answer.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.backbone.places import cache_folder
from clmoe_cli.runtime import limits
from store_schema.records import FeaturesRecord

Pixels: TypeAlias = NDArray[Any]

NAME = "features.sqlite"
_DAY = 24 * 60 * 60
_CHECK = 8
"""Bytes of a hash behind each vector."""
_AT_ONCE = 500
"""Keys of one question: older SQLite takes 999."""
_PATIENCE = 10.0
"""Seconds to wait for another process that writes."""


def key_of(record: FeaturesRecord, picture: Pixels) -> bytes:
    """The key [32 bytes] of one picture [C, H, W] through a backbone."""
    named = f"{record.model_dump_json()} {picture.dtype.str} {picture.shape}".encode()
    start = hashlib.sha256(named).digest()
    return hashlib.blake2b(np.ascontiguousarray(picture).tobytes(), digest_size=32, key=start).digest()


class FeatureCache:
    """Vectors [width] float32 by key, at most ``limits.KEPT_FEATURES_BYTES`` of them: those not used longest go.

    Nothing raises: where the file cannot be opened, read or written, nothing is found and nothing is kept.
    """

    def __init__(self, width: int, folder: Path | None = None) -> None:
        self._width, self._path = width, (folder or cache_folder()) / NAME
        self._today = int(time.time()) // _DAY

    def get(self, keys: Sequence[bytes]) -> dict[bytes, NDArray[np.float32]]:
        """The vectors that are there, of these keys."""
        found: dict[bytes, NDArray[np.float32]] = {}
        if not self._path.exists():
            return found
        with suppress(sqlite3.Error, OSError), closing(self._open()) as file:
            old: list[tuple[int, bytes]] = []
            for start in range(0, len(keys), _AT_ONCE):
                part = list(keys[start : start + _AT_ONCE])
                marks = ",".join("?" * len(part))
                asked = f"SELECT key, used, value FROM features WHERE key IN ({marks})"
                for key, used, value in file.execute(asked, part):
                    vector = self._vector(key, value)
                    if vector is not None:
                        found[key] = vector
                        if used < self._today:
                            old.append((self._today, key))
            with suppress(sqlite3.Error), file:  # a cache that may only be read is read all the same
                file.executemany("UPDATE features SET used = ? WHERE key = ?", old)
        return found

    def put(self, vectors: dict[bytes, NDArray[np.float32]]) -> bool:
        """Keeps these, and lets the oldest go where they are too many. False where they cannot be kept."""
        with suppress(sqlite3.Error, OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            try:
                self._write(vectors)
            except sqlite3.DatabaseError as error:
                if isinstance(error, sqlite3.OperationalError):  # locked, full, read-only
                    raise
                self._path.unlink(missing_ok=True)  # no database, or a torn one
                self._write(vectors)
            return True
        return False

    def _write(self, vectors: dict[bytes, NDArray[np.float32]]) -> None:
        self._path.touch(mode=0o600)  # features tell what is in the pictures
        rows = [(key, self._today, self._bytes(key, vector)) for key, vector in vectors.items()]
        with closing(self._open()) as file, file:
            file.execute("CREATE TABLE IF NOT EXISTS features (key BLOB PRIMARY KEY, used INTEGER, value BLOB)")
            file.execute("CREATE INDEX IF NOT EXISTS by_use ON features (used)")
            file.executemany("INSERT OR REPLACE INTO features VALUES (?, ?, ?)", rows)
            over = self._size(file) - limits.KEPT_FEATURES_BYTES
            if over > 0:
                # A tenth more than need be, so that not every command has to.
                one = 4 * self._width + 64
                count = int(over + limits.KEPT_FEATURES_BYTES / 10) // one + 1
                file.execute(
                    "DELETE FROM features WHERE key IN (SELECT key FROM features ORDER BY used LIMIT ?)", (count,)
                )

    @staticmethod
    def _size(file: sqlite3.Connection) -> int:
        """Bytes of the pages that are in use."""
        page, pages, free = (
            int(file.execute(f"PRAGMA {name}").fetchone()[0]) for name in ("page_size", "page_count", "freelist_count")
        )
        return page * (pages - free)

    def _open(self) -> sqlite3.Connection:
        if not os.access(self._path.parent, os.W_OK):  # without a place for its log it is opened as it lies there
            return sqlite3.connect(f"{self._path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)
        file = sqlite3.connect(self._path, timeout=_PATIENCE)
        with suppress(sqlite3.OperationalError):  # a file that may only be read stays as it is
            file.execute("PRAGMA journal_mode = WAL")
            file.execute("PRAGMA synchronous = NORMAL")
        return file

    @staticmethod
    def _bytes(key: bytes, vector: NDArray[np.float32]) -> bytes:
        value = np.ascontiguousarray(vector, "<f4").tobytes()
        return value + _digest(key, value)

    def _vector(self, key: bytes, stored: object) -> NDArray[np.float32] | None:
        """The vector of a row, if it is what was kept."""
        if not isinstance(stored, bytes) or len(stored) != 4 * self._width + _CHECK:
            return None
        value = stored[:-_CHECK]
        return np.frombuffer(value, "<f4") if _digest(key, value) == stored[-_CHECK:] else None


def _digest(key: bytes, value: bytes) -> bytes:
    return hashlib.blake2b(value, digest_size=_CHECK, key=key).digest()
