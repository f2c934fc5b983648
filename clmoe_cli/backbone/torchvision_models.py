"""Frozen networks of torchvision in front of experts and gate: pictures [N, C, H, W] → features [N, width].

The features are what the last linear layer would read. A backbone is known by its architecture and the fingerprint
of the weights that it uses; the picture size is the caller's, and recorded by it.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clmoe_cli.backbone.weights_files import InMemory, Source, Weights, WeightsFile, fit
from clmoe_cli.data.npz import one_line
from clmoe_cli.method.networks import modules
from clmoe_cli.method.networks.base import BLOCK
from clmoe_cli.method.reproducible import in_blocks
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnDone
from store_schema.errors import BadInput, UsageProblem

_PIXELS = limits.BACKBONE_PIXELS
_SLOWLY = limits.BACKBONE_PIXELS_CPU
# What resizing floats may add to their range.
_ROUNDING = 1e-5
# Their published weights expect other means and deviations, to which the networks themselves convert.
_TRANSFORMED = ("googlenet", "inception_v3")


@dataclass(frozen=True, eq=False)
class Backbone:
    """A frozen network: made by :func:`load`.

    ``width``: length of a feature vector. ``image_size``: sides of the pictures that it was trained on.
    """

    arch: str
    sha256: str
    width: int
    image_size: int
    _net: nn.Module = field(repr=False)
    _tensors: dict[str, Tensor] = field(repr=False)
    _mean: Tensor = field(repr=False)
    _std: Tensor = field(repr=False)
    _sizes: set[tuple[int, int]] = field(default_factory=set, repr=False)

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem when the network cannot read pictures of that size; nothing is computed for it."""
        if (height, width) not in self._sizes:
            _check_size(self._net, self.arch, (height, width), self.image_size)
            self._sizes.add((height, width))

    def features(self, images: Tensor, device: str = "cpu", on_done: OnDone = lambda done: None) -> Tensor:
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
            raise BadInput(
                f"pixels that {self.arch} cannot read",
                expected="uint8, or floats from 0 to 1",
                hint="divide them by 255",
            )
        out = torch.empty(count, self.width)
        tensors = {name: value.to(device) for name, value in self._tensors.items()}
        with torch.inference_mode():
            step = max(1, min(BLOCK, (_SLOWLY if device == "cpu" else _PIXELS) // (height * width)))

            def seen(part: Tensor) -> tuple[Tensor]:
                return (functional_call(self._net, tensors, (self._normalised(part).to(device),)).cpu(),)

            for start in range(0, count, step):
                (out[start : start + step],) = in_blocks(images[start : start + step], step, seen)
                on_done(min(start + step, count))
        if not bool(torch.isfinite(out).all()):
            raise BadInput(f"the features of {self.arch} are not finite", hint="check its weights")
        return out

    def _normalised(self, images: Tensor) -> Tensor:
        from torchvision.transforms.v2 import functional

        scaled: Tensor = functional.to_dtype(images, torch.float32, scale=True)
        return (scaled.expand(-1, 3, -1, -1) - self._mean) / self._std


def load(arch: str, weights: str | Path | None = None, size: tuple[int, int] | None = None) -> Backbone:
    """The backbone ``arch`` with the weights of a safetensors file, or those that torchvision publishes.

    ``size``: height and width of the pictures, so that what the network cannot read is refused before weights are
    read. Published weights are downloaded once and kept where torch.hub keeps them. Raises UsageProblem for an
    unknown architecture or an unreadable size, BadInput for weights that do not fit or cannot be had.
    """
    from torchvision import models

    if arch not in modules.torchvision_names():
        close = modules.closest(arch)
        hint = f"did you mean {close!r}?" if close else None
        raise UsageProblem("unknown backbone", found=repr(arch), expected="a network of torchvision", hint=hint)
    options = {"transform_input": True} if arch in _TRANSFORMED else {}
    net = modules.torchvision_net(arch, **options)
    linear = [(name, layer.in_features) for name, layer in net.named_modules() if isinstance(layer, nn.Linear)]
    if not linear:
        raise UsageProblem(f"{arch} cannot be a backbone", found="a network without a linear layer")
    head, width = linear[-1]
    published = models.get_model_weights(arch).DEFAULT
    transforms = published.transforms()
    image_size = int(transforms.crop_size[0])
    if isinstance(net, models.VisionTransformer):
        source = _source(arch, published, weights)
        image_size = _trained_size(net, source) or image_size
        net = modules.torchvision_net(arch, image_size=image_size)
        _check_size(net, arch, size, image_size)
    else:
        _check_size(net, arch, size, image_size)
        source = _source(arch, published, weights)
    tensors, sha256 = fit(source, net, head, arch)
    net.set_submodule(head, nn.Identity())
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (transforms.mean, transforms.std))
    return Backbone(arch, sha256, width, image_size, net, tensors, mean, std)


def pretrained(arch: str, skeleton: nn.Module, weights: str | Path) -> Weights:
    """Weights of a safetensors file for an expert's skeleton (:func:`clmoe_cli.method.networks.modules.build`).

    All of its parameters and running statistics but those of the output layer. Raises BadInput.
    """
    return fit(WeightsFile(weights), skeleton, modules.head_of(skeleton), arch)


def _source(arch: str, published: Any, weights: str | Path | None) -> Source:
    """The file's weights, or the published ones; these are unpickled as tensors and nothing else."""
    if weights is not None:
        return WeightsFile(weights)
    try:
        state = published.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except Exception as error:  # the network, the disk, and whatever a broken file makes the reader raise
        raise BadInput(
            f"the published weights of {arch} cannot be had", found=one_line(error)[:200],
            hint="give a safetensors file with --features-weights; docs/backbones.md has the line that writes one",
        ) from error  # fmt: skip
    return InMemory(f"the published weights of {arch}", state)


def _trained_size(net: Any, source: Source) -> int | None:
    """The picture size of a vision transformer, of which only the embedding of positions [1, 1 + patches, D] tells."""
    positions = source.shapes.get("encoder.pos_embedding", ())
    side = math.isqrt(max(0, positions[1] - 1)) if len(positions) == 3 else 0
    return side * int(net.patch_size) or None


def _check_size(net: nn.Module, arch: str, size: tuple[int, int] | None, image_size: int) -> None:
    """UsageProblem when one pass on the meta device fails for that size."""
    if size is None:
        return
    try:
        with torch.no_grad():
            copy.deepcopy(net).to("meta")(torch.empty(1, 3, *size, device="meta"))
    except (RuntimeError, ValueError, AssertionError, IndexError) as error:
        wanted = f"{image_size}x{image_size}, for example"
        if isinstance(error, AssertionError):
            wanted = f"{image_size}x{image_size}"
        raise UsageProblem(
            f"{arch} cannot read pictures of this size", found=f"{size[0]}x{size[1]}", expected=wanted,
            hint=f"--image-size {image_size}",
        ) from error  # fmt: skip
