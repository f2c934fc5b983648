"""``resnet9``: nine layers of weights with two residual blocks and batch norms, for small pictures of any channels.

After D. Page's network for CIFAR-10 ("How to train your ResNet", 2018); a stride of 2 in place of each pooling, which
costs a quarter as much on a processor, and the mean over all places in front of ``output``, so that any side from 16
pixels on will do.

==========  =============================  ==================
layer       what it does                   channels, side
==========  =============================  ==================
``stem``    3×3, norm, ReLU                w, s
``down1``   3×3 with stride 2, norm, ReLU  2w, s/2
``same1``   x + (3×3, norm, ReLU) twice    2w, s/2
``down2``   as ``down1``                   4w, s/4
``down3``   as ``down1``                   8w, s/8
``same3``   as ``same1``                   8w, s/8
``output``  of the means over the places   classes
==========  =============================  ==================

The weights are 1,602 w²: 1.6 million for the w = 32 of ``resnet9``; ``resnet9:48`` has 3.7 million.
"""

from __future__ import annotations

import re
from collections import OrderedDict

from torch import Tensor, nn

from clmoe_cli.method.networks.base import MAX_WIDTH, Traits

NAME = "resnet9"
WIDTH = 32
EPS = 1e-3
"""Added to variances: a unit that a sparse mask leaves nearly constant must not be blown up."""
SMALLEST = 16
"""Pixels of the shorter side, at least: two are left at the end."""
TRAITS = Traits(owned=("stem.conv",), peak=10.0, most=0.065, scored=512)
"""Ten tasks freeze at most 1 − (1 − 0.065)¹⁰ = 49 % of a layer."""


def width_of(arch: str) -> int | None:
    """The w of ``resnet9`` or ``resnet9:w``; None for any other text."""
    found = re.fullmatch(rf"{NAME}(?::([1-9][0-9]{{0,4}}))?", arch)
    if found is None:
        return None
    return int(found[1] or WIDTH)


def resnet9(arch: str, input_shape: tuple[int, int, int], classes: int) -> nn.Module:
    """The network of that name for pictures [C, H, W]. ValueError with one line for a width or side that it has not."""
    width = width_of(arch)
    if width is None or 8 * width > MAX_WIDTH:
        raise ValueError(f"unknown architecture {arch!r}; expected {NAME} or {NAME}:48 and the like")
    channels, height, side = input_shape
    if min(height, side) < SMALLEST:
        raise ValueError(
            f"architecture {arch!r} cannot read inputs of {channels}x{height}x{side}; "
            f"expected {SMALLEST} pixels a side or more"
        )
    parts = OrderedDict(
        stem=_step(channels, width, 1),
        down1=_step(width, 2 * width, 2),
        same1=_Residual(2 * width),
        down2=_step(2 * width, 4 * width, 2),
        down3=_step(4 * width, 8 * width, 2),
        same3=_Residual(8 * width),
        mean=nn.AdaptiveAvgPool2d(1),
        flat=nn.Flatten(),
        output=nn.Linear(8 * width, classes),
    )
    return _Net(parts)


class _Net(nn.Sequential):
    """The network; inputs are multiplied by ``factor`` first."""

    def __init__(self, parts: OrderedDict[str, nn.Module]) -> None:
        super().__init__(parts)
        self.factor = 1.0

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits [N, classes] of pictures [N, C, H, W]."""
        x = pictures if self.factor == 1.0 else pictures * self.factor
        for part in self:
            x = part(x)
        return x


def _step(channels: int, width: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, norm=nn.BatchNorm2d(width, eps=EPS), relu=nn.ReLU()))


class _Residual(nn.Module):
    """``x`` and what two steps make of it, added up."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _step(width, width, 1), _step(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, C, h, w] to maps of that shape."""
        changed: Tensor = self.second(self.first(x))
        return x + changed
