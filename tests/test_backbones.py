from __future__ import annotations

import json
import os
import struct
import subprocess
from pathlib import Path
from urllib.error import URLError

import forking
import numpy as np
import pytest
import torch
from fresh import initial_parameters
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from clmoe_cli.backbone import torchvision_models, weights_files
from clmoe_cli.backbone.loading import load as by_name
from clmoe_cli.backbone.torchvision_models import load, pretrained
from clmoe_cli.method.networks import modules
from store_schema import BadInput, ClmoeError, UsageProblem

# Small ones, of every way in which features come about.
SMALL = {"mobilenet_v3_small": 64, "resnet18": 32, "shufflenet_v2_x0_5": 32, "swin_t": 32}


def network(arch: str, seed: int = 0, **options: object) -> nn.Module:
    torch.manual_seed(seed)
    net = models.get_model(arch, weights=None, **options).eval()
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # torchvision's own start loses the picture in a deep network
            nn.init.kaiming_normal_(module.weight)
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.8, 1.5)
    return net


def pictures(count: int, size: int, channels: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(5)).byte()


@pytest.fixture(scope="module")
def resnet() -> nn.Module:
    return network("resnet18")


@pytest.fixture(scope="module")
def resnet_file(resnet: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "resnet18.safetensors"
    save_file(resnet.state_dict(), path)
    return path


@pytest.fixture
def state(resnet: nn.Module) -> dict[str, Tensor]:
    return dict(resnet.state_dict())


def written(tensors: dict[str, Tensor], tmp_path: Path) -> Path:
    path = tmp_path / "other.safetensors"
    save_file({key: value.contiguous() for key, value in tensors.items()}, path)
    return path


def one_line(error: ClmoeError, code: int, *words: str) -> None:
    text = str(error)
    assert "\n" not in text
    assert error.exit_code == code
    for word in words:
        assert word in text, text


@pytest.mark.parametrize("arch", SMALL)
def test_features_are_what_torchvisions_last_layer_reads(arch: str, tmp_path: Path) -> None:
    net = network(arch)
    seen: list[Tensor] = []
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)][-1]
    linear.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    backbone = load(arch, written(net.state_dict(), tmp_path), (SMALL[arch], SMALL[arch]))
    images = pictures(3, SMALL[arch])
    transform = models.get_model_weights(arch).DEFAULT.transforms(crop_size=SMALL[arch], resize_size=SMALL[arch])
    with torch.no_grad():
        net(transform(images))
    found = backbone.features(images)
    assert found.dtype == torch.float32
    assert found.shape == (3, backbone.width) == (3, linear.in_features)
    assert not found.is_inference()
    assert float((found[0] - found[1]).abs().max()) > 0.001
    torch.testing.assert_close(found, seen[0], rtol=1e-4, atol=1e-5)


def test_features_do_not_depend_on_the_batch(resnet_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backbone = load("resnet18", resnet_file)
    images = pictures(7, 32)
    together = backbone.features(images)
    alone = torch.cat([backbone.features(image[None]) for image in images])
    assert float((together[0] - together[1]).abs().max()) > 0.01
    assert torch.equal(together, alone)
    assert torch.equal(backbone.features(images.flip(0)).flip(0), together)
    sizes = []
    run = torchvision_models.functional_call
    monkeypatch.setattr(
        torchvision_models, "functional_call", lambda *args: (sizes.append(len(args[2][0])), run(*args))[1]
    )
    monkeypatch.setattr(torchvision_models, "_SLOWLY", 3 * 32 * 32)
    within = 1e-5 * float(together.abs().max())
    torch.testing.assert_close(backbone.features(images), together, rtol=0, atol=within)
    assert sizes == [3, 3, 3]
    assert backbone.features(images[:0]).shape == (0, 512)


def test_grey_pictures_and_floats(resnet_file: Path) -> None:
    backbone = load("resnet18", resnet_file)
    grey = pictures(2, 32, channels=1)
    expected = backbone.features(grey.repeat(1, 3, 1, 1))
    assert torch.equal(backbone.features(grey), expected)
    torch.testing.assert_close(backbone.features(grey.float() / 255), expected, rtol=1e-3, atol=1e-4)
    assert backbone.features(grey.double() / 255).dtype == torch.float32


@pytest.mark.parametrize(
    ("images", "code", "words"),
    [
        (torch.zeros(2, 3072), 2, "[2, 3072]"),
        (torch.zeros(2, 4, 32, 32), 2, "1 or 3 channels"),
        (torch.full((1, 3, 32, 32), 255.0), 3, "divide them by 255"),
        (torch.full((1, 3, 32, 32), torch.nan), 3, "floats from 0 to 1"),
    ],
)
def test_pictures_that_no_backbone_reads(images: Tensor, code: int, words: str, resnet_file: Path) -> None:
    with pytest.raises(ClmoeError) as caught:
        load("resnet18", resnet_file).features(images)
    one_line(caught.value, code, words)


def test_features_that_overflow_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["bn1.weight"] = torch.full_like(state["bn1.weight"], 3e38)
    with pytest.raises(BadInput, match="not finite"):
        load("resnet18", written(state, tmp_path)).features(pictures(1, 32))


def test_the_hash_is_of_the_weights_that_are_used(resnet_file: Path, state: dict[str, Tensor], tmp_path: Path) -> None:
    known = load("resnet18", resnet_file).sha256
    less = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    less = {key: value.double() for key, value in reversed(less.items())}
    less["fc.weight"] = torch.zeros(3, 512)
    del less["fc.bias"]
    path = tmp_path / "less.safetensors"
    save_file(less, path, metadata={"format": "pt", "by": "another"})
    assert path.read_bytes() != resnet_file.read_bytes()
    assert load("resnet18", path).sha256 == known
    for key in ("conv1.weight", "layer4.1.bn2.running_var"):
        value = state[key].clone()
        value.view(-1)[0] = torch.nextafter(value.view(-1)[0], torch.tensor(10.0))
        assert load("resnet18", written(state | {key: value}, tmp_path)).sha256 != known


def test_the_fingerprint_is_what_the_docs_say() -> None:
    import hashlib

    tensors = {"b": torch.tensor([1.5, -2.0]), "a.weight": torch.ones(1, 2)}
    text = b"a.weight float32 [1, 2]\n" + struct.pack("<2f", 1, 1) + b"b float32 [2]\n" + struct.pack("<2f", 1.5, -2)
    assert weights_files.fingerprint(tensors) == hashlib.sha256(text).hexdigest()
    # Columns are in memory what rows are in the hash.
    turned = torch.arange(6.0).view(2, 3).t()
    assert weights_files.fingerprint({"a": turned}) == weights_files.fingerprint({"a": turned.contiguous()})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_as_float32(dtype: torch.dtype, state: dict[str, Tensor], tmp_path: Path) -> None:
    half = {key: value.to(dtype) for key, value in state.items() if value.is_floating_point()}
    single = {key: value.float() for key, value in half.items()}
    first = load("resnet18", written(half, tmp_path))
    assert first.sha256 == load("resnet18", written(single, tmp_path)).sha256


def changed(state: dict[str, Tensor], key: str, value: Tensor | None) -> dict[str, Tensor]:
    rest = {name: tensor for name, tensor in state.items() if name != key}
    return rest if value is None else rest | {key: value}


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("layer1.0.conv1.weight", None, ["layer1.0.conv1.weight missing", "docs/backbones.md"]),
        ("bn1.running_var", None, ["bn1.running_var missing"]),
        ("layer5.weight", torch.ones(2), ["layer5.weight without use"]),
        ("fcx.weight", torch.ones(2), ["fcx.weight without use"]),
        ("conv1.weight", torch.zeros(64, 1, 7, 7), ["conv1.weight", "[64, 1, 7, 7]", "[64, 3, 7, 7]"]),
        ("bn1.bias", torch.zeros(64, dtype=torch.int64), ["bn1.bias", "int64"]),
        ("bn1.bias", torch.full((64,), torch.nan), ["bn1.bias", "NaN"]),
        ("bn1.bias", torch.full((64,), 1e39, dtype=torch.float64), ["bn1.bias", "infinite"]),
        ("bn1.running_var", torch.full((64,), -0.1), ["bn1.running_var", "negative"]),
    ],
)
def test_weights_that_do_not_fit_are_named(
    key: str, value: Tensor | None, words: list[str], state: dict[str, Tensor], tmp_path: Path
) -> None:
    with pytest.raises(BadInput) as caught:
        load("resnet18", written(changed(state, key, value), tmp_path))
    one_line(caught.value, 3, "other.safetensors", *words)


def test_another_architectures_weights(resnet_file: Path) -> None:
    with pytest.raises(BadInput, match="not the weights of resnet50") as caught:
        load("resnet50", resnet_file)
    one_line(caught.value, 3, "layer1.0.bn3.bias", "and 157 more missing")


def header(entries: object, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


ONE = {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(100),
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 9 << 20) + bytes(9 << 20),
        header(ONE, bytes(3)),
        header(ONE, bytes(5)),
        header({"a": {**ONE["a"], "shape": [2**40, 2**40]}}, bytes(4)),
        header({"a": {**ONE["a"], "dtype": "F8_E4M3"}}, bytes(4)),
        header({"a": {**ONE["a"], "data_offsets": [0, 8]}}, bytes(4)),
        header({"a": ONE["a"], "b": ONE["a"]}, bytes(4)),
        struct.pack("<Q", 6) + b'{"a":1',
        header([1, 2]),
    ],
    ids=range(12),
)
def test_files_that_are_no_safetensors_never_reach_the_library(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "broken.safetensors"
    path.write_bytes(data)
    monkeypatch.setattr(weights_files, "safe_open", lambda *args, **kwargs: pytest.fail("parsed"))
    with pytest.raises(BadInput, match="not a valid safetensors file") as caught:
        load("resnet18", path)
    one_line(caught.value, 3, "broken.safetensors", *(["docs/backbones.md"] if data.startswith(b"PK") else []))


def test_paths_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    cases = {"missing": "No such file", ".": "a safetensors file", "pipe": "a safetensors file"}
    for name, words in cases.items():
        with pytest.raises(BadInput) as caught:
            load("resnet18", tmp_path / name)
        one_line(caught.value, 3, words)
    with pytest.raises(BadInput, match="not a path"):
        load("resnet18", "a\0b")


def test_a_file_of_more_than_four_gigabytes_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    with path.open("wb") as file:
        file.truncate((4 << 30) + 1)
    with pytest.raises(BadInput, match="at most 4 GiB"):
        load("resnet18", path)


@pytest.mark.parametrize(
    ("arch", "words"),
    [
        ("resnet5O", ["unknown backbone", "did you mean resnet50"]),
        ("Lite", ["unknown backbone", "expected lite0, fixed, FILE.onnx, none", "did you mean lite0"]),
        ("", ["unknown backbone", "found nothing"]),
        ("deeplabv3_resnet50", ["unknown backbone"]),
        ("squeezenet1_0", ["cannot be a backbone", "without a linear layer"]),
    ],
)
def test_names_that_are_no_backbones(arch: str, words: list[str]) -> None:
    with pytest.raises(UsageProblem) as caught:
        by_name(arch, "nowhere")
    one_line(caught.value, 2, *words)


def test_sizes_are_refused_before_weights_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageProblem) as caught:
        load("inception_v3", tmp_path / "nowhere", (32, 48))
    one_line(caught.value, 2, "inception_v3 cannot read pictures of this size", "32x48", "--image-size 299")


@pytest.mark.parametrize("side", [224, 384])
def test_vision_transformers_read_the_size_of_their_weights_alone(side: int, tmp_path: Path) -> None:
    # Sparse, since the real file has 330 MB and only its header is looked at.
    shapes = {"encoder.pos_embedding": [1, (side // 16) ** 2 + 1, 768], "conv_proj.weight": [768, 3, 16, 16]}
    ends = np.cumsum([4 * np.prod(shape) for shape in shapes.values()]).tolist()
    spans = zip([0, *ends], ends, strict=False)
    entries = {
        key: {"dtype": "F32", "shape": shapes[key], "data_offsets": list(span)}
        for key, span in zip(shapes, spans, strict=True)
    }
    path = tmp_path / "vit.safetensors"
    path.write_bytes(header(entries))
    os.truncate(path, path.stat().st_size + ends[-1])
    with pytest.raises(UsageProblem) as caught:
        load("vit_b_16", path, (side - 16, side))
    one_line(caught.value, 2, f"expected {side}x{side};", f"--image-size {side}")
    with pytest.raises(BadInput, match="class_token"):
        load("vit_b_16", path, (side, side))


def test_published_weights_come_from_where_torch_hub_keeps_them(
    resnet: nn.Module, resnet_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub/checkpoints"
    kept.mkdir(parents=True)
    cached = kept / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2]
    torch.save(resnet.state_dict(), cached)
    backbone = load("resnet18")
    assert (backbone.arch, backbone.image_size) == ("resnet18", 224)
    assert backbone.sha256 == load("resnet18", resnet_file).sha256
    cached.write_bytes(b"cut short")
    with pytest.raises(BadInput) as caught:
        load("resnet18")
    one_line(caught.value, 3, "published weights of resnet18", "--features-weights", "docs/backbones.md")


def test_published_weights_without_a_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))

    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("name resolution failed")

    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    with pytest.raises(BadInput) as caught:
        load("resnet18")
    one_line(caught.value, 3, "name resolution failed", "--features-weights", "docs/backbones.md")


def test_the_lines_of_the_docs_write_such_files(resnet: nn.Module, resnet_file: Path, tmp_path: Path) -> None:
    text = (Path(__file__).parent.parent / "docs/backbones.md").read_text().replace("resnet50", "resnet18")
    lines = [line.split('"')[1] for line in text.splitlines() if line.strip().startswith('python -c "')]
    assert len(lines) == 2
    kept = tmp_path / "hub/checkpoints"
    kept.mkdir(parents=True)
    for path in (kept / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2], tmp_path / "resnet18.pth"):
        torch.save(resnet.state_dict(), path)
    for line in lines:
        subprocess.run(
            [forking.served() / "python", "-c", line],
            cwd=tmp_path,
            env=os.environ | {"TORCH_HOME": str(tmp_path)},
            check=True,
        )
        made = tmp_path / "resnet18.safetensors"
        assert load("resnet18", made).sha256 == load("resnet18", resnet_file).sha256
        made.unlink()


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("trapped",)


def test_published_weights_are_never_unpickled_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    kept = tmp_path / "hub/checkpoints"
    kept.mkdir(parents=True)
    torch.save({"conv1.weight": Trap()}, kept / models.ResNet18_Weights.DEFAULT.url.rpartition("/")[2])
    with pytest.raises(BadInput, match="cannot be had"):
        load("resnet18")
    assert not Path("trapped").exists()


def test_pretrained_experts_take_all_but_the_output_layer(
    resnet: nn.Module, resnet_file: Path, rng: torch.Generator
) -> None:
    skeleton = modules.build("resnet18", (3, 32, 32), 4)
    weights = pretrained("resnet18", skeleton, resnet_file)
    assert weights.sha256 == load("resnet18", resnet_file).sha256
    fresh = initial_parameters(skeleton, rng)
    assert set(fresh) - set(weights.tensors) == {"fc.weight", "fc.bias"}
    assert all(fresh[name].shape == value.shape for name, value in weights.tensors.items())
    assert torch.equal(weights.tensors["layer1.0.bn1.running_mean"], resnet.layer1[0].bn1.running_mean)
    values = fresh | weights.tensors
    values["fc.weight"].zero_()
    # What was read stays apart from the file.
    assert torch.equal(pretrained("resnet18", skeleton, resnet_file).tensors["conv1.weight"], resnet.conv1.weight)


def test_names_of_old_densenets(tmp_path: Path) -> None:
    state = dict(network("densenet121").state_dict())
    old = {key.replace(".norm1.", ".norm.1.").replace(".conv2.", ".conv.2."): value for key, value in state.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    first = load("densenet121", written(state, tmp_path)).sha256
    assert load("densenet121", written(old, tmp_path)).sha256 == first


def test_auxiliary_outputs_are_left_out(tmp_path: Path) -> None:
    net = network("googlenet", init_weights=False, transform_input=True)
    backbone = load("googlenet", written(net.state_dict(), tmp_path), (32, 32))
    images = pictures(2, 32)
    net.fc = nn.Identity()
    transform = models.GoogLeNet_Weights.DEFAULT.transforms(crop_size=32, resize_size=32)
    with torch.no_grad():
        torch.testing.assert_close(backbone.features(images), net(transform(images)), rtol=1e-4, atol=1e-5)
