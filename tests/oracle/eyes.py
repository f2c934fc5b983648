"""The slow, obvious reference of what an eye sees: loops over filters and places in float64."""

from __future__ import annotations

import math

import numpy as np


def seen(
    image: np.ndarray, filters: np.ndarray, offsets: np.ndarray, level: float, flat: float, scale: float
) -> np.ndarray:
    """Features [2 · k · 4] of an image [C, H, W] by filters [k, C, s, s].

    The four windows overlap where sides are odd.
    """
    k, _, side, _ = filters.shape
    rows, columns = image.shape[1] - side + 1, image.shape[2] - side + 1
    answers = np.zeros((2 * k, rows, columns))
    for i in range(rows):
        for j in range(columns):
            patch = image[:, i : i + side, j : j + side]
            contrast = math.sqrt(patch.var() + flat)
            for f in range(k):
                response = float((filters[f] * (patch - patch.mean())).sum()) / contrast - offsets[f]
                answers[f, i, j] = max(0.0, response - level)
                answers[k + f, i, j] = max(0.0, -response - level)
    found = []
    for one in answers:
        for top in (slice(0, math.ceil(rows / 2)), slice(rows // 2, rows)):
            for left in (slice(0, math.ceil(columns / 2)), slice(columns // 2, columns)):
                found.append(math.sqrt(one[top, left].mean()))
    whole = np.array(found)
    return scale * whole / max(1e-12, math.sqrt((whole**2).sum()))


def whitening(centred: np.ndarray, faint: float) -> np.ndarray:
    """The symmetric inverse root [p, p] of the covariance of patches [n, p] without mean, ``faint`` on its diagonal.

    By Newton's iteration (Denman & Beavers 1976), without a decomposition.
    """
    size = centred.shape[1]
    y, z = centred.T @ centred / len(centred) + faint * np.eye(size), np.eye(size)
    for _ in range(60):
        y, z = (y + np.linalg.inv(z)) / 2, (z + np.linalg.inv(y)) / 2
    return z


def grouped(patches: np.ndarray, first: np.ndarray, rounds: int) -> tuple[list[int], np.ndarray]:
    """Group of each patch [n, p] and the groups' means of unit length [k, p], from the means ``first``; signs do not
    count."""
    middles = first / np.linalg.norm(first, axis=1, keepdims=True)
    groups: list[int] = []
    for _ in range(rounds):
        groups, sums = [], np.zeros_like(middles)
        for patch in patches:
            angles = [float(patch @ middle) for middle in middles]
            best = max(range(len(middles)), key=lambda g: abs(angles[g]))
            groups.append(best)
            sums[best] += math.copysign(1.0, angles[best]) * patch
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        middles = np.where(lengths > 0, sums / np.where(lengths > 0, lengths, 1.0), middles)
    return groups, middles
