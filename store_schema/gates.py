"""safetensors codec for the solved gate of one kind of input: the tasks' classes in the tasks' order.

Of Gaussians (schema 2): ``means`` float32 and ``weights`` float64 [S, d], ``scales`` float32 [S], ``centre`` and
``spread`` float32 [d], ``reach`` float32 or float64 [d, m], ``grams`` float32 [S, K, K], ``choice`` float64 [2]; made
anew from the tasks' own statistics by each commit that changes them.

Of subspaces (schema 1): ``means`` float32 [S, d], ``coarse`` float16 [S, d, k], ``scales`` float32 [S]. All of it is
taken from the tasks' own statistics, so that a task goes by leaving its rows out.

The metadata names the schema and the features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store_schema.errors import ClmoeError, StoreDamaged
from store_schema.layout import GATE_SCHEMA, GAUSSIANS_SCHEMA
from store_schema.weights import check_header

DTYPES = {"means": ("F32", 2), "coarse": ("F16", 3), "scales": ("F32", 1)}
"""Type and rank of each array."""


@dataclass(frozen=True)
class SolvedGate:
    """``means`` [S, d], ``coarse`` [S, d, k], ``scales`` [S]; S classes of all tasks, k directions."""

    means: NDArray[np.float32]
    coarse: NDArray[np.float16]
    scales: NDArray[np.float32]

    def taken(self, rows: NDArray[np.int64]) -> SolvedGate:
        """The classes at these rows."""
        return SolvedGate(self.means[rows], self.coarse[rows], self.scales[rows])

    def joined(self, other: SolvedGate) -> SolvedGate:
        """The classes of both."""
        return SolvedGate(
            np.concatenate([self.means, other.means]),
            np.concatenate([self.coarse, other.coarse]),
            np.concatenate([self.scales, other.scales]),
        )


GAUSSIANS = {
    "means": ("F32", "Sd"),
    "weights": ("F64", "Sd"),
    "scales": ("F32", "S"),
    "centre": ("F32", "d"),
    "spread": ("F32", "d"),
    "reach": ("F32 F64", "dm"),
    "grams": ("F32", "SKK"),
    "choice": ("F64", "2"),
}
"""Type and axes of each array of a gate of Gaussians."""


@dataclass(frozen=True)
class SolvedGaussians:
    """The arrays of a gate of Gaussians by name, as in :data:`GAUSSIANS`."""

    arrays: Mapping[str, NDArray[Any]]

    @property
    def means(self) -> NDArray[np.float32]:
        """Means of the classes, [S, d]."""
        return self.arrays["means"]


def encode_gaussians(gate: SolvedGaussians, features: str) -> bytes:
    """The bytes of a gate's object; the same values give the same bytes. Raises ClmoeError for unfit values."""
    arrays = {key: np.ascontiguousarray(gate.arrays[key]) for key in sorted(gate.arrays)}
    data = save(arrays, metadata=_metadata(features, GAUSSIANS_SCHEMA))
    try:
        decode_gaussians(data, "", features, len(gate.means))
    except StoreDamaged as error:
        raise ClmoeError(
            "the gate cannot be stored", key=error.key, found=error.found, expected=error.expected
        ) from error
    return data


def decode_gaussians(data: bytes, where: str, features: str, classes: int) -> SolvedGaussians:
    """Parses and checks a gate of Gaussians; ``classes``: how many the manifest's tasks have.

    Raises StoreDamaged: header, offsets, types, shapes, other features, NaN or infinite values.
    """
    found = _arrays(data, where, {"F32": 4, "F64": 8}, _metadata(features, GAUSSIANS_SCHEMA), set(GAUSSIANS))
    sizes = {"S": classes, "2": 2}
    for key, (kind, axes) in GAUSSIANS.items():
        value = found[key]
        fits = value.dtype.itemsize in [int(one[1:]) // 8 for one in kind.split()] and value.ndim == len(axes)
        if not fits or any(sizes.setdefault(axis, size) != size for axis, size in zip(axes, value.shape, strict=True)):
            raise StoreDamaged(
                "wrong shape or type",
                where=where,
                key=key,
                found=f"{value.dtype} {value.shape}",
                expected=f"{kind} [{', '.join(axes)}] of {classes} classes",
            )
        if not np.isfinite(value).all():
            raise StoreDamaged("NaN or infinite values", where=where, key=key)
    return SolvedGaussians(found)


def encode_gate(gate: SolvedGate, features: str) -> bytes:
    """The bytes of a gate's object; the same values give the same bytes. Raises ClmoeError for unfit values."""
    arrays: dict[str, NDArray[Any]] = {
        "coarse": np.ascontiguousarray(gate.coarse, dtype=np.float16),
        "means": np.ascontiguousarray(gate.means, dtype=np.float32),
        "scales": np.ascontiguousarray(gate.scales, dtype=np.float32),
    }
    data = save(arrays, metadata=_metadata(features))
    try:
        decode_gate(data, "", features, len(gate.means))
    except StoreDamaged as error:
        raise ClmoeError(
            "the gate cannot be stored", key=error.key, found=error.found, expected=error.expected
        ) from error
    return data


def decode_gate(data: bytes, where: str, features: str, classes: int) -> SolvedGate:
    """Parses and checks a gate's object; ``classes``: how many the manifest's tasks have.

    Raises StoreDamaged: header, offsets, types, shapes, other features, NaN or infinite values.
    """
    found = _arrays(data, where, {"F32": 4, "F16": 2}, _metadata(features), set(DTYPES))
    for key, (kind, rank) in DTYPES.items():
        value = found[key]
        fits = value.dtype.itemsize == int(kind[1:]) // 8 and value.ndim == rank and len(value) == classes
        if not fits or (key == "coarse" and value.shape[1] != found["means"].shape[1]):
            raise StoreDamaged(
                "wrong shape or type",
                where=where,
                key=key,
                found=f"{value.dtype} {value.shape}",
                expected=f"{kind} of {classes} classes",
            )
        if not np.isfinite(value).all():
            raise StoreDamaged("NaN or infinite values", where=where, key=key)
    return SolvedGate(found["means"], found["coarse"], found["scales"])


def coarse_form(means: NDArray[Any], directions: NDArray[Any], quantiles: NDArray[Any], coarse: int) -> SolvedGate:
    """A task's part of the gate, from its own statistics: means [C, d], directions [C, d, K], quantiles [C, Q].

    Always ``coarse`` directions, zero where a class has fewer.
    """
    leading = directions[:, :, :coarse]
    padded = np.pad(leading, ((0, 0), (0, 0), (0, coarse - leading.shape[2])))
    return SolvedGate(means, padded, quantiles.mean(axis=1, dtype=np.float64).astype(np.float32))


def rows_of(classes: Sequence[int], kept: Sequence[bool]) -> NDArray[np.int64]:
    """Rows of the tasks that are ``kept``; ``classes``: how many each task has."""
    return np.flatnonzero(np.repeat(np.asarray(kept, dtype=bool), classes))


def _arrays(
    data: bytes, where: str, sizes: Mapping[str, int], wanted: Mapping[str, str], names: set[str]
) -> dict[str, NDArray[Any]]:
    """The arrays of a file with these metadata and names; StoreDamaged for any other."""
    metadata = check_header(data, where, sizes)
    if metadata != wanted:
        raise StoreDamaged("another object", where=where, key="__metadata__", found=str(metadata), expected=str(wanted))
    try:
        found: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
    if set(found) != names:
        raise StoreDamaged("wrong arrays", where=where, found=str(sorted(found)), expected=str(sorted(names)))
    return found


def _metadata(features: str, schema: int = GATE_SCHEMA) -> dict[str, str]:
    return {"clmoe": f"schema {schema}, gate, features {features}"}
