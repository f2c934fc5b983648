"""``export``: a task as an ordinary model without ``clmoe``, read back and run before it takes its place.

An ONNX file answers as ``predict --task`` does, with the gate's part in it. A safetensors file holds the weights of an
ordinary architecture, in which the gate has no place: it holds the subnetwork alone, and says so.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from clmoe_cli import __version__
from clmoe_cli.api.addresses import local
from clmoe_cli.api.certify import TOLERANCE
from clmoe_cli.api.gating import opinion_of
from clmoe_cli.api.model_files import Reads, check_onnx, from_safetensors, run_onnx, steps_of, to_onnx, to_safetensors
from clmoe_cli.api.names import check_output
from clmoe_cli.api.reports import OPTIONAL, Caution, ExportReport, accuracy_of, fields_of
from clmoe_cli.data.npz import one_line, replacing
from clmoe_cli.method.learn_task import probe_inputs
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.reproducible import one_thread
from clmoe_cli.method.routing.decide import mixed
from clmoe_cli.method.routing.features import features, known
from clmoe_cli.method.routing.gaussians import alone
from clmoe_cli.method.routing.standalone import Mixture, Reading, Within
from clmoe_cli.method.scaling import BOUND
from clmoe_cli.method.subnetwork import plain
from clmoe_cli.runtime.words import one_of
from clmoe_cli.store_tensors import Loader, parameters
from store_schema import (
    ClmoeError,
    Store,
    StoreDamaged,
    StoreIncompatible,
    TaskRecord,
    UsageProblem,
    read_consistently,
)

SUFFIXES = (".safetensors", ".onnx")
SCHEMA = "clmoe.model/1"
_WHAT = {"mixture": "store", "subnetwork": "subnetwork"}


@dataclass(frozen=True, kw_only=True)
class _Reads(Reads):
    """The same of one task: ``scale`` and whether inputs are standardised are in its first layers already."""

    scale: float
    standardised: bool


@dataclass(frozen=True, kw_only=True)
class _About:
    """What a written file says of its model."""

    schema: str = SCHEMA
    clmoe: str = __version__
    store: str
    task: str
    expert: str
    arch: str
    classes: tuple[int | str, ...]
    answers: Literal["mixture", "subnetwork"]
    opinion: float | None = field(default=None, metadata=OPTIONAL)
    input: _Reads
    network: plain.Described


@dataclass(frozen=True)
class _Model:
    """What is written, and what it has to answer.

    ``values``: the subnetwork's own; ``shared``: names of those with a mask. ``images`` [P, *shape] and the logits of
    them [P, C]. ``opinion``: weight of the subnetwork in what ``predict --task`` answers; None: it answers alone.
    """

    net: nn.Module
    values: dict[str, Tensor]
    about: _About
    shared: list[str]
    images: Tensor
    expected: Tensor
    record: TaskRecord
    opinion: float | None


def export(store: str, task: str, output: str | Path, *, sparse: bool = False) -> ExportReport:
    """Writes a task to a ``.safetensors`` or ``.onnx`` file, replacing an earlier one in one step.

    ``.onnx`` holds what ``predict --task`` answers, ``.safetensors`` the task's subnetwork alone.

    ``sparse``: of shared weights only the entries that the task uses, in a ``.safetensors`` file.

    The written file is read back and run on the probe inputs, in batches of two sizes, before it takes its place.
    Raises UsageProblem for an unknown task, a file that cannot be written, or missing packages; ClmoeError where the
    file answers otherwise than the store does; DiskProblem; the store's errors.
    """
    path = Path(output)
    check_output(path, SUFFIXES)
    onnx = path.suffix == ".onnx"
    if onnx and sparse:
        raise UsageProblem("--sparse is for safetensors", where=str(path), hint="leave it out, or name a .safetensors")
    if onnx:
        check_onnx()
    model = read_consistently(local(store), lambda opened: _model(opened, task, onnx))
    told, reads = fields_of(model.about), model.about.input
    through = reads.features
    data = (
        to_onnx(model.net, reads.shape, told)
        if onnx
        else to_safetensors(model.values, told, model.shared if sparse else ())
    )
    with replacing(path) as file:
        file.write(data)
        file.flush()
        deviation, runner = _checked(model, file.name, onnx, path)
    counted = [value for value in model.net.state_dict().values() if value.is_floating_point()]
    return ExportReport(
        output=str(path),
        format=path.suffix[1:],
        sparse=sparse,
        task=model.about.task,
        expert=model.about.expert,
        arch=model.about.arch,
        classes=model.about.classes,
        input_shape=reads.shape,
        input_scale=reads.scale,
        standardised=reads.standardised,
        features=None if through is None else {"arch": through.arch, "sha256": through.sha256},
        parameters=sum(value.numel() for value in counted),
        nonzero=sum(int(value.count_nonzero()) for value in counted),
        bytes=len(data),
        deviation=deviation,
        checked_with=runner,
        answers=model.about.answers,
        opinion=model.opinion,
        accuracy=accuracy_of(model.record),
        warnings=_cautions(model),
    )


def _cautions(model: _Model) -> tuple[Caution, ...]:
    """Where the file answers otherwise than ``predict --task``."""
    if model.about.answers == "mixture" or model.opinion in (None, 1.0) or len(model.record.classes) < 2:
        return ()
    found = model.record.accuracy
    alone, both = (
        "" if share is None else f" ({100 * share:.2f} % of held-out images right)"
        for share in (found.subnetwork, found.within)
    )
    how = "mix it with the gate" if model.opinion else "answer by the gate alone"
    text = f"a .safetensors file holds the subnetwork alone{alone}; predict --task and .onnx {how}{both}"
    return (Caution("subnetwork-alone", text),)


def _model(store: Store, task: str, onnx: bool) -> _Model:
    """A task of a store as a module, its values, and what is said of them."""
    manifest = store.manifest
    task = one_of("task", task, [t.name for t in manifest.tasks])
    record = manifest.task(task)
    expert = manifest.expert(record.expert)
    loader = Loader(store)
    net, scaling = loader.network(expert.id), loader.scaling(expert.id)
    params = parameters(store.read_subnetwork(task, ("masks",)), loader.weights(expert.id), net, "cpu")
    whole = net.effective(params)
    network = plain.described(net, len(record.classes), scaling)
    try:
        values = plain.state(net, whole, scaling)
        module = _answering(network, values)
    except (KeyError, RuntimeError) as error:
        raise StoreDamaged(
            "a task's parameters are not those of its architecture", where=str(store.root), key=task,
            found=one_line(error), expected=expert.arch,
        ) from error  # fmt: skip
    images = probe_inputs(net)
    if scaling.standardised:  # most near the centre, some beyond the bound
        images = 1.5 * BOUND * (2.0 * images - 1.0) ** 3
    images = scaling.undone(images)
    about = _About(
        store=manifest.content_hash(),
        task=task,
        expert=expert.id,
        arch=expert.arch,
        classes=record.classes,
        answers="subnetwork",
        input=_Reads(
            shape=expert.input_shape,
            scale=expert.input_scale,
            standardised=scaling.standardised,
            **steps_of(expert.input),
        ),
        network=network,
    )
    gate = manifest.gate(expert.input_shape, expert.input)
    model = _Model(
        net=module,
        values=values,
        about=about,
        shared=plain.named(net, list(net.shared_shapes())),
        images=images.reshape(-1, *expert.input_shape),
        expected=logits(net, params, scaling.apply(images)),
        record=record,
        opinion=None if gate is None or gate.rule is None else opinion_of(record),
    )
    return _with_gate(loader, model) if onnx and model.opinion not in (None, 1.0) else model


def _with_gate(loader: Loader, model: _Model) -> _Model:
    """The model as ``predict --task`` answers: the gate within the task, mixed with the subnetwork."""
    manifest, record, weight = loader.manifest, model.record, model.opinion
    expert = manifest.expert(record.expert)
    found = manifest.gate(expert.input_shape, expert.input)
    assert found is not None
    assert weight is not None
    if not known(found.features, expert.input_shape):
        raise StoreIncompatible(
            "the store has no gate that this version can read",
            key=record.name,
            found=found.features,
            hint="export to .safetensors, which holds the subnetwork alone",
        )
    own = loader.gaussians(record.name)
    reading = Reading(expert.input_shape, found.input_scale, found.features, loader.eye(found))
    with one_thread():
        gate = alone(own)
        within = Within(gate, 0, own, reading)
    x = model.images.flatten(1) * found.input_scale
    values = features(x, expert.input_shape, found.features, eye=reading.eye)
    by_gate = gate.within(values, 0, lambda task: own).likely.log_softmax(dim=1)
    return replace(
        model,
        net=Mixture(within, model.net if weight else None, weight).train(False),
        about=replace(model.about, answers="mixture", opinion=weight),
        expected=mixed(by_gate, model.expected.double().log_softmax(dim=1), weight).float(),
    )


def _answering(network: plain.Described, values: dict[str, Tensor]) -> plain.Answers:
    return plain.Answers(plain.module(network, values), network.get("colour", False))


def _checked(model: _Model, written: str, onnx: bool, path: Path) -> tuple[float, str]:
    """The largest difference of a logit between the written file and the store's answers, and what ran the file."""
    parts = [model.images[:1], model.images[1:]]
    if onnx:
        found, runner = run_onnx(written, parts)
    else:
        values, about = from_safetensors(written)
        net = _answering(about["network"], values)
        with torch.inference_mode():
            found, runner = [net(part)[0] for part in parts], "torch"
    answers = torch.cat(found)
    deviation = float((answers - model.expected).abs().max())
    # Of the largest logit: what rounding does to the small ones comes from numbers as large.
    within = TOLERANCE * max(1.0, float(model.expected.abs().max()))
    sure = float((answers.softmax(dim=1) - model.expected.softmax(dim=1)).abs().max())
    if not deviation <= within or (model.about.answers == "mixture" and not sure <= TOLERANCE):
        raise ClmoeError(
            f"the exported model answers otherwise than the {_WHAT[model.about.answers]}; it was not kept",
            where=str(path), found=f"largest difference {deviation:.3g}, run by {runner}",
            expected=f"within {within:.3g}",
        )  # fmt: skip
    return deviation, runner
