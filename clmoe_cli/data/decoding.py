"""One picture at a time: opened, looked at, decoded; whatever a decoder raises on a broken file becomes BadInput."""

from __future__ import annotations

import contextlib
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clmoe_cli.data.npz import one_line, read_problem
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.packages import missing
from store_schema.errors import BadInput, ClmoeError

Array: TypeAlias = np.ndarray[Any, Any]

_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "TIFF", "WEBP", "GIF", "AVIF", "HEIF")
PLUGIN = "pi_heif"
"""What lets Pillow read pictures of phones; it has a decoder and no encoder."""
_GREY = ("L", "1")
_ORIENTATION = 0x0112
_LYING = (5, 6, 7, 8)
"""EXIF orientations in which rows are stored as columns."""
_DEEP = re.compile(r";(12|16|24|32)[A-Z]")
"""In the names that PIL has for how pixels are stored: so many bits a channel, which it cuts to 8 in silence."""
_CONFIGURATION = b"av1C"
_LOOKED_AT = limits.PICTURE_HEAD_BYTES


@dataclass(frozen=True)
class Look:
    """What a picture says of itself: height and width as it is seen, and whether it is grey."""

    height: int
    width: int
    grey: bool


def look(path: str) -> Look:
    """Size and colour of a picture without keeping its pixels; BadInput where it cannot be used."""
    with _opened(path) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION) in _LYING:
            width, height = height, width
        return Look(height, width, is_grey(picture))


def decode(path: str, grey: bool | None = None) -> Array:
    """Pixels uint8 ``[1 or 3, H, W]``, upright by EXIF; grey, or RGB, or (None) grey if the picture is.

    Palettes, CMYK and the like become RGB, opacity is dropped: as in torchvision's own loader of folders. BadInput
    where the picture is broken, or has more than 8 bits a channel and no RGB.
    """
    with _opened(path) as picture:
        return _pixels(picture, is_grey(picture) if grey is None else grey)


def pixels_of(picture: Any, grey: bool) -> Array:
    """The same of a picture of Pillow that is in memory; errors name no file."""
    if _is_deep(picture):
        raise BadInput("not an 8-bit picture", found=picture.mode, hint="convert it: picture.convert('RGB')")
    try:
        return _pixels(picture, grey)
    except Exception as error:  # Pillow reads a file only now, and raises whatever its decoders do
        raise BadInput("broken picture", found=one_line(error)[:80], hint="repair or leave out the picture") from error


def is_grey(picture: Any) -> bool:
    """Whether a picture of Pillow has no colour."""
    return bool(picture.mode in _GREY)


def _pixels(picture: Any, grey: bool) -> Array:
    from PIL import ImageOps

    pixels = np.array(ImageOps.exif_transpose(picture).convert("L" if grey else "RGB"))
    return pixels[None] if grey else np.ascontiguousarray(pixels.transpose(2, 0, 1))


@contextlib.contextmanager
def _opened(path: str) -> Iterator[Any]:
    from PIL import Image

    try:
        if not stat.S_ISREG(Path(path).stat().st_mode):  # a pipe would be waited for without end
            raise BadInput("not a regular file", where=one_line(path), expected="a picture")
        with Image.open(path, formats=_formats()) as picture:
            most = Image.MAX_IMAGE_PIXELS
            # PIL only warns of it, and warnings cannot be set for one thread.
            if most is not None and picture.size[0] * picture.size[1] > most:
                raise _too_large(path, picture.size, most)
            deep = _deep(picture, path)
            if deep:
                hint = "save it with 8 bits a channel"
                raise BadInput("not an 8-bit picture", where=one_line(path), found=deep, hint=hint)
            yield picture
    except ClmoeError:
        raise
    except Exception as error:
        if isinstance(error, Image.DecompressionBombError):  # twice as many: PIL does not even say how many
            raise BadInput(
                "too many pixels", where=one_line(path), expected=f"at most {Image.MAX_IMAGE_PIXELS} pixels",
                hint="make it smaller",
            ) from error  # fmt: skip
        if isinstance(error, OSError) and error.errno is not None:
            raise read_problem(error, one_line(path)) from error
        # Pillow says what is wrong by a bare OSError, and by the name of its own errors.
        kind = one_line(error)[:80] if type(error) is OSError and str(error) else type(error).__name__
        raise BadInput(
            "broken picture", where=one_line(path), found=kind, hint="repair or remove the picture"
        ) from error


def _too_large(path: str, size: tuple[int, int], most: int) -> BadInput:
    found, wanted = f"{size[0]}x{size[1]}", f"at most {most} pixels"
    return BadInput("too many pixels", where=one_line(path), found=found, expected=wanted, hint="make it smaller")


@lru_cache(maxsize=1)
def _formats() -> tuple[str, ...]:
    """Those of ``_FORMATS`` that the installed Pillow can read, with its plug-in where that is there."""
    from PIL import Image

    Image.init()
    if not missing(PLUGIN):
        import pi_heif

        pi_heif.register_heif_opener()
    return tuple(name for name in _FORMATS if name in Image.OPEN)


def _is_deep(picture: Any) -> bool:
    """Whether the mode of a picture has more than 8 bits a channel."""
    return bool(picture.mode in ("I", "F") or picture.mode.startswith("I;"))


def _deep(picture: Any, path: str) -> str:
    """How a picture stores more than 8 bits a channel; nothing where it does not."""
    if picture.format == "HEIF" and picture.info.get("bit_depth", 8) > 8:
        return f"{picture.info['bit_depth']} bits a channel"
    if _is_deep(picture):
        return str(picture.mode)
    for tile in picture.tile:
        stored = next((part for part in _flat(tile[-1]) if isinstance(part, str) and _DEEP.search(part)), None)
        if stored is not None:
            return stored
        # Of a PPM it is the largest value that says so.
        if picture.format == "PPM" and any(isinstance(part, int) and part > 255 for part in _flat(tile[-1])):
            return "more than 8 bits a channel"
    if picture.format == "AVIF":
        with Path(path).open("rb") as file:
            head = file.read(_LOOKED_AT)
        place = head.find(_CONFIGURATION) + len(_CONFIGURATION) + 2  # its third byte has the bit for high depth
        if place < len(head) and _CONFIGURATION in head and head[place] & 0x40:
            return "more than 8 bits a channel"
    return ""


def _flat(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _flat(part)
    else:
        yield value
