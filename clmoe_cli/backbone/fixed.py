"""The gate's fixed features (:mod:`clmoe_cli.method.routing.features`) as a backbone, so that experts read them too.

Nothing is trained or read from a file: they are moduli of Gabor filters and the means of colours, of small pictures.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from torch import Tensor, nn

from clmoe_cli.backbone.frozen import Backbone
from clmoe_cli.method.routing import features as fixed
from clmoe_cli.runtime import limits
from store_schema.errors import UsageProblem
from store_schema.records import FeaturesRecord

ARCH = "fixed"


class FixedRunner:
    """Computes fixed features of colour pictures."""

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem for pictures that are too small for the filters."""
        if min(height, width) < fixed.SHORTEST:
            found, wanted = f"{height}x{width}", f"{fixed.SHORTEST} pixels at least"
            raise UsageProblem(f"{ARCH} features need larger pictures", found=found, expected=wanted)

    def block(self, height: int, width: int, device: str) -> int:
        """Pictures that pass at once."""
        return limits.FEATURE_IMAGES

    def workers(self, device: str) -> int:
        """One: torch's own threads share a block."""
        return 1

    def run(self, pictures: Tensor, device: str) -> Tensor:
        """Features [n, 2640] of pictures [n, 3, H, W] with pixels from 0 to 1."""
        return fixed.calculated(pictures.to(device), fixed.COLOURED).float().cpu()

    def module(self) -> nn.Module:
        """The same as a module."""
        return _Fixed()


class _Fixed(nn.Module):
    def forward(self, pictures: Tensor) -> Tensor:
        return fixed.calculated(pictures, fixed.COLOURED).float()


def load(weights: str | Path | None = None, size: tuple[int, int] | None = None) -> Backbone:
    """The fixed features as a backbone. Raises UsageProblem for weights, and for pictures that are too small."""
    if weights is not None:
        raise UsageProblem(f"{ARCH} features have no weights", key="--features-weights", hint="leave it out")
    runner = FixedRunner()
    if size is not None:
        runner.check_size(*size)
    width = fixed.width((3, fixed.LONGEST, fixed.LONGEST), fixed.COLOURED)
    record = FeaturesRecord(arch=ARCH, sha256=hashlib.sha256(fixed.COLOURED.encode()).hexdigest())
    return Backbone(record, width, fixed.LONGEST, (0.0,) * 3, (1.0,) * 3, runner)
