"""Compact subnetworks answer as the whole ones do, whatever is zero."""

from __future__ import annotations

import torch
from conftest import random_params
from hypothesis import given
from hypothesis import strategies as st

from clmoe_cli.continual.compaction import compacted
from clmoe_cli.continual.experts import MLP, logits, parse_arch


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
    torch.testing.assert_close(small.logits(x), logits(net, params, x), rtol=1e-12, atol=1e-12)
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
    assert torch.equal(found.logits(x), logits(net, params, x))
