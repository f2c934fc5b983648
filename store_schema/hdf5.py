"""Reading HDF5 that anybody may have written: only what the store itself writes is let through.

Everything is checked before it is read: links, types, filters, storage, the bytes declared, and how far each
compressed chunk really expands. What a file may make us allocate is bounded by ``MAX_ARRAY`` and ``MAX_TOTAL``.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreDamaged

DTYPES = ("uint8", "uint16", "uint32", "float16", "float32", "float64", "int64")
PIPELINES = ((), (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_DEFLATE))
MAX_ARRAY = 512 << 20
MAX_TOTAL = 1 << 30
MAX_MEMBERS = 4096
MAX_RANK = 8
MAX_TEXT = 1 << 20
DEFLATE_LIMIT = 1100
"""Deflate cannot expand further: a data set that declares more than this times its stored bytes lies."""


class Reader:
    """An open file and what has been declared in it so far; errors name ``where``.

    Data sets are first all checked (``dataset``), and only then read (``values``).
    """

    def __init__(self, file: Any, where: str) -> None:
        self.file, self.where = file, where
        self._seen: set[int] = set()
        self._declared = 0

    def fail(self, key: str, found: object, expected: object) -> StoreDamaged:
        """The error that a check raises."""
        text = str(found)
        found = text if len(text) <= 300 else f"{text[:300]}…"
        return StoreDamaged("wrong content", where=self.where, key=key, found=found, expected=str(expected))

    def names(self, group: Any) -> list[str]:
        """The members of a group, links of all kinds."""
        if len(group) > MAX_MEMBERS:
            raise self.fail(group.name, f"{len(group)} members", f"at most {MAX_MEMBERS}")
        return list(group)

    def group(self, name: str) -> Any:
        """A group below the root."""
        self._hard_link(self.file, name)
        found = self.file[name]
        if not isinstance(found, h5py.Group):
            raise self.fail(name, "a data set", "a group")
        return found

    def attribute(self, holder: Any, name: str) -> Any:
        """An attribute that is a text, a number, or a short row of integers."""
        key = f"{holder.name}@{name}"
        if name not in holder.attrs:
            raise self.fail(key, "nothing", "an attribute")
        raw = holder.attrs.get_id(name)
        row = len(raw.shape) == 1 and raw.shape[0] <= MAX_RANK and raw.dtype == np.int64
        text = h5py.check_string_dtype(raw.dtype)
        if not row and (raw.shape != () or (text is None and raw.dtype not in (np.int64, np.float64))):
            raise self.fail(key, f"{raw.dtype} {raw.shape}", "a text or a number")
        if text is not None and text.length is not None and text.length > MAX_TEXT:
            raise self.fail(key, f"a text of {text.length} bytes", f"at most {MAX_TEXT}")
        return holder.attrs[name]

    def dataset(self, parent: Any, name: str) -> Any:
        """A data set, after every check that can be made before its values are read."""
        key = f"{parent.name}/{name}".lstrip("/")
        self._hard_link(parent, name)
        found = parent[name]
        if not isinstance(found, h5py.Dataset):
            raise self.fail(key, "a group", "a data set")
        address = h5py.h5o.get_info(found.id).addr
        if address in self._seen:
            raise self.fail(key, "a second name of another data set", "one name for each")
        self._seen.add(address)
        if found.is_virtual or found.external:
            raise self.fail(key, "virtual or external storage", "its own bytes")
        if found.dtype.name not in DTYPES or not found.dtype.isnative:
            raise self.fail(key, found.dtype, " or ".join(DTYPES))
        if found.shape is None or len(found.shape) > MAX_RANK or found.maxshape != found.shape:
            raise self.fail(key, f"shape {found.shape} up to {found.maxshape}", "a fixed shape")
        self._storage(key, found)
        return found

    def declare(self, key: str, size: int) -> None:
        """Adds bytes to what reading will take."""
        self._declared += size
        if self._declared > MAX_TOTAL:
            raise self.fail(key, f"{self._declared} bytes declared so far", f"at most {MAX_TOTAL} in all")

    def values(self, found: Any) -> NDArray[Any]:
        """The values of a data set that ``dataset`` let through; its chunks are expanded within bounds first."""
        expanded = self._chunks(found.name.lstrip("/"), found) if found.chunks and found.nbytes else []
        if len(expanded) == 1 and found.chunks == found.shape:
            # Not expanded a second time; shuffled are the first bytes of all numbers, then the second ones, and so on.
            shuffled = np.frombuffer(expanded[0], dtype=np.uint8).reshape(found.dtype.itemsize, -1)
            value: NDArray[Any] = np.ascontiguousarray(shuffled.T).view(found.dtype).reshape(found.shape)
        else:
            value = found[()]
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise self.fail(found.name.lstrip("/"), "NaN or infinite values", "finite ones")
        return value

    def _hard_link(self, parent: Any, name: str) -> None:
        if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
            raise self.fail(name, "a soft or external link, or nothing", "a hard link")

    def _storage(self, key: str, found: Any) -> None:
        plist = found.id.get_create_plist()
        filters = tuple(plist.get_filter(i)[0] for i in range(plist.get_nfilters()))
        if filters not in PIPELINES or bool(filters) != (found.chunks is not None):
            expected = "none in one piece, or shuffle and gzip in chunks"
            raise self.fail(key, f"filters {list(filters)}, chunks {found.chunks}", expected)
        stored = found.id.get_storage_size()
        chunk = math.prod(found.chunks) * found.dtype.itemsize if found.chunks else 0
        declared, limit = max(found.nbytes, chunk), min(MAX_ARRAY, stored * (DEFLATE_LIMIT if filters else 1))
        if found.nbytes and declared > limit:
            raise self.fail(key, f"{declared} bytes declared", f"at most {limit}")
        self.declare(key, declared)

    def _chunks(self, key: str, found: Any) -> list[bytes]:
        """What the only chunk expands to, nothing of several. Every chunk must expand to exactly its size: the library
        would go on for as long as the stream does."""
        size, stored = math.prod(found.chunks) * found.dtype.itemsize, found.id.get_storage_size()
        infos: list[Any] = []
        found.id.chunk_iter(lambda info: infos.append(info))
        wanted = math.prod(math.ceil(n / c) for n, c in zip(found.shape, found.chunks, strict=True))
        if len(infos) != wanted:
            raise self.fail(key, f"{len(infos)} chunks", wanted)
        for info in infos:
            if info.size > stored or info.filter_mask:
                raise self.fail(key, f"a chunk of {info.size} bytes, filter mask {info.filter_mask}", "a whole one")
            pieces, expanded = [], 0
            for piece in self._expanded(found.id.read_direct_chunk(info.chunk_offset)[1], size):
                expanded += len(piece)
                if wanted == 1:
                    pieces.append(piece)
            if expanded != size:
                raise self.fail(key, "a chunk that expands to another size", f"{size} bytes")
        return [b"".join(pieces)] if wanted == 1 else []

    @staticmethod
    def _expanded(packed: bytes, limit: int) -> Iterator[bytes]:
        """The pieces of an expanded chunk, up to one byte more than ``limit``."""
        stream, total = zlib.decompressobj(), 0
        while not stream.eof and total <= limit:
            piece = stream.decompress(packed, min(1 << 20, limit + 1 - total))
            packed, total = stream.unconsumed_tail, total + len(piece)
            if not piece and not packed:
                break
            yield piece
