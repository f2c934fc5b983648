"""Small pictures of a store's classes, read from a folder of the user's; they go into a page and into nothing else.

A thumbnail is made of the pixels alone: what a picture's file says besides them, such as a place, is left behind.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from clmoe_cli.data.decoding import Array, decode
from clmoe_cli.data.listing import PHONES, READ
from clmoe_cli.data.npz import one_line, read_problem
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, counted
from clmoe_cli.runtime.words import nfc
from store_schema.errors import BadInput

if TYPE_CHECKING:
    from clmoe_cli.api.inspect import InspectReport
    from clmoe_cli.data import Batch

SIDE = 96
"""The longer side of a thumbnail, in pixels."""
EACH, ALL = 4, 400
"""At most so many pictures of a class; fewer of each where there are so many classes that the page would have more."""
TRIED = 16
"""Pictures of a class that are tried where some are broken."""
QUALITY = 75
_MOST = limits.THUMBNAILS_BYTES


@dataclass(frozen=True)
class ClassPictures:
    """A class and its pictures: ``uris``, JPEG as data: URIs. ``broken``: how many could not be read.

    ``full``: the pictures were left out, since the page has as many bytes of them as it may.
    """

    name: str
    uris: tuple[str, ...] = ()
    broken: int = 0
    full: bool = False


@dataclass(frozen=True)
class TaskPictures:
    """The classes of a task that have pictures, or broken ones, and the names of those that have none."""

    task: str
    shown: tuple[ClassPictures, ...]
    none: tuple[str, ...]


def check_folder(folder: Path) -> None:
    """BadInput where there is no such folder."""
    if not folder.is_dir():
        hint = "a folder of class folders, or of task folders with class folders inside"
        raise BadInput("no such folder", where=one_line(folder), key="--with-pictures", hint=hint)


def thumbnails(report: InspectReport, folder: Path, on_step: OnStep) -> tuple[TaskPictures, ...]:
    """A few pictures of each class of a store, from ``folder``/TASK/CLASS, ``folder``/CLASS or ``folder``/*/CLASS.

    Names from the store are compared with the names of folders and never become paths. Raises BadInput for a folder
    that may not be read, DiskProblem for a disk that fails.
    """
    check_folder(folder)
    found = _Folders.of(folder)
    total = sum(len(task.classes) for task in report.tasks)
    each, left = max(1, min(EACH, ALL // max(total, 1))), _MOST
    tasks: list[TaskPictures] = []
    for task in counted(report.tasks, on_step, "reading pictures", "tasks"):
        shown: list[ClassPictures] = []
        none: list[str] = []
        for label in task.classes:
            files = found.pictures(nfc(task.name), nfc(str(label)))
            own = _class_pictures(str(label), files, each, left)
            left = 0 if own.full else left - sum(map(len, own.uris))
            if files:
                shown.append(own)
            else:
                none.append(own.name)
        tasks.append(TaskPictures(task.name, tuple(shown), tuple(none)))
    return tuple(tasks)


@dataclass(frozen=True)
class _Folders:
    """Sub-folders by name, and those of each of them by name; names are in NFC, as labels are."""

    first: dict[str, Path]
    second: dict[str, dict[str, Path]]

    @staticmethod
    def of(folder: Path) -> _Folders:
        first = _inside(folder)
        return _Folders(first, {name: _inside(path) for name, path in first.items()})

    def pictures(self, task: str, label: str) -> list[str]:
        """The pictures of the first folder of that name that has any, sorted."""
        within = [*self.second.get(task, {}).items()]
        within += [(label, self.first[label])] if label in self.first else []
        within += [pair for name in sorted(self.second) for pair in self.second[name].items()]
        for name, path in within:
            if name == label and (files := _pictures_below(path)):
                return files
        return []


def _inside(folder: Path) -> dict[str, Path]:
    try:
        entries = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError as error:
        raise read_problem(error, one_line(folder)) from error
    return {nfc(path.name): path for path in entries}


def _pictures_below(folder: Path) -> list[str]:
    """Files in a format that is read, in the folder and those inside, without hidden ones."""
    found = [path for path in folder.rglob("*") if path.suffix.lower() in (*READ, *PHONES) and path.is_file()]
    return sorted(str(p) for p in found if not any(part.startswith(".") for part in p.relative_to(folder).parts))


def _class_pictures(name: str, files: Sequence[str], each: int, most: int) -> ClassPictures:
    """Thumbnails of ``each`` of the files, with at most ``most`` bytes in all; others stand in for broken ones."""
    if most <= 0:
        return ClassPictures(name, full=True)
    uris: list[str] = []
    broken = 0
    for path in _spread(files, each):
        if len(uris) == each:
            break
        try:
            uri = _thumbnail(decode(path))
        except BadInput:
            broken += 1
            continue
        if len(uri) > most:
            return ClassPictures(name, tuple(uris), broken, full=not uris)
        most -= len(uri)
        uris.append(uri)
    return ClassPictures(name, tuple(uris), broken)


def _spread(files: Sequence[str], each: int) -> Iterator[str]:
    """``each`` files at even distances, then those that are tried where some of these are broken."""
    chosen = [[len(files) * i // count for i in range(count)] for count in (each, min(TRIED, len(files)))]
    return (files[i] for i in dict.fromkeys(i for part in chosen for i in part) if i < len(files))


def of_input(batch: Batch, row: int) -> str | None:
    """A small picture of one input of a batch as a data: URI; None for what is no picture, or cannot be read any more.

    Of pictures that a backbone has read the file is read again.
    """
    pixels = batch.images[row]
    if pixels.ndim == 3 and len(pixels) in (1, 3):
        if pixels.dtype != np.uint8:
            least, most = float(pixels.min()), float(pixels.max())
            pixels = ((pixels - least) * (255 / ((most - least) or 1.0))).round().astype(np.uint8)
        return _thumbnail(pixels)
    if batch.input is None or batch.input.features is None or batch.files is None:
        return None
    below = Path(batch.source) / batch.files[row]
    try:
        return _thumbnail(decode(str(below if below.is_file() else batch.files[row])))
    except BadInput:
        return None


def _thumbnail(pixels: Array) -> str:
    """Pixels uint8 ``[1 or 3, H, W]`` as a data: URI with a JPEG of at most ``SIDE`` pixels a side."""
    from PIL import Image

    picture = Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0))
    picture.thumbnail((SIDE, SIDE))
    with io.BytesIO() as file:
        picture.save(file, "JPEG", quality=QUALITY, optimize=True)
        return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode("ascii")
