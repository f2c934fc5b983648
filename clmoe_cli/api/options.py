"""What ``learn`` can be told, and what it refuses before it touches a store."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any, TypedDict, Unpack

from clmoe_cli.api.names import check_name
from clmoe_cli.data import Batch
from clmoe_cli.data.batch import check_batch
from clmoe_cli.data.targets import check_names
from clmoe_cli.method import learn_task
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.subnetwork.pruning import SCORES, Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.method.tasks.placement import Thresholds
from clmoe_cli.runtime.choices import AUGMENT, EVIDENCE, EYES, IF_KNOWN
from clmoe_cli.runtime.devices import resolved
from clmoe_cli.runtime.words import check_rate, one_of
from store_schema import BadInput, UsageProblem


@dataclass(frozen=True)
class LearnOptions:
    """Everything that ``learn`` can be told; the defaults need no touch.

    ``expert``: an expert's id, ``new``, or None to let placement decide. ``alpha``: rate of false alarms of
    the onset. ``seed`` counts when the store is created; a store keeps its seed. ``weights``: a safetensors file that
    free weights start from. ``time_limit``: minutes that learning a task may take, from when the store is locked; None
    for as many as it needs. ``evidence``: what the onset judges by, one of :data:`clmoe_cli.runtime.choices.EVIDENCE`.
    ``eyes``: what looks at pictures beside the gate's fixed features, one of :data:`clmoe_cli.runtime.choices.EYES`;
    None for what their kind was begun with, and for a new kind the pretrained weights that the expert starts from, if
    any. ``refine``: the task that the data improve,
    whatever the onset would say. ``numbered``: without ``name`` the task is called task1, task2, … and not after its
    file.
    """

    name: str | None = None
    arch: str = "mlp:500,500"
    seed: int | None = None
    expert: str | None = None
    if_known: str = "skip"
    alpha: float = 0.01
    method: learn_task.Options = field(default_factory=learn_task.Options)
    thresholds: Thresholds = field(default_factory=Thresholds)
    lock_timeout: float | None = None
    weights: str | None = None
    time_limit: float | None = None
    evidence: str = "gate"
    eyes: str | None = None
    refine: str | None = None
    numbered: bool = False


class LearnFlags(TypedDict, total=False):
    """The flags of ``clmoe learn`` that say how a task is learned, as keywords; ``max_drop`` is in percent."""

    name: str | None
    arch: str
    weights: str | None
    epochs: int
    augment: str | None
    seed: int | None
    score: str
    max_drop: float
    expert: str | None
    if_known: str
    refine: str | None
    alpha: float
    evidence: str
    eyes: str | None
    batch_size: int
    device: str
    lock_timeout: float | None
    time_limit: float | None


def of_flags(**flags: Unpack[LearnFlags]) -> LearnOptions:
    """What these flags ask for; those that are left out have the defaults of the command.

    Raises UsageProblem for one that does not exist, and for a device that is not there.
    """
    for name in flags:
        one_of("option of learn", name, list(LearnFlags.__annotations__))
    given: dict[str, Any] = dict(flags)
    for name, least in (("epochs", 1), ("batch_size", 2)):
        value = given.get(name, least)
        if not isinstance(value, Integral) or value < least:
            raise UsageProblem(f"not a value of {name}", found=repr(value), expected=f"a whole number from {least} on")
    check_rate("max_drop / 100", given.get("max_drop", 0.0) / 100)
    schedule: dict[str, Any] = {name: int(given.pop(name)) for name in ("epochs", "batch_size") if name in given}
    tolerance = Tolerance() if "max_drop" not in given else Tolerance(max_drop=given.pop("max_drop") / 100)
    method: dict[str, Any] = {name: given.pop(name) for name in ("score", "augment") if name in given}
    device = resolved(given.pop("device", "auto"))
    how = learn_task.Options(schedule=Schedule(**schedule), tolerance=tolerance, device=device, **method)
    return LearnOptions(**given, method=how)


def check_options(options: LearnOptions) -> None:
    """Refuses options that mean nothing, whatever the data (UsageProblem)."""
    if options.name is not None:
        check_name(options.name, "--name")
    if options.time_limit is not None and not 0.0 < options.time_limit < math.inf:
        raise UsageProblem(
            "not a time to learn in",
            key="--time-limit",
            found=str(options.time_limit),
            expected="a number of minutes above 0",
            hint="leave it out to let training end by itself",
        )
    if options.seed is not None and not 0 <= options.seed < 2**63:
        raise UsageProblem("not a seed", key="--seed", found=str(options.seed)[:40], expected="0 or more, below 2**63")
    if options.refine is not None:
        said = {"--name": options.name is not None, "--expert": options.expert is not None}
        clash = [flag for flag, given in (said | {"--if-known new": options.if_known == "new"}).items() if given]
        if clash:
            raise UsageProblem(
                "a refined task keeps its name and its expert", key="--refine", found=clash[0], hint="leave it out"
            )
    check_rate("--alpha", options.alpha)
    one_of("value of --if-known", options.if_known, IF_KNOWN)
    one_of("score", options.method.score, SCORES)
    one_of("evidence", options.evidence, EVIDENCE)
    if options.method.augment is not None:
        one_of("augmentation", options.method.augment, AUGMENT)
    if options.eyes is not None:
        one_of("value of --eyes", options.eyes, EYES)


def check(batch: Batch, options: LearnOptions) -> None:
    """Refuses options that make no sense (UsageProblem) and data that cannot be learned (BadInput)."""
    check_options(options)
    check_batch(batch)
    if batch.flaw is not None:
        raise batch.flaw
    if batch.labels is None:
        expected = "labels y [N]" if batch.files is None else "class folders, as photos/CLASS/picture.jpg"
        raise BadInput("no labels to learn from", where=batch.source, expected=expected)
    classes = batch.classes()
    check_names([label for label in classes if isinstance(label, str)], batch.source, "labels")
    try:
        parse_arch(options.arch, batch.input_shape)
    except ValueError as error:
        raise UsageProblem(str(error), key="--arch") from error
    if len(batch.input_shape) != 3 and options.method.augment in ("light", "strong"):
        raise UsageProblem(
            "only pictures can be augmented", key="--augment", found=f"vectors of {batch.input_shape[0]} numbers",
            expected="none", hint="leave it out: what suits the data is chosen",
        )  # fmt: skip
