"""Files to checked arrays: what leaves here is well-formed, or the caller got one line that says why not.

Images come out as ``[N, D]`` or channels-first ``[N, C, H, W]``, uint8 or finite float32; labels as int64 or
unicode ``[N]``. Nothing is unpickled, and neither torch nor an image library is imported before pictures are read
or transformed. Images that are larger than memory are read in parts and lie on disk (:mod:`clmoe_cli.data.spool`).
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from os import PathLike
from pathlib import Path
from typing import get_args

import numpy as np

from clmoe_cli.data.batch import MAX_BYTES, Array, Batch, LabelUse, Raw, Unread
from clmoe_cli.data.extraction import Extractor, collecting
from clmoe_cli.data.given import ArrayReader
from clmoe_cli.data.listing import PICTURES
from clmoe_cli.data.npy import NpyReader
from clmoe_cli.data.npz import Header, NpzReader, name_list, one_line
from clmoe_cli.data.precision import RoundingCheck
from clmoe_cli.data.sources import check_source, kind_of, open_source
from clmoe_cli.data.targets import LABEL_KEYS, read_labels
from clmoe_cli.data.transforms import resolved, shape_after, transformed
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, begun, silent
from clmoe_cli.runtime.words import one_of
from store_schema.errors import BadInput, UsageProblem
from store_schema.records import InputRecord

IMAGE_KEYS = ("x", "X", "images", "data")
CHANNELS = (1, 3, 4)
MOST_VALUES = limits.IMAGE_VALUES

_LAYOUTS = "[N, D], [N, H, W], [N, C, H, W] or [N, H, W, C]"
_PIXEL_HINTS = {
    "i": "x.astype('uint8') if the values are 0 to 255, else x.astype('float32')",
    "u": "x.astype('uint8') if the values are 0 to 255, else x.astype('float32')",
    "b": "x.astype('uint8') * 255",
    "O": "stack the pictures into one array of one dtype and size",
}
_EXACT = 1 << 24
"""float32 holds every integer up to here, and of the larger ones some."""


def read_batch(
    source: str | PathLike[str],
    *,
    labels: LabelUse,
    input: InputRecord | None = None,
    extractor: Extractor | None = None,
    skip_broken: bool = False,
    label_column: str | None = None,
    on_step: OnStep = silent,
) -> Batch:
    """Read an npz, an npy, a table, ``-`` (one of these on stdin) or a folder of pictures.

    A 4-D array is channels-first if its second axis is 1, 3 or 4, else channels-last. "ignored" labels are
    not even looked at. ``input``: what the images are to go through; the batch's own says it with channels.
    ``extractor``: what then makes features [N, width] of pictures, which are not kept; None for the pictures.
    ``skip_broken``: leave out pictures of a folder that cannot be read, and name them in the batch. ``label_column``:
    of a table, the name or the position of the column with the labels. ``on_step``: is told how much is read.

    With ``labels`` "required" a column that float32 flattens is refused; else it is :attr:`Batch.flaw`.
    Raises BadInput for anything wrong with the data, UsageProblem for an empty source or a column of labels where
    there are no columns, DiskProblem for a failing disk, or one that has no room for images that memory has none for;
    each is one line.
    """
    with look(
        str(source), labels=labels, skip_broken=skip_broken, label_column=label_column, on_step=on_step
    ) as unread:
        return unread.read(input, extractor)


@contextlib.contextmanager
def look(
    source: str | tuple[str, ...] | ArrayReader,
    *,
    labels: LabelUse,
    skip_broken: bool = False,
    label_column: str | None = None,
    on_step: OnStep = silent,
) -> Iterator[Unread]:
    """A source of :func:`read_batch` that is open, and of which it is known what its images are.

    So it can be decided what they go through before any is read. A tuple names pictures one by one; arrays may lie in
    memory (:mod:`clmoe_cli.data.given`). Raises what reading raises.
    """
    one_of("value of labels", labels, get_args(LabelUse))
    if isinstance(source, ArrayReader):
        _refuse_column(label_column, source.where)
        yield _Arrays.of(source, source.where, labels, on_step)
        return
    if isinstance(source, tuple):
        from clmoe_cli.data.pictures import Folder

        yield Folder.named(source, skip_broken, on_step)
        return
    check_source(source)
    if Path(source).suffix.lower() in PICTURES and Path(source).is_file():
        from clmoe_cli.data.pictures import Folder

        _refuse_column(label_column, source)
        yield Folder.named((source,), skip_broken, on_step)
        return
    if source != "-" and Path(source).is_dir():
        from clmoe_cli.data.pictures import Folder

        _refuse_column(label_column, source)
        yield Folder.of(source, labels, skip_broken, on_step)
        return
    with open_source(source, on_step) as (file, where):
        kind = kind_of(file, source, label_column is not None)
        if kind == "table":
            from clmoe_cli.data.columns import Table

            yield Table.of(file, where, source, labels, label_column, on_step)
            return
        _refuse_column(label_column, source)
        yield _Arrays.of(NpyReader(file, where) if kind == "npy" else NpzReader(file, where), source, labels, on_step)


@dataclass(frozen=True)
class _Arrays:
    """An npz or npy whose images are the array ``key``, of which one has the ``shape``."""

    reader: NpzReader
    source: str
    labels: LabelUse
    on_step: OnStep
    key: str
    header: Header
    shape: tuple[int, ...]

    @staticmethod
    def of(reader: NpzReader, source: str, labels: LabelUse, on_step: OnStep) -> _Arrays:
        """Finds the images. BadInput where there are none."""
        key = next((key for key in IMAGE_KEYS if key in reader.names), None)
        if key is None:
            wanted = "one of " + ", ".join(IMAGE_KEYS)
            hint = "numpy.savez(path, x=images, y=labels)"
            found = name_list(reader.names)
            raise BadInput("no images in the file", where=reader.where, found=found, expected=wanted, hint=hint)
        header = reader.header(key)
        return _Arrays(reader, source, labels, on_step, key, header, _image_shape(header, reader.where, key))

    @property
    def raw(self) -> Raw:
        """One of its images, as it is stored."""
        axes = self.header.shape
        counted = any(self.reader.header(key).shape == axes[:1] for key in LABEL_KEYS if key in self.reader.names)
        return Raw(False, self.shape, None if counted or len(axes) != 3 else axes)

    def read(self, input: InputRecord | None, extractor: Extractor | None = None) -> Batch:
        """Images and labels."""
        record = input
        if record is not None and len(self.shape) == 3:
            record = resolved(record, self.shape[0])
        n = self.header.shape[0]
        labels = None if self.labels == "ignored" else read_labels(self.reader, n, self.labels)
        images, flaw = _pixels(self.reader, self.key, self.header, self.shape, record, extractor, self.on_step)
        if flaw is not None and self.labels == "required":
            raise flaw
        notes = _either_way(self.header, self.reader.where)
        return Batch(images, labels, self.source, record, notes=notes, flaw=flaw, columns=self.reader.columns)


def _either_way(header: Header, where: str) -> tuple[str, ...]:
    """A note where two axes may be the channels."""
    shape = header.shape
    if len(shape) != 4 or shape[1] not in CHANNELS or shape[3] not in CHANNELS:
        return ()
    return (f"{where}: {list(shape)} is read as [N, C, H, W]; for [N, H, W, C] give x.transpose(0, 3, 1, 2)",)


def _refuse_column(label_column: str | None, source: str) -> None:
    if label_column is not None:
        hint = "an npz has its labels as y, a folder as the names of its class folders"
        where = "stdin" if source == "-" else one_line(source)
        raise UsageProblem("--label-column is for tables", where=where, expected="a CSV file or a DataFrame", hint=hint)


def _image_shape(header: Header, where: str, key: str) -> tuple[int, ...]:
    """``(D,)`` or ``(C, H, W)``; BadInput for arrays that are no images."""
    fail = partial(BadInput, where=where, key=key)
    dtype, shape = header.dtype, header.shape
    # Integers are features as they are; as pixels they may be 0 to 255, or anything else.
    whole = dtype.kind in "iub" and len(shape) < 3
    if dtype != np.uint8 and not whole and (dtype.kind != "f" or dtype.itemsize > 8):
        hint = _PIXEL_HINTS.get(dtype.kind, "x.astype('float32')")
        wanted = "uint8 or float16, 32 or 64" + (", or integers" if len(shape) < 3 else "")
        raise fail("images of this type cannot be used", found=str(dtype), expected=wanted, hint=hint)
    if not 2 <= len(shape) <= 4:
        raise fail("not a shape of images", found=str(list(shape)), expected=_LAYOUTS, hint="reshape the array")
    if 0 in shape:
        least = "at least one row and one feature" if len(shape) == 2 else "at least one image and one pixel"
        raise fail("no images in the array", found=str(list(shape)), expected=least)
    if len(shape) == 4 and shape[1] not in CHANNELS and shape[3] not in CHANNELS:
        wanted = "1, 3 or 4 channels on axis 1 or 3"
        raise fail("no axis for the channels", found=str(list(shape)), expected=wanted, hint="transpose the array")
    if math.prod(shape[1:]) > MOST_VALUES:
        found, wanted = str(list(shape)), f"at most {MOST_VALUES} values in each"
        raise fail("the images are too big", found=found, expected=wanted, hint="resize them")
    if len(shape) == 3:
        return 1, *shape[1:]
    return (shape[3], *shape[1:3]) if len(shape) == 4 and shape[1] not in CHANNELS else shape[1:]


def _pixels(
    reader: NpzReader,
    key: str,
    header: Header,
    shape: tuple[int, ...],
    record: InputRecord | None,
    extractor: Extractor | None,
    on_step: OnStep,
) -> tuple[Array, BadInput | None]:
    """Images in canonical layout, C-contiguous, native byte order, float32 unless uint8, after their transform.

    Of pictures their features, where ``extractor`` makes them.

    And what is wrong with a column whose differences float32 loses. Raises BadInput for NaN, Inf and integers that
    float32 does not hold, once the file is known to be whole.
    """
    fail = partial(BadInput, where=reader.where, key=key)
    dtype = np.dtype(np.uint8 if header.dtype == np.uint8 else np.float32)
    try:
        out = (header.shape[0], *shape_after(shape, record))
    except ValueError as error:
        hint = "leave --image-size out" if len(shape) == 1 else None
        raise fail(str(error), found=str(list(header.shape)), hint=hint) from error
    if extractor is None and math.prod(out) * dtype.itemsize > MAX_BYTES:
        wanted = f"at most {MAX_BYTES} bytes"
        raise fail("the images are too big", found=str(list(out)), expected=wanted, hint="split the file")
    bad: tuple[str, str, str] | None = None
    # The pixels of a picture share one unit: what float32 loses of them is far below what tells pictures apart.
    double = len(header.shape) == 2 and header.dtype.kind == "f" and header.dtype.itemsize == 8
    rounding = RoundingCheck(header.shape[1]) if double else None
    name, unit = ("reading", "images") if extractor is None else (f"features of {extractor.name}", "pictures")
    seen, to = 0, begun(on_step, name, header.shape[0], unit)
    with collecting(out, dtype, reader.where, extractor) as spool:
        for raw in reader.blocks(key):
            images = _canonical(raw)
            bad = bad or _unusable(images, raw, seen)
            if not bad:
                if rounding is not None:
                    rounding.add(raw)
                for part in transformed(images, record):
                    spool.append(part)
            seen += len(images)
            to(seen)
        if bad:
            raise fail(bad[0], found=bad[1], hint=bad[2])
        return spool.finish(), None if rounding is None else _flaw(rounding, reader.where, key)


def _flaw(rounding: RoundingCheck, where: str, key: str) -> BadInput | None:
    """What is wrong with a column whose differences float32 loses."""
    lost = rounding.lost()
    if lost is None:
        return None
    at, found, expected, hint = lost
    what, hint = f"column {at} loses its differences", f"{hint}; x.astype('float32') takes it as it is"
    return BadInput(what, where=where, key=key, found=found, expected=expected, hint=hint)


def _unusable(images: Array, raw: Array, first: int) -> tuple[str, str, str] | None:
    """What is wrong with the first image of which float32 does not hold every value, found where, and what to do.

    ``images``: as float32; ``raw``: as stored; both [n, …], and ``first`` is the position of the first of them.
    """
    if images.dtype == np.uint8:
        return None
    if raw.dtype.kind in "iub":
        lost = _lost(raw)
        if lost is None:
            return None
        index, value = lost
        found = f"{value} in image {first + index}"
        return "an integer that float32 does not hold exactly", found, "divide, or round it: x.astype('float32')"
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if finite.all():
        return None
    index = int(finite.argmin())
    what = "a value beyond float32" if np.isfinite(raw[index]).all() else "NaN or Inf"
    if raw.ndim == 2:
        return "not every feature is a number", f"{what} in row {first + index}", "drop or repair the row"
    return "not every pixel is a number", f"{what} in image {first + index}", "drop or repair the image"


def _lost(raw: Array) -> tuple[int, int] | None:
    """Position and value of the first integer of ``raw`` [n, …] that has more significant bits than float32 keeps."""
    if raw.dtype.itemsize < 4:
        return None
    values = raw.reshape(len(raw), -1)
    if values.min() >= -_EXACT and values.max() <= _EXACT:
        return None
    native = values.astype(np.int64 if raw.dtype.kind == "i" else np.uint64)
    sizes = np.abs(native).view(np.uint64)  # of the smallest integer as well
    lowest = np.maximum(sizes & (~sizes + np.uint64(1)), np.uint64(1))
    rows, places = np.nonzero(sizes // lowest >= _EXACT)
    return (int(rows[0]), int(native[rows[0], places[0]])) if len(rows) else None


def _canonical(images: Array) -> Array:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(images, np.uint8 if images.dtype == np.uint8 else np.float32)
