"""A frozen network in front of experts and gate: pictures [N, C, H, W] → features [N, width].

Where it comes from is its loader's matter: torchvision, a package of weights, an ONNX file. A backbone is known by its
architecture and the fingerprint of the weights that it uses; the picture size is the caller's, and recorded by it.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor, nn

from clmoe_cli.method.reproducible import in_blocks
from store_schema.errors import BadInput, UsageProblem
from store_schema.records import FeaturesRecord

# What resizing floats may add to their range.
_ROUNDING = 1e-5


class Runner(Protocol):
    """What computes features."""

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem when the network cannot read pictures of that size; nothing is computed for it."""

    def block(self, height: int, width: int, device: str) -> int:
        """Pictures that pass at once: always so many, so that no last bit hangs on the other pictures."""

    def workers(self, device: str) -> int:
        """Blocks that pass at the same time, each in one thread."""

    def run(self, pictures: Tensor, device: str) -> Tensor:
        """Features [n, width] float32 on the CPU of normalised pictures [n, 3, H, W] float32."""

    def module(self) -> nn.Module | None:
        """The same as a module with its weights, in evaluation mode; None where it is no network of torch."""


class Normalised(nn.Module):
    """Features [N, width] of pictures [N, 3, H, W] from 0 to 1, by a network that reads them normalised."""

    def __init__(self, net: nn.Module, centre: Tensor, spread: Tensor) -> None:
        super().__init__()
        self.net = net
        self.register_buffer("centre", centre)
        self.register_buffer("spread", spread)

    centre: Tensor
    spread: Tensor

    def forward(self, pictures: Tensor) -> Tensor:
        """Of pictures [N, 3, H, W]."""
        found: Tensor = self.net((pictures - self.centre) / self.spread)
        return found


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network: made by :func:`clmoe_cli.backbone.loading.load`.

    ``record``: how a store names it. ``width``: length of a feature vector. ``image_size``: sides of the pictures that
    it was trained on. ``mean``, ``std``: of its pictures' channels, [3], pixels from 0 to 1.
    """

    record: FeaturesRecord
    width: int
    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    _runner: Runner = field(repr=False)
    _sizes: set[tuple[int, int]] = field(default_factory=set, repr=False)

    @cached_property
    def _centre(self) -> Tensor:
        return torch.tensor(self.mean).view(1, 3, 1, 1)

    @cached_property
    def _spread(self) -> Tensor:
        return torch.tensor(self.std).view(1, 3, 1, 1)

    @property
    def arch(self) -> str:
        """Its name for people."""
        return self.record.arch

    @property
    def sha256(self) -> str:
        """The fingerprint of its weights."""
        return self.record.sha256

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem when the network cannot read pictures of that size; nothing is computed for it."""
        if (height, width) not in self._sizes:
            self._runner.check_size(height, width)
            self._sizes.add((height, width))

    def features(self, images: Tensor, device: str = "cpu") -> Tensor:
        """Features [N, width] float32 of pictures [N, C, H, W], uint8 or floating in [0, 1]; C is 1 (grey) or 3.

        ``device``: where to compute; pictures and features are on the CPU.

        Pictures pass in blocks of the same number, each on its own: batch norms use their frozen statistics, and no
        last bit hangs on the other pictures (:mod:`clmoe_cli.method.reproducible`). Raises UsageProblem for sizes and
        channels that the network cannot read, BadInput for values outside [0, 1] or features that are not finite.
        """
        if images.ndim != 4 or images.shape[1] not in (1, 3):
            raise UsageProblem(
                f"{self.arch} reads pictures",
                found=str(list(images.shape)),
                expected="[N, C, H, W] with 1 or 3 channels",
            )
        count, _, height, width = images.shape
        self.check_size(height, width)
        inside = images.dtype == torch.uint8 or bool(((images >= -_ROUNDING) & (images <= 1 + _ROUNDING)).all())
        if not inside:
            least, most = float(images.min()), float(images.max())
            raise BadInput(
                f"pixels that {self.arch} cannot read",
                found=f"{least:g} to {most:g}",
                expected="uint8, or floats from 0 to 1",
                hint="divide them by 255" if least >= 0 else "give pixels as they were before they were normalised",
            )
        out, runner = torch.empty(count, self.width), self._runner
        step, workers = runner.block(height, width, device), runner.workers(device)

        def seen(part: Tensor) -> tuple[Tensor]:
            return (runner.run(self._normalised(part), device),)

        def fill(start: int) -> None:
            with torch.inference_mode():
                (found,) = in_blocks(images[start : start + step], step, seen)
            out[start : start + step] = found

        starts = range(0, count, step)
        if workers == 1:
            for start in starts:
                fill(start)
        else:
            with ThreadPoolExecutor(workers) as pool:
                list(pool.map(fill, starts))
        if not bool(torch.isfinite(out).all()):
            raise BadInput(f"the features of {self.arch} are not finite", hint="check its weights")
        return out

    def module(self) -> nn.Module | None:
        """Pictures [N, 3, H, W] float32 from 0 to 1 → features [N, width], as one module; None for an ONNX file."""
        net = self._runner.module()
        return None if net is None else Normalised(net, self._centre, self._spread).train(False)

    def _normalised(self, images: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        scaled: Tensor = functional.to_dtype(images, torch.float32, scale=True)
        return (scaled.expand(-1, 3, -1, -1) - self._centre) / self._spread
