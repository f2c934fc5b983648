"""A folder of pictures as a batch: listed, decoded by a few threads in order, transformed, and written as they come.

However many there are, only some are in memory at a time. Broken ones are counted to the end before anything is said.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeAlias, TypeVar

import numpy as np

from clmoe_cli.data.batch import MAX_BYTES, Array, Batch, LabelUse, Raw
from clmoe_cli.data.decoding import Look, decode, look
from clmoe_cli.data.extraction import Extractor, collecting
from clmoe_cli.data.listing import Listing, list_pictures, named_pictures
from clmoe_cli.data.npz import name_list, one_line
from clmoe_cli.data.transforms import shape_after, transformed
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.distributed.processes import joined
from clmoe_cli.runtime.events import OnStep, begun, silent, whole
from clmoe_cli.runtime.words import amount
from store_schema.errors import BadInput
from store_schema.records import InputRecord

T = TypeVar("T")
ReadAll: TypeAlias = Callable[[list[str]], list[T | BadInput]]
THREADS = min(4, os.cpu_count() or 1)
_AT_ONCE = limits.PICTURES_BYTES
_TRIED = 16
"""Pictures that are tried for the first readable one."""


@dataclass
class _Broken:
    """Pictures that cannot be used and why, by path, in order."""

    found: dict[str, BadInput] = field(default_factory=dict)

    def each(
        self,
        paths: Sequence[str],
        read: Callable[[str], T],
        at_once: int,
        on_step: OnStep,
        name: str,
        share: Callable[[ReadAll[T], list[str]], list[T | BadInput]] = lambda read_all, part: read_all(part),
    ) -> Iterator[tuple[str, T]]:
        """Path and what was read of each that is not broken, in order; several are read at the same time.

        ``share``: how so many as are read at once are read, and by whom.
        """

        def attempt(path: str) -> T | BadInput:
            try:
                return read(path)
            except BadInput as error:  # a failing disk is no broken picture
                return error

        left = [path for path in paths if path not in self.found]
        to = begun(on_step, name, len(left), "pictures")
        with ThreadPoolExecutor(THREADS) as pool:
            for start in range(0, len(left), at_once):
                part = left[start : start + at_once]
                results = share(lambda some: list(pool.map(attempt, some)), part)
                for path, result in zip(part, results, strict=True):
                    if isinstance(result, BadInput):
                        self.found[path] = result
                    else:
                        yield path, result
                to(start + len(part))

    def refuse(self, listed: Listing, folder: str, skipping: bool = False) -> None:
        """BadInput that says what is wrong with the first, and names and counts them all.

        ``skipping``: such pictures were to be left out, and none is left.
        """
        count, first = len(listed.paths), self.found[min(self.found)]
        names = [_shown(path, listed, folder) for path in sorted(self.found)]
        named = f"{len(names)} of {amount(count, 'picture')} broken: {name_list(names)}"
        found = "; ".join(text for text in (first.found, named) if text)
        others = "no other picture is left" if skipping else "--skip-broken leaves such pictures out"
        hint = "; ".join(text for text in (first.hint, others) if text)
        raise BadInput(first.what, where=first.where, found=found, expected=first.expected, hint=hint)


@dataclass(frozen=True)
class Folder:
    """Pictures of an ImageFolder tree, or of a flat folder without labels, that are listed: what they are is known.

    Without ``image_size`` they have one size. Without ``channels`` they are grey if all are, else RGB.
    """

    source: str
    listed: Listing
    use: LabelUse
    skip_broken: bool
    on_step: OnStep = silent

    @staticmethod
    def of(folder: str, use: LabelUse, skip_broken: bool, on_step: OnStep = silent) -> Folder:
        """Lists a folder."""
        with whole(on_step, "listing the pictures"):
            return Folder(folder, list_pictures(folder, use), use, skip_broken, on_step)

    @staticmethod
    def named(paths: Sequence[str], skip_broken: bool, on_step: OnStep = silent) -> Folder:
        """Pictures that were named one by one, without labels; ``files`` of the batch are these names."""
        source = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
        return Folder(source, named_pictures(paths), "ignored", skip_broken, on_step)

    @property
    def raw(self) -> Raw:
        """Its first readable picture."""
        with _unwarned():
            return Raw(True, _first_shape([path for path in self.listed.paths if path not in self.listed.unread]))

    def read(self, input: InputRecord | None, extractor: Extractor | None = None) -> Batch:
        """The pictures after their transform, as :func:`clmoe_cli.data.read_batch` reads them."""
        listed, folder = self.listed, self.source
        paths, names = listed.paths, listed.names
        with _unwarned():
            images, record, broken = _read(listed, input, extractor, folder, self.skip_broken, self.on_step)
        kept = [i for i, path in enumerate(paths) if path not in broken]
        labels = None if names is None or self.use == "ignored" else np.array([names[i] for i in kept], dtype=np.str_)
        files = tuple(_shown(paths[i], listed, folder) for i in kept)
        skipped = tuple(_shown(path, listed, folder) for path in broken)
        return Batch(images, labels, folder, record, files, skipped, listed.warnings, listed.notes, listed.others)


@contextmanager
def _unwarned() -> Iterator[None]:
    """Decoders warn of what is of no matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _read(
    listed: Listing,
    record: InputRecord | None,
    extractor: Extractor | None,
    folder: str,
    skip_broken: bool,
    on_step: OnStep,
) -> tuple[Array, InputRecord | None, Sequence[str]]:
    """Images ``[N, C, H, W]`` or features, the record with its channels said, and the paths of broken pictures."""
    paths, where, broken = listed.paths, one_line(folder), _Broken(dict(listed.unread))
    size: tuple[int, int] | None = None
    grey: bool | None = None
    if record is None or record.image_size is None or record.channels is None:
        resizing = record is not None and record.image_size is not None
        size, grey = _survey(paths, broken, resizing, on_step)
    if broken.found and (not skip_broken or len(broken.found) == len(paths)):
        # Those whose pixels only are broken count as well.
        for _ in broken.each(paths, decode, 4 * THREADS, on_step, "looking for broken ones"):
            pass
        broken.refuse(listed, folder)
    if record is not None and record.channels is None:
        record = record.model_copy(update={"channels": 1 if grey else 3})
    fixed = size if record is None or record.image_size is None else (record.image_size, record.image_size)
    assert fixed is not None
    channels = (1 if grey else 3) if record is None or record.channels is None else record.channels
    shape = (len(paths), channels, *fixed)
    image = channels * fixed[0] * fixed[1]
    if extractor is None and len(paths) * image > MAX_BYTES:
        wanted = f"at most {MAX_BYTES} bytes"
        raise BadInput("too many pixels", where=where, found=str(list(shape)), expected=wanted, hint="split it")

    def read(path: str) -> Array:
        pixels = decode(path, grey if record is None else None)
        try:
            after = shape_after(pixels.shape, record)
        except ValueError as error:
            found, hint = f"{pixels.shape[2]}x{pixels.shape[1]}", "crop the picture"
            raise BadInput(str(error), where=one_line(path), found=found, hint=hint) from error
        if after != shape[1:]:  # an orientation that only the pixels' end tells
            raise _other_size(path, (pixels.shape[1], pixels.shape[2]), fixed, paths[0])
        return next(transformed(pixels[None], record))

    name = "reading" if extractor is None else f"features of {extractor.name}"
    with collecting(shape, np.dtype(np.uint8), where, extractor) as spool:
        at_once = max(THREADS, min(limits.PICTURES_DECODED * THREADS, _AT_ONCE // image))

        def share(read_all: ReadAll[Array], part: list[str]) -> list[Array | BadInput]:
            return _in_shares(read_all, part, (1, *shape[1:])) if joined() else read_all(part)

        for _, pixels in broken.each(paths, read, at_once, on_step, name, share):
            spool.append(pixels)
        if broken.found and (not skip_broken or spool.rows == 0):
            broken.refuse(listed, folder, skip_broken)
        return spool.finish(), record, tuple(path for path in paths if path in broken.found)


def _in_shares(read_all: ReadAll[Array], paths: list[str], shape: tuple[int, ...]) -> list[Array | BadInput]:
    """What several processes read of these pictures, each a share of them: arrays of uint8 of that shape."""
    from clmoe_cli.runtime.distributed import sharing

    found = read_all(paths[sharing.own(len(paths))])
    pixels = np.zeros((len(found), *shape), np.uint8)
    broken: list[dict[str, str] | None] = [None] * len(found)
    for place, result in enumerate(found):
        if isinstance(result, BadInput):
            broken[place] = sharing.fields(result)
        else:
            pixels[place] = result
    pixels, said = sharing.everyones(pixels, len(paths), broken)
    problems = [None if one is None else sharing.error_of(BadInput, one) for each in said for one in each]
    return [pixels[i] if problem is None else problem for i, problem in enumerate(problems)]


def _survey(paths: list[str], broken: _Broken, resizing: bool, on_step: OnStep) -> tuple[tuple[int, int] | None, bool]:
    """Height and width of the first readable picture, and whether all are grey; all are of one size, unless resized."""
    first: tuple[str, Look] | None = None
    grey = True
    for path, seen in broken.each(paths, look, limits.PICTURES_LOOKED_AT * THREADS, on_step, "looking through"):
        first = first or (path, seen)
        grey &= seen.grey
        size, wanted = (seen.height, seen.width), (first[1].height, first[1].width)
        if size != wanted and not resizing:
            raise _other_size(path, size, wanted, first[0])
    return (first[1].height, first[1].width) if first else None, grey


def _other_size(path: str, size: tuple[int, int], wanted: tuple[int, int], first: str) -> BadInput:
    return BadInput(
        "pictures differ in size",
        where=one_line(path),
        found=f"{size[1]}x{size[0]}",
        expected=f"{wanted[1]}x{wanted[0]}, as in {one_line(first)}",
        hint="--image-size N resizes them all, and so does --features lite0",
    )


def _first_shape(paths: list[str]) -> tuple[int, ...] | None:
    for path in paths[:_TRIED]:
        try:
            seen = look(path)
        except BadInput:
            continue
        return 1 if seen.grey else 3, seen.height, seen.width
    return None


def _shown(path: str, listed: Listing, folder: str) -> str:
    """A picture's name for people: as it was given, or its path in the folder."""
    return one_line(path if listed.named else os.path.relpath(path, folder))
