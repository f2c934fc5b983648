"""Choosing a task's subnetwork: the sparsest mask that keeps the held-out loss within a tolerance.

Paper, "Score" and "Freeze"; method section 4. Rounds of pruning and a short consolidation inside the
mask, each on scores computed afresh; one normalised threshold serves all layers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.continual import masks, parallel
from clmoe_cli.continual.consolidation import consolidate
from clmoe_cli.continual.experts import Network, Params, logits
from clmoe_cli.continual.images import Labelled
from clmoe_cli.continual.importance import gradient_scores, normalised
from clmoe_cli.continual.journal import Journal
from clmoe_cli.continual.steps import OnDone, OnStep, begun, silent
from clmoe_cli.continual.training import OnEpoch, Quality, Schedule, losses, quality

SCORES = ("gradient-weight", "gradient", "last-batch")
LAST_BATCH = 128

ERROR_COST = 4.6
"""Nats that one wrong image costs on average (the right class at 1 %): turns accuracy into loss."""


@dataclass(frozen=True)
class Tolerance:
    """How sparse, and at what price.

    ``max_drop``: share of held-out images that may be lost (0.003 is 0.3 points). It is judged on the
    loss, since some hundred images cannot resolve such an accuracy. Densities are shares of the shared weights that
    a task would freeze anew. The first round keeps the first of ``starts`` that is not clearly worse than the dense
    network, each further one the share ``step`` of those, down to the density ``floor``; a round consolidates
    for ``epochs`` epochs, the chosen mask for ``final_epochs``, both from the learning rate ``lr``: what is left of
    a pruned network moves in few directions and needs larger steps than the dense one.
    """

    max_drop: float = 0.003
    starts: tuple[float, ...] = (0.2, 0.6, 1.0)
    step: float = 0.33
    floor: float = 0.007
    epochs: int = 2
    final_epochs: int = 10
    lr: float = 3e-3

    def choose(self, dense: Tensor, rounds: Sequence[Tensor]) -> int:
        """Index of the sparsest round within the tolerance; arguments are losses of the held-out images, each [N].

        Measured from the dense network or, where no round comes near it (its held-out loss is the least
        of many epochs, hence flattering), from the best round: a denser mask would not help either. A round is
        within when it is not worse by more than the tolerance and two standard errors of the paired difference
        (as Breiman et al. 1984, section 3.4.3, prune with one): some hundred images cannot tell more.
        """
        found = torch.stack(list(rounds))
        best = found[found.mean(dim=1).argmin()]
        reference = dense if dense.mean() >= best.mean() else best
        excess = found - reference
        error = excess.std(dim=1, correction=0) / math.sqrt(excess.shape[1])
        within = excess.mean(dim=1) <= ERROR_COST * self.max_drop + 2 * error
        return int(within.nonzero().max())

    def kept(self, dense: Tensor, found: Tensor) -> bool:
        """Whether accuracy fell by no more than ``max_drop`` and two standard errors of the paired difference.

        Arguments: which held-out images are right, each [N] bool.
        """
        lost = dense.double() - found.double()
        return float(lost.mean()) <= self.max_drop + 2 * float(lost.std(correction=0)) / math.sqrt(len(lost))

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
    """A task's subnetwork: parameters (zero outside the mask), mask, quality before and after, the rounds."""

    params: Params
    mask: masks.Masks
    dense: Quality
    held_out: Quality
    rounds: tuple[Level, ...]


def importance(net: Network, params: Params, data: Labelled, score: str, on_done: OnDone = lambda done: None) -> Params:
    """Normalised importance of every shared weight, over the whole data.

    ``gradient``: mean absolute gradient (the paper's). ``gradient-weight``: the same times the absolute
    weight, a first-order estimate of what removing the weight changes. ``last-batch``: as the paper's
    code, the mean absolute gradient over what is left for the last batch of 128, for comparison only.

    Raises ValueError for another name.
    """
    if score == "last-batch":
        rest = len(data) % LAST_BATCH or LAST_BATCH
        data = Labelled(data.x[torch.arange(len(data) - rest, len(data))], data.y[-rest:])
    scores = gradient_scores(net, params, data.x, data.y, on_done=on_done)
    if score == "gradient-weight":
        scores = {name: value * params[name].abs() for name, value in scores.items()}
    elif score not in SCORES:
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


def select(
    net: Network,
    params: Params,
    free: masks.Masks,
    data: Labelled,
    held_out: Labelled,
    schedule: Schedule,
    tolerance: Tolerance,
    score: str,
    generator: torch.Generator,
    on_epoch: OnEpoch = lambda epoch: None,
    journal: Journal | None = None,
    on_step: OnStep = silent,
) -> Selection:
    """Prunes a trained network in rounds and consolidates what is left.

    ``params``: shared and owned parameters after training; ``free``: shared weights that may move (the
    frozen ones may be selected, and never change). The search goes down to the floor, since
    one round's loss is noisy, and takes the sparsest round within the tolerance; where the consolidated subnetwork
    does not keep the accuracy, the next denser round is taken.
    """
    dense = quality(net, params, held_out)
    rounds: list[tuple[Level, Params, masks.Masks]] = []

    def trained_on(current: Params, mask: masks.Masks, epochs: int, phase: str) -> tuple[Params, Quality]:
        return consolidate(
            net,
            current,
            masks.both(mask, free),
            data,
            held_out,
            schedule,
            generator,
            epochs=min(epochs, schedule.epochs),
            lr=tolerance.lr,
            phase=phase,
            on_epoch=on_epoch,
            journal=journal,
            on_step=on_step,
        )

    def prune(current: Params, mask: masks.Masks, density: float) -> None:
        scores = importance(net, current, data, score, begun(on_step, "scores", len(data), "images"))
        # Only what would be frozen anew is counted: reading what is frozen already costs no capacity.
        threshold = threshold_at(scores, density, free)
        # What is frozen already is read as a whole: it costs no capacity, and few images could not choose from it.
        # A weight of importance zero contributes nothing: never selected, however low the threshold.
        mask = {name: ((value >= threshold) | ~free[name]) & (value > 0) & mask[name] for name, value in scores.items()}
        trained, reached = trained_on(masks.applied(current, mask), mask, tolerance.epochs, "prune")
        rounds.append((Level(density, threshold, reached), trained, mask))

    for start in tolerance.starts:
        rounds.clear()
        prune(params, masks.all_of(free), start)
        if not tolerance.clearly_worse(rounds[0][0].held_out, dense, len(held_out)):
            break
    while (density := rounds[-1][0].density * tolerance.step) >= tolerance.floor:
        prune(rounds[-1][1], rounds[-1][2], density)
    levels = tuple(level for level, _, _ in rounds)
    chosen = tolerance.choose(losses(net, params, held_out), [losses(net, found, held_out) for _, found, _ in rounds])
    right = answers(net, params, held_out)
    while True:
        _, current, mask = rounds[chosen]
        final, reached = trained_on(current, mask, tolerance.final_epochs, "consolidate")
        # The losses of short rounds promise what only the final weights can keep.
        if chosen == 0 or tolerance.kept(right, answers(net, final, held_out)):
            return Selection(final, mask, dense, reached, levels)
        chosen -= 1


def answers(net: Network, params: Params, data: Labelled) -> Tensor:
    """Which images are right, [N] bool."""
    return parallel.agreed(logits(net, params, data.x).argmax(dim=1) == data.y)
