"""Frozen is frozen (paper, "Freeze"; method section 2).

The rule of this module: every write to a parameter is followed by a restore of its frozen entries. Momentum, weight
decay or an adaptive step size therefore cannot move them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor


def freeze_guard(params: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> Callable[[], None]:
    """A function that puts every entry outside ``trainable`` back to what it is now, bit for bit.

    Parameters that ``trainable`` does not name may move freely. Call it after every step.
    """
    held = [(params[name], mask, params[name].detach().clone()) for name, mask in trainable.items()]

    def restore() -> None:
        with torch.no_grad():
            for value, mask, anchor in held:
                torch.where(mask, value, anchor, out=value)

    return restore
