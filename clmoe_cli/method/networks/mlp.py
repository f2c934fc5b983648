"""Multilayer perceptrons with ReLU."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.networks.base import Dense, Drop, Kind, Network, Params, Pass, uniform


@dataclass(frozen=True)
class MLP(Network):
    """A multilayer perceptron with ReLU: ``input_size`` inputs and hidden layers of the widths ``hidden``."""

    input_size: int
    hidden: tuple[int, ...]

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """``hidden1``, ``hidden2``, … and ``output``."""
        return {name: Dense() for name in (*(f"hidden{i + 1}" for i in range(len(self.hidden))), "output")}

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape [out, in] of every shared weight."""
        sizes = (self.input_size, *self.hidden)
        return {f"hidden{i + 1}.weight": (sizes[i + 1], sizes[i]) for i in range(len(self.hidden))}

    def initial_owned(self, classes: int, generator: torch.Generator) -> Params:
        """Fresh owned parameters of a task with that many classes; biases start at zero."""
        owned = {f"hidden{i + 1}.bias": torch.zeros(width) for i, width in enumerate(self.hidden)}
        shape = (classes, self.hidden[-1])
        owned["output.weight"] = uniform(shape, math.sqrt(1.0 / shape[1]), generator)
        owned["output.bias"] = torch.zeros(classes)
        return owned

    def logits(
        self, params: Mapping[str, Tensor], x: Tensor, drop: Drop | None = None, training: bool = False
    ) -> Tensor:
        """Logits [N, C]; there is nothing that differs while training but ``drop``."""
        for layer in self.layers:
            x = x if layer == "hidden1" else F.relu(x)
            x = x if drop is None else drop(layer, x)
            x = F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"])
        return x

    def trace(self, params: Mapping[str, Tensor], x: Tensor) -> Pass:
        """One forward pass on images [N, D]."""
        # The outputs need a gradient although no parameter does: the first bias carries it there.
        tracked = {**params, "hidden1.bias": params["hidden1.bias"].detach().requires_grad_(True)}
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        for layer in self.layers:
            inputs[layer] = x
            outputs[layer] = F.linear(x, tracked[f"{layer}.weight"], tracked[f"{layer}.bias"])
            x = F.relu(outputs[layer])
        return Pass(inputs, outputs)
