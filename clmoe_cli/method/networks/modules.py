"""Skeletons: networks of convolutions without values, whose parameters come from outside.

A skeleton is an ``nn.Module`` on the meta device; ``torch.func.functional_call(module, params, (x,))`` runs it on
images ``x`` [N, C, H, W] and gives logits [N, classes]. All its parameters and running statistics belong to
Conv2d, Linear and BatchNorm2d modules, so hooks on these see everything that masks and scores need. What such a
hook captures stays as it was: nothing downstream writes into it.

===============  ==========================================================================================
architecture     network
===============  ==========================================================================================
``cnn:32,64``    for each width: convolution 3×3 without bias, max pooling by 2 while both sides are at least 4,
                 batch norm, ReLU; then the mean over a 2×2 grid (1×1 for smaller maps) and ``output``
``resnet9``      nine layers with residual blocks (:mod:`clmoe_cli.method.networks.resnet9`)
``lite0``        EfficientNet-Lite0 (:mod:`clmoe_cli.method.networks.lite0`)
``resnet18`` …   torchvision's network of that name, with the stem made for photographs however small the
                 pictures are: a 32×32 picture reaches the last block as a single pixel
===============  ==========================================================================================
"""

from __future__ import annotations

import difflib
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from clmoe_cli.method.networks import lite0, resnet9
from clmoe_cli.method.networks.base import MAX_WEIGHTS, MAX_WIDTH, Traits

_LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
PLAIN: dict[str, dict[str, Any]] = {
    name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")
}
"""What torchvision's networks are made with, besides the number of classes."""


class EmptyOnMeta(TorchFunctionMode):
    """While active, ``torch.empty`` allocates nothing: modules get their parameters on the meta device.

    Unlike ``torch.device("meta")`` it leaves other tensors alone: RegNet computes with some as it is built, and
    Swin's tables of positions are values of the architecture that no file need hold.
    """

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        more = {"device": torch.device("meta")} if func is torch.empty else {}
        return func(*args, **{**(kwargs or {}), **more})


class _KeptBatchNorm2d(nn.BatchNorm2d):
    """A batch norm whose output is captured by hooks before anything downstream can write into it."""

    def __call__(self, x: Tensor) -> Tensor:
        out: Tensor = super().__call__(x)
        return out.clone()


class _Means(nn.AdaptiveAvgPool2d):
    """The same where windows overlap: torch cannot on ``mps``, and on ``cuda`` adds their gradients up by chance."""

    def forward(self, x: Tensor) -> Tensor:
        size, sides = self.output_size, x.shape[2:]
        wanted = size if isinstance(size, tuple) else (size, size)
        grid = [n or side for side, n in zip(sides, wanted, strict=True)]
        if not any(side % n for side, n in zip(sides, grid, strict=True)):
            return F.adaptive_avg_pool2d(x, size)
        rows, columns = (
            [slice(side * i // n, -(-side * (i + 1) // n)) for i in range(n)]
            for side, n in zip(sides, grid, strict=True)
        )
        cells = [x[:, :, row, column].mean(dim=(2, 3)) for row in rows for column in columns]
        return torch.stack(cells, dim=2).reshape(*x.shape[:2], *grid)


def torchvision_names() -> list[str]:
    """The names of torchvision's classification networks."""
    from torchvision import models

    return list(models.list_models(module=models))


def closest(name: str) -> str | None:
    """The name of torchvision's that is most like ``name``, if one is."""
    return next(iter(difflib.get_close_matches(name, torchvision_names(), n=1)), None)


def torchvision_net(name: str, **options: Any) -> nn.Module:
    """torchvision's network of that name in eval mode, its parameters on the meta device, without auxiliary outputs."""
    from torchvision import models

    with EmptyOnMeta():
        net: nn.Module = models.get_model(name, weights=None, **PLAIN.get(name, {}), **options)
    return net.train(False)


def build(arch: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The skeleton of an architecture for inputs of that shape [C, H, W], in eval mode.

    torchvision's networks take three channels; grey pictures are repeated to three. Raises ValueError with one
    line: an unknown architecture, one with layers of other types or too many weights, or inputs that it cannot read.
    """
    if arch.startswith("cnn:"):
        net = _cnn(arch, input_shape, classes)
    elif arch.partition(":")[0] == resnet9.NAME:
        with EmptyOnMeta():
            net = resnet9.resnet9(arch, input_shape, classes).train(False)
    elif arch == lite0.NAME:
        with EmptyOnMeta():
            net = lite0.Lite0(input_shape, classes).train(False)
    elif arch in torchvision_names():
        if input_shape[0] not in (1, 3):
            raise ValueError(f"architecture {arch!r} cannot read {input_shape[0]} channels; expected 1 or 3")
        net = torchvision_net(arch, num_classes=classes)
        net.register_forward_pre_hook(_three_channels)
    else:
        raise ValueError(_unknown(arch))
    for name, module in net.named_modules():
        owned = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        if owned and not isinstance(module, _LAYERS):
            kind = type(module).__name__ + (f" ({name})" if name else "")
            raise ValueError(f"architecture {arch!r} has a {kind}; expected only Conv2d, Linear and BatchNorm2d")
        if hasattr(module, "inplace"):
            module.inplace = False
        if type(module) is nn.AdaptiveAvgPool2d:
            module.__class__ = _Means
    net.to("meta")
    head = _last_linear(net)
    if head is None:
        raise ValueError(f"architecture {arch!r} does not end in a linear layer")
    counted = [layer for name, layer in layers_of(net).items() if name != head]
    weights = sum(layer.weight.numel() for layer in counted if isinstance(layer, (nn.Conv2d, nn.Linear)))
    if weights > MAX_WEIGHTS:
        raise ValueError(f"architecture {arch!r} has {weights} weights; expected at most {MAX_WEIGHTS}")
    try:
        _dry_run(net, input_shape)
    except (RuntimeError, ValueError, AssertionError) as error:
        size = "x".join(map(str, input_shape))
        raise ValueError(f"architecture {arch!r} cannot read inputs of {size}; expected larger ones") from error
    return net


def traits(arch: str) -> Traits:
    """What the architecture of that name asks of training and pruning."""
    if arch == lite0.NAME:
        return lite0.TRAITS
    return resnet9.TRAITS if resnet9.width_of(arch) else Traits()


def layers_of(module: nn.Module) -> dict[str, nn.Module]:
    """Name → Conv2d, Linear or BatchNorm2d module, in the order in which they compute.

    That is the order in which the networks register them, for every architecture that :func:`build` lets through.
    """
    return {name: layer for name, layer in module.named_modules() if isinstance(layer, _LAYERS)}


def head_of(module: nn.Module) -> str:
    """The name of the output layer, the last Linear; ValueError when there is none."""
    name = _last_linear(module)
    if name is None:
        raise ValueError("the network does not end in a linear layer")
    return name


def _cnn(arch: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    if not re.fullmatch(r"cnn:[1-9][0-9]{0,5}(,[1-9][0-9]{0,5})*", arch):
        raise ValueError(_unknown(arch))
    widths = [int(width) for width in arch.removeprefix("cnn:").split(",")]
    if max(widths) > MAX_WIDTH:
        raise ValueError(f"architecture {arch!r} is too wide; expected widths of at most {MAX_WIDTH}")
    channels, *sides = input_shape
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    with EmptyOnMeta():
        for number, width in enumerate(widths, 1):
            parts[f"conv{number}"] = nn.Conv2d(channels, width, 3, padding=1, bias=False)
            # Pooled first: a quarter of the positions is left to normalise.
            if min(sides) >= 4:
                parts[f"pool{number}"] = nn.MaxPool2d(2)
                sides = [side // 2 for side in sides]
            parts[f"norm{number}"] = nn.BatchNorm2d(width)
            parts[f"relu{number}"] = nn.ReLU()
            channels = width
        grid = 2 if min(sides) >= 2 else 1
        parts["mean"] = nn.AdaptiveAvgPool2d(grid)
        parts["flat"] = nn.Flatten()
        parts["output"] = nn.Linear(channels * grid * grid, classes)
    return nn.Sequential(parts).train(False)


def _unknown(arch: str) -> str:
    close = closest(arch)
    hint = f"; did you mean {close!r}?" if close else ""
    known = "mlp:500,500 or cnn:32,64 and the like, resnet9, lite0, or a network of torchvision"
    return f"unknown architecture {arch!r}; expected {known}{hint}"


def _last_linear(module: nn.Module) -> str | None:
    names = [name for name, layer in layers_of(module).items() if isinstance(layer, nn.Linear)]
    return names[-1] if names else None


def _three_channels(module: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    return (args[0].expand(-1, 3, -1, -1),)


def _dry_run(net: nn.Module, input_shape: tuple[int, int, int]) -> None:
    """One pass on the meta device; batch norms whose outputs it overwrites are told to keep them.

    ``out += identity`` in residual blocks and ``relu(out, inplace=True)`` do so. RuntimeError, ValueError or
    AssertionError when the network cannot read the inputs.
    """
    seen: list[tuple[nn.BatchNorm2d, Tensor, int]] = []

    def note(layer: nn.Module, args: object, out: Tensor) -> None:
        if isinstance(layer, nn.BatchNorm2d):
            seen.append((layer, out, out._version))

    handles = [layer.register_forward_hook(note) for layer in layers_of(net).values()]
    with torch.no_grad():
        net(torch.empty(2, *input_shape, device="meta"))
    for handle in handles:
        handle.remove()
    for layer, out, version in seen:
        if out._version != version:
            layer.__class__ = _KeptBatchNorm2d
