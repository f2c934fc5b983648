"""A subnetwork without what it does not use: fewer inputs and hidden units, the same function.

A task selects a few percent of an expert's weights, so that most of a dense product multiplies zeros. What no later
layer reads is left out, and a unit that reads nothing is a constant, which goes into the next layer's biases. The
answers are the same up to the order of summation; what is certified bit for bit is computed from the whole network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

from clmoe_cli.continual.experts import MLP, Network, Params, logits


@dataclass(frozen=True)
class Compact:
    """A network and its parameters; ``inputs``: positions of the numbers of an image that it reads, None for all."""

    net: Network
    params: Params
    inputs: Tensor | None = None

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, C] of images [N, D]."""
        return logits(self.net, self.params, x if self.inputs is None else x[:, self.inputs])


def compacted(net: Network, params: Mapping[str, Tensor]) -> Compact:
    """The compact form of a perceptron; any other network is left as it is."""
    if not isinstance(net, MLP):
        return Compact(net, dict(params))
    kinds = ("weight", "bias")
    layers = [[params[f"{name}.{kind}"].cpu().double() for kind in kinds] for name in net.layers]
    for (weight, bias), after in pairwise(layers):
        constant = ~(weight != 0).any(dim=1)
        after[1] = after[1] + after[0][:, constant] @ bias[constant].relu()
        after[0] = after[0].masked_fill(constant, 0.0)
    # From the last layer backwards: a unit that nothing reads needs no inputs.
    kept: list[Tensor] = []
    rows = torch.ones(len(layers[-1][1]), dtype=torch.bool)
    for layer in reversed(layers):
        layer[0], layer[1] = layer[0][rows], layer[1][rows]
        rows = (layer[0] != 0).any(dim=0)
        layer[0] = layer[0][:, rows]
        kept.append(rows)
    inputs = kept[-1].nonzero()[:, 0]
    found = {
        f"{name}.{kind}": value.contiguous().to(params["output.weight"])
        for name, layer in zip(net.layers, layers, strict=True)
        for kind, value in zip(kinds, layer, strict=True)
    }
    return Compact(MLP(len(inputs), tuple(len(layer[1]) for layer in layers[:-1])), found, inputs)
