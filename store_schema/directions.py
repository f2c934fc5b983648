"""Directions in half precision as whole numbers of steps: without loss, in as many bits as they need.

Directions [..., d, K] are columns. The numbers of a column are multiples of a power of two: of a coarse one where they
were rounded to it, at the least of the smallest half. Packed they are [..., K, d + 1], unsigned: for each direction the
exponent of its step, then its numbers in steps. Signed numbers n are stored as 0, −1, 1, −2, … → 0, 1, 2, 3, …, so that
small ones have few bits; gzip leaves out those that no number has.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.deflated import size

LEAST = -24
"""Exponent of the smallest number of half precision."""
UNPACKING = 32
"""Bytes that unpacking takes for each number, at most."""


def smaller(value: NDArray[Any]) -> NDArray[Any]:
    """The directions packed, where that takes fewer bytes; any other array as it is."""
    packed = _packed(value) if value.dtype == np.float16 and value.ndim > 1 and value.size else None
    return value if packed is None or size(value) <= size(packed) else packed


def unpacked(packed: NDArray[Any]) -> NDArray[np.float16]:
    """The directions [..., d, K] of which this is the packed form, [..., K, d + 1].

    Raises ValueError for what no directions have as their form.
    """
    if packed.ndim < 2 or packed.shape[-1] < 2:
        raise ValueError(f"directions of shape {packed.shape}")
    numbers = _signed(packed)
    exponents, steps = numbers[..., :1].astype(np.int64), numbers[..., 1:]
    if exponents.size and not (exponents.min() >= LEAST and exponents.max() <= -LEAST):
        raise ValueError(f"exponents of {exponents.min()} to {exponents.max()}")
    # Products of such numbers and a power of two are exact.
    kind: Any = np.float32 if packed.dtype == np.uint16 else np.float64
    exact = steps.astype(kind) * np.exp2(exponents).astype(kind)
    with np.errstate(over="ignore"):
        found = exact.astype(np.float16)
    if not np.array_equal(found, exact):
        raise ValueError("numbers between those of half precision")
    return np.ascontiguousarray(np.moveaxis(found, -1, -2))


def _packed(value: NDArray[np.float16]) -> NDArray[Any] | None:
    """The packed form; None for values that have none: not finite, or a negative zero."""
    if not np.isfinite(value).all() or np.signbit(value[value == 0]).any():
        return None
    columns = np.moveaxis(value, -1, -2).astype(np.float64)
    whole = np.ldexp(columns, -LEAST).astype(np.int64)
    # The lowest bit that any number of a column has; of zeros alone there is none.
    together = np.bitwise_or.reduce(whole, axis=-1, keepdims=True)
    shift = np.log2(np.where(together == 0, 1, together & -together)).astype(np.int64)
    numbers = np.concatenate([LEAST + shift, whole >> shift], axis=-1)
    unsigned = (numbers << 1) ^ (numbers >> 63)
    most = unsigned.max()
    if most >= 1 << 32:
        return None
    return unsigned.astype(np.uint16 if most < 1 << 16 else np.uint32)


def _signed(packed: NDArray[Any]) -> NDArray[Any]:
    signed: Any = np.int16 if packed.dtype == np.uint16 else np.int32
    found: NDArray[Any] = (packed >> 1).view(signed) ^ -(packed & 1).view(signed)
    return found
