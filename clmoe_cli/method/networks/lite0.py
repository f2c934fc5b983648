"""EfficientNet-Lite0 (Tan & Le 2019, without squeeze and excitation) as the skeleton of an expert.

Layers have the names of the package ``efficientnet-lite-pytorch``, so that its ImageNet weights fit. Padding is
TensorFlow's "same", which depends on the side; here it stands in front of a convolution and not inside, so that what a
layer reads is what its kernel sees. Pictures from 0 to 1 become (byte − 127) / 128 first; grey ones are repeated.
"""

from __future__ import annotations

from torch import Tensor, nn

from clmoe_cli.method.networks.base import Traits

NAME = "lite0"
EPS = 1e-3
SMALLEST = 32
# Blocks in a row, kernel, stride of the first, expansion, channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, LAST = 32, 1280
TRAITS = Traits(owned=("_conv_stem",), peak=1.0, most=0.03, scored=256)


class Lite0(nn.Module):
    """Logits [N, classes] of pictures [N, 1 or 3, H, W] from 0 to 1, once multiplied by ``factor``."""

    def __init__(self, input_shape: tuple[int, int, int], classes: int) -> None:
        super().__init__()
        channels, *sides = input_shape
        if channels not in (1, 3):
            raise ValueError(f"architecture {NAME!r} cannot read {channels} channels; expected 1 or 3")
        if min(sides) < SMALLEST:
            size = "x".join(map(str, input_shape))
            raise ValueError(
                f"architecture {NAME!r} cannot read inputs of {size}; expected {SMALLEST} pixels a side or more"
            )
        self.factor = 1.0
        self._stem_padding = _same(sides, 3, 2)
        self._conv_stem = nn.Conv2d(3, STEM, 3, stride=2, bias=False)
        self._bn0 = nn.BatchNorm2d(STEM, eps=EPS)
        sides = _halved(sides)
        blocks: list[nn.Module] = []
        before = STEM
        for repeats, kernel, stride, expansion, width in STAGES:
            for number in range(repeats):
                step = stride if number == 0 else 1
                blocks.append(_Block(before, width, kernel, step, expansion, sides))
                sides = _halved(sides) if step == 2 else sides
                before = width
        self._blocks = nn.ModuleList(blocks)
        self._conv_head = nn.Conv2d(before, LAST, 1, bias=False)
        self._bn1 = nn.BatchNorm2d(LAST, eps=EPS)
        self._relu = nn.ReLU6()
        self._mean = nn.AdaptiveAvgPool2d(1)
        self._fc = nn.Linear(LAST, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits [N, classes]."""
        x = pictures.expand(-1, 3, -1, -1) * (self.factor * 255 / 128) - 127 / 128
        x = self._relu(self._bn0(self._conv_stem(self._stem_padding(x))))
        for block in self._blocks:
            x = block(x)
        x = self._relu(self._bn1(self._conv_head(x)))
        found: Tensor = self._fc(self._mean(x).flatten(1))
        return found


class _Block(nn.Module):
    """Expansion, a kernel for each channel, projection; added to ``x`` where shapes agree."""

    def __init__(self, channels: int, width: int, kernel: int, stride: int, expansion: int, sides: list[int]) -> None:
        super().__init__()
        wide = channels * expansion
        if expansion != 1:
            self._expand_conv = nn.Conv2d(channels, wide, 1, bias=False)
            self._bn0 = nn.BatchNorm2d(wide, eps=EPS)
        self.expands = expansion != 1
        # Inside where both sides get the same: no copy of the maps.
        even = stride == 1
        self._padding = nn.Identity() if even else _same(sides, kernel, stride)
        inside = kernel // 2 if even else 0
        self._depthwise_conv = nn.Conv2d(wide, wide, kernel, stride, padding=inside, groups=wide, bias=False)
        self._bn1 = nn.BatchNorm2d(wide, eps=EPS)
        self._project_conv = nn.Conv2d(wide, width, 1, bias=False)
        self._bn2 = nn.BatchNorm2d(width, eps=EPS)
        self._relu = nn.ReLU6()
        self.adds = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """Maps [N, channels, h, w] to maps [N, width, h / stride, w / stride]."""
        wide = self._relu(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = self._relu(self._bn1(self._depthwise_conv(self._padding(wide))))
        found: Tensor = self._bn2(self._project_conv(wide))
        return found + x if self.adds else found


def _halved(sides: list[int]) -> list[int]:
    return [-(-side // 2) for side in sides]


def _same(sides: list[int], kernel: int, stride: int) -> nn.ZeroPad2d:
    """What TensorFlow pads maps of these sides [height, width] with: the odd one goes below and to the right."""
    rows, columns = (max((-(-side // stride) - 1) * stride + kernel - side, 0) for side in sides)
    return nn.ZeroPad2d((columns // 2, columns - columns // 2, rows // 2, rows - rows // 2))
