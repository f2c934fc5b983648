"""The gate of Gaussians against whole covariance matrices: scores, the choice, images left out, p-values, order."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from method.test_gate import clouds
from oracle import gaussians as slow
from torch import Tensor

from clmoe_cli.method.routing import gaussians
from clmoe_cli.method.routing.gaussians import (
    ALPHAS,
    FINE,
    GRID,
    KAPPAS,
    NEVER,
    GaussianGate,
    Gaussians,
    fit_part,
    solve,
)
from clmoe_cli.method.routing.subspaces import FOLDS


def fit(values: Tensor, y: Tensor, classes: int, even: bool) -> Gaussians:
    """The statistics without noise, which classes of few images have."""
    return gaussians.fit(values, y, classes, even, torch.zeros(classes, values.shape[1], dtype=torch.float64))


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
    return p, slow.trusted(ALPHAS[a]), gaussians.SHARPNESSES[s]


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


def cloud_tasks(classes: int = 6, n: int = 600, width: int = 30) -> list[Gaussians]:
    """Tasks of two classes each."""
    x, y = clouds(classes, n, 0, width)
    return [fit(x[y // 2 == t], y[y // 2 == t] % 2, 2, True) for t in range(classes // 2)]


def test_what_classes_share_in_a_column_that_never_varies_parts_tasks_and_no_classes() -> None:
    rng = torch.Generator().manual_seed(0)
    y, found, asked = torch.arange(200) % 2, [], []
    for task in range(2):
        values = torch.randn((300, 3), generator=rng) * torch.tensor([1.0, 100.0, 1e-3])
        values[:, 0] += 6.0 * (torch.arange(300) % 2)
        # The number of the day, say: constant while a task is learned.
        values = torch.cat([values, torch.full((300, 1), 2019.0 + task)], dim=1)
        found.append(fit(values[:200], y, 2, False))
        asked.append(values[200:])
    gate = gate_of(found)
    for task in range(2):
        compared = gate.compare(asked[task], found.__getitem__)
        best = compared.chosen.gather(1, compared.likely.argmax(dim=1, keepdim=True))[:, 0]
        assert bool((gate.owner[best] == task).all())
        assert float((gate.position[best] == torch.arange(100) % 2).double().mean()) > 0.98


@pytest.mark.parametrize("even", [True, False])
def test_a_column_that_has_never_varied_decides_nothing_when_it_does(even: bool) -> None:
    rng = torch.Generator().manual_seed(0)
    scale = torch.ones(4) if even else torch.tensor([1.0, 300.0, 1e-3, 1e7])
    y = torch.arange(300) % 2
    values = (torch.randn((300, 4), generator=rng) + 6 * y[:, None]) * scale
    for value in (0.0, 2019.0):
        constant = torch.cat([values, torch.full((300, 1), value)], dim=1)
        task = fit(constant[:200], y[:200], 2, even)
        gate = gate_of([task])
        for new in (value, value + 1, -40.0, 1e6):
            asked = constant[200:].clone()
            asked[:, 4] = new
            compared = gate.compare(asked, lambda _, task=task: task)
            assert bool(compared.likely.isfinite().all())
            best = compared.chosen.gather(1, compared.likely.argmax(dim=1, keepdim=True))[:, 0]
            assert float((best == y[200:]).double().mean()) > 0.98


@pytest.mark.parametrize("sizes", [[[1], [1]], [[1]], [[1, 1], [1, 1]]])
def test_classes_of_one_image_are_told_by_the_nearest_and_by_finite_numbers(sizes: list[list[int]]) -> None:
    tasks, values = tasks_of(sizes, 5, 0)
    gate = gate_of(tasks)
    compared = gate.compare(values, tasks.__getitem__)
    assert bool(compared.likely.isfinite().all())
    means = torch.cat([t.means for t in tasks]).double()
    nearest = torch.cdist(values.double(), means).argmin(dim=1)
    best = compared.chosen.gather(1, compared.likely.argmax(dim=1, keepdim=True))[:, 0]
    assert torch.equal(best, nearest)


def test_the_linear_discriminant_is_the_gate_without_own_covariances() -> None:
    tasks, values = tasks_of([[60, 50], [70, 40, 45]], 8, 3)
    gate = gate_of(tasks)
    gate.solved.choice[0] = 0.0
    full = gate.scores(values, torch.arange(5).expand(len(values), -1), tasks.__getitem__)
    linear = gate.linear(values)
    torch.testing.assert_close(linear - linear[:, :1], full - full[:, :1], rtol=1e-4, atol=1e-4)
    assert torch.equal(gate.shortlist(values, 2)[1], linear.topk(2, dim=1).indices)


@given(counts=st.lists(st.integers(1, 23), min_size=1, max_size=5), seed=st.integers(0, 9))
def test_folds_spread_each_class_evenly(counts: list[int], seed: int) -> None:
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
    fold = gaussians.folds(y)
    for c, count in enumerate(counts):
        own = fold[y == c]
        assert bool((own.diff() >= 0).all())
        sizes = torch.bincount(own, minlength=FOLDS)
        assert len(sizes) == FOLDS
        assert int(sizes.max()) <= -(-count // FOLDS)
        if count >= FOLDS:
            assert int(sizes.min()) >= count // FOLDS


@given(counts=st.lists(st.integers(1, 90), min_size=1, max_size=4), seed=st.integers(0, 9))
@settings(deadline=None)
def test_folds_of_neighbours_are_those_of_the_plain_halving(counts: list[int], seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    y = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    y = y[torch.randperm(len(y), generator=rng)]
    values = torch.randn((len(y), 6), generator=rng) * torch.tensor([9.0, 5.0, 2.0, 1.0, 1.0, 1.0])
    fold = gaussians.folds(y, values)
    for c, count in enumerate(counts):
        sizes = torch.bincount(fold[y == c], minlength=FOLDS)
        assert len(sizes) == FOLDS
        assert int(sizes.max() - sizes.min()) <= max(gaussians.TOGETHER, 1 if count < FOLDS else count // FOLDS)
    wanted = [slow.halved(slow.double(values), (y == c).nonzero()[:, 0].tolist()) for c in range(len(counts))]
    assert gaussians._neighbouring(values, y).tolist() == [i for each in wanted for i in each]


def test_images_that_lie_together_are_left_out_together() -> None:
    rng = torch.Generator().manual_seed(1)
    sign = torch.arange(240) // 10
    sign = sign[torch.randperm(240, generator=rng)]
    middles = torch.randn((24, 12), generator=rng) * 20
    values, y = middles[sign] + torch.randn((240, 12), generator=rng) / 100, sign % 2
    together = torch.tensor([len(gaussians.folds(y, values)[sign == each].unique()) for each in range(24)])
    apart = torch.tensor([len(gaussians.folds(y)[sign == each].unique()) for each in range(24)])
    assert float(together.double().mean()) <= 2
    assert float(apart.double().mean()) >= 3


@pytest.mark.parametrize("even", [True, False])
def test_tallies_are_sums_over_left_out_images_by_whole_covariance_matrices(even: bool) -> None:
    rng = torch.Generator().manual_seed(4)
    y = torch.tensor([0, 1, 0, 0, 2]).repeat(8)
    scale = torch.ones(5) if even else 10.0 ** torch.linspace(-2, 2, 5)
    values = (torch.randn((40, 5), generator=rng) + y[:, None]) * scale
    units = torch.ones(5) if even else gaussians._units(values, y, 3)
    # Of the third class there is nothing in the fit: it is not among the answers.
    rest = (torch.arange(40) > 9) & (y < 2)
    part = fit_part(values[rest], y[rest], 3, units)
    out = (torch.arange(40) <= 9) & (y < 2)
    known = torch.tensor([True, True, False])
    grid, apart = gaussians.tally(part, units, values[out], y[out], known, even, (0.0, 0.5, 1.0))
    offered = range(len(KAPPAS)) if even else range(len(KAPPAS), 2 * len(KAPPAS))
    for w, p, a, s in itertools.product(range(3), offered, (0, 3, 6), (0, 6, 20)):
        choice = p, ALPHAS[a], gaussians.SHARPNESSES[s]
        wanted = slow.tally(part, units, values[out], y[out], [0, 1], choice, w / 2)
        assert float(grid[w, p, a, s]) == pytest.approx(wanted, rel=1e-6, abs=1e-8)
    wide = np.diag(slow.double(units))
    covariance = wide @ slow.shared(*part.shared) @ wide
    for p in range(2 * len(KAPPAS)):
        means = slow.double(part.means[:2])
        b = slow.regular(covariance, p, float(part.counts.sum()), means)
        assert float(apart[p]) == pytest.approx(slow.apart(means, b) if p in offered else 0.0, rel=1e-6)


@pytest.mark.parametrize("even", [True, False])
def test_the_choice_is_made_by_images_that_were_left_out(even: bool) -> None:
    rng = torch.Generator().manual_seed(6)
    y = torch.arange(60) % 2
    values = torch.randn((60, 8), generator=rng) + y[:, None] / 2
    values = values if even else values * 10.0 ** torch.linspace(-3, 3, 8)
    # Neighbours in a table are rows that lie together in all columns, whatever their units.
    units = torch.ones(8) if even else gaussians._units(values, y, 2)
    found, fold = fit(values, y, 2, even), gaussians.folds(y, values / units)
    wanted = torch.zeros(GRID, dtype=torch.float64)
    for i in range(FOLDS):
        out = fold == i
        part = fit_part(values[~out], y[~out], 2, units, whole=torch.bincount(y))
        known = torch.tensor([True, True])
        wanted += gaussians.tally(part, units, values[out], y[out], known, even)[0][0]
    offered = slice(0, len(KAPPAS)) if even else slice(len(KAPPAS), None)
    torch.testing.assert_close(found.tallies[offered], wanted[offered], rtol=1e-9, atol=1e-9)


def mixture(rows: int, rare: float, apart: float, seed: int) -> tuple[Tensor, Tensor]:
    """Rows [n, 6] of two classes that lie so far apart; the share ``rare`` is of the second."""
    rng = torch.Generator().manual_seed(seed)
    y = (torch.arange(rows) < rare * rows).long()
    return torch.randn((rows, 6), generator=rng) + apart * y[:, None] * torch.tensor([1.0, 1, 0, 0, 0, 0]), y


def test_a_class_counts_by_its_share_where_held_out_images_say_so() -> None:
    x, y = mixture(600, 0.05, 1.2, 0)
    found = fit(x, y, 2, False)
    wanted = torch.tensor(slow.log_shares([570, 30]), dtype=torch.float64)
    assert any(torch.allclose(found.priors, power * wanted) for power in (0.5, 1.0))
    asked, truth = mixture(4000, 0.05, 1.2, 1)
    right = []
    for task in (found, replace(found, priors=torch.zeros(2, dtype=torch.float64))):
        likely = gaussians.alone(task).within(asked, 0, lambda _, task=task: task).likely
        right.append(float((likely.argmax(dim=1) == truth).double().mean()))
    # The larger class alone is right for 95 %.
    assert right[0] > 0.95 > right[1]


@pytest.mark.parametrize(("rare", "apart"), [(0.05, 30.0), (0.4, 1.2)], ids=["far apart", "of like size"])
def test_shares_that_tell_nothing_leave_classes_equally_likely(rare: float, apart: float) -> None:
    x, y = mixture(600, rare, apart, 0)
    assert fit(x, y, 2, False).priors.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("gains", "wanted"),
    [((0.0, 1.9, 1.9), 0), ((0.0, 2.1, 4.0), 1), ((0.0, 2.1, 4.2), 2), ((0.0, 1.0, 2.1), 2), ((0.0, -9.0, -9.0), 0)],
)
def test_a_power_of_shares_has_to_be_worth_its_nats(gains: tuple[float, ...], wanted: int) -> None:
    grids = torch.full((3, *GRID), -100.0, dtype=torch.float64)
    # Where the prior of α, κ and sharpness costs nothing.
    grids[:, :, 4, 6] += torch.tensor(gains, dtype=torch.float64)[:, None]
    assert gaussians._telling(grids) == wanted


def test_scores_have_the_priors_of_their_classes() -> None:
    tasks, values = tasks_of([[40, 50], [60, 30, 45]], 6, 11)
    priors = [torch.tensor(own, dtype=torch.float64) for own in ([0.7, -1.5], [-3.0, 0.25, 0.5])]
    against([replace(task, priors=own) for task, own in zip(tasks, priors, strict=True)], values)


def test_a_ridge_that_is_not_offered_is_not_chosen() -> None:
    rng = torch.Generator().manual_seed(0)
    scale = torch.tensor([1e-3, 1.0, 1e3])
    for classes, n in ((1, 40), (2, 2), (2, 60)):
        values = torch.randn((n, 3), generator=rng) * scale
        found = fit(values, torch.arange(n) % classes, classes, False)
        # Of two images there is nothing that tells units.
        uneven = bool((found.units != 1).any())
        assert uneven == (n > 2)
        offered = gaussians.choose(found.tallies).ridge >= len(KAPPAS)
        assert offered == uneven
        assert found.tallies.isfinite().all()
        even = fit(values, torch.arange(n) % classes, classes, True)
        assert gaussians.choose(even.tallies).ridge < len(KAPPAS)
        assert even.tallies.min() <= NEVER < -1e9


@given(seed=st.integers(0, 30), size=st.sampled_from([0.0, 1.0, 30.0]))
def test_the_choice_is_the_likeliest_by_tallies_and_prior(seed: int, size: float) -> None:
    tallies = size * torch.randn(GRID, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    p, a, s = slow.chosen(tallies)
    assert gaussians.choose(tallies) == gaussians.Choice(p, slow.trusted(ALPHAS[a]), gaussians.SHARPNESSES[s])
    if size == 0.0:
        assert (KAPPAS[p], ALPHAS[a], gaussians.SHARPNESSES[s]) == (0.3, 0.2, 0.125)


def test_means_covariances_and_quantiles_are_those_of_the_images() -> None:
    x, y = clouds(2, 90, 3, 12)
    found = fit(x, y, 2, True)
    centred = x.double().clone()
    for c in range(2):
        torch.testing.assert_close(found.means[c].double(), x[y == c].double().mean(dim=0), rtol=1e-5, atol=1e-6)
        centred[y == c] -= x[y == c].double().mean(dim=0)
        rank = min(45 // 4, 12)
        own = centred[y == c].T @ centred[y == c] / 45
        values, vectors = torch.linalg.eigh(own)
        best = (vectors[:, -rank:] * values[-rank:]) @ vectors[:, -rank:].T
        torch.testing.assert_close(torch.from_numpy(slow.own(found, c)), best, rtol=0, atol=2e-3 * float(values[-1]))
    whole = centred.T @ centred / 90
    within = torch.from_numpy(slow.within(found))
    torch.testing.assert_close(within, whole, rtol=0, atol=2e-3 * float(whole.diagonal().max()))
    covariance = found.covariance()
    torch.testing.assert_close(covariance.wide @ covariance.wide.T + torch.diag(covariance.rest), within)
    assert covariance.images == 90
    # Each image is left out of the fit that tells how far it lies.
    fold = gaussians.folds(y, count=FINE)
    for c in range(2):
        own_distances = []
        for n in (y == c).nonzero()[:, 0].tolist():
            part = fit_part(x[fold != fold[n]], y[fold != fold[n]], 2, torch.ones(12), False, torch.bincount(y))
            parts = part.means[c], part.directions[c], part.variances[c], torch.ones(12), part.variance
            own_distances.append(slow.distance(x[n], *parts))
        steps = torch.linspace(0, 1, found.quantiles.shape[1], dtype=torch.float64)
        wanted = torch.tensor(own_distances, dtype=torch.float64).quantile(steps)
        torch.testing.assert_close(found.quantiles[c].double(), wanted, rtol=1e-4, atol=1e-6)
        variance = float(found.shared_variances.sum() + found.shared_rest.sum()) / 12
        parts = found.means[c], found.directions[c], found.variances[c], torch.ones(12), variance
        wanted = torch.tensor([slow.distance(one, *parts) for one in x[:9]], dtype=torch.float64)
        torch.testing.assert_close(found.distances(x[:9], c), wanted, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("width", [10, 100, 700])
def test_p_values_of_a_classes_own_new_images_are_uniform(width: int) -> None:
    x, y = clouds(2, 1200, 5, width)
    found = fit(x, y, 2, True)
    new, truth = clouds(2, 2000, 6, width)
    for c in range(2):
        p = found.p_values(found.distances(new[truth == c], c), c)
        for alpha in (0.05, 0.2, 0.5, 0.9):
            error = math.sqrt(alpha * (1 - alpha) * (1 / 1000 + 1 / 600))
            # Of many features a fit of four fifths of the images tells new ones a little worse than one of all.
            worse = 0.05 if width > 600 else 0.01
            assert abs(float((p < alpha).double().mean()) - alpha) < 3 * error + worse
        assert float(found.p_values(found.distances(new[truth != c], c), c).mean()) < 0.1


@pytest.mark.parametrize("even", [True, False])
def test_p_values_of_a_tasks_own_new_images_are_uniform_however_many_classes_it_has(even: bool) -> None:
    classes, width = 8, 12
    rng = torch.Generator().manual_seed(5)
    centres = 0.6 * torch.randn((classes, width), generator=rng)  # each class lies near several others

    def drawn(n: int) -> tuple[Tensor, Tensor]:
        labels = torch.arange(n) % classes
        return centres[labels] + torch.randn((n, width), generator=rng), labels

    x, y = drawn(800)
    found = fit(x, y, classes, even)
    # The oracle: of every image the largest p-value, by fits that leave its fold out.
    fold, largest = gaussians.folds(y, count=FINE), []
    quantiles, near = found.quantiles.double(), found.near.double()
    for n in range(0, len(y), 7):
        rest = fold != fold[n]
        part = fit_part(x[rest], y[rest], classes, found.units, False, torch.bincount(y))
        p = []
        for c in range(classes):
            parts = part.means[c], part.directions[c], part.variances[c], found.units, part.variance
            far = float((quantiles[c] >= slow.distance(x[n], *parts)).double().mean())
            p.append((far * 100 + 1) / 101)
            if not even:
                away = float(((x[n].double() - part.means[c].double()) / found.units.double()).square().sum())
                low = (float((near[c] <= away).double().mean()) * 100 + 1) / 101
                p[c] = min(1.0, p[c] / 0.95, low / 0.05)
        largest.append(max(p))
    sample = torch.tensor(largest, dtype=torch.float64)
    for level in (0.1, 0.3, 0.5, 0.7):
        # A seventh of the images tells a quantile of all of them this well.
        assert abs(float((found.best <= sample.quantile(level)).double().mean()) - level) < 0.16
    new, truth = drawn(4000)
    each = torch.stack([found.usual(new, found.distances(new, c), c) for c in range(classes)])
    p = found.answered(new, each.argmax(dim=0))
    for alpha in (0.05, 0.2, 0.5):
        error = math.sqrt(alpha * (1 - alpha) * (1 / 4000 + 1 / 800))
        assert abs(float((p < alpha).double().mean()) - alpha) < 4 * error + 0.01
    assert float((each.max(dim=0).values < 0.05).double().mean()) < 0.035  # by itself the largest is no p-value
    # Without what is kept for it, as in stores of before, an answer is judged by its class alone.
    old = replace(found, best=torch.zeros(0, dtype=torch.float64))
    torch.testing.assert_close(old.answered(new, truth), each.gather(0, truth[None])[0])


def test_of_vectors_both_tails_count() -> None:
    x, y = clouds(2, 400, 5, 40)
    found, even = fit(x, y, 2, False), fit(x, y, 2, True)
    assert even.near.shape == (2, 0)
    for c in range(2):
        # The oracle: how far each image lies from the mean of those of other folds.
        fold, away = gaussians.folds(y, count=FINE), []
        for n in (y == c).nonzero()[:, 0].tolist():
            mean = x[(y == c) & (fold != fold[n])].double().mean(dim=0)
            away.append(float(((x[n].double() - mean) / found.units.double()).square().sum()))
        steps = torch.linspace(0, 1, found.near.shape[1], dtype=torch.float64)
        wanted = torch.tensor(away, dtype=torch.float64).quantile(steps)
        torch.testing.assert_close(found.near[c].double(), wanted, rtol=1e-4, atol=1e-6)
        inner = found.means[c] + 0.2 * (x[y == c] - found.means[c])
        for task, usual in ((found, False), (even, True)):
            p = task.usual(inner, task.distances(inner, c), c)
            assert (float((p < 0.1).double().mean()) > 0.9) != usual
        # The images themselves and new ones are usual.
        new, truth = clouds(2, 1000, 6, 40)
        for values in (x[y == c], new[truth == c]):
            p = found.usual(values, found.distances(values, c), c)
            assert float((p < 0.05).double().mean()) < 0.05 + 3 * math.sqrt(0.05 * 0.95 * (1 / 500 + 1 / 200))


def test_equal_images_are_usual_and_others_are_not() -> None:
    values = torch.randn((2, 30), generator=torch.Generator().manual_seed(0)).repeat_interleave(80, dim=0) * 1000
    y = torch.arange(160) // 80
    for even in (True, False):
        found = fit(values, y, 2, even)
        for c in range(2):
            own = values[y == c]
            assert found.usual(own, found.distances(own, c), c).tolist() == [1.0] * 80
            other = own * 1.001
            assert float(found.usual(other, found.distances(other, c), c).max()) < 0.05


def test_of_one_image_a_class_nothing_is_sure() -> None:
    x, _ = clouds(3, 3, 1, 20)
    found = fit(x, torch.arange(3), 3, True)
    posterior = gate_of([found]).compare(x, lambda task: found).likely.softmax(dim=1)
    assert float(posterior.max()) < 0.99


def test_distances_and_answers_do_not_depend_on_the_units_of_uneven_columns() -> None:
    rng = torch.Generator().manual_seed(2)
    y = torch.arange(120) % 2
    plain = torch.randn((120, 6), generator=rng) + y[:, None]
    uneven = plain * 10.0 ** torch.linspace(-5, 5, 6)
    # Powers of two change no last bit.
    scale = 2.0 ** torch.tensor([3.0, -4.0, 0.0, 9.0, -7.0, 1.0])
    one, two = fit(uneven, y, 2, False), fit(uneven * scale, y, 2, False)
    assert bool((one.units != 1).all())
    torch.testing.assert_close(two.units, one.units * scale)
    for c in range(2):
        torch.testing.assert_close(two.distances(uneven * scale, c), one.distances(uneven, c), rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(two.quantiles, one.quantiles, rtol=1e-5, atol=1e-9)
    answers = [
        gate_of([task]).compare(values, lambda _, task=task: task).likely
        for task, values in ((one, uneven), (two, uneven * scale))
    ]
    torch.testing.assert_close(answers[0], answers[1], rtol=1e-4, atol=1e-4)


def test_columns_of_one_unit_stay_as_they_are() -> None:
    x, y = clouds(2, 200, 0, 8)
    assert torch.equal(gaussians._units(x, y, 2), torch.ones(8))
    x[:, 3] = 5.0
    uneven = x * 10.0 ** torch.linspace(-2, 2, 8)
    units = gaussians._units(uneven, y, 2)
    assert float(units[3]) == 1.0
    assert int((units != 1).sum()) == 7
    assert torch.equal(gaussians._units(torch.ones(9, 4), torch.arange(9) % 2, 2), torch.ones(4))


@pytest.mark.parametrize("width", [15, 120], ids=["more directions than features", "fewer directions than features"])
@pytest.mark.parametrize("order", [[3, 2, 1, 0], [1, 3, 0, 2]])
def test_the_order_of_the_tasks_changes_no_bit_of_what_they_share(order: list[int], width: int) -> None:
    tasks = cloud_tasks(8, 400, width)
    plain, turned = solve(tasks), solve([tasks[t] for t in order])
    assert plain.reach.shape[1] == min(width, sum(t.shared.shape[1] for t in tasks))
    for name in ("reach", "spread", "choice"):
        assert torch.equal(getattr(plain, name), getattr(turned, name))
    torch.testing.assert_close(turned.centre, plain.centre, rtol=1e-6, atol=1e-9)
    rows = torch.tensor([2 * t + c for t in order for c in range(2)])
    assert torch.equal(turned.means, plain.means[rows])
    torch.testing.assert_close(turned.weights, plain.weights[rows], rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(turned.grams, plain.grams[rows], rtol=1e-6, atol=1e-9)


def test_statistics_are_the_same_for_the_same_images_and_of_no_others() -> None:
    x, y = clouds(4, 400, 0, 20)
    first = fit(x[y < 2], y[y < 2], 2, True)
    state = torch.get_rng_state()
    again = fit(x[y < 2], y[y < 2], 2, True)
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(vars(first).values(), vars(again).values(), strict=True))


def test_only_the_tasks_of_the_shortlist_are_read_and_batches_find_theirs() -> None:
    tasks = cloud_tasks(30, 3000, 60)
    gate = gate_of(tasks)
    asked: set[int] = set()

    def statistics(task: int) -> Gaussians:
        asked.add(task)
        return tasks[task]

    new, truth = clouds(30, 600, 1, 60)
    some = new[truth == 4][:5]
    compared = gate.compare(some, statistics)
    assert compared.chosen.shape == (5, gaussians.SHORTLIST)
    assert asked == set(gate.owner[compared.chosen].flatten().tolist())
    every = gate.compare(new, statistics)
    best = every.chosen.gather(1, every.likely.argmax(dim=1, keepdim=True))[:, 0]
    assert float((best == truth).double().mean()) > 0.99
    for t in range(0, 15, 4):
        batch = new[truth // 2 == t].clone()
        batch[:4] = 50 * torch.randn(batch[:4].shape, generator=torch.Generator().manual_seed(t))
        near = gate.shortlisted_tasks(batch, 3)
        assert t in near
        assert near[int(gate.evidence(batch, near, statistics).argmax())] == t
    assert gate.shortlisted_tasks(new[:9], 99) == list(range(15))


def test_a_posterior_is_as_sure_as_it_is_right() -> None:
    x, y = clouds(6, 3000, 0, 30)
    noise = torch.Generator().manual_seed(5)
    busy = x + 0.25 * torch.randn(x.shape, generator=noise)
    tasks = [fit(busy[y // 2 == t], y[y // 2 == t] % 2, 2, True) for t in range(3)]
    new, truth = clouds(6, 1800, 1, 30)
    new = new + 0.25 * torch.randn(new.shape, generator=noise)
    compared = gate_of(tasks).compare(new, tasks.__getitem__)
    confidence, best = compared.likely.softmax(dim=1).max(dim=1)
    right = float((compared.chosen.gather(1, best[:, None])[:, 0] == truth).double().mean())
    assert 0.5 < right < 0.99
    assert abs(float(confidence.mean()) - right) < 0.05
