"""Taking tasks out of an expert, and the hash that certifies that the others did not move."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from store_schema.weights import ExpertWeights

Used = NDArray[np.bool_]
Bits = Mapping[str, Used]


def used_and_kept(masks: Mapping[str, Bits], names: Sequence[str], layer: str) -> tuple[Used, Used]:
    """Entries [out, in] of a layer that any task uses, and those that a task not among ``names`` uses.

    ``masks``: task → its masks, at least one task.
    """
    nothing = np.zeros(next(iter(masks.values()))[layer].shape, dtype=bool)
    used = np.logical_or.reduce([nothing, *(bits[layer] for bits in masks.values())])
    kept = np.logical_or.reduce([nothing, *(bits[layer] for task, bits in masks.items() if task not in names)])
    return used, kept


def remove_tasks(
    weights: ExpertWeights, masks: Mapping[str, Bits], names: Sequence[str]
) -> tuple[ExpertWeights, dict[str, int]]:
    """The expert without the named tasks, and the number of weights freed per layer.

    ``masks``: task → its masks, for all tasks of the expert. Weights that no remaining task uses become zero;
    the others keep their bits.
    """
    shared, freed = {}, {}
    for layer, value in weights.shared.items():
        used, kept = used_and_kept(masks, names, layer)
        shared[layer] = np.where(kept, value, np.float32(0))
        freed[layer] = int((used & ~kept).sum())
    owned = {task: params for task, params in weights.owned.items() if task not in names}
    return ExpertWeights(shared, owned, weights.inputs), freed


def subnetwork_digest(weights: ExpertWeights, masks: Bits, task: str) -> str:
    """sha256 of everything that a task computes with: its mask, the weights in it, its owned parameters.

    Of an expert that standardises its inputs also by what.
    """
    digest = hashlib.sha256()

    def add(name: str, value: NDArray[Any]) -> None:
        digest.update(f"{name} {value.dtype.str} {value.shape}\n".encode())
        digest.update(np.ascontiguousarray(value).tobytes())

    for layer in sorted(masks):
        add(f"mask {layer}", np.packbits(masks[layer], axis=None))
        add(f"weight {layer}", weights.shared[layer][masks[layer]])
    for name in sorted(weights.owned[task]):
        add(f"owned {name}", weights.owned[task][name])
    for name in sorted(weights.inputs):
        add(f"input {name}", weights.inputs[name])
    return digest.hexdigest()
