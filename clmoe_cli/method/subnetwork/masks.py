"""Masks over shared weights: ``dict[str, BoolTensor]``, one entry per shared weight, of its shape."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

Masks = dict[str, Tensor]


def zeros_like(shared: Mapping[str, Tensor]) -> Masks:
    """A mask that selects nothing, where the weights are."""
    return {name: torch.zeros_like(w, dtype=torch.bool) for name, w in shared.items()}


def ones_like(shared: Mapping[str, Tensor]) -> Masks:
    """A mask that selects everything, where the weights are."""
    return {name: torch.ones_like(w, dtype=torch.bool) for name, w in shared.items()}


def union(shared: Mapping[str, Tensor], masks: Iterable[Mapping[str, Tensor]]) -> Masks:
    """Entries that any of the masks selects: the frozen weights when the masks are those of all tasks."""
    result = zeros_like(shared)
    for mask in masks:
        for name, selected in mask.items():
            result[name] |= selected
    return result


def intersection(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Masks:
    """Entries that both select."""
    return {name: a[name] & b[name] for name in a}


def inverse(mask: Mapping[str, Tensor]) -> Masks:
    """Entries that are not selected."""
    return {name: ~selected for name, selected in mask.items()}


def count(mask: Mapping[str, Tensor]) -> int:
    """Number of selected entries."""
    return sum(int(selected.sum()) for selected in mask.values())


def apply(params: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The parameters with everything outside the mask set to zero; parameters without a mask as they are."""
    return {
        name: torch.where(mask[name], value, torch.zeros((), dtype=value.dtype)) if name in mask else value
        for name, value in params.items()
    }


@dataclass(frozen=True)
class Agreement:
    """How two masks agree (method section 5).

    ``hamming``: share of weights where they differ. ``overlap``: Cohen's kappa, 1 identical, 0 as
    independent masks of these densities would. ``intersection``: number of weights in both.
    """

    hamming: float
    overlap: float
    intersection: int


def agreement(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> Agreement:
    """Compares two masks over all shared weights of an expert.

    ``overlap = 1 − h / h₀`` with the chance distance ``h₀ = a(1−b) + b(1−a)`` summed over the layers, each
    with its own densities: layers differ in density, and that alone is no agreement.
    """
    total = sum(mask.numel() for mask in a.values())
    differ = 0
    chance = 0.0
    intersection = 0
    for name in a:
        size = a[name].numel()
        density_a = float(a[name].sum()) / size
        density_b = float(b[name].sum()) / size
        differ += int((a[name] ^ b[name]).sum())
        intersection += int((a[name] & b[name]).sum())
        chance += size * (density_a * (1 - density_b) + density_b * (1 - density_a))
    # Two empty (or two full) masks cannot differ: they are identical.
    overlap = 1.0 - differ / chance if chance > 0 else 1.0
    return Agreement(differ / total, overlap, intersection)


def divergence(scores_a: Mapping[str, Tensor], scores_b: Mapping[str, Tensor], where: Mapping[str, Tensor]) -> float:
    """``‖S_a − S_b‖ / (‖S_a‖ + ‖S_b‖)`` over the entries of ``where``, in [0, 1]; 1 where there are none."""
    a = torch.cat([scores_a[name][selected] for name, selected in where.items()]).double()
    b = torch.cat([scores_b[name][selected] for name, selected in where.items()]).double()
    size = float(a.norm() + b.norm())
    return float((a - b).norm()) / size if size > 0 else 1.0
