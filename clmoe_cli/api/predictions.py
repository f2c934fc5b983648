"""What ``predict`` prints: an answer for each image, why, and how right they are. Imports no torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from clmoe_cli.api.reports import OPTIONAL, Bin, Caution, ClassAccuracy, Json, Report, WrongAnswer

Level = Literal["expert_score", "task_score", "score"]
Route = Literal["image", "batch", "task"]


@dataclass(frozen=True)
class Considered:
    """A class that an image was compared with, by which figures, and how far it stays behind the answer."""

    # ``label``: None where nobody asked; ``by``: the figure that puts it there, None for the answer. Figures: those of
    # clmoe_cli.method.explain, None where not known.
    task: str
    expert: str
    label: int | str | None
    margin: float
    by: Level | None
    expert_score: float | None = None
    task_score: float | None = None
    score: float | None = None
    distance: float | None = None
    own_distance: float | None = None
    log_likelihood: float | None = None
    opinion: float | None = None
    probability: float | None = None
    loss: float | None = None
    deviation: float | None = None
    p_value: float | None = None


@dataclass(frozen=True)
class Likely:
    """A label and the confidence in it."""

    label: int | str
    confidence: float


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The answer to one image; ``file`` where images come from a folder. A line of NDJSON is one of these.

    ``known`` is null where ``--reject`` was not given. ``top``: the most likely labels, with ``--top``. ``truth``: with
    ``--only``, the label that the data have.
    """

    index: int
    file: str | None = field(default=None, metadata=OPTIONAL)
    label: int | str
    task: str
    expert: str
    confidence: float
    known: bool | None
    p_value: float | None
    runner_up_task: str | None = field(default=None, metadata=OPTIONAL)
    runner_up_label: int | str | None = field(default=None, metadata=OPTIONAL)
    margin: float | None = field(default=None, metadata=OPTIONAL)
    reason: str | None = field(default=None, metadata=OPTIONAL)
    top: tuple[Likely, ...] | None = field(default=None, metadata=OPTIONAL)
    truth: int | str | None = field(default=None, metadata=OPTIONAL)
    explanation: tuple[Considered, ...] | None = field(default=None, metadata=OPTIONAL)


@dataclass(frozen=True)
class Confusion:
    """Of the images whose label just these ``tasks`` know, how many there are and which tasks answered how many."""

    tasks: tuple[str, ...]
    images: int
    answered: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class Predicted(Report):
    """What ``predict`` found over all images; what needs labels in the file is null without them.

    ``confusion``: which tasks answered the images of which; ``confusion_of_labels``: which label was answered for
    which. ``calibration``: how often answers of about the same confidence are right.
    """

    schema: ClassVar[str] = "clmoe.predict/2"
    router: str | None
    route: Route
    rejected: int
    skipped: int
    warnings: tuple[Caution, ...] = field(default=(), metadata=OPTIONAL)
    decided_by: tuple[str, ...] | None = field(default=None, metadata=OPTIONAL)
    accuracy: float | None
    accuracy_by_task: dict[str, float] | None
    confusion: tuple[Confusion, ...] | None
    calibration_error: float | None
    per_class: tuple[ClassAccuracy, ...] | None
    confusion_of_labels: tuple[WrongAnswer, ...] | None
    calibration: tuple[Bin, ...] | None


@dataclass(frozen=True, kw_only=True)
class Predictions(Predicted):
    """What ``predict --json`` prints."""

    predictions: tuple[Prediction, ...]

    def to_json(self) -> dict[str, Json]:
        """Plain values, the predictions after what was asked for."""
        found = super().to_json()
        return {key: found.pop(key) for key in ("schema", "router", "route", "predictions")} | found


@dataclass(frozen=True, kw_only=True)
class Written(Predicted):
    """What ``predict --output FILE --json`` prints; the predictions are in the file."""

    output: str
