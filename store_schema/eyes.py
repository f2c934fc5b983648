"""safetensors codec for an eye: filters made from the images of the first task of a kind of input.

``filters`` float32 [k, C, s, s], ``offsets`` float32 [k], ``level`` float64 [1]. The metadata names the schema.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store_schema.errors import ClmoeError, StoreDamaged
from store_schema.layout import EYE_SCHEMA
from store_schema.weights import check_header

ARRAYS = {"filters": ("float32", 4), "offsets": ("float32", 1), "level": ("float64", 1)}
"""Type and rank of each array."""
METADATA = {"clmoe": f"schema {EYE_SCHEMA}, eye"}


def encode_eye(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """The bytes of an eye's object; the same values give the same bytes. Raises ClmoeError for unfit values."""
    data = save({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, metadata=METADATA)
    try:
        decode_eye(data, "", arrays["filters"].shape[1:])
    except StoreDamaged as error:
        raise ClmoeError(
            "the eye cannot be stored", key=error.key, found=error.found, expected=error.expected
        ) from error
    return data


def decode_eye(data: bytes, where: str, input_shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    """Parses and checks an eye for images of that shape (C, H, W).

    Raises StoreDamaged: header, offsets, names, types, shapes, another schema, NaN or infinite values.
    """
    metadata = check_header(data, where, {"F32": 4, "F64": 8})
    if metadata != METADATA:
        raise StoreDamaged(
            "another object", where=where, key="__metadata__", found=str(metadata), expected=str(METADATA)
        )
    try:
        found: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
    if set(found) != set(ARRAYS):
        raise StoreDamaged("wrong arrays", where=where, found=str(sorted(found)), expected=str(sorted(ARRAYS)))
    for key, (kind, rank) in ARRAYS.items():
        value = found[key]
        if str(value.dtype) != kind or value.ndim != rank:
            raise StoreDamaged(
                "wrong shape or type", where=where, key=key, found=f"{value.dtype} {value.shape}",
                expected=f"{kind} with {rank} axes",
            )  # fmt: skip
        if not np.isfinite(value).all():
            raise StoreDamaged("NaN or infinite values", where=where, key=key)
    k, channels, height, width = found["filters"].shape
    fits = channels == input_shape[0] and 0 < height == width <= min(input_shape[1:])
    if not fits or found["offsets"].shape != (k,) or found["level"].shape != (1,):
        shapes = {key: value.shape for key, value in found.items()}
        raise StoreDamaged("wrong shapes", where=where, found=str(shapes), expected=f"filters for {input_shape}")
    return found
