"""Label and task of an image without a task id: gate → shortlist → subnetworks of the shortlist → decision.

The gate says how well an image fits each class of the shortlist; within a task the subnetwork's opinion is mixed
into the gate's (a linear pool: Stone 1961). Between tasks the gate decides alone: a subnetwork is sure
of strange images as well, and the whitened deviation of its hidden units made held-out figures worse
(docs/method.md). A class that several tasks know counts once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from clmoe_cli.continual.candidates import KEPT, Asked, Candidates, of_gate, ranked, with_opinions
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
    shortlist alone; without ``opinion`` the gate decides by itself. ``asked``: what subnetworks say beside that; with
    it decisions say what they were made from.
    """

    gate: Gate
    codes: Tensor
    statistics: Callable[[int], Subspaces]
    opinion: Callable[[int, Tensor], Tensor] | None
    asked: Asked | None = None


@dataclass(frozen=True)
class Decision:
    """For each of N images: position of the task and code of the label [N], confidence and p-value [N] float64.

    ``why``: the candidates, where they were asked for.
    """

    task: Tensor
    code: Tensor
    confidence: Tensor
    p_value: Tensor
    why: Candidates | None = None

    @staticmethod
    def joined(parts: list[Decision]) -> Decision:
        """The decisions on consecutive parts of a file as one."""
        return parts[0].each(lambda *values: torch.cat(values), *parts[1:])

    def each(self, use: Callable[..., Tensor], *others: Decision) -> Decision:
        """The decision of which each tensor is ``use`` of this one's and of the others'."""

        def of(parts: Sequence[Any], name: str) -> Tensor:
            return use(*(getattr(part, name) for part in parts))

        parts = (self, *others)
        whys = [part.why for part in parts if part.why is not None]
        why = Candidates(*(of(whys, f.name) for f in fields(Candidates))) if whys else None
        return Decision(of(parts, "task"), of(parts, "code"), of(parts, "confidence"), of(parts, "p_value"), why)


@dataclass(frozen=True)
class BatchTask:
    """The task of a batch, and how sure that is (0 to 1); the tasks compared, and their log-likelihoods [T]."""

    task: int
    sure: float
    near: list[int]
    evidence: Tensor


def decide_images(sources: Sources, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself; features [N, d] of the images at ``rows`` [N]."""
    coarse, chosen = sources.gate.shortlist(values)
    distances = full_distances(sources.gate, chosen, values, sources.statistics, coarse)
    return _decided(sources, chosen, distances, rows)


def task_of_batch(sources: Sources, values: Tensor) -> BatchTask:
    """The task of images that are all one task's, from their features [N, d].

    Each image's distance from a task's nearest class counts up to ``BOUND``, so that a few strange images do not
    outvote the others.
    """
    gate = sources.gate
    near = gate.shortlisted_tasks(values, TASKS)
    nearest = torch.stack([_within(sources, task, values)[1].min(dim=1).values for task in near], dim=1)
    noise = torch.cat([sources.statistics(task).dispersions for task in near]).mean()
    evidence = -SHARPNESS * nearest.double().clamp(max=BOUND * gate.unit).sum(dim=0) / noise
    best = int(evidence.argmax())
    return BatchTask(near[best], float(evidence.softmax(dim=0)[best]), near, evidence)


def decide_within(sources: Sources, batch: BatchTask, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself among the classes of its batch's task, from features [N, d] of the images at ``rows`` [N].

    The confidence in the task multiplies that of the answers.
    """
    found = _decided(sources, *_within(sources, batch.task, values), rows, batch, values)
    return replace(found, confidence=found.confidence * batch.sure)


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


def _decided(
    sources: Sources,
    chosen: Tensor,
    distances: Tensor,
    rows: Tensor,
    batch: BatchTask | None = None,
    values: Tensor | None = None,
) -> Decision:
    """The best class of each image; of classes with the same label only the better one counts.

    ``batch`` and the images' features: where those of a batch are answered.
    """
    gate = sources.gate
    likely = scores = _scores(sources, chosen, distances)
    if sources.opinion is not None:
        scores = _pooled(scores, gate.owner[chosen], gate.position[chosen], rows, sources.opinion)
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
        own = sources.statistics(int(gate.owner[one]))
        p_value[here] = own.p_values(distance[here], int(gate.position[one]))
    found = Decision(gate.owner[winner], sources.codes[winner], confidence, p_value)
    if sources.asked is None:
        return found
    columns = ranked(scores, best, KEPT if batch is None else KEPT - len(batch.near) + 1)
    known = {"distance": distances, "log_likelihood": likely, "score": scores}
    known = {name: value.gather(1, columns) for name, value in known.items()}
    chosen = chosen.gather(1, columns)
    if batch is not None and values is not None:
        chosen, known = _beside(sources, batch, values, chosen, known)
    why = of_gate(gate, sources.codes, sources.statistics, chosen, known)
    return replace(found, why=with_opinions(why, gate.position[chosen], rows, sources.asked))


def _beside(
    sources: Sources, batch: BatchTask, values: Tensor, chosen: Tensor, known: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What was compared within a batch's task, [N, k], and beside it the nearest class of each other task."""
    score = dict(zip(batch.near, batch.evidence.tolist(), strict=True))
    known = known | {"task_score": torch.full_like(known["score"], score[batch.task])}
    for task in sorted(set(score) - {batch.task}, key=lambda task: -score[task]):
        classes, distances = _within(sources, task, values)
        distance, at = distances.min(dim=1, keepdim=True)
        nothing = torch.full(distance.shape, math.nan, dtype=torch.float64)
        here = {"distance": distance, "task_score": torch.full_like(nothing, score[task])}
        chosen = torch.cat([chosen, classes.gather(1, at)], dim=1)
        known = {name: torch.cat([value, here.get(name, nothing)], dim=1) for name, value in known.items()}
    return chosen, known
