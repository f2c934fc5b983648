"""What ``inspect`` tells of a store's experts, tasks, commits and bytes. Imports no torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clmoe_cli.api.reports import Accuracy, Bin, ClassAccuracy, Features, WrongAnswer
from store_schema import Store, TaskRecord, checkpoints


@dataclass(frozen=True)
class Frozen:
    """Entries of a layer that tasks use."""

    name: str
    parameters: int
    frozen: int
    frozen_percent: float


@dataclass(frozen=True)
class Shares(Frozen):
    """The same; weights of one task, of several, and of none, which add up to the layer's."""

    single: int
    shared: int
    free: int


@dataclass(frozen=True)
class FrozenRows:
    """Output rows of an expert that tasks own."""

    frozen: int
    frozen_percent: float


@dataclass(frozen=True)
class Rows:
    """The same, and how many rows there are."""

    rows: int
    frozen: int
    frozen_percent: float


@dataclass(frozen=True)
class Input:
    """What pictures go through before an expert reads them; null leaves a step out."""

    image_size: int | None
    channels: int | None
    features: Features | None


@dataclass(frozen=True)
class Expert:
    """An expert of the store. ``eyes``: what the gate looks with at its kind of input, as ``learn --eyes`` names it."""

    id: str
    arch: str
    input_shape: tuple[int, ...]
    kind: str
    input: Input | None
    eyes: str
    tasks: tuple[str, ...]
    layers: tuple[Shares, ...]
    frozen_percent: float
    output_rows: Rows
    owned_parameters: int


@dataclass(frozen=True)
class Selected:
    """A task's share of a layer."""

    name: str
    parameters: int
    selected: int
    reused: int
    percent: float


@dataclass(frozen=True)
class Measured:
    """How a task's images agreed with a task of its expert before it was learned, and what chance gives."""

    task: str
    hamming: float
    overlap: float
    divergence: float
    chance_overlap: float


@dataclass(frozen=True)
class Task:
    """A task of the store; ``measured``, ``confusion`` and ``calibration`` are null of tasks of older versions.

    ``confusion``: the most frequent wrong answers to held-out images. ``calibration``: of bins of rising confidence how
    many of them were right.
    """

    name: str
    expert: str
    classes: tuple[int | str, ...]
    accuracy: Accuracy
    per_class: tuple[ClassAccuracy, ...]
    opinion: float | None
    measured: tuple[Measured, ...] | None
    layers: tuple[Selected, ...]
    owned_parameters: int
    images: int
    learned_at: str
    bytes: int
    confusion: tuple[WrongAnswer, ...] | None
    calibration: tuple[Bin, ...] | None


@dataclass(frozen=True)
class Then:
    """An expert as it was after a commit."""

    layers: tuple[Frozen, ...]
    output_rows: FrozenRows


@dataclass(frozen=True)
class Commit:
    """A commit and what was frozen after it; experts that are gone are left out.

    ``at``: when, UTC; ``images`` of the file ``source``: null where stores of before did not keep it.
    """

    generation: int
    action: str
    task: str | None
    experts: dict[str, Then]
    at: str | None
    images: int | None
    source: str | None


@dataclass(frozen=True)
class Bytes:
    """Sizes of the files of each expert, task and gate, in bytes; ``total`` counts a file once that several need."""

    experts: dict[str, int]
    tasks: dict[str, int]
    gates: dict[str, int]
    total: int


@dataclass(frozen=True)
class Repaired:
    """What ``--repair`` found damaged, which generation stands now, and which tasks that costs."""

    generation: int
    found: tuple[str, ...]
    lost: tuple[str, ...]


@dataclass(frozen=True)
class Unfinished:
    """A ``learn`` that has not committed: its task, and what it had ``reached``.

    ``resumable``: the same command goes on from there; false where the store has changed since. ``bytes``: of its file.
    """

    task: str
    reached: str
    resumable: bool
    bytes: int


def unfinished(store: Store) -> tuple[Unfinished, ...]:
    """The learns of a store that were interrupted, or run now. Raises DiskProblem."""
    return tuple(Unfinished(f.task, f.reached, f.resumable, f.bytes) for f in checkpoints.unfinished(store))


def confusion_of(task: TaskRecord) -> tuple[WrongAnswer, ...] | None:
    """The most frequent wrong answers to a task's held-out images."""
    found = task.accuracy.confusion
    return None if found is None else tuple(WrongAnswer(task.classes[w.position], w.label, w.images) for w in found)


def calibration_of(task: TaskRecord) -> tuple[Bin, ...] | None:
    """How often held-out images were answered right, by confidence."""
    found = task.accuracy.calibration
    return None if found is None else tuple(Bin(b.images, b.right, b.confidence) for b in found)


def percent(part: int, whole: int) -> float:
    """A share in percent, as reports have it."""
    return round(100.0 * part / whole, 4) if whole else 0.0


def shares(name: str, parameters: int, single: int, shared: int) -> Shares:
    """What of so many weights one task reads, several do, and none does."""
    frozen = single + shared
    return Shares(name, parameters, frozen, percent(frozen, parameters), single, shared, parameters - frozen)


def together(name: str, layers: Sequence[Shares]) -> Shares:
    """Several layers as one."""
    single, shared = sum(layer.single for layer in layers), sum(layer.shared for layer in layers)
    return shares(name, sum(layer.parameters for layer in layers), single, shared)


def selected(name: str, parameters: int, chosen: int, reused: int) -> Selected:
    """What of so many weights a task has chosen, and what of that earlier tasks had."""
    return Selected(name, parameters, chosen, reused, percent(chosen, parameters))


def chosen(name: str, layers: Sequence[Selected]) -> Selected:
    """A task's share of several layers as one."""
    picked, reused = sum(layer.selected for layer in layers), sum(layer.reused for layer in layers)
    return selected(name, sum(layer.parameters for layer in layers), picked, reused)
