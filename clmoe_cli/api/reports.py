"""What the use cases return: frozen dataclasses whose ``to_json`` is the object that ``--json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from store_schema import TaskRecord


@dataclass(frozen=True)
class Report:
    """Base of all reports; ``schema`` names the JSON contract."""

    schema: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """Plain values, with the schema's name first."""
        return {"schema": self.schema, **dataclasses.asdict(self)}


@dataclass(frozen=True)
class Caution:
    """Something that looks wrong and stops nothing: a ``code`` for programs, one sentence for people."""

    code: str
    text: str


OnWarning = Callable[[Caution], None]


def accuracy_of(task: TaskRecord) -> dict[str, float | int | None]:
    """How right held-out images of a task were answered when it was learned, shares of 0 to 1.

    ``answer``: as ``predict`` answered, among all tasks known then; ``within``: with the task given; ``subnetwork``: by
    the subnetwork alone; ``dense``: by the network before pruning; ``guessing``: the share of the largest class;
    ``held_out``: how many images. None where it was not measured.
    """
    found = task.accuracy
    names = ("answer", "within", "subnetwork", "dense", "guessing", "held_out")
    return {name: getattr(found, name) for name in names}


def per_class_of(task: TaskRecord) -> tuple[dict[str, int | float | str | None], ...]:
    """Of each class its ``label``, how many held-out ``images`` it had, and the share answered right (``accuracy``)."""
    rows = zip(task.classes, task.accuracy.per_class or (), strict=False)
    return tuple({"label": label, "images": own.images, "accuracy": own.accuracy} for label, own in rows)


@dataclass(frozen=True)
class LayerUse:
    """A task's share of one layer of shared weights; percentages are of the layer's ``parameters``."""

    name: str
    parameters: int
    selected: int
    reused: int
    frozen_percent: float


@dataclass(frozen=True)
class Onset:
    """The verdict ``known``, ``new`` or ``undecided``, its p-value (None: not available), the tasks, one sentence why.

    ``undecided``: for want of images no known task has p-values, and the labels did not settle it either.
    """

    verdict: str
    p_value: float | None
    tasks: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class PlannedLayer:
    """What training may read and change of one layer: ``read`` entries of other tasks, ``free`` ones of none."""

    name: str
    parameters: int
    read: int
    free: int


@dataclass(frozen=True)
class LearnReport(Report):
    """What ``learn`` did; ``skipped``: broken pictures that were left out; ``warnings``: what looks wrong.

    ``accuracy``: :func:`accuracy_of`; ``per_class``: :func:`per_class_of`; ``opinion``: weight of the subnetwork beside
    the gate within the task.

    With ``dry_run`` it is what would be done: there is no accuracy yet and no layer of the task's, and where something
    would be trained ``plan`` says with what.
    """

    schema: ClassVar[str] = "clmoe.learn/2"
    task: str
    expert: str
    status: str
    new_expert: bool
    classes: tuple[int | str, ...]
    accuracy: dict[str, float | int | None]
    per_class: tuple[dict[str, int | float | str | None], ...]
    opinion: float | None
    layers: tuple[LayerUse, ...]
    owned_parameters: int
    onset: Onset
    candidates: tuple[dict[str, Any], ...]
    reads: tuple[str, ...]
    reason: str
    seed: int
    seconds: float
    skipped: int = 0
    dry_run: bool = False
    plan: tuple[PlannedLayer, ...] | None = None
    warnings: tuple[Caution, ...] = ()


@dataclass(frozen=True)
class Segment:
    """What ``learn`` did with the images from position ``start`` up to but not including ``stop`` of a stream."""

    start: int
    stop: int
    report: LearnReport


@dataclass(frozen=True)
class StreamReport(Report):
    """What ``learn --segment`` did, segment by segment in order of arrival."""

    schema: ClassVar[str] = LearnReport.schema
    segments: tuple[Segment, ...]

    def to_json(self) -> dict[str, Any]:
        """An ordinary ``learn`` object for each segment, with its ``start`` and ``stop``."""
        parts = [{**part.report.to_json(), "start": part.start, "stop": part.stop} for part in self.segments]
        return {"schema": self.schema, "segments": parts}


@dataclass(frozen=True)
class DetectReport(Report):
    """What ``detect`` found: a verdict ``known``, ``new``, or ``undecided`` for want of p-values.

    ``tasks``: per compared task its deviation, p-value, overlap, divergence; none where no expert reads such images,
    which makes them new. ``warnings``: what looks wrong.
    """

    schema: ClassVar[str] = "clmoe.detect/2"
    verdict: str
    task: str | None
    expert: str | None
    p_value: float | None
    reason: str
    images: int
    tasks: tuple[dict[str, Any], ...]
    skipped: int = 0
    warnings: tuple[Caution, ...] = ()


@dataclass(frozen=True)
class RemovalReport(Report):
    """What ``prune`` did, or (``applied`` false) would do; ``dry_run``: nobody was asked whether it should."""

    schema: ClassVar[str] = "clmoe.prune/1"
    applied: bool
    removed: tuple[str, ...]
    removed_experts: tuple[str, ...]
    freed_parameters: int
    freed: dict[str, dict[str, int]]
    frozen_percent: float
    gc: bool
    freed_bytes: int
    dry_run: bool = False


@dataclass(frozen=True)
class ExportReport(Report):
    """What ``export`` wrote.

    ``classes``: in the order of the outputs. ``input_shape``: of one image, or the features of one where ``features``
    names the backbone (``arch``, ``sha256``) that the file does not hold. ``input_scale``: what the expert multiplies
    its inputs by, which the first layer's weights have taken over. ``standardised``: whether the first layers bring
    each number of an input to a common spread. ``parameters``: numbers that the model computes
    with, running statistics included; ``nonzero``: those that are not 0. ``bytes``: of the file. ``deviation``: the
    largest difference of a logit between the file, read back and run by ``checked_with``, and the store's answers.
    ``answers``: ``mixture`` of gate and subnetwork, as ``predict --task`` answers, or ``subnetwork`` alone.
    ``opinion``: weight of the subnetwork in what ``predict --task`` answers; None: it answers alone. ``accuracy``:
    :func:`accuracy_of`, whose ``within`` is the mixture's. ``warnings``: where the file answers otherwise than
    ``predict --task``.
    """

    schema: ClassVar[str] = "clmoe.export/1"
    output: str
    format: str
    sparse: bool
    task: str
    expert: str
    arch: str
    classes: tuple[int | str, ...]
    input_shape: tuple[int, ...]
    input_scale: float
    standardised: bool
    features: dict[str, str] | None
    parameters: int
    nonzero: int
    bytes: int
    deviation: float
    checked_with: str
    answers: str
    opinion: float | None
    accuracy: dict[str, float | int | None]
    warnings: tuple[Caution, ...] = ()
