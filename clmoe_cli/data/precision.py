"""Whether float32 holds what tells the numbers of a column apart: of times in seconds (1.7e9) it keeps two minutes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.runtime import limits

FEWEST = 8
"""Fewer rows tell nothing of a column."""
LOST = 0.02
"""Rounding that is a larger part of the usual difference between two rows is a loss."""
NOISE = 1e-13
"""Differences that are a smaller part of the numbers are float64's own rounding: such a column is constant."""
DIGITS = 12
"""Numbers that somebody wrote down have fewer significant digits than this, results of a computation more."""
LARGE = 1e5
"""Computed numbers this large are times, positions or amounts; what varies around smaller ones is rounding: the corner
of a turned picture, a probability near 1."""


class RoundingCheck:
    """Looks at the rows [n, D] of an array or a table as they are read, and says what float32 loses of them.

    Of more rows than ``runtime.limits.COMPARED_NUMBERS`` allows, so many are kept evenly, whatever the blocks are.
    """

    def __init__(self, width: int) -> None:
        most = limits.COMPARED_NUMBERS // width
        self._most = min(max(most, 2 * FEWEST), limits.COMPARED_ROWS)
        self._parts: list[NDArray[np.float64]] = []
        self._kept, self._seen, self._stride = 0, 0, 1

    def add(self, rows: NDArray[np.float64]) -> None:
        """Takes the next rows [n, D]."""
        part = rows[-self._seen % self._stride :: self._stride]
        self._seen += len(rows)
        self._parts.append(part.copy())
        self._kept += len(part)
        while self._kept > 2 * self._most:
            kept = np.concatenate(self._parts)[::2]
            self._parts, self._kept, self._stride = [kept], len(kept), 2 * self._stride

    def lost(self) -> tuple[int, str, str, str] | None:
        """The first column that loses much: its position, what was found, what would be right, and what to do.

        Medians are compared, so that a few missing values (a 0 among times) hide nothing.
        """
        if self._kept < FEWEST:
            return None
        values = np.concatenate(self._parts)
        # Rows half a table apart, since neighbours are often alike.
        half = len(values) // 2
        with np.errstate(over="ignore", invalid="ignore"):
            held = values.astype(np.float32)
            apart = np.median(np.abs(values[:half] - values[half : 2 * half]), axis=0)
            rounding = np.median(np.abs(held - values), axis=0)
            size = np.median(np.abs(values), axis=0)
            (rounded,) = np.nonzero((apart > NOISE * size) & (rounding > LOST * apart))
        largest = np.abs(values).max(axis=0)
        small = (largest > 0) & (largest < np.finfo(np.float32).smallest_normal)
        for one in sorted({*rounded.tolist(), *small.nonzero()[0].tolist()}):
            if small[one]:
                found = f"numbers up to {largest[one]:.2g}"
                right = f"numbers above {np.finfo(np.float32).smallest_normal:.2g}, the least that float32 holds well"
                return one, found, right, "give it in a smaller unit, or leave the column out"
            held_well = size[one] >= np.finfo(np.float32).smallest_normal
            if held_well and (size[one] >= LARGE or _written(values[:, one])):
                found = f"numbers around {size[one]:.3g} that differ by about {apart[one]:.2g}"
                right = f"differences well above {rounding[one]:.2g}, to which float32 rounds these"
                return one, found, right, "subtract its least value, or leave the column out"
        return None


def _written(values: NDArray[np.float64]) -> bool:
    """Whether most of these numbers [n] have few significant digits, as numbers have that somebody wrote down."""
    some = values[values != 0]
    with np.errstate(over="ignore", invalid="ignore"):
        digits = some * 10.0 ** (DIGITS - np.ceil(np.log10(np.abs(some))))
        # Of a computed number the rest is anything from 0 to 0.5.
        return bool(np.mean(np.abs(digits - np.rint(digits)) < 0.005) > 0.5)
