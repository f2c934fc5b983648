"""Choosing a task's subnetwork: the sparsest mask that keeps the held-out accuracy within a tolerance.

Paper, "Score" and "Freeze"; method section 4. Rounds of pruning and a short consolidation inside the
mask, each on scores computed afresh; one normalised threshold serves all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import Convolution, Network, Params
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.compact import scores_inside
from clmoe_cli.method.subnetwork.finetuning import finetune
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores, halved, normalised
from clmoe_cli.method.subnetwork.training import Annealing, Quality, Run, losses, quality
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.events import OnDone, begun

SCORES = ("gradient-weight", "gradient", "last-batch")
LAST_BATCH = 128
PASSES = 5
"""So many times what scores take is kept back for what follows training, where time is limited."""


@dataclass(frozen=True)
class Tolerance:
    """How sparse, and at what price.

    ``max_drop``: share of held-out images that may be lost (0.003 is 0.3 points). ``resolution``: what held-out images
    must be able to tell, as such a share; where they cannot, the denser mask stands. Densities are shares of the shared
    weights that a task would freeze anew. The first round keeps the first of ``starts`` that is not clearly worse than
    the dense network, each further one the share ``step`` of those, until ``failures`` in a row are not within the
    tolerance, or down to the density ``floor`` and ``least`` weights, since placement cannot compare masks of a few
    weights; between the sparsest that is and the next sparser that is not follow
    ``halvings``. A round consolidates for ``epochs`` epochs, the chosen mask for ``final_epochs``, both from the
    learning rate ``lr``: what is left of a pruned network moves in few directions and needs larger steps than the
    dense one.
    """

    max_drop: float = 0.003
    resolution: float = 0.01
    starts: tuple[float, ...] = (0.2, 0.6, 1.0)
    step: float = 0.33
    floor: float = 1e-4
    least: int = 32
    failures: int = 2
    halvings: int = 2
    epochs: int = 2
    final_epochs: int = 20
    lr: float = 3e-3

    @property
    def rounds(self) -> int:
        """Rounds, at most, where the first of ``starts`` is good enough."""
        falls = math.floor(math.log(self.floor / self.starts[0], self.step)) if self.floor < self.starts[0] else 0
        return 1 + falls + self.halvings

    def within(self, reference: Tensor, found: Tensor) -> bool:
        """Whether a mask errs more than ``reference`` by at most ``max_drop``, and the images can tell so.

        Arguments: how wrong the held-out images are, each [N] in 0 to 1. The mean of the paired difference may be
        ``max_drop``; with two standard errors more it may be ``resolution`` above that.
        """
        lost = found - reference
        mean, error = float(lost.mean()), float(lost.std(correction=0)) / math.sqrt(len(lost))
        return mean <= self.max_drop and mean + 2 * error <= self.max_drop + self.resolution

    def clearly_worse(self, found: Quality, dense: Quality, images: int) -> bool:
        """Whether accuracy fell by more than the tolerance and twice the standard error of ``images`` images."""
        spread = math.sqrt(max(dense.accuracy * (1 - dense.accuracy), 1 / images) / images)
        return found.accuracy < dense.accuracy - self.max_drop - 2 * spread


@dataclass(frozen=True)
class Level:
    """One round: share of shared weights kept, the normalised threshold, held-out quality after consolidation."""

    density: float
    threshold: float
    held_out: Quality


@dataclass(frozen=True)
class Selection:
    """A task's subnetwork: parameters (zero outside the mask), mask, quality before and after, the rounds.

    ``scores``: the parameters' gradient scores on the training images, of shared weights inside the mask.
    """

    params: Params
    mask: masks.Masks
    dense: Quality
    held_out: Quality
    rounds: tuple[Level, ...]
    scores: Params


def importance(
    net: Network, params: Params, mask: masks.Masks, data: Labelled, score: str, on_done: OnDone = lambda done: None
) -> Params:
    """Normalised importance of every shared weight, over the whole data; weights outside the mask are zero.

    ``gradient``: mean absolute gradient (the paper's). ``gradient-weight``: the same times the absolute
    weight, a first-order estimate of what removing the weight changes. ``last-batch``: as the paper's
    code, the mean absolute gradient over what is left for the last batch of 128, for comparison only.

    Raises ValueError for another name.
    """
    if score == "last-batch":
        rest = len(data) % LAST_BATCH or LAST_BATCH
        data = Labelled(data.x[torch.arange(len(data) - rest, len(data))], data.y[-rest:])
    if score == "gradient-weight":  # zero outside the mask
        found = scores_inside(net, params, mask, data, on_done)
        scores = {name: value * params[name].abs() for name, value in found.items()}
    elif score in SCORES:
        scores = gradient_scores(net, params, data.x, data.y, on_done=on_done)
    else:
        raise ValueError(f"unknown score {score!r}; expected one of {', '.join(SCORES)}")
    return normalised(net, scores)


def threshold_at(scores: Mapping[str, Tensor], density: float, among: masks.Masks | None = None) -> float:
    """The normalised threshold above which so many weights lie as ``density`` is a share of all shared weights.

    ``among``: only these are counted; all of them lie above the threshold when they are fewer.
    """
    every = torch.cat([(value if among is None else value[among[name]]).flatten() for name, value in scores.items()])
    keep = max(1, round(density * sum(value.numel() for value in scores.values())))
    if keep >= every.numel():
        return 0.0
    # On the processor: not every accelerator can.
    return float(every.cpu().kthvalue(every.numel() - keep + 1).values)


def select(run: Run, params: Params, free: masks.Masks, tolerance: Tolerance, score: str) -> Selection:
    """Prunes a trained network in rounds and consolidates what is left.

    ``params``: shared and owned parameters after training; ``free``: shared weights that may move (the
    frozen ones may be selected, and never change). Rounds are judged against the dense network or, where the densest
    round errs more (the dense one's held-out loss is the least of many epochs, hence flattering), against that round.
    The sparsest round within the tolerance is consolidated; where the result is not within it, the next denser one is.
    No round begins when its part of ``run.limit`` is over.
    Where the architecture has a ``most``, the densest round has that much of each layer, after rounds that lead there.
    """
    net, scored, held_out = run.net, run.net.scored(run.training), run.tuning
    dense = quality(net, params, held_out)
    levels: list[Level] = []

    def trained_on(current: Params, mask: masks.Masks, epochs: int, phase: str) -> tuple[Params, Quality]:
        how = Annealing(phase, min(epochs, run.schedule.epochs), tolerance.lr)
        return finetune(run, current, masks.intersection(mask, free), how)

    def pruned(before: _Round, density: float, bounded: bool = True) -> _Round:
        started, to = run.limit.clock(), begun(run.on_step, "scores", len(scored), "images")
        scores = importance(net, before.params, before.mask, scored, score, to)
        # What is idle, two kinds of scores and the statistics are still to come, all of them over all images.
        run.limit.reserve = PASSES * (run.limit.clock() - started)
        # Only what would be frozen anew is counted: reading what is frozen already costs no capacity.
        threshold = threshold_at(scores, density, free)
        # What is frozen already is read as a whole: it costs no capacity, and few images could not choose from it.
        # A weight of importance zero contributes nothing: never selected, however low the threshold.
        mask = {
            name: ((value >= threshold) | ~free[name]) & (value > 0) & before.mask[name]
            for name, value in scores.items()
        }
        mask = within_most(net, mask, scores, free) if bounded else mask
        trained, reached = trained_on(masks.apply(before.params, mask), mask, tolerance.epochs, "prune")
        levels.append(Level(density, threshold, reached))
        return _Round(density, trained, mask, errors(net, trained, held_out))

    def late() -> bool:
        if over := run.limit.over("prune"):
            run.limit.end("prune")
        return over

    everything = _Round(1.0, params, masks.ones_like(free), errors(net, params, held_out))
    if net.traits.most is None:
        for start in tolerance.starts:
            densest = pruned(everything, start)
            if not tolerance.clearly_worse(levels[-1].held_out, dense, len(held_out)) or late():
                break
    elif net.base:  # what is pruned goes back to the base, so that nothing breaks
        densest = pruned(everything, net.traits.most)
    else:
        densest, density = everything, tolerance.step
        while density > net.traits.most and not late():
            densest, density = pruned(densest, density, bounded=False), density * tolerance.step
        densest = pruned(densest, net.traits.most)
    reference = max(everything.errors, densest.errors, key=lambda errors: float(errors.mean()))
    accepted, last, sparser, failed = [densest], densest, 0.0, 0
    floor = max(tolerance.floor, tolerance.least / sum(mask.numel() for mask in free.values()))
    while failed < tolerance.failures and (density := last.density * tolerance.step) >= floor and not late():
        last = pruned(last, density)
        if tolerance.within(reference, last.errors):
            accepted.append(last)
            failed = 0
        else:
            sparser = sparser if failed else density
            failed += 1
    for _ in range(tolerance.halvings if failed else 0):
        if late():
            break
        middle = pruned(accepted[-1], math.sqrt(accepted[-1].density * sparser))
        if tolerance.within(reference, middle.errors):
            accepted.append(middle)
        else:
            sparser = middle.density
    while True:
        chosen = accepted.pop()
        final, _ = trained_on(chosen.params, chosen.mask, tolerance.final_epochs, "consolidate")
        final, mask, scores = without_idle(net, final, chosen.mask, scored)
        # The errors of short rounds promise what only the final weights can keep.
        ended = not accepted or run.limit.over("consolidate")
        if ended or tolerance.within(reference, errors(net, final, held_out)):
            return Selection(final, mask, dense, quality(net, final, held_out), tuple(levels), scores)


def within_most(net: Network, mask: masks.Masks, scores: Mapping[str, Tensor], free: masks.Masks) -> masks.Masks:
    """The mask with at most the share ``most`` of each layer's free weights, those with the largest scores.

    What is frozen already costs nothing and stays. So do depthwise layers that stand on no base
    (:class:`clmoe_cli.method.networks.base.Traits`).
    """
    if (most := net.traits.most) is None:
        return mask
    found = {}
    for name, selected in mask.items():
        kind, fresh = net.kinds[name.rpartition(".")[0]], selected & free[name]
        limit = int(most * int(free[name].sum()))
        found[name] = selected
        spared = isinstance(kind, Convolution) and kind.groups > 1 and not net.base
        if int(fresh.sum()) > limit and not spared:
            ranked = torch.where(fresh, scores[name], 0.0).flatten().argsort(descending=True, stable=True)
            kept = torch.zeros_like(fresh.flatten())
            kept[ranked[:limit]] = True
            found[name] = (selected & ~free[name]) | kept.view_as(fresh)
    return found


@dataclass(frozen=True)
class _Round:
    """A density that was tried: parameters (zero outside the mask), the mask, how wrong the held-out images are."""

    density: float
    params: Params
    mask: masks.Masks
    errors: Tensor


def errors(net: Network, params: Params, data: Labelled) -> Tensor:
    """How wrong each image is, one minus the probability of its class, [N] float64 in 0 to 1.

    Its mean is an accuracy lost that hangs less on single images than a count of answers, and unlike the loss no image
    outweighs all others.
    """
    return collectives.agreed(-torch.expm1(-losses(net, params, data)))


def without_idle(net: Network, params: Params, mask: masks.Masks, data: Labelled) -> tuple[Params, masks.Masks, Params]:
    """Takes out selected weights whose score on ``data`` is zero as stored, until there are none.

    Returns parameters, mask, and the scores of these parameters inside it.

    A weight that is taken out may wake a unit that it kept at zero, so the scores are taken again.
    """
    while True:
        scores = scores_inside(net, params, mask, data)
        half = halved(scores)[0]
        used = {name: own & (half[name] > 0) for name, own in mask.items()}
        if masks.count(used) == masks.count(mask):
            return params, mask, scores
        params, mask = masks.apply(params, used), used
