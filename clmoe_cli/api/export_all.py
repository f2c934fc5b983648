"""``export --all``: all that answers for one kind of input as one model, checked against ``predict`` before it is kept.

The model holds the backbone or the fixed features, the gate, the p-values and the subnetworks
(:mod:`clmoe_cli.method.routing.whole`). What is left to the caller is a picture of the right size, from 0 to 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from clmoe_cli import __version__
from clmoe_cli.api import gating
from clmoe_cli.api.addresses import local
from clmoe_cli.api.inputs import Kind, kind_text, kinds
from clmoe_cli.api.model_files import (
    FLOATS,
    Asked,
    Reads,
    check_onnx,
    milliseconds,
    open_onnx,
    open_pt2,
    steps_of,
    to_onnx,
    to_pt2,
)
from clmoe_cli.api.names import check_output
from clmoe_cli.api.reports import ExportAllReport, fields_of
from clmoe_cli.backbone.loading import is_file
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label, LabelEncoder
from clmoe_cli.data.npz import one_line, replacing
from clmoe_cli.method.learn_task import probe_inputs
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.reproducible import one_thread
from clmoe_cli.method.routing.calibration import MINIMUM
from clmoe_cli.method.routing.decide import Decision
from clmoe_cli.method.routing.features import MOST_COLUMNS, ROOT, VECTOR, known
from clmoe_cli.method.routing.gaussians import GaussianGate
from clmoe_cli.method.routing.paper import DEFAULT_ROUTER
from clmoe_cli.method.routing.standalone import Reading
from clmoe_cli.method.routing.whole import Convolutions, Parts, Perceptron, Whole
from clmoe_cli.method.scaling import BOUND
from clmoe_cli.method.subnetwork import plain
from clmoe_cli.method.subnetwork.compact import Compact, compacted
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.words import one_of
from clmoe_cli.store_tensors import Loader, parameters
from store_schema import ClmoeError, GateRecord, Store, StoreIncompatible, UsageProblem, read_consistently

SUFFIXES = (".onnx", ".pt2")
SCHEMA = "clmoe.store-model/1"
OUTPUTS = {
    "label": "int64 [N]: position in classes",
    "task": "int64 [N]: position in tasks",
    "confidence": "float32 [N]: of the label, from 0 to 1",
    "p_value": "float64 [N]: how usual the image is for the task; unknown where it is below the level that you choose; "
    "NaN where the class has too few images, and is not below any level",
    "probabilities": "float32 [N, classes]: of all labels; 0 for all but those of the eight likeliest classes",
}
PICTURES = 8
"""Pictures that a backbone is tried on."""
CONFIDENT = 5e-4
"""Largest difference of a confidence. Scores are rounded to float32, which has steps of 1e-4 at a thousand nats."""
USUAL = 0.01
"""Largest difference of a p-value, a few of the thousand steps that it has, beside one step of the fewest images."""
BY_TASKS = "export tasks one by one: --task NAME"


@dataclass(frozen=True)
class _Task:
    """A task of the model; ``opinion``: weight of its subnetwork beside the gate."""

    name: str
    expert: str
    classes: tuple[Label, ...]
    opinion: float


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a written file says of its model."""

    schema: str = SCHEMA
    clmoe: str = __version__
    store: str
    classes: tuple[Label, ...]
    tasks: tuple[_Task, ...]
    input: Reads
    outputs: dict[str, str]


@dataclass(frozen=True)
class _Model:
    """What is written, images [P, *shape] that it is tried on, and what ``predict`` answers them.

    ``fewest``: images of a class that p-values are made of, the least of all; infinite where there are none.
    """

    net: Whole
    about: _About
    images: Tensor
    expected: Decision
    fewest: float


def export_all(
    store: str, output: str | Path, *, task: str | None = None, features_weights: str | Path | None = None
) -> ExportAllReport:
    """Writes a store to an ``.onnx`` or ``.pt2`` file that answers as ``predict`` does, in place of an earlier one.

    ``task``: of a store with several kinds of input, a task of the kind that is wanted. ``features_weights``: the
    weights of the store's backbone, as ``predict`` takes them.

    The written file is read back and run on probe inputs, in batches of two sizes, before it takes its place. Raises
    UsageProblem for an unknown task, several kinds of input, a file that cannot be written, or missing packages;
    StoreIncompatible for what cannot be one model; ClmoeError where the file answers otherwise than ``predict``;
    DiskProblem; the store's errors.
    """
    path = Path(output)
    check_output(path, SUFFIXES)
    onnx = path.suffix == ".onnx"
    if onnx:
        check_onnx()
    weights = None if features_weights is None else str(features_weights)
    model = read_consistently(local(store), lambda opened: _model(opened, task, weights))
    about, reads = model.about, model.about.input
    tensors = [*model.net.parameters(), *model.net.buffers()]
    size = sum(value.numel() * value.element_size() for value in tensors)
    if onnx and size > limits.ONNX_BYTES:
        raise UsageProblem(
            "too large for an ONNX file", where=str(path), found=f"{size} bytes",
            expected=f"at most {limits.ONNX_BYTES}", hint="name a .pt2 file",
        )  # fmt: skip
    with replacing(path) as file:
        try:
            file.write(data := _written(model, onnx))
            file.flush()
            asked, runner = (open_onnx if onnx else open_pt2)(file.name)
            deviation, usual = _checked(model, asked, runner, path)
        except (ClmoeError, OSError):
            raise
        except Exception as error:  # exporters and runtimes raise kinds of their own, as for an unknown operator
            what = "the network cannot be exported"
            raise ClmoeError(what, where=str(path), found=one_line(error)[:200], hint=BY_TASKS) from error
    several = model.images[: PICTURES * 4]
    return ExportAllReport(
        output=str(path),
        format=path.suffix[1:],
        tasks=tuple(each.name for each in about.tasks),
        classes=about.classes,
        input_shape=reads.shape,
        image_size=reads.image_size,
        channels=reads.channels,
        features=None if reads.features is None else {"arch": reads.features.arch, "sha256": reads.features.sha256},
        parameters=sum(value.numel() for value in tensors),
        bytes=len(data),
        deviation=deviation,
        p_value_deviation=usual,
        checked_with=runner,
        milliseconds=milliseconds(asked, model.images[:1]),
        batch=len(several),
        batch_milliseconds=milliseconds(asked, several),
    )


def _written(model: _Model, onnx: bool) -> bytes:
    """The bytes of the file."""
    shape, told = model.about.input.shape, fields_of(model.about)
    return to_onnx(model.net, shape, told, tuple(OUTPUTS)) if onnx else to_pt2(model.net, shape, told)


def _model(store: Store, task: str | None, weights: str | None) -> _Model:
    """The tasks of one kind of input as a module, and what is said of them."""
    manifest, loader = store.manifest, Loader(store)
    kind = _kind(store, task)
    gate_record = _gate(store, kind)
    through = kind.input
    session = None
    if through is not None and through.features is not None:
        session = BackboneSession(weights=weights, keep=False)
        session.record(through.features, through.image_size)
    elif weights is not None:
        raise UsageProblem("--features-weights without a backbone", hint="leave it out")
    records = manifest.tasks_of_shape(kind.shape, through)
    names = [each.name for each in records]
    book = LabelEncoder.of(*(each.classes for each in records))
    opinions = [gating.opinion_of(each) for each in records]
    shape = kind.shape
    if session is not None:
        assert through is not None
        assert through.image_size is not None
        shape = (3, through.image_size, through.image_size)
    gate = loader.gate(kind.shape, through)
    assert isinstance(gate, GaussianGate)
    with one_thread():
        net = Whole(
            Parts(
                gate=gate,
                tasks=[loader.gaussians(name) for name in names],
                codes=torch.tensor([code for each in records for code in book.codes(each.classes)]),
                weights=opinions,
                subnetworks=[_subnetwork(loader, n) if w else None for n, w in zip(names, opinions, strict=True)],
                reading=Reading(kind.shape, gate_record.input_scale, gate_record.features, loader.eye(gate_record)),
                backbone=None if session is None else session.backbone.module(),
            )
        ).train(False)
    images = _probes(loader, kind, gate_record, names) if session is None else _pictures(shape)
    inputs = images.numpy() if session is None else session.vectors(images.numpy())
    batch = Batch(inputs, None, "probe inputs", through)
    about = _About(
        store=manifest.content_hash(),
        classes=book.labels,
        tasks=tuple(
            _Task(each.name, each.expert, each.classes, weight) for each, weight in zip(records, opinions, strict=True)
        ),
        input=Reads(
            shape=shape,
            values=FLOATS + (", from 0 to 1" if session else ""),
            **steps_of(through),
        ),
        outputs=OUTPUTS,
    )
    told = gating.decide(loader, batch, names, book, DEFAULT_ROUTER, gating.Route())
    counts = torch.cat([loader.gaussians(name).counts for name in names])
    fewest = min(counts[counts >= MINIMUM].tolist(), default=math.inf)
    return _Model(net, about, images, Decision.joined(list(told)), fewest)


def _kind(store: Store, task: str | None) -> Kind:
    """The kind of input that is exported: the only one, or that of the task."""
    manifest = store.manifest
    if task is not None:
        task = one_of("task", task, [t.name for t in manifest.tasks])
    found = kinds(manifest, task)
    if len(found) != 1:
        texts = [kind_text(each.shape, each.input) for each in found]
        raise UsageProblem(
            "a model reads one kind of input, and the store's tasks read several" if found else "the store has no task",
            found=" and ".join(texts) or None,
            hint="--all --task NAME exports all tasks of that task's kind" if found else "learn one first",
        )
    return found[0]


def _gate(store: Store, kind: Kind) -> GateRecord:
    """The gate of a kind of input. StoreIncompatible for what cannot be in one model."""
    record, features = store.manifest.gate(kind.shape, kind.input), kind.input and kind.input.features
    if record is None or record.rule is None or not known(record.features, kind.shape):
        raise StoreIncompatible(
            "the gate of these tasks cannot be exported", where=str(store.root), key=kind_text(kind.shape, kind.input),
            found="none" if record is None else f"{record.rule or 'subspaces'} of {record.features}",
            expected="Gaussians, as stores have since format 3", hint=BY_TASKS,
        )  # fmt: skip
    if features and is_file(features.arch):
        raise StoreIncompatible(
            "a backbone in an ONNX file cannot be part of the model", where=str(store.root), found=features.arch,
            expected="lite0, fixed, or a network of torchvision", hint=BY_TASKS,
        )  # fmt: skip
    return record


def _subnetwork(loader: Loader, name: str) -> nn.Module:
    """A task's subnetwork as :class:`Whole` asks it."""
    record = loader.manifest.task(name)
    net, scaling = loader.network(record.expert), loader.scaling(record.expert)
    params = parameters(loader.store.read_subnetwork(name, ("masks",)), loader.weights(record.expert), net, "cpu")
    if isinstance(net, MLP):
        small = compacted(net, params)
        if any(value.numel() == 0 for value in small.params.values()):
            small = Compact(net, params)
        return Perceptron(small, scaling)
    network = plain.described(net, len(record.classes), scaling)
    module = plain.module(network, plain.state(net, net.effective(params), scaling))
    return Convolutions(plain.Answers(module, network.get("colour", False)))


def _probes(loader: Loader, kind: Kind, gate: GateRecord, names: Sequence[str]) -> Tensor:
    """Images [P, *shape] to try a model on: numbers by chance, and of vectors the means of all classes."""
    found = []
    experts = dict.fromkeys(loader.manifest.task(name).expert for name in names)
    scalings = {(s.factor, s.standardised): expert for expert in experts for s in (loader.scaling(expert),)}
    for expert in scalings.values():
        images, scaling = probe_inputs(loader.network(expert)), loader.scaling(expert)
        if scaling.standardised:  # most near the centre, some beyond the bound
            images = 1.5 * BOUND * (2.0 * images - 1.0) ** 3
        found.append(scaling.undone(images))
    if gate.features in (VECTOR, ROOT) and math.prod(kind.shape) <= MOST_COLUMNS:
        means = torch.cat([loader.gaussians(name).means for name in names]).double()
        means = means.sign() * means.square() if gate.features == ROOT else means
        found.append((means / gate.input_scale).float())
    return torch.cat(found).reshape(-1, *kind.shape)


def _pictures(shape: tuple[int, ...]) -> Tensor:
    """Pictures by chance [P, *shape] that a backbone sees: of few, of several and of many colours."""
    drawn = torch.Generator().manual_seed(0)
    sides = [max(1, shape[1] >> (k % 6)) for k in range(PICTURES)]
    coarse = [torch.rand((1, shape[0], side, side), generator=drawn) for side in sides]
    return torch.cat([nn.functional.interpolate(each, size=shape[1:], mode="nearest") for each in coarse])


def _checked(model: _Model, asked: Asked, runner: str, path: Path) -> tuple[float, float]:
    """The largest differences of a confidence and of a p-value between the written file and ``predict``."""
    parts = [asked(part) for part in (model.images[:1], model.images[1:])]
    found = dict(zip(OUTPUTS, (torch.cat(each) for each in zip(*parts, strict=True)), strict=True))
    told = model.expected
    wrong = int(((found["label"] != told.code) | (found["task"] != told.task)).sum())
    deviation = float((found["confidence"] - told.confidence).abs().max())
    none = told.p_value.isnan()
    usual = float((found["p_value"] - told.p_value)[~none].abs().max()) if bool((~none).any()) else 0.0
    step = USUAL + 1 / (model.fewest + 1)
    if wrong or not deviation <= CONFIDENT or not usual <= step or not bool((found["p_value"].isnan() == none).all()):
        raise ClmoeError(
            "the exported model answers otherwise than the store; it was not kept",
            where=str(path),
            found=f"{wrong} of {len(none)} other labels, confidences {deviation:.3g} and p-values {usual:.3g} apart, "
            f"run by {runner}",
            expected=f"the same labels, within {CONFIDENT:.3g} and {step:.3g}",
            hint=BY_TASKS if path.suffix == ".pt2" else f"name a .pt2 file, or {BY_TASKS}",
        )
    return deviation, usual
