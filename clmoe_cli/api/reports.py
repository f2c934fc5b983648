"""What the use cases return: frozen dataclasses whose ``to_json`` is the object that ``--json`` prints."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from store_schema import ClmoeError, TaskRecord

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
"""What JSON can hold."""
OPTIONAL: Final[Mapping[str, bool]] = {"optional": True}
"""Metadata of a field that is left out where it is None, and that nobody may rely on."""
Outcome = Literal["known", "new", "undecided"]
Status = Literal["learned", "known", "refined"]
_AS_IT_IS = frozenset((str, float, int, bool))


def plain(value: object) -> Json:
    """A report, or what is in one, as JSON has it: fields in their order, tuples as lists."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    if isinstance(value, dict):
        return {key: plain(each) for key, each in value.items()}
    return fields_of(value)


def fields_of(value: object) -> dict[str, Json]:
    """The fields of a dataclass as :func:`plain` values; of a report the schema's name comes first."""
    found: dict[str, Json] = {"schema": value.schema} if isinstance(value, Report) else {}
    kind: Any = type(value)
    optional = _optional(kind)
    for name, own in vars(value).items():
        if own is None:
            if name not in optional:
                found[name] = None
        else:
            found[name] = own if type(own) in _AS_IT_IS else plain(own)
    return found


@cache
def _optional(kind: Any) -> frozenset[str]:
    return frozenset(each.name for each in dataclasses.fields(kind) if each.metadata.get("optional"))


@dataclass(frozen=True)
class Report:
    """Base of all reports; ``schema`` names the JSON contract."""

    schema: ClassVar[str]

    def to_json(self) -> dict[str, Json]:
        """Plain values, with the schema's name first."""
        return fields_of(self)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """In a notebook: the single values, and of arrays and lists how long they are."""
        shown = ", ".join(f"{f.name}={_brief(getattr(self, f.name))}" for f in dataclasses.fields(self))
        printer.text(f"{type(self).__name__}({shown})")


def _brief(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or isinstance(value, (str, int)):
        return repr(value)
    return f"<{len(value)}>" if hasattr(value, "__len__") else f"<{type(value).__name__}>"


@dataclass(frozen=True)
class Caution:
    """Something that looks wrong and stops nothing: a ``code`` for programs, one sentence for people."""

    code: str
    text: str


OnWarning = Callable[[Caution], None]


@dataclass(frozen=True)
class Accuracy:
    """Shares of right answers to held-out images, null where they were not measured, and how many images these are."""

    answer: float | None = None
    within: float | None = None
    subnetwork: float | None = None
    dense: float | None = None
    guessing: float | None = None
    held_out: int = 0

    @property
    def shown(self) -> float | None:
        """As ``predict`` answers; of tasks for which that was not measured yet, by the subnetwork alone."""
        return self.subnetwork if self.answer is None else self.answer


@dataclass(frozen=True)
class ClassAccuracy:
    """How many held-out images a class had, and the share of them that is answered right."""

    label: int | str
    images: int
    accuracy: float | None


@dataclass(frozen=True)
class WrongAnswer:
    """Images of the class ``label`` that were answered as ``answered``: null for a class that is gone."""

    label: int | str
    answered: int | str | None
    images: int


@dataclass(frozen=True)
class Bin:
    """Images that are answered with about the same confidence: how many, how many right, the mean confidence."""

    images: int
    right: int
    confidence: float


def accuracy_of(task: TaskRecord) -> Accuracy:
    """How right held-out images of a task were answered when it was learned, shares of 0 to 1.

    ``answer``: as ``predict`` answered, among all tasks known then; ``within``: with the task given; ``subnetwork``: by
    the subnetwork alone; ``dense``: by the network before pruning; ``guessing``: the share of the largest class;
    ``held_out``: how many images. None where it was not measured.
    """
    found = task.accuracy
    return Accuracy(found.answer, found.within, found.subnetwork, found.dense, found.guessing, found.held_out)


def per_class_of(task: TaskRecord) -> tuple[ClassAccuracy, ...]:
    """Of each class its ``label``, how many held-out ``images`` it had, and the share answered right (``accuracy``)."""
    rows = zip(task.classes, task.accuracy.per_class or (), strict=False)
    return tuple(ClassAccuracy(label, own.images, own.accuracy) for label, own in rows)


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
    """Whether the data are of known tasks, how sure that is (null: not available), which ones, and why."""

    # Undecided: for want of images no known task has p-values, and the labels did not settle it either.
    verdict: Outcome
    p_value: float | None
    tasks: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A comparison with one task; those with ``chance`` are of the same images with shuffled inputs."""

    task: str
    expert: str
    hamming: float
    overlap: float
    divergence: float
    transfer: float | None
    chance_overlap: float
    chance_divergence: float
    least_overlap: float
    constructive: bool


@dataclass(frozen=True)
class Compared:
    """How far a batch is from one task.

    ``hamming``: share of the expert's shared weights where the batch's provisional mask and the task's differ;
    ``overlap``: the same beyond chance (kappa); ``divergence``: of their scores where both masks select.
    """

    task: str
    expert: str
    deviation: float
    p_value: float | None
    hamming: float
    overlap: float
    divergence: float


@dataclass(frozen=True)
class Features:
    """A frozen network in front of the experts: its architecture and the hash of its weights."""

    arch: str
    sha256: str


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
    status: Status
    new_expert: bool
    classes: tuple[int | str, ...]
    accuracy: Accuracy
    per_class: tuple[ClassAccuracy, ...]
    opinion: float | None
    layers: tuple[LayerUse, ...]
    owned_parameters: int
    onset: Onset
    candidates: tuple[Candidate, ...]
    reads: tuple[str, ...]
    reason: str
    seed: int
    seconds: float
    skipped: int = 0
    dry_run: bool = False
    plan: tuple[PlannedLayer, ...] | None = None
    warnings: tuple[Caution, ...] = ()


@dataclass(frozen=True, kw_only=True)
class SegmentReport(LearnReport):
    """What ``learn`` did with the images from position ``start`` up to but not including ``stop`` of a stream."""

    start: int
    stop: int


@dataclass(frozen=True)
class StreamReport(Report):
    """What ``learn --segment`` did, segment by segment in order of arrival."""

    schema: ClassVar[str] = LearnReport.schema
    segments: tuple[SegmentReport, ...]


@dataclass(frozen=True)
class DetectReport(Report):
    """What ``detect`` found: a verdict ``known``, ``new``, or ``undecided`` for want of p-values.

    ``tasks``: per compared task its deviation, p-value, overlap, divergence; none where no expert reads such images,
    which makes them new. ``warnings``: what looks wrong.
    """

    schema: ClassVar[str] = "clmoe.detect/2"
    verdict: Outcome
    task: str | None
    expert: str | None
    p_value: float | None
    reason: str
    images: int
    tasks: tuple[Compared, ...]
    skipped: int = 0
    warnings: tuple[Caution, ...] = ()


@dataclass(frozen=True)
class RemovalReport(Report):
    """What ``prune`` did, or (``applied`` false) would do; ``dry_run``: nobody was asked whether it should.

    ``unfinished``: the task of which what an interrupted ``learn`` had reached is discarded.
    """

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
    unfinished: tuple[str, ...] = ()


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
    answers: Literal["mixture", "subnetwork"]
    opinion: float | None
    accuracy: Accuracy
    warnings: tuple[Caution, ...] = ()


@dataclass(frozen=True)
class ExportAllReport(Report):
    """What ``export --all`` wrote.

    ``tasks``: names in the order of the output ``task``; ``classes``: labels in the order of the output ``label``.
    ``input_shape``: of one image. ``image_size`` and ``channels``: what pictures are brought to before. ``features``:
    the backbone in the file (``arch``, ``sha256``). ``parameters``: numbers in the file. ``bytes``: of the file.
    ``deviation`` and ``p_value_deviation``: the largest difference of a confidence and of a p-value between the file,
    read back and run by ``checked_with``, and ``predict``; labels and tasks are the same. ``milliseconds``: for one
    image by itself and ``batch_milliseconds`` for each of ``batch`` together, on this machine; of the first on one
    thread.
    """

    schema: ClassVar[str] = ExportReport.schema
    output: str
    format: str
    tasks: tuple[str, ...]
    classes: tuple[int | str, ...]
    input_shape: tuple[int, ...]
    image_size: int | None
    channels: int | None
    features: dict[str, str] | None
    parameters: int
    bytes: int
    deviation: float
    p_value_deviation: float
    checked_with: str
    milliseconds: float
    batch: int
    batch_milliseconds: float


@dataclass(frozen=True, kw_only=True)
class Failure:
    """What went wrong, where (file, key), what was found and expected, and what to do."""

    kind: str | None = field(default=None, metadata=OPTIONAL)
    what: str
    where: str | None = field(default=None, metadata=OPTIONAL)
    key: str | None = field(default=None, metadata=OPTIONAL)
    found: str | None = field(default=None, metadata=OPTIONAL)
    expected: str | None = field(default=None, metadata=OPTIONAL)
    hint: str | None = field(default=None, metadata=OPTIONAL)
    exit_code: int


@dataclass(frozen=True)
class ErrorReport(Report):
    """What any command prints on stderr under ``--json`` when it fails."""

    schema: ClassVar[str] = "clmoe.error/1"
    error: Failure


def failure_of(error: ClmoeError) -> Failure:
    """An error as reports have it, with its kind."""
    return Failure(**error.as_dict(), exit_code=error.exit_code)
