"""Small pictures for the tests: each class is a bar at an angle of its own, moved, stretched and noisy."""

from __future__ import annotations

import numpy as np

SIDE = 16


def bars(classes: list[int], n: int, seed: int, side: int = SIDE) -> tuple[np.ndarray, np.ndarray]:
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
