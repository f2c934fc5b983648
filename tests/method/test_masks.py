from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clmoe_cli.method.subnetwork import masks


def random_masks(seed: int, density: float) -> masks.Masks:
    rng = torch.Generator().manual_seed(seed)
    return {"a": torch.rand((30, 20), generator=rng) < density, "b": torch.rand((10, 30), generator=rng) < density}


@given(seed=st.integers(0, 1000), density=st.floats(0.02, 0.98))
def test_agreement_equals_a_loop_over_entries(seed: int, density: float) -> None:
    a, b = random_masks(seed, density), random_masks(seed + 1, 0.3)
    differ = total = 0
    chance = 0.0
    for name in a:
        p, q = float(a[name].double().mean()), float(b[name].double().mean())
        for i, j in zip(a[name].flatten().tolist(), b[name].flatten().tolist(), strict=True):
            differ += i != j
            total += 1
            chance += p * (1 - q) + q * (1 - p)
    found = masks.agreement(a, b)
    assert found.hamming == pytest.approx(differ / total, rel=1e-12)
    assert found.overlap == pytest.approx(1 - differ / chance, rel=1e-9)


def test_overlap_is_one_for_equal_masks_and_about_zero_by_chance() -> None:
    assert masks.agreement(random_masks(0, 0.1), random_masks(0, 0.1)).overlap == 1.0
    by_chance = [masks.agreement(random_masks(i, 0.1), random_masks(i + 500, 0.1)).overlap for i in range(100)]
    assert abs(float(np.mean(by_chance))) < 0.02


def test_empty_masks_are_identical() -> None:
    none = masks.zeros_like(random_masks(0, 0.5))
    assert masks.agreement(none, none).overlap == 1.0
    assert masks.count(none) == 0


@given(scale=st.floats(0.1, 10.0))
def test_divergence_is_zero_for_equal_and_one_for_disjoint_scores(scale: float) -> None:
    where = {"a": torch.ones(4, dtype=torch.bool)}
    a, b = torch.tensor([scale, 0, 0, 0]), torch.tensor([0, 0, 1.0, 0])
    assert masks.divergence({"a": a}, {"a": a}, where) == 0.0
    assert masks.divergence({"a": a}, {"a": b}, where) < 1.0 + 1e-12
    assert masks.divergence({"a": a}, {"a": -a}, where) == pytest.approx(1.0)
    assert masks.divergence({"a": a}, {"a": a}, masks.zeros_like(where)) == 1.0


def test_applied_masks_only_what_has_a_mask() -> None:
    params = {"a": torch.ones(3), "bias": torch.ones(2)}
    found = masks.apply(params, {"a": torch.tensor([True, False, True])})
    assert found["a"].tolist() == [1, 0, 1]
    assert found["bias"].tolist() == [1, 1]
    assert params["a"].tolist() == [1, 1, 1]
