"""``clmoe tasks``: cut a known data set into task files or folders, the same bytes for the same seed.

Arrays become npz files. Pictures of many sizes become class folders with copies of the files: a link would tie a task
to the data set's folder, so that a change to the one would change the other. Each task, the train/test split and the
mixed file draw from generators of their own, so that adding a task leaves the files of the earlier ones as they were.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from clmoe_cli.api.known_sets import (
    PICTURES,
    SOURCES,
    Array,
    KnownSet,
    Part,
    check_files,
    folder_name,
    load_set,
)
from clmoe_cli.api.reports import Report
from clmoe_cli.data.class_folders import ClassFolder
from clmoe_cli.data.npz import name_list, one_line, write_npz
from clmoe_cli.runtime.events import OnStep, after, begun, silent, whole
from store_schema.errors import DiskProblem, UsageProblem

SORTED = "sorted"
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

    ``classes``: the labels of each task, numbers or names where the data set has names; or ``tasks``: all classes in so
    many equal groups, in ``order`` "sorted" or "random:SEED". ``root``: the folder with a torchvision data set;
    ``test_fraction``: the share of each class that mnist5k and eurosat keep for testing (the others bring their own
    split); ``per_class``: the most training images of a class.
    """

    classes: Sequence[Sequence[int | str]] = ()
    tasks: int | None = None
    order: str = SORTED
    root: str | None = None
    seed: int = 0
    test_fraction: float = 0.2
    per_class: int | None = None


def parse_classes(text: str, *, names: bool = False) -> tuple[int | str, ...]:
    """``"1,5"`` → ``(1, 5)``; with ``names`` also ``"tiger lily,5"`` → ``("tiger lily", 5)``.

    UsageProblem for anything but different whole numbers, or names, with commas between.
    """
    parts = [part.strip() for part in text.split(",")]
    numbers = [re.fullmatch(r"-?[0-9]{1,18}", part) is not None for part in parts]
    if not all(number or (names and part) for number, part in zip(numbers, parts, strict=True)):
        expected = "such as 1,5" + (" or names of classes" if names else "")
        raise UsageProblem("not a list of classes", key="--classes", found=one_line(text), expected=expected)
    classes = tuple(int(part) if number else part for number, part in zip(numbers, parts, strict=True))
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
    task once. Arrays: x uint8, y int64. Of a data set of picture files (``PICTURES``) these are folders ``task1``, …
    with class folders that hold the pictures as they are. Raises UsageProblem for wrong options and for a folder that
    has other pictures, BadInput for a damaged or missing data set, DiskProblem where the files cannot be written.
    """
    if source not in SOURCES:
        close = difflib.get_close_matches(source.lower(), SOURCES, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]}?" if close else "choose one of them"
        raise UsageProblem("unknown data set", found=one_line(source), expected=", ".join(SOURCES), hint=hint)
    _check_options(options)
    with whole(on_step, f"reading {source}"):
        found = load_set(source, options.root)
        train, test = _split(found, options)
    inside = set(np.unique(train[1]).tolist()) & set(np.unique(test[1]).tolist())
    known = [name for name in found.classes if name in inside] or sorted(inside)
    groups = options.classes if options.tasks is None else _groups(known, options.tasks, options.order)
    wanted = [_known_labels(task, known, found.numbers) for task in groups]

    folder = Path(out_dir)
    suffix = "" if source in PICTURES else ".npz"
    cuts: list[_Cut] = []

    def cut(
        name: str, task: str, labels: list[int | str], part: Part, rng: np.random.Generator, most: int | None
    ) -> None:
        chosen = rng.permutation(np.flatnonzero(np.isin(part[1], labels)))
        if most is not None:
            firsts = [np.flatnonzero(part[1][chosen] == label)[:most] for label in labels]
            chosen = chosen[np.sort(np.concatenate(firsts))]
        file = File(str(folder / f"{name}{suffix}"), task, tuple(labels), len(chosen))
        cuts.append(_Cut(file, part, chosen))

    for number, labels in enumerate(wanted, start=1):
        task = f"task{number}"
        cut(task, task, labels, train, _rng(options.seed, _TRAIN, number), options.per_class)
        cut(f"{task}.test", task, labels, test, _rng(options.seed, _TEST, number), None)
    chosen = {label for labels in wanted for label in labels}
    mixed = [label for label in known if label in chosen]
    cut("mixed.test", "mixed", mixed, test, _rng(options.seed, _MIXED), None)

    if source in PICTURES:
        assert options.root is not None
        _write_folders(source, options.root, folder, cuts, dry_run, on_step)
    else:
        _write_files(folder, cuts, dry_run, on_step)
    return TasksReport(source, tuple(cut.file for cut in cuts), dry_run)


@dataclass(frozen=True)
class _Cut:
    """A file to be written: the images ``chosen`` (indices ``[n]``) of a part."""

    file: File
    part: Part
    chosen: Array


def _write_files(folder: Path, cuts: Sequence[_Cut], dry_run: bool, on_step: OnStep) -> None:
    """The npz files, one after another."""
    if not dry_run:
        _make(folder)
    to = begun(on_step, "writing", len(cuts), "files")
    for done, cut in enumerate(cuts, start=1):
        if not dry_run:
            write_npz(cut.file.path, {"x": cut.part[0][cut.chosen], "y": cut.part[1][cut.chosen]})
        to(done)


def _write_folders(source: str, root: str, folder: Path, cuts: Sequence[_Cut], dry_run: bool, on_step: OnStep) -> None:
    """The folders of pictures; nothing is written unless all pictures are there and no folder has others."""
    check_files(source, root, sorted({path for cut in cuts for path in cut.part[0][cut.chosen].tolist()}))
    folders = [
        ClassFolder.of(cut.file.path, cut.part[0][cut.chosen].tolist(), cut.part[1][cut.chosen].tolist())
        for cut in cuts
    ]
    there = [each.is_there() for each in folders]
    to = begun(on_step, "copying", sum(cut.file.images for cut in cuts), "pictures")
    if not dry_run:
        _make(folder)
    done = 0
    for each, written in zip(folders, there, strict=True):
        if not (dry_run or written):
            each.write(after(to, done))
        done += len(each.sources)
        to(done)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = error.strerror or one_line(error)
        raise DiskProblem(
            "cannot make the folder", where=one_line(folder), found=reason, hint="choose another"
        ) from error


def _rng(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _refuse_repeats(classes: Sequence[int | str]) -> None:
    names = [str(label) for label in classes]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        found = ", ".join(map(one_line, twice))
        raise UsageProblem("a class is given twice in one task", key="--classes", found=found, expected="each once")


def _groups(known: Sequence[int | str], tasks: int, order: str) -> list[list[int | str]]:
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


def _known_labels(task: Sequence[int | str], known: Sequence[int | str], numbers: Mapping[str, int]) -> list[int | str]:
    """The labels of a task as the data set has them; ``numbers`` stand for names. UsageProblem for others."""
    by_name = {str(label): label for label in known}
    spelled = {str(number): name for name, number in numbers.items() if name in by_name}
    spelled |= {name.casefold(): name for name in numbers if name in by_name}
    named = [spelled.get(folder_name(str(label)).casefold(), str(label)) if numbers else str(label) for label in task]
    unknown = [one_line(label) for label, name in zip(task, named, strict=True) if name not in by_name]
    if unknown:
        available = ", ".join(by_name)
        hint = None
        if numbers:
            available = f"names, or numbers {min(numbers.values())} to {max(numbers.values())}: {name_list([*by_name])}"
            close = difflib.get_close_matches(folder_name(unknown[0]).casefold(), spelled, n=1, cutoff=0.7)
            hint = f"did you mean {spelled[close[0]]}?" if close else None
        raise UsageProblem(
            "the data set has no such class", key="--classes", found=", ".join(unknown), expected=available, hint=hint
        )
    _refuse_repeats(named)
    return [by_name[name] for name in named]


def _split(found: KnownSet, options: TasksOptions) -> tuple[Part, Part]:
    """Training and test part; a data set of one part is split by class."""
    if found.test is not None:
        return found.train, found.test
    images, labels = found.train
    is_test = _stratified(labels, options.test_fraction, _rng(options.seed, _SPLIT))
    return (images[~is_test], labels[~is_test]), (images[is_test], labels[is_test])


def _stratified(labels: Array, fraction: float, rng: np.random.Generator) -> Array:
    """Bool ``[N]``: the test images, the same share of each class, at least one and never all."""
    is_test = np.zeros(len(labels), dtype=bool)
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        is_test[members[:count]] = True
    return is_test
