"""safetensors codecs for an eye, which is made in the first task of a kind of input.

Filters made of patches: ``filters`` float32 [k, C, s, s], ``offsets`` float32 [k], ``level`` float64 [1]. The metadata
names the schema.

A subnetwork: of each parameter of its own ``owned/<name>`` float32; of each layer that its expert's tasks shared
``shape/<name>`` int64 and, where any entry is not zero, the positions of these in the flattened layer,
``at/<name>`` int64 [k], and their values ``added/<name>`` float32 [k]. The metadata names schema, architecture and, if
it stands on pretrained weights, the hash of their object. What it computes with are these plus what is added.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
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
_TYPES = {"owned": "float32", "shape": "int64", "at": "int64", "added": "float32"}


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


@dataclass(frozen=True)
class NetworkEyeArrays:
    """A subnetwork of the architecture ``arch`` as an eye.

    ``owned``: parameters of its own, float32; ``shapes``: of the layers that it shared; ``added``: of these, positions
    in the flattened layer (int64 [k], rising) and values (float32 [k]), where any is not zero; ``base``: the hash of
    the pretrained weights to which they are added, None for none.
    """

    arch: str
    owned: Mapping[str, NDArray[np.float32]]
    shapes: Mapping[str, tuple[int, ...]]
    added: Mapping[str, tuple[NDArray[np.int64], NDArray[np.float32]]]
    base: str | None = None


def encode_network_eye(eye: NetworkEyeArrays) -> bytes:
    """The bytes of an eye that is a subnetwork; the same values give the same bytes. Raises ClmoeError."""
    arrays: dict[str, NDArray[Any]] = {f"owned/{name}": value for name, value in eye.owned.items()}
    arrays |= {f"shape/{name}": np.array(shape, dtype=np.int64) for name, shape in eye.shapes.items()}
    arrays |= {f"at/{name}": at for name, (at, _) in eye.added.items()}
    arrays |= {f"added/{name}": values for name, (_, values) in eye.added.items()}
    on = "" if eye.base is None else f" on {eye.base}"
    metadata = {"clmoe": f"schema {EYE_SCHEMA}, subnetwork eye {eye.arch}{on}"}
    data = save({key: np.ascontiguousarray(arrays[key]) for key in sorted(arrays)}, metadata=metadata)
    try:
        decode_network_eye(data, "", eye.base)
    except StoreDamaged as error:
        raise ClmoeError(
            "the eye cannot be stored", key=error.key, found=error.found, expected=error.expected
        ) from error
    return data


def decode_network_eye(data: bytes, where: str, base: str | None) -> NetworkEyeArrays:
    """Parses and checks an eye that is a subnetwork, on the ``base`` of that hash if it has one.

    Raises StoreDamaged: header, offsets, names, types, shapes, positions, another schema, NaN or infinite values.
    """
    metadata = check_header(data, where, {"F32": 4, "I64": 8})
    on = "" if base is None else f" on {base}"
    text = metadata.get("clmoe", "")
    named = re.fullmatch(rf"schema {EYE_SCHEMA}, subnetwork eye (\S+){on}", text)
    if named is None or len(metadata) != 1:
        expected = f"schema {EYE_SCHEMA}, subnetwork eye ARCH{on}"
        raise StoreDamaged("another object", where=where, key="__metadata__", found=str(metadata), expected=expected)
    try:
        found: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
    parts: dict[str, dict[str, NDArray[Any]]] = {part: {} for part in _TYPES}
    for key, value in found.items():
        part, _, name = key.partition("/")
        if str(value.dtype) != _TYPES.get(part) or (part != "owned" and value.ndim != 1):
            shown = f"{value.dtype} {value.shape}"
            raise StoreDamaged("wrong shape or type", where=where, key=key, found=shown, expected=str(_TYPES))
        if value.dtype.kind == "f" and not np.isfinite(value).all():
            raise StoreDamaged("NaN or infinite values", where=where, key=key)
        parts[part][name] = value
    shapes = {name: tuple(int(n) for n in value) for name, value in parts["shape"].items()}
    for name in parts["at"].keys() | parts["added"].keys():
        at, values = parts["at"].get(name), parts["added"].get(name)
        within = at is not None and at[0] >= 0 and at[-1] < math.prod(shapes.get(name, (0,)))
        if at is None or not within or values is None or len(at) != len(values) or bool(np.any(at[1:] <= at[:-1])):
            raise StoreDamaged("positions and values do not agree", where=where, key=name)
    if not shapes or any(n < 1 for shape in shapes.values() for n in shape):
        raise StoreDamaged("wrong shapes", where=where, found=str(shapes), expected="those of an expert's layers")
    added = {name: (at, parts["added"][name]) for name, at in parts["at"].items()}
    return NetworkEyeArrays(named[1], parts["owned"], shapes, added, base)
