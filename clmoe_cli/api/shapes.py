"""What nests in reports as plain objects, and what is no report: as :mod:`clmoe_cli.api.schemas` publishes it."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, Field

from clmoe_cli.api.reports import Caution
from clmoe_cli.data.labels import Label


class Accuracy(BaseModel):
    """Shares of right answers to held-out images, null where they were not measured, and how many images these are."""

    answer: float | None
    within: float | None
    subnetwork: float | None
    dense: float | None
    guessing: float | None
    held_out: int


class ClassAccuracy(BaseModel):
    """How many held-out images a class had, and the share of them that is answered right."""

    label: Label
    images: int
    accuracy: float | None


class Onset(BaseModel):
    """Whether the data are of known tasks, how sure that is (null: not available), which ones, and why."""

    verdict: Literal["known", "new", "undecided"]
    p_value: float | None
    tasks: list[str]
    reason: str


class Candidate(BaseModel):
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


class Compared(BaseModel):
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


class Considered(BaseModel):
    """A class that an image was compared with, by which figures, and how far it stays behind the answer."""

    task: str
    expert: str
    label: int | str | None
    margin: float
    by: Literal["expert_score", "task_score", "score"] | None
    expert_score: float | None
    task_score: float | None
    score: float | None
    distance: float | None
    own_distance: float | None
    log_likelihood: float | None
    probability: float | None
    loss: float | None
    deviation: float | None
    p_value: float | None


class Prediction(BaseModel):
    """The answer to one image; ``file`` where images come from a folder. A line of NDJSON is one of these."""

    index: int
    label: Label
    task: str
    expert: str
    confidence: float
    known: bool
    p_value: float | None
    file: str = ""
    runner_up_task: str = ""
    runner_up_label: int | str = ""
    margin: float = 0.0
    reason: str = ""
    explanation: list[Considered] = []


class Confusion(BaseModel):
    """Of the images whose label just these ``tasks`` know, how many there are and which tasks answered how many."""

    tasks: list[str]
    images: int
    answered: dict[str, int]


class Predicted(BaseModel):
    """What ``predict`` found over all images; what needs labels in the file is null without them."""

    schema_: Literal["clmoe.predict/1"] = Field(alias="schema")
    router: str | None
    route: Literal["image", "batch", "task"]
    rejected: int
    skipped: int
    accuracy: float | None
    accuracy_by_task: dict[str, float] | None
    confusion: list[Confusion] | None
    calibration_error: float | None
    decided_by: list[str] = []
    warnings: list[Caution] = []


class Predictions(Predicted):
    """What ``predict --json`` prints."""

    predictions: list[Prediction]


class Written(Predicted):
    """What ``predict --output FILE --json`` prints; the predictions are in the file."""

    output: str


class Frozen(BaseModel):
    """Entries of a layer that tasks use."""

    name: str
    parameters: int
    frozen: int
    frozen_percent: float


class FrozenRows(BaseModel):
    """Output rows of an expert that tasks own."""

    frozen: int
    frozen_percent: float


class Rows(FrozenRows):
    """The same, and how many rows there are."""

    rows: int


class Features(BaseModel):
    """A frozen network in front of the experts: its architecture and the hash of its weights."""

    arch: str
    sha256: str


class Input(BaseModel):
    """What pictures go through before an expert reads them; null leaves a step out."""

    image_size: int | None
    channels: int | None
    features: Features | None


class Shares(Frozen):
    """The same; weights of one task, of several, and of none, which add up to the layer's."""

    single: int
    shared: int
    free: int


class Expert(BaseModel):
    """An expert of the store."""

    id: str
    arch: str
    input_shape: list[int]
    kind: str
    input: Input | None
    tasks: list[str]
    layers: list[Shares]
    frozen_percent: float
    output_rows: Rows
    owned_parameters: int


class Selected(BaseModel):
    """A task's share of a layer."""

    name: str
    parameters: int
    selected: int
    reused: int
    percent: float


class Measured(BaseModel):
    """How a task's images agreed with a task of its expert before it was learned, and what chance gives."""

    task: str
    hamming: float
    overlap: float
    divergence: float
    chance_overlap: float


class Task(BaseModel):
    """A task of the store; ``measured`` is null of tasks of older versions."""

    name: str
    expert: str
    classes: list[Label]
    accuracy: Accuracy
    per_class: list[ClassAccuracy]
    opinion: float | None
    measured: list[Measured] | None
    layers: list[Selected]
    owned_parameters: int
    images: int
    learned_at: str
    bytes: int


class Then(BaseModel):
    """An expert as it was after a commit."""

    layers: list[Frozen]
    output_rows: FrozenRows


class Commit(BaseModel):
    """A commit and what was frozen after it; experts that are gone are left out."""

    generation: int
    action: str
    task: str | None
    experts: dict[str, Then]


class Bytes(BaseModel):
    """Sizes of the files of each expert, task and gate."""

    experts: dict[str, int]
    tasks: dict[str, int]
    gates: dict[str, int]
    total: int


class Repaired(BaseModel):
    """What ``--repair`` found damaged, which generation stands now, and which tasks that costs."""

    generation: int
    found: list[str]
    lost: list[str]


class File(BaseModel):
    """A file of ``tasks``."""

    path: str
    task: str
    classes: list[Label]
    images: int


class Failure(BaseModel):
    """What went wrong, where (file, key), what was found and expected, and what to do."""

    what: str
    exit_code: int
    kind: str = ""
    where: str = ""
    key: str = ""
    found: str = ""
    expected: str = ""
    hint: str = ""


class Error(BaseModel):
    """What any command prints on stderr under ``--json`` when it fails."""

    schema_: Literal["clmoe.error/1"] = Field(alias="schema")
    error: Failure
