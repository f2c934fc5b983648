"""The slow, obvious references: a plain loop over single images in float64, with autograd."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.continual.experts import forward


def gradients(params: dict[str, Tensor], x: Tensor, y: Tensor) -> list[dict[str, Tensor]]:
    """The gradient of every parameter for every image by itself."""
    found = []
    for n in range(len(x)):
        leaves = {name: value.detach().double().requires_grad_(True) for name, value in params.items()}
        loss = F.cross_entropy(forward(leaves, x[n : n + 1].double()).logits, y[n : n + 1])
        found.append(dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True)))
    return found


def scores(params: dict[str, Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Mean absolute gradient."""
    each = gradients(params, x, y)
    return {name: torch.stack([g[name].abs() for g in each]).mean(dim=0) for name in params}


def deviation(
    params: dict[str, Tensor], x: Tensor, y: Tensor, mask: dict[str, Tensor], reference: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Sum of squares over a layer's weights (on the mask) and bias of |gradient| − score, per image."""
    result: dict[str, list[Tensor]] = {}
    for g in gradients(params, x, y):
        for layer in {name.rpartition(".")[0] for name in params}:
            weight, bias = f"{layer}.weight", f"{layer}.bias"
            difference = (g[weight].abs() - reference[weight].double()) * mask.get(weight, torch.ones(()))
            total = difference.square().sum() + (g[bias].abs() - reference[bias].double()).square().sum()
            result.setdefault(layer, []).append(total)
    return {layer: torch.stack(values) for layer, values in result.items()}
