"""The slow, obvious references: a plain loop over single images in float64, with autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.networks.base import STATISTICS, Network


def gradients(net: Network, params: dict[str, Tensor], x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    """The gradient of every parameter for every image by itself."""
    found = []
    for n in range(len(x)):
        values = {name: value.detach().double() for name, value in params.items()}
        leaves = {name: value.requires_grad_(True) for name, value in values.items() if not name.endswith(STATISTICS)}
        loss = F.cross_entropy(net.logits(values, x[n : n + 1].double()), y[n : n + 1])
        found.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
    return found


def scores(net: Network, params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean absolute gradient."""
    each = gradients(net, params, x, y)
    return {name: torch.stack([g[name].abs() for g in each]).mean(dim=0) for name in each[0]}


def deviation(
    net: Network,
    params: dict[str, Tensor],
    x: Tensor,
    y: Tensor,
    mask: dict[str, Tensor],
    reference: dict[str, Tensor],
) -> dict[str, Tensor]:
    """Sum of squares over a layer's parameters (shared ones on the mask) of |gradient| − score, per image."""
    result: dict[str, list[Tensor]] = {}
    for g in gradients(net, params, x, y):
        for layer in {name.rpartition(".")[0] for name in params}:
            total = torch.zeros((), dtype=torch.float64)
            for name in g:
                if name.rpartition(".")[0] == layer:
                    difference = (g[name].abs() - reference[name].double()) * mask.get(name, torch.ones(()))
                    total += difference.square().sum()
            result.setdefault(layer, []).append(total)
    return {layer: torch.stack(values) for layer, values in result.items()}


def image_scores(net: Network, params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean absolute gradient of every shared weight, each image's scaled to unit length in the weight's layer."""
    each = gradients(net, params, x, y)
    return {
        name: torch.stack([g[name].abs() / g[name].norm().clamp_min(1e-300) for g in each]).mean(dim=0)
        for name in net.shared_shapes()
    }
