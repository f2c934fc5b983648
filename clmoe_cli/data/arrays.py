"""Files to checked arrays: what leaves here is well-formed, or the caller got one line that says why not.

Images come out as ``[N, D]`` or channels-first ``[N, C, H, W]``, uint8 or finite float32; labels as int64 or
unicode ``[N]``. Nothing is unpickled, and neither torch nor an image library is imported before pictures are read
or transformed. Images that are larger than memory are read in parts and lie on disk (:mod:`clmoe_cli.data.spool`).
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import numpy as np

from clmoe_cli.continual.steps import OnStep, begun, silent
from clmoe_cli.data.batch import MAX_BYTES, Array, Batch, Choice, LabelUse, Raw
from clmoe_cli.data.npz import Header, NpzReader, name_list, one_line
from clmoe_cli.data.sources import open_npz
from clmoe_cli.data.spool import Spool
from clmoe_cli.data.targets import read_labels
from clmoe_cli.data.transforms import resolved, shape_after, transformed
from store_schema.errors import BadInput, UsageProblem
from store_schema.records import InputRecord

IMAGE_KEYS = ("x", "X", "images", "data")
CHANNELS = (1, 3, 4)
MOST_VALUES = 1 << 28
"""Values of one image: it is handled whole."""

_LAYOUTS = "[N, D], [N, H, W], [N, C, H, W] or [N, H, W, C]"
_PIXEL_HINTS = {
    "i": "x.astype('uint8') if the values are 0 to 255, else x.astype('float32')",
    "u": "x.astype('uint8') if the values are 0 to 255, else x.astype('float32')",
    "b": "x.astype('uint8') * 255",
    "O": "stack the pictures into one array of one dtype and size",
}


def read_batch(
    source: str,
    *,
    labels: LabelUse,
    input: Choice = None,
    skip_broken: bool = False,
    on_step: OnStep = silent,
) -> Batch:
    """Read an npz, ``-`` (an npz on stdin) or a folder of pictures.

    A 4-D array is channels-first if its second axis is 1, 3 or 4, else channels-last. "ignored" labels are
    not even looked at. ``input``: what the images are to go through, or a function that says so of their
    :class:`Raw` shape; the batch's own says it with channels. ``skip_broken``: leave out pictures of a folder that
    cannot be read, and name them in the batch. ``on_step``: is told how much is read.

    Raises BadInput for anything wrong with the data, UsageProblem for an empty source, DiskProblem for a failing disk,
    or one that has no room for images that memory has none for; each is one line.
    """
    if not source:
        raise UsageProblem("no data given", expected="an npz file, a folder of pictures, or - for stdin")
    if "\0" in source:
        raise BadInput("not a path", where=one_line(source), hint="check the path")
    if source != "-" and _is_folder(source):
        from clmoe_cli.data.pictures import read_folder

        return read_folder(source, labels, input, skip_broken, on_step)
    with open_npz(source, on_step) as reader:
        key = next((key for key in IMAGE_KEYS if key in reader.names), None)
        if key is None:
            wanted = "one of " + ", ".join(IMAGE_KEYS)
            hint = "numpy.savez(path, x=images, y=labels)"
            found = name_list(reader.names)
            raise BadInput("no images in the file", where=reader.where, found=found, expected=wanted, hint=hint)
        header = reader.header(key)
        shape = _image_shape(header, reader.where, key)
        record = input(Raw(False, shape)) if callable(input) else input
        if record is not None and len(shape) == 3:
            record = resolved(record, shape[0])
        found_labels = None if labels == "ignored" else read_labels(reader, header.shape[0], labels)
        return Batch(_pixels(reader, key, header, shape, record, on_step), found_labels, source, record)


def _is_folder(source: str) -> bool:
    try:
        return Path(source).is_dir()
    except OSError:  # opening it as a file then says why
        return False


def _image_shape(header: Header, where: str, key: str) -> tuple[int, ...]:
    """``(D,)`` or ``(C, H, W)``; BadInput for arrays that are no images."""
    fail = partial(BadInput, where=where, key=key)
    dtype, shape = header.dtype, header.shape
    if dtype != np.uint8 and (dtype.kind != "f" or dtype.itemsize > 8):
        hint, wanted = _PIXEL_HINTS.get(dtype.kind, "x.astype('float32')"), "uint8 or float16, 32 or 64"
        raise fail("images of this type cannot be used", found=str(dtype), expected=wanted, hint=hint)
    if not 2 <= len(shape) <= 4:
        raise fail("not a shape of images", found=str(list(shape)), expected=_LAYOUTS, hint="reshape the array")
    if 0 in shape:
        raise fail("no images in the array", found=str(list(shape)), expected="at least one image and one pixel")
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
    on_step: OnStep,
) -> Array:
    """Images in canonical layout, C-contiguous, native byte order, float32 unless uint8, after their transform.

    BadInput for NaN or Inf, once the file is known to be whole.
    """
    fail = partial(BadInput, where=reader.where, key=key)
    dtype = np.dtype(np.uint8 if header.dtype == np.uint8 else np.float32)
    try:
        out = (header.shape[0], *shape_after(shape, record))
    except ValueError as error:
        hint = "leave --image-size out" if len(shape) == 1 else None
        raise fail(str(error), found=str(list(header.shape)), hint=hint) from error
    if math.prod(out) * dtype.itemsize > MAX_BYTES:
        wanted = f"at most {MAX_BYTES} bytes"
        raise fail("the images are too big", found=str(list(out)), expected=wanted, hint="split the file")
    seen, bad, to = 0, "", begun(on_step, "reading", header.shape[0], "images")
    with Spool(out, dtype, reader.where) as spool:
        for raw in reader.blocks(key):
            images = _canonical(raw)
            bad = bad or _not_finite(images, raw, seen)
            if not bad:
                for part in transformed(images, record):
                    spool.append(part)
            seen += len(images)
            to(seen)
        if bad:
            raise fail("not every pixel is a number", found=bad, hint="drop or repair the image")
        return spool.finish()


def _not_finite(images: Array, raw: Array, first: int) -> str:
    """What is wrong with the first image of which not every pixel is finite; nothing where there is none."""
    if images.dtype == np.uint8:
        return ""
    finite = np.isfinite(images).reshape(len(images), -1).all(axis=1)
    if finite.all():
        return ""
    index = int(finite.argmin())
    what = "a value beyond float32" if np.isfinite(raw[index]).all() else "NaN or Inf"
    return f"{what} in image {first + index}"


def _canonical(images: Array) -> Array:
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.ascontiguousarray(images, np.uint8 if images.dtype == np.uint8 else np.float32)
