"""Which pictures of a folder are read, and what its sub-folders mean: classes, parts of a split, or neither.

Nothing is left out without a word: what is not taken is refused, or named in the warnings and notes of a listing.
Files that operating systems and editors leave behind (``IGNORED``, and all names with a dot in front) do not count.
"""

from __future__ import annotations

import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from clmoe_cli.data.batch import LabelUse
from clmoe_cli.data.decoding import PLUGIN
from clmoe_cli.data.npz import name_list, one_line, read_problem
from clmoe_cli.data.targets import check_names
from clmoe_cli.runtime.packages import missing
from clmoe_cli.runtime.words import amount
from store_schema.errors import BadInput

READ = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".ppm", ".pgm", ".pbm", ".pnm", ".bmp", ".tif", ".tiff", ".webp", ".gif",
    ".avif",
)  # fmt: skip
"""Of a picture with several frames or pages the first is read."""
PHONES = (".heic", ".heif", ".hif")
"""What phones write; read where :data:`~clmoe_cli.data.decoding.PLUGIN` is installed."""
UNREAD = (
    ".jxl", ".jp2", ".j2k", ".jpx", ".svg", ".ico", ".icns", ".tga", ".psd", ".pcx", ".xcf", ".exr",
    ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".rw2", ".raf", ".raw", ".eps", ".dcm", ".dds", ".wmf",
)  # fmt: skip
PICTURES = (*READ, *PHONES, *UNREAD)
IGNORED = ("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin", "lost+found", "icon\r")
TRAIN = ("train", "training")
HELD_OUT = ("val", "valid", "validation", "test", "testing")


@dataclass(frozen=True)
class Listing:
    """Pictures of a folder, sorted by class, folder and name.

    ``paths`` [N]; ``names``: their classes in NFC [N], None without labels; ``unread``: those of ``paths`` in a format
    that is not read, and why. ``warnings`` and ``notes``: lines for people. ``others``: folders with class folders that
    are the parts of a split which ``learn`` leaves for questions. ``named``: of no folder, but named one by one.
    """

    paths: list[str]
    names: list[str] | None
    unread: dict[str, BadInput]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    others: tuple[str, ...] = ()
    named: bool = False


@dataclass(frozen=True)
class _File:
    """A file: its path, the folders between the listed one and it, and its name."""

    path: str
    folders: tuple[str, ...]
    name: str

    @property
    def order(self) -> tuple[str, str, str]:
        return (self.folders[0] if self.folders else "", str(Path(self.path).parent), self.name)

    @property
    def suffix(self) -> str:
        return os.path.splitext(self.name)[1].lower()  # noqa: PTH122


def list_pictures(folder: str, use: LabelUse) -> Listing:
    """Pictures of a folder, and their classes by the rules of :mod:`clmoe_cli.data.listing`.

    ``use``: "required" refuses what has no clear class; otherwise such pictures are taken without labels. Raises
    BadInput for a folder without pictures, one that may not be read, and names that no class can have.
    """
    return _Sorting(folder, use).listing()


def named_pictures(paths: Sequence[str]) -> Listing:
    """Pictures that were named one by one, in that order, without classes."""
    files = [_File(path, (), Path(path).name) for path in paths]
    return Listing(list(paths), None, _unread(files), (), (), named=True)


class _Sorting:
    """One folder being listed."""

    def __init__(self, folder: str, use: LabelUse) -> None:
        self.folder, self.use, self.where = folder, use, one_line(folder)
        self.warnings: list[str] = []
        self.notes: list[str] = []
        self.others: list[str] = []
        self.files, self.folders, again = _walk(folder)
        if again:
            self.warnings.append(f"left out, since what they lead to is read already: links {name_list(again)}")
        self.pictures = sorted((f for f in self.files if f.suffix in PICTURES), key=lambda f: f.order)
        self.top = [f for f in self.pictures if not f.folders]

    def listing(self) -> Listing:
        """The pictures and their classes."""
        if not self.pictures:
            wanted = "folder/CLASS/picture with " + ", ".join(READ)
            found = name_list(sorted([*self.folders, *(f.name for f in self.files)]))
            raise BadInput("no pictures in the folder", where=self.where, found=found, expected=wanted)
        others = Counter(f.suffix or "without suffix" for f in self.files if f.suffix not in PICTURES)
        if others:
            kinds = name_list([f"{n} {kind}" for kind, n in sorted(others.items())])
            self.notes.append(f"left out, since they are no pictures: {kinds}")
        names = self._classes()
        if names is not None:
            names = [unicodedata.normalize("NFC", name) for name in names]
            check_names(sorted(set(names)), self.where, None)
        unread = _unread(self.pictures)
        notes, warnings = tuple(self.notes), tuple(self.warnings)
        return Listing([f.path for f in self.pictures], names, unread, warnings, notes, tuple(self.others))

    def _classes(self) -> list[str] | None:
        """Names of the pictures' classes, None without labels; of a split ``learn`` keeps only what is for training."""
        inside = [f for f in self.pictures if f.folders]
        if not inside:
            return self._none("pictures without class folders")
        if not self.top and self._is_split(inside):
            return self._split(inside)
        if self.top:
            few = f"{len(self.top)} of {len(self.pictures)} pictures: {name_list([f.name for f in self.top])}"
            return self._none(f"pictures beside the folders, {few}")
        filled = {f.folders[0] for f in inside}
        empty = sorted(set(self.folders) - filled)
        if empty:
            hint = "remove the folder or fill it"
            raise BadInput("a class folder has no pictures", where=self.where, found=name_list(empty), hint=hint)
        deeper = sorted({"/".join(f.folders) for f in inside if len(f.folders) > 1})
        if deeper:
            text = "folders inside class folders are no classes of their own"
            self.notes.append(f"classes are {name_list(sorted(filled))}; {text}: {name_list(deeper)}")
        return [f.folders[0] for f in inside]

    def _none(self, found: str) -> list[str] | None:
        """Pictures of which not each has a class: BadInput where labels are required, else they all have none."""
        if self.use == "required":
            hint = "put the pictures of each class, and no others, in a folder with its name"
            raise BadInput("no labels", where=self.where, found=found, expected="class folders", hint=hint)
        if self.use == "optional" and self.folders and len(self.top) < len(self.pictures):
            self.warnings.append(f"{self.where} has {found}: all are taken, and none has a label")
        return None

    def _is_split(self, inside: Sequence[_File]) -> bool:
        """Whether all folders are named as parts of a split are: several of them, or one with folders inside."""
        named = all(name.lower() in (*TRAIN, *HELD_OUT) for name in self.folders)
        return named and (len(self.folders) > 1 or any(len(f.folders) > 1 for f in inside))

    def _split(self, inside: Sequence[_File]) -> list[str] | None:
        parts = Counter(f.folders[0] for f in inside)
        counts = {name: f"{name} ({amount(parts[name], 'picture')})" for name in sorted(self.folders)}
        learned = [name for name in counts if name.lower() in TRAIN]
        loose = sorted({f.folders[0] for f in inside if len(f.folders) == 1})
        if self.use == "required":
            if not learned or set(learned) & set(loose):
                found = name_list(list(counts.values()))
                what, hint = "a split without class folders to learn from", f"name the part to learn: {self.where}/PART"
                raise BadInput(what, where=self.where, found=found, expected="train/CLASS/picture", hint=hint)
            self.pictures = [f for f in self.pictures if f.folders[0] in learned]
            rest = [name for name in counts if name not in learned]
            self.others = [os.path.join(self.folder, name) for name in rest if name not in loose]  # noqa: PTH118
            text = f"{self.where} is a split: learned is {name_list([counts[name] for name in learned])}"
            self.warnings.append(f"{text}, and not {name_list([counts[name] for name in rest])}" if rest else text)
            taught = {f.folders[1] for f in self.pictures}
            for name in rest:
                unknown = sorted({f.folders[1] for f in inside if f.folders[0] == name and f.folders[1:]} - taught)
                if unknown:
                    text = f"{self.where}/{name} has classes that are not learned from: {name_list(unknown)}"
                    self.warnings.append(text)
            return [f.folders[1] for f in self.pictures]
        every = name_list(list(counts.values()))
        one = f"name one of them to ask about it alone, as {self.where}/{sorted(counts)[0]}"
        self.warnings.append(f"{self.where} is a split: pictures of all its parts are taken, {every}; {one}")
        if loose:
            return self._none(f"pictures without class folders in {name_list(loose)}")
        return [f.folders[1] for f in inside]


def _unread(files: Iterable[_File]) -> dict[str, BadInput]:
    """Those of the files whose format is not read here, by path, and why."""
    suffixes = (*UNREAD, *PHONES) if missing(PLUGIN) else UNREAD
    return {file.path: _of_no_use(file) for file in files if file.suffix in suffixes}


def _of_no_use(file: _File) -> BadInput:
    return BadInput(
        "a picture of a format that is not read",
        where=one_line(file.path),
        found=file.suffix,
        expected=", ".join(READ if missing(PLUGIN) else (*READ, *PHONES)),
        hint=("pip install 'clmoe[photos]', or " if file.suffix in PHONES else "") + "save it as PNG or JPEG",
    )


def _walk(folder: str) -> tuple[list[_File], list[str], list[str]]:
    """Files below a folder, the names of its sub-folders, and links to folders that are read already.

    Links are followed once all that is no link is known, so that none takes a folder's pictures away from it. Raises
    BadInput for a folder that may not be read.
    """
    files: list[_File] = []
    first: list[str] = []
    again: list[str] = []
    seen: set[tuple[int, int]] = set()
    plain: list[tuple[str, tuple[str, ...]]] = [(folder, ())]
    links: list[tuple[str, tuple[str, ...]]] = []
    while plain or links:
        path, folders = plain.pop() if plain else links.pop(0)
        try:
            status = Path(path).stat()
            if (status.st_dev, status.st_ino) in seen:
                again.append("/".join(folders))
                first = [name for name in first if folders != (name,)]
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(path) as scan:
                entries = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in _counting(scan))
        except OSError as error:
            raise read_problem(error, one_line(path)) from error
        for name, is_folder, is_link in entries:
            inner = os.path.join(path, name)  # noqa: PTH118
            if is_folder:
                (links if is_link else plain).append((inner, (*folders, name)))
                first += [] if folders else [name]
            else:
                files.append(_File(inner, folders, name))
    return files, first, sorted(again)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    """A link that leads to itself is none: it is named when it is opened."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def _counting(scan: Iterable[os.DirEntry[str]]) -> Iterable[os.DirEntry[str]]:
    return (entry for entry in scan if not entry.name.startswith(".") and entry.name.lower() not in IGNORED)
