"""Training in which frozen entries do not move, whatever the optimizer.

Every write to a parameter is followed by a restore of its frozen entries (:mod:`clmoe_cli.method.subnetwork.freezing`).
The optimizer is made anew for every phase, so that no state leaks from one task into another.
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import STATISTICS, Convolution, Drop, Network, Params, device_of, logits
from clmoe_cli.method.subnetwork.augmentation import Augment
from clmoe_cli.method.subnetwork.freezing import freeze_guard
from clmoe_cli.method.subnetwork.time_limit import LEAST, TimeLimit
from clmoe_cli.method.subnetwork.training_state import (
    Journal,
    Phase,
    State,
    below,
    optimizer_state,
    restore_optimizer,
    under,
)
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.distributed.processes import neighbours
from clmoe_cli.runtime.events import OnStep, silent, within

Optimizer = torch.optim.Optimizer
FEW_INPUTS = 32
"""Dropout leaves out less of fewer inputs than these: a row without one of two columns looks like a row of another
class. Pixels and features say the same many times over."""
BATCHES = 30
"""Steps of an epoch, at least: so many mean the same to patience and learning rates at every size of the data."""
PARTS = 8
"""A batch is at most such a part of few images: thirty passes over all of them at each step teach no more."""
CONVOLVED_PARTS, CONVOLVED_BATCHES = BATCHES, 20
"""The same two where layers are convolutions. Unlike a dense layer's, their time is that of the images of a batch.
Where the learning rate has a peak, all epochs are trained, and have ``BATCHES`` steps."""
SMALLEST = 16
"""Images of a batch all the same, where there are as many and ``--batch-size`` allows."""
WARM, COMPARED = 2, 5
"""Steps that are taken to tell how long one takes, the first of which warms up; where two ways are compared, more."""
MakeOptimizer = Callable[[list[Tensor]], Optimizer]
MakeDrop = Callable[[collectives.Share], Drop]
WARMING = 0.25
"""Share of a training in which its learning rate rises, where the architecture asks for that."""


@dataclass(frozen=True)
class Part:
    """Of an epoch the first ``most`` steps, and, once there are ``LEAST``, none after ``late`` says so."""

    most: float = math.inf
    late: Callable[[], bool] | None = None

    def ends(self, done: int) -> bool:
        """Whether no step follows after so many."""
        return done >= self.most or (self.late is not None and done >= LEAST and self.late())


@dataclass(frozen=True)
class Quality:
    """Mean cross-entropy in nats and share of right answers on some images."""

    loss: float
    accuracy: float


@dataclass(frozen=True)
class Epoch:
    """One line of progress: ``phase``, 1-based ``epoch`` of at most ``epochs``, training loss, held-out quality.

    ``seen``: so few images were given that all are trained on, and the quality is that of the training images.
    """

    phase: str
    epoch: int
    epochs: int
    loss: float
    held_out: Quality
    seen: bool = False

    @property
    def judged_by(self) -> str:
        """What ``held_out`` is the quality of."""
        return "training images" if self.seen else "validation"


OnEpoch = Callable[[Epoch], None]


@dataclass(frozen=True)
class Cost:
    """What training will take, before it begins: at most ``epochs`` of ``steps``, each of so many ``seconds``.

    ``limit``: seconds that it may take; infinite without a limit. ``alone``: of several processes on processors, the
    seconds of a step of one process, with its own ``threads`` or those of all that are on its machine, whichever is
    quicker; infinite where nobody asked.
    """

    epochs: int
    steps: int
    seconds: float
    limit: float
    alone: float = math.inf
    threads: int = 1

    @property
    def total(self) -> float:
        """Seconds, at most."""
        return min(self.epochs * self.steps * self.seconds, self.limit)


OnCost = Callable[[Cost], None]


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    The learning rate stays at ``lr`` until the held-out loss has not improved by ``min_delta`` nats for
    more than ``patience`` epochs, then falls by ``decay``, from the best parameters so far; after ``decays`` such
    falls, or ``epochs`` in all, training ends. ``dropout``: share of the inputs and of the hidden units that a
    step leaves out (Srivastava et al. 2014): what is spread over many weights loses less when most are pruned.
    ``annealing_dropout``: the same while consolidating, where little is left to be left out.
    """

    epochs: int = 40
    batch_size: int = 128
    lr: float = 1e-3
    patience: int = 2
    decay: float = 0.2
    decays: int = 2
    min_delta: float = 5e-4
    dropout: tuple[float, float] = (0.2, 0.3)
    annealing_dropout: tuple[float, float] = (0.05, 0.05)

    def for_inputs(self, count: int) -> Schedule:
        """The same for a network of so many inputs: of fewer than ``FEW_INPUTS`` a smaller share is left out."""
        share = min(1.0, count / FEW_INPUTS)
        first, hidden = self.dropout
        annealing, annealing_hidden = self.annealing_dropout
        return replace(self, dropout=(share * first, hidden), annealing_dropout=(share * annealing, annealing_hidden))

    def batch(self, images: int, net: Network) -> int:
        """Images of one step, of so many in all."""
        parts = CONVOLVED_PARTS if _convolved(net) else PARTS
        return min(self.batch_size, images, max(SMALLEST, images // parts))

    def epoch(self, images: int, net: Network) -> int:
        """Images of one epoch, of so many in all: each once, or of few so many that there are ``BATCHES`` steps.

        Of perceptrons these are whole passes; of convolutions ``CONVOLVED_BATCHES`` are enough.
        """
        if _convolved(net):
            least = CONVOLVED_BATCHES if net.traits.peak is None else BATCHES
            return max(images, least * self.batch(images, net))
        return images * math.ceil(max(images, BATCHES * self.batch(images, net)) / images)

    def steps(self, images: int, net: Network) -> int:
        """Steps of one epoch."""
        return math.ceil(self.epoch(images, net) / self.batch(images, net))


@dataclass(frozen=True)
class Run:
    """What every phase of training one task shares: the network, its data, how long and how fast, chance, who is told.

    ``training`` and ``tuning``: images to train on, and held-out ones that decide when to stop and what to prune.
    ``journal``: what an interrupted run of the same arguments has left, and where this one notes how far it is.
    ``on_epoch`` and ``on_step`` hear of progress, ``on_cost`` of what it will take. ``generator``: draws where the
    network trains (:func:`clmoe_cli.method.subnetwork.on_device.drawing`). ``augment``: what a step trains on in place
    of the images themselves; None for these.
    """

    net: Network
    training: Labelled
    tuning: Labelled
    schedule: Schedule
    generator: torch.Generator
    journal: Journal = field(default_factory=Journal)
    on_epoch: OnEpoch = lambda epoch: None
    on_step: OnStep = silent
    on_cost: OnCost = lambda cost: None
    augment: Augment | None = None

    @property
    def seen(self) -> bool:
        """Whether all images are trained on, since none was held out: those to tune on are then the same."""
        return len(self.tuning) == len(self.training)

    @property
    def limit(self) -> TimeLimit:
        """The time that there is."""
        return self.journal.limit

    @property
    def steps(self) -> int:
        """Steps of one epoch."""
        return self.schedule.steps(len(self.training), self.net)


@dataclass(frozen=True)
class Annealing:
    """A phase of so many epochs in which the learning rate falls from ``lr`` to zero; ``phase`` names it for people.

    ``warming``: the share of its steps in which the rate first rises to ``lr`` (Smith & Topin 2018). ``dropout``: as in
    :class:`Schedule`, None for that of annealing.
    """

    phase: str
    epochs: int
    lr: float
    warming: float = 0.0
    dropout: tuple[float, float] | None = None


@dataclass(frozen=True)
class Moving:
    """Parameters in training, what moves them, and what restores their frozen entries after each step."""

    params: Params
    optimizer: Optimizer
    restore: Callable[[], None]

    @staticmethod
    def of(values: Params, trainable: Mapping[str, Tensor], make: MakeOptimizer) -> Moving:
        """Copies of the values; ``trainable``: as in :func:`train`."""
        # Running statistics are no matter of gradients: the forward pass moves them.
        params = {name: value.clone().requires_grad_(not name.endswith(STATISTICS)) for name, value in values.items()}
        moved = [value for value in params.values() if value.requires_grad]
        return Moving(params, make(moved), freeze_guard(params, trainable))


def quality(net: Network, params: Mapping[str, Tensor], data: Labelled) -> Quality:
    """Loss and accuracy of a network on labelled images."""
    out = logits(net, params, data.x)
    y = data.y.cpu()
    right = (out.argmax(dim=1) == y).double().mean()
    loss, accuracy = collectives.agreed(torch.stack([F.cross_entropy(out, y).double(), right])).tolist()
    return Quality(loss, accuracy)


def losses(net: Network, params: Mapping[str, Tensor], data: Labelled) -> Tensor:
    """Cross-entropy of each image in nats, [N] float64."""
    return collectives.agreed(F.cross_entropy(logits(net, params, data.x).double(), data.y.cpu(), reduction="none"))


class PlainAdam(torch.optim.Adam):
    """torch's own, without its first call for ``torch.compile``: importing that takes as long as importing torch."""

    add_param_group = inspect.unwrap(torch.optim.Optimizer.add_param_group)
    zero_grad = inspect.unwrap(torch.optim.Optimizer.zero_grad)
    state_dict = inspect.unwrap(torch.optim.Optimizer.state_dict)
    load_state_dict = inspect.unwrap(torch.optim.Optimizer.load_state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))


def adam(lr: float) -> MakeOptimizer:
    """Adam without weight decay."""
    return lambda values: PlainAdam(values, lr=lr, fused=True)


def dropout(first: str, shares: tuple[float, float], generator: torch.Generator) -> MakeDrop:
    """Dropout of the inputs (what layer ``first`` reads) and of hidden units of a batch, drawn from the generator."""

    def of_batch(own: collectives.Share) -> Drop:
        def drop(layer: str, a: Tensor) -> Tensor:
            share = shares[layer != first]
            if share == 0.0:
                return a
            return a * (own.random(a.shape, generator) >= share).to(a.device) / (1.0 - share)

        return drop

    return of_batch


def run_epoch(
    run: Run,
    moving: Moving,
    drop: MakeDrop | None = None,
    after_step: Callable[[], None] = lambda: None,
    on_part: Callable[[int, int], None] = lambda done, images: None,
    part: Part | None = None,
) -> float:
    """One pass over the training images in random order; returns the mean loss. The parameters change in place.

    ``part``: how many of its steps there are, all of them by default. Few images are passed over several times, so that
    an epoch always has at least ``BATCHES`` steps (of convolutions ``CONVOLVED_BATCHES``) and means the same to
    patience, rounds and learning rates at every size of the data.
    """
    total, seen = run_steps(run, moving, drop, after_step, on_part, part or Part())
    collectives.summed([total])
    return float(total) / max(1, seen)


def run_steps(
    run: Run,
    moving: Moving,
    drop: MakeDrop | None,
    after_step: Callable[[], None],
    on_part: Callable[[int, int], None],
    part: Part,
) -> tuple[Tensor, int]:
    """The steps of an epoch: the summed loss [], where the parameters are, and of how many images it is.

    No step waits for the device: nothing that is computed there is read here, and images that lie there are gathered
    there. Of several processes (:mod:`clmoe_cli.runtime.distributed.collectives`) each computes its share of every
    batch.
    """
    net, data, params = run.net, run.training, moving.params
    batch_size, images = run.schedule.batch(len(data), net), run.schedule.epoch(len(data), net)
    device, drawn = device_of(params), run.generator.device
    passes = range(math.ceil(images / len(data)))
    orders = [torch.randperm(len(data), generator=run.generator, device=drawn) for _ in passes]
    order = torch.cat(orders)[:images].to(data.y.device)
    total, seen = torch.zeros((), device=device), 0
    for number, index in enumerate(order.split(batch_size)):
        if part.ends(number):
            break
        if net.normalised and len(index) == 1 < len(order):
            continue  # a single image has no statistics of its own
        own = collectives.Share.of(len(index))
        x, y = data.x[index[own.rows]].to(device), data.y[index[own.rows]].to(device)
        x = x if run.augment is None else run.augment(x, own, run.generator)
        with _halves(device):
            out = net.logits(params, x, drop and drop(own), training=True)
            loss = F.cross_entropy(out, y, reduction="sum") / len(index)
        moving.optimizer.zero_grad()
        loss.backward()
        collectives.summed(value.grad for value in params.values())
        moving.optimizer.step()
        moving.restore()
        after_step()
        total += loss.detach() * len(index)
        seen += len(index)
        on_part(seen, len(order))
    return total, seen


def _halves(device: torch.device) -> AbstractContextManager[object]:
    """Half of the bits of a float32, in its range: what graphics processors are fast with."""
    return torch.autocast(device.type, dtype=torch.bfloat16) if device.type == "cuda" else nullcontext()


def step_seconds(run: Run, params: Mapping[str, Tensor], trainable: Mapping[str, Tensor], steps: int = WARM) -> float:
    """Seconds of a step, the quickest of so many after the first, taken from copies of the parameters; nothing changes
    by it, nor is anything drawn."""
    own = torch.Generator(run.generator.device).manual_seed(0)
    apart, moving = replace(run, generator=own), Moving.of(dict(params), trainable, adam(run.schedule.lr))
    drop, found = dropout(run.net.layers[0], run.schedule.dropout, own), []
    for _ in range(steps):
        started = time.perf_counter()
        run_epoch(apart, moving, drop, part=Part(most=1))  # which reads the loss, and so waits for it
        found.append(time.perf_counter() - started)
    return float(collectives.agreed(torch.tensor(min(found[1:]), dtype=torch.float64)))


def alone_seconds(run: Run, params: Mapping[str, Tensor], trainable: Mapping[str, Tensor], threads: int) -> float:
    """The same of process 0 by itself with so many threads, while the others wait."""
    found = torch.full((), math.inf, dtype=torch.float64)
    if collectives.leads():
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            with collectives.apart():
                found.fill_(step_seconds(run, params, trainable, COMPARED))
        finally:
            torch.set_num_threads(before)
    return float(collectives.agreed(found))


def cost(run: Run, params: Mapping[str, Tensor], trainable: Mapping[str, Tensor], epochs: int) -> Cost:
    """What so many epochs of a network will take; of several processes on processors, also what one would."""
    limit = run.limit.left("consolidate")
    if not collectives.several() or device_of(params).type != "cpu":
        return Cost(epochs, run.steps, step_seconds(run, params, trainable), limit)
    step, own = step_seconds(run, params, trainable, COMPARED), torch.get_num_threads()
    # Threads that have no core for themselves wait for each other: one of them may be quicker than all.
    ways = {threads: alone_seconds(run, params, trainable, threads) for threads in (own, own * neighbours())}
    best = min(ways, key=lambda threads: ways[threads])
    return Cost(epochs, run.steps, step, limit, ways[best], best)


def train(
    run: Run,
    params: Mapping[str, Tensor],
    trainable: Mapping[str, Tensor],
    *,
    phase: str = "train",
    optimizer: Callable[[float], MakeOptimizer] = adam,
) -> tuple[Params, Quality]:
    """Trains until the held-out loss has converged; returns the best parameters and their quality.

    Where the architecture has a ``peak``, the learning rate rises to it and falls to zero instead, over all epochs, and
    the last parameters are returned: normalised convolutions learn more that way than by waiting for each fall.
    ``trainable`` holds a mask for each shared weight; parameters that it does not name are owned and all
    trained. The arguments are not changed. Training goes on from where the journal stands, and notes every epoch in it.
    """
    net, schedule = run.net, run.schedule
    if (peak := net.traits.peak) is not None:
        how = Annealing(phase, schedule.epochs, peak * schedule.lr, WARMING, schedule.dropout)
        return anneal(run, params, trainable, how, optimizer=optimizer)
    noted = run.journal.phase(phase, run.generator)
    if (result := noted.result()) is not None:
        return _ended(result, params)
    best = {name: value.detach().clone() for name, value in params.items()}
    reached = quality(net, best, run.tuning)
    drop = dropout(net.layers[0], schedule.dropout, run.generator)
    mark, lr, bad, falls, before = reached.loss, schedule.lr, 0, 0, 0
    anchor = best
    moving = Moving.of(best, trainable, optimizer(lr))
    if (state := noted.reached()) is not None:
        # Frozen entries are the same in all of these, so that any of them may be the anchor.
        best, anchor = _like(params, below("best", state)), _like(params, below("working", state))
        before, bad, falls = (int(n) for n in state["counts"])
        mark, lr, *found = state["numbers"].tolist()
        reached = Quality(*found)
        moving = Moving.of(anchor, trainable, optimizer(lr))
        restore_optimizer(moving.optimizer, below("optimizer", state))
    limit = run.limit
    part = Part(late=lambda: limit.over(phase)) if limit.limited else None
    for epoch in range(before + 1, schedule.epochs + 1):
        loss = run_epoch(run, moving, drop, on_part=within(run.on_step, phase, epoch, schedule.epochs), part=part)
        now = quality(net, moving.params, run.tuning)
        run.on_epoch(Epoch(phase, epoch, schedule.epochs, loss, now, run.seen))
        if now.loss < reached.loss:
            reached = now
            best = {name: value.detach().clone() for name, value in moving.params.items()}
        if limit.over(phase):
            limit.end(phase)
            break
        if now.loss < mark - schedule.min_delta:
            mark, bad = now.loss, 0
        else:
            bad += 1
        if bad > schedule.patience:
            if falls == schedule.decays:
                break
            falls, bad, lr = falls + 1, 0, lr * schedule.decay
            moving = Moving.of(best, trainable, optimizer(lr))
        counts = torch.tensor([epoch, bad, falls])
        numbers = torch.tensor([mark, lr, reached.loss, reached.accuracy], dtype=torch.float64)
        tensors = under("best", best) | _state(moving)
        noted.keep(epoch, tensors | {"counts": counts, "numbers": numbers})
    _finish(noted, best, reached)
    return best, reached


def anneal(
    run: Run,
    params: Mapping[str, Tensor],
    trainable: Mapping[str, Tensor],
    how: Annealing,
    *,
    optimizer: Callable[[float], MakeOptimizer] = adam,
) -> tuple[Params, Quality]:
    """Trains for ``how.epochs`` epochs while the learning rate falls from ``how.lr`` to zero along a cosine.

    The end of a falling rate is a fair sample of what a mask can do; one epoch at full rate is not. Training goes on
    from where the journal stands, and notes every epoch in it.
    """
    noted, images = run.journal.phase(how.phase, run.generator), len(run.training)
    if (result := noted.result()) is not None:
        return _ended(result, params)
    state = noted.reached()
    begin = _like(params, below("working", state)) if state else dict(params)
    moving = Moving.of(begin, trainable, optimizer(how.lr))
    optimizing, limit, each = moving.optimizer, run.limit, run.steps
    steps = whole = how.epochs * each
    if state is not None:
        steps = int(state.get("steps", torch.tensor(whole)))
    elif limit.limited:
        fitting = limit.left(how.phase) / step_seconds(run, begin, trainable)
        steps = min(whole, max(LEAST, math.floor(fitting)))
    if steps < whole:
        limit.end(how.phase)
    epochs = math.ceil(steps / each)
    rate = _rate(optimizing, steps, how)
    reached, before = quality(run.net, moving.params, run.tuning), 0
    if state is not None:
        restore_optimizer(optimizing, below("optimizer", state))
        before, done = (int(n) for n in state["counts"])
        rate.load_state_dict({**rate.state_dict(), "last_epoch": done, "_step_count": done + 1})
        optimizing.param_groups[0]["lr"] = float(state["rate"])
    # Few images are soon known by heart.
    few = images < BATCHES * run.schedule.batch(images, run.net)
    shares = run.schedule.dropout if few else run.schedule.annealing_dropout
    drop = dropout(run.net.layers[0], how.dropout or shares, run.generator)
    for epoch in range(before + 1, epochs + 1):
        on_part, part = within(run.on_step, how.phase, epoch, epochs), Part(most=steps - (epoch - 1) * each)
        loss = run_epoch(run, moving, drop, rate.step, on_part, part)
        reached = quality(run.net, moving.params, run.tuning)
        run.on_epoch(Epoch(how.phase, epoch, epochs, loss, reached, run.seen))
        counts = torch.tensor([epoch, rate.last_epoch])
        now = torch.tensor(optimizing.param_groups[0]["lr"], dtype=torch.float64)
        noted.keep(epoch, _state(moving) | {"counts": counts, "rate": now, "steps": torch.tensor(steps)})
    final = {name: value.detach().clone() for name, value in moving.params.items()}
    _finish(noted, final, reached)
    return final, reached


def _rate(step: Optimizer, steps: int, how: Annealing) -> torch.optim.lr_scheduler.LRScheduler:
    """The learning rate of so many steps: down a cosine, after it has come up one where there is warming."""
    if how.warming * steps < 2:  # nor is there a way up in a step
        return torch.optim.lr_scheduler.CosineAnnealingLR(step, steps)
    # One step more than there are: the scheduler asks for a rate after the last one too.
    return torch.optim.lr_scheduler.OneCycleLR(
        step, how.lr, total_steps=steps + 1, pct_start=how.warming, cycle_momentum=False
    )


def _state(moving: Moving) -> State:
    return under("working", moving.params) | under("optimizer", optimizer_state(moving.optimizer))


def _finish(phase: Phase, params: Params, reached: Quality) -> None:
    numbers = torch.tensor([reached.loss, reached.accuracy], dtype=torch.float64)
    phase.finish(under("params", params) | {"numbers": numbers})


def _ended(result: State, params: Mapping[str, Tensor]) -> tuple[Params, Quality]:
    return _like(params, below("params", result)), Quality(*result["numbers"].tolist())


def _like(params: Mapping[str, Tensor], found: State) -> Params:
    """In the order of the layers, which is that in which they are computed."""
    return {name: found[name].to(params[name].device) for name in params}


def _convolved(net: Network) -> bool:
    return any(isinstance(kind, Convolution) for kind in net.kinds.values())
