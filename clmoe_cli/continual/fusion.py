"""Label and task of an image without a task id: gate → shortlist → subnetworks of the shortlist → decision.

The gate says how well an image fits each class of the shortlist; within a task the subnetwork's opinion is mixed
into the gate's (a linear pool: Stone 1961). Between tasks the gate decides alone: a subnetwork is sure
of strange images as well, and the whitened deviation of its hidden units made held-out figures worse
(docs/method.md). A class that several tasks know counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.continual.gate import BOUND, SHARPNESS, Gate, Subspaces, full_distances

TASKS = 5
"""Tasks that a batch of one task is compared with in full."""
NEGLIGIBLE = 1e-2
"""Tasks less likely than this are not asked for their opinion: it could not make them likelier."""
OPINION = 0.1
"""Weight of a subnetwork's opinion beside the gate's within a task; found on held-out training images."""
NEVER = -math.inf


@dataclass(frozen=True)
class Sources:
    """What a decision draws on.

    ``codes`` [S]: label code of each of the gate's subspaces. ``statistics(task)`` and ``opinion(task, rows)``, the
    log-probabilities [n, C] of the task's classes for the images at ``rows`` [n], are called for tasks on the
    shortlist alone; without ``opinion`` the gate decides by itself.
    """

    gate: Gate
    codes: Tensor
    statistics: Callable[[int], Subspaces]
    opinion: Callable[[int, Tensor], Tensor] | None


@dataclass(frozen=True)
class Decision:
    """For each of N images: position of the task and code of the label [N], confidence and p-value [N] float64."""

    task: Tensor
    code: Tensor
    confidence: Tensor
    p_value: Tensor

    @staticmethod
    def joined(parts: list[Decision]) -> Decision:
        """The decisions on consecutive parts of a file as one."""
        return Decision(
            torch.cat([part.task for part in parts]),
            torch.cat([part.code for part in parts]),
            torch.cat([part.confidence for part in parts]),
            torch.cat([part.p_value for part in parts]),
        )


def decide_images(sources: Sources, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself; features [N, d] of the images at ``rows`` [N]."""
    gate = sources.gate
    coarse, chosen = gate.shortlist(values)
    distances = full_distances(gate, chosen, values, sources.statistics, coarse)
    scores = _scores(sources, chosen, distances)
    if sources.opinion is not None:
        scores = _pooled(scores, gate.owner[chosen], gate.position[chosen], rows, sources.opinion)
    return _decided(sources, chosen, distances, scores)


def task_of_batch(sources: Sources, values: Tensor) -> tuple[int, float]:
    """The task of images that are all one task's, and how sure that is (0 to 1), from their features [N, d].

    Each image's distance from a task's nearest class counts up to ``BOUND``, so that a few strange images do not
    outvote the others.
    """
    gate = sources.gate
    near = gate.shortlisted_tasks(values, TASKS)
    nearest = torch.stack([_within(sources, task, values)[1].min(dim=1).values for task in near], dim=1)
    noise = torch.cat([sources.statistics(task).dispersions for task in near]).mean()
    evidence = -SHARPNESS * nearest.double().clamp(max=BOUND * gate.unit).sum(dim=0) / noise
    best = int(evidence.argmax())
    return near[best], float(evidence.softmax(dim=0)[best])


def decide_within(sources: Sources, task: int, sure: float, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself among the classes of one task, from features [N, d] of the images at ``rows`` [N].

    ``sure``: confidence in the task, which that of the answers is multiplied by.
    """
    gate = sources.gate
    chosen, distances = _within(sources, task, values)
    scores = _scores(sources, chosen, distances)
    if sources.opinion is not None:
        scores = _pooled(scores, gate.owner[chosen], gate.position[chosen], rows, sources.opinion)
    found = _decided(sources, chosen, distances, scores)
    return Decision(found.task, found.code, found.confidence * sure, found.p_value)


def _within(sources: Sources, task: int, values: Tensor) -> tuple[Tensor, Tensor]:
    """Positions of a task's C classes and the distances from them, both [N, C]."""
    chosen = (sources.gate.owner == task).nonzero()[:, 0].expand(len(values), -1)
    return chosen, full_distances(sources.gate, chosen, values, sources.statistics)


def _scores(sources: Sources, chosen: Tensor, distances: Tensor) -> Tensor:
    """Log-likelihoods [N, L] of the shortlisted subspaces, up to what is the same for all of an image's.

    Distances are measured in the mean dispersion of the shortlist, so that who is nearest stays the likeliest.
    """
    noise = torch.zeros(len(sources.gate.owner), dtype=torch.float64)
    for task in sources.gate.owner[chosen].unique().tolist():
        own = sources.statistics(task).dispersions
        here = (sources.gate.owner == task).nonzero()[:, 0]
        noise[here] = own[sources.gate.position[here]]
    return -SHARPNESS * distances.double() / noise[chosen].mean(dim=1, keepdim=True)


def _pooled(
    scores: Tensor, owner: Tensor, position: Tensor, rows: Tensor, opinion: Callable[[int, Tensor], Tensor]
) -> Tensor:
    """The gate's scores [N, L] with the subnetworks' opinions mixed in; each task keeps its sum of likelihoods."""
    likely = scores.softmax(dim=1)
    pooled = scores.clone()
    for task in owner.unique().tolist():
        own = owner == task
        asked = ((likely * own).sum(dim=1) > NEGLIGIBLE).nonzero()[:, 0]
        if not len(asked):
            continue
        mask = own[asked]
        mine = scores[asked].masked_fill(~mask, NEVER)
        whole = mine.logsumexp(dim=1, keepdim=True)
        said = opinion(task, rows[asked]).gather(1, position[asked].where(mask, torch.tensor(0)))
        # Of the task's classes only those on the shortlist count.
        said = said.masked_fill(~mask, NEVER).log_softmax(dim=1)
        both = torch.logaddexp(mine - whole + math.log(1 - OPINION), said + math.log(OPINION))
        pooled[asked] = torch.where(mask, both + whole, pooled[asked])
    return pooled


def _decided(sources: Sources, chosen: Tensor, distances: Tensor, scores: Tensor) -> Decision:
    """The best class of each image; of classes with the same label only the better one counts."""
    codes = sources.codes[chosen]
    same = codes[:, :, None] == codes[:, None, :]
    order = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    beaten = (same & (order[:, None, :] < order[:, :, None])).any(dim=2)
    posterior = scores.masked_fill(beaten, NEVER).softmax(dim=1)
    confidence, best = posterior.max(dim=1)
    winner = chosen.gather(1, best[:, None])[:, 0]
    distance = distances.gather(1, best[:, None])[:, 0]
    p_value = torch.empty(len(winner), dtype=torch.float64)
    for one in winner.unique().tolist():
        here = winner == one
        own = sources.statistics(int(sources.gate.owner[one]))
        p_value[here] = own.p_values(distance[here], int(sources.gate.position[one]))
    return Decision(sources.gate.owner[winner], sources.codes[winner], confidence, p_value)
