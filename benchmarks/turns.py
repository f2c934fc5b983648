"""Timing by turns: what is compared runs in one process and one run, again and again, each in its turn."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True)
class Ratio:
    """Seconds of one thing over those of another, measured in the same turns: median, quartiles, number of turns."""

    median: float
    low: float
    high: float
    turns: int

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


Times = dict[str, list[float]]


def by_turns(runs: Mapping[str, Callable[[], object]], turns: int) -> Times:
    """Seconds of every run in every turn; one turn before them does not count. Another order in every turn."""
    names, times = list(runs), {name: [] for name in runs}
    rng = np.random.default_rng(0)
    for turn in range(turns + 1):
        for name in rng.permutation(names):
            gc.collect()
            started = time.perf_counter()
            runs[str(name)]()
            if turn:
                times[str(name)].append(time.perf_counter() - started)
    return times


def ratio(times: Times, one: str, other: str) -> Ratio:
    """Of the turns' ratios."""
    found = np.array(times[one]) / np.array(times[other])
    low, median, high = np.quantile(found, (0.25, 0.5, 0.75)).tolist()
    return Ratio(median, low, high, len(found))


def seconds(times: Times, name: str) -> float:
    """Median."""
    return float(np.median(times[name]))


def product_rate(size: int = 1024, turns: int = 15) -> float:
    """Floating-point operations a second of a float32 matrix product: the machine's limit for all the others."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    return 2 * size**3 / min(by_turns({"product": lambda: a @ b}, turns)["product"])
