"""How experts read numbers: any unit of measure, constant and wild columns, and nothing of a row in what is kept."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from clmoe_cli.method import scaling as scalings
from clmoe_cli.method.images import Images
from clmoe_cli.method.scaling import BOUND, LEAST, MOST, Scaling, centring, standardising


def arrays(found: Scaling) -> tuple[Tensor, Tensor]:
    assert found.centre is not None
    assert found.spread is not None
    return found.centre, found.spread


def table(n: int, d: int, seed: int) -> Tensor:
    return torch.randn((n, d), generator=torch.Generator().manual_seed(seed))


@given(
    seed=st.integers(0, 99),
    n=st.integers(LEAST, 300),
    units=st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=8),
    offset=st.floats(-1000, 1000),
)
def test_columns_of_any_unit_and_offset_become_alike(seed: int, n: int, units: list[float], offset: float) -> None:
    unit = torch.tensor(units)
    x = (table(n, len(units), seed) + offset) * unit
    found = standardising(x * 0.25, 0.25)
    centre, spread = arrays(found)
    read = found.apply(x)
    assert read.dtype == torch.float32
    assert bool((read.mean(dim=0).abs() < 0.5).all())
    assert bool(((read.std(dim=0) > 0.4) & (read.std(dim=0) < 2.5)).all())
    # Powers of two and few bits: what is kept has no room for a number of an input.
    assert torch.equal(spread.log2(), spread.log2().round())
    steps = centre.double() / spread * scalings.STEPS
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)


@given(seed=st.integers(0, 99), factor=st.floats(1e-3, 1e3))
def test_each_number_depends_on_itself_alone(seed: int, factor: float) -> None:
    x = table(40, 5, seed) * torch.tensor([1.0, 1e3, 1e-3, 0.0, 7.0]) + 3
    found = standardising(x * factor, factor)
    whole = found.apply(x)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(seed))
    assert torch.equal(found.apply(x[order]), whole[order])
    assert torch.equal(torch.cat([found.apply(x[i : i + 1]) for i in range(40)]), whole)
    assert torch.equal(torch.cat([found.apply(part) for part in x.split(7)]), whole)


@given(seed=st.integers(0, 99), share=st.floats(0.0, 0.01), wild=st.sampled_from([1e3, -1e6, 3e38]))
def test_a_few_wild_rows_change_little(seed: int, share: float, wild: float) -> None:
    x = table(200, 3, seed)
    broken = x.clone()
    broken[: round(share * 200)] = wild
    (centre, spread), (other, wide) = arrays(standardising(x, 1.0)), arrays(standardising(broken, 1.0))
    assert bool(((centre - other).abs() <= 0.5).all())
    assert bool(((wide / spread >= 0.5) & (wide / spread <= 2)).all())
    read = standardising(broken, 1.0).apply(broken)
    assert bool((read.abs() <= BOUND).all())


@pytest.mark.parametrize("constant", [0.0, 1.0, -7.5, 1e-30, 1e6])
def test_constant_columns_are_harmless_and_stay_so_when_they_vary_later(constant: float) -> None:
    x = table(100, 3, 0)
    x[:, 1] = constant
    found = standardising(x, 1.0)
    centre, spread = arrays(found)
    assert float(spread[1]) == 1.0
    assert float(centre[1]) == pytest.approx(constant)
    assert bool((found.apply(x)[:, 1].abs() < 1e-6).all())
    later = table(100, 3, 1) * 1e9
    read = found.apply(later)
    assert bool(torch.isfinite(read).all())
    assert float(read.abs().max()) <= BOUND


def test_columns_that_hardly_ever_vary_do_not_keep_the_rows_that_do() -> None:
    x = table(1000, 4, 0)
    x[:, 2] = 0.0
    plain = arrays(standardising(x, 1.0))
    x[17, 2] = 0.731
    for one, other in zip(plain, arrays(standardising(x, 1.0)), strict=True):
        assert torch.equal(one, other)


def test_reading_back_an_input_reaches_no_more_than_the_mean_of_many_would() -> None:
    shares = []
    for seed in range(20):
        x = table(LEAST, 200, seed)  # true mean 0, spread 1: what is known without any image
        centre, _ = arrays(standardising(x, 1.0))
        # The best guess of a row is the centre. How much of a row does it explain, of what is not known before?
        shares.append(1.0 - float((x - centre).square().mean() / x.square().mean()))
        nearest = torch.cdist(centre[None], x).min()
        assert float(nearest) > 0.8 * float(x.norm(dim=1).mean())
    assert float(np.mean(shares)) < 1.5 / LEAST


@pytest.mark.parametrize("n", [1, 2, LEAST - 1])
def test_of_few_inputs_nothing_is_kept(n: int) -> None:
    found = standardising(table(n, 5, 0), 0.5)
    assert (found.factor, found.centre, found.spread, found.standardised) == (0.5, None, None, False)
    x = table(3, 5, 1)
    assert torch.equal(found.apply(x), x * 0.5)


def test_many_and_wide_inputs_are_sampled_and_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = table(3 * MOST, 6, 0) * torch.tensor([1.0, 5, 0.2, 1, 1, 9])
    whole = arrays(standardising(x, 1.0))
    unread = Images(lambda rows: x[rows], torch.arange(len(x)), 6)
    for one, other in zip(whole, arrays(standardising(unread, 1.0)), strict=True):
        assert torch.equal(one, other)
    monkeypatch.setattr(scalings, "NUMBERS", 6 * MOST)  # one column at a time
    for one, other in zip(whole, arrays(standardising(x, 1.0)), strict=True):
        assert torch.equal(one, other)


@given(seed=st.integers(0, 99), factor=st.sampled_from([1.0, 0.37, 1e-4]))
def test_what_is_undone_is_read_as_it_was(seed: int, factor: float) -> None:
    found = standardising(table(50, 4, seed) + 2, factor)
    wanted = table(20, 4, seed + 1).clamp(-BOUND, BOUND)
    torch.testing.assert_close(found.apply(found.undone(wanted)), wanted, rtol=1e-5, atol=1e-5)


def test_without_centre_a_scaling_is_one_factor() -> None:
    x = table(4, 3, 0) * 1e6
    assert Scaling().apply(x) is x
    assert torch.equal(Scaling(0.25).apply(x), x * 0.25)


@pytest.mark.parametrize(("background", "centre"), [(0.0, None), (0.1, None), (0.26, 0.25), (0.55, 0.5), (1.0, 1.0)])
def test_pictures_are_read_from_their_background(background: float, centre: float | None) -> None:
    x = torch.full((40, 100), background)
    x[:, :30] = torch.rand((40, 30), generator=torch.Generator().manual_seed(0))
    found = centring(x * 0.5, 0.5) if centre is None else centring(x, 1.0)
    if centre is None:
        assert not found.standardised
    else:
        assert torch.equal(found.apply(x), x - centre)
