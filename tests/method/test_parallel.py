"""Several processes compute what one does: sums in float64 to 1e-12, training to what rounding makes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import random_params
from launching import together
from pictures import labelled_bars as pictures
from torch import Tensor, nn
from torch.nn import functional as F

from clmoe_cli.method.networks.base import Network, Params
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.routing.decide import Decision
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores
from clmoe_cli.method.subnetwork.pruning import Tolerance, select
from clmoe_cli.method.subnetwork.training import (
    COMPARED,
    Moving,
    Run,
    Schedule,
    cost,
    dropout,
    quality,
    run_epoch,
    train,
)
from clmoe_cli.runtime.distributed import collectives, stores
from store_schema.errors import ObjectVanished

EXACT = {"rtol": 1e-12, "atol": 1e-14}
NETS: dict[str, Callable[[], Network]] = {
    "mlp": lambda: MLP(256, (12, 10)),
    "cnn": lambda: ConvNet("cnn:4,6", (1, 16, 16)),
}


def start(net: Network, dtype: torch.dtype) -> Params:
    return random_params(net, 3, torch.Generator().manual_seed(1), dtype)


def same(found: dict[str, np.ndarray], expected: dict[str, Tensor], **tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value.detach().numpy(), err_msg=name, **tolerance)


def test_shares_are_all_of_a_batch_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for n in (1, 2, 3, 7):
        monkeypatch.setattr(collectives, "world", lambda n=n: n)
        for whole in (0, 1, 2, 5, 128):
            rows = []
            for rank in range(n):
                monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
                rows.append(range(whole)[collectives.Share.of(whole).rows])
            assert [i for own in rows for i in own] == list(range(whole))
            assert max(map(len, rows)) - min(map(len, rows)) <= 1


def test_a_norm_of_halves_has_the_statistics_of_torchs(rng: torch.Generator) -> None:
    ours, theirs = (nn.BatchNorm2d(3).train() for _ in range(2))
    x = (3 + torch.randn(57, 3, 31, 29, generator=rng)).bfloat16()
    found, expected = collectives._global_norm(ours)(x), theirs(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(ours.running_mean, theirs.running_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.running_var, theirs.running_var, rtol=1e-5, atol=0)


def test_sums_and_rows_of_processes(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        first, second = torch.full((2, 3), rank + 1.0).double(), torch.tensor([[rank]]).double()
        collectives.summed([first, None, second])
        own = torch.arange(3)[:, None].repeat(1, 2)[: [3, 0, 1][rank]] + 10 * rank
        assert collectives.alike(b"the same")
        assert not collectives.alike(b"the same" if rank else b"another")
        return {
            "first": first,
            "second": second,
            "agreed": collectives.agreed(torch.tensor([rank == 0, True])),
            "rows": collectives.gathered(own, [3, 0, 1]),
        }

    expected = {
        "first": torch.full((2, 3), 6.0),
        "second": torch.tensor([[3.0]]),
        "agreed": torch.tensor([True, True]),
        "rows": torch.tensor([[0, 0], [1, 1], [2, 2], [20, 20]]),
    }
    for found in together(3, act, tmp_path / "found"):
        same(found, expected)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_gradients_and_scores_are_those_of_one_process(net: Callable[[], Network], tmp_path: Path) -> None:
    """The first step of SGD at a rate of 1 tells the gradient, with dropout and statistics of the batch in it."""
    data = pictures(13, torch.float64)  # uneven shares

    def act(rank: int) -> dict[str, Tensor]:
        own = net()
        scores = gradient_scores(own, start(own, torch.float64), data.x, data.y)
        alone = gradient_scores(own, start(own, torch.float64), data.x[: rank + 1], data.y[: rank + 1], alone=True)
        moving = Moving.of(start(own, torch.float64), {}, lambda values: torch.optim.SGD(values, lr=1.0))
        generator = torch.Generator().manual_seed(3)
        drop = dropout(own.layers[0], (0.2, 0.3), generator)
        taken = []

        def stop() -> None:
            taken.append({name: value.detach().clone() for name, value in moving.params.items()})

        run_epoch(Run(own, data, data, Schedule(batch_size=13), generator), moving, drop, stop)
        return (
            {f"scores {name}": value for name, value in scores.items()}
            | {f"alone {name}": value for name, value in alone.items() if rank == 0}
            | {f"after {name}": value for name, value in taken[0].items()}
            | {"generator": generator.get_state()}
        )

    expected = act(0)
    first, second = together(2, act, tmp_path / "found")
    same(first, expected, **EXACT)
    assert all(np.array_equal(first[name], second[name]) for name in second)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_what_one_process_would_take_is_measured(
    net: Callable[[], Network], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process 0 alone measures, with its threads and with those of both, on all images of a batch. Nothing changes."""
    data = pictures(40, torch.float32)

    def act(rank: int) -> dict[str, Tensor]:
        for name, value in {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
            monkeypatch.setenv(name, str(value))
        own, seen, tried = net(), list[int](), list[int]()
        monkeypatch.setattr(torch, "set_num_threads", tried.append)
        params, generator = start(own, torch.float32), torch.Generator().manual_seed(3)
        before = [generator.get_state(), *(value.clone() for value in params.values())]
        real = type(own).logits

        def logits(self: Network, params: Params, x: Tensor, *more: Any, **how: Any) -> Tensor:
            seen.append(len(x))
            return real(self, params, x, *more, **how)

        monkeypatch.setattr(type(own), "logits", logits)
        threads = torch.get_num_threads()
        found = cost(Run(own, data, data, Schedule(batch_size=20), generator), params, {}, 3)
        after = [generator.get_state(), *params.values()]
        assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))
        assert (torch.get_num_threads(), collectives.world()) == (threads, 2)
        assert found.threads in (threads, 2 * threads)
        assert tried == [threads, threads, 2 * threads, threads] * (rank == 0)
        batch = Schedule(batch_size=20).batch(40, own)
        assert set(seen[:COMPARED]) == {batch // 2}
        assert seen[COMPARED:] == [batch] * 2 * COMPARED * (rank == 0)
        return {"seconds": torch.tensor([found.seconds, found.alone])}

    first, second = together(2, act, tmp_path / "found")
    assert np.array_equal(first["seconds"], second["seconds"])
    assert np.isfinite(first["seconds"]).all()
    assert (first["seconds"] > 0).all()
    own = net()
    alone = cost(Run(own, data, data, Schedule(), torch.Generator()), start(own, torch.float32), {}, 3)
    assert (alone.alone, alone.threads) == (np.inf, 1)


def test_dropout_is_that_of_one_process(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(9)
        own = collectives.Share.of(7)
        drop = dropout("first", (0.2, 0.5), generator)(own)
        return {name: drop(name, torch.ones(7, 6)[own.rows]) for name in ("first", "second")}

    expected = act(0)
    assert 0 < float((expected["second"] == 0).double().mean()) < 1
    parts = together(3, act, tmp_path / "found")
    for name, value in expected.items():
        assert np.array_equal(np.concatenate([part[name] for part in parts]), value.numpy())


@pytest.mark.parametrize("sizes", [(4, 4), (1, 6), (0, 5), (3, 2, 4)], ids=str)
def test_statistics_are_those_of_the_whole_batch(sizes: tuple[int, ...], tmp_path: Path) -> None:
    n, generator = sum(sizes), torch.Generator().manual_seed(2)
    x = 3 + 2 * torch.randn((n, 3, 4, 5), generator=generator, dtype=torch.float64)
    weigh = torch.randn(x.shape, generator=generator, dtype=torch.float64)
    edges = np.cumsum([0, *sizes]).tolist()

    def norm() -> nn.BatchNorm2d:
        found = nn.BatchNorm2d(3, momentum=0.3, dtype=torch.float64)
        with torch.no_grad():
            found.weight.copy_(torch.tensor([0.5, 1.0, 2.0]))
            found.bias.copy_(torch.tensor([-1.0, 0.0, 1.0]))
        return found

    def passed(module: nn.BatchNorm2d, here: slice) -> dict[str, Tensor]:
        own = x[here].clone().requires_grad_()
        out = module(own)
        (out * weigh[here]).sin().sum().backward()
        grads = [module.weight.grad, module.bias.grad]
        collectives.summed(grads)
        assert own.grad is not None
        with torch.no_grad():
            module.eval()
            after = module(own)
        return {"out": out, "grad": own.grad, "after": after} | {
            "weight": grads[0],
            "bias": grads[1],
            "mean": module.running_mean,
            "variance": module.running_var,
        }

    def act(rank: int) -> dict[str, Tensor]:
        module = norm()
        collectives.normalise_together(module)
        return passed(module, slice(edges[rank], edges[rank + 1]))

    expected = passed(norm(), slice(None))
    parts = together(len(sizes), act, tmp_path / "found")
    rows = {name: np.concatenate([part[name] for part in parts]) for name in ("out", "grad", "after")}
    for part in parts:
        same(part | rows, expected, rtol=1e-11, atol=1e-13)


def test_adapted_statistics_count_each_image_once(tmp_path: Path) -> None:
    """Counted twice, the variance of few images would come out smaller."""
    data = pictures(5, torch.float64)

    def act(rank: int) -> dict[str, Tensor]:
        net = NETS["cnn"]()
        return net.adapted(start(net, torch.float64), data.x)

    expected = act(0)
    for found in together(2, act, tmp_path / "found"):
        same(found, expected, **EXACT)


@pytest.mark.parametrize("net", NETS.values(), ids=NETS)
def test_training_and_masks_are_those_of_one_process(net: Callable[[], Network], tmp_path: Path) -> None:
    """In float64, over some hundred steps: rounding has grown, but to no more than 1e-6, and moves no bit of a mask."""
    data, held_out = pictures(110, torch.float64), pictures(64, torch.float64, 6)
    schedule = Schedule(epochs=2, batch_size=32)

    def act(rank: int) -> dict[str, Tensor]:
        own, generator = net(), torch.Generator().manual_seed(4)
        free = masks.ones_like({name: torch.zeros(shape) for name, shape in own.shared_shapes().items()})
        run = Run(own, data, held_out, schedule, generator)
        dense, _ = train(run, start(own, torch.float64), free)
        chosen = select(run, dense, free, Tolerance(epochs=1, final_epochs=1, floor=0.15), "gradient-weight")
        return (
            {f"mask {name}": value for name, value in chosen.mask.items()}
            | {f"params {name}": value for name, value in chosen.params.items()}
            | {"accuracy": torch.tensor(quality(own, chosen.params, held_out).accuracy)}
        )

    expected = act(0)
    density = [float(value.double().mean()) for name, value in expected.items() if name.startswith("mask")]
    assert 0 < min(density) <= max(density) < 1
    first, second = together(2, act, tmp_path / "found")
    same(first, expected, rtol=1e-6, atol=1e-7)
    assert all(np.array_equal(first[name], second[name]) for name in first)
    if net is NETS["mlp"]:  # what is compared is no copy
        assert any(not np.array_equal(first[name], value.numpy()) for name, value in expected.items())


def test_predictions_are_gathered_in_order(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        found = {}
        for n, unit in ((7, 1), (7, 3), (2, 1), (7, 7)):
            seen = []

            def decide(own: slice, seen: list[int] = seen, n: int = n) -> Iterator[Decision]:
                every = torch.arange(n)[own]
                seen.append(len(every))
                for values in every.split(2):
                    yield Decision(values, values + 100, values.double(), values.double() / 2)

            (decided,) = stores.in_shares(n, unit, decide, Decision.joined)
            found[f"{n} {unit}"] = decided.code
            found[f"p {n} {unit}"] = decided.p_value
            found[f"seen {n} {unit}"] = torch.tensor(seen)
        return found

    parts = together(3, act, tmp_path / "found")
    for n, unit, shares in ((7, 1, [2, 2, 3]), (7, 3, [3, 3, 1]), (2, 1, [2, 2, 2]), (7, 7, [7, 7, 7])):
        assert [int(part[f"seen {n} {unit}"][0]) for part in parts] == shares
        for part in parts:
            assert np.array_equal(part[f"{n} {unit}"], np.arange(n) + 100)
            assert np.array_equal(part[f"p {n} {unit}"], np.arange(n) / 2)


def test_a_file_that_one_process_misses_is_missed_by_all(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        def decide(own: slice) -> Iterator[Decision]:
            yield Decision(*(torch.zeros(4)[own] for _ in range(4)))
            if rank == 1:
                raise ObjectVanished("gone")

        with pytest.raises(ObjectVanished):
            list(stores.in_shares(4, 1, decide, Decision.joined))
        return {}

    together(2, act, tmp_path / "found")


def test_a_process_that_ends_is_noticed(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        norm = nn.BatchNorm2d(2)
        collectives.normalise_together(norm)
        out = norm(torch.rand(2, 2, 3, 3, requires_grad=True))
        if rank == 1:
            return {}
        with pytest.raises(collectives.Lost, match=r"\S"):
            F.mse_loss(out, torch.ones_like(out)).backward()
        with pytest.raises(collectives.Lost):
            norm(out.detach())
        with pytest.raises(collectives.Lost):
            collectives.meet()
        return {}

    together(2, act, tmp_path / "found")
