"""What a manifest says: frozen records that validate themselves, field by field."""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from store_schema import layout
from store_schema.errors import StoreDamaged
from store_schema.migrations import changes, upgraded

Suffix = Literal["safetensors", "h5"]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(min_length=1, max_length=layout.MAX_NAME, pattern=r"^[^\x00-\x1f\x7f-\x9f]+$")]
Count = Annotated[int, Field(ge=0, lt=2**63)]
Scalar = str | bool | int | float | None
Shape = Annotated[tuple[Annotated[int, Field(ge=1, le=2**31)], ...], Field(min_length=1, max_length=8)]
Sketch = Annotated[tuple[float, ...], Field(max_length=1024)]
Channels = Annotated[tuple[Annotated[float, Field(allow_inf_nan=False)], ...], Field(min_length=3, max_length=3)]
Share = Annotated[float, Field(ge=0.0, le=1.0, allow_inf_nan=False)]

_LATER = frozenset(
    {
        "input",
        "pretrained",
        "base",
        "answer",
        "within",
        "guessing",
        "per_class",
        "opinion",
        "standardised",
        "input_range",
        "input_lowest",
        "measured",
        "mean",
        "std",
        "confusion",
        "calibration",
    }
)
"""Fields that format 1 does not have: they count in a content hash only where they are set."""


class Record(BaseModel):
    """Base: immutable, strict about types, unknown fields refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False, defer_build=True)


def _unique(kind: str, values: Sequence[object]) -> None:
    if len(set(values)) < len(values):
        raise ValueError(f"the same {kind} occurs twice")


class ObjectRef(Record):
    """An immutable object: its content hash, its size in bytes, its kind."""

    sha256: Sha256
    size: Annotated[int, Field(ge=1, le=layout.MAX_OBJECT)]
    suffix: Suffix


class LayerRecord(Record):
    """A layer of shared weights."""

    name: Name
    shape: Shape

    @model_validator(mode="after")
    def _bounded(self) -> LayerRecord:
        if 4 * math.prod(self.shape) > layout.MAX_OBJECT:
            raise ValueError(f"layer {self.name!r} is larger than any object")
        return self


class FeaturesRecord(Record):
    """A frozen network in front of experts and gate: its architecture and the sha256 of its weights.

    ``mean``, ``std``: of a file that holds a whole network, what the three channels of pictures from 0 to 1 are
    normalised by; None where the architecture says so.
    """

    arch: Name
    sha256: Sha256
    mean: Channels | None = None
    std: Channels | None = None


MOST_SIDE = 4096
"""Pixels of the longest side that pictures are resized to."""


class InputRecord(Record):
    """How a picture becomes what an expert reads, the same in ``learn``, ``detect`` and ``predict``.

    ``image_size``: the shorter side is resized to so many pixels and the centre cut out, square. ``channels``: 1 grey,
    3 colour. ``features``: what reads the picture before the experts do. None leaves that step out.
    """

    image_size: Annotated[int, Field(ge=1, le=MOST_SIDE)] | None = None
    channels: Literal[1, 3] | None = None
    features: FeaturesRecord | None = None

    @model_validator(mode="after")
    def _does_something(self) -> InputRecord:
        # Images that are read as they are have no record: one spelling only, since records are compared.
        if self.image_size is None and self.channels is None and self.features is None:
            raise ValueError("an input that changes nothing")
        return self


class ExpertRecord(Record):
    """An expert; ``weights`` is None only before its first commit.

    ``input``: what its images go through, None for nothing. ``pretrained``: sha256 of the weights that its free
    entries start from, None where they are drawn. ``standardised``: whether inputs are set against centre and spread.

    ``base``: those of the pretrained weights that all tasks read; the expert's own are what is added to them. None
    where there is nothing below, and before format 4.
    """

    id: Annotated[str, StringConstraints(pattern=r"^e[1-9][0-9]{0,8}$")]
    arch: Name
    input_shape: Shape
    input_scale: Annotated[float, Field(gt=0)]
    seed: Count
    layers: Annotated[tuple[LayerRecord, ...], Field(min_length=1)]
    weights: ObjectRef | None
    input: InputRecord | None = None
    pretrained: Sha256 | None = None
    base: ObjectRef | None = None
    standardised: bool | None = None


class TaskLayer(Record):
    """A task's use of one layer: weights in all, selected, and of these already another task's."""

    name: Name
    parameters: Count
    selected: Count
    reused: Count

    @model_validator(mode="after")
    def _ordered(self) -> TaskLayer:
        if not self.reused <= self.selected <= self.parameters:
            raise ValueError(f"layer {self.name!r} reuses more than it selects, or selects more than there is")
        return self


class ClassAccuracy(Record):
    """Held-out images of one class (its position among the task's), and the share of them that is answered right."""

    images: Count
    accuracy: Share | None


class WrongAnswer(Record):
    """Held-out images of one class (its position among the task's) that were answered as ``label``.

    ``label`` is None where the task that knew it was removed since.
    """

    position: Count
    label: Annotated[int, Field(ge=-(2**63), lt=2**63)] | Name | None
    images: Annotated[int, Field(ge=1)]


class ConfidenceBin(Record):
    """Held-out images that were answered with about the same confidence: how many, how many right, and the mean."""

    images: Annotated[int, Field(ge=1)]
    right: Count
    confidence: Share

    @model_validator(mode="after")
    def _ordered(self) -> ConfidenceBin:
        if self.right > self.images:
            raise ValueError("more right answers than images")
        return self


class Accuracy(Record):
    """On the held-out calibration images, when the task was learned.

    ``dense``: before pruning. ``subnetwork``: with the subnetwork alone. ``held_out``: how many images. Since format 3:
    ``answer``: as ``predict`` answered, among all tasks known then; ``within``: with the task given; ``guessing``: the
    share of the largest class; ``per_class``: of ``answer``, in the order of the task's classes. Since format 4:
    ``confusion``: the most frequent wrong answers; ``calibration``: bins of rising confidence. None where not kept.
    """

    dense: Share | None
    subnetwork: Share | None
    held_out: Count
    answer: Share | None = None
    within: Share | None = None
    guessing: Share | None = None
    per_class: tuple[ClassAccuracy, ...] | None = None
    confusion: Annotated[tuple[WrongAnswer, ...], Field(max_length=layout.MAX_CONFUSIONS)] | None = None
    calibration: Annotated[tuple[ConfidenceBin, ...], Field(max_length=100)] | None = None


class Probe(Record):
    """Hash of a task's outputs on the fixed probe inputs, and the environment that computed them."""

    sha256: Sha256
    environment: Annotated[str, StringConstraints(max_length=500)]


class MeasuredRecord(Record):
    """How a task's images agreed with another task of its expert before it was learned (``learn``'s placement).

    Hamming distance and overlap of provisional masks, divergence of scores where both select; ``chance_overlap``: the
    overlap with the same images' inputs shuffled.
    """

    task: Name
    hamming: Share
    overlap: float
    divergence: Share
    chance_overlap: float


class TaskRecord(Record):
    """A learned task. ``measured``: what placement measured with tasks of the same expert; None before format 3."""

    name: Name
    number: Annotated[int, Field(ge=1)]
    expert: str
    classes: Annotated[tuple[Annotated[int, Field(ge=-(2**63), lt=2**63)] | Name, ...], Field(min_length=1)]
    seed: Count
    subnetwork: ObjectRef
    subnetwork_sha256: Sha256
    probe: Probe | None
    layers: tuple[TaskLayer, ...]
    owned_parameters: Count
    accuracy: Accuracy
    opinion: Share | None = None
    measured: tuple[MeasuredRecord, ...] | None = None
    images: Count
    sketch: Annotated[tuple[Sketch, ...], Field(max_length=100_000)] = ()
    config: dict[str, Scalar]
    learned_at: Annotated[str, StringConstraints(max_length=40)]

    @model_validator(mode="after")
    def _classes_differ(self) -> TaskRecord:
        _unique("class", [(type(label).__name__, label) for label in self.classes])
        if any(wrong.position >= len(self.classes) for wrong in self.accuracy.confusion or ()):
            raise ValueError("a wrong answer to a class that the task does not have")
        return self

    def forgetting(self, left: Iterable[int | str]) -> TaskRecord:
        """The record in which wrong answers name no labels but those that are ``left`` in the store."""
        if self.accuracy.confusion is None:
            return self
        keys = {(type(label), label) for label in left}
        images = Counter[tuple[int, int | str | None]]()
        for wrong in self.accuracy.confusion:
            images[wrong.position, wrong.label if (type(wrong.label), wrong.label) in keys else None] += wrong.images
        found = [WrongAnswer(position=c, label=label, images=n) for (c, label), n in images.items()]
        accuracy = self.accuracy.model_copy(update={"confusion": tuple(found)})
        return self.model_copy(update={"accuracy": accuracy})


class GateRecord(Record):
    """The solved gate of one kind of input: what its inputs are multiplied by, the features, the object.

    ``rule``: how classes are told apart, None for the subspaces of formats 1 and 2; a kind of input keeps its rule.
    ``input_range``: between which two values the largest magnitude of an image lies, over the images of all tasks;
    ``input_lowest``: the same of the least value. None for stores that were made before format 3.

    ``eye``: what was made from the images of the first task and looks at those of all, beside fixed features; it stays
    until no task of the kind is left. None for nothing, and before format 4. ``eye_base``: of an eye that is a
    network, the pretrained weights that it stands on, if any.

    A kind of input is a shape and what images went through; experts of equal shapes with other transforms are of
    another kind.
    """

    input_shape: Shape
    input_scale: Annotated[float, Field(gt=0)]
    features: Name
    solved: ObjectRef
    input: InputRecord | None = None
    input_range: tuple[float, float] | None = None
    input_lowest: tuple[float, float] | None = None
    rule: Literal["gaussians"] | None = None
    eye: ObjectRef | None = None
    eye_base: ObjectRef | None = None

    @model_validator(mode="after")
    def _eye_is_named(self) -> GateRecord:
        if (self.eye is None) == ("+" in self.features):
            raise ValueError(f"features {self.features!r} and the eye do not agree")
        if self.eye_base is not None and not self.eye_is_network:
            raise ValueError(f"features {self.features!r} stand on no pretrained weights")
        return self

    @property
    def eyes(self) -> Literal["none", "first", "subnetwork", "pretrained"]:
        """What looks at images beside the fixed features: nothing, filters made of patches of the first task's images,
        its subnetwork, or a pretrained network."""
        if self.eye is None:
            return "none"
        if "+pretrained-" in self.features:
            return "pretrained"
        return "subnetwork" if "+subnetwork-" in self.features else "first"

    @property
    def eye_is_network(self) -> bool:
        """Whether what looks at images is a network."""
        return self.eyes in ("subnetwork", "pretrained")


class HistoryEntry(Record):
    """What a commit did: frozen weights per expert and layer, and output rows per expert, after it.

    On disk, where these would grow with tasks times experts, an entry has the experts that it changed, and of one that
    is gone no layers (:func:`store_schema.migrations.changes`).

    ``at``: when, UTC; ``images`` of the file ``source`` (its name alone; of a renamed task the old name; of a copied
    one the name of the folder of its store). None before format 4.
    """

    generation: Count
    action: Literal["learn", "refine", "prune", "undo", "rename", "copy"]
    task: Name | None
    frozen: dict[str, dict[str, Count]]
    output_rows: dict[str, Count]
    at: Annotated[str, StringConstraints(max_length=40)] | None = None
    images: Count | None = None
    source: Name | None = None


class Manifest(Record):
    """One generation of a store."""

    format: int = Field(default_factory=lambda: layout.FORMAT_VERSION)
    generation: Count
    parent: Sha256 | None
    created_at: Annotated[str, StringConstraints(max_length=40)]
    seed: Count
    next_task: Annotated[int, Field(ge=1)] = 1
    next_expert: Annotated[int, Field(ge=1)] = 1
    repair_floor: Count = 0
    experts: tuple[ExpertRecord, ...] = ()
    tasks: tuple[TaskRecord, ...] = ()
    gates: tuple[GateRecord, ...] = ()
    history: tuple[HistoryEntry, ...] = ()
    environment: dict[str, str] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _consistent(self) -> Manifest:
        if self.format != layout.FORMAT_VERSION:
            raise ValueError(f"format {self.format}; this version knows {layout.FORMAT_VERSION}")
        _unique("task", [t.name for t in self.tasks])
        _unique("task number", [t.number for t in self.tasks])
        _unique("expert", [e.id for e in self.experts])
        _unique("gate", [(g.input_shape, g.input) for g in self.gates])
        sizes = {}
        for expert in self.experts:
            _unique(f"layer of expert {expert.id}", [layer.name for layer in expert.layers])
            sizes[expert.id] = [(layer.name, math.prod(layer.shape)) for layer in expert.layers]
        for task in self.tasks:
            if task.expert not in sizes:
                raise ValueError(f"task {task.name!r} names expert {task.expert!r}, which does not exist")
            if [(layer.name, layer.parameters) for layer in task.layers] != sizes[task.expert]:
                raise ValueError(f"task {task.name!r} has other layers than its expert")
            if task.number >= self.next_task:
                raise ValueError(f"task {task.name!r} has a number that is yet to be given")
        if any(n > self.generation for n in (self.repair_floor, *(entry.generation for entry in self.history))):
            raise ValueError("a later generation is named")
        if self.generation > 0 and any(e.weights is None for e in self.experts):
            raise ValueError("an expert without weights")
        return self

    def to_bytes(self) -> bytes:
        """Canonical JSON."""
        fields = self.model_dump(mode="json")
        fields["history"] = changes(fields["history"])
        text = json.dumps(fields, sort_keys=True, indent=1, ensure_ascii=False)
        return f"{text}\n".encode()

    @staticmethod
    def from_bytes(data: bytes, where: str) -> Manifest:
        """Parses and checks a manifest, of this format or an older one; StoreDamaged names the field."""
        try:
            manifest = Manifest.model_validate_json(upgraded(data))
            return manifest.model_copy(update={"history": _whole(manifest.history)})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            key = ".".join(map(str, first["loc"])) or None
            raise StoreDamaged("not a valid manifest", where=where, key=key, found=first["msg"]) from error
        except (RecursionError, ValueError) as error:
            raise StoreDamaged("not a valid manifest", where=where, found=str(error)) from error

    def objects(self) -> Iterator[ObjectRef]:
        """Every object that this generation needs."""
        yield from (e.weights for e in self.experts if e.weights is not None)
        yield from (e.base for e in self.experts if e.base is not None)
        yield from (t.subnetwork for t in self.tasks)
        yield from (g.solved for g in self.gates)
        yield from (g.eye for g in self.gates if g.eye is not None)
        yield from (g.eye_base for g in self.gates if g.eye_base is not None)

    def expert(self, expert_id: str) -> ExpertRecord:
        """The expert of that id (KeyError when there is none)."""
        return self._experts_by_id[expert_id]

    def task(self, name: str) -> TaskRecord:
        """The task of that name (KeyError when there is none)."""
        return self._tasks_by_name[name]

    @cached_property
    def _experts_by_id(self) -> dict[str, ExpertRecord]:
        return {e.id: e for e in self.experts}

    @cached_property
    def _tasks_by_name(self) -> dict[str, TaskRecord]:
        return {t.name: t for t in self.tasks}

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Manifest:
        """As of any model; what was looked up by name is looked up anew, since a copy takes it along."""
        copied = super().model_copy(update=update, deep=deep)
        for name in ("_experts_by_id", "_tasks_by_name"):
            vars(copied).pop(name, None)
        return copied

    def tasks_of(self, expert_id: str) -> list[TaskRecord]:
        """An expert's tasks in the order of learning."""
        return [t for t in self.tasks if t.expert == expert_id]

    def tasks_of_shape(self, input_shape: tuple[int, ...], input: InputRecord | None = None) -> list[TaskRecord]:
        """The tasks whose experts read images of that shape that went through ``input``, in the order of learning."""
        fitting = {e.id for e in self.experts if (e.input_shape, e.input) == (input_shape, input)}
        return [t for t in self.tasks if t.expert in fitting]

    def gate(self, input_shape: tuple[int, ...], input: InputRecord | None = None) -> GateRecord | None:
        """The gate of that kind of input, if there is one."""
        return next((g for g in self.gates if (g.input_shape, g.input) == (input_shape, input)), None)

    def content_hash(self) -> str:
        """What was learned, as one sha256: no clock time, no generation number, no environment in it.

        Fields of later formats count only where they are set, so that an upgrade changes no hash.
        """
        drop = {"learned_at", "probe"}
        content: dict[str, Any] = {
            "objects": sorted(ref.sha256 for ref in self.objects()),
            "experts": [_of_format_1(e.model_dump(mode="json")) for e in self.experts],
            "tasks": [_of_format_1(t.model_dump(mode="json", exclude=drop)) for t in self.tasks],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _whole(history: Iterable[HistoryEntry]) -> tuple[HistoryEntry, ...]:
    """Entries that say what changed, as entries that say what was frozen after each."""
    found: list[HistoryEntry] = []
    frozen, rows = dict[str, dict[str, int]](), dict[str, int]()
    for entry in history:
        frozen = {expert: counts for expert, counts in sorted({**frozen, **entry.frozen}.items()) if counts}
        rows = {expert: n for expert, n in sorted({**rows, **entry.output_rows}.items()) if expert in frozen}
        found.append(entry.model_copy(update={"frozen": frozen, "output_rows": rows}))
    return tuple(found)


def _of_format_1(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without those of later formats that are not set."""
    kept = {key: value for key, value in fields.items() if value is not None or key not in _LATER}
    return {key: _of_format_1(value) if key == "accuracy" else value for key, value in kept.items()}
