"""Compact subnetworks answer as the whole ones do, whatever is zero."""

from __future__ import annotations

import pytest
import torch
from conftest import random_params
from hypothesis import given, settings
from hypothesis import strategies as st

from clmoe_cli.method import reproducible
from clmoe_cli.method.images import Images, Labelled
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import Network, logits
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.compact import compacted, inside, scores_inside
from clmoe_cli.method.subnetwork.finetuning import finetune
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores
from clmoe_cli.method.subnetwork.training import Annealing, Run, Schedule, anneal, quality


@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
def test_the_same_answers(hidden: list[int], density: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    net = MLP(7, tuple(hidden))
    params = random_params(net, 3, rng)
    for name in net.shared_shapes():
        params[name] *= torch.rand(params[name].shape, generator=rng) < density
    params["output.weight"] *= torch.rand(params["output.weight"].shape, generator=rng) < 0.7
    x = torch.randn((11, 7), generator=rng, dtype=torch.float64)
    small = compacted(net, params)
    read = x if small.inputs is None else x[:, small.inputs]
    torch.testing.assert_close(logits(small.net, small.params, read), logits(net, params, x), rtol=1e-12, atol=1e-12)
    assert torch.equal(small.logits(x), reproducible.logits(small.net, small.params, read))
    for name in small.net.layers[:-1]:
        assert bool((small.params[f"{name}.weight"] != 0).any(dim=1).all())
    assert all(value.is_contiguous() for value in small.params.values())


def test_what_is_left() -> None:
    net = MLP(4, (3, 2))
    params = {
        "hidden1.weight": torch.tensor([[0.0, 2, 0, 0], [0, 0, 0, 0], [0, 0, 1, 0]]),
        "hidden1.bias": torch.tensor([0.5, 3.0, 1.0]),
        "hidden2.weight": torch.tensor([[1.0, 2, 0], [0, 0, 0]]),
        "hidden2.bias": torch.tensor([0.0, 1.0]),
        "output.weight": torch.tensor([[1.0, 4], [0, -1]]),
        "output.bias": torch.tensor([0.0, 7.0]),
    }
    found = compacted(net, params)
    assert found.inputs is not None
    assert found.inputs.tolist() == [1]  # the third hidden unit reads one, but nothing reads it
    assert found.net == MLP(1, (1, 1))
    assert {name: value.tolist() for name, value in found.params.items()} == {
        "hidden1.weight": [[2.0]],
        "hidden1.bias": [0.5],
        "hidden2.weight": [[1.0]],
        "hidden2.bias": [6.0],
        "output.weight": [[1.0], [0.0]],
        "output.bias": [4.0, 6.0],
    }


def test_other_networks_are_left_alone(rng: torch.Generator) -> None:
    net = parse_arch("cnn:2,3", (1, 12, 12))
    params = random_params(net, 2, rng, torch.float32)
    found = compacted(net, params)
    x = torch.rand((3, 144), generator=rng)
    assert found.inputs is None
    assert torch.equal(found.logits(x), reproducible.logits(net, params, x))
    torch.testing.assert_close(found.logits(x).float(), logits(net, params, x), rtol=1e-5, atol=1e-6)


PLAIN = Schedule(batch_size=16, annealing_dropout=(0.0, 0.0), dropout=(0.0, 0.0))


def started(
    net: MLP, density: float, rng: torch.Generator, dtype: torch.dtype
) -> tuple[dict[str, torch.Tensor], masks.Masks]:
    """Parameters that are zero where a task does not read, and the part of the others that it may change."""
    read = {name: torch.rand(shape, generator=rng) < density for name, shape in net.shared_shapes().items()}
    params = random_params(net, 2, rng, dtype)
    trainable = {name: mask & (torch.rand(mask.shape, generator=rng) < 0.7) for name, mask in read.items()}
    return params | masks.apply(params, read), trainable


def begun(net: Network, data: Labelled, schedule: Schedule) -> Run:
    """A run that is tuned on what it trains on, always from the same seed."""
    return Run(net, data, data, schedule, torch.Generator().manual_seed(1))


def some_images(rng: torch.Generator, dtype: torch.dtype) -> Labelled:
    return Labelled(torch.randn((40, 7), generator=rng, dtype=dtype), torch.arange(40) % 2)


@pytest.mark.campaign
@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.1, 0.3, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_training_inside_a_mask_is_training_the_whole(hidden: list[int], density: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    net = MLP(7, tuple(hidden))
    params, trainable = started(net, density, rng, torch.float64)
    for name in trainable:  # no unit is a constant, so that the whole trains nothing else
        params[name][:, 0] = 0.5
    data = some_images(rng, torch.float64)
    how = Annealing("test", epochs=3, lr=0.01)
    oracle, reached = anneal(begun(net, data, PLAIN), params, trainable, how)
    found, now = finetune(begun(net, data, PLAIN), params, trainable, how)
    for name, value in oracle.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9)
    assert abs(now.loss - reached.loss) < 1e-9


@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.6]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_what_a_mask_holds_keeps_its_bits(hidden: list[int], density: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    net = MLP(7, tuple(hidden))
    params, trainable = started(net, density, rng, torch.float32)
    data = some_images(rng, torch.float32)
    # Images that are read when they are looked at, as from a file larger than memory.
    late = Labelled(Images(lambda rows: data.x[rows], torch.arange(40), 7), data.y)
    before = {name: value.clone() for name, value in params.items()}
    schedule, how = Schedule(batch_size=16), Annealing("test", epochs=2, lr=0.01)
    found, reached = finetune(begun(net, late, schedule), params, trainable, how)
    again, _ = finetune(begun(net, data, schedule), params, trainable, how)
    now = quality(net, found, data)  # of the whole, constants included
    assert abs(now.loss - reached.loss) < 1e-5
    for name, value in params.items():
        assert torch.equal(value, before[name])
        assert torch.equal(found[name], again[name])
        if name in trainable:
            assert torch.equal(found[name][~trainable[name]], value[~trainable[name]])


@given(
    hidden=st.lists(st.integers(1, 9), min_size=1, max_size=3),
    density=st.sampled_from([0.0, 0.05, 0.2, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_scores_inside_a_mask_are_those_of_the_whole(hidden: list[int], density: float, seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    net = MLP(7, tuple(hidden))
    params, mask = started(net, density, rng, torch.float64)
    params = {name: value.where(mask[name], 0.0) if name in mask else value for name, value in params.items()}
    for name in mask:  # a selected weight may have come to zero, and has a score all the same
        params[name] = params[name].where(torch.rand(params[name].shape, generator=rng) < 0.9, 0.0)
    data = some_images(rng, torch.float64)
    oracle = gradient_scores(net, params, data.x, data.y)
    found = scores_inside(net, params, mask, data)
    assert list(found) == list(oracle)
    for name, value in oracle.items():
        own = mask.get(name, torch.ones_like(value, dtype=torch.bool))
        torch.testing.assert_close(found[name][own], value[own], rtol=1e-9, atol=1e-12)


def test_an_image_file_is_read_in_the_part_that_is_used() -> None:
    net = MLP(4, (2,))
    params = random_params(net, 2, torch.Generator().manual_seed(0), torch.float32)
    params["hidden1.weight"] = torch.tensor([[0.0, 2, 0, 1], [0, 0, 0, 0]])
    small = inside(net, params, {"hidden1.weight": torch.zeros((2, 4), dtype=torch.bool)})
    assert small.net == MLP(2, (1,))
    x = torch.arange(12.0).view(3, 4)
    late = small.images(Labelled(Images(lambda rows: x[rows], torch.tensor([2, 0]), 4), torch.tensor([0, 1])))
    assert late.x[torch.tensor([0])].tolist() == [[9.0, 11.0]]
    assert isinstance(late.x, Images)
    assert late.x.width == 2
