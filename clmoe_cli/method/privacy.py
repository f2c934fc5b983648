"""What statistics of few images must not tell (method section "What is stored of the data").

The mean of n images tells 1/n of what sets one of them apart from its class, and the mean of one image is the image. So
a class of fewer than ``LEAST`` images has no mean as measured:

- The gate needs a mean of each class. Noise is added to it, of so much variance that it tells no more of an image than
  the mean of ``LEAST`` images does. Noise like the differences between images hides best, since nothing that is
  known of images parts the two; it needs enough of these. Of too few, the noise is even.
- The other statistics do with the mean of the small classes together, or with that of the other classes.

Directions are told apart best where there are as many as images (independent component analysis). So a covariance
has one direction for every ``IMAGES_EACH`` images, and of fewer than twice ``LEAST`` none: the first direction of
few is much like the image that is farthest out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from clmoe_cli.method.images import Rows
from clmoe_cli.runtime import limits

LEAST = 8
"""Images that a mean or a direction rests on, at least."""
IMAGES_EACH = 4
"""Images for each direction of a covariance."""
CHUNK = limits.PASS_IMAGES

Draw = Callable[[int, int], Tensor]
"""Gives standard normal numbers [n, d] float64, by a generator that the store cannot tell."""


def drawing(x: Rows) -> Draw:
    """Standard normal numbers that only who has all of the images [N, D] can draw again.

    A seed from the store would take the noise off again, as would trying the 2³² seeds of a torch generator. The same
    images give the same numbers, so that the same learn ends with the same bits.
    """
    digest = hashlib.sha256()
    for part in x.split(CHUNK):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    rng = np.random.Generator(np.random.Philox(key=int.from_bytes(digest.digest()[:16], "big")))
    return lambda n, d: torch.from_numpy(rng.standard_normal((n, d)))


def groups(counts: Tensor) -> Tensor:
    """Whose mean each class has, [C], from how many images [C] it has: its own position, C or −1.

    C: that of all small classes together. −1: there are too few of these, and theirs is that of all other images. Were
    the few among these, the other classes' means would tell them apart again.
    """
    small = (counts > 0) & (counts < LEAST)
    found = torch.arange(len(counts))
    found[small] = len(counts) if int(counts[small].sum()) >= LEAST else -1
    return found


def grouped(values: Tensor, y: Tensor, classes: int) -> tuple[Tensor, Tensor, int]:
    """Means [C, d] of values [n, d] of images with class y [n], n ≥ 1, by :func:`groups`; with them the values [m, d]
    that are in a mean, less it, and their number less that of the means. A class without images has a mean of zero.

    Of fewer than ``LEAST`` images all means are one number, that of all values, and the values are less it.
    """
    group = groups(torch.bincount(y, minlength=classes))
    used = group[y] >= 0
    if not bool(used.any()):
        mean = values.mean()
        return mean.expand(classes, values.shape[1]).clone(), values - mean, 0
    values, own = values[used], group[y[used]]
    counts = torch.bincount(own, minlength=classes + 1)
    sums = torch.zeros(classes + 1, values.shape[1], dtype=values.dtype).index_add_(0, own, values)
    each = sums / counts.clamp_min(1)[:, None]
    means = torch.where((group >= 0)[:, None], each[group.clamp_min(0)], values.mean(dim=0))
    return means, values - each[own], len(values) - int((counts > 0).sum())


def rank(images: int, most: int) -> int:
    """How many directions, at most ``most``, a covariance of so many images has; one less for each of its means."""
    return min(most, images // IMAGES_EACH) if images >= 2 * LEAST else 0


def share(counts: Tensor) -> Tensor:
    """Variance of the noise [C] on the means of classes with ``counts`` [C] images, in variances within the class.

    The mean of k images and noise of variance s² have the correlation (1/k) / √(1/k + s²) with one of the images;
    it is that of ``LEAST`` images without noise, 1/√LEAST, where s² = (LEAST − k) / k².
    """
    k = counts.double()
    return ((LEAST - k) / k.clamp_min(1).square()).where((k > 0) & (k < LEAST), 0.0)


def noise(values: Tensor, y: Tensor, classes: int, draw: Draw) -> Tensor:
    """What is added to the means of features [n, d] of images with class y [n], [C, d] float64.

    Zero for classes of ``LEAST`` images or more.
    """
    return _like_images(values, y, share(torch.bincount(y, minlength=classes)), draw)


def one_more(values: Tensor, y: Tensor, classes: int, draw: Draw) -> Tensor:
    """The same for means that are known of one image more or less as well, [C, d] float64: n times their difference
    tells of this image no more than the mean of ``LEAST`` does. Zero for smaller classes."""
    counts = torch.bincount(y, minlength=classes)
    size = ((LEAST - 1) / counts.clamp_min(1).double().square()).where(counts >= LEAST, 0.0)
    return _like_images(values, y, size.clamp_min(0), draw)


def _like_images(values: Tensor, y: Tensor, variance: Tensor, draw: Draw) -> Tensor:
    """Noise [C, d] of ``variance`` [C] variances within classes, like the differences between images if enough."""
    found = torch.zeros(len(variance), values.shape[1], dtype=torch.float64)
    noisy = (variance > 0).nonzero()[:, 0]
    if not len(noisy):
        return found
    values, counts = values.double(), torch.bincount(y, minlength=len(variance))
    sums = torch.zeros_like(found).index_add_(0, y, values)
    inside = values - (sums / counts.clamp_min(1)[:, None])[y]
    freedom = len(values) - int((counts > 0).sum())
    if freedom >= max(2 * LEAST, len(noisy)):
        found[noisy] = draw(len(noisy), len(values)) @ inside / freedom**0.5
    else:
        # From fewer differences between images than means, either could be read back.
        centre = values.mean(dim=0) if len(values) >= LEAST else values.mean()
        found[noisy] = draw(len(noisy), values.shape[1]) * (values - centre).square().mean().sqrt()
    return found * variance.sqrt()[:, None]
