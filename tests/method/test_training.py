from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import random_params
from pictures import ramps as two_blobs
from torch import Tensor

from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.freezing import BITS, freeze_guard
from clmoe_cli.method.subnetwork.training import (
    Annealing,
    Run,
    Schedule,
    anneal,
    dropout,
    losses,
    quality,
    train,
)
from clmoe_cli.runtime.distributed.collectives import Share

NET = MLP(12, (16, 10))
OPTIMIZERS: dict[str, Callable[[list[Tensor]], torch.optim.Optimizer]] = {
    "sgd-momentum-decay": lambda v: torch.optim.SGD(v, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda v: torch.optim.Adam(v, lr=0.01, fused=True),
    "adam-decay": lambda v: torch.optim.Adam(v, lr=0.01, weight_decay=0.1),
    "adamw": lambda v: torch.optim.AdamW(v, lr=0.01, weight_decay=0.5),
    "rmsprop": lambda v: torch.optim.RMSprop(v, lr=0.01, momentum=0.9, weight_decay=0.1),
    "adagrad": lambda v: torch.optim.Adagrad(v, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
@pytest.mark.parametrize("act", [train, anneal], ids=["train", "anneal"])
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_frozen_entries_keep_their_bits_under_every_optimizer(act, make, share: float, rng: torch.Generator) -> None:
    params = random_params(NET, 2, rng, torch.float32)
    trainable = {name: torch.rand(shape, generator=rng) < share for name, shape in NET.shared_shapes().items()}
    extra = (Annealing("test", epochs=3, lr=0.01),) if act is anneal else ()
    data = two_blobs(64, rng)
    run = Run(NET, data, data, Schedule(epochs=3, batch_size=16), rng)
    found, _ = act(run, params, trainable, *extra, optimizer=lambda lr: make)
    for name, mask in trainable.items():
        assert torch.equal(found[name][~mask].view(torch.int32), params[name][~mask].view(torch.int32))
        assert not torch.equal(found[name][mask], params[name][mask])
    assert not torch.equal(found["hidden1.bias"], params["hidden1.bias"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float8_e5m2])
@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.75, 0.8, 0.99, 1.0])
def test_the_guard_puts_back_what_is_frozen_and_nothing_else(dtype, share: float, rng: torch.Generator) -> None:
    bits = BITS[dtype.itemsize]
    limits = torch.iinfo(bits)
    before, after = (torch.randint(limits.min, limits.max, (40, 50), generator=rng, dtype=bits) for _ in range(2))
    value = before.clone().view(dtype)  # any bits at all: NaN of every kind, -0.0, numbers below the normal ones
    moving = torch.rand(before.shape, generator=rng) < share
    restore = freeze_guard({"a": value, "b": value.clone()}, {"a": moving})
    for _ in range(2):
        value.view(bits).copy_(after)
        restore()
        assert torch.equal(value.view(bits), torch.where(moving, after, before))


def test_training_converges_and_changes_nothing_that_it_was_given(rng: torch.Generator) -> None:
    params = random_params(NET, 2, rng, torch.float32)
    before = {name: value.clone() for name, value in params.items()}
    data, held_out = two_blobs(200, rng), two_blobs(60, rng)
    everything = masks.ones_like({name: params[name] for name in NET.shared_shapes()})
    epochs = []
    found, reached = train(Run(NET, data, held_out, Schedule(), rng, on_epoch=epochs.append), params, everything)
    assert quality(NET, found, held_out) == reached
    assert reached.accuracy > 0.95
    assert reached.loss < quality(NET, params, held_out).loss
    assert 0 < len(epochs) <= Schedule().epochs
    assert all(torch.equal(before[name], params[name]) for name in params)


def test_the_same_generator_gives_the_same_bits(rng: torch.Generator) -> None:
    params = random_params(NET, 2, rng, torch.float32)
    data = two_blobs(100, rng)
    everything = masks.ones_like({name: params[name] for name in NET.shared_shapes()})
    twice = [
        train(Run(NET, data, data, Schedule(epochs=3), torch.Generator().manual_seed(7)), params, everything)[0]
        for _ in range(2)
    ]
    assert all(torch.equal(twice[0][name], twice[1][name]) for name in params)


def test_dropout_leaves_out_its_share_and_keeps_the_mean() -> None:
    a = torch.ones(200, 300)
    drop = dropout("hidden1", (0.2, 0.5), torch.Generator().manual_seed(0))(Share.of(200))
    for layer, share in (("hidden1", 0.2), ("hidden2", 0.5), ("output", 0.5)):
        found = drop(layer, a)
        assert float((found == 0).double().mean()) == pytest.approx(share, abs=0.01)
        assert float(found.double().mean()) == pytest.approx(1.0, abs=0.02)
    assert dropout("hidden1", (0.0, 0.0), torch.Generator())(Share.of(200))("hidden2", a) is a


def test_losses_are_those_of_single_images(rng: torch.Generator) -> None:
    params = random_params(NET, 2, rng, torch.float32)
    data = two_blobs(30, rng)
    found = losses(NET, params, data)
    assert found.dtype == torch.float64
    assert float(found.mean()) == pytest.approx(quality(NET, params, data).loss, rel=1e-5)
    assert float(found[3]) == pytest.approx(quality(NET, params, data.take(torch.tensor([3]))).loss, rel=1e-5)
