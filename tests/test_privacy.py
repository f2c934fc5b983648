"""No input is stored: images cannot be read back from what is kept of few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from reading_back import guesses, likeness
from small_store import OPTIONS

from clmoe_cli.commands.learn import learn
from clmoe_cli.continual import privacy
from clmoe_cli.data import Batch

SIDE = 14
WIDTH = SIDE**2


def made(counts: tuple[int, ...], vectors: bool, seed: int = 0) -> tuple[Batch, NDArray[np.float64]]:
    """So many images of each class, and their classes' typical images [N, D].

    What sets an image apart is sparse, so that mixtures come apart easily.
    """
    rng = np.random.default_rng(seed)
    typical = rng.uniform(0.2, 0.8, (len(counts), WIDTH))
    y = np.repeat(np.arange(len(counts)), counts)
    own = np.zeros((len(y), WIDTH))
    for row in own:
        row[rng.choice(WIDTH, WIDTH // 8, replace=False)] = rng.choice([-0.2, 0.2], WIDTH // 8)
    x = (typical[y] + own).astype(np.float32)
    shape = (WIDTH,) if vectors else (1, SIDE, SIDE)
    return Batch(x.reshape(-1, *shape), y, "made"), typical[y]


def read_back(root: Path, counts: tuple[int, ...], vectors: bool) -> dict[str, float]:
    """How like the images of a store of these the likeliest guesses are, by what they come from."""
    batch, typical = made(counts, vectors)
    learn(str(root), batch, OPTIONS)
    images = batch.images.reshape(len(typical), WIDTH).astype(np.float64)
    return {name: float(likeness(images, typical, rows).max()) for name, rows in guesses(root, WIDTH).items()}
