"""Whether float32 holds what tells the numbers of a column apart: of times in seconds (1.7e9) it keeps two minutes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

ROWS = 4096
"""Rows looked at; of more, so many are taken evenly."""
FEWEST = 8
"""Fewer rows tell nothing of a column."""
LOST = 0.01
"""Rounding that is a larger part of the usual difference between two rows is a loss."""
NOISE = 1e-12
"""Differences that are a smaller part of the numbers are float64's own rounding: such a column is constant."""
LOSSY = "subtract its least value, or leave the column out"
"""What to do about it."""


def lost_column(values: NDArray[np.float64]) -> tuple[int, str, str] | None:
    """The first column of [n, D] that loses much in float32: its position, what was found, what would be right.

    Medians are compared, so that a few missing values (a 0 among times) hide nothing.
    """
    n = len(values)
    if n < FEWEST:
        return None
    if n > ROWS:
        values = values[np.linspace(0, n - 1, ROWS).round().astype(np.int64)]
    # Rows half a table apart, since neighbours are often alike.
    half = len(values) // 2
    with np.errstate(over="ignore", invalid="ignore"):
        apart = np.median(np.abs(values[:half] - values[half : 2 * half]), axis=0)
        rounding = np.median(np.abs(values.astype(np.float32) - values), axis=0)
        size = np.median(np.abs(values), axis=0)
        (columns,) = np.nonzero((apart > NOISE * size) & (rounding > LOST * apart))
    if not len(columns):
        return None
    one = int(columns[0])
    found = f"numbers around {size[one]:.3g} that differ by about {apart[one]:.2g}"
    return one, found, f"differences well above {rounding[one]:.2g}, to which float32 rounds these"
