"""safetensors codec for the solved gate of one input shape: the tasks' classes in coarse form, in the tasks' order.

Keys: ``means`` float32 [S, d], ``coarse`` float16 [S, d, k], ``scales`` float32 [S]; the metadata names the schema
and the features. All of it is taken from the tasks' own statistics, so that a task goes by leaving its rows out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store_schema.errors import ClmoeError, StoreDamaged
from store_schema.layout import GATE_SCHEMA
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
    metadata = check_header(data, where, {"F32": 4, "F16": 2})
    if metadata != _metadata(features):
        raise StoreDamaged(
            "another object", where=where, key="__metadata__", found=str(metadata), expected=str(_metadata(features))
        )
    try:
        found: dict[str, NDArray[Any]] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
    if set(found) != set(DTYPES):
        raise StoreDamaged("wrong arrays", where=where, found=str(sorted(found)), expected=str(sorted(DTYPES)))
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


def _metadata(features: str) -> dict[str, str]:
    return {"clmoe": f"schema {GATE_SCHEMA}, gate, features {features}"}
