"""Reading and writing ``.npz`` files without trusting them.

The rule enforced here: nothing is unpickled, nothing is extracted, and no array is allocated before the
zip directory, the array's own header and the real length of the file agree on its size. ``numpy.load``
checks none of these. Arrays are read in parts; one that is larger than memory lies on disk
(:mod:`clmoe_cli.data.spool`). Writing is atomic, and the same arrays give the same bytes.
"""

from __future__ import annotations

import contextlib
import errno
import io
import math
import os
import secrets
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, ClassVar, NoReturn

import numpy as np
from numpy.lib import format as npy

from clmoe_cli.data.batch import MAX_BYTES, Array
from clmoe_cli.data.spool import Spool, rows_of, transposed_blocks
from clmoe_cli.runtime import limits
from store_schema.errors import BadInput, ClmoeError, DiskProblem

MAX_RATIO = 1100
"""Deflate cannot expand by more than about 1032."""

_CHUNK = limits.UNPACKED_BYTES
_MAX_HEADER = limits.HEADER_BYTES
_ENCRYPTED = 0x1
_DISK_ERRNOS = {errno.EIO, errno.ESTALE, errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE}
# Besides OSError, what zipfile and zlib raise on a damaged file; RuntimeError and ValueError have subclasses.
_ZIP_ERRORS = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    RuntimeError,
    ValueError,
    ArithmeticError,
    LookupError,
)
_HINT_SPLIT = "split the file"
_HINT_SAVE = "write it with numpy.savez(path, x=images, y=labels)"


def one_line(text: object) -> str:
    """The text, or its ``repr`` where it would not print as one clean line."""
    plain = str(text)
    return plain if plain.isprintable() else ascii(plain)


def name_list(names: Sequence[str]) -> str:
    """At most eight names on one line, "nothing" for none."""
    shown = ", ".join(one_line(name[:60]) for name in names[:8])
    return (shown + (f" and {len(names) - 8} more" if len(names) > 8 else "")) or "nothing"


def read_problem(error: OSError, where: str) -> ClmoeError:
    """The error to raise for a failed read: DiskProblem for a failing disk, BadInput for the rest."""
    reason = error.strerror or one_line(error)
    if error.errno in _DISK_ERRNOS:
        return DiskProblem("cannot read the data", where=where, found=reason, hint="check the disk, then try again")
    hint = "check its permissions" if isinstance(error, PermissionError) else "check the path"
    return BadInput("cannot read the data", where=where, found=reason, expected="a readable file", hint=hint)


@dataclass(frozen=True)
class Header:
    """What an array says of itself; the dtype is in the file's byte order, ``offset`` is where data start."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes of the data, as a Python integer, which does not overflow."""
        return math.prod(self.shape) * self.dtype.itemsize


class NpzReader:
    """The arrays of one open npz by name; only those asked for are read.

    ``file`` is a seekable binary file and ``where`` names it in errors. Everything that is wrong with the
    file raises BadInput; a failing disk raises DiskProblem.
    """

    unlabelled: ClassVar[tuple[str, str]] = ("no labels in the file", "numpy.savez(path, x=images, y=labels)")
    """What is said where there are no labels, and what to do then."""
    columns: tuple[str, ...] | None = None
    """Of a table the names of its features."""

    def __init__(self, file: IO[bytes], where: str) -> None:
        self.where = where
        self._left = MAX_BYTES
        with self._guard():
            self._size = file.seek(0, io.SEEK_END)
            file.seek(0)
            self._refuse_other_formats(file.read(8))
            self._zip = zipfile.ZipFile(file)
        self._members: dict[str, list[zipfile.ZipInfo]] = {}
        for info in self._zip.infolist():
            if info.filename.endswith(".npy"):
                self._members.setdefault(info.filename.removesuffix(".npy"), []).append(info)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays, in the order of the file."""
        return tuple(self._members)

    @property
    def contents(self) -> str:
        """What is in the file, for people."""
        return name_list(self.names)

    def header(self, name: str) -> Header:
        """Shape and dtype, checked against the zip directory (unless objects); no data are read."""
        size = self._bytes(name)
        with self._guard(name), self._open(name) as member:
            start = io.BytesIO(member.read(min(size, _MAX_HEADER)))
            header = self._parse(start, name)
        if not header.dtype.hasobject and header.offset + header.nbytes != size:
            self._fail(
                "the array's header does not match its data",
                name,
                found=f"{size - header.offset} bytes",
                expected=f"{header.nbytes} bytes for {header.dtype.str} {list(header.shape)}",
                hint=_HINT_SAVE,
            )
        return header

    def blocks(self, name: str) -> Iterator[Array]:
        """The array in consecutive parts ``[n, …]`` along its first axis, in the file's byte order; read as they come.

        What is wrong with the data may be found out only at the end, where their checksum is. The array has an axis
        and is not empty.
        """
        header = self.header(name)
        if header.dtype.hasobject:
            self._fail("object arrays are never unpickled", name, found="object", expected="plain numbers or text")
        self._left -= header.nbytes
        if self._left < 0:
            what, found, expected = self._too_big(header.nbytes)
            self._fail(what, name, found=found, expected=expected, hint=_HINT_SPLIT)
        if len(header.shape) == 1 or not header.fortran:
            yield from self._rows(name, header, header.shape)
            return
        flat = (math.prod(header.shape),)
        with Spool(flat, header.dtype, self.where) as spool:
            for part in self._rows(name, header, flat):
                spool.append(part)
            whole = spool.finish()
        yield from transposed_blocks(whole, header.shape, rows_of(header.shape[1:], header.dtype.itemsize))

    def read(self, name: str) -> Array:
        """The whole array, in the file's byte order; it has an axis and is not empty."""
        header = self.header(name)
        with Spool(header.shape, header.dtype, self.where) as spool:
            for block in self.blocks(name):
                spool.append(block)
            return spool.finish()

    def _rows(self, name: str, header: Header, shape: tuple[int, ...]) -> Iterator[Array]:
        step = rows_of(shape[1:], header.dtype.itemsize)
        with self._guard(name), self._open(name) as member:
            member.read(header.offset)
            for start in range(0, shape[0], step):
                block = np.empty((min(step, shape[0] - start), *shape[1:]), header.dtype)
                self._fill(block.reshape(-1).view(np.uint8).data, member)
                yield block
            member.read(1)  # at the end of the member zipfile compares the checksum

    def _bytes(self, name: str) -> int:
        """Bytes of an array with its header."""
        return self._member(name).file_size

    def _open(self, name: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """An array with its header, from its start."""
        return self._zip.open(self._member(name))

    @staticmethod
    def _too_big(size: int) -> tuple[str, str, str]:
        return "the arrays are too big", f"{size} bytes", f"at most {MAX_BYTES} bytes in one file"

    @staticmethod
    def _fill(target: memoryview, member: IO[bytes]) -> None:
        done = 0
        while done < len(target):
            piece = member.read(min(_CHUNK, len(target) - done))
            if not piece:
                raise EOFError(f"data end after {done} of {len(target)} bytes")
            target[done : done + len(piece)] = piece
            done += len(piece)

    def _member(self, name: str) -> zipfile.ZipInfo:
        copies = self._members[name]
        info = copies[0]
        size, packed, method = info.file_size, info.compress_size, info.compress_type
        stored = method == zipfile.ZIP_STORED
        inside = info.header_offset + packed <= self._size and (not stored or size == packed)
        once, known = len(copies) == 1, stored or method == zipfile.ZIP_DEFLATED
        plain, sane = not info.flag_bits & _ENCRYPTED, size <= MAX_RATIO * packed
        checks = (
            (once, "the array is in the file more than once", f"{len(copies)} copies", "one"),
            (plain, "the array is encrypted", "an encrypted member", "a plain npz"),
            (known, "unknown compression", f"method {method}", "stored or deflate"),
            (inside, "the zip directory does not match the file", f"{packed} bytes claimed", "fewer"),
            (sane, "impossible compression", f"{packed} bytes for {size}", f"at most {MAX_RATIO} to 1"),
            (size <= MAX_BYTES + _MAX_HEADER, *self._too_big(size)),
        )
        for good, what, found, expected in checks:
            if not good:
                self._fail(what, name, found=found, expected=expected, hint=_HINT_SAVE)
        return info

    def _parse(self, start: io.BytesIO, name: str) -> Header:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                version = npy.read_magic(start)
                parse = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}[version]
                shape, fortran, dtype = parse(start)
            if min(shape, default=0) < 0:
                raise ValueError("negative dimension")
        except Exception:  # a crafted header makes the literal parser and numpy raise nearly anything
            self._fail("the array's header is unreadable", name, expected="an npy array", hint=_HINT_SAVE)
        return Header(tuple(int(size) for size in shape), dtype, fortran, start.tell())

    def _refuse_other_formats(self, magic: bytes) -> None:
        if not magic.startswith(b"PK"):
            found = "another format" if magic else "an empty file"
            hint = f"{_HINT_SAVE}; a table is read by its suffix: .csv or .tsv"
            self._fail("not an npz file", found=found, expected="a zip of arrays", hint=hint)

    @contextlib.contextmanager
    def _guard(self, name: str | None = None) -> Iterator[None]:
        try:
            yield
        except ClmoeError:
            raise
        except (*_ZIP_ERRORS, OSError) as error:
            if isinstance(error, OSError) and error.errno != errno.EINVAL:  # a seek to before the start
                raise read_problem(error, self.where) from error
            reason = one_line(error)[:120] or type(error).__name__
            hint = "copy or write the file again"
            self._fail("the file is damaged or cut short", name, found=reason, expected="a whole npz", hint=hint)

    def _fail(self, what: str, key: str | None = None, **details: str) -> NoReturn:
        raise BadInput(what, where=self.where, key=key, **details)


def write_npz(path: str | os.PathLike[str], arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
    """Write arrays to exactly ``path``, compressed, replacing it in one step.

    The same arrays in the same order give the same bytes: the zip's times are fixed. ValueError for object
    arrays; DiskProblem if the file cannot be written, in which case an earlier file stays as it was.
    """
    if any(array.dtype.hasobject for array in arrays.values()):
        raise ValueError("object arrays cannot be written without pickle")
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.compress_type = zipfile.ZIP_DEFLATED
            info.create_system, info.external_attr = 3, 0o644 << 16
            with archive.open(info, "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[IO[bytes]]:
    """A new file that takes the place of ``path`` in one step when the block ends.

    DiskProblem if it cannot be written; an earlier file stays as it was then, and nothing is left behind.
    """
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    try:
        try:
            with temporary.open("xb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(target)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        reason = error.strerror or one_line(error)
        hint = "check the folder, its permissions and the free space"
        raise DiskProblem("cannot write the file", where=one_line(target), found=reason, hint=hint) from error
