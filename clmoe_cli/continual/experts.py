"""Experts: networks whose weight matrices and kernels are shared by tasks and whose other parameters a task owns.

Layout of the parameters (``Params``: name → tensor, in the order of computation):

==========================================  =================  ==========================================
name                                        shape              who has it
==========================================  =================  ==========================================
``{layer}.weight`` of a dense layer         [out, in]          shared: masks say which entries a task uses
``{layer}.weight`` of a convolution         [out, in, kh, kw]  shared
``{layer}.bias``                            [out]              owned by the task
``{layer}.weight`` of a normalisation       [channels]         owned
``{layer}.running_mean``, ``.running_var``  [channels]         owned: statistics, moved by no gradient
``output.weight``, ``output.bias``          [C, in], [C]       owned: a row per class, appended per task
==========================================  =================  ==========================================

Inputs are flattened images times the expert's ``input_scale``, shape [N, D].
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.continual.images import Rows

Params = dict[str, Tensor]
Drop = Callable[[str, Tensor], Tensor]
"""What a layer of that name reads instead of ``a``, as dropout does while training."""

MAX_WIDTH = 65_536
MAX_WEIGHTS = 100_000_000
STATISTICS = ("running_mean", "running_var")
CHUNK = 4096
BLOCK = 32
"""Images of a pass of convolutions that decides."""


@dataclass(frozen=True)
class Dense:
    """A layer ``W a + b``."""


@dataclass(frozen=True)
class Convolution:
    """A convolution and its geometry, as in :func:`torch.nn.functional.unfold`."""

    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int


@dataclass(frozen=True)
class Normalisation:
    """A normalisation by running statistics, which the task owns; ``eps`` is added to the variance."""

    eps: float


Kind = Dense | Convolution | Normalisation


@dataclass(frozen=True)
class Pass:
    """What one forward pass leaves behind.

    ``inputs[layer]`` is what the layer reads, [N, in] or [N, channels, h, w]; ``outputs[layer]`` what it computes
    before the ReLU; the outputs of ``output`` are the logits, [N, C].
    """

    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]

    @property
    def logits(self) -> Tensor:
        """Logits, [N, C]."""
        return self.outputs["output"]

    def hidden(self, layers: Sequence[str]) -> Tensor:
        """What these layers read, side by side, [N, d]; of maps the mean over their positions, each map once."""
        once = {id(self.inputs[layer]): self.inputs[layer] for layer in layers}
        return torch.cat([_means(a) if a.ndim == 4 else a for a in once.values()], dim=1)


class Network(ABC):
    """An architecture without parameters; it computes with those that it is given."""

    input_size: int
    """Numbers of one image, D."""

    @property
    def chunk(self) -> int:
        """Images of one pass without gradients, so that memory stays bounded."""
        return CHUNK

    @property
    def block(self) -> int | None:
        """Images of every pass that decides, where its last bits hang on how many there are; None: any number."""
        return None

    @property
    @abstractmethod
    def kinds(self) -> Mapping[str, Kind]:
        """Layers with parameters in the order of computation, the last one is ``output``."""

    @abstractmethod
    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every shared weight."""

    @abstractmethod
    def initial_owned(self, classes: int, generator: torch.Generator) -> Params:
        """Fresh owned parameters of a task with that many classes."""

    @abstractmethod
    def logits(
        self, params: Mapping[str, Tensor], x: Tensor, drop: Drop | None = None, training: bool = False
    ) -> Tensor:
        """Logits [N, C] of images [N, D]. ``training``: by the batch's statistics, noted in ``params``."""

    @abstractmethod
    def trace(self, params: Mapping[str, Tensor], x: Tensor) -> Pass:
        """One forward pass on images [N, D] with all that it leaves behind; a gradient can be asked of the outputs."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers with parameters, in the order of computation."""
        return tuple(self.kinds)

    @property
    def reading(self) -> tuple[str, ...]:
        """The layers that read hidden activations: all dense ones and convolutions after the first."""
        return tuple(name for name, kind in self.kinds.items() if not isinstance(kind, Normalisation))[1:]

    @property
    def normalised(self) -> bool:
        """Whether there are statistics that have to fit the weights."""
        return any(isinstance(kind, Normalisation) for kind in self.kinds.values())

    def initial_shared(self, generator: torch.Generator) -> Params:
        """Fresh shared weights (He et al. 2015, uniform)."""
        return {
            name: uniform(shape, math.sqrt(6.0 / math.prod(shape[1:])), generator)
            for name, shape in self.shared_shapes().items()
        }

    def ordered(self, values: Mapping[str, Tensor]) -> Params:
        """The same parameters in the order of computation."""
        kinds = ("weight", "bias", *STATISTICS)
        names = [f"{layer}.{kind}" for layer in self.layers for kind in kinds]
        return {name: values[name] for name in names if name in values}

    def inputs(self, x: Tensor) -> Tensor:
        """Images [N, D] as statistics of inputs see them; on the CPU."""
        return x.cpu()

    def adapted(self, params: Mapping[str, Tensor], x: Tensor) -> Params:
        """The parameters with the statistics of normalisations replaced by those of images [N, D]."""
        return dict(params)


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


def parse_arch(text: str, input_shape: Sequence[int]) -> Network:
    """``mlp:500,500`` → :class:`MLP`; ``cnn:32,64`` or a network of torchvision → a convolutional one.

    Raises ValueError with one line that says what was expected.
    """
    shape = tuple(input_shape)
    kind, _, sizes = text.partition(":")
    if kind != "mlp":
        from clmoe_cli.continual.convolutions import ConvNet

        return ConvNet(text, shape)
    try:
        hidden = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        hidden = ()
    if not hidden or any(not 1 <= size <= MAX_WIDTH for size in hidden):
        raise ValueError(f"unknown architecture {text!r}; expected mlp:WIDTH[,WIDTH…], as mlp:500,500")
    net = MLP(math.prod(shape), hidden)
    weights = sum(math.prod(sides) for sides in net.shared_shapes().values())
    if weights > MAX_WEIGHTS:
        raise ValueError(f"architecture {text!r} has {weights} weights; expected one with at most {MAX_WEIGHTS}")
    return net


def logits(net: Network, params: Mapping[str, Tensor], x: Rows) -> Tensor:
    """Logits [N, C] on the CPU without gradients, in chunks of images so that memory stays bounded."""
    device = device_of(params)
    with torch.inference_mode():
        return torch.cat([net.logits(params, part.to(device)).cpu() for part in x.split(net.chunk)])


def traced(
    net: Network, params: Mapping[str, Tensor], x: Rows, chunk: int | None = None
) -> Iterator[tuple[Tensor, Pass]]:
    """Images [n, D] and what a pass without gradients leaves behind, a chunk of images at a time."""
    device = device_of(params)
    for part in x.split(min(chunk or net.chunk, net.chunk)):
        here = part.to(device)
        with torch.no_grad():
            done = net.trace(params, here)
        yield here, done


def _means(maps: Tensor) -> Tensor:
    """Means over the positions, [N, C, h, w] to [N, C]; summed in float64 where there is such."""
    exact = maps if maps.device.type == "mps" else maps.double()
    return exact.mean(dim=(2, 3)).to(maps.dtype)


def device_of(params: Mapping[str, Tensor]) -> torch.device:
    """Where the parameters are."""
    return next(iter(params.values())).device


def uniform(shape: Sequence[int], bound: float, generator: torch.Generator) -> Tensor:
    """A tensor of that shape, uniform between ``-bound`` and ``bound``."""
    return torch.empty(tuple(shape)).uniform_(-bound, bound, generator=generator)
