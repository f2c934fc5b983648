"""Files to checked arrays: what leaves here is well-formed, or the caller got one line that says why not.

Images come out as ``[N, D]`` or channels-first ``[N, C, H, W]``, uint8 or finite float32; labels as int64 or
unicode ``[N]``. Nothing is unpickled, and neither torch nor an image library is imported before a folder of
pictures is read.
"""

from __future__ import annotations

import contextlib
import os
import sys
import unicodedata
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from clmoe_cli.npz import MAX_BYTES, Header, NpzReader, name_list, one_line, open_npz, read_problem
from store_schema.errors import BadInput, ClmoeError, UsageProblem

IMAGE_KEYS = ("x", "X", "images", "data")
LABEL_KEYS = ("y", "Y", "labels", "targets")
CHANNELS = (1, 3, 4)
Array: TypeAlias = np.ndarray[Any, Any]
LabelUse: TypeAlias = Literal["required", "optional", "ignored"]

_BLOCK = 1 << 22
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP")
_LAYOUTS = "[N, D], [N, H, W], [N, C, H, W] or [N, H, W, C]"
_PIXEL_HINTS = {
    "i": "x.astype('uint8') if the values are 0 to 255, else x.astype('float32')",
    "u": "x.astype('uint8') if the values are 0 to 255, else x.astype('float32')",
    "b": "x.astype('uint8') * 255",
    "O": "stack the pictures into one array of one dtype and size",
}
_LABEL_HINTS = {"f": "y.astype(int)", "b": "y.astype(int)", "O": "y.astype(str) or y.astype(int)"}


@dataclass(frozen=True, eq=False)
class Batch:
    """Checked images and labels.

    ``images``: C-contiguous uint8 (0 to 255) or float32 (as stored), ``[N, D]`` or ``[N, C, H, W]``, N ≥ 1.
    ``labels``: int64 or unicode ``[N]``, or None. ``source``: as given by the user.
    """

    images: Array
    labels: Array | None
    source: str

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image: ``(D,)`` or ``(C, H, W)``, with C = 1 for grey."""
        return tuple(self.images.shape[1:])

    def classes(self) -> tuple[int | str, ...]:
        """The different labels, sorted, as Python values; empty without labels."""
        return () if self.labels is None else tuple(np.unique(self.labels).tolist())

    def scaled(self) -> Array:
        """Images as float32 ``[N, *input_shape]``: uint8 divided by 255; float ones themselves, no copy."""
        if self.images.dtype == np.uint8:
            return self.images.astype(np.float32) / np.float32(255)
        return self.images


def read_batch(source: str, *, labels: LabelUse) -> Batch:
    """Read an npz, ``-`` (an npz on stdin) or a folder of pictures.

    A 4-D array is channels-first if its second axis is 1, 3 or 4, else channels-last. "ignored" labels are
    not even looked at. Raises BadInput for anything wrong with the data, UsageProblem for an empty source,
    DiskProblem for a failing disk; each is one line.
    """
    if not source:
        raise UsageProblem("no data given", expected="an npz file, a folder of pictures, or - for stdin")
    if "\0" in source:
        raise BadInput("not a path", where=one_line(source), hint="check the path")
    if source != "-" and _is_folder(source):
        return _read_folder(source, labels)
    with open_npz(source) as reader:
        key = next((key for key in IMAGE_KEYS if key in reader.names), None)
        if key is None:
            wanted = "one of " + ", ".join(IMAGE_KEYS)
            hint = "numpy.savez(path, x=images, y=labels)"
            found = name_list(reader.names)
            raise BadInput("no images in the file", where=reader.where, found=found, expected=wanted, hint=hint)
        header = reader.header(key)
        _check_images(header, reader.where, key)
        found_labels = None if labels == "ignored" else _read_labels(reader, header.shape[0], labels)
        return Batch(_pixels(reader.read(key), reader.where, key), found_labels, source)


def _is_folder(source: str) -> bool:
    try:
        return Path(source).is_dir()
    except OSError:  # opening it as a file then says why
        return False


def _check_images(header: Header, where: str, key: str) -> None:
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


def _pixels(images: Array, where: str, key: str) -> Array:
    """Canonical layout, C-contiguous, native byte order, float32 unless uint8; BadInput for NaN or Inf."""
    if images.ndim == 3:
        images = images[:, None]
    elif images.ndim == 4 and images.shape[1] not in CHANNELS:
        images = images.transpose(0, 3, 1, 2)
    if images.dtype == np.uint8:
        return np.ascontiguousarray(images)
    ready = images.dtype.isnative and images.dtype == np.float32 and images.flags.c_contiguous
    out = images if ready else np.empty(images.shape, np.float32)
    step = max(1, _BLOCK // max(1, images[0].size))
    for start in range(0, len(images), step):
        block = slice(start, start + step)
        if not ready:
            with np.errstate(over="ignore", invalid="ignore"):
                out[block] = images[block]
        bad = ~np.isfinite(out[block]).reshape(len(out[block]), -1).all(axis=1)
        if bad.any():
            index = start + int(bad.argmax())
            finite = bool(np.isfinite(images[index]).all())
            found = f"a value beyond float32 in image {index}" if finite else f"NaN or Inf in image {index}"
            hint = "drop or repair the image"
            raise BadInput("not every pixel is a number", where=where, key=key, found=found, hint=hint)
    return out


def _read_labels(reader: NpzReader, count: int, use: LabelUse) -> Array | None:
    """Labels ``[count]`` as int64 or unicode, or None where the file has none and they are optional."""
    key = next((key for key in LABEL_KEYS if key in reader.names), None)
    if key is None:
        if use == "optional":
            return None
        wanted, found = "one of " + ", ".join(LABEL_KEYS), name_list(reader.names)
        hint = "numpy.savez(path, x=images, y=labels)"
        raise BadInput("no labels in the file", where=reader.where, found=found, expected=wanted, hint=hint)
    fail = partial(BadInput, where=reader.where, key=key)
    header = reader.header(key)
    dtype, shape = header.dtype, list(header.shape)
    if dtype.kind not in "iuUS":
        hint, wanted = _LABEL_HINTS.get(dtype.kind, "y.astype(str)"), "integers or strings"
        raise fail("labels of this type cannot be used", found=str(dtype), expected=wanted, hint=hint)
    if shape != [count]:
        hint = "one label for each image"
        if len(shape) == 2 and shape[0] == count:
            hint = "y.ravel()" if shape[1] == 1 else "y.argmax(1) if they are one-hot"
        raise fail("labels do not match the images", found=str(shape), expected=str([count]), hint=hint)
    if dtype.itemsize == 0:
        raise fail("a label is empty", expected="a name without control characters")
    labels = reader.read(key)
    if dtype.kind in "iu":
        if dtype.kind == "u" and int(labels.max()) > np.iinfo(np.int64).max:
            raise fail("a label is too big", found=str(labels.max()), expected="at most 2**63 - 1")
        return labels.astype(np.int64)
    try:
        native = labels.astype(dtype.newbyteorder("="))
        if dtype.kind == "U" and native.view(np.uint32).max() > sys.maxunicode:
            raise ValueError("beyond Unicode")
        texts = np.char.decode(native, "utf-8") if dtype.kind == "S" else native
        names = np.unique(texts).tolist()
    except (UnicodeDecodeError, ValueError):
        hint = "store the labels as unicode: y.astype(str)"
        raise fail("a label is not text", expected="unicode, or bytes in UTF-8", hint=hint) from None
    _check_names(names, reader.where, key)
    return np.asarray(texts)


def _check_names(names: Sequence[str], where: str, key: str | None) -> None:
    for name in names:
        if not name.strip() or any(unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp") for char in name):
            what = "a label is empty" if not name.strip() else "a label has control characters"
            wanted = "a name without control characters"
            shown, hint = ascii(name[:60]), "rename the class"
            raise BadInput(what, where=where, key=key, found=shown, expected=wanted, hint=hint)


def _read_folder(folder: str, use: LabelUse) -> Batch:
    """Pictures of an ImageFolder tree, or of a flat folder without labels; grey if all are, else RGB."""
    where = one_line(folder)
    try:
        paths, names = _list_pictures(folder, where)
    except OSError as error:
        raise read_problem(error, where) from error
    if names is None and use == "required":
        hint = "put the pictures of each class in a folder with its name"
        found = "pictures without class folders"
        raise BadInput("no labels", where=where, found=found, expected="class folders", hint=hint)
    if names is not None:
        _check_names(sorted(set(names)), where, None)
    size: tuple[int, int] = (0, 0)
    grey = True
    for path in paths:
        with _picture(path) as picture:
            size = size if path != paths[0] else picture.size
            grey &= picture.mode in ("L", "1")
            found = f"{picture.size[0]}x{picture.size[1]}"
            if picture.mode in ("I", "F") or picture.mode.startswith("I;"):
                hint = "save the pictures with 8 bits a channel"
                raise BadInput("not an 8-bit picture", where=one_line(path), found=picture.mode, hint=hint)
            if picture.size != size:
                hint = "resize the pictures to one size (resizing here comes in a later version)"
                wanted = f"{size[0]}x{size[1]}, as in {one_line(paths[0])}"
                raise BadInput("pictures differ in size", where=one_line(path), found=found, expected=wanted, hint=hint)
    shape = (len(paths), 1 if grey else 3, size[1], size[0])
    if len(paths) * shape[1] * shape[2] * shape[3] > MAX_BYTES:
        wanted = f"at most {MAX_BYTES} bytes"
        raise BadInput("too many pixels", where=where, found=str(list(shape)), expected=wanted, hint="split it")
    images = np.empty(shape, np.uint8)
    for index, path in enumerate(paths):
        with _picture(path) as picture:
            pixels = np.asarray(picture.convert("L" if grey else "RGB"))
            images[index] = pixels[None] if grey else pixels.transpose(2, 0, 1)
    found_labels = None if names is None or use == "ignored" else np.array(names, dtype=np.str_)
    return Batch(images, found_labels, folder)


def _list_pictures(folder: str, where: str) -> tuple[list[str], list[str] | None]:
    """Sorted paths of the pictures and their classes (None for a flat folder); hidden folders are skipped."""
    from torchvision.datasets.folder import IMG_EXTENSIONS, ImageFolder

    with os.scandir(folder) as scan:
        entries = [(entry.name, entry.is_dir()) for entry in scan if not entry.name.startswith(".")]
    if any(is_dir for _, is_dir in entries):
        tree = ImageFolder(folder, allow_empty=True)
        named = [(path, tree.classes[index]) for path, index in tree.samples]
        samples = [(path, name) for path, name in named if not name.startswith(".")]
        filled = {name for _, name in samples}
        empty = sorted(name for name, is_dir in entries if is_dir and name not in filled)
        if samples and empty:
            hint = "remove the folder or fill it"
            raise BadInput("a class folder has no pictures", where=where, found=name_list(empty), hint=hint)
        if samples:
            return [path for path, _ in samples], [name for _, name in samples]
    flat = sorted(name for name, is_dir in entries if not is_dir and name.lower().endswith(IMG_EXTENSIONS))
    if not flat:
        wanted = "folder/CLASS/picture with " + ", ".join(IMG_EXTENSIONS)
        found = name_list([name for name, _ in entries])
        raise BadInput("no pictures in the folder", where=where, found=found, expected=wanted)
    return [str(Path(folder) / name) for name in flat], None


@contextlib.contextmanager
def _picture(path: str) -> Iterator[Any]:
    """An open picture; whatever an image decoder raises on a broken file becomes BadInput."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(path, formats=_FORMATS) as picture:
                yield picture
        except ClmoeError:
            raise
        except Exception as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise read_problem(error, one_line(path)) from error
            hint = "repair or remove the picture"
            kind = type(error).__name__
            raise BadInput("broken picture", where=one_line(path), found=kind, hint=hint) from error
