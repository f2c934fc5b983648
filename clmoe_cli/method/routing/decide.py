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
from torch.nn.functional import pad

from clmoe_cli.method.routing.gaussians import GaussianGate
from clmoe_cli.method.routing.subspaces import Compared, Gate, Statistics

TASKS = 5
"""Tasks that a batch of one task is compared with in full."""
NEGLIGIBLE = 1e-2
"""Tasks less likely than this are not asked for their opinion: it could not make them likelier."""
OPINION = 0.1
"""Weight of a subnetwork's opinion within its task where held-out images have not found one (formats 1 and 2)."""
NEVER = -math.inf


@dataclass(frozen=True)
class Sources:
    """What a decision draws on.

    ``codes`` [S]: label code of each of the gate's subspaces. ``statistics(task)`` and ``opinion(task, rows)``, the
    log-probabilities [n, C] of the task's classes for the images at ``rows`` [n], are called for tasks on the
    shortlist alone; without ``opinion`` the gate decides by itself. ``explain``: makes of what was answered why.
    ``weights`` [T]: of each task's opinion beside the gate's. ``top``: so many of the best labels are named.
    """

    gate: Gate | GaussianGate
    codes: Tensor
    statistics: Statistics
    opinion: Callable[[int, Tensor], Tensor] | None
    explain: Explain | None = None
    weights: Sequence[float] | None = None
    top: int = 0


@dataclass(frozen=True)
class Why:
    """Base of what explains N answers: a dataclass of tensors [N, …] (:mod:`clmoe_cli.method.explain`)."""


@dataclass(frozen=True)
class Decision:
    """For each of N images: position of the task and code of the label [N], confidence and p-value [N] float64.

    ``why``: where it was asked for. ``best`` and ``likely`` [N, K]: codes of the most likely labels, the answer first,
    and how likely each is; −1 and 0 where no further one was compared.
    """

    task: Tensor
    code: Tensor
    confidence: Tensor
    p_value: Tensor
    why: Why | None = None
    best: Tensor | None = None
    likely: Tensor | None = None

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
        why = type(whys[0])(*(of(whys, f.name) for f in fields(whys[0]))) if whys else None
        best, likely = (None if self.best is None else of(parts, name) for name in ("best", "likely"))
        task, code, confidence, p_value = (of(parts, name) for name in ("task", "code", "confidence", "p_value"))
        return Decision(task, code, confidence, p_value, why, best, likely)


@dataclass(frozen=True)
class BatchTask:
    """The task of a batch, and how sure that is (0 to 1); the tasks compared, and their log-likelihoods [T]."""

    task: int
    sure: float
    near: list[int]
    evidence: Tensor


@dataclass(frozen=True)
class Answered:
    """What a decision was made from, for whoever explains it.

    Features ``values`` [N, d] of the images at ``rows`` [N]; what the gate ``compared``; the ``scores`` [N, L] with the
    subnetworks' opinions, and the column of the ``best`` [N]; the ``batch`` whose task was found before.
    """

    values: Tensor
    rows: Tensor
    compared: Compared
    scores: Tensor
    best: Tensor
    batch: BatchTask | None


Explain = Callable[[Sources, Answered], Why]


def decide_images(sources: Sources, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself; features [N, d] of the images at ``rows`` [N]."""
    return _decided(sources, sources.gate.compare(values, sources.statistics), values, rows)


def task_of_batch(sources: Sources, values: Tensor) -> BatchTask:
    """The task of images that are all one task's, from their features [N, d]."""
    near = sources.gate.shortlisted_tasks(values, TASKS)
    evidence = sources.gate.evidence(values, near, sources.statistics)
    best = int(evidence.argmax())
    return BatchTask(near[best], float(evidence.softmax(dim=0)[best]), near, evidence)


def decide_given(sources: Sources, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself among all classes of the gate's only task; features [N, d] of the images at ``rows`` [N]."""
    return _decided(sources, sources.gate.within(values, 0, sources.statistics), values, rows)


def decide_within(sources: Sources, batch: BatchTask, values: Tensor, rows: Tensor) -> Decision:
    """Each image by itself among the classes of its batch's task, from features [N, d] of the images at ``rows`` [N].

    The confidence in the task multiplies that of the answers.
    """
    found = _decided(sources, sources.gate.within(values, batch.task, sources.statistics), values, rows, batch)
    likely = None if found.likely is None else found.likely * batch.sure
    return replace(found, confidence=found.confidence * batch.sure, likely=likely)


def _pooled(
    scores: Tensor,
    owner: Tensor,
    position: Tensor,
    rows: Tensor,
    opinion: Callable[[int, Tensor], Tensor],
    weights: Sequence[float] | None,
) -> Tensor:
    """The gate's scores [N, L] with the subnetworks' opinions mixed in; each task keeps its sum of likelihoods."""
    likely = scores.softmax(dim=1)
    pooled = scores.clone()
    for task in owner.unique().tolist():
        own = owner == task
        weight = OPINION if weights is None else weights[task]
        asked = ((likely * own).sum(dim=1) > NEGLIGIBLE).nonzero()[:, 0]
        if not len(asked) or weight == 0.0:
            continue
        mask = own[asked]
        mine = scores[asked].masked_fill(~mask, NEVER)
        whole = mine.logsumexp(dim=1, keepdim=True)
        said = opinion(task, rows[asked]).gather(1, position[asked].where(mask, torch.tensor(0)))
        # Of the task's classes only those on the shortlist count.
        said = said.masked_fill(~mask, NEVER).log_softmax(dim=1)
        both = mixed(mine - whole, said, weight)
        pooled[asked] = torch.where(mask, both + whole, pooled[asked])
    return pooled


def mixed(gate: Tensor, subnetwork: Tensor, weight: float) -> Tensor:
    """Logarithm of the mixture of two distributions, from their logarithms [N, C]; ``weight`` of the second, 0 to 1."""
    if weight == 0.0 or weight == 1.0:
        return subnetwork if weight else gate
    return torch.logaddexp(gate + math.log1p(-weight), subnetwork + math.log(weight))


def most_likely(posterior: Tensor, codes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Codes and probabilities [N, count] of the most likely of ``codes`` [N, L], each of which counts once."""
    likely, at = posterior.sort(dim=1, descending=True, stable=True)
    likely, best = likely[:, :count], codes.gather(1, at)[:, :count]
    missing = (0, count - best.shape[1])
    return pad(best.where(likely > 0, -1), missing, value=-1), pad(likely, missing)


def _decided(
    sources: Sources, compared: Compared, values: Tensor, rows: Tensor, batch: BatchTask | None = None
) -> Decision:
    """The best class of each image with features [N, d]; of classes with the same label only the better one counts.

    ``batch``: where the images of a batch are answered.
    """
    gate, chosen = sources.gate, compared.chosen
    scores = compared.likely
    if sources.opinion is not None:
        owner, position = gate.owner[chosen], gate.position[chosen]
        scores = _pooled(scores, owner, position, rows, sources.opinion, sources.weights)
    codes = sources.codes[chosen]
    same = codes[:, :, None] == codes[:, None, :]
    order = scores.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    beaten = (same & (order[:, None, :] < order[:, :, None])).any(dim=2)
    posterior = scores.masked_fill(beaten, NEVER).softmax(dim=1)
    confidence, best = posterior.max(dim=1)
    winner = chosen.gather(1, best[:, None])[:, 0]
    p_value = torch.empty(len(winner), dtype=torch.float64)
    owner = gate.owner[winner]
    for task in owner.unique().tolist():
        here = owner == task
        p_value[here] = sources.statistics(task).answered(values[here], gate.position[winner[here]])
    top = most_likely(posterior, codes, sources.top) if sources.top else (None, None)
    found = Decision(owner, sources.codes[winner], confidence, p_value, None, *top)
    if sources.explain is None:
        return found
    return replace(found, why=sources.explain(sources, Answered(values, rows, compared, scores, best, batch)))
