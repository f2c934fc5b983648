"""p-values from a task's own held-out images.

What is stored belongs to the task alone (statistics of its own subnetwork), so it does not change when other
tasks arrive. p-values of single images are conformal (Vovk et al. 2005); those of batches combine them as
Fisher (1932) does: minus the logarithms of n uniform p-values add up to a Gamma(n) variable.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.method.reproducible import at_least

MINIMUM = 30
"""Fewer held-out images than this give no p-values."""

COUNTED = 2
"""A batch counts for at most so many images a calibration image: more would only repeat the noise of those."""

LOWER = 0.05
"""Part of the error rate that deviations below the usual get; found on held-out training images (docs/method.md)."""

LEAST = 1e-300
"""Least p-value of a batch: no evidence is certain, and beyond this the numbers end."""

MARGIN = 0.1
"""Tolerated excess of the mean evidence: large batches would otherwise reject harmless shifts."""


@dataclass(frozen=True)
class Calibration:
    """Deviations of a task's calibration images, sorted, [n] float64; at least one."""

    values: Tensor

    @staticmethod
    def of(deviations: Tensor) -> Calibration:
        """From unsorted deviations."""
        return Calibration(deviations.double().sort().values)

    @property
    def available(self) -> bool:
        """Whether there are enough images for p-values."""
        return len(self.values) >= MINIMUM

    def p_values(self, deviations: Tensor) -> Tensor:
        """How usual deviations [N] are, in (0, 1]; NaN where not available.

        The share of calibration images that deviate at least as much, or at most as much, each over its part of the
        error rate (``LOWER``), whichever is less: what deviates less than any of the task's own images is strange too.
        """
        if not self.available:
            return torch.full((len(deviations),), float("nan"), dtype=torch.float64)
        n = len(self.values)
        # At most as much is at least as much of the negatives, so that equal up to rounding counts on both sides.
        upper = (at_least(self.values, deviations) + 1) / (n + 1)
        lower = (at_least(-self.values.flip(0), -deviations.double()) + 1) / (n + 1)
        return torch.minimum(upper / (1 - LOWER), lower / LOWER).clamp(max=1.0)

    def standardised(self, deviations: Tensor) -> Tensor:
        """Log deviation in units of the task's own mean and spread, [N]: comparable between tasks."""
        tiny = 1e-12
        logs = self.values.clamp_min(tiny).log()
        spread = logs.std(correction=0).clamp_min(1e-3)
        return (deviations.double().clamp_min(tiny).log() - logs.mean()) / spread


def batch_p_value(p: Tensor, calibration: int, margin: float = MARGIN) -> float:
    """p-value of a batch from those of its images [N]: is the mean evidence more than ``1 + margin``?

    ``calibration``: how many held-out images the p-values rest on.
    """
    counted = min(len(p), COUNTED * calibration)
    evidence = -p.log().mean() * counted / (1 + margin)
    p_value = float(torch.special.gammaincc(torch.tensor(float(counted), dtype=torch.float64), evidence))
    return max(p_value, LEAST)
