"""The slow, obvious references of the gate: loops over images, windows and classes in float64."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor


def gabor(size: int, number: int, of: int, cycles: float) -> np.ndarray:
    """One complex filter [size, size] without mean, real and imaginary part of unit length."""
    envelope, wave = np.zeros((size, size)), np.zeros((size, size), dtype=complex)
    angle, middle = math.pi * number / of, size // 2
    for i in range(size):
        for j in range(size):
            y, x = i - middle, j - middle
            envelope[i, j] = math.exp(-(x * x + y * y) / (2 * (size / 5) ** 2))
            phase = 2 * math.pi * cycles / size * (x * math.cos(angle) + y * math.sin(angle))
            wave[i, j] = envelope[i, j] * complex(math.cos(phase), math.sin(phase))
    wave = wave - envelope * wave.sum() / envelope.sum()
    real, imaginary = wave.real, wave.imag
    # The imaginary part of a symmetric wave is zero only where the angle makes it so, which no angle here does.
    return real / np.sqrt((real**2).sum()) + 1j * imaginary / np.sqrt((imaginary**2).sum())


def moduli(image: np.ndarray, size: int, of: int, cycles: float) -> list[np.ndarray]:
    """|image * filter| at every second position, edges continued."""
    reach = size // 2
    padded = np.pad(image, reach, mode="edge")
    found = []
    for number in range(of):
        filters = gabor(size, number, of, cycles)
        rows = []
        for i in range(0, image.shape[0], 2):
            rows.append(
                [abs((padded[i : i + size, j : j + size] * filters).sum()) for j in range(0, image.shape[1], 2)]
            )
        found.append(np.array(rows))
    return found


def window_means(maps: list[np.ndarray], grid: int = 4, spread: float = 0.14) -> np.ndarray:
    """Gaussian-weighted means of each map over grid × grid windows."""
    found = []
    for one in maps:
        height, width = one.shape
        for a in range(grid):
            for b in range(grid):
                weights = np.zeros(one.shape)
                for i in range(height):
                    for j in range(width):
                        down = (i + 0.5) / height - (a + 0.5) / grid
                        across = (j + 0.5) / width - (b + 0.5) / grid
                        weights[i, j] = math.exp(-(down**2 + across**2) / (2 * spread**2))
                found.append((weights * one).sum() / weights.sum())
    return np.array(found)


def averaged(maps: list[np.ndarray], grid: int, spread: float) -> np.ndarray:
    """Square roots of the means over the windows, all of unit length."""
    values = np.sqrt(window_means(maps, grid, spread))
    return values / max(np.sqrt((values**2).sum()), 1e-12)


def scattering(*channels: np.ndarray) -> np.ndarray:
    """Features of one image, given as its channels [H, W]."""
    first = [m for image in channels for size in (5, 9, 13) for m in moduli(image, size, 6, 1.3)]
    second = [m for one in first for m in moduli(one, 5, 4, 1.0)]
    return np.concatenate([averaged(first, 4, 0.14), averaged(second, 4, 0.14)])


def subspace(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Mean [d] and the ``k`` leading directions [d, k] of features [n, d], by a full decomposition."""
    mean = values.double().mean(dim=0)
    return mean, torch.linalg.svd(values.double() - mean, full_matrices=False)[2][:k].T


def distance(value: Tensor, mean: Tensor, directions: Tensor) -> float:
    """Squared distance of one image [d] from a subspace: what is left when each direction is taken out in turn."""
    left = value.double() - mean
    for j in range(directions.shape[1]):
        left = left - (left @ directions[:, j]) * directions[:, j]
    return float(left @ left)


def left_out(values: Tensor, k: int, folds: int) -> Tensor:
    """Distance of every image from the subspace of the images of the other folds, [n]."""
    found = []
    for i in range(len(values)):
        rest = torch.stack([values[j] for j in range(len(values)) if j % folds != i % folds])
        found.append(distance(values[i], *subspace(rest, k)))
    return torch.tensor(found)
