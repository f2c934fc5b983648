"""Frozen networks of torchvision as backbones: the features are what their last linear layer would read."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from clmoe_cli.backbone.frozen import Backbone
from clmoe_cli.backbone.weights_files import InMemory, Source, Weights, WeightsFile, fit
from clmoe_cli.data.npz import one_line
from clmoe_cli.method.networks import modules
from clmoe_cli.method.networks.base import BLOCK
from clmoe_cli.runtime import limits
from store_schema.errors import BadInput, UsageProblem
from store_schema.records import FeaturesRecord

_PIXELS = limits.BACKBONE_PIXELS
_SLOWLY = limits.BACKBONE_PIXELS_CPU
# Their published weights expect other means and deviations, to which the networks themselves convert.
_TRANSFORMED = ("googlenet", "inception_v3")


@dataclass(frozen=True)
class TorchRunner:
    """Passes of a skeleton with these tensors; ``image_size`` and ``arch`` are for errors."""

    arch: str
    image_size: int
    net: nn.Module
    tensors: Mapping[str, Tensor]
    _there: dict[str, Mapping[str, Tensor]] = field(default_factory=dict, repr=False)

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem where one pass on the meta device fails."""
        _check_size(self.net, self.arch, (height, width), self.image_size)

    def block(self, height: int, width: int, device: str) -> int:
        """Few photographs on a processor: a single one passes as one of so many."""
        return max(1, min(BLOCK, (_SLOWLY if device == "cpu" else _PIXELS) // (height * width)))

    def workers(self, device: str) -> int:
        """One: torch has threads of its own."""
        return 1

    def run(self, pictures: Tensor, device: str) -> Tensor:
        """Features [n, width] of normalised pictures [n, 3, H, W]."""
        if device not in self._there:  # weights travel once, not with every block
            self._there[device] = {name: value.to(device) for name, value in self.tensors.items()}
        found: Tensor = functional_call(self.net, dict(self._there[device]), (pictures.to(device),)).cpu()
        return found

    def module(self) -> nn.Module:
        """A copy of the skeleton that holds its tensors."""
        net = copy.deepcopy(self.net)
        for name, module in net.named_modules():
            prefix = f"{name}." if name else ""
            for key in module._parameters:
                if (value := self.tensors.get(prefix + key)) is not None:
                    module._parameters[key] = nn.Parameter(value, requires_grad=False)
            for key, own in module._buffers.items():
                if (value := self.tensors.get(prefix + key)) is not None:
                    module._buffers[key] = value
                elif own is not None and own.is_meta:  # counters of batches, which nothing reads
                    module._buffers[key] = torch.zeros(own.shape, dtype=own.dtype)
        return net


def load(arch: str, weights: str | Path | None = None, size: tuple[int, int] | None = None) -> Backbone:
    """The backbone ``arch`` with the weights of a safetensors file, or those that torchvision publishes.

    ``size``: height and width of the pictures, so that what the network cannot read is refused before weights are
    read. Published weights are downloaded once and kept where torch.hub keeps them. ``arch`` is one of torchvision's.
    Raises UsageProblem for an unreadable size, BadInput for weights that do not fit or cannot be had.
    """
    from torchvision import models

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
    record = FeaturesRecord(arch=arch, sha256=sha256)
    mean, std = tuple(transforms.mean), tuple(transforms.std)
    return Backbone(record, width, image_size, mean, std, TorchRunner(arch, image_size, net, tensors))


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
