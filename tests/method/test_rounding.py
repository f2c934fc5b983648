"""Rounded directions: few bits, a covariance that does not notice, half precision where room does not matter."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from clmoe_cli.method.routing import gaussians, mahalanobis
from clmoe_cli.method.routing.rounding import BESIDE, FEW, WITHIN, rounded
from store_schema import directions


def case(seed: int, d: int, k: int, steep: float) -> tuple[torch.Tensor, torch.Tensor]:
    """Orthonormal directions [d, k] and falling variances [k]."""
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.linalg.qr(torch.randn(d, k, generator=generator, dtype=torch.float64))[0]
    return vectors, torch.logspace(steep, 0, k, dtype=torch.float64)


def slowly(vectors: torch.Tensor, variances: torch.Tensor, rest: float) -> np.ndarray:
    """The reference: one direction and one number after the other, by the equations of the module."""
    d, count = vectors.shape
    found = np.zeros((d, count))
    for k in range(count):
        largest = max(abs(float(v)) for v in vectors[:, k])
        if largest == 0:
            continue
        beside = math.sqrt(12 * 0.01 * rest / (count * float(variances[k])))
        step = max(min(beside, math.sqrt(12 * 0.003 / d)), largest / 1024)
        power = 0
        while 2.0**power > step:
            power -= 1
        for i in range(d):
            found[i, k] = round(float(vectors[i, k]) / 2.0**power) * 2.0**power
    return found


@given(seed=st.integers(0, 50), d=st.integers(FEW, 500), k=st.integers(1, 40), steep=st.floats(0, 6))
def test_it_is_what_the_equations_say(seed: int, d: int, k: int, steep: float) -> None:
    vectors, variances = case(seed, d, k, steep)
    found = rounded(vectors, variances, 0.7)
    assert found.dtype == torch.float16
    np.testing.assert_array_equal(found.double().numpy(), slowly(vectors, variances, 0.7))
    assert not (np.signbit(found.numpy()) & (found.numpy() == 0)).any()


@given(seed=st.integers(0, 50), steep=st.floats(0, 3), rest=st.floats(0.01, 2))
def test_a_covariance_gains_no_more_than_it_may(seed: int, steep: float, rest: float) -> None:
    vectors, variances = case(seed, 600, 30, steep)
    error = rounded(vectors, variances, rest).double() - vectors
    # Up to chance, or as near as half precision comes.
    near = vectors.abs().amax(dim=0) / 2048
    beside = (error.square().mean(dim=0) * variances).sum() / rest
    assert beside <= 1.3 * BESIDE + float((near.square() * variances).sum()) / rest
    assert bool((error.square().sum(dim=0) <= 1.3 * WITHIN + 600 * near.square()).all())


def test_small_variances_are_rounded_coarsely_and_large_ones_finely() -> None:
    vectors, variances = case(0, 1000, 50, 4.0)
    error = (rounded(vectors, variances, 1.0).double() - vectors).square().sum(dim=0)
    assert error[0] < 1e-4
    assert error[-1] > 5e-4
    packed = directions.smaller(rounded(vectors, variances, 1.0).numpy())
    assert packed.dtype == np.uint16
    # Steps of half precision: every number is exact there.
    assert int(packed[:, 1:].max()) < 2 * 2048


@pytest.mark.parametrize("d", [1, 8, 64, FEW - 1])
def test_of_few_features_half_precision_is_all(d: int) -> None:
    vectors, variances = case(1, d, min(d, 20), 5.0)
    assert torch.equal(rounded(vectors, variances, 1.0), vectors.half())


def test_no_direction_and_no_rest_are_no_trouble() -> None:
    vectors, variances = case(2, 300, 10, 2.0)
    vectors[:, 3:], variances[3:] = 0.0, 0.0
    for rest in (0.0, -1e-9, 1.0):
        found = rounded(vectors, variances, rest)
        assert bool(found.isfinite().all())
        assert not found[:, 3:].any()
    # Without anything beside them they are as near as half precision comes.
    assert float((rounded(vectors, variances, 0.0).double() - vectors).abs().max()) < float(vectors.abs().max()) / 1024
    assert rounded(torch.zeros(300, 0), torch.zeros(0), 1.0).shape == (300, 0)


def test_both_statistics_are_of_rounded_directions() -> None:
    """What is decided with is what is stored: the rest beside the directions is that beside the rounded ones."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(400, 300, generator=generator) * torch.linspace(3, 0.1, 300)
    y = torch.arange(400) % 2
    part = gaussians.fit_part(x, y, 2, torch.ones(300))
    shared, variances, rest = part.shared
    assert directions.smaller(shared.numpy()).dtype == np.uint16
    assert directions.smaller(part.directions.numpy()).dtype == np.uint16
    centred = x - part.means[y]
    whole = (shared.double().square() * variances.double()).sum(dim=1) + rest.double()
    torch.testing.assert_close(whole, centred.double().square().mean(dim=0), rtol=1e-4, atol=1e-6)
    whitened = mahalanobis.fit_gaussian(x, y, 2, 32)
    assert directions.smaller(whitened.directions.half().numpy()).dtype == np.uint16
    assert torch.equal(whitened.directions.half().float(), whitened.directions)
