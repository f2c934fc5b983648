from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import windows
from torch import Tensor

from clmoe_cli.method.tasks.stream import Moments, Options, View, boundaries, deviate, swap

WIDTH = 12


def task(n: int, classes: tuple[int, ...], seed: int) -> tuple[Tensor, Tensor]:
    """Images [n, 12] around one centre for each class, the same centres for the same classes; labels [n]."""
    rng = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(20, WIDTH, generator=torch.Generator().manual_seed(7))
    y = torch.tensor(classes)[torch.randint(len(classes), (n,), generator=rng)]
    return centres[y] + torch.randn(n, WIDTH, generator=rng), y


def joined(*parts: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, list[int]]:
    """The parts one after the other, and where each but the first begins."""
    starts = torch.tensor([len(y) for _, y in parts]).cumsum(0)[:-1].tolist()
    return torch.cat([x for x, _ in parts]), torch.cat([y for _, y in parts]), starts


def near(found: list[int], true: list[int], within: int = 64) -> bool:
    return len(found) == len(true) and all(abs(f - t) <= within for f, t in zip(found, true, strict=True))


@pytest.mark.parametrize("labels", [True, False])
@given(seed=st.integers(0, 1000), lengths=st.lists(st.integers(130, 700), min_size=3, max_size=3))
@settings(max_examples=15)
def test_boundaries_are_found_and_no_others(labels: bool, seed: int, lengths: list[int]) -> None:
    pairs = ((0, 1), (2, 3), (0, 1))
    parts = [task(n, pair, seed + i) for i, (n, pair) in enumerate(zip(lengths, pairs, strict=True))]
    x, y, true = joined(*parts)
    found = boundaries(x, y if labels else None, torch.Generator().manual_seed(seed))
    assert near(found, true)
    if labels:
        assert found == true


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("classes", [(0, 1), tuple(range(20))])
@pytest.mark.parametrize("seed", range(5))
def test_one_task_has_no_boundary(labels: bool, classes: tuple[int, ...], seed: int) -> None:
    x, y = task(3000, classes, seed)
    assert boundaries(x, y if labels else None, torch.Generator().manual_seed(seed)) == []


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("seed", range(8))
def test_a_rare_class_that_comes_late_is_no_boundary(labels: bool, seed: int) -> None:
    x, y, _ = joined(task(700, (0, 1), seed), task(1300, (0, 1), seed + 100))
    rare, _ = task(1300, (2,), seed)
    rng = torch.Generator().manual_seed(seed)
    late = torch.rand(1300, generator=rng) < 0.05
    x[700:][late], y[700:][late] = rare[late], 2
    assert boundaries(x, y if labels else None, rng) == []


@pytest.mark.parametrize("seed", range(5))
def test_half_of_the_classes_may_stay(seed: int) -> None:
    x, y, true = joined(task(500, (0, 1), seed), task(500, (1, 2), seed + 1))
    for labels in (y, None):
        assert near(boundaries(x, labels, torch.Generator().manual_seed(seed)), true)


@pytest.mark.parametrize("seed", range(3))
def test_labels_alone_tell_where_images_do_not(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(1000, WIDTH, generator=rng)
    y = torch.randint(0, 2, (1000,), generator=rng) + 5 * (torch.arange(1000) >= 400)
    assert boundaries(x, y, rng) == [400]
    assert boundaries(x, None, rng) == []


@pytest.mark.parametrize("labels", [True, False])
@pytest.mark.parametrize("change", [lambda x: -x, lambda x: 0.1 * x, lambda x: 5 * x, lambda x: x.flip(1)])
def test_images_alone_tell_where_labels_do_not(labels: bool, change) -> None:
    first, (x, y) = task(500, (0, 1), 0), task(500, (0, 1), 1)
    x, y, true = joined(first, (change(x), y))
    assert near(boundaries(x, y if labels else None, torch.Generator().manual_seed(0)), true)


@given(power=st.integers(-6, 6), offset=st.floats(-100, 100))
@settings(max_examples=10)
def test_the_unit_of_the_images_does_not_matter(power: int, offset: float) -> None:
    x, _, true = joined(task(400, (0, 1), 0), task(400, (1, 2), 1))
    scales = torch.logspace(-2, 2, WIDTH, dtype=torch.float64)
    moved = (x.double() + offset) * scales * 10.0**power
    assert near(boundaries(moved, None, torch.Generator().manual_seed(0)), true)


def test_nothing_later_than_the_next_window_decides() -> None:
    x, y, _ = joined(task(600, (0, 1), 0), task(600, (2, 3), 1), task(600, (4, 5), 2))
    for labels in (y, None):
        whole = boundaries(x, labels, torch.Generator().manual_seed(3))
        early = boundaries(x[:720], None if labels is None else labels[:720], torch.Generator().manual_seed(3))
        assert whole[:1] == early


def test_a_burst_of_odd_images_is_no_boundary() -> None:
    x, y = task(1000, (0, 1), 0)
    x[512:544] += 20
    assert boundaries(x, y, torch.Generator().manual_seed(0)) == []


@pytest.mark.parametrize("n", [1, 2, 63, 64, 127, 128, 200])
@pytest.mark.parametrize("width", [1, 3])
def test_short_narrow_and_constant_streams(n: int, width: int) -> None:
    y = torch.arange(n) % 2
    for x in (torch.zeros(n, width), torch.zeros(n, width, dtype=torch.uint8), torch.randn(n, width)):
        assert boundaries(x, y, torch.Generator().manual_seed(0)) == []


def test_no_segment_is_shorter_than_the_minimum() -> None:
    options = Options()
    x, y, _ = joined(*[task(40, (i, i + 1), i) for i in range(0, 18, 2)])
    found = [0, *boundaries(x, y, torch.Generator().manual_seed(0), options), len(y)]
    assert all(b - a >= options.minimum for a, b in pairwise(found))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("n", [32, 100])
def test_the_window_statistic_equals_the_slow_one(seed: int, n: int) -> None:
    x = task(2 * n + 32, (0, 1, 2), seed)[0].double()
    view = View.fit(x[:n], 16)
    slow = windows.features(x[:n].numpy(), x[n:].numpy(), 16)
    quick = view.features(x[n:])
    torch.testing.assert_close(quick.abs(), torch.from_numpy(slow).abs(), rtol=1e-8, atol=1e-8)
    found = deviate(Moments.of(quick[:n]), Moments.of(quick[n:]))
    assert found == pytest.approx(windows.deviate(slow[:n], slow[n:]), rel=1e-8, abs=1e-8)


def test_moments_add_up() -> None:
    features = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    both, whole = Moments.of(features[:20]) + Moments.of(features[20:]), Moments.of(features)
    torch.testing.assert_close(both.scatter, whole.scatter)
    torch.testing.assert_close(whole.scatter / 49, torch.cov(features.T))
    assert deviate(both, Moments.of(features[:1])) == -torch.inf


def test_under_chance_the_statistic_is_standard_normal() -> None:
    found = []
    for seed in range(100):
        x = task(128 + 32 * 4, (0, 1), seed)[0].double()
        view = View.fit(x[:64], 16)
        reference, rest = Moments.of(view.features(x[64:128])), view.features(x[128:])
        found += [deviate(reference, Moments.of(part)) for part in rest.split(32)]
    values = torch.tensor(found)
    assert abs(float(values.mean())) < 0.3
    assert 0.8 < float(values.std()) < 1.2
    assert float(values.max()) < 4.5


@pytest.mark.parametrize(
    ("before", "now", "found"),
    [
        ([100, 100, 0, 0], [0, 0, 16, 16], 1.0),
        ([100, 100, 0, 0], [16, 0, 16, 0], 0.5),
        ([100, 100, 0, 0], [14, 14, 4, 0], 0.0),
        ([100, 100, 0, 0], [16, 16, 0, 0], 0.0),
        ([190, 10, 0, 0], [32, 0, 0, 0], 0.0),
    ],
)
def test_labels_are_swapped_when_as_many_go_as_come(before: list[int], now: list[int], found: float) -> None:
    assert swap(torch.tensor(before), torch.tensor(now)) == pytest.approx(found, abs=0.01)


def test_images_change_just_before_the_labels_do() -> None:
    x, y, _ = joined(task(544, (0, 1), 0), task(400, (2, 3), 1))
    x[512:544] += 20
    assert boundaries(x, y, torch.Generator().manual_seed(0)) == [544]
