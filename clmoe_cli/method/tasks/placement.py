"""Where a new task goes: beside tasks with which it overlaps constructively, or into a new expert.

Paper, "Place"; method section 5. The new task's images pass through the subnetwork of a known task whose
free weights are drawn afresh; output rows for the new classes are fitted in closed form first (before that
they are noise, and so are gradients through them); the provisional mask and scores that follow are compared
with the known task's.

How much overlap is much depends on the data, the network and its density. So the same images with shuffled inputs
are compared as well: what agrees no better than those has nothing in common with the known task.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import Convolution, Network, Params, device_of, traced
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores, normalised
from clmoe_cli.method.subnetwork.pruning import threshold_at

IMAGES = 512
"""How many of the new task's images are compared: enough for a mean, few enough to be quick."""

DRAWS = 4
"""How often the free weights are drawn afresh for a comparison."""


@dataclass(frozen=True)
class Thresholds:
    """Constructive: ``overlap`` and ``divergence`` in units of what shuffled inputs give; ``least``: least overlap.
    With an ``overlap`` of 0 only the least counts.

    ``capacity``: least free share of a layer. The defaults were found on MNIST training images: of 73 pairs of
    other digits all but one overlapped at least 1.5 times as much as shuffled ones and diverged at most 0.9 times as
    much, by 0.12 or more; of 128 pairs with permuted pixels none reached 1.4 and 0.9 together (singly 1.6 and 0.89),
    and of some 170 more three did, with overlaps of 0.07 to 0.11. One constructive task gives a home.

    ``kernels``: the first three for networks of convolutions. What agrees there is mostly the network's own structure,
    with shuffled inputs as well; the scores tell. Of 15 pairs of other digits or pictures (training images) 14 diverged
    at most 0.85 times as much as shuffled ones, of 12 with permuted pixels none did (0.88 and more).
    """

    overlap: float = 1.4
    divergence: float = 0.9
    least: float = 0.12
    capacity: float = 0.05
    kernels: tuple[float, float, float] = (0.9, 0.85, 0.05)

    def of(self, net: Network) -> Thresholds:
        """Those that are meant for a network."""
        if not any(isinstance(kind, Convolution) for kind in net.kinds.values()):
            return self
        overlap, divergence, least = self.kernels
        return replace(self, overlap=overlap, divergence=divergence, least=least)


def images_of(net: Network) -> int:
    """Images that are compared: where few have to do for scores, a quarter of these, since each is compared anew with
    every draw."""
    return IMAGES if net.traits.scored is None else net.traits.scored // 4


@dataclass(frozen=True)
class KnownTask:
    """What is compared: the task's own subnetwork (zero outside its mask), its mask, its stored scores."""

    name: str
    expert: str
    net: Network
    params: Params
    mask: masks.Masks
    scores: Params


@dataclass(frozen=True)
class Agreement:
    """How a batch agrees with a known task: Hamming distance and overlap of masks, divergence of scores.

    ``transfer``: accuracy of output rows fitted on the known task's features to half of the images, on the
    other half; None for a single image.
    """

    hamming: float
    overlap: float
    divergence: float
    transfer: float | None


@dataclass(frozen=True)
class Candidate:
    """One comparison, and the overlap and divergence of the same images with shuffled inputs."""

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
class Placement:
    """The expert (None: a new one), the tasks there whose weights may be read, and one sentence why."""

    expert: str | None
    reads: tuple[str, ...]
    reason: str


def ridge_rows(features: Tensor, y: Tensor, classes: int, strength: float = 1e-2) -> tuple[Tensor, Tensor]:
    """Output rows [C, in] and biases [C] by ridge regression of one-hot targets on features [N, in].

    ``strength`` is relative to the features' mean square, so that it means the same at every scale.
    """
    a = F.pad(features.double(), (0, 1), value=1.0)
    gram = a.T @ a
    damping = strength * gram.diagonal().mean().clamp_min(1e-12)
    # Logits of ±: centred targets, scaled so that the softmax commits itself.
    targets = 4.0 * (2.0 * F.one_hot(y, classes).double() - 1.0)
    rows = torch.linalg.solve(gram + damping * torch.eye(len(gram), dtype=torch.float64), a.T @ targets).T.float()
    return rows[:, :-1].contiguous(), rows[:, -1].contiguous()


def agreement(known: KnownTask, draws: Sequence[Mapping[str, Tensor]], data: Labelled, classes: int) -> Agreement:
    """How a new task's images (at most some hundred) agree with one known task.

    ``draws``: newly drawn shared weights, at least one set; they stand where the known task uses none. Every
    figure is the mean over the draws, since a single one can be off by a third.
    """
    return _mean([_compared(known, fresh, data, classes) for fresh in draws])


def compare(
    known: KnownTask,
    draws: Sequence[Mapping[str, Tensor]],
    data: Labelled,
    classes: int,
    thresholds: Thresholds,
    generator: torch.Generator,
) -> Candidate:
    """Compares a new task's images with one known task and with chance: their inputs shuffled, anew for each draw."""
    found = agreement(known, draws, data, classes)
    x = data.x[:]
    size = x.shape[1]
    shuffled = [
        _compared(known, fresh, Labelled(x[:, torch.randperm(size, generator=generator)], data.y), classes)
        for fresh in draws
    ]
    chance = _mean(shuffled)
    thresholds = thresholds.of(known.net)
    least = thresholds.least
    if thresholds.overlap:
        least = max(thresholds.overlap * chance.overlap, least)
    good = found.overlap >= least and found.divergence <= thresholds.divergence * chance.divergence
    return Candidate(
        known.name,
        known.expert,
        found.hamming,
        found.overlap,
        found.divergence,
        found.transfer,
        chance.overlap,
        chance.divergence,
        least,
        good,
    )


def _mean(found: Sequence[tuple[float, float, float, float]]) -> Agreement:
    hamming, overlap, apart, transfer = torch.tensor(found, dtype=torch.float64).mean(dim=0).tolist()
    return Agreement(hamming, overlap, apart, None if math.isnan(transfer) else transfer)


def _compared(
    known: KnownTask, fresh: Mapping[str, Tensor], data: Labelled, classes: int
) -> tuple[float, float, float, float]:
    """Hamming distance, overlap, divergence and transfer (NaN for a single image) with one draw of fresh weights."""
    params = {
        name: torch.where(known.mask[name].to(value.device), value, fresh[name].to(value.device))
        if name in known.mask
        else value
        for name, value in known.params.items()
    }
    # Statistics of the known task's sparse network fit no other weights.
    params = known.net.adapted(params, data.x[:].to(device_of(params)))
    features = torch.cat([done.inputs["output"].cpu() for _, done in traced(known.net, params, data.x)])
    half = max(1, len(data) // 2)
    rows, bias = ridge_rows(features[:half], data.y[:half], classes)
    answers = (features[half:] @ rows.T + bias).argmax(dim=1)
    transfer = float((answers == data.y[half:]).double().mean())
    rows, bias = ridge_rows(features, data.y, classes)
    params |= {"output.weight": rows.to(device_of(params)), "output.bias": bias.to(device_of(params))}
    gradients = {name: value.cpu() for name, value in gradient_scores(known.net, params, data.x, data.y).items()}
    weights = known.net.effective(params)
    important = normalised(known.net, {name: gradients[name] * weights[name].cpu().abs() for name in known.mask})
    # The same number of weights as the known task has, so that density is no part of the comparison.
    size = sum(mask.numel() for mask in known.mask.values())
    threshold = threshold_at(important, masks.count(known.mask) / size)
    provisional = {name: value >= threshold for name, value in important.items()}
    agreed = masks.agreement(provisional, known.mask)
    common = masks.intersection(provisional, known.mask)
    apart = masks.divergence(_on(gradients, known.mask), _on(known.scores, known.mask), common)
    return agreed.hamming, agreed.overlap, apart, transfer


def _on(scores: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Params:
    """Scores in units of their layer's mean over the known task's mask."""
    return {name: scores[name].double() / scores[name][m].double().mean().clamp_min(1e-30) for name, m in mask.items()}


def place(candidates: Sequence[Candidate], room: Mapping[str, tuple[float, str]], thresholds: Thresholds) -> Placement:
    """Chooses the expert with the best constructive overlap among those with free capacity.

    ``room``: expert → smallest share of free weights over its layers, and that layer.
    """
    if not candidates:
        return Placement(None, (), "a new expert, since no task near it lies in one that could take it")
    good = [c for c in candidates if c.constructive]
    if not good:
        close = max(candidates, key=lambda c: c.overlap)
        why = (
            f"its overlap with the closest, {close.task}, is {close.overlap:.2f}, below {close.least_overlap:.2f}"
            f" (by chance {close.chance_overlap:.2f})"
            if close.overlap < close.least_overlap
            else f"it diverges from {close.task} by {close.divergence:.2f}, about as much as by chance"
            f" ({close.chance_divergence:.2f})"
        )
        return Placement(None, (), f"a new expert, since {why}")
    roomy = [c for c in good if room[c.expert][0] >= thresholds.capacity]
    if not roomy:
        full = " or ".join(f"{e} ({_free(room[e])})" for e in sorted({c.expert for c in good}))
        needed = f"{100 * thresholds.capacity:g} % are needed"
        return Placement(None, (), f"a new expert, since there is no free capacity in expert {full}; {needed}")
    best = max(roomy, key=lambda c: c.overlap)
    reads = tuple(c.task for c in roomy if c.expert == best.expert)
    why = (
        f"into expert {best.expert}, since it overlaps with {best.task} more than by chance ({best.overlap:.2f} against"
        f" {best.chance_overlap:.2f}; at least {best.least_overlap:.2f}) and {_free(room[best.expert])}"
    )
    return Placement(best.expert, reads, why)


def _free(room: tuple[float, str]) -> str:
    return f"layer {room[1]} has {100 * room[0]:.1f} % free"
