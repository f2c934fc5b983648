"""Whitened deviation: Mahalanobis distance of what a subnetwork's layers read to the class means.

The activation factor of the Fisher matrix in Kronecker form (K-FAC, Martens & Grosse 2015) contains this
distance, and it carries the evidence (method section 3). One covariance is tied over the task's classes
(Lee et al. 2018); its leading directions are kept, the rest shares one variance, which is the shrinkage
(probabilistic PCA, Tipping & Bishop 1999).

Two blocks are whitened apart: the inputs, which the first layer reads, and the hidden activations, which the
others read. A sparse subnetwork looks at few pixels, so strange images can leave its hidden units as
they are; the inputs then tell. The larger of the two deviations counts, each in units of the task's own spread.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method import privacy
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import Network, traced
from clmoe_cli.method.reproducible import settled
from clmoe_cli.method.routing.rounding import rounded
from clmoe_cli.runtime import limits

RANKS = {"inputs": 32, "hidden": 128}
"""Leading directions kept of each block; found on MNIST training images (docs/method.md)."""

MOST = limits.WHITENED_NUMBERS

EXACT = 2048
"""Up to so many dimensions the covariance is decomposed exactly."""

TINY = 1e-12
FARTHEST = 80.0
"""Largest logarithm of a deviation: of units that never vary any difference is beyond what float32 holds."""


@dataclass(frozen=True)
class Gaussian:
    """Class means [C, d], leading directions [d, k], their variances [k], variance of the rest [].

    d is the width of the block. Float32, the directions rounded (:mod:`.rounding`), as stored.
    """

    means: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor

    def distances(self, values: Tensor) -> Tensor:
        """Squared Mahalanobis distance of values [N, d] to each class mean, [N, C], float64.

        In the whitened coordinates the distance is Euclidean: k products an image instead of d.
        """
        values, means, directions = values.double(), self.means.double(), self.directions.double()
        flat, flat_means = values @ directions, means @ directions
        scale = self.variances.double().rsqrt()
        near = _squares(flat * scale, flat_means * scale)
        # What lies outside the leading directions: the whole minus the part inside, never negative.
        outside = _squares(values, means) - _squares(flat, flat_means)
        return near + outside.clamp_min(0.0) / self.rest.double()

    def deviation(self, values: Tensor) -> Tensor:
        """Distance to the nearest class, per degree of freedom, [N] float64."""
        return self.distances(values).min(dim=1).values / self.means.shape[1]


@dataclass(frozen=True)
class Whitening:
    """A :class:`Gaussian` for each block; mean and spread [2] of each block's log deviations on held-out images."""

    blocks: Mapping[str, Gaussian]
    standard: Mapping[str, Tensor]

    def deviation(self, inputs: Tensor, hidden: Tensor) -> Tensor:
        """Deviation of each image [N], float64, 1 for a typical one: the larger block's, in units of its spread.

        ``inputs`` [N, D'] and ``hidden`` [N, d] as :func:`blocks` has them.
        """
        values = {"inputs": inputs, "hidden": hidden}
        units = [
            (_logs(gaussian, values[name]) - self.standard[name][0]) / self.standard[name][1]
            for name, gaussian in self.blocks.items()
        ]
        return torch.stack(units).max(dim=0).values.clamp_max(FARTHEST).exp()


def fit(net: Network, params: Mapping[str, Tensor], training: Labelled, held_out: Labelled, classes: int) -> Whitening:
    """Fits the Gaussians to a task's training images, and their standard to its held-out ones (at least one).

    Held-out images are among those of the gate's means. Noise on the means here keeps the difference of both from
    giving a single one of them away.
    """
    widest = max(value.shape[1] for value in blocks(net, params, held_out.subsample(1)).values())
    training = training.subsample(max(1, MOST // widest))
    values, held = blocks(net, params, training), blocks(net, params, held_out)
    draw, y = privacy.drawing(training.x), training.y.cpu()
    gaussians, standard = {}, {}
    for name, rank in RANKS.items():
        fitted = fit_gaussian(values[name], y, classes, rank)
        added = privacy.one_more(values[name], y, classes, draw)
        gaussian = replace(fitted, means=(fitted.means.double() + added).float())
        logs = _logs(gaussian, held[name])
        gaussians[name] = gaussian
        standard[name] = torch.stack([logs.mean(), logs.std(correction=0).clamp_min(1e-3)])
    return Whitening(gaussians, standard)


def fit_gaussian(values: Tensor, y: Tensor, classes: int, rank: int) -> Gaussian:
    """Probabilistic PCA of values [N, d] about the means of their classes, N ≥ 1.

    Classes of few images have a mean together, or that of the others (:func:`privacy.groups`).
    """
    means, centred, freedom = privacy.grouped(values.double(), y, classes)
    k = min(privacy.rank(freedom, rank), values.shape[1] - 1)
    freedom = max(1, freedom)
    top, vectors = leading(centred, k)
    top, whole = top / freedom, centred.square().sum() / freedom
    # Units that never fire have no variance: the mean over the rest keeps them from dividing by zero.
    # Without directions, all of the variance is the rest.
    floor = 1e-6 * (top.max() if k else whole).clamp_min(TINY)
    rest = ((whole - top.sum()).clamp_min(0) / (means.shape[1] - k)).clamp_min(floor)
    stored = rounded(vectors, top, float(rest)).float()
    return Gaussian(means.float(), stored, torch.maximum(top, rest).float(), rest.float())


def leading(centred: Tensor, k: int, exact: int = EXACT, passes: int = 4) -> tuple[Tensor, Tensor]:
    """The ``k`` largest eigenvalues [k] and eigenvectors [d, k] of ``centredᵀ centred``, [N, d] of any float type.

    Exact up to ``exact`` dimensions; beyond, a randomised decomposition in so many ``passes`` (Halko et al. 2011),
    since the exact one takes d³ steps. Fewer images than ``k`` leave eigenvalues of zero.
    """
    n, d = centred.shape
    if d <= exact:
        # In float32 the decomposition of a scatter of few images may end with NaN, and does not say so.
        return of_scatter((centred.T @ centred).double(), k, exact)
    singular, vectors = _low_rank(centred, min(n, d, k + 16), passes)
    missing = max(0, k - len(singular))
    return F.pad(singular[:k].square(), (0, missing)), F.pad(vectors[:, :k], (0, missing))


def of_scatter(scatter: Tensor, k: int, exact: int = EXACT) -> tuple[Tensor, Tensor]:
    """The same of a scatter matrix [d, d]; one pass over it is worth two over the images."""
    d = len(scatter)
    if d <= exact:
        values, vectors = torch.linalg.eigh(scatter)
        return values[d - k :].flip(0).clamp_min(0), vectors[:, d - k :].flip(1)
    values, vectors = _low_rank(scatter, min(d, k + 16), 1)
    return values[:k], vectors[:, :k]


def _low_rank(matrix: Tensor, q: int, passes: int) -> tuple[Tensor, Tensor]:
    with torch.random.fork_rng(devices=[]):
        # On the processor alone: torch.manual_seed notes for each card, with a traceback, what it is to do later.
        seed = torch.default_generator.manual_seed if matrix.device.type == "cpu" else torch.manual_seed
        seed(0)
        _, singular, vectors = torch.svd_lowrank(matrix, q=q, niter=passes)
    return singular, vectors


def blocks(net: Network, params: Mapping[str, Tensor], data: Labelled) -> dict[str, Tensor]:
    """What is whitened: ``inputs`` [N, D'] and ``hidden`` [N, d], what the layers after the first read.

    Of convolutions the mean over the positions of each channel.
    """
    parts = [(net.inputs(x), done.hidden(net.reading).cpu()) for x, done in traced(net, params, data.x)]
    inputs, hidden = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"inputs": inputs, "hidden": hidden}


def _squares(x: Tensor, y: Tensor) -> Tensor:
    """Squared distances [N, C] of rows [N, d] and [C, d], from their differences: by products, near ones are noise."""
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist").square()


def _logs(gaussian: Gaussian, values: Tensor) -> Tensor:
    # Settled, since a narrow spread makes much of a small difference.
    return settled(gaussian.deviation(values)).clamp_min(TINY).log()
