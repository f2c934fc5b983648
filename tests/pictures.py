"""The images, vectors and tables that tests make up, and batches of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from clmoe_cli.data import Batch
from clmoe_cli.method.images import Labelled

SIDE = 16
Places = list[tuple[int, int]]
Images = tuple[np.ndarray, np.ndarray]
"""Images [n, …], and their classes or labels [n]."""


def bars(classes: list[int], n: int, seed: int, side: int = SIDE) -> Images:
    """uint8 images [n, side, side] and their classes [n], out of the classes 0 to 11, in an order of chance."""
    rng = np.random.default_rng(seed)
    y = np.array(classes)[rng.permutation(np.arange(n) % len(classes))]
    angle = np.pi * y / 12 + rng.normal(0, 0.03, n)
    at = np.arange(side) - (side - 1) / 2
    shift = rng.normal(0, 0.6, (2, n, 1, 1))
    down, across = at[None, :, None] - shift[0], at[None, None, :] - shift[1]
    along = across * np.cos(angle)[:, None, None] + down * np.sin(angle)[:, None, None]
    beside = down * np.cos(angle)[:, None, None] - across * np.sin(angle)[:, None, None]
    length = rng.uniform(4, 6, (n, 1, 1))
    x = 220 * np.exp(-((along / length) ** 4) - (beside / 1.3) ** 2) + 12 * rng.random((n, side, side))
    return x.clip(0, 255).astype(np.uint8), y


def batch(classes: Sequence[int], n: int = 300, seed: int = 0, side: int = SIDE) -> Batch:
    """:func:`bars` as images [n, 1, side, side]."""
    x, y = bars(list(classes), n, seed, side)
    return Batch(x[:, None], y, f"bars {classes}")


def bright_rows(classes: list[int], n: int, seed: int) -> Images:
    """uint8 images [n, 1, 12, 12] with a bright row whose place is the class."""
    rng = np.random.default_rng(seed)
    y = np.array(classes)[np.arange(n) % len(classes)]
    x = 60 * rng.random((n, 1, 12, 12))
    x[np.arange(n), 0, y] += 180
    return x.astype(np.uint8), y


def blobs(places: Places, n: int, seed: int, size: int = 8) -> Images:
    """uint8 images [n, size, size], dark but for a blob whose place is the class, and the classes' positions [n]."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % len(places)
    rows, columns = np.mgrid[:size, :size]
    bright = np.stack([np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 3.0) for r, c in places])
    x = 200 * bright[y] + 45 * rng.random((n, size, size))
    return x.clip(0, 255).astype(np.uint8), y


def mixed_blobs(n: int, places: Places, labels: list[int], seed: int) -> Images:
    """uint8 images [n, 8, 8] with a bright place for each label, in random order."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, len(labels), n)
    rows, columns = np.mgrid[:8, :8]
    bright = np.stack([np.exp(-((rows - r) ** 2 + (columns - c) ** 2) / 3.0) for r, c in places])
    x = 200 * bright[y] + 45 * rng.random((n, 8, 8))
    return x.clip(0, 255).astype(np.uint8), np.array(labels)[y]


def spots(centres: list[int], first: int, n: int, seed: int) -> Batch:
    """Noisy 8×8 images with one bright pixel, whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(centres)
    x = rng.random((n, 64), dtype=np.float32) * 0.4
    x[np.arange(n), np.array(centres)[labels]] += 0.7
    return Batch(x, labels + first, f"spots {centres}")


def halves(n: int, shape: tuple[int, ...]) -> Batch:
    """uint8 images of two classes, bright in the upper or in the lower half."""
    rng = np.random.default_rng(n)
    y = np.arange(n) % 2
    x = rng.integers(0, 100, (n, *shape), dtype=np.uint8)
    half = shape[-2] // 2
    x[y == 0, ..., :half, :] += 100
    x[y == 1, ..., half:, :] += 100
    return Batch(x, y, "here")


def noisy_bars(classes: tuple[int, ...], part: int) -> Batch:
    """Bars, so noisy that some are mistaken."""
    x, y = bars(list(classes), 300, part)
    noise = np.random.default_rng(part).normal(0, 45, x.shape)
    return Batch((x / 3 + 60 + noise).clip(0, 255).astype(np.uint8)[:, None], y, "bars")


def tinted_bars(classes: list[int], n: int, seed: int) -> Images:
    x, y = bars(classes, n, seed, side=13)
    tint = np.random.default_rng(seed).uniform(0.3, 1.0, (n, 3, 1, 1))
    return (tint * x[:, None]).astype(np.uint8), y


def sparse_vectors(classes: list[int], n: int, seed: int) -> Images:
    """37 numbers, of which few are other than zero: widths at which products hang on the place of a row."""
    rng = np.random.default_rng(seed)
    y = rng.permutation(np.arange(n) % len(classes))
    centres = np.random.default_rng(0).normal(0, 1, (12, 37)) * (np.random.default_rng(1).random((12, 37)) < 0.3)
    return (centres[np.array(classes)[y]] + 0.3 * rng.normal(0, 1, (n, 37))).astype(np.float32), np.array(classes)[y]


UNITS = np.float32([1e-3, 1, 30, 1e4, 1, 0.2, 1e-5, 7])


def table(classes: tuple[int, ...], n: int, seed: int, units: np.ndarray = UNITS) -> Batch:
    """Rows of columns with these units. What tells the classes apart is in the columns of the smallest ones."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).choice([-3.0, 3.0], (8, len(units)))
    centres[:, units > 20] = 0.0
    y = rng.permutation(np.array(classes)[np.arange(n) % len(classes)])
    x = (centres[y] + 5 + rng.normal(0, 1, (n, len(units)))) * units
    return Batch(x.astype(np.float32), y, "table")


def two_clouds(n: int, seed: int, labels: tuple[object, object], shift: float = 0.0, width: int = 6) -> Batch:
    """Vectors [n, width] of two classes that are far apart."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % 2
    x = rng.normal(size=(n, width)) * 0.2 + np.where(y, 1.0, -1.0)[:, None] + shift
    return Batch(x.astype(np.float32), np.array(labels)[y], "blobs")


def patches(centres: list[int], n: int, seed: int) -> Labelled:
    """Images of 36 pixels with a bright patch at a place that depends on the class."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % len(centres)
    pixels = torch.arange(36)
    bright = torch.stack([torch.exp(-((pixels - c) ** 2) / 8.0) for c in centres])
    return Labelled((bright[y] + 0.15 * torch.rand((n, 36), generator=rng)).clamp(0, 1), y)


def labelled_bars(n: int, dtype: torch.dtype, seed: int = 5) -> Labelled:
    x, y = bars([0, 4, 8], n, seed)
    return Labelled(torch.from_numpy(x.reshape(n, -1)).to(dtype) / 255, torch.from_numpy(y // 4))


def stripes(n: int, seed: int, bright: int) -> Labelled:
    """Images [n, 2·8·8] whose class is the direction of their stripes in one of the channels."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.3 * torch.rand((n, 2, 8, 8), generator=rng)
    wave = (torch.arange(8) % 4 < 2).float()
    x[:, bright] += torch.where(y[:, None, None] == 0, wave[None, :, None], wave[None, None, :])
    return Labelled(x.flatten(1), y)


def turned_clouds(classes: int, n: int, seed: int, width: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Features [n, width] and classes [n]; each class spreads in directions of its own, less and less in each."""
    shape = torch.Generator().manual_seed(1)
    centres = torch.randn((classes, width), generator=shape) / width**0.5
    turned = torch.linalg.qr(torch.randn((classes, width, width), generator=shape)).Q
    spread = 1 / torch.arange(1, width + 1)
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    values = spread * torch.randn((n, width), generator=rng)
    for c in range(classes):
        values[y == c] = centres[c] + values[y == c] @ turned[c].T
    return values, y


def ramps(n: int, rng: torch.Generator) -> Labelled:
    """Images [n, 12] of two classes, of which one grows brighter from pixel to pixel."""
    y = torch.arange(n) % 2
    x = torch.rand((n, 12), generator=rng) + y[:, None] * torch.linspace(0, 1, 12)
    return Labelled(x, y)


def family(centre: torch.Tensor, n: int, rng: torch.Generator) -> Labelled:
    """Images [n, D] around two centres [2, D]."""
    y = torch.arange(n) % 2
    return Labelled(centre[y] + 0.3 * torch.randn((n, centre.shape[1]), generator=rng), y)
