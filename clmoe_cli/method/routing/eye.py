"""An eye: filters made from patches of the first task's images, which then look at the images of every task.

No label is used and nothing is trained. Random patches are brought to one contrast and whitened; spherical k-means puts
them into groups by the angle between them, whatever its sign (Coates & Ng, "The Importance of Encoding Versus
Training with Sparse Coding and Vector Quantization", 2011). The mean of a group is a filter. What an image answers to
the filters beyond a threshold, above it and below its negative, is averaged over windows; the square roots of these
means are scaled to unit length.

A filter is the mean of a group of patches of at least ``privacy.LEAST`` images; a group of fewer gives the filter zero.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method import privacy

SIDE = 6
"""Pixels of a patch's side."""
FILTERS = 256
PATCHES = 50_000
FLAT = 10 / 255**2
"""Variance of a patch below which its contrast is left as it is, of pixels from 0 to 1."""
FAINT = 0.1
"""Added to the variances of patches of one contrast before they are whitened."""
ROUNDS = 10
THRESHOLD = 0.5
"""In deviations of the responses to the first task's patches."""
GRID = 2
"""Windows along each side of an image."""
WIDTH = 2 * FILTERS * GRID**2
"""Number of features."""
IMAGES = 4000
"""Images that an eye is made from, at most."""
SCALE = 0.5
"""Length of the eye's part beside the fixed features, whose two parts have unit length."""


@dataclass(frozen=True)
class Eye:
    """``filters`` [k, C, SIDE, SIDE] and ``offsets`` [k], float32; ``level``: the threshold."""

    filters: Tensor
    offsets: Tensor
    level: float

    @property
    def width(self) -> int:
        """Number of features."""
        return WIDTH

    def look(self, x: Tensor) -> Tensor:
        """Features [N, WIDTH] float64 of images [N, C, H, W], of length ``SCALE``."""
        filters = self.filters.to(x.dtype)
        box = torch.full((1, *filters.shape[1:]), 1 / filters[0].numel(), dtype=x.dtype)
        middle, squares = F.conv2d(x, box), F.conv2d(x.square(), box)
        contrast = ((squares - middle.square()).clamp_min(0) + FLAT).sqrt()
        found = F.conv2d(x, filters) / contrast - self.offsets.to(x.dtype)[:, None, None]
        both = torch.cat([(found - self.level).relu(), (-found - self.level).relu()], dim=1)
        means = (both.flatten(2).double() @ _windows(*both.shape[-2:])).flatten(1)
        return SCALE * F.normalize(means.sqrt())


def fit(x: Tensor, rng: torch.Generator) -> Eye:
    """The eye of images [N, C, H, W], drawn with ``rng``."""
    image, patches = drawn(x, rng)
    seen = even(patches)
    mean = seen.mean(dim=0)
    white = whitening(seen - mean)
    groups, middles = grouped((seen - mean) @ white, rng)
    # One number for each pair of a group and an image that is in it.
    pairs = torch.unique(groups * len(x) + image)
    images = torch.bincount(pairs // len(x), minlength=FILTERS)
    middles = middles.where((images >= privacy.LEAST)[:, None], 0.0)
    weights = middles @ white
    offsets = weights @ mean
    level = THRESHOLD * float((seen @ weights.T - offsets).std())
    # Filters without a mean do not see that of a patch.
    filters = (weights - weights.mean(dim=1, keepdim=True)).reshape(FILTERS, -1, SIDE, SIDE)
    return Eye(filters.float(), offsets.float(), level)


def drawn(x: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """The image [n] and the pixels [n, C · SIDE²] float64 of ``PATCHES`` random patches of images [N, C, H, W]."""
    image = torch.randint(len(x), (PATCHES,), generator=rng)
    top, left = (torch.randint(size - SIDE + 1, (PATCHES,), generator=rng) for size in x.shape[2:])
    return image, x.unfold(2, SIDE, 1).unfold(3, SIDE, 1)[image, :, top, left].flatten(1).double()


def even(patches: Tensor) -> Tensor:
    """Patches [n, p] without their mean and of one contrast."""
    centred = patches - patches.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + FLAT).sqrt()


def whitening(centred: Tensor) -> Tensor:
    """What gives patches [n, p] without mean about unit variance in every direction, [p, p]; symmetric."""
    variances, axes = torch.linalg.eigh(centred.T @ centred / len(centred))
    found: Tensor = (axes * (variances.clamp_min(0) + FAINT).rsqrt()) @ axes.T
    return found


def grouped(patches: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Group [n] of whitened patches [n, p], and the groups' means of unit length [FILTERS, p]; signs do not count."""
    units = F.normalize(patches)
    middles = units[torch.randperm(len(units), generator=rng)[:FILTERS]]
    for _ in range(ROUNDS):
        nearest, sign = _nearest(units, middles)
        sums = torch.zeros_like(middles).index_add_(0, nearest, patches * sign[:, None])
        some = torch.bincount(nearest, minlength=FILTERS) > 0
        middles = F.normalize(sums).where(some[:, None], middles)
    return nearest, middles


def _nearest(units: Tensor, middles: Tensor) -> tuple[Tensor, Tensor]:
    found = units @ middles.T
    nearest = found.abs().argmax(dim=1)
    return nearest, found.gather(1, nearest[:, None])[:, 0].sign()


@cache
def _windows(height: int, width: int) -> Tensor:
    """Weights [height · width, GRID²] float64 of the windows' means, which overlap where sides are odd."""
    return torch.kron(_along(height), _along(width)).T.contiguous()


def _along(n: int) -> Tensor:
    weights = torch.zeros(GRID, n, dtype=torch.float64)
    for i in range(GRID):
        weights[i, i * n // GRID : -(-(i + 1) * n // GRID)] = 1.0
    return weights / weights.sum(dim=1, keepdim=True)
