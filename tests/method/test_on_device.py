"""Training waits for nothing: within an epoch no number is read and nothing moves; data and draws lie where it is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from card import Card, OnCard
from conftest import random_params
from pictures import labelled_bars
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from clmoe_cli.method.images import Images, Labelled
from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import on_device, training
from clmoe_cli.method.subnetwork.training import Moving, Part, Run, Schedule, adam, dropout, run_epoch, run_steps

NETS: dict[str, Callable[[], Network]] = {
    "mlp": lambda: MLP(256, (12, 10)),
    "cnn": lambda: ConvNet("cnn:4,6", (1, 16, 16)),
}
READS = {torch.ops.aten._local_scalar_dense.default, torch.ops.aten.is_nonzero.default, torch.ops.aten.equal.default}
"""What makes a processor wait for a card: a number is wanted, or (below) sizes that hang on numbers."""
SIZED = {
    torch.ops.aten.nonzero.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten._unique2.default,
    torch.ops.aten.bincount.default,
}


class Waits(TorchDispatchMode):
    """Counts operations that wait, and tensors that go from one device to another."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {t.device for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor) and t.ndim}
        made = {t.device for t in tree_leaves(result) if isinstance(t, Tensor) and t.ndim}
        booleans = func is torch.ops.aten.index.Tensor and any(
            isinstance(i, Tensor) and i.dtype == torch.bool for i in args[1]
        )
        if func in READS | SIZED or booleans or len(given | made) > 1:
            self.seen.append(str(func))
        return result


def prepared(kind: str, frozen: float = 0.3) -> tuple[Run, Moving, Any]:
    """A run of an epoch on a few pictures, with frozen weights and dropout."""
    rng, net = torch.Generator().manual_seed(1), NETS[kind]()
    data = labelled_bars(100, torch.float32)
    params = random_params(net, 3, rng, torch.float32)
    free = {name: torch.rand(shape, generator=rng) >= frozen for name, shape in net.shared_shapes().items()}
    run = Run(net, data, data, Schedule(batch_size=16), rng)
    return run, Moving.of(params, free, adam(1e-3)), dropout(net.layers[0], (0.2, 0.3), rng)


@pytest.mark.parametrize("kind", NETS)
def test_no_step_waits(kind: str) -> None:
    run, moving, drop = prepared(kind)
    steps: list[int] = []
    with Waits() as waits:
        run_steps(run, moving, drop, lambda: None, lambda done, images: steps.append(done), Part())
        assert waits.seen == []
        assert len(steps) == run.steps >= training.CONVOLVED_BATCHES
        run_epoch(run, moving, drop)
    # The loss of the epoch, once.
    assert waits.seen == ["aten._local_scalar_dense.default"]


@pytest.mark.parametrize(
    ("kind", "images", "batch", "steps", "epoch"),
    [
        ("cnn", 100, 16, 20, 320),
        ("cnn", 400, 16, 25, 400),
        ("cnn", 3000, 100, 30, 3000),
        ("cnn", 5000, 128, 40, 5000),
        ("mlp", 100, 16, 32, 500),
        ("mlp", 400, 50, 32, 1600),
        ("mlp", 5000, 128, 40, 5000),
    ],
)
def test_an_epoch_follows_the_images(kind: str, images: int, batch: int, steps: int, epoch: int) -> None:
    schedule, net = Schedule(), NETS[kind]()
    found = schedule.batch(images, net), schedule.steps(images, net), schedule.epoch(images, net)
    assert found == (batch, steps, epoch)


def test_a_step_that_waits_is_seen() -> None:
    run, moving, drop = prepared("mlp")
    read: list[float] = []

    def reading() -> None:
        read.append(float(moving.params["output.bias"].detach()[0]))

    with Waits() as waits:
        run_steps(run, moving, drop, reading, lambda done, images: None, Part())
    assert len(waits.seen) == len(read) == run.steps


@pytest.mark.parametrize("kind", NETS)
def test_nothing_is_read_where_there_are_no_numbers(kind: str) -> None:
    """On the meta device tensors have no numbers: whatever wanted one would fail, as would an index in memory."""
    run, moving, drop = prepared(kind)
    params = {
        name: value.detach().to("meta").requires_grad_(value.requires_grad) for name, value in moving.params.items()
    }
    data = Labelled(run.training.x.to("meta"), run.training.y.to("meta"))  # type: ignore[union-attr]
    sgd = torch.optim.SGD([value for value in params.values() if value.requires_grad], lr=0.1)
    own = Run(run.net, data, data, run.schedule, run.generator)
    total, seen = run_steps(own, Moving(params, sgd, lambda: None), drop, lambda: None, lambda a, b: None, Part())
    assert total.is_meta
    assert seen == own.schedule.epoch(100, run.net)


def test_data_go_where_there_is_room(monkeypatch: pytest.MonkeyPatch, rng: torch.Generator) -> None:
    x, y = torch.rand((50, 6), generator=rng), torch.randint(3, (50,), generator=rng)
    read: list[int] = []

    def reading(rows: Tensor) -> Tensor:
        read.append(len(rows))
        return x[rows]

    unread = Labelled(Images(reading, torch.arange(50), 6), y)
    assert on_device.placed(unread, "cpu") is unread
    with Card():
        for data in (Labelled(x, y), unread):
            found = on_device.placed(data, "mps")
            assert isinstance(found.x, OnCard)
            assert isinstance(found.y, OnCard)
            assert torch.equal(found.x.cpu(), x)
            assert torch.equal(found.y.cpu(), y)
            back = on_device.placed(found, "cpu")
            assert not isinstance(back.x, OnCard)
            assert torch.equal(back.x, x)  # type: ignore[arg-type]
        assert sum(read) == 50
        monkeypatch.setattr(on_device, "ROOM", 4 * 50 * 6 - 1)
        assert on_device.placed(unread, "mps") is unread
    assert sum(read) == 50


def test_a_processor_draws_from_the_generator_that_it_is_given(rng: torch.Generator) -> None:
    before = rng.get_state()
    assert on_device.drawing(rng, "cpu") is rng
    assert torch.equal(rng.get_state(), before)


def test_a_card_draws_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """A generator of its own, whose seed is drawn: the same again from the same, and another the next time."""
    monkeypatch.setattr(on_device, "DRAWING", ("cpu",))
    own = torch.Generator().manual_seed(5)
    first, second = on_device.drawing(own, "cpu"), on_device.drawing(own, "cpu")
    assert len({id(own), id(first), id(second)}) == 3
    again = on_device.drawing(torch.Generator().manual_seed(5), "cpu")
    drawn = [torch.rand(8, generator=each) for each in (first, second, again)]
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
@pytest.mark.parametrize("kind", NETS)
def test_a_real_card_does_not_wait(kind: str) -> None:
    run, moving, _ = prepared(kind)
    own = on_device.drawing(run.generator, "cuda")
    data = on_device.placed(run.training, "cuda")
    params = {name: value.detach().cuda() for name, value in moving.params.items()}
    there = Moving.of(params, {}, adam(1e-3))
    card = Run(run.net, data, data, run.schedule, own)
    torch.cuda.set_sync_debug_mode("error")
    try:
        drop = dropout(run.net.layers[0], (0.2, 0.3), own)
        run_steps(card, there, drop, lambda: None, lambda done, images: None, Part())
    finally:
        torch.cuda.set_sync_debug_mode("default")
