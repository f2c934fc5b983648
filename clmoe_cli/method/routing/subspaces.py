"""The gate of formats 1 and 2: which task, and which of its classes, does an image belong to (method section 6).

Newer kinds of input are decided by Gaussians (:mod:`clmoe_cli.method.routing.gaussians`); what was learned with
subspaces goes on with them, since their statistics lack the variances.

Each class is an affine subspace of the fixed features (:mod:`clmoe_cli.method.routing.features`): the mean of its
images and the leading directions of their scatter, in closed form. An image is as far from a class as it lies outside
the subspace (Oja 1983; on scattering features, Bruna & Mallat 2013). Nothing of another task enters a task's
statistics, so that they do not depend on the order of the tasks, never drift, and leave with their task.

The solved gate holds a coarse form of every subspace; it shortlists a few for each image, and only these are
compared in full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method import privacy
from clmoe_cli.method.reproducible import at_least, settled
from clmoe_cli.method.routing.calibration import MINIMUM
from clmoe_cli.method.routing.mahalanobis import leading, of_scatter
from clmoe_cli.runtime import limits

RANK = 128
"""Directions of a class, if there are four times as many images and twice as many features."""
COARSE = 8
"""Directions of a class that the shortlist looks at."""
SHORTLIST = 8
"""Classes compared in full for an image."""
FAR = 2.5
"""Classes of the shortlist with a coarse distance beyond so many times the least keep it: they cannot come near."""
QUANTILES = 1001
"""Points at which the distribution of a class's distances is kept."""
SHARPNESS = 1.7
"""Log-likelihood lost for each unit of dispersion that an image lies outside a class; found on held-out images."""
PRIOR = 5.0
"""Images' worth of belief that distances disperse by their mean, as exponential ones do: a few images cannot tell."""
FOLDS = 5
EXACT = 600
"""Up to so many features the scatter is decomposed exactly; beyond, by chance in ``PASSES``."""
PASSES = 2
WIDEST = limits.SUMMED_FEATURES


@dataclass(frozen=True)
class Subspaces:
    """The statistics of one task's C classes in d features, as stored.

    ``means`` [C, d] float32; ``directions`` [C, d, K] half precision, orthonormal, leading ones first, zero where a
    class has fewer; ``quantiles`` [C, Q] float32: evenly spaced quantiles of the distances of a class's own images,
    left out of the fit; ``counts`` [C] float64: images of each class.
    """

    means: Tensor
    directions: Tensor
    quantiles: Tensor
    counts: Tensor

    @staticmethod
    def joined(parts: Sequence[Subspaces]) -> Subspaces:
        """The classes of all parts as one task's."""
        widest = max(part.directions.shape[2] for part in parts)
        return Subspaces(
            torch.cat([part.means for part in parts]),
            torch.cat([F.pad(part.directions, (0, widest - part.directions.shape[2])) for part in parts]),
            torch.cat([part.quantiles for part in parts]),
            torch.cat([part.counts for part in parts]),
        )

    @property
    def scale(self) -> Tensor:
        """Mean distance of a class's own images, [C]."""
        return self.quantiles.mean(dim=1)

    @property
    def dispersions(self) -> Tensor:
        """Variance over mean of the distances of a class's own images, [C] float64.

        What is left outside a subspace is noise: were it Gaussian of variance v in each of many directions, squared
        distances would have dispersion 2v, and an image's log-likelihood would be its distance over that. Busy
        backgrounds make all distances large, and this no larger.
        """
        own = self.quantiles.double()
        mean = own.mean(dim=1).clamp_min(torch.finfo(torch.float32).tiny)
        count = self.counts.double()
        return (count * own.var(dim=1, correction=0) / mean + PRIOR * mean) / (count + PRIOR)

    def distances(self, values: Tensor, of: int) -> Tensor:
        """Squared distances [N] of features [N, d] from the subspace of class ``of``, never negative; settled."""
        return settled(_outside(values.double(), self.means[of], self.directions[of]))

    def p_values(self, distances: Tensor, of: int) -> Tensor:
        """Share of the class's own images that lie at least as far away, [N] in (0, 1]; NaN below 30 images."""
        count = float(self.counts[of])
        if count < MINIMUM:
            return torch.full((len(distances),), math.nan, dtype=torch.float64)
        farther = at_least(self.quantiles[of], distances) / self.quantiles.shape[1]
        return (farther * count + 1) / (count + 1)

    def usual(self, values: Tensor, distances: Tensor, of: int) -> Tensor:
        """p-values [N] of features [N, d], which have these distances [N] from class ``of``."""
        return self.p_values(distances, of)

    def all_distances(self, values: Tensor) -> Tensor:
        """Distances [N, C] of features [N, d] from every class."""
        return torch.stack([self.distances(values, of) for of in range(len(self.means))], dim=1)

    def answered(self, values: Tensor, at: Tensor, distances: Tensor | None = None) -> Tensor:
        """p-values [N] of features [N, d] that are answered with the classes ``at`` [N]: how usual they are for these.

        ``distances`` [N, C]: those of :meth:`all_distances`, where they are known. NaN where the class has none.
        """
        found = torch.empty(len(values), dtype=torch.float64)
        for of in at.unique().tolist():
            here = at == of
            own = self.distances(values[here], of) if distances is None else distances[here, of]
            found[here] = self.usual(values[here], own, of)
        return found


def fit(values: Tensor, rank: int = RANK) -> Subspaces:
    """The subspace of one class (C = 1) from the features [n, d] of its images, n ≥ 1.

    How far new images will lie is told by images left out of the fit, a fifth at a time (Stone 1974).
    """
    n, d = values.shape
    k = privacy.rank(n, min(rank, d // 2))
    parts = [values[i::FOLDS] for i in range(min(FOLDS, n))]
    whole, *rests = _of_many(values, parts, k) if n > d <= WIDEST else _of_few(values, parts, k)
    left_out = torch.cat([_outside(part, *rest) for part, rest in zip(parts, rests, strict=True)])
    quantiles = left_out.quantile(torch.linspace(0, 1, QUANTILES, dtype=values.dtype)).float()
    mean, directions = whole
    return Subspaces(mean[None], directions[None], quantiles[None], torch.tensor([n], dtype=torch.float64))


Subspace = tuple[Tensor, Tensor]
"""Mean [d] float32 and leading directions [d, k] in half precision, as stored."""


def _of_few(values: Tensor, parts: Sequence[Tensor], k: int) -> list[Subspace]:
    """Of all features [n, d], and of all but each part."""
    found = []
    for left_out in (-1, *range(len(parts))):
        rest = [part for i, part in enumerate(parts) if i != left_out]
        own = torch.cat(rest) if rest else values
        mean = own.mean(dim=0)
        found.append((mean.float(), leading(own - mean, k, EXACT, PASSES)[1].half()))
    return found


def _of_many(values: Tensor, parts: Sequence[Tensor], k: int) -> list[Subspace]:
    """The same from the parts' scatters [d, d], which are summed up once: with more images than features a pass over
    a scatter is the shorter one."""
    centre = values.mean(dim=0)
    centred = [part - centre for part in parts]
    scatters, sums = torch.stack([x.T @ x for x in centred]), torch.stack([x.sum(dim=0) for x in centred])
    found = []
    for left_out in (None, *range(len(parts))):
        n, scatter, total = len(values), scatters.sum(dim=0), sums.sum(dim=0)
        if left_out is not None:
            n, scatter, total = n - len(parts[left_out]), scatter - scatters[left_out], total - sums[left_out]
        scatter = scatter - torch.outer(total, total) / n
        found.append(((centre + total / n).float(), of_scatter(scatter, k, EXACT)[1].half()))
    return found


def _outside(values: Tensor, mean: Tensor, directions: Tensor) -> Tensor:
    """Squared distances [N] of features [N, d] from a subspace."""
    centred = values - mean.to(values.dtype)
    inside = centred @ directions.to(values.dtype)
    return (_lengths(centred) - _lengths(inside)).clamp_min(0)


def _lengths(x: Tensor) -> Tensor:
    """Squared lengths [N] of rows [N, d], without a copy of their squares."""
    lengths: Tensor = torch.linalg.vector_norm(x, dim=1)
    return lengths.square()


@dataclass(frozen=True)
class Compared:
    """What a gate says of N images: classes ``chosen`` [N, L] and their log-likelihoods ``likely`` [N, L] float64.

    Log-likelihoods are right up to what is the same for all classes of an image.
    """

    chosen: Tensor
    likely: Tensor


@dataclass(frozen=True)
class Gate:
    """The solved gate of one input shape: S subspaces in coarse form, task after task in the order of learning.

    ``means`` [S, d], ``coarse`` [S, d, k] half precision, ``scales`` [S]: mean distance of a class's own images;
    ``owner`` [S] and ``position`` [S]: which task, and which of its classes.
    """

    means: Tensor
    coarse: Tensor
    scales: Tensor
    owner: Tensor
    position: Tensor

    @staticmethod
    def of(means: Tensor, coarse: Tensor, scales: Tensor, classes: Sequence[int]) -> Gate:
        """From the stored arrays; ``classes``: how many classes each task has."""
        owner = torch.repeat_interleave(torch.tensor(classes))
        position = torch.cat([torch.arange(count) for count in classes])
        return Gate(means, coarse, scales, owner, position)

    @property
    def unit(self) -> float:
        """Mean of the scales: what a distance is measured in."""
        return float(self.scales.double().mean().clamp_min(torch.finfo(torch.float32).tiny))

    def distances(self, values: Tensor) -> Tensor:
        """Coarse squared distances [N, S] of features [N, d], settled; never below those in full, up to rounding."""
        size, d, k = self.coarse.shape
        values = values.double()
        means, coarse = self.means.to(values.dtype), self.coarse.to(values.dtype)
        # One product for means and directions; torch.cdist would copy the features twice.
        found = values @ torch.cat([means.T, coarse.permute(1, 0, 2).reshape(d, size * k)], dim=1)
        inside = found[:, size:].reshape(len(values), size, k) - torch.einsum("sd,sdk->sk", means, coarse)
        distances: Tensor = _lengths(values)[:, None] + _lengths(means) - 2 * found[:, :size]
        return settled((distances - inside.square().sum(dim=2)).clamp_min(0))

    def shortlist(self, values: Tensor, limit: int = SHORTLIST) -> tuple[Tensor, Tensor]:
        """The ``limit`` nearest subspaces (all, if there are fewer) of features [N, d].

        Coarse distances, rising, and positions, both [N, L].
        """
        found = self.distances(values)
        return found.topk(min(limit, found.shape[1]), dim=1, largest=False)

    def shortlisted_tasks(self, values: Tensor, limit: int) -> list[int]:
        """The ``limit`` tasks that are nearest to a batch of features [N, d] of one task, in their order."""
        found = self.distances(values)
        tasks = int(self.owner.max()) + 1
        nearest = torch.full((len(values), tasks), math.inf, dtype=found.dtype)
        nearest.scatter_reduce_(1, self.owner.expand_as(found), found, "amin")
        # Each image counts up to a bound, so that a few strange ones do not decide for a batch.
        total = (nearest / self.unit).clamp(max=BOUND).sum(dim=0)
        return sorted(total.topk(min(limit, tasks), largest=False).indices.tolist())

    def compare(self, values: Tensor, statistics: Statistics) -> Compared:
        """The nearest classes of features [N, d], each image by itself."""
        coarse, chosen = self.shortlist(values)
        return Compared(
            chosen, self._likely(chosen, full_distances(self, chosen, values, statistics, coarse), statistics)
        )

    def within(self, values: Tensor, task: int, statistics: Statistics) -> Compared:
        """The C classes of one task."""
        chosen = (self.owner == task).nonzero()[:, 0].expand(len(values), -1)
        return Compared(chosen, self._likely(chosen, full_distances(self, chosen, values, statistics), statistics))

    def evidence(self, values: Tensor, tasks: Sequence[int], statistics: Statistics) -> Tensor:
        """Log-likelihoods [T] of tasks for a batch of one task, from its features [N, d].

        Each image's distance from a task's nearest class counts up to ``BOUND``, so that a few strange images do not
        outvote the others.
        """
        nearest = []
        for task in tasks:
            chosen = (self.owner == task).nonzero()[:, 0].expand(len(values), -1)
            nearest.append(full_distances(self, chosen, values, statistics).min(dim=1).values)
        noise = torch.cat([statistics(task).dispersions for task in tasks]).mean()
        each = torch.stack(nearest, dim=1).double().clamp(max=BOUND * self.unit)
        return -SHARPNESS * each.sum(dim=0) / noise

    def _likely(self, chosen: Tensor, distances: Tensor, statistics: Statistics) -> Tensor:
        """Log-likelihoods [N, L] from distances [N, L].

        Distances are measured in the mean dispersion of the shortlist, so that who is nearest stays the likeliest.
        """
        noise = torch.zeros(len(self.owner), dtype=torch.float64)
        for task in self.owner[chosen].unique().tolist():
            own = statistics(task).dispersions
            here = (self.owner == task).nonzero()[:, 0]
            noise[here] = own[self.position[here]]
        return -SHARPNESS * distances.double() / noise[chosen].mean(dim=1, keepdim=True)


Statistics = Callable[[int], Subspaces]
"""Gives the statistics of the task at a position; it is called for tasks that are compared, and reads no other."""


BOUND = 30.0
"""Distance, in units of the gate, beyond which an image says nothing more against a task of its batch."""


def full_distances(
    gate: Gate, chosen: Tensor, values: Tensor, statistics: Callable[[int], Subspaces], coarse: Tensor | None = None
) -> Tensor:
    """Distances [N, L] of features [N, d] from the shortlisted subspaces ``chosen`` [N, L], in full.

    ``statistics(task)`` is called for tasks on the shortlist alone, so that nothing else is read. ``coarse`` [N, L]:
    their coarse distances, which stay for subspaces that are ``FAR``.
    """
    found = torch.empty(chosen.shape, dtype=torch.float64) if coarse is None else coarse.clone()
    left_out = -1
    near = chosen if coarse is None else chosen.where(coarse <= FAR * coarse.amin(dim=1, keepdim=True), left_out)
    for one in near.unique().tolist():
        if one == left_out:
            continue
        rows, columns = (near == one).nonzero(as_tuple=True)
        own = statistics(int(gate.owner[one]))
        found[rows, columns] = own.distances(values.index_select(0, rows), int(gate.position[one]))
    return found
