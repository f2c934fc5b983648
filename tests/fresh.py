"""Fresh values for the parameters of a module without values."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from clmoe_cli.method.networks.modules import head_of, layers_of


def initial_parameters(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    """Fresh float32 values for everything that :func:`torch.func.functional_call` needs, in the order of the layers.

    Weights uniform within √(6 / fan-in) (He et al. 2015), those of the output layer within √(1 / fan-in); biases
    zero; batch norms start as the identity. ``num_batches_tracked`` is left out: nothing reads it.
    """
    head, params = head_of(module), {}
    for name, layer in layers_of(module).items():
        for key, value in [*layer.named_parameters(), *layer.named_buffers()]:
            fresh = torch.zeros(value.shape)
            if isinstance(layer, nn.BatchNorm2d):
                fresh.fill_(float(key in ("weight", "running_var")))
            elif key == "weight":
                bound = math.sqrt((1.0 if name == head else 6.0) / value[0].numel())
                fresh.uniform_(-bound, bound, generator=generator)
            if key != "num_batches_tracked":
                params[f"{name}.{key}"] = fresh
    return params
