from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import random_params
from pictures import patches as blobs
from sklearn.datasets import make_circles

from clmoe_cli.method.learn_task import (
    FEW,
    Identity,
    Options,
    Setting,
    Shared,
    Trained,
    finish,
    learn_task,
    refine_task,
    split,
)  # fmt: skip
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.routing.mahalanobis import blocks, fit, fit_gaussian, leading
from clmoe_cli.method.routing.paper import ROUTERS, Subnetwork, deviations, weigh
from clmoe_cli.method.subnetwork import masks, pruning
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores, halved, normalised
from clmoe_cli.method.subnetwork.image_scores import DRAWS, image_scores
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Labelled, Quality, Schedule, quality
from clmoe_cli.method.tasks import placement
from clmoe_cli.method.tasks.placement import Candidate, KnownTask, Thresholds, agreement, compare, place, ridge_rows

NET = MLP(36, (24, 16))
QUICK = Options(Schedule(epochs=6), Tolerance(starts=(0.4,), floor=0.1, final_epochs=2))


A, B = Identity("a", "e1", 2), Identity("b", "e1", 2)


def learn_pair(seed: int = 0):
    """Two tasks, one after the other, in one expert; the second reads the first."""
    zeros = {name: torch.zeros(shape) for name, shape in NET.shared_shapes().items()}
    none = masks.zeros_like(zeros)
    rng = torch.Generator().manual_seed(seed)
    first = learn_task(A, NET, Shared(zeros, none, none), blobs([5, 15], 600, 1), Setting(QUICK, rng))
    base = {name: first.subnetwork.params[name] for name in zeros}
    used = first.subnetwork.mask
    second = learn_task(B, NET, Shared(base, used, used), blobs([20, 30], 600, 2), Setting(QUICK, rng))
    return first, second


def test_a_task_is_learned_with_its_subnetwork_alone_and_the_other_keeps_its_bits() -> None:
    first, second = learn_pair()
    for learned, centres in ((first, [5, 15]), (second, [20, 30])):
        test = blobs(centres, 200, 9)
        found = logits(NET, learned.subnetwork.params, test.x).argmax(dim=1)
        assert float((found == test.y).double().mean()) > 0.97
        assert learned.accuracy is not None
        assert learned.held_out == 50
    for name, mask in first.subnetwork.mask.items():
        shared = mask & second.subnetwork.mask[name]
        assert torch.equal(first.subnetwork.params[name][shared], second.subnetwork.params[name][shared])
        assert not second.subnetwork.params[name][~second.subnetwork.mask[name]].any()
        assert 0 < float(mask.double().mean()) <= 0.45


@pytest.mark.parametrize("score", ["gradient-weight", "gradient"])
def test_frozen_weights_that_are_not_readable_are_not_used(score: str) -> None:
    first, _ = learn_pair()
    zeros = {name: torch.zeros(shape) for name, shape in NET.shared_shapes().items()}
    base = {name: first.subnetwork.params[name] for name in zeros}
    rng = torch.Generator().manual_seed(3)
    used, how = first.subnetwork.mask, replace(QUICK, score=score)
    shared = Shared(base, used, masks.zeros_like(zeros))
    alone = learn_task(B, NET, shared, blobs([20, 30], 600, 2), Setting(how, rng)).subnetwork
    assert masks.count(masks.intersection(alone.mask, used)) == 0
    # Nothing outside the mask takes part in what it computes.
    assert not any(alone.params[name][~mask].any() for name, mask in alone.mask.items())


def test_what_is_stored_is_of_the_images_that_it_is_meant_to_be_of() -> None:
    data = blobs([5, 15], 600, 1)
    task = (learned := learned_alone(data, 2, QUICK)).subnetwork
    parts = split(data, torch.Generator().manual_seed(0))
    assert torch.equal(learned.held, parts.held)
    x, y = parts.training.x, parts.training.y
    for of, kept, raw in (
        ("gradients", learned.half_scores, gradient_scores(NET, task.params, x, y)),
        ("gradients of unit length", learned.half_image_scores, image_scores(NET, task.params, x, y)),
    ):
        wanted, scale = halved(masks.apply(raw, task.mask))
        assert kept[1] == scale, of
        assert all(torch.equal(kept[0][name], wanted[name]) for name in wanted), of
    # What new images are compared with is of images that nothing was trained or tuned on.
    held = parts.calibration
    for kind, found in deviations(task, held.x, ["loss", "gradient", "fisher"]).items():
        assert torch.equal(task.calibration[kind].values, found.sort().values), kind
    assert learned.accuracy == quality(NET, task.params, held)
    values = blocks(NET, task.params, held)
    for name, gaussian in task.whitening.blocks.items():
        mean = float(gaussian.deviation(values[name]).log().mean())
        assert float(task.whitening.standard[name][0]) == pytest.approx(mean, rel=1e-5), name


def test_refining_that_makes_it_worse_is_undone() -> None:
    first, _ = learn_pair()
    task, wild = first.subnetwork, replace(QUICK, schedule=Schedule(epochs=1, lr=30.0))
    more, nothing = blobs([5, 15], 300, 8), masks.zeros_like(task.mask)
    for grow in (False, True):
        setting = Setting(wild, torch.Generator().manual_seed(1))
        refined = refine_task(task, NET, nothing, more, grow, setting).subnetwork
        test = blobs([5, 15], 500, 9)
        assert quality(NET, refined.params, test).loss < 2 * quality(NET, task.params, test).loss + 0.01


def test_masks_of_later_rounds_lie_within_those_of_earlier_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[masks.Masks] = []
    real = pruning.finetune

    def noted(run, params, trainable, how):
        if how.phase == "prune":
            rounds.append(dict(trainable))
        return real(run, params, trainable, how)

    monkeypatch.setattr(pruning, "finetune", noted)
    tolerance = Tolerance(starts=(0.5,), step=0.5, floor=0.03, least=1, failures=9, halvings=0, final_epochs=1)
    options = Options(Schedule(epochs=6), tolerance, score="gradient")
    learned = learned_alone(blobs([5, 15], 600, 1), 2, options)
    assert len(rounds) >= 4
    # A weight that was taken out is zero: its gradient tells nothing of what bringing it back would do.
    for denser, sparser in (*pairwise(rounds), (rounds[0], learned.subnetwork.mask)):
        assert 0 < masks.count(masks.intersection(sparser, denser)) == masks.count(sparser)


def test_learning_is_repeatable() -> None:
    one, two = learn_pair(5), learn_pair(5)
    for a, b in zip(one, two, strict=True):
        assert all(torch.equal(a.subnetwork.params[n], b.subnetwork.params[n]) for n in a.subnetwork.params)
        for half, same in ((a.half_scores[0], b.half_scores[0]), (a.half_image_scores[0], b.half_image_scores[0])):
            assert all(torch.equal(half[n], same[n]) for n in half)


@pytest.mark.parametrize("grow", [False, True])
def test_refining_moves_nothing_that_another_task_uses(grow: bool) -> None:
    first, second = learn_pair()
    task, other = first.subnetwork, second.subnetwork
    # The other task uses half of this one's weights as well.
    shared_half = {name: mask & (torch.arange(mask.shape[1]) % 2 == 0) for name, mask in task.mask.items()}
    taken = masks.union(task.mask, [other.mask, shared_half])
    more = blobs([5, 15], 600, 8)
    setting = Setting(QUICK, torch.Generator().manual_seed(1))
    refined = refine_task(task, NET, taken, more, grow, setting).subnetwork
    for name, mask in task.mask.items():
        held = mask & taken[name] & refined.mask[name]
        assert torch.equal(refined.params[name][held], task.params[name][held])
        # Nothing that the other task alone uses is read, and nothing taken is overwritten by something new.
        assert not (refined.mask[name] & taken[name] & ~mask).any()
        assert grow or torch.equal(refined.mask[name], mask)
    test = blobs([5, 15], 500, 9)
    assert quality(NET, refined.params, test).accuracy >= quality(NET, task.params, test).accuracy - 0.02


@pytest.mark.parametrize("n", [2, 7, FEW - 1, FEW, 240, 399, 400, 5000])
def test_held_out_parts_share_no_image(n: int, rng: torch.Generator) -> None:
    data = Labelled(torch.arange(n).float()[:, None], torch.arange(n) % 2)
    parts = split(data, rng)
    training, calibration = set(parts.training.x[:, 0].tolist()), set(parts.calibration.x[:, 0].tolist())
    assert training.isdisjoint(calibration)
    if n < FEW:
        assert not calibration
        assert len(training) == n
        return
    tuning = set(parts.tuning.x[:, 0].tolist())
    assert training.isdisjoint(tuning)
    assert tuning.isdisjoint(calibration)
    assert training | tuning | calibration == set(map(float, range(n)))
    assert len(tuning) == len(calibration) == (max(50, round(n * 0.05)) if n >= 400 else n // 8)
    share = sum(parts.calibration.y.tolist()) / len(calibration)
    assert 0.4 <= share <= 0.6 or len(calibration) < 5


def test_rare_classes_stay_in_training(rng: torch.Generator) -> None:
    y = torch.tensor([0] * 100 + [1] * 3)
    parts = split(Labelled(torch.rand(103, 4), y), rng)
    assert int((parts.training.y == 1).sum()) == 3


def test_a_mask_may_err_more_by_the_tolerance_where_the_images_can_tell() -> None:
    reference, tolerance = torch.zeros(1000).double(), Tolerance(max_drop=0.003, resolution=0.01)
    one = torch.arange(1000) < 3
    assert tolerance.within(reference, one.double())
    assert not tolerance.within(reference, (torch.arange(1000) < 4).double())
    assert tolerance.within(one.double(), reference)
    # Better or worse by half on every other image: no difference on average, but 15 images cannot tell that.
    doubtful = 0.5 + 0.5 * torch.tensor([1.0, -1.0]).double().repeat(500)
    even = torch.full_like(doubtful, 0.5)
    assert not tolerance.within(even[:16], doubtful[:16])
    assert not tolerance.within(even, doubtful)
    assert tolerance.within(even.repeat(20), doubtful.repeat(20))


def learned_alone(data: Labelled, classes: int, options: Options, seed: int = 0, net: MLP = NET):
    """One task in an expert of its own."""
    zeros = {name: torch.zeros(shape) for name, shape in net.shared_shapes().items()}
    none = masks.zeros_like(zeros)
    setting = Setting(options, torch.Generator().manual_seed(seed))
    return learn_task(Identity("a", "e1", classes), net, Shared(zeros, none, none), data, setting)


def share(learned) -> float:
    """Density of a task's mask."""
    mask = learned.subnetwork.mask
    return masks.count(mask) / sum(m.numel() for m in mask.values())


def rings(count: int, seed: int) -> Labelled:
    """Points of the plane, one class around the other."""
    x, y = make_circles(count, noise=0.15, factor=0.5, random_state=seed)
    return Labelled(torch.from_numpy(x).float(), torch.from_numpy(y))


def test_of_two_inputs_none_is_left_out_so_often_that_classes_look_alike() -> None:
    net = MLP(2, (64, 64))
    learned = learned_alone(rings(600, 1), 2, Options(), net=net)
    asked = rings(500, 2)
    found = logits(net, learned.subnetwork.params, asked.x).argmax(dim=1)
    # A network without dropout answers 94 % right; with a fifth of the inputs left out 70 %.
    assert float((found == asked.y).double().mean()) > 0.9


@pytest.mark.parametrize(("inputs", "share"), [(1, 1 / 32), (8, 0.25), (32, 1.0), (784, 1.0)])
def test_dropout_of_inputs_grows_with_their_number(inputs: int, share: float) -> None:
    before = Schedule()
    found = before.for_inputs(inputs)
    assert found.dropout == (0.2 * share, 0.3)
    assert found.annealing_dropout == (0.05 * share, 0.05)
    assert replace(found, dropout=before.dropout, annealing_dropout=before.annealing_dropout) == before


def test_the_search_goes_on_until_the_tolerance_decides() -> None:
    net, options = MLP(36, (96, 64)), Options(Schedule(epochs=12))
    easy = learned_alone(blobs([5, 30], 1200, 1), 2, options, net=net)
    hard = learned_alone(blobs(list(range(2, 36, 3)), 1200, 1), 12, options, net=net)
    assert share(easy) < 0.05
    assert share(easy) < 0.5 * share(hard)
    for learned in (easy, hard):
        assert learned.accuracy is not None
        assert learned.dense is not None
        assert learned.accuracy.accuracy >= learned.dense.accuracy - 0.02


def test_what_few_held_out_images_cannot_tell_keeps_the_denser_mask() -> None:
    net, options = MLP(36, (96, 64)), Options(Schedule(epochs=12))
    few = blobs(list(range(2, 36, 3)), 120, 1)
    asked = blobs(list(range(2, 36, 3)), 1200, 2)
    shares, lost = [], []
    for seed in (0, 1):
        learned = learned_alone(few, 12, options, seed, net)
        shares.append(share(learned))
        strict = learned_alone(few, 12, replace(options, tolerance=Tolerance(starts=(1.0,), floor=1.0)), seed, net)
        lost.append(
            quality(net, strict.subnetwork.params, asked).accuracy
            - quality(net, learned.subnetwork.params, asked).accuracy
        )
    assert min(shares) > 0.05
    assert sum(lost) / 2 < 0.05
    # Nothing is held out of so few images, so nothing can tell.
    none = learned_alone(blobs([5, 30], FEW - 4, 1), 2, options, net=net)
    assert share(none) > 0.1


def test_no_weight_with_zero_score_on_every_training_image_is_selected() -> None:
    for data, classes in ((blobs([5, 15], 600, 1), 2), (blobs([5, 15, 25], 90, 1), 3)):
        learned = learned_alone(data, classes, QUICK)
        for name, mask in learned.subnetwork.mask.items():
            assert bool((learned.half_scores[0][name][mask] > 0).all())
            assert bool(mask.any())


def test_a_subnetwork_that_does_not_keep_the_accuracy_gives_way_to_a_denser_one(rng: torch.Generator) -> None:
    class Lenient(Tolerance):
        """Lets every short round pass and no consolidated mask."""

        def within(self, reference: torch.Tensor, found: torch.Tensor) -> bool:
            return passed.pop(0)

    passed = [True, True, False, False, False, False, True]
    tolerance = Lenient(starts=(0.4,), step=0.5, floor=0.01, least=1, final_epochs=2, halvings=0)
    learned = learned_alone(blobs([5, 15], 600, 1), 2, Options(Schedule(epochs=4), tolerance))
    # Rounds at 0.2 and 0.1 pass, two more fail; consolidated, 0.1 and 0.2 fail, and the densest stands.
    assert passed == [True]
    assert 0.3 < share(learned) <= 0.4


def test_pruning_starts_denser_where_sparse_is_clearly_worse() -> None:
    tolerance = Tolerance(max_drop=0.003)
    assert tolerance.clearly_worse(Quality(2.0, 0.22), Quality(1.5, 0.42), 50)
    assert not tolerance.clearly_worse(Quality(2.0, 0.40), Quality(1.5, 0.42), 50)
    assert not tolerance.clearly_worse(Quality(0.02, 0.996), Quality(0.0, 1.0), 600)
    assert tolerance.clearly_worse(Quality(0.02, 0.98), Quality(0.0, 1.0), 600)


def test_a_network_too_small_to_be_pruned_is_kept_whole(rng: torch.Generator) -> None:
    centres = list(range(2, 36, 3))
    net = MLP(36, (8,))
    zeros = {name: torch.zeros(shape) for name, shape in net.shared_shapes().items()}
    none = masks.zeros_like(zeros)
    options = Options(Schedule(epochs=30))
    identity = Identity("a", "e1", len(centres))
    shared = Shared(zeros, none, none)
    learned = learn_task(identity, net, shared, blobs(centres, 2400, 1), Setting(options, rng))
    assert learned.dense is not None
    assert learned.accuracy is not None
    assert learned.accuracy.accuracy >= learned.dense.accuracy - 0.05
    assert learned.accuracy.accuracy > 0.8


def test_mahalanobis_equals_the_full_inverse_of_the_kept_covariance(rng: torch.Generator) -> None:
    params = random_params(NET, 2, rng, torch.float32)
    data = blobs([5, 25], 500, 3)
    gaussian = fit_gaussian(blocks(NET, params, data)["hidden"], data.y, 2, rank=6)
    d = gaussian.means.shape[1]
    u = gaussian.directions.double()
    # Woodbury: the inverse of U diag(v − r) Uᵀ + r·1 for orthonormal U, which half precision rounds by 1e-3.
    inverse = u @ torch.diag(1 / gaussian.variances.double() - 1 / gaussian.rest.double()) @ u.T
    inverse += torch.eye(d, dtype=torch.float64) / gaussian.rest.double()
    full = u @ torch.diag(gaussian.variances.double() - gaussian.rest.double()) @ u.T
    exact = torch.linalg.inv(full + gaussian.rest.double() * torch.eye(d, dtype=torch.float64))
    assert float((inverse - exact).norm() / exact.norm()) < 0.01
    hidden = blocks(NET, params, data)["hidden"][:20]
    fast = gaussian.distances(hidden)
    for i in range(20):
        for c in range(2):
            z = hidden[i].double() - gaussian.means[c].double()
            assert float(fast[i, c]) == pytest.approx(float(z @ inverse @ z), rel=1e-4, abs=1e-6)


@pytest.mark.parametrize(("n", "d"), [(60, 2500), pytest.param(2500, 2100, marks=pytest.mark.campaign)])
def test_many_dimensions_are_decomposed_as_exactly_as_few(n: int, d: int, rng: torch.Generator) -> None:
    scale = torch.cat([torch.linspace(30, 10, 8), torch.ones(d - 8)])
    values, y = torch.randn((n, d), generator=rng) * scale, torch.arange(n) % 2
    state = torch.get_rng_state()
    found = fit_gaussian(values, y, 2, rank=32)
    assert torch.equal(torch.get_rng_state(), state)
    exact = torch.linalg.svdvals((values - found.means[y]).double())[:8].square() / (n - 2)
    assert torch.allclose(found.variances[:8].double(), exact, rtol=1e-3)
    assert float(found.rest) > 0
    asked = torch.randn((50, d), generator=rng) * scale
    assert bool(found.deviation(asked).isfinite().all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_few_images_of_many_dimensions_have_directions(dtype: torch.dtype) -> None:
    for seed in range(40):
        draw = torch.Generator().manual_seed(seed)
        x = 0.2 * torch.randint(-1, 2, (5, 196), generator=draw).to(dtype) * (torch.rand(5, 196, generator=draw) < 0.12)
        x = x - x.mean(dim=0)
        values, vectors = leading(x, 4)
        wanted = torch.linalg.svdvals(x.double())[:4].square()
        torch.testing.assert_close(values.double(), wanted, rtol=1e-4, atol=1e-6)
        gram = vectors.double().T @ vectors.double()
        torch.testing.assert_close(gram, torch.eye(4, dtype=torch.float64), rtol=0, atol=1e-5)


def test_hidden_units_that_never_fire_leave_deviations_finite(rng: torch.Generator) -> None:
    params = random_params(NET, 2, rng, torch.float32)
    for name in params:
        if name.startswith("hidden"):
            params[name] = -params[name].abs()
    data = blobs([5, 25], 300, 3)
    whitening = fit(NET, params, data, data, 2)
    awake = {name: value.abs() for name, value in params.items()}
    for asked in (params, awake):
        values = blocks(NET, asked, data)
        found = whitening.deviation(values["inputs"], values["hidden"])
        assert bool(found.float().isfinite().all())


def test_a_network_that_is_sure_of_every_image_is_learned(rng: torch.Generator) -> None:
    # Its gradients on training images vanish, and its scores with them; others' are infinitely many times as large.
    data = blobs([5, 25], 300, 3)
    task = learned_alone(data, 2, QUICK).subnetwork
    sure = {name: 300 * value if name.startswith("output") else value for name, value in task.params.items()}
    parts = split(data, torch.Generator().manual_seed(0))
    found = finish(A, NET, Trained(sure, task.mask), parts).subnetwork
    assert not any(bool(value.any()) for value in found.scores.values())
    # Between the classes it is not sure.
    share = torch.linspace(0, 1, 200)[:, None]
    between = share * data.x[0] + (1 - share) * data.x[1]
    asked = deviations(found, between, ("gradient", "fisher", "loss"))
    for values in (*asked.values(), *(calibration.values for calibration in found.calibration.values())):
        assert bool(values.isfinite().all())
    assert float(asked["gradient"].max()) > 1e30


def test_strange_inputs_deviate_even_where_no_hidden_unit_looks(rng: torch.Generator) -> None:
    # Only the first half of the inputs reaches the hidden units: what is strange about the rest, the inputs tell.
    params = random_params(NET, 2, rng, torch.float32)
    params["hidden1.weight"][:, 18:] = 0.0
    data, held_out = blobs([5, 15], 600, 3), blobs([5, 15], 100, 4)
    whitening = fit(NET, params, data, held_out, 2)
    usual = blobs([5, 15], 200, 5).x
    strange = usual.clone()
    strange[:, 18:] = usual[:, 18:] + 0.3 * torch.randn((200, 18), generator=rng)
    hidden = blocks(NET, params, Labelled(strange, torch.zeros(200)))["hidden"]
    assert torch.equal(hidden, blocks(NET, params, Labelled(usual, torch.zeros(200)))["hidden"])
    typical = whitening.deviation(usual, hidden)
    assert float(typical.log().median().abs()) < 1.5
    assert float((whitening.deviation(strange, hidden) > typical.quantile(0.95)).double().mean()) > 0.9


def test_constructive_weights_are_read_whole_and_others_not_at_all() -> None:
    first, second = learn_pair()
    net, frozen = NET, masks.union(first.subnetwork.mask, [first.subnetwork.mask, second.subnetwork.mask])
    base = {name: first.subnetwork.params[name] + second.subnetwork.params[name] for name in frozen}
    readable = first.subnetwork.mask
    setting = Setting(QUICK, torch.Generator().manual_seed(4))
    shared = Shared(base, frozen, readable)
    third = learn_task(Identity("c", "e1", 2), net, shared, blobs([8, 28], 400, 9), setting).subnetwork
    for name, mask in third.mask.items():
        assert not (mask & frozen[name] & ~readable[name]).any()
        assert torch.equal(third.params[name][mask & frozen[name]], base[name][mask & frozen[name]])
    # Nearly all of the first layer: only what leads to units that have died meanwhile is useless.
    name = next(iter(net.shared_shapes()))
    fires = blocks(NET, first.subnetwork.params, blobs([8, 28], 400, 9))["hidden"][:, :24].amax(dim=0) > 0
    lost = readable[name] & fires[:, None] & ~third.mask[name]
    assert masks.count({name: lost}) < 0.25 * masks.count({name: readable[name]})


def test_ridge_rows_solve_the_normal_equations(rng: torch.Generator) -> None:
    features = torch.rand((50, 6), generator=rng)
    y = torch.randint(0, 3, (50,), generator=rng)
    rows, bias = ridge_rows(features, y, 3)
    a = torch.cat([features, torch.ones(50, 1)], dim=1).double()
    strength = 1e-2 * (a.T @ a).diagonal().mean()
    targets = 4.0 * (2.0 * torch.nn.functional.one_hot(y, 3).double() - 1.0)
    w = torch.cat([rows, bias[:, None]], dim=1).double()
    residual = a.T @ (a @ w.T - targets) + strength * w.T
    assert float(residual.abs().max()) < 1e-3


def test_related_tasks_overlap_more_than_permuted_ones(rng: torch.Generator) -> None:
    first, _ = learn_pair()
    task = first.subnetwork
    known = KnownTask(task.name, task.expert, NET, task.params, task.mask, task.scores)
    data = blobs([5, 15], 300, 7)
    order = torch.randperm(36, generator=torch.Generator().manual_seed(3))
    draws = [NET.initial_shared(torch.Generator().manual_seed(s)) for s in range(4)]
    same = compare(known, draws, data, 2, Thresholds(), rng)
    permuted = compare(known, draws, Labelled(data.x[:, order], data.y), 2, Thresholds(), rng)
    assert same.constructive
    assert not permuted.constructive
    assert same.overlap > permuted.overlap
    assert same.divergence < permuted.divergence
    # Shuffled inputs are as strange whether they were permuted before or not.
    assert same.chance_overlap == pytest.approx(permuted.chance_overlap, abs=0.15)
    assert same.transfer is not None
    assert same.transfer > 0.9


@pytest.mark.parametrize(
    ("found", "chance", "constructive"),
    [
        ((0.30, 0.30), (0.10, 0.60), True),
        ((0.30, 0.53), (0.10, 0.60), True),
        ((0.30, 0.55), (0.10, 0.60), False),  # its scores diverge about as much as those of shuffled inputs
        ((0.15, 0.30), (0.10, 0.60), True),
        ((0.13, 0.30), (0.10, 0.60), False),  # it overlaps hardly more than shuffled inputs
        ((0.13, 0.30), (0.01, 0.60), True),
        ((0.11, 0.30), (0.01, 0.60), False),  # many times as much as shuffled inputs, and still next to nothing
    ],
)
def test_what_is_constructive_by_default(monkeypatch: pytest.MonkeyPatch, found, chance, constructive: bool) -> None:
    """Pairs: overlap and divergence of the images, and of the same with shuffled inputs."""
    data = blobs([5, 15], 20, 1)

    def compared(known, fresh, images: Labelled, classes: int) -> tuple[float, float, float, float]:
        overlap, divergence = found if torch.equal(images.x, data.x) else chance
        return 0.1, overlap, divergence, 1.0

    monkeypatch.setattr(placement, "_compared", compared)
    known = KnownTask("a", "e1", NET, {}, {}, {})
    assert compare(known, [{}, {}], data, 2, Thresholds(), torch.Generator()).constructive is constructive


def test_scores_diverge_over_what_both_select(monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = learn_pair()
    task, data = first.subnetwork, blobs([8, 28], 200, 7)
    selected: list[dict[str, torch.Tensor]] = []
    real = masks.agreement

    def noted(a, b):
        selected.append(dict(a))
        return real(a, b)

    monkeypatch.setattr(placement.masks, "agreement", noted)

    def apart(scores: dict[str, torch.Tensor]) -> float:
        known = KnownTask(task.name, task.expert, NET, task.params, task.mask, scores)
        return agreement(known, [NET.initial_shared(torch.Generator().manual_seed(1))], data, 2).divergence

    def turned(where: masks.Masks) -> dict[str, torch.Tensor]:
        """The same scores, in reverse order within these entries: their mean stays."""
        scores = {name: value.clone() for name, value in task.scores.items()}
        for name, here in where.items():
            scores[name][here] = task.scores[name][here].flip(0)
        return scores

    plain = apart(task.scores)
    both = masks.intersection(selected[0], task.mask)
    others = masks.intersection(masks.inverse(selected[0]), task.mask)
    assert min(masks.count(both), masks.count(others)) > 10
    assert apart(turned(others)) == pytest.approx(plain, rel=1e-4)
    assert apart(turned(both)) != pytest.approx(plain, rel=1e-2)


def candidate(task: str, expert: str, overlap: float, divergence: float) -> Candidate:
    """A comparison where shuffled inputs overlap by 0.1 and diverge by 0.6."""
    good = overlap >= 0.14 and divergence <= 0.57
    return Candidate(task, expert, 0.1, overlap, divergence, 1.0, 0.1, 0.6, 0.14, good)


FREE, FULL = (0.9, "hidden2"), (0.01, "hidden1")


@pytest.mark.parametrize(
    ("candidates", "room", "expert", "reads", "reason"),
    [
        ([], {}, None, (), "a new expert, since no task near it lies in one that could take it"),
        ([candidate("a", "e1", 0.3, 0.4)], {"e1": FREE}, "e1", ("a",),
         "into expert e1, since it overlaps with a more than by chance (0.30 against 0.10; at least 0.14) and layer "
         "hidden2 has 90.0 % free"),
        ([candidate("a", "e1", 0.05, 0.4)], {"e1": FREE}, None, (),
         "a new expert, since its overlap with the closest, a, is 0.05, below 0.14 (by chance 0.10)"),
        ([candidate("a", "e1", 0.3, 0.9)], {"e1": FREE}, None, (),
         "a new expert, since it diverges from a by 0.90, about as much as by chance (0.60)"),
        ([candidate("a", "e1", 0.3, 0.4)], {"e1": FULL}, None, (),
         "a new expert, since there is no free capacity in expert e1 (layer hidden1 has 1.0 % free); 5 % are needed"),
        ([candidate("a", "e1", 0.3, 0.4), candidate("b", "e2", 0.4, 0.4), candidate("c", "e2", 0.01, 0.4)],
         {"e1": FREE, "e2": FREE}, "e2", ("b",),
         "into expert e2, since it overlaps with b more than by chance (0.40 against 0.10; at least 0.14) and layer "
         "hidden2 has 90.0 % free"),
        ([candidate("a", "e1", 0.3, 0.4), candidate("b", "e2", 0.4, 0.4)], {"e1": FREE, "e2": FULL}, "e1", ("a",),
         "into expert e1, since it overlaps with a more than by chance (0.30 against 0.10; at least 0.14) and layer "
         "hidden2 has 90.0 % free"),
    ],
)  # fmt: skip
def test_placement_by_all_causes(candidates, room, expert, reads, reason) -> None:
    found = place(candidates, room, Thresholds())
    assert (found.expert, found.reads) == (expert, reads)
    assert found.reason == reason


@pytest.mark.parametrize("router", ROUTERS)
def test_every_router_finds_the_task_of_a_batch(router: str) -> None:
    first, second = learn_pair()
    tasks = [first.subnetwork, second.subnetwork]
    for i, centres in enumerate(([5, 15], [20, 30])):
        x = blobs(centres, 128, 11 + i).x
        assert ROUTERS[router](tasks, [x, x], True).shape == (128, 2)
        evidence = weigh(ROUTERS[router], tasks, [x, x], 64)
        assert evidence.shape == (128, 2)
        assert evidence.argmax(dim=1).unique().tolist() == [i]


def test_the_papers_router_falls_back_where_a_task_has_no_image_scores() -> None:
    first, second = learn_pair()
    x = blobs([20, 30], 64, 5).x
    old = replace(first.subnetwork, image_scores={}, drawn=torch.zeros(0, DRAWS))
    oldest = replace(second.subnetwork, image_scores={}, drawn=torch.zeros(0, DRAWS))
    whole = ROUTERS["paper"]([first.subnetwork, second.subnetwork], [x, x], True)
    mixed = ROUTERS["paper"]([old, second.subnetwork], [x, x], True)
    # Divergences are not compared with overlaps: one task without S̃ and all of its expert are judged as before.
    assert torch.equal(mixed, ROUTERS["paper"]([old, oldest], [x, x], True))
    assert not torch.equal(mixed, whole)
    for evidence in (whole, mixed):
        assert evidence.argmax(dim=1).unique().tolist() == [1]


def test_without_image_scores_the_papers_router_weighs_overlap_and_divergence() -> None:
    first, second = learn_pair()
    tasks = [replace(t.subnetwork, image_scores={}, drawn=torch.zeros(0, DRAWS)) for t in (first, second)]
    x = blobs([20, 30], 64, 5).x
    evidence = ROUTERS["paper"](tasks, [x, x], True)[0]
    for found, task in zip(evidence.tolist(), tasks, strict=True):
        scores = gradient_scores(NET, task.params, x, logits(NET, task.params, x).argmax(dim=1))
        # As many of the most important weights as the task has, over all layers.
        every = normalised(NET, scores)
        least = torch.cat([value.flatten() for value in every.values()]).sort(descending=True).values
        mask = {name: value >= least[masks.count(task.mask) - 1] for name, value in every.items()}
        overlap = masks.agreement(mask, task.mask).overlap
        assert overlap > 0.05
        assert found == pytest.approx(overlap - masks.divergence(scores, task.scores, task.mask), abs=1e-6)


def test_the_papers_router_stays_in_the_expert_of_least_calibrated_loss() -> None:
    first, second = learn_pair()
    other = Subnetwork(**{**second.subnetwork.__dict__, "expert": "e2"})
    x = blobs([20, 30], 64, 5).x
    for batch in (True, False):
        evidence = ROUTERS["paper"]([first.subnetwork, other], [x, x], batch)
        each = [(t.calibration["loss"], deviations(t, x, ["loss"])["loss"]) for t in (first.subnetwork, other)]
        losses = torch.stack([-own.standardised(found) for own, found in each], dim=1)
        if batch:
            losses = losses.mean(dim=0, keepdim=True).expand_as(losses)
        assert torch.equal(evidence.isinf().int().argmin(dim=1), losses.argmax(dim=1))


@pytest.mark.parametrize(
    "text", ["mlp", "mlp:", "mlp:0", "mlp:5,", "cnn:3", "mlp:-1", "mlp:99999999", "mlp:a", "mlp:65536,65536"]
)
def test_bad_architectures_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_arch(text, (10,))


def test_forward_equals_plain_loops(rng: torch.Generator) -> None:
    net = MLP(3, (4,))
    params = random_params(net, 2, rng)
    x = torch.rand((5, 3), generator=rng, dtype=torch.float64)
    hidden = (x @ params["hidden1.weight"].T + params["hidden1.bias"]).clamp_min(0)
    expected = hidden @ params["output.weight"].T + params["output.bias"]
    torch.testing.assert_close(net.logits(params, x), expected)
    torch.testing.assert_close(net.trace(params, x).hidden(net.reading), hidden)
    assert set(gradient_scores(net, params, x, torch.zeros(5, dtype=torch.long))) == set(params)
