"""Images that become tensors only when they are looked at, so that a file larger than memory can be learned from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.runtime import limits

NUMBERS = limits.READ_NUMBERS


@dataclass(frozen=True)
class Images:
    """N images in a place of their own: ``read`` turns rows [n] of that place into float32 [n, D], D the ``width``.

    Stands wherever a tensor [N, D] does that is only indexed, split and measured.
    """

    read: Callable[[Tensor], Tensor]
    rows: Tensor
    width: int

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: Tensor | slice) -> Tensor:
        return self.read(self.rows[index])

    def take(self, index: Tensor) -> Images:
        """The images at these positions, still unread."""
        return Images(self.read, self.rows[index], self.width)

    def split(self, size: int) -> Iterator[Tensor]:
        """All images in their order, at most ``size`` at a time, and no more of them than make ``NUMBERS``."""
        return (self.read(rows) for rows in self.rows.split(min(size, max(1, NUMBERS // self.width))))


Rows = Tensor | Images
"""Images [N, D], in memory or not."""


def taken(x: Rows, index: Tensor) -> Rows:
    """The images at these positions, unread if they were."""
    return x.take(index) if isinstance(x, Images) else x[index]


@dataclass(frozen=True)
class Labelled:
    """Images ``x`` [N, D] float32 and class indices ``y`` [N] int64."""

    x: Rows
    y: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor) -> Labelled:
        """The images at these positions."""
        return Labelled(taken(self.x, index), self.y[index])

    def subsample(self, limit: int) -> Labelled:
        """The same; of more than ``limit`` images so many, evenly spaced."""
        return self if len(self) <= limit else self.take(torch.linspace(0, len(self) - 1, limit).round().long())
