from __future__ import annotations

import math
from unittest import mock

import pytest
import torch
from conftest import random_params
from hypothesis import given
from hypothesis import strategies as st
from oracle import single_images

from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import image_scores as scoring
from clmoe_cli.method.subnetwork.image_scores import (
    DRAWS,
    ENTRIES,
    SIZES,
    ImageReference,
    batch_calibration,
    directions,
    divergence,
    divergence_p_value,
    image_scores,
)

NET = MLP(13, (9, 7))
KERNELS = ConvNet("cnn:4,3", (2, 8, 8))


def setup(net: Network, seed: int, n: int = 17, dtype: torch.dtype = torch.float64):
    rng = torch.Generator().manual_seed(seed)
    params = random_params(net, 3, rng, dtype)
    x = torch.randn((n, net.input_size), generator=rng, dtype=dtype).relu()
    y = torch.randint(0, 3, (n,), generator=rng)
    mask = {name: torch.rand(shape, generator=rng) < 0.4 for name, shape in net.shared_shapes().items()}
    return params, x, y, mask


@pytest.mark.parametrize("net", [NET, KERNELS], ids=["dense", "kernels"])
@given(seed=st.integers(0, 10_000), n=st.integers(1, 20))
def test_scores_of_unit_length_equal_the_loop_over_single_images(net: Network, seed: int, n: int) -> None:
    params, x, y, _ = setup(net, seed, n)
    slow = single_images.image_scores(net, params, x, y)
    with mock.patch.object(scoring, "CHUNK", 7):
        fast = image_scores(net, params, x, y)
    assert set(fast) == set(slow) == set(net.shared_shapes())
    for name, value in fast.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("net", [NET, KERNELS], ids=["dense", "kernels"])
def test_gradients_at_places_and_divergences_are_those_of_the_whole_scores(net: Network) -> None:
    params, x, _, mask = setup(net, 3)
    scores = {name: torch.rand(value.shape).double() * value for name, value in mask.items()}
    found = image_scores(net, params, x)
    reference = ImageReference.of(mask, scores)
    for name, value in reference.gradients(net, params, x).items():
        torch.testing.assert_close(value.mean(dim=0), found[name][mask[name]])
    assert reference.of_batch(net, params, x) == pytest.approx(divergence(found, scores, mask))


def test_sure_images_have_a_direction_where_their_loss_is_zero_in_float32() -> None:
    params, x, _, _ = setup(NET, 1, dtype=torch.float32)
    sure = {name: value * 300 if name.startswith("output") else value for name, value in params.items()}
    found = directions(NET, sure, x)
    exact = directions(NET, {name: value.double() for name, value in sure.items()}, x.double())
    assert float(torch.nn.functional.cross_entropy(found.logits, found.logits.argmax(dim=1)).median()) == 0.0
    for layer, delta in found.delta.items():
        assert bool(delta.isfinite().all())
        torch.testing.assert_close(delta, exact.delta[layer].float(), rtol=1e-3, atol=1e-4)


def test_an_image_counts_the_same_whatever_its_gradient_is_long() -> None:
    params, x, _, _ = setup(NET, 2)
    alone = [image_scores(NET, params, x[i : i + 1]) for i in range(len(x))]
    together = image_scores(NET, params, x)
    for name, value in together.items():
        torch.testing.assert_close(value, torch.stack([one[name] for one in alone]).mean(dim=0))
        assert all(float(one[name].norm()) == pytest.approx(1.0) for one in alone if one[name].any())


def test_calibration_holds_what_drawn_batches_diverge() -> None:
    params, x, _, mask = setup(NET, 5, n=40)
    scores = {name: value * mask[name] for name, value in image_scores(NET, params, x).items()}
    reference = ImageReference.of(mask, scores)
    found = batch_calibration(NET, params, x, reference, torch.Generator().manual_seed(0))
    assert found.shape == (2, DRAWS)
    assert torch.equal(found, found.sort(dim=1).values)
    # Batches of 16 are nearer to the mean than those of 8, and what is drawn is what a batch of images gives.
    assert float(found[1].median()) < float(found[0].median())
    drawn = [
        reference.of_batch(NET, params, x[torch.randperm(40, generator=torch.Generator().manual_seed(i))[:8]])
        for i in range(100)
    ]
    assert float(torch.tensor(drawn).median()) == pytest.approx(float(found[0].median()), rel=0.1)
    again = batch_calibration(NET, params, x, reference, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)
    assert len(batch_calibration(NET, params, x[:15], reference, torch.Generator())) == 0
    nothing = ImageReference.of({name: value & False for name, value in mask.items()}, scores)
    assert len(batch_calibration(NET, params, x, nothing, torch.Generator())) == 0


def test_a_batch_is_compared_with_drawn_ones_of_no_larger_size() -> None:
    calibration = torch.stack([torch.full((DRAWS,), value) for value in (0.4, 0.3, 0.2)])
    assert [divergence_p_value(0.35, n, calibration) < 0.01 for n in (8, 15, 16, 31, 32, 500)] == [
        False, False, True, True, True, True,
    ]  # fmt: skip
    assert divergence_p_value(0.21, SIZES[2], calibration) == 1.0  # within the margin
    assert 2 * divergence_p_value(0.9, 8, calibration) < 0.01  # the default rate of false alarms can be reached


def test_large_masks_are_compared_at_some_of_their_places() -> None:
    mask = {"hidden1.weight": torch.ones((300, 400), dtype=torch.bool)}
    reference = ImageReference.of(mask, {"hidden1.weight": torch.rand(300, 400)})
    where = reference.places["hidden1.weight"]
    assert len(where) == ENTRIES == len(where.unique())
    assert (int(where[0]), int(where[-1])) == (0, 300 * 400 - 1)


def test_nothing_in_common_diverges_by_one() -> None:
    one, other = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    mask = {"w": torch.ones((1, 2), dtype=torch.bool)}
    assert divergence({"w": one}, {"w": one}, mask) == 0.0
    assert divergence({"w": one}, {"w": other}, mask) == 1.0
    assert divergence({"w": other}, {"w": other}, mask) == 1.0
    assert math.isclose(divergence({"w": one}, {"w": 3 * one}, mask), 0.5)
