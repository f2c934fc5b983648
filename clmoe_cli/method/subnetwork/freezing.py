"""Frozen is frozen (paper, "Freeze"; method section 2).

The rule of this module: every write to a parameter is followed by a restore of its frozen entries. Momentum, weight
decay or an adaptive step size therefore cannot move them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def freeze_guard(params: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> Callable[[], None]:
    """A function that puts every entry outside ``trainable`` back to what it is now, bit for bit.

    Parameters that ``trainable`` does not name may move freely. Call it after every step.
    """
    few, many = [], []
    for name, mask in trainable.items():
        moving, bits = mask.flatten(), _bits(params[name])
        held = (~moving).nonzero().squeeze(1)
        if 0 < len(held) <= len(moving) // 4:
            few.append((bits, held, bits[held]))
        elif len(held):
            # Entry by entry takes too long for many of these: in one pass, times 1 or 0 plus what is held.
            factors = moving.to(bits.dtype)
            many.append((bits, factors, bits * (1 - factors)))

    def restore() -> None:
        for bits, held, anchor in few:
            bits.index_copy_(0, held, anchor)
        for bits, factors, anchor in many:
            torch.addcmul(anchor, bits, factors, out=bits)

    return restore


def _bits(value: Tensor) -> Tensor:
    """The same memory as whole numbers in a row: no kind of float is turned into another, NaN or not."""
    return value.detach().view(-1).view(BITS[value.element_size()])
