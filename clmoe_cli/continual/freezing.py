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
    held = []
    for name, mask in trainable.items():
        if not bool(mask.all()):
            # As whole numbers: two passes without a branch, which take the same time however much is frozen. Where a
            # mask is mixed, choosing entry by entry takes up to five times as long.
            bits = _bits(params[name])
            moving = -mask.to(bits.dtype)
            held.append((bits, moving, bits & ~moving))

    def restore() -> None:
        for bits, moving, anchor in held:
            bits.bitwise_and_(moving).bitwise_or_(anchor)

    return restore


def _bits(value: Tensor) -> Tensor:
    """The same memory as whole numbers."""
    return value.detach().view(BITS[value.element_size()])
