"""The slow, obvious reference of the window statistic: loops over images and features in float64."""

from __future__ import annotations

import math

import numpy as np


def deviate(reference: np.ndarray, window: np.ndarray) -> float:
    """Hotelling's two-sample T² of features [n, d] and [m, d], by Paulson's formula as a standard normal deviate."""
    n, m, d = len(reference), len(window), reference.shape[1]
    before, after = reference.mean(axis=0), window.mean(axis=0)
    within = np.zeros((d, d))
    for row in reference:
        within += np.outer(row - before, row - before)
    for row in window:
        within += np.outer(row - after, row - after)
    within /= n + m - 2
    within += 1e-3 * np.trace(within) / d * np.eye(d)
    t2 = n * m / (n + m) * (after - before) @ np.linalg.inv(within) @ (after - before)
    f = t2 * (n + m - d - 1) / (d * (n + m - 2))
    a, b = 2 / (9 * d), 2 / (9 * (n + m - d - 1))
    return float(((1 - b) * f ** (1 / 3) - (1 - a)) / math.sqrt(b * f ** (2 / 3) + a))


def features(first: np.ndarray, x: np.ndarray, rank: int) -> np.ndarray:
    """Features of images [N, D] to a segment whose view rests on the images ``first`` [n, D]; signs are free."""
    mean, spread = first.mean(axis=0), first.std(axis=0, ddof=1)
    spread = np.maximum(spread, 1e-3 * math.sqrt((spread**2).mean()))
    scaled = np.clip((first - mean) / spread, -5, 5)
    variances, vectors = np.linalg.eigh(scaled.T @ scaled / len(first))
    order = variances.argsort()[::-1][: min(rank, len(first) // 4, x.shape[1])]
    rows = []
    for image in x:
        z = np.clip((image - mean) / spread, -5, 5)
        flat = [float(z @ vectors[:, i]) for i in order]
        white = [c / math.sqrt(variances[i]) for c, i in zip(flat, order, strict=True)]
        inside = sum(w * w for w in white) / len(white)
        outside = max(0.0, sum(z * z) - sum(c * c for c in flat)) / len(z)
        cut = [min(3.0, max(-3.0, w)) for w in white]
        rows.append([*cut, math.log(max(inside, 1e-6)), math.log(max(outside, 1e-6))])
    return np.array(rows)
