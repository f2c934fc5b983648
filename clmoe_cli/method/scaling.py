"""How an expert reads numbers: a factor; vectors with a centre and a spread of each column, pictures with one centre.

Columns of a table have units of their own, and a network learns little from one that is a thousand times another. What
is kept of the inputs for it is pooled over at least ``LEAST`` of them and rounded, so that no input can be read back.

A picture with a bright background is a large constant and a small rest, in which dropout and training see the constant.
So a perceptron reads pictures from their median number. That of a black background is 0: nothing changes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.method.images import Rows, taken

LEAST = 30
"""Of fewer inputs nothing is kept column by column: the mean of few is much like each of them."""
MOST = 4096
"""Inputs that centre and spread rest on; of more, so many are taken evenly."""
NUMBERS = 1 << 24
"""Numbers looked at at a time."""
TAIL = 0.01
"""Share of the inputs at either end of a column that count as the nearest of the others does."""
BOUND = 10.0
"""Standardised numbers end here: a column that hardly varied in an expert's first task must not drown the others."""
STEPS = 4
"""A centre is a whole number of this part of its spread."""
LEVELS = 4
"""The median of pictures is kept as a whole number of this part of 1."""
SAME = 1e-6
"""A column whose spread is less than this share of its centre is constant but for rounding."""
EXPONENTS = (-100, 100)


@dataclass(frozen=True, eq=False)
class Scaling:
    """What is done to inputs [N, D] before an expert's first layer.

    They are multiplied by ``factor``. Where ``centre`` and ``spread`` [D] are given, they are then set against these
    and bounded at ±``BOUND``.
    """

    factor: float = 1.0
    centre: Tensor | None = None
    spread: Tensor | None = None

    @property
    def standardised(self) -> bool:
        """Whether columns have a centre and a spread of their own."""
        return self.centre is not None

    def apply(self, x: Tensor) -> Tensor:
        """Inputs [N, D] as the expert reads them; each number depends on that number alone."""
        x = x if self.factor == 1.0 else x * self.factor
        if self.centre is None or self.spread is None:
            return x
        return (x - self.centre).div_(self.spread).clamp_(-BOUND, BOUND)

    def undone(self, x: Tensor) -> Tensor:
        """Inputs [N, D] that :meth:`apply` makes ``x`` of, up to rounding; ``x`` within ±``BOUND``."""
        if self.centre is not None and self.spread is not None:
            x = x * self.spread + self.centre
        return x if self.factor == 1.0 else x / self.factor


def standardising(x: Rows, factor: float) -> Scaling:
    """The scaling that an expert keeps whose first inputs are ``x`` [N, D], already multiplied by ``factor``.

    Centre and spread are the mean and the standard deviation of each column once its tails have been drawn in
    (winsorised). The spread is rounded to a power of two, the centre to a quarter of that. A constant column has
    spread 1. Of fewer than ``LEAST`` inputs there is no centre and no spread.
    """
    if len(x) < LEAST:
        return Scaling(factor)
    values = _some(x)
    parts = [_column(part) for part in values.split(max(1, (NUMBERS >> 2) // len(values)), dim=1)]
    return Scaling(factor, torch.cat([centre for centre, _ in parts]), torch.cat([spread for _, spread in parts]))


def centring(x: Rows, factor: float) -> Scaling:
    """The same for pictures [N, D] that a perceptron reads: all numbers have one centre, their median, and spread 1.

    The median is rounded to a quarter; where that is 0 there is no centre.
    """
    level = round(float(_some(x).median()) * LEVELS) / LEVELS
    width = x[:1].shape[1]
    return Scaling(factor, torch.full((width,), level), torch.ones(width)) if level else Scaling(factor)


def _some(x: Rows) -> Tensor:
    """At most ``MOST`` of the inputs [N, D], evenly spaced, and hardly more than make ``NUMBERS``."""
    few = min(len(x), max(LEAST, min(MOST, NUMBERS // x[:1].shape[1])))
    return taken(x, torch.linspace(0, len(x) - 1, few).round().long())[:]


def _column(values: Tensor) -> tuple[Tensor, Tensor]:
    """Centre and spread [d] float32 of each column of [n, d], n ≥ 2."""
    n = len(values)
    tail = min(math.ceil(TAIL * (n - 1)), (n - 1) // 2)
    low, high = (values.kthvalue(k, dim=0).values for k in (tail + 1, n - tail))
    drawn = values.clamp(low, high).double()
    mean, deviation = drawn.mean(dim=0), drawn.std(dim=0, correction=0)
    constant = deviation <= SAME * mean.abs()
    spread = torch.where(constant, 1.0, deviation).log2().round().clamp(*EXPONENTS).exp2()
    # A constant column is centred where it is: what deviates from it later is seen.
    centre = torch.where(constant, mean, (mean / spread * STEPS).round() / STEPS * spread)
    return centre.float(), spread.float()
