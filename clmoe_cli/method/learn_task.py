"""Learning one task: train the free weights, score, choose the mask, consolidate, calibrate.

The frozen weights that the task may read come in through ``base``; they leave bit for bit as they came.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clmoe_cli.method import privacy, reproducible
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import Network, Params, logits
from clmoe_cli.method.routing import mahalanobis
from clmoe_cli.method.routing.calibration import Calibration
from clmoe_cli.method.routing.mirrors import may_mirror
from clmoe_cli.method.routing.paper import Subnetwork, deviations
from clmoe_cli.method.subnetwork import augmentation, masks, on_device
from clmoe_cli.method.subnetwork.augmentation import Augmentation
from clmoe_cli.method.subnetwork.finetuning import finetune
from clmoe_cli.method.subnetwork.gradient_scores import Halved, gradient_scores, halved, restored
from clmoe_cli.method.subnetwork.image_scores import ImageReference, batch_calibration, image_scores
from clmoe_cli.method.subnetwork.pruning import Tolerance, select
from clmoe_cli.method.subnetwork.training import (
    Annealing,
    OnCost,
    OnEpoch,
    Quality,
    Run,
    Schedule,
    cost,
    quality,
    train,
)
from clmoe_cli.method.subnetwork.training_state import Journal
from clmoe_cli.method.tasks.shortlist import sketch
from clmoe_cli.runtime.events import OnStep, begun, silent, whole

KINDS = ("gradient", "fisher", "loss")
HELD_OUT = 50
CALIBRATION_LIMIT = 1000
PROBES = 8
FEW, COMMON = 64, 4
"""Images of a task, and of a class, below which none of them is held out."""


@dataclass(frozen=True)
class Options:
    """How a task is learned, and on which device; the defaults need no touch.

    ``augment``: one of :data:`clmoe_cli.method.subnetwork.augmentation.NAMES`, None for what suits the data.
    """

    schedule: Schedule = field(default_factory=Schedule)
    tolerance: Tolerance = field(default_factory=Tolerance)
    score: str = "gradient-weight"
    device: str = "cpu"
    augment: str | None = None


@dataclass(frozen=True)
class Setting:
    """How one ``learn`` trains: what people have chosen, chance, progress, and where free weights start.

    ``journal``: what an interrupted run of the same arguments has left, and where this one notes how far it is.
    ``start``: pretrained parameters, shared or the task's own, that are taken in place of fresh ones of their names.
    ``input_shape``: of one image, [C, H, W] of pictures, which alone can be augmented.
    """

    options: Options
    generator: torch.Generator
    on_epoch: OnEpoch = lambda epoch: None
    journal: Journal = field(default_factory=Journal)
    start: Mapping[str, Tensor] | None = None
    on_step: OnStep = silent
    on_cost: OnCost = lambda cost: None
    input_shape: tuple[int, ...] = ()

    def run(self, net: Network, parts: Split) -> Run:
        """The training of a network on these images."""
        schedule = self.options.schedule
        schedule = replace(schedule, epochs=min(net.traits.epochs or schedule.epochs, schedule.epochs))
        schedule = schedule.for_inputs(net.input_size)
        self.journal.limit.open()
        return Run(
            net,
            parts.training,
            parts.tuning,
            schedule,
            on_device.drawing(self.generator, self.options.device),
            self.journal,
            self.on_epoch,
            self.on_step,
            on_cost=self.on_cost,
            augment=self._augmentation(net, parts.training),
        )

    def split(self, data: Labelled) -> Split:
        """:func:`split`, on the device that trains if there is room."""
        parts, device = split(data, self.generator), self.options.device
        training, tuning = on_device.placed(parts.training, device), on_device.placed(parts.tuning, device)
        return Split(training, tuning, on_device.placed(parts.calibration, device), parts.held)

    def _augmentation(self, net: Network, training: Labelled) -> Augmentation | None:
        name, shape = self.options.augment or augmentation.default(net, self.input_shape), self.input_shape
        if name == augmentation.NONE or len(shape) != 3:
            return None
        channels, height, width = shape
        with whole(self.on_step, "mirrors"):
            mirrors = may_mirror(training, (channels, height, width))
        return Augmentation((channels, height, width), name == augmentation.STRONG, mirrors)

    def begun(self, fresh: Params) -> Params:
        """Fresh parameters, with those of ``start`` in place of the ones that it names."""
        return fresh if self.start is None else {name: self.start.get(name, value) for name, value in fresh.items()}

    def moved(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The same on the device that trains."""
        return _on(self.options.device, values)


@dataclass(frozen=True)
class Shared:
    """An expert's shared weights as a new task meets them.

    ``weights``: their values; ``frozen``: entries that any task owns; ``readable`` ⊆ ``frozen``: those of constructive
    tasks, which the new task may read.
    """

    weights: Mapping[str, Tensor]
    frozen: masks.Masks
    readable: masks.Masks


@dataclass(frozen=True)
class Identity:
    """A task's name, its expert's, and its number of classes."""

    name: str
    expert: str
    classes: int


@dataclass(frozen=True)
class Trained:
    """A trained subnetwork: parameters, zero outside the mask; ``dense``: the network before pruning, if any.

    ``scores``: the parameters' gradient scores on the training images, where these are known.
    """

    params: Params
    mask: masks.Masks
    dense: Params | None = None
    scores: Params | None = None


@dataclass(frozen=True)
class Split:
    """Images to train on, to tune on (stopping, threshold) and to calibrate on; they share none.

    ``held``: positions of the calibration images among all.
    """

    training: Labelled
    tuning: Labelled
    calibration: Labelled
    held: Tensor


@dataclass(frozen=True)
class Learned:
    """A learned task: its subnetwork, scores in half precision with their scales as stored, and what is reported.

    ``held``: positions of the calibration images among all; ``said`` [held, C] float64: log-probabilities that the
    subnetwork gives to the classes of these. ``augmented``: how its training pictures were changed, if they were.
    """

    subnetwork: Subnetwork
    half_scores: Halved
    half_image_scores: Halved
    dense: Quality | None
    accuracy: Quality | None
    held_out: int
    probe_outputs: Tensor
    sketch: Tensor
    held: Tensor
    said: Tensor
    augmented: str | None = None


def held_size(counts: Sequence[int]) -> int:
    """Images of each of the two parts that :func:`split` holds out of classes with so many; 0 where it holds out none.

    Each is 5 % of the images, at least 50 and at most 1,000; below 400 images an eighth (p-values need 30). Below
    ``FEW`` images, and where few classes have ``COMMON``, none is held out, since they teach more than they could tell.
    """
    n = sum(counts)
    size = min(max(round(0.05 * n), min(HELD_OUT, n // 8)), CALIBRATION_LIMIT)
    return size if n >= FEW and sum(count for count in counts if count >= COMMON) >= 4 * size else 0


def split(data: Labelled, generator: torch.Generator) -> Split:
    """Holds out two stratified parts of :func:`held_size` images each.

    Classes with fewer than ``COMMON`` images stay in training. Where nothing is held out tuning happens on the training
    images, and nothing is calibrated.
    """
    counts = torch.bincount(data.y)
    size = held_size(counts.tolist())
    order = torch.randperm(len(data), generator=generator)
    if size == 0:
        return Split(data.take(order), data.take(order), data.take(order[:0]), order[:0])
    common = counts[data.y[order]] >= COMMON
    by_class = order[common][data.y[order[common]].argsort(stable=True)]
    # Evenly spaced along the classes: stratified, alternating between the two purposes.
    held = by_class[torch.linspace(0, len(by_class) - 1, 2 * size).round().long()]
    rest = order[~torch.isin(order, held)]
    return Split(data.take(rest), data.take(held[0::2]), data.take(held[1::2]), held[1::2])


def learn_task(task: Identity, net: Network, shared: Shared, data: Labelled, setting: Setting) -> Learned:
    """Learns one task. One of a single class has no subnetwork: the gate alone knows it.

    Free entries of the shared weights are drawn afresh, so nothing of what earlier tasks left there is used. Entries
    that are frozen and not readable count as zero for this task.
    """
    parts = setting.split(data)
    start = _start(task, net, shared, setting)
    if task.classes == 1:  # nothing to tell apart, so nothing is trained and no weight is taken
        none = masks.zeros_like(shared.weights)
        kept = {name: torch.zeros_like(value) if name in none else value for name, value in start.items()}
        return finish(task, net, Trained(kept, none), parts, setting.on_step)
    run = setting.run(net, parts)
    trained = _search(start, masks.inverse(shared.frozen), shared.readable, run, setting, parts)
    return replace(finish(task, net, trained, parts, setting.on_step), augmented=_augmented(run))


def _start(task: Identity, net: Network, shared: Shared, setting: Setting) -> Params:
    """The parameters from which a new task trains: fresh where free, the expert's where readable, zero elsewhere."""
    fresh, zero = setting.begun(net.initial_shared(setting.generator)), torch.zeros(())
    weights = {
        name: torch.where(~shared.frozen[name], value, torch.where(shared.readable[name], shared.weights[name], zero))
        for name, value in fresh.items()
    }
    return weights | setting.begun(net.initial_owned(task.classes, setting.generator))


def refine_task(
    task: Subnetwork, net: Network, taken: masks.Masks, data: Labelled, grow: bool, setting: Setting
) -> Learned:
    """Improves a known task with more data; weights that other tasks use (``taken``) do not move.

    ``grow``: free weights are tried as well and the mask is chosen anew, from where the task stands; otherwise
    the task trains inside its mask. The statistics are taken anew from the new data. What makes the
    held-out loss worse is undone. ``setting.start`` is for the free weights.
    """
    parts = setting.split(data)
    options = setting.options
    before = trained = Trained(setting.moved(task.params), setting.moved(task.mask))
    if task.classes == 1:  # nothing to tell apart: only the statistics are taken anew
        return finish(Identity(task.name, task.expert, 1), net, before, parts, setting.on_step)
    run = setting.run(net, parts)
    if grow:
        free, fresh = masks.inverse(taken), setting.begun(net.initial_shared(setting.generator))
        known = _on("cpu", task.params)
        first = known | {key: torch.where(free[key] & ~own, fresh[key], known[key]) for key, own in task.mask.items()}
        trained = _search(first, free, masks.intersection(task.mask, taken), run, setting, parts)
    else:
        movable = masks.intersection(before.mask, setting.moved(masks.inverse(taken)))
        how = Annealing("refine", min(options.tolerance.final_epochs, run.schedule.epochs), options.schedule.lr)
        run.on_cost(cost(run, before.params, movable, how.epochs))
        trained = Trained(finetune(run, before.params, movable, how)[0], before.mask)
    if quality(net, trained.params, parts.tuning).loss >= quality(net, before.params, parts.tuning).loss:
        trained = replace(before, dense=trained.dense)
    found = finish(Identity(task.name, task.expert, task.classes), net, trained, parts, setting.on_step)
    return replace(found, augmented=_augmented(run))


def _augmented(run: Run) -> str | None:
    return run.augment.text if isinstance(run.augment, Augmentation) else None


def _search(
    start: Mapping[str, Tensor], free: masks.Masks, readable: masks.Masks, run: Run, setting: Setting, parts: Split
) -> Trained:
    """Trains the free weights from ``start``, then finds the mask."""
    options, free, readable = setting.options, setting.moved(free), setting.moved(readable)
    begun, tolerance = run.net.ordered(setting.moved(start)), options.tolerance
    tolerance = replace(tolerance, epochs=min(run.net.traits.round or tolerance.epochs, tolerance.epochs))
    run.on_cost(cost(run, begun, free, _epochs(run.schedule.epochs, tolerance)))
    dense, _ = train(run, begun, free)
    # Training images cannot tell what a sparser mask would cost: the first round stands.
    tolerance = tolerance if len(parts.calibration) else replace(tolerance, floor=1.0)
    chosen = select(run, dense, free, tolerance, options.score)
    # What is neither free nor readable was zero all along: some scores rank it all the same.
    usable = {key: free[key] | readable[key] for key in free}
    return Trained(chosen.params, masks.intersection(chosen.mask, usable), dense, chosen.scores)


def _epochs(most: int, tolerance: Tolerance) -> int:
    """Epochs of all phases, at most, where the densest mask is good enough and the sparsest keeps what it promised."""
    return most + tolerance.rounds * min(tolerance.epochs, most) + min(tolerance.final_epochs, most)


def finish(identity: Identity, net: Network, trained: Trained, parts: Split, on_step: OnStep = silent) -> Learned:
    """Scores and calibrates a trained subnetwork; nothing here depends on any other task. The result is on the CPU."""
    params, mask, classes = trained.params, _on("cpu", trained.mask), identity.classes
    scored = net.scored(parts.training)
    to = begun(on_step, "scores", len(scored), "images")
    scores = trained.scores
    if scores is None:
        scores = gradient_scores(net, params, scored.x, scored.y, on_done=to)
    to(len(scored))
    raw = _on("cpu", scores)
    by_image = _on("cpu", image_scores(net, params, scored.x, scored.y))
    if len(parts.training) < privacy.LEAST:
        # Gradients of the first layer are the inputs, times a number each: of so few, only their mean is kept.
        raw = {name: torch.full_like(value, float(value.mean())) for name, value in raw.items()}
        by_image = {name: torch.full_like(value, float(value.mean())) for name, value in by_image.items()}
    half = halved(masks.apply(raw, mask))
    half_by_image = halved(masks.apply(by_image, mask))
    held = parts.calibration
    own = held if len(held) else parts.training.subsample(CALIBRATION_LIMIT)
    with whole(on_step, "statistics"):
        whitening = mahalanobis.fit(net, params, parts.training, own, classes)
    # Calibrated on what will be read back from disk, half precision included.
    task = Subnetwork(
        identity.name, identity.expert, net, params, mask, restored(*half), whitening, {}, restored(*half_by_image)
    )
    with whole(on_step, "calibration"):
        reference = ImageReference.of(mask, task.image_scores)
        drawn = batch_calibration(net, params, held.x, reference, torch.Generator().manual_seed(0))
        calibration = {kind: Calibration.of(found) for kind, found in deviations(task, own.x, KINDS).items()}
        # Of a single class every network is right, which says nothing of it.
        accuracy = quality(net, params, held) if len(held) and classes > 1 else None
        dense = quality(net, trained.dense, held) if len(held) and trained.dense is not None else None
    params = _on("cpu", params)
    task = replace(task, params=params, calibration=calibration, drawn=drawn)
    sketched, outputs = sketch(on_device.placed(parts.training, "cpu"), classes), probe(net, params)
    said = torch.empty(0, classes, dtype=torch.float64)
    if len(held):
        said = reproducible.logits(net, params, held.x).log_softmax(dim=1)
    return Learned(task, half, half_by_image, dense, accuracy, len(held), outputs, sketched, parts.held, said)


def probe_inputs(net: Network) -> Tensor:
    """Fixed inputs [P, D] that hold no data, in 0 to 1."""
    return torch.rand((PROBES, net.input_size), generator=torch.Generator().manual_seed(0))


def probe(net: Network, params: Mapping[str, Tensor]) -> Tensor:
    """Outputs [P, C] of a subnetwork on the probe inputs: the certificate of ``inspect --verify``."""
    return logits(net, params, probe_inputs(net))


def _on(device: str, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.to(device) for name, value in values.items()}
