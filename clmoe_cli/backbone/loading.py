"""A backbone by its name: ``lite0``, ``fixed``, a file that ends in ``.onnx``, or one of torchvision's networks."""

from __future__ import annotations

import difflib
from pathlib import Path

from clmoe_cli.backbone.frozen import Backbone
from clmoe_cli.data.npz import one_line
from store_schema.errors import UsageProblem

LITE0, FIXED = "lite0", "fixed"


def is_file(name: str) -> bool:
    """Whether a name is that of an ONNX file."""
    return name.lower().endswith(".onnx")


def load(name: str, weights: str | Path | None = None, size: tuple[int, int] | None = None) -> Backbone:
    """The backbone of that name.

    ``weights``: a safetensors file in place of the published ones. ``size``: height and width of the pictures, so that
    what the network cannot read is refused before weights are read. Raises UsageProblem for an unknown name, a size
    that it cannot read, or weights for a file that has its own; BadInput for weights that do not fit or cannot be had.
    """
    if is_file(name):
        if weights is not None:
            hint = "leave it out"
            raise UsageProblem("an ONNX file has its weights inside", key="--features-weights", hint=hint)
        from clmoe_cli.backbone import onnx_files

        return onnx_files.load(name, size)
    if name == LITE0:
        from clmoe_cli.backbone import lite0

        return lite0.load(weights, size)
    if name == FIXED:
        from clmoe_cli.backbone import fixed

        return fixed.load(weights, size)
    from clmoe_cli.backbone import torchvision_models
    from clmoe_cli.method.networks import modules

    if name not in (known := modules.torchvision_names()):
        near = difflib.get_close_matches(name.lower(), [LITE0, FIXED, *known], n=1)
        raise UsageProblem(
            "unknown backbone", key="--features", found=one_line(name) or "nothing",
            expected=f"{LITE0}, {FIXED}, FILE.onnx, none, or a network of torchvision",
            hint=f"did you mean {near[0]}?" if near else None,
        )  # fmt: skip
    return torchvision_models.load(name, weights, size)
