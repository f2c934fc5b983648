"""The data sets of ``answers.py``: images to learn, images to ask, and the classes of each task.

Every loader takes a :class:`Places` and returns a :class:`Data`, or raises :class:`Absent` with the name of what is not
there. Classes are sorted and cut into equal groups, unless the data set is about something else. Files that a data
set calls its test files are asked and never learned from; what has none is split once, by class and by the seed.
"""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine, make_circles, make_moons
from sklearn.model_selection import train_test_split
from torchvision.datasets import MNIST

from clmoe_cli.api.tasks import TasksOptions, make_tasks
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import Batch, read_batch
from store_schema import InputRecord

Array = np.ndarray[Any, Any]
Part = tuple[Array, Array]
"""Inputs ``[N, …]`` and labels ``[N]``."""
Tasks = tuple[tuple[Any, ...], ...]

P6: Tasks = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
SPLIT: Tasks = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
TESTED = 0.3
"""Share of a table that is asked and not learned."""


class Absent(Exception):
    """A data set is not on this machine; the message says what is missing."""


@dataclass(frozen=True)
class Places:
    """Where data lie, None for nowhere; ``scratch`` takes files that are made on the way; ``seed`` splits and draws."""

    photos: Path | None
    mnist: Path | None
    scratch: Path
    seed: int = 0

    def photo(self, name: str) -> Path:
        """A file or folder of the photographs."""
        if self.photos is None or not (self.photos / name).exists():
            raise Absent(f"{name} is not in {self.photos}")
        return self.photos / name


@dataclass(frozen=True)
class Data:
    """``train`` and ``test``; ``tasks``: the classes of each task, in the order of learning.

    ``table``: rows of columns that a standardised logistic regression should stand beside. ``noise``: the labels say
    nothing. ``shared``: name of what joint training sees, the same for data sets that differ in their tasks alone.
    """

    train: Part
    test: Part
    tasks: Tasks
    shared: str = ""
    table: bool = False
    noise: bool = False
    input: InputRecord | None = None

    def learned(self, number: int, seed: int) -> Batch:
        """What task ``number`` learns: all training inputs of its classes, in an order of their own."""
        own = np.flatnonzero(np.isin(self.train[1], self.tasks[number]))
        own = np.random.default_rng((seed, number)).permutation(own)
        return Batch(np.ascontiguousarray(self.train[0][own]), self.train[1][own], "", self.input)

    def asked(self, number: int | None = None) -> Batch:
        """Test inputs of a task's classes, or (None) of every task's."""
        classes = {c for task in self.tasks for c in task} if number is None else self.tasks[number]
        own = np.isin(self.test[1], list(classes))
        return Batch(np.ascontiguousarray(self.test[0][own]), self.test[1][own], "", self.input)


def groups(labels: Array, tasks: int) -> Tasks:
    """The sorted classes in ``tasks`` groups as equal as can be."""
    return tuple(tuple(part.tolist()) for part in np.array_split(np.unique(labels), tasks))


def packed(path: Path) -> Part:
    """Pictures ``[N, 3, H, W]`` uint8 and labels of a file that holds each picture as a compressed one."""
    with np.load(path) as file:
        data, ends, labels = file["data"].tobytes(), file["ends"].tolist(), file["y"]
    starts = [0, *ends[:-1]]
    found = [np.asarray(Image.open(io.BytesIO(data[a:b])).convert("RGB")) for a, b in zip(starts, ends, strict=True)]
    return np.ascontiguousarray(np.stack(found).transpose(0, 3, 1, 2)), labels


def few(part: Part, images: int, seed: int) -> Part:
    """So many images (all, if there are fewer), drawn with the same share of every class."""
    if images >= len(part[1]):
        return part
    chosen, _ = train_test_split(np.arange(len(part[1])), train_size=images, stratify=part[1], random_state=seed)
    return part[0][chosen], part[1][chosen]


def pictures(name: str, tasks: int, images: int = 0, classes: int = 0) -> Callable[[Places], Data]:
    """Packed photographs; ``images`` and ``classes``: so many of them, 0 for all."""

    def load(places: Places) -> Data:
        train, test = (packed(places.photo(f"{name}.{part}.packed.npz")) for part in ("train", "test"))
        if classes:
            first = np.unique(train[1])[:classes]
            train, test = ((x[np.isin(y, first)], y[np.isin(y, first)]) for x, y in (train, test))
        if images:
            train = few(train, images, places.seed)
        return Data(train, test, groups(train[1], tasks))

    return load


def vectors(name: str, tasks: int) -> Callable[[Places], Data]:
    """Features of a network that has seen the photographs, as plain vectors."""

    def load(places: Places) -> Data:
        parts = []
        for part in ("train", "test"):
            with np.load(places.photo(f"{name}.{part}.npz")) as file:
                parts.append((file["x"].astype(np.float32), file["y"]))
        return Data(parts[0], parts[1], groups(parts[0][1], tasks))

    return load


@cache
def seen_by_lite0(name: str, places: Places) -> tuple[Part, Part, InputRecord | None]:
    """Features of training and test pictures, from the pictures themselves, and what they went through."""
    backbone = BackboneSession("lite0", experts="mlp:500,500")
    record = backbone.record(None, None)
    parts: list[Part] = []
    for part in ("train", "test"):
        source: Path = places.photo("flowers") / part
        if name != "flowers":
            x, y = packed(places.photo(f"{name}.{part}.packed.npz"))
            source = places.scratch / f"{part}.npz"
            np.savez(source, x=x, y=y)
        batch = read_batch(source, labels="required", input=record, extractor=backbone)
        assert batch.labels is not None
        parts.append((np.array(batch.images), batch.labels))
    return parts[0], parts[1], record


def photographs(name: str, tasks: int, each: int = 0) -> Callable[[Places], Data]:
    """What the backbone ``lite0`` sees of photographs; ``each``: so many of a class."""

    def load(places: Places) -> Data:
        # Scratch folders differ from one data set to the next; the features do not.
        train, test, record = seen_by_lite0(name, replace(places, scratch=Path(tempfile.gettempdir())))
        if each:
            order = np.random.default_rng((places.seed, each)).permutation(len(train[1]))
            own = np.concatenate([order[train[1][order] == c][:each] for c in np.unique(train[1])])
            train = train[0][own], train[1][own]
        return Data(train, test, groups(train[1], tasks), input=record)

    return load


def flowers(places: Places) -> Data:
    through = InputRecord(image_size=64)
    parts = []
    for part in ("train", "test"):
        batch = read_batch(str(places.photo(f"flowers/{part}")), labels="required", input=through)
        assert batch.labels is not None
        parts.append((batch.images, batch.labels))
        through = batch.input or through
    return Data(parts[0], parts[1], groups(parts[0][1], 2), input=through)


def digits(tasks: Tasks) -> Callable[[Places], Data]:
    """All of MNIST."""

    def load(places: Places) -> Data:
        if places.mnist is None or not places.mnist.is_dir():
            raise Absent(f"MNIST is not in {places.mnist}")
        parts = [MNIST(str(places.mnist), train=train) for train in (True, False)]
        train, test = ((part.data[:, None].numpy(), part.targets.numpy()) for part in parts)
        return Data(train, test, tasks, shared="mnist")

    return load


def offline(places: Places) -> Data:
    """The 5,000 digits that come with a package, as ``clmoe tasks mnist5k`` cuts them."""
    folder = places.scratch / f"mnist5k-{places.seed}"
    make_tasks("mnist5k", folder, TasksOptions(classes=[tuple(range(10))], seed=places.seed))
    parts = []
    for file in ("task1.npz", "mixed.test.npz"):
        batch = read_batch(str(folder / file), labels="required")
        assert batch.labels is not None
        parts.append((batch.images, batch.labels))
    return Data(parts[0], parts[1], P6)


def scarce_digits(places: Places) -> Data:
    """Threes, and a tenth as many eights, to learn as to ask."""
    whole = offline(places)
    parts = []
    for x, y in (whole.train, whole.test):
        threes, eights = np.flatnonzero(y == 3), np.flatnonzero(y == 8)
        own = np.concatenate([threes, eights[: len(threes) // 10]])
        parts.append((x[own], y[own]))
    return Data(parts[0], parts[1], ((3, 8),))


def parted(x: Array, y: Array, seed: int) -> tuple[Part, Part]:
    """To learn and to ask, the same share of every class."""
    train, test = train_test_split(np.arange(len(y)), test_size=TESTED, stratify=y, random_state=seed)
    return (x[train], y[train]), (x[test], y[test])


def table(read: Callable[[], Any], tasks: Tasks | None = None) -> Callable[[Places], Data]:
    """One of scikit-learn's tables, columns as they are; ``tasks`` None: one with all classes."""

    def load(places: Places) -> Data:
        found = read()
        train, test = parted(found.data.astype(np.float32), found.target, places.seed)
        return Data(train, test, tasks or groups(found.target, 1), table=True)

    return load


def small_digits(places: Places) -> Data:
    """scikit-learn's 8×8 digits as pictures."""
    found = load_digits()
    train, test = parted((found.images * (255 / 16)).round().astype(np.uint8)[:, None], found.target, places.seed)
    return Data(train, test, SPLIT)


def drawn(images: int, rng: np.random.Generator) -> Part:
    """Grey pictures [N, 1, 32, 32] of one bright circle or square each, anywhere, of any size, on a noisy ground."""
    labels = np.array(["circle", "square"])[np.arange(images) % 2]
    found = []
    for label in labels.tolist():
        canvas = Image.new("L", (32, 32), int(rng.integers(20, 80)))
        side = int(rng.integers(10, 20))
        left, top = rng.integers(1, 31 - side, size=2).tolist()
        pen = ImageDraw.Draw(canvas)
        draw = pen.ellipse if label == "circle" else pen.rectangle
        draw((left, top, left + side, top + side), fill=int(rng.integers(130, 255)))
        found.append(np.asarray(canvas) + rng.normal(0, 8, (32, 32)))
    return np.stack(found).clip(0, 255).astype(np.uint8)[:, None], labels


def shapes(places: Places) -> Data:
    """300 pictures of circles and squares to learn, and 300 others to ask."""
    train, test = (drawn(300, np.random.default_rng((places.seed, part))) for part in range(2))
    return Data(train, test, (("circle", "square"),))


def noise(places: Places) -> Data:
    """The same pictures with labels that were drawn without looking at them: nothing can be better than guessing."""
    parts = []
    for part in (2, 3):
        rng = np.random.default_rng((places.seed, part))
        x, _ = drawn(600, rng)
        parts.append((x, rng.integers(0, 2, len(x))))
    return Data(parts[0], parts[1], ((0, 1),), noise=True)


def imbalanced(places: Places) -> Data:
    """A table of 20 columns in odd units; one row in twenty is of the second class, most of them told apart."""
    rng = np.random.default_rng((places.seed, 4))
    units, shift = np.exp(rng.normal(0, 3, 20)), np.where(np.arange(20) < 5, 1.2, 0.0)
    parts = []
    for rows in (1000, 2000):
        y = (rng.random(rows) < 0.05).astype(np.int64)
        x = (rng.normal(0, 1, (rows, 20)) + 10 + np.outer(y, shift)) * units
        parts.append((x.astype(np.float32), y))
    return Data(parts[0], parts[1], ((0, 1),), table=True)


def bent(draw: Callable[..., Part]) -> Callable[[Places], Data]:
    """A table of two columns whose classes no straight line parts, nor a Gaussian for each describes; as ``draw`` of
    scikit-learn makes it."""

    def load(places: Places) -> Data:
        drawn = (draw(rows, random_state=1000 * places.seed + rows) for rows in (1000, 2000))
        train, test = ((x.astype(np.float32), y) for x, y in drawn)
        return Data(train, test, ((0, 1),), table=True)

    return load


EVIDENCE: dict[str, Callable[[Places], Data]] = {
    "p6": digits(P6),
    "split-mnist": digits(SPLIT),
    "cifar10": pictures("cifar10", 5),
    "gtsrb": pictures("gtsrb", 8),
    "cifar100": pictures("cifar100", 10),
    "cifar10-lite0": vectors("cifar10-lite0", 5),
    "cifar100-lite0": vectors("cifar100-lite0", 10),
}
"""Data sets of the table of evidence; all of them count for honesty as well."""

HONESTY: dict[str, Callable[[Places], Data]] = {
    "mnist5k": offline,
    "digits8": table(load_digits, SPLIT),
    "digits8-pictures": small_digits,
    "cifar10-few": pictures("cifar10", 5, images=3000),
    "cifar100-few": pictures("cifar100", 4, classes=20),
    "gtsrb-few": pictures("gtsrb", 8, images=4000),
    "flowers": flowers,
    "wine": table(load_wine),
    "wine-shared": table(load_wine, ((0, 1), (1, 2))),
    "cancer": table(load_breast_cancer),
    "iris": table(load_iris),
    "iris-shared": table(load_iris, ((0, 1), (1, 2))),
    "shapes": shapes,
    "imbalanced": imbalanced,
    "imbalanced-digits": scarce_digits,
    "moons": bent(partial(make_moons, noise=0.25)),
    "circles": bent(partial(make_circles, noise=0.15, factor=0.5)),
    "noise": noise,
}
"""Data sets that are there for honesty alone; small ones."""

_PHOTOGRAPHS = {"cifar100": 10, "cifar10": 5, "gtsrb": 8, "flowers": 2}
PHOTOGRAPHS: dict[str, Callable[[Places], Data]] = {
    **{f"{name}-photos": photographs(name, tasks) for name, tasks in _PHOTOGRAPHS.items()},
    "flowers-photos-single": photographs("flowers", 5),
    **{
        f"{name}-photos-{each}": photographs(name, tasks, each)
        for each in (5, 10, 20)
        for name, tasks in _PHOTOGRAPHS.items()
    },
}
"""Photographs through a backbone, all of them and few of a class; the other tools see the same features."""

EVERY = {**EVIDENCE, **HONESTY, **PHOTOGRAPHS}
