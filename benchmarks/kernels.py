"""Speed of the hot paths, as ratios to plain PyTorch in the same run: scores, a step, features, decisions.

    python benchmarks/kernels.py --out bench-out/speed [--root MNIST_ROOT]

Scores: 256 images on 784-500-500-10 beside one ordinary forward and backward pass, and beside a loop over single
images. A step: 128 images with frozen parameters beside the same step in plain PyTorch with the same optimizer.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from turns import by_turns, ratio, seconds

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores
from clmoe_cli.method.subnetwork.training import Moving, Run, Schedule, adam, dropout, run_epoch

SIZES = (784, 500, 500)
CLASSES = 10
STEPS = 30


def plain(widths: tuple[int, ...], classes: int, drop: bool = False) -> nn.Sequential:
    """The same network as ordinary modules."""
    layers: list[nn.Module] = [nn.Dropout(0.2)] if drop else []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU(), *([nn.Dropout(0.3)] if drop else [])]
    return nn.Sequential(*layers, nn.Linear(widths[-1], classes))


def forward_and_backward(net: nn.Module, x: Tensor, y: Tensor) -> None:
    net.zero_grad()
    F.cross_entropy(net(x), y).backward()


def one_by_one(net: nn.Sequential, x: Tensor, y: Tensor) -> list[Tensor]:
    """Mean absolute gradients by a loop over images: what gradient_scores replaces."""
    values = list(net.parameters())
    sums = [torch.zeros_like(value) for value in values]
    for i in range(len(x)):
        gradients = torch.autograd.grad(F.cross_entropy(net(x[i : i + 1]), y[i : i + 1]), values)
        for total, gradient in zip(sums, gradients, strict=True):
            total += gradient.abs()
    return [total / len(x) for total in sums]


def scores(turns: int, images: int = 256, widths: tuple[int, ...] = SIZES, classes: int = CLASSES) -> dict[str, Any]:
    """Gradient scores: ratios to a forward and backward pass and to the loop, and the share of the product rate."""
    rng = torch.Generator().manual_seed(0)
    net = MLP(widths[0], widths[1:])
    params = net.ordered(net.initial_shared(rng) | net.initial_owned(classes, rng))
    x, y = torch.rand((images, widths[0]), generator=rng), torch.randint(classes, (images,), generator=rng)
    module = plain(widths, classes)
    runs: dict[str, Callable[[], object]] = {
        "scores": lambda: gradient_scores(net, params, x, y),
        "pass": lambda: forward_and_backward(module, x, y),
        "loop": lambda: one_by_one(module, x, y),
    }
    loop = by_turns({name: runs[name] for name in ("scores", "loop")}, 3 if images <= 256 else 0)
    times = by_turns({name: runs[name] for name in ("scores", "pass")}, turns)
    weights = sum(value.numel() for name, value in params.items() if name.endswith("weight"))
    # Forward, back to the layers' outputs (not to the images), and |Δ|ᵀ|Ā|.
    operations = 2 * images * (3 * weights - widths[0] * widths[1])
    return {
        "to a pass": ratio(times, "scores", "pass"),
        **({"loop to scores": ratio(loop, "loop", "scores")} if loop["loop"] else {}),
        "milliseconds": 1e3 * seconds(times, "scores"),
        "operations a second": operations / seconds(times, "scores"),
    }


def step(turns: int, frozen: float = 0.05, widths: tuple[int, ...] = SIZES, classes: int = CLASSES) -> dict[str, Any]:
    """Training steps of 128 images: with frozen entries, and without dropout and with it, to plain PyTorch's."""
    # Labels at random are soon known by heart; the tiny gradients after that would be slow, in the one or the other.
    torch.set_flush_denormal(True)
    rng = torch.Generator().manual_seed(0)
    net = MLP(widths[0], widths[1:])
    params = net.ordered(net.initial_shared(rng) | net.initial_owned(classes, rng))
    n = 128 * STEPS
    x, y = torch.rand((n, widths[0]), generator=rng), torch.randint(classes, (n,), generator=rng)
    data = Labelled(x, y)
    masks = {name: torch.rand(params[name].shape, generator=rng) > frozen for name in net.shared_shapes()}
    drop = dropout("hidden1", (0.2, 0.3), rng)

    def ours(dropping: bool) -> Callable[[], object]:
        moving, run = Moving.of(params, masks, adam(1e-3)), Run(net, data, data, Schedule(batch_size=128), rng)
        return lambda: run_epoch(run, moving, drop if dropping else None)

    def dense(dropping: bool) -> Callable[[], object]:
        module = plain(widths, classes, dropping)
        optimizer = torch.optim.Adam(module.parameters(), lr=1e-3, fused=True)

        def epoch() -> None:
            for index in torch.randperm(n, generator=rng).split(128):
                optimizer.zero_grad()
                F.cross_entropy(module(x[index]), y[index]).backward()
                optimizer.step()

        return epoch

    runs = {"ours": ours(False), "dense": dense(False), "ours dropping": ours(True), "dense dropping": dense(True)}
    times = by_turns(runs, turns)
    torch.set_flush_denormal(False)
    weights = sum(value.numel() for name, value in params.items() if name.endswith("weight"))
    operations = 2 * 128 * (3 * weights - widths[0] * widths[1])
    return {
        "to a dense step": ratio(times, "ours", "dense"),
        "with dropout in both": ratio(times, "ours dropping", "dense dropping"),
        "milliseconds": 1e3 * seconds(times, "ours") / STEPS,
        "operations a second": operations * STEPS / seconds(times, "ours"),
    }
