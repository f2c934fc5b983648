"""The one seam between arrays on disk and tensors: tasks and experts in, records out."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clmoe_cli.method.learn_task import KINDS, Learned
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import Network, Params
from clmoe_cli.method.routing.calibration import Calibration
from clmoe_cli.method.routing.eye import Eye
from clmoe_cli.method.routing.features import AnyEye
from clmoe_cli.method.routing.gaussians import GRID, GaussianGate, Gaussians, Solved
from clmoe_cli.method.routing.mahalanobis import RANKS, Gaussian, Whitening
from clmoe_cli.method.routing.network_eye import HEAD, NetworkEye
from clmoe_cli.method.routing.paper import Subnetwork
from clmoe_cli.method.routing.subspaces import Gate, Subspaces
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.compact import Compact, compacted
from clmoe_cli.method.subnetwork.gradient_scores import restored
from clmoe_cli.method.subnetwork.image_scores import DRAWS, SIZES
from clmoe_cli.runtime.events import OnStep, counted, silent
from store_schema import (
    ExpertRecord,
    ExpertWeights,
    GateRecord,
    InputRecord,
    Manifest,
    NetworkEyeArrays,
    SolvedGaussians,
    Store,
    StoreDamaged,
    SubnetworkRecord,
)

GATE = tuple(field.name for field in fields(Subspaces))
GAUSSIANS = tuple(field.name for field in fields(Gaussians))
"""What is stored of :class:`Subspaces`, and of :class:`Gaussians`."""
NEAR, BEST, PRIORS = "near", "best", "priors"
"""Not in stores of before; the first is stored for plain vectors only, the last where one is not 0."""
DRAWN = "batch"
"""Under this name the calibration holds what batches of the task's own images diverge."""


def tensor(array: NDArray[np.generic]) -> Tensor:
    """A tensor with its own memory: arrays read from a store are not writable."""
    return torch.from_numpy(np.array(array, copy=True))


def network(record: ExpertRecord, base: Mapping[str, Tensor] | None = None) -> Network:
    """The architecture that a record names, on its ``base`` if it has one.

    Raises StoreDamaged for an unknown architecture, or one with other layers.
    """
    try:
        net = parse_arch(record.arch, record.input_shape, base)
    except ValueError as error:
        raise StoreDamaged(
            "unknown architecture of an expert", key=record.id, found=record.arch, expected=str(error)
        ) from error
    layers = {layer.name: tuple(layer.shape) for layer in record.layers}
    if {name: tuple(shape) for name, shape in net.shared_shapes().items()} != layers:
        raise StoreDamaged(
            "an expert has other layers than its architecture", key=record.id, found=str(layers), expected=record.arch
        )
    return net


@dataclass
class Loader:
    """Reads experts and tasks of one snapshot of a store, each object at most once."""

    store: Store
    device: str = "cpu"

    def __post_init__(self) -> None:
        self._weights: dict[str, ExpertWeights] = {}
        self._records: dict[str, SubnetworkRecord] = {}
        self._networks: dict[str, Network] = {}
        self._scalings: dict[str, Scaling] = {}
        self._statistics: dict[str, Subspaces] = {}
        self._tasks: dict[str, Subnetwork] = {}
        self._answering: dict[str, tuple[Subspaces, Compact]] = {}
        self._eyes: dict[str, AnyEye] = {}

    @property
    def manifest(self) -> Manifest:
        """The snapshot's manifest."""
        return self.store.manifest

    def weights(self, expert: str) -> ExpertWeights:
        """An expert's shared and owned arrays."""
        if expert not in self._weights:
            self._weights[expert] = self.store.read_expert(expert)
        return self._weights[expert]

    def record(self, task: str) -> SubnetworkRecord:
        """A task's object as it lies on disk."""
        if task not in self._records:
            self._records[task] = self.store.read_subnetwork(task)
        return self._records[task]

    def network(self, expert: str) -> Network:
        """The architecture of an expert, on its base."""
        if expert not in self._networks:
            found = self.store.read_base(expert) or {}
            base = {name: tensor(value).to(self.device) for name, value in found.items()}
            self._networks[expert] = network(self.manifest.expert(expert), base)
        return self._networks[expert]

    def scaling(self, expert: str) -> Scaling:
        """How an expert reads its inputs."""
        if expert not in self._scalings:
            record = self.manifest.expert(expert)
            inputs = self.weights(expert).inputs if record.standardised else {}
            self._scalings[expert] = Scaling(record.input_scale, **{k: tensor(v) for k, v in inputs.items()})
        return self._scalings[expert]

    def shared(self, expert: str) -> Params:
        """An expert's shared weights; what no task owns is zero."""
        return {name: tensor(value) for name, value in self.weights(expert).shared.items()}

    def task(self, name: str) -> Subnetwork:
        """A learned task, ready to run."""
        if name not in self._tasks:
            record = self.record(name)
            expert = self.manifest.expert(record.expert)
            self._tasks[name] = subnetwork(record, self.weights(record.expert), self.network(expert.id), self.device)
        return self._tasks[name]

    def tasks(self, names: Sequence[str]) -> list[Subnetwork]:
        """Several tasks, in that order."""
        return [self.task(name) for name in names]

    def gate(self, input_shape: tuple[int, ...], input: InputRecord | None = None) -> Gate | GaussianGate:
        """The solved gate of a kind of input (KeyError when there is none)."""
        solved = self.store.read_gate(input_shape, input)
        if solved is None:
            raise KeyError(input_shape)
        classes = [len(t.classes) for t in self.manifest.tasks_of_shape(input_shape, input)]
        if isinstance(solved, SolvedGaussians):
            return GaussianGate.of(Solved(**{key: tensor(value) for key, value in solved.arrays.items()}), classes)
        return Gate.of(tensor(solved.means), tensor(solved.coarse), tensor(solved.scales), classes)

    def eye(self, record: GateRecord) -> AnyEye | None:
        """What looks at this kind of input beside the fixed features; None for nothing."""
        if record.eye is None:
            return None
        if record.eye.sha256 not in self._eyes:
            network_eye = self.store.read_network_eye(record)
            found = self.store.read_eye(record)
            if network_eye is not None:
                eye: AnyEye = _network_eye(record, *network_eye)
            else:
                assert found is not None
                eye = Eye(tensor(found["filters"]), tensor(found["offsets"]), float(found["level"][0]))
            self._eyes[record.eye.sha256] = eye
        return self._eyes[record.eye.sha256]

    def answering(self, name: str) -> tuple[Subspaces, Compact]:
        """What the gate and a task's subnetwork answer with, and nothing else of its file."""
        if name not in self._answering:
            task = self.manifest.task(name)
            known = self._statistics.get(name)
            record = self.store.read_subnetwork(name, ("masks", "gate") if known is None else ("masks",))
            net = self.network(task.expert)
            values = parameters(record, self.weights(task.expert), net, self.device)
            self._answering[name] = self._statistics_of(name, record), compacted(net, values)
        return self._answering[name]

    def statistics(self, name: str) -> Subspaces:
        """The gate's statistics of a task, and nothing else of its file."""
        if name not in self._statistics:
            self._statistics_of(name, self.store.read_subnetwork(name, ("gate",)))
        return self._statistics[name]

    def gaussians(self, name: str) -> Gaussians:
        """The same. Raises StoreDamaged where these are no Gaussians."""
        found = self.statistics(name)
        if not isinstance(found, Gaussians):
            raise StoreDamaged("a task lacks the statistics of its gate", key=name, found=type(found).__name__)
        return found

    def _statistics_of(self, name: str, record: SubnetworkRecord) -> Subspaces:
        """Those in a record of the task that was read with them, unless they were read before."""
        if name not in self._statistics:
            arrays = {key: tensor(value) for key, value in record.gate.items()}
            self._statistics[name] = _subspaces(name, arrays, len(self.manifest.task(name).classes))
        return self._statistics[name]

    def frozen(self, expert: str, tasks: Sequence[str] | None = None, on_step: OnStep = silent) -> masks.Masks:
        """Entries that the expert's tasks (or those named) use."""
        names = [t.name for t in self.manifest.tasks_of(expert)] if tasks is None else tasks
        read = counted(names, on_step, "reading the store", "tasks")
        return masks.union(self.shared(expert), [self.task(name).mask for name in read])


def parameters(record: SubnetworkRecord, weights: ExpertWeights, net: Network, device: str) -> Params:
    """A task's parameters, layer by layer: its expert's weights where its masks say so, and its own."""
    values = {name: tensor(value) for name, value in weights.shared.items()}
    values |= {name: tensor(value) for name, value in weights.owned[record.task].items()}
    found = masks.apply(net.ordered(values), {name: tensor(value) for name, value in record.masks.items()})
    return {name: value.to(device) for name, value in found.items()}


def subnetwork(record: SubnetworkRecord, weights: ExpertWeights, net: Network, device: str = "cpu") -> Subnetwork:
    """Puts a task together from its own object and its expert's weights."""
    half = {name: tensor(value) for name, value in record.scores.items()}
    statistics = {name: tensor(value) for name, value in record.statistics.items()}
    return Subnetwork(
        record.task,
        record.expert,
        net,
        parameters(record, weights, net, device),
        {name: tensor(value) for name, value in record.masks.items()},
        restored(half, dict(record.score_scale)),
        Whitening(
            {name: _gaussian(statistics, name) for name in RANKS},
            {name: statistics[f"{name}.standard"] for name in RANKS},
        ),
        {kind: Calibration(tensor(record.calibration[kind]).double()) for kind in KINDS},
        restored(_tensors(record.image_scores), dict(record.image_score_scale)),
        _drawn(record),
    )


def _tensors(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Tensor]:
    return {name: tensor(value) for name, value in arrays.items()}


def _drawn(record: SubnetworkRecord) -> Tensor:
    """Divergences of batches of the task's own images, [sizes, draws]; none where there were too few images."""
    found = record.calibration.get(DRAWN)
    if found is None:
        return torch.zeros(0, DRAWS)
    if found.ndim != 2 or found.shape[1] != DRAWS or not 1 <= len(found) <= len(SIZES):
        expected = f"[1 to {len(SIZES)}, {DRAWS}]"
        raise StoreDamaged("wrong calibration", key=record.task, found=str(found.shape), expected=expected)
    return tensor(found)


def _subspaces(name: str, arrays: Mapping[str, Tensor], classes: int) -> Subspaces:
    """The gate's statistics of a task as they were read, checked against each other."""
    found = {key: tuple(value.shape) for key, value in arrays.items()}
    if set(GAUSSIANS) - {NEAR, BEST, PRIORS} <= set(found) <= set(GAUSSIANS):
        return _gaussians(name, arrays, classes)
    if set(found) == set(GATE) and found["means"][0:1] == (classes,) and len(found["means"]) == 2:
        d, k, q = found["means"][1], found["directions"][-1], found["quantiles"][-1]
        if found == {
            "means": (classes, d),
            "directions": (classes, d, k),
            "quantiles": (classes, q),
            "counts": (classes,),
        }:
            return Subspaces(*(arrays[key] for key in GATE))
    raise StoreDamaged(
        "wrong gate statistics", key=name, found=str(found), expected=f"{', '.join(GATE)} of {classes} classes"
    )


def _gaussians(name: str, arrays: Mapping[str, Tensor], classes: int) -> Gaussians:
    none = torch.zeros(classes, dtype=torch.float64)
    arrays = {NEAR: torch.zeros(classes, 0), BEST: none[:0], PRIORS: none, **arrays}
    found = {key: tuple(value.shape) for key, value in arrays.items()}
    d, k, q, r = (([0] * 3 + [*found[key]])[-1] for key in ("means", "directions", "quantiles", "shared"))
    wanted = {
        "means": (classes, d),
        "directions": (classes, d, k),
        "quantiles": (classes, q),
        "counts": (classes,),
        "variances": (classes, k),
        "units": (d,),
        "shared": (d, r),
        "shared_variances": (r,),
        "shared_rest": (d,),
        "tallies": GRID,
        "apart": GRID[:1],
        NEAR: (classes, q if found[NEAR][-1:] != (0,) else 0),
        BEST: (q if found[BEST][-1:] != (0,) else 0,),
        PRIORS: (classes,),
    }
    if found != wanted:
        raise StoreDamaged("wrong gate statistics", key=name, found=str(found), expected=str(wanted))
    return Gaussians(**arrays)


def _gaussian(statistics: Mapping[str, Tensor], block: str) -> Gaussian:
    means, directions, variances, rest = (
        statistics[f"{block}.{part}"] for part in ("means", "directions", "variances", "rest")
    )
    return Gaussian(means, directions.float(), variances, rest[0])


def gate_arrays(found: Subspaces) -> dict[str, NDArray[Any]]:
    """The gate's statistics of a task as they go to disk."""
    arrays = {field.name: getattr(found, field.name).numpy() for field in fields(found)}

    def kept(name: str, value: NDArray[Any]) -> bool:
        return bool(value.any() if name == PRIORS else value.size or name not in (NEAR, BEST))

    return {name: value for name, value in arrays.items() if kept(name, value)}


def eye_arrays(eye: Eye) -> dict[str, NDArray[Any]]:
    """An eye as it goes to disk."""
    level = np.array([eye.level], dtype=np.float64)
    return {"filters": eye.filters.numpy(), "offsets": eye.offsets.numpy(), "level": level}


def network_eye_arrays(eye: NetworkEye, base: str | None) -> NetworkEyeArrays:
    """An eye that is a subnetwork as it goes to disk, with the hash of the base that it stands on."""
    shapes, added = eye.net.shared_shapes(), {}
    for name in shapes:
        flat = eye.params[name].flatten()
        at = flat.nonzero()[:, 0]
        if len(at):
            added[name] = at.numpy(), flat[at].numpy()
    owned = {name: value.numpy() for name, value in eye.params.items() if name not in shapes}
    return NetworkEyeArrays(eye.arch, owned, shapes, added, base)


def _network_eye(record: GateRecord, eye: NetworkEyeArrays, base: Mapping[str, NDArray[Any]]) -> NetworkEye:
    """An eye that is a subnetwork. Raises StoreDamaged where it has other parameters than its architecture."""
    assert record.eye is not None
    key = f"eye {record.eye.sha256[:12]}"
    try:
        net = parse_arch(eye.arch, record.input_shape, {name: tensor(value) for name, value in base.items()})
    except ValueError as error:
        raise StoreDamaged("unknown architecture of an eye", key=key, found=eye.arch, expected=str(error)) from error
    fresh = net.initial_owned(1, generator(0))
    wanted = {name: tuple(value.shape) for name, value in fresh.items() if name not in HEAD}
    found = {name: value.shape for name, value in eye.owned.items()}
    if net.shared_shapes() != eye.shapes or found != wanted:
        raise StoreDamaged("an eye has other parameters than its architecture", key=key, expected=eye.arch)
    params = {name: tensor(value) for name, value in eye.owned.items()}
    for name, shape in eye.shapes.items():
        flat = torch.zeros(shape).flatten()
        if name in eye.added:
            at, values = eye.added[name]
            flat[tensor(at)] = tensor(values)
        params[name] = flat.reshape(shape)
    return NetworkEye(eye.arch, net, params, adapted=record.eyes == "subnetwork")


def solved_arrays(found: Solved) -> SolvedGaussians:
    """A solved gate as it goes to disk."""
    return SolvedGaussians({field.name: getattr(found, field.name).numpy() for field in fields(found)})


def to_record(learned: Learned, found: Subspaces) -> SubnetworkRecord:
    """A learned task and the gate's statistics of it as they go to disk."""
    task = learned.subnetwork
    statistics: dict[str, NDArray[Any]] = {}
    for name, gaussian in task.whitening.blocks.items():
        statistics |= {
            f"{name}.means": gaussian.means.numpy(),
            # Exact: the directions were rounded when they were fitted.
            f"{name}.directions": gaussian.directions.half().numpy(),
            f"{name}.variances": gaussian.variances.numpy(),
            f"{name}.rest": gaussian.rest.reshape(1).numpy(),
            f"{name}.standard": task.whitening.standard[name].numpy(),
        }
    return SubnetworkRecord(
        task=task.name,
        expert=task.expert,
        masks={name: value.numpy() for name, value in task.mask.items()},
        scores={name: value.numpy() for name, value in learned.half_scores[0].items()},
        score_scale=learned.half_scores[1],
        calibration={kind: value.values.numpy() for kind, value in task.calibration.items()}
        | ({DRAWN: task.drawn.numpy()} if len(task.drawn) else {}),
        statistics=statistics,
        gate=gate_arrays(found),
        probe_outputs=learned.probe_outputs.numpy(),
        image_scores={name: value.numpy() for name, value in learned.half_image_scores[0].items()},
        image_score_scale=learned.half_image_scores[1],
    )


def input_arrays(scaling: Scaling) -> dict[str, NDArray[np.float32]]:
    """What is kept of an expert's inputs beside their factor, as it goes to disk."""
    parts = {"centre": scaling.centre, "spread": scaling.spread}
    return {name: value.numpy() for name, value in parts.items() if value is not None}


def merged(
    weights: ExpertWeights | None, net: Network, learned: Learned, used: masks.Masks, scaling: Scaling
) -> ExpertWeights:
    """The expert's weights with a task's own put in; entries of other tasks stay bit for bit.

    ``used``: what any task uses; the rest is zero, also where a refined task has given a weight up. ``scaling``: how
    the expert reads its inputs.
    """
    task = learned.subnetwork
    shared = {name: np.zeros(shape, dtype=np.float32) for name, shape in net.shared_shapes().items()}
    owned = {}
    if weights is not None:
        shared = {name: value.copy() for name, value in weights.shared.items()}
        owned = dict(weights.owned)
    for name, mask in task.mask.items():
        np.copyto(shared[name], task.params[name].numpy(), where=mask.numpy())
        shared[name][~used[name].numpy()] = 0.0
    owned[task.name] = {name: value.numpy() for name, value in task.params.items() if name not in task.mask}
    return ExpertWeights(shared=shared, owned=owned, inputs=input_arrays(scaling))


def environment() -> dict[str, str]:
    """What decides the last bits of a result: library, threads, machine."""
    return {
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
        "machine": platform.machine(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


def derived_seed(seed: int, number: int, purpose: str) -> int:
    """A seed of 63 bits that depends on the store's seed and a number, not on the process."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{number}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def generator(seed: int) -> torch.Generator:
    """A generator with that seed."""
    return torch.Generator().manual_seed(seed)
