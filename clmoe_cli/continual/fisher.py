"""Whitened deviation: Mahalanobis distance of a subnetwork's hidden activations to the class means.

The activation factor of the Fisher matrix in Kronecker form (K-FAC, Martens & Grosse 2015) contains this
distance, and it carries the evidence (method section 3). One covariance is tied over the task's classes
(Lee et al. 2018); its leading directions are kept, the rest shares one variance, which is the shrinkage
(probabilistic PCA, Tipping & Bishop 1999).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.continual.experts import forward
from clmoe_cli.continual.training import Labelled

RANK = 32


@dataclass(frozen=True)
class Gaussian:
    """Class means [C, d], leading directions [d, k], their variances [k], variance of the rest.

    d is the number of hidden units of all layers together. Float32, as stored.
    """

    means: Tensor
    directions: Tensor
    variances: Tensor
    rest: Tensor

    def distances(self, hidden: Tensor) -> Tensor:
        """Squared Mahalanobis distance of activations [N, d] to each class mean, [N, C], float64.

        In the whitened coordinates the distance is Euclidean: k products an image instead of d.
        """
        weight = self.directions.double() * self.variances.double().rsqrt()
        inside = hidden.double() @ weight
        means_inside = self.means.double() @ weight
        near = torch.cdist(inside, means_inside).square()
        # What lies outside the leading directions: the whole minus the part inside, never negative.
        flat = hidden.double() @ self.directions.double()
        flat_means = self.means.double() @ self.directions.double()
        whole = torch.cdist(hidden.double(), self.means.double()).square()
        outside = (whole - torch.cdist(flat, flat_means).square()).clamp_min(0.0)
        return near + outside / self.rest.double()

    def deviation(self, hidden: Tensor) -> Tensor:
        """Distance to the nearest class, per degree of freedom, [N] float64."""
        return self.distances(hidden).min(dim=1).values / self.means.shape[1]


def fit(params: Mapping[str, Tensor], data: Labelled, classes: int, rank: int = RANK) -> Gaussian:
    """Fits the Gaussian to the activations of the task's own training images."""
    hidden = hidden_activations(params, data.x).double()
    sums = torch.zeros(classes, hidden.shape[1], dtype=torch.float64).index_add_(0, data.y, hidden)
    means = sums / torch.bincount(data.y, minlength=classes).clamp_min(1)[:, None]
    centred = hidden - means[data.y]
    covariance = centred.T @ centred / max(1, len(hidden) - classes)
    values, vectors = torch.linalg.eigh(covariance)
    k = min(rank, len(values) - 1)
    top, vectors = values[-k:].flip(0), vectors[:, -k:].flip(1)
    # Units that never fire have no variance: the mean over the rest keeps them from dividing by zero.
    rest = (values[:-k].clamp_min(0).sum() / (len(values) - k)).clamp_min(1e-6 * values[-1].clamp_min(1e-12))
    return Gaussian(means.float(), vectors.float(), torch.maximum(top, rest).float(), rest.float())


def hidden_activations(params: Mapping[str, Tensor], x: Tensor, chunk: int = 4096) -> Tensor:
    """Hidden activations [N, d] of all layers side by side."""
    with torch.inference_mode():
        return torch.cat([forward(params, part).hidden for part in x.split(chunk)])
