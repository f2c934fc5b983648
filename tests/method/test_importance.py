from __future__ import annotations

from unittest import mock

import pytest
import torch
from conftest import random_params
from hypothesis import given
from hypothesis import strategies as st
from oracle import single_images

from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import gradient_scores as scoring
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.gradient_scores import (
    Reference,
    deviation,
    factors,
    gradient_scores,
    halved,
    normalised,
    restored,
)
from clmoe_cli.method.subnetwork.pruning import importance, threshold_at
from clmoe_cli.method.subnetwork.training import Labelled

NET = MLP(13, (9, 7))


def setup(seed: int, n: int = 17, classes: int = 3, dtype: torch.dtype = torch.float64):
    rng = torch.Generator().manual_seed(seed)
    params = random_params(NET, classes, rng, dtype)
    x = torch.randn((n, 13), generator=rng, dtype=dtype).relu()
    y = torch.randint(0, classes, (n,), generator=rng)
    mask = {name: torch.rand(shape, generator=rng) < 0.4 for name, shape in NET.shared_shapes().items()}
    return params, x, y, mask


@given(seed=st.integers(0, 10_000), n=st.integers(1, 40))
def test_scores_equal_the_loop_over_single_images(seed: int, n: int) -> None:
    params, x, y, _ = setup(seed, n)
    slow = single_images.scores(NET, params, x, y)
    with mock.patch.object(scoring, "CHUNK", 7):
        found = gradient_scores(NET, params, x, y)
    for name, fast in found.items():
        torch.testing.assert_close(fast, slow[name], rtol=1e-9, atol=1e-15)


@given(seed=st.integers(0, 10_000))
def test_deviation_equals_the_loop_over_single_images(seed: int) -> None:
    params, x, y, mask = setup(seed)
    scores = {name: torch.rand(value.shape).double() for name, value in params.items()}
    fast = deviation(NET, params, factors(NET, params, x, y), Reference.of(NET, mask, scores))
    slow = single_images.deviation(NET, params, x, y, mask, scores)
    assert set(fast) == set(slow) == set(NET.layers)
    for layer, value in fast.items():
        torch.testing.assert_close(value, slow[layer], rtol=1e-9, atol=1e-12)


@given(seed=st.integers(0, 10_000))
def test_deviation_of_float32_inputs_from_their_own_gradient_is_never_negative(seed: int) -> None:
    params, x, y, mask = setup(seed, n=1, dtype=torch.float32)
    own = gradient_scores(NET, params, x, y)
    found = deviation(NET, params, factors(NET, params, x, y), Reference.of(NET, mask, own))
    size = max(float(value.square().sum()) for value in own.values())
    for value in found.values():
        assert float(value.min()) >= 0.0
        assert float(value.max()) <= 1e-5 * size + 1e-12


def test_pseudo_labels_stand_in_for_labels() -> None:
    params, x, _, _ = setup(0)
    free = factors(NET, params, x)
    given_labels = factors(NET, params, x, free.logits.argmax(dim=1))
    for layer, delta in free.delta.items():
        assert torch.equal(delta, given_labels.delta[layer])


def test_half_precision_round_trip_is_within_its_rounding() -> None:
    params, x, y, _ = setup(0)
    scores = gradient_scores(NET, params, x, y)
    back = restored(*halved(scores))
    for name, value in scores.items():
        # Six binary digits, and what half precision cannot tell from the largest score.
        assert bool(((back[name] - value).abs() <= 2**-5.9 * value + 2**-24 * float(value.max()) + 1e-12).all())


def test_stored_scores_have_six_digits_and_none_is_lost() -> None:
    every = torch.arange(0, 15361, dtype=torch.int16).view(torch.float16)  # all halves from 0 to 1
    half = halved({"w": every.float()})[0]["w"]
    part = torch.frexp(half.float())[0] * 64
    assert torch.equal(part, part.round())
    assert torch.equal(half == 0, every == 0)
    assert torch.equal(halved({"w": half.float()})[0]["w"], half)


def test_normalised_layers_have_mean_one_and_zero_layers_stay_zero() -> None:
    scores = {name: torch.rand(shape) for name, shape in NET.shared_shapes().items()}
    scores["hidden2.weight"].zero_()
    found = normalised(NET, scores)
    assert float(found["hidden1.weight"].mean()) == pytest.approx(1.0)
    assert not found["hidden2.weight"].any()
    # Of kernels, the small layers count for more: (4 + 2 + 3 + 3) / 72 against (3 + 4 + 3 + 3) / 108.
    net = ConvNet("cnn:4,3", (2, 8, 8))
    found = normalised(net, {name: torch.rand(shape) for name, shape in net.shared_shapes().items()})
    assert float(found["conv1.weight"].mean()) == pytest.approx(12 / 72)
    assert float(found["conv2.weight"].mean()) == pytest.approx(13 / 108)


def test_importance_multiplies_by_the_weight_and_refuses_other_names() -> None:
    params, x, y, _ = setup(1, dtype=torch.float32)
    data = Labelled(x, y)
    mask = masks.ones_like({name: params[name] for name in NET.shared_shapes()})
    plain = importance(NET, params, mask, data, "gradient")
    weighted = importance(NET, params, mask, data, "gradient-weight")
    name = "hidden1.weight"
    ratio = weighted[name] / (plain[name] * params[name].abs())
    used = plain[name] > 0
    torch.testing.assert_close(ratio[used], ratio[used][:1].expand(int(used.sum())), rtol=1e-4, atol=0)
    with pytest.raises(ValueError, match="gradient-weight"):
        importance(NET, params, mask, data, "magnitude")


@given(density=st.floats(0.01, 1.0), seed=st.integers(0, 100))
def test_threshold_keeps_the_asked_share(density: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    scores = {"a": torch.rand((20, 30), generator=rng), "b": torch.rand((10, 20), generator=rng)}
    threshold = threshold_at(scores, density)
    kept = sum(int((value >= threshold).sum()) for value in scores.values())
    assert kept == max(1, round(density * 800))
