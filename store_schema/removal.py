"""Taking tasks out of an expert, and the hash that certifies that the others did not move."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.weights import ExpertWeights

Bits = Mapping[str, NDArray[np.bool_]]


def remove_tasks(
    weights: ExpertWeights, masks: Mapping[str, Bits], names: Sequence[str]
) -> tuple[ExpertWeights, dict[str, int]]:
    """The expert without the named tasks, and the number of weights freed per layer.

    ``masks``: task → its masks, for all tasks of the expert. Weights that no remaining task uses become zero;
    the others keep their bits.
    """
    shared, freed = {}, {}
    for layer, value in weights.shared.items():
        before = np.zeros(value.shape, dtype=bool)
        after = np.zeros(value.shape, dtype=bool)
        for task, bits in masks.items():
            before |= bits[layer]
            if task not in names:
                after |= bits[layer]
        shared[layer] = np.where(after, value, np.float32(0))
        freed[layer] = int((before & ~after).sum())
    owned = {task: params for task, params in weights.owned.items() if task not in names}
    return ExpertWeights(shared, owned), freed


def subnetwork_digest(weights: ExpertWeights, masks: Bits, task: str) -> str:
    """sha256 of everything that a task computes with: its mask, the weights in it, its owned parameters."""
    digest = hashlib.sha256()

    def add(name: str, value: NDArray[Any]) -> None:
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())

    for layer in sorted(masks):
        add(f"mask {layer}", np.packbits(masks[layer], axis=None))
        add(f"weight {layer}", weights.shared[layer][masks[layer]])
    for name in sorted(weights.owned[task]):
        add(f"owned {name}", weights.owned[task][name])
    return digest.hexdigest()
