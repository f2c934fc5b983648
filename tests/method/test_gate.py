"""The gate against slow references: subspaces, images left out, p-values, the shortlist."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from oracle import subspaces as slow
from pictures import turned_clouds as clouds
from torch import Tensor

from clmoe_cli.method.routing import subspaces
from clmoe_cli.method.routing.subspaces import COARSE, Gate, Subspaces, full_distances

WIDTH = 100


def fit(values: Tensor, y: Tensor, classes: int, rank: int = subspaces.RANK) -> Subspaces:
    """All classes of a task."""
    return Subspaces.joined([subspaces.fit(values[y == c], rank) for c in range(classes)])


def solved(tasks: list[Subspaces]) -> Gate:
    coarse = [t.directions[:, :, :COARSE] for t in tasks]
    padded = [torch.nn.functional.pad(c, (0, COARSE - c.shape[2])) for c in coarse]
    counts = [len(t.means) for t in tasks]
    return Gate.of(torch.cat([t.means for t in tasks]), torch.cat(padded), torch.cat([t.scale for t in tasks]), counts)


def test_distances_equal_the_slow_reference() -> None:
    x, y = clouds(3, 240, 0)
    found = fit(x, y, 3)
    new = clouds(3, 12, 1)[0]
    for c in range(3):
        mean, directions = slow.subspace(x[y == c], 20)
        wanted = torch.tensor([slow.distance(one, mean, directions) for one in new], dtype=torch.float64)
        # Directions are kept in half precision.
        torch.testing.assert_close(found.distances(new, c).double(), wanted, rtol=2e-2, atol=1e-3)
        exact = Subspaces(mean[None], directions[None], found.quantiles, found.counts)
        torch.testing.assert_close(exact.distances(new.double(), 0), wanted, rtol=1e-7, atol=1e-12)


def test_dispersion_is_that_of_the_images_left_out() -> None:
    x, y = clouds(2, 240, 0)
    found = fit(x, y, 2, 20)
    for c in range(2):
        own = slow.left_out(x[y == c], 20, subspaces.FOLDS).double()
        mean = own.mean()
        wanted = (120 * ((own - mean) ** 2).mean() / mean + subspaces.PRIOR * mean) / (120 + subspaces.PRIOR)
        torch.testing.assert_close(found.dispersions[c], wanted, rtol=5e-2, atol=0)


@pytest.mark.parametrize("n", [1, 2, 3, 8])
def test_a_few_images_do_not_tell_how_distances_disperse(n: int) -> None:
    found = subspaces.fit(clouds(1, n, 0)[0])
    assert float(found.dispersions[0]) >= subspaces.PRIOR / (n + subspaces.PRIOR) * float(found.scale[0])
    assert bool(found.dispersions.isfinite().all())
    assert float(found.dispersions[0]) > 0


@pytest.mark.parametrize("width", [100, 700])
def test_many_features_are_decomposed_by_chance_and_almost_exactly(width: int) -> None:
    x, y = clouds(2, 400, 0, width)
    state = torch.get_rng_state()
    found, again = fit(x, y, 2, 4), fit(x, y, 2, 4)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(found.directions, again.directions)
    for c in range(2):
        directions = slow.subspace(x[y == c], 4)[1]
        overlap = torch.linalg.svdvals(found.directions[c].double().T @ directions)
        assert float(overlap.min()) > 0.999


def test_quantiles_are_those_of_images_left_out() -> None:
    x, _ = clouds(1, 83, 3)
    found = fit(x, torch.zeros(83, dtype=torch.long), 1)
    wanted = slow.left_out(x, 83 // 4, subspaces.FOLDS).float()
    points = torch.linspace(0, 1, subspaces.QUANTILES)
    torch.testing.assert_close(found.quantiles[0], wanted.quantile(points), rtol=2e-2, atol=1e-5)
    # In the fit they would seem nearer.
    inside = found.distances(x, 0)
    assert float(found.quantiles[0].mean()) > 1.3 * float(inside.mean())


def test_p_values_of_new_images_are_uniform() -> None:
    x, y = clouds(2, 3000, 5)
    found = fit(x, y, 2)
    new, truth = clouds(2, 4000, 6)
    for c in range(2):
        p = found.p_values(found.distances(new[truth == c], c), c)
        for alpha in (0.05, 0.2, 0.5, 0.9):
            # Three standard errors: 2,000 new images against 1,500 left out.
            error = math.sqrt(alpha * (1 - alpha) * (1 / 2000 + 1 / 1500))
            assert abs(float((p < alpha).double().mean()) - alpha) < 3 * error + 0.005
        assert float(found.p_values(found.distances(new[truth != c], c), c).mean()) < 0.1


@given(n=st.integers(1, 60), seed=st.integers(0, 9))
def test_few_images_give_few_directions_and_no_false_p_values(n: int, seed: int) -> None:
    x, _ = clouds(1, n, seed)
    found = fit(x, torch.zeros(n, dtype=torch.long), 1)
    assert found.directions.shape == (1, WIDTH, n // 4 if n >= 16 else 0)
    assert all(value.isfinite().all() for value in vars(found).values())
    far = torch.tensor([0.0, 1e-3, 1.0, 1e9])
    p = found.p_values(far, 0)
    assert bool(p.isnan().all()) == (n < 30)
    if n >= 30:
        assert p[0] == 1.0
        assert float(p[-1]) == pytest.approx(1 / (n + 1))
        assert bool((p.diff() <= 0).all())


def test_nothing_of_another_task_enters_and_order_does_not_matter() -> None:
    x, y = clouds(4, 400, 0)
    alone = fit(x[y < 2], y[y < 2], 2)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    again = fit(x[order][y[order] < 2], y[order][y[order] < 2], 2)
    torch.testing.assert_close(again.means, alone.means, rtol=1e-6, atol=1e-6)
    for c in range(2):
        torch.testing.assert_close(again.distances(x, c), alone.distances(x, c), rtol=1e-2, atol=1e-4)


def test_the_shortlist_finds_the_class_and_reads_only_its_tasks() -> None:
    x, y = clouds(30, 3000, 0)
    tasks = [fit(x[y // 3 == t], y[y // 3 == t] % 3, 3) for t in range(10)]
    whole = solved(tasks)
    new, truth = clouds(30, 600, 1)
    coarse = whole.distances(new)
    full = torch.stack([tasks[c // 3].distances(new, c % 3) for c in range(30)], dim=1)
    assert bool((coarse >= full - 1e-3).all())
    chosen = whole.shortlist(new)[1]
    assert chosen.shape == (600, subspaces.SHORTLIST)
    assert bool((chosen == truth[:, None]).any(dim=1).all())
    asked: list[int] = []

    def statistics(task: int) -> Subspaces:
        asked.append(task)
        return tasks[task]

    some = truth < 3
    _, picked = whole.shortlist(new[some], 2)
    found = full_distances(whole, picked, new[some], statistics)
    torch.testing.assert_close(found, full[some].gather(1, picked), rtol=1e-4, atol=1e-5)
    assert set(asked) == set((picked // 3).unique().tolist())
    assert torch.equal(whole.owner, torch.arange(30) // 3)
    assert torch.equal(whole.position, torch.arange(30) % 3)


def test_folds_fitted_from_scatters_are_those_fitted_from_images(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((90, 12), generator=rng, dtype=torch.float64) * torch.linspace(3, 0.5, 12) + 5
    summed = subspaces.fit(x, 4)
    monkeypatch.setattr(subspaces, "WIDEST", 11)
    apart = subspaces.fit(x, 4)
    torch.testing.assert_close(summed.means, apart.means)
    torch.testing.assert_close(summed.quantiles, apart.quantiles, rtol=1e-2, atol=1e-2)
    along = (summed.directions[0].double().T @ apart.directions[0].double()).diagonal().abs()
    torch.testing.assert_close(along, torch.ones(4, dtype=torch.float64), rtol=0, atol=2e-3)


def test_far_classes_are_not_looked_at_and_change_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subspaces, "FAR", 1.2)
    x, y = clouds(12, 1200, 0)
    tasks = [fit(x[y // 2 == t], y[y // 2 == t] % 2, 2) for t in range(6)]
    whole = solved(tasks)
    new, _ = clouds(12, 300, 3)
    coarse, chosen = whole.shortlist(new)
    every = full_distances(whole, chosen, new, tasks.__getitem__)
    found = full_distances(whole, chosen, new, tasks.__getitem__, coarse)
    near = coarse <= 1.2 * coarse[:, :1]
    assert 0 < int(near.sum()) < near.numel() / 2
    torch.testing.assert_close(found, every.where(near, coarse), rtol=1e-4, atol=1e-5)
    assert torch.equal(found.argmin(dim=1), every.argmin(dim=1))
    assert torch.equal(coarse, coarse.sort(dim=1).values)


def test_a_class_that_only_seems_farther_is_looked_at_in_full() -> None:
    """The coarse form has few directions: a class may lie nearly twice as far away in it, and be the nearest."""
    d, k = 12, COARSE + 2
    directions = torch.zeros(2, d, k)
    directions[0, COARSE, 0] = 1.0
    directions[1, :k] = torch.eye(k)
    means = torch.zeros(2, d)
    means[0, -1] = 1.0
    task = Subspaces(means, directions.half(), torch.ones(2, subspaces.QUANTILES), torch.full((2,), 100.0).double())
    asked = torch.zeros(1, d)
    asked[0, COARSE], asked[0, -1] = 0.9, 0.3
    gate = solved([task])
    coarse, chosen = gate.shortlist(asked)
    assert chosen.tolist() == [[0, 1]]
    torch.testing.assert_close(coarse, torch.tensor([[0.49, 0.90]]).double(), rtol=1e-6, atol=0)
    found = full_distances(gate, chosen, asked, lambda position: task, coarse)
    torch.testing.assert_close(found, torch.tensor([[0.49, 0.09]]).double(), rtol=1e-6, atol=0)
    assert int(gate.compare(asked, lambda position: task).likely.argmax()) == 1


def test_stores_of_formats_1_and_2_are_as_sure_as_they_were_learned() -> None:
    """An image is e^1.7 times less likely for each unit of dispersion that it lies farther outside a class."""
    means = torch.zeros(2, 6)
    means[1, 0] = 2.0
    quantiles = torch.linspace(0.5, 1.5, subspaces.QUANTILES).expand(2, -1)
    task = Subspaces(means, torch.zeros(2, 6, 1).half(), quantiles, torch.full((2,), 100.0).double())
    assert bool((task.dispersions > 0.05).all())
    gate, values = solved([task]), torch.zeros(3, 6)
    values[:, 0] = torch.tensor([0.9, 1.0, 1.2])
    wanted = -1.7 * (values[:, 0].square() - (values[:, 0] - 2).square()).double() / float(task.dispersions[0])
    for found in (gate.compare(values, lambda position: task), gate.within(values, 0, lambda position: task)):
        own = [found.likely.gather(1, (found.chosen == c).int().argmax(dim=1, keepdim=True))[:, 0] for c in range(2)]
        torch.testing.assert_close(own[0] - own[1], wanted, rtol=1e-5, atol=1e-6)
    # The same for the tasks of a batch.
    shifted = Subspaces(means + 1, task.directions, task.quantiles, task.counts)
    two = solved([task, shifted])
    evidence = two.evidence(values, [0, 1], [task, shifted].__getitem__)
    nearest = [
        torch.cdist(values.double(), own.means.double()).square().min(dim=1).values.sum() for own in (task, shifted)
    ]
    assert float(evidence[0] - evidence[1]) == pytest.approx(
        float(-1.7 * (nearest[0] - nearest[1]) / task.dispersions[0]), rel=1e-5
    )


def test_a_batch_finds_its_task_in_spite_of_strangers() -> None:
    x, y = clouds(12, 1200, 0)
    tasks = [fit(x[y // 2 == t], y[y // 2 == t] % 2, 2) for t in range(6)]
    whole = solved(tasks)
    new, truth = clouds(12, 240, 2)
    for t in range(6):
        batch = new[truth // 2 == t].clone()
        batch[:4] = 50 * torch.randn(batch[:4].shape, generator=torch.Generator().manual_seed(t))
        assert t in whole.shortlisted_tasks(batch, 2)
        assert whole.shortlisted_tasks(batch, 9) == list(range(6))
