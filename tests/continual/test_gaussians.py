"""The gate of Gaussians against whole covariance matrices: scores, the choice, images left out, p-values, order."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from continual.test_gate import clouds
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import gaussians as slow
from torch import Tensor

from clmoe_cli.continual import gaussians
from clmoe_cli.continual.gate import FOLDS
from clmoe_cli.continual.gaussians import ALPHAS, GRID, KAPPAS, NEVER, GaussianGate, Gaussians, fit, fit_part, solve


def tasks_of(
    sizes: list[list[int]], d: int, seed: int, even: bool = True, scale: Tensor | None = None
) -> tuple[list[Gaussians], Tensor]:
    """Tasks whose classes have so many images each, and a few images between them [n, d]."""
    rng = torch.Generator().manual_seed(seed)
    scale = torch.ones(d) if scale is None else scale
    found, asked = [], []
    for counts in sizes:
        parts = []
        for count in counts:
            turn = torch.randn((d, d), generator=rng) / d**0.5
            centre = torch.randn(d, generator=rng)
            parts.append((centre + torch.randn((count, d), generator=rng) @ turn) * scale)
        y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
        values = torch.cat(parts)
        found.append(fit(values, y, len(counts), even))
        asked += [values[:3], torch.randn((2, d), generator=rng) * scale]
    return found, torch.cat(asked)


def gate_of(tasks: list[Gaussians]) -> GaussianGate:
    return GaussianGate.of(solve(tasks), [len(t.means) for t in tasks])


def choice_of(tasks: list[Gaussians]) -> tuple[int, float, float]:
    p, a, s = slow.chosen(sum(t.tallies for t in tasks))
    return p, ALPHAS[a], gaussians.SHARPNESSES[s]


def against(tasks: list[Gaussians], values: Tensor) -> None:
    """Log-posteriors are those of whole covariance matrices, to what float32 holds."""
    gate = gate_of(tasks)
    size = len(gate.owner)
    chosen = torch.arange(size).expand(len(values), -1)
    found = gate.scores(values, chosen, tasks.__getitem__)
    wanted = torch.from_numpy(slow.scores(tasks, values, choice_of(tasks)))
    found, wanted = found - found[:, :1], wanted - wanted[:, :1]
    size_of = float(wanted.abs().max().clamp_min(1))
    torch.testing.assert_close(found / size_of, wanted / size_of, rtol=0, atol=1e-4)
    # Every part of a shortlist gives the same.
    some = torch.stack([torch.randperm(size)[: min(3, size)] for _ in range(len(values))])
    torch.testing.assert_close(
        gate.scores(values, some, tasks.__getitem__),
        gate.scores(values, chosen, tasks.__getitem__).gather(1, some),
        rtol=1e-6, atol=1e-9,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("sizes", "d"),
    [
        ([[40, 50], [60, 30, 45]], 6),
        ([[300, 320], [310]], 20),
        ([[12, 9], [8, 11]], 70),
        ([[1, 1], [2, 30], [5, 3]], 9),
        ([[33], [41], [12]], 5),
        ([[25, 40]], 1),
        ([[1], [1]], 4),
    ],
    ids=["plain", "many", "wide", "few images", "one class each", "one column", "one image each"],
)
@pytest.mark.parametrize("even", [True, False])
def test_scores_are_those_of_whole_covariance_matrices(sizes: list[list[int]], d: int, even: bool) -> None:
    scale = torch.ones(d) if even else 10.0 ** torch.linspace(-3, 3, d)
    against(*tasks_of(sizes, d, len(sizes) + d, even, scale))


@settings(max_examples=25)
@given(
    sizes=st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=3), min_size=1, max_size=3),
    d=st.integers(1, 12),
    seed=st.integers(0, 99),
    even=st.booleans(),
)
def test_scores_of_any_shape(sizes: list[list[int]], d: int, seed: int, even: bool) -> None:
    against(*tasks_of(sizes, d, seed, even, None if even else 10.0 ** torch.linspace(-2, 2, d)))
