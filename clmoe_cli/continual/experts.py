"""Experts: networks whose weight matrices are shared by tasks and whose other parameters a task owns.

Layout of the parameters (``P`` stands for a ``dict[str, Tensor]``):

====================  ============  ======================================================
name                  shape         who has it
====================  ============  ======================================================
``hidden{i}.weight``  [out, in]     shared: masks say which entries a task uses
``hidden{i}.bias``    [out]         owned by the task
``output.weight``     [C, in]       owned: one row per class of the task, appended per task
``output.bias``       [C]           owned
====================  ============  ======================================================

Inputs are flattened images times the expert's ``input_scale``, shape [N, D].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

Params = dict[str, Tensor]

MAX_WIDTH = 65_536
MAX_WEIGHTS = 100_000_000


@dataclass(frozen=True)
class MLP:
    """A multilayer perceptron with ReLU: ``input_size`` inputs and hidden layers of the widths ``hidden``."""

    input_size: int
    hidden: tuple[int, ...]

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers, input side first; the last one is ``output``."""
        return (*(f"hidden{i + 1}" for i in range(len(self.hidden))), "output")

    def shared_shapes(self) -> dict[str, tuple[int, int]]:
        """Name → shape [out, in] of every shared weight."""
        sizes = (self.input_size, *self.hidden)
        return {f"hidden{i + 1}.weight": (sizes[i + 1], sizes[i]) for i in range(len(self.hidden))}

    def initial_shared(self, generator: torch.Generator) -> Params:
        """Fresh shared weights (He et al. 2015, uniform)."""
        return {
            name: _uniform(shape, math.sqrt(6.0 / shape[1]), generator) for name, shape in self.shared_shapes().items()
        }

    def initial_owned(self, classes: int, generator: torch.Generator) -> Params:
        """Fresh owned parameters of a task with that many classes; biases start at zero."""
        owned = {f"hidden{i + 1}.bias": torch.zeros(width) for i, width in enumerate(self.hidden)}
        shape = (classes, self.hidden[-1])
        owned["output.weight"] = _uniform(shape, math.sqrt(1.0 / shape[1]), generator)
        owned["output.bias"] = torch.zeros(classes)
        return owned


@dataclass(frozen=True)
class Pass:
    """What one forward pass leaves behind.

    ``inputs[layer]`` is what the layer reads, [N, in]; ``outputs[layer]`` what it computes before the
    ReLU, [N, out]; the outputs of ``output`` are the logits, [N, C].
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """Logits, [N, C]."""
        return self.outputs["output"]

    @property
    def hidden(self) -> Tensor:
        """All hidden activations side by side, [N, sum of the hidden widths]."""
        after_first = list(self.inputs.values())[1:]
        return torch.cat(after_first, dim=1)


def parse_arch(text: str, input_size: int) -> MLP:
    """``mlp:500,500`` → :class:`MLP`.

    Raises ValueError with one line that says what was expected.
    """
    kind, _, sizes = text.partition(":")
    try:
        hidden = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        hidden = ()
    if kind != "mlp" or not hidden or any(not 1 <= size <= MAX_WIDTH for size in hidden):
        raise ValueError(f"unknown architecture {text!r}; expected mlp:WIDTH[,WIDTH…], as mlp:500,500")
    net = MLP(input_size, hidden)
    weights = sum(out * size for out, size in net.shared_shapes().values())
    if weights > MAX_WEIGHTS:
        raise ValueError(f"architecture {text!r} has {weights} weights; expected mlp:… with at most {MAX_WEIGHTS}")
    return net


def forward(params: Mapping[str, Tensor], x: Tensor, drop: Callable[[str, Tensor], Tensor] | None = None) -> Pass:
    """One forward pass; ``params`` holds shared and owned parameters, ``x`` is [N, D].

    ``drop(layer, a)``: what the layer reads instead of ``a``, as dropout does while training.
    """
    inputs: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    names = [name.removesuffix(".weight") for name in params if name.endswith(".weight")]
    for layer in names:
        x = x if drop is None else drop(layer, x)
        inputs[layer] = x
        outputs[layer] = F.linear(x, params[f"{layer}.weight"], params[f"{layer}.bias"])
        x = F.relu(outputs[layer])
    return Pass(inputs, outputs)


def logits(params: Mapping[str, Tensor], x: Tensor, chunk: int = 4096) -> Tensor:
    """Logits [N, C] without gradients, in chunks of images so that memory stays bounded."""
    with torch.inference_mode():
        return torch.cat([forward(params, part).logits for part in x.split(chunk)])


def _uniform(shape: tuple[int, int], bound: float, generator: torch.Generator) -> Tensor:
    return torch.empty(shape).uniform_(-bound, bound, generator=generator)
