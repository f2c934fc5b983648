"""Convolutional experts: ``cnn:32,64,128`` and the networks of torchvision, as functions of their parameters.

The module says how to compute and holds no parameter of its own. Kernels and dense weights are shared; what
normalises, biases and output rows are the task's (:mod:`clmoe_cli.method.networks.base`). A prediction uses the task's
running statistics, never those of a batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from clmoe_cli.method.networks import modules
from clmoe_cli.method.networks.base import (
    BLOCK,
    CHUNK,
    STATISTICS,
    Convolution,
    Dense,
    Drop,
    Kind,
    Network,
    Normalisation,
    Params,
    Pass,
    uniform,
)
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.distributed import collectives

BUDGET = limits.PASS_NUMBERS
FINE_TUNED: dict[str, Any] = {"peak": 0.3, "epochs": 4, "round": 1, "most": 0.03, "scored": 256}
"""Traits of any network on a base: a few epochs adapt it, and little of it has to change (docs/decisions/0020)."""
LONGEST = 32
"""Statistics of inputs see images shrunk to so many pixels a side."""


class ConvNet(Network):
    """A network of convolutions for images [C, H, W]; ValueError for an architecture that cannot be one.

    ``base``: pretrained shared weights that it stands on, none by default.
    """

    def __init__(self, arch: str, input_shape: tuple[int, ...], base: Mapping[str, Tensor] | None = None) -> None:
        if len(input_shape) != 3:
            raise ValueError(
                f"architecture {arch!r} cannot read vectors of {math.prod(input_shape)} numbers; expected mlp:…"
            )
        self.arch, self.input_shape, self.input_size = arch, input_shape, math.prod(input_shape)
        self.module, self.traits = modules.build(arch, input_shape, 2), modules.traits(arch)
        for module in self.module.modules():
            if "p" in vars(module):
                vars(module)["p"] = 0.0  # what torchvision drops out is drawn from no generator of ours
        collectives.normalise_together(self.module)
        head = modules.head_of(self.module)
        self.modules = {"output" if name == head else name: m for name, m in modules.layers_of(self.module).items()}
        self.names = {"output" if name == head else name: name for name in modules.layers_of(self.module)}
        if base:
            self.base, self.traits = dict(base), replace(self.traits, **FINE_TUNED)

    @property
    def own(self) -> bool:
        """Whether it is one of this project's networks, which neither torch nor torchvision can build."""
        return "factor" in vars(self.module)

    @cached_property
    def kinds(self) -> Mapping[str, Kind]:
        """Layers named as in the module, the last one ``output``."""
        return {name: _kind(module) for name, module in self.modules.items()}

    @cached_property
    def chunk(self) -> int:
        """Images of one pass without gradients."""
        sizes: list[int] = []
        self.module.train(False)
        with _hooked(self.modules.values(), lambda module, args, out: sizes.append(args[0].numel() + out.numel())):
            self.module(torch.empty((1, *self.input_shape), device="meta"))
        return max(1, min(CHUNK, BUDGET // sum(sizes)))

    @property
    def block(self) -> int:
        """Images of every pass that decides: kernels of convolutions then see the same shapes."""
        return min(BLOCK, self.chunk)

    def shared_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name → shape of every kernel that is not a task's own, and of every dense weight but the output's."""
        return {
            f"{name}.weight": tuple(_weight(module).shape)
            for name, module in self.modules.items()
            if name not in self._owned and not isinstance(self.kinds[name], Normalisation)
        }

    @property
    def _owned(self) -> tuple[str, ...]:
        return (*self.traits.owned, "output")

    def initial_owned(self, classes: int, generator: torch.Generator) -> Params:
        """Normalisations that change nothing yet, biases of zero, random kernels and output rows."""
        owned: Params = {}
        for name, module in self.modules.items():
            if isinstance(self.kinds[name], Normalisation):
                channels = len(_weight(module))
                owned |= {f"{name}.weight": torch.ones(channels), f"{name}.running_mean": torch.zeros(channels)}
                owned[f"{name}.running_var"] = torch.ones(channels)
            if name in self.traits.owned:
                shape = _weight(module).shape
                owned[f"{name}.weight"] = uniform(shape, math.sqrt(6.0 / math.prod(shape[1:])), generator)
            if module.bias is not None and name != "output":
                owned[f"{name}.bias"] = torch.zeros(len(_weight(module)))
        width = _weight(self.modules["output"]).shape[1]
        owned["output.weight"] = uniform((classes, width), math.sqrt(1.0 / width), generator)
        owned["output.bias"] = torch.zeros(classes)
        return owned

    def logits(
        self, params: Mapping[str, Tensor], x: Tensor, drop: Drop | None = None, training: bool = False
    ) -> Tensor:
        """Logits [N, C]. While training, what the output reads is dropped out."""
        if drop is None:
            return self._call(params, x, training)
        dropped = drop
        handle = self.modules["output"].register_forward_pre_hook(lambda module, args: (dropped("output", args[0]),))
        try:
            return self._call(params, x, training)
        finally:
            handle.remove()

    def trace(self, params: Mapping[str, Tensor], x: Tensor) -> Pass:
        """One forward pass on images [N, D] by running statistics."""
        inputs: dict[str, Tensor] = {}
        outputs: dict[str, Tensor] = {}
        name_of = {module: name for name, module in self.modules.items()}

        def note(module: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            # The first output needs a gradient although nothing before it does.
            inputs[name_of[module]] = args[0]
            outputs[name_of[module]] = out if out.requires_grad or not torch.is_grad_enabled() else out.requires_grad_()

        dense = [module for module in self.modules.values() if isinstance(module, nn.Linear)]
        with _hooked(dense, _in_float64), _hooked(self.modules.values(), note):
            self._call(params, x, False)
        return Pass({name: inputs[name] for name in self.modules}, {name: outputs[name] for name in self.modules})

    def inputs(self, x: Tensor) -> Tensor:
        """Images [N, D] shrunk to at most ``LONGEST`` pixels a side, flat; on the CPU."""
        channels, *sides = self.input_shape
        x = x.cpu()  # accelerators shrink by whole numbers only, if at all
        if max(sides) <= LONGEST:
            return x
        height, width = (max(1, round(side * LONGEST / max(sides))) for side in sides)
        return F.adaptive_avg_pool2d(x.view(-1, channels, *sides), (height, width)).flatten(1)

    def adapted(self, params: Mapping[str, Tensor], x: Tensor) -> Params:
        """The parameters with statistics of images [N, D] in place of the running ones; a single one has none."""
        if len(x) == 1:
            return dict(params)
        fresh = {key: value.clone() if key.endswith(STATISTICS) else value for key, value in params.items()}
        norms = [m for m in self.module.modules() if isinstance(m, nn.BatchNorm2d)]
        before = [m.momentum for m in norms]
        for norm in norms:
            norm.momentum = 1.0
        try:
            with torch.no_grad():
                self._call(fresh, x[collectives.Share.of(len(x)).rows], True)
        finally:
            for norm, momentum in zip(norms, before, strict=True):
                norm.momentum = momentum
        return fresh

    def _call(self, params: Mapping[str, Tensor], x: Tensor, training: bool) -> Tensor:
        self.module.train(training)
        found = {}
        for key, value in self.effective(params).items():
            layer, _, kind = key.rpartition(".")
            found[f"{self.names[layer]}.{kind}"] = value
        # Channels last, as processors like it: more than twice as fast.
        images = x.reshape(-1, *self.input_shape).to(memory_format=torch.channels_last)
        result: Tensor = functional_call(self.module, found, (images,))
        return result


def _in_float64(module: nn.Linear, args: tuple[Tensor, ...], out: Tensor) -> Tensor | None:
    """What a dense layer computes, summed in float64: unlike convolutions', its last bits hang on the other images."""
    if out.device.type == "mps" or out.is_meta:
        return None
    bias = None if module.bias is None else module.bias.double()
    return F.linear(args[0].double(), module.weight.double(), bias).to(out.dtype)


def _weight(module: nn.Module) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return module.weight


def _kind(module: nn.Module) -> Kind:
    if isinstance(module, nn.Conv2d):
        assert not isinstance(module.padding, str)
        stride, padding, dilation = (tuple(v) for v in (module.stride, module.padding, module.dilation))
        return Convolution(_pair(stride), _pair(padding), _pair(dilation), module.groups)
    return Normalisation(module.eps) if isinstance(module, nn.BatchNorm2d) else Dense()


def _pair(values: tuple[int, ...]) -> tuple[int, int]:
    return values[0], values[1]


@contextmanager
def _hooked(modules: Any, note: Callable[..., Tensor | None]) -> Iterator[None]:
    handles = [module.register_forward_hook(note) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
