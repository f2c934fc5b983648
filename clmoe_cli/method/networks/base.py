"""Experts: networks whose weight matrices and kernels are shared by tasks and whose other parameters a task owns.

Layout of the parameters (``Params``: name → tensor, in the order of computation):

==========================================  =================  ==========================================
name                                        shape              who has it
==========================================  =================  ==========================================
``{layer}.weight`` of a dense layer         [out, in]          shared: masks say which entries a task uses
``{layer}.weight`` of a convolution         [out, in, kh, kw]  shared, or owned (:class:`Traits`)
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
from types import MappingProxyType

import torch
from torch import Tensor

from clmoe_cli.method.images import Labelled, Rows
from clmoe_cli.runtime import limits

Params = dict[str, Tensor]
Drop = Callable[[str, Tensor], Tensor]
"""What a layer of that name reads instead of ``a``, as dropout does while training."""

MAX_WIDTH = limits.ARCHITECTURE_WIDTH
MAX_WEIGHTS = limits.ARCHITECTURE_WEIGHTS
STATISTICS = ("running_mean", "running_var")
CHUNK = limits.PASS_IMAGES
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
class Traits:
    """What an architecture asks of training and pruning, besides its layers.

    ``owned``: convolutions so small that each task has their kernels for itself. ``peak``: training warms up to so many
    times the learning rate and falls to zero from there (Smith & Topin 2018); None: it stays until the held-out loss
    has converged. ``epochs``: of a phase, at most, and ``round``: of a round
    of pruning; None: what people chose.

    ``most``: the share of a layer's free weights that a task may freeze, so that none runs out;
    depthwise layers, which have a few weights a channel, are excepted. ``scored``: images that scores rest on, evenly
    spaced among all: each has a gradient of every weight; None: all images.
    """

    owned: tuple[str, ...] = ()
    peak: float | None = None
    epochs: int | None = None
    round: int | None = None
    most: float | None = None
    scored: int | None = None


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
    traits = Traits()
    base: Mapping[str, Tensor] = MappingProxyType({})
    """Pretrained shared weights that every task reads. Parameters are what is added to them: zero is the base's own."""

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
        """Fresh shared weights (He et al. 2015, uniform); on a base nothing is added to it yet."""
        if self.base:
            return {name: torch.zeros(shape) for name, shape in self.shared_shapes().items()}
        return {
            name: uniform(shape, math.sqrt(6.0 / math.prod(shape[1:])), generator)
            for name, shape in self.shared_shapes().items()
        }

    def effective(self, params: Mapping[str, Tensor]) -> Params:
        """The parameters that the layers compute with: shared weights with the base added."""
        below = {name: self.base[name].to(value) for name, value in params.items() if name in self.base}
        return {name: value + below[name] if name in below else value for name, value in params.items()}

    def scored(self, data: Labelled) -> Labelled:
        """The images that scores rest on."""
        return data if self.traits.scored is None else data.subsample(self.traits.scored)

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
