"""Directions of a covariance, rounded so that they take few bits and the covariance does not notice.

Of a covariance Σ_k λ_k v_k v_kᵀ + ρ I on d features the K directions take nearly all of the room. A direction is
rounded to multiples of a step, a power of two, so that half precision holds it exactly and the store keeps it in as
many bits as it has (:mod:`store_schema.directions`). A step δ adds λ δ²/12 to the variance of every feature and δ²d/12
to the squared length of v. The step is the largest for which

- the rounding of all directions together adds at most ``BESIDE`` ρ: large variances are rounded finely, small ones
  coarsely (reverse water-filling; Cover & Thomas 2006, section 10.3.3),
- no direction gains more than ``WITHIN`` of its squared length,

but none is finer than the largest number of its direction needs in half precision. Of few features, which take little
room and may be all but dependent on each other, half precision is all of the rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

BESIDE = 0.01
WITHIN = 0.003
"""Found on held-out training images of five data sets (docs/method.md, section 7)."""
FEW = 256
"""Features below which directions are only brought to half precision."""
FINEST = 11
"""Binary digits of a number in half precision."""
TINY = 1e-300


def rounded(directions: Tensor, variances: Tensor, rest: float) -> Tensor:
    """Unit directions [d, K] with these variances [K] beside a variance of ``rest`` in every feature, half precision.

    Directions of length zero stay.
    """
    d, count = directions.shape
    if d < FEW:
        return directions.half()
    exact, own = directions.double(), variances.double().clamp_min(TINY)
    most = (12 * BESIDE * max(0.0, rest) / max(1, count) / own).clamp_max(12 * WITHIN / d).sqrt()
    finest = exact.abs().amax(dim=0).clamp_min(TINY) * 2.0 ** (1 - FINEST)
    step = torch.exp2(torch.maximum(most, finest).log2().floor())
    # Zero has no sign: it would be one more number to keep.
    return ((exact / step).round() * step + 0.0).half()
