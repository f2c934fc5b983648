"""Backbones from ONNX files: the features of the network inside, and one line for what is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from clmoe_cli.backbone.loading import load
from clmoe_cli.backbone.session import BackboneSession
from store_schema import BadInput, ClmoeError, StoreIncompatible, UsageProblem

MEAN, STD = [0.5, 0.4, 0.3], [0.2, 0.3, 0.4]
HOW = {"mean": MEAN, "std": STD, "size": 16}


def pictures(count: int, size: int = 16, channels: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, channels, size, size), generator=torch.Generator().manual_seed(5)).byte()


def written(folder: Path, model: onnx.ModelProto, how: object = HOW) -> str:
    path = folder / "eyes.onnx"
    onnx.save(model, path)
    (folder / "eyes.json").write_text(json.dumps(how))
    return str(path)


def model(
    nodes: list[onnx.NodeProto], shape: list[object] = ["n", 3, 16, 16], out: list[object] = ["n", 3], more: tuple = (),  # noqa: B006
    tensors: tuple = (), domains: tuple[str, ...] = ("",),
) -> onnx.ModelProto:  # fmt: skip
    pixels = helper.make_tensor_value_info("pixels", TensorProto.FLOAT, shape)
    found = helper.make_tensor_value_info("found", TensorProto.FLOAT, out)
    graph = helper.make_graph(nodes, "eyes", [pixels, *more], [found], list(tensors))
    opsets = [helper.make_opsetid(name, 18 if name == "" else 1) for name in domains]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


AXES = numpy_helper.from_array(np.array([2, 3], np.int64), "axes")
MEANS = helper.make_node("ReduceMean", ["pixels", "axes"], ["found"], keepdims=0)


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return layers.train(False)


@pytest.fixture(scope="module")
def exported(net: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> str:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net, (torch.zeros(2, 3, 16, 16),), dynamo=True, verbose=False,
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )  # fmt: skip
    assert program is not None
    return written(tmp_path_factory.mktemp("onnx"), program.model_proto)


def test_features_are_those_of_the_network(net: nn.Module, exported: str) -> None:
    backbone, images = load(exported), pictures(7)
    mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
    with torch.no_grad():
        right = net((images.float() / 255 - mean) / std)
    found = backbone.features(images)
    assert (backbone.arch, backbone.width, backbone.image_size) == ("eyes.onnx", 8, 16)
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
    assert torch.equal(torch.cat([backbone.features(image[None]) for image in images]), found)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(backbone.features(images.flip(0)).flip(0), found)
    finally:
        torch.set_num_threads(before)
    assert backbone.features(images[:0]).shape == (0, 8)
    grey = pictures(2, channels=1)
    assert torch.equal(backbone.features(grey), backbone.features(grey.repeat(1, 3, 1, 1)))


def test_a_batch_of_fixed_size_is_filled_up(tmp_path: Path) -> None:
    many = load(written(tmp_path, model([MEANS], [4, 3, 16, 16], [4, 3], tensors=(AXES,))))
    assert many.features(pictures(6)).shape == (6, 3)
    right = pictures(6).float().mean(dim=(2, 3)) / 255
    torch.testing.assert_close(many.features(pictures(6)), (right - torch.tensor(MEAN)) / torch.tensor(STD))


@pytest.mark.parametrize(
    "how",
    [
        HOW,
        {"image_mean": MEAN, "image_std": STD, "crop_size": {"height": 16, "width": 16}, "size": {"shortest_edge": 18}},
        {"image_mean": MEAN, "image_std": STD, "size": {"shortest_edge": 16}},
    ],
)
def test_how_pictures_are_normalised_is_read_beside_the_file(how: object, tmp_path: Path) -> None:
    backbone = load(written(tmp_path, model([MEANS], ["n", 3, "h", "w"], tensors=(AXES,)), how))
    assert (backbone.image_size, backbone.record.mean, backbone.record.std) == (16, tuple(MEAN), tuple(STD))
    assert backbone.features(pictures(2, 20)).shape == (2, 3)
    (tmp_path / "eyes.json").rename(tmp_path / "preprocessor_config.json")
    assert load(str(tmp_path / "eyes.onnx")).record == backbone.record


FAULTY = helper.make_node("Own", ["pixels"], ["found"], domain="mine")
NOISE = [
    helper.make_node("RandomNormalLike", ["means"], ["noise"]),
    helper.make_node("Add", ["means", "noise"], ["found"]),
]
TEXT = helper.make_tensor_value_info("tokens", TensorProto.INT64, ["n", 7])
ZERO = numpy_helper.from_array(np.float32(0), "zero")
CASES = {
    "custom operators": (model([FAULTY], domains=("", "mine")), "code of their own.*mine"),
    "two inputs": (model([MEANS], more=(TEXT,), tensors=(AXES,)), "not one picture in.*tokens"),
    "grey": (model([MEANS], ["n", 1, 16, 16], ["n", 1], tensors=(AXES,)), "not pictures in colour"),
    "maps": (model([helper.make_node("Relu", ["pixels"], ["found"])], out=["n", 3, 16, 16]), "no vector out.*pooled"),
    "not finite": (
        model([helper.make_node("ReduceMean", ["pixels", "axes"], ["m"], keepdims=0),
               helper.make_node("Div", ["m", "zero"], ["found"])], tensors=(AXES, ZERO)),
        "features that are not finite",
    ),
    "noise": (
        model([helper.make_node("ReduceMean", ["pixels", "axes"], ["means"], keepdims=0), *NOISE], tensors=(AXES,)),
        "other features for the same picture.*without dropout",
    ),
    "no operator": (model([helper.make_node("Nonsense", ["pixels"], ["found"])]), "not a network that runs"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_what_is_no_backbone_is_said_in_a_line(case: str, tmp_path: Path) -> None:
    graph, message = CASES[case]
    with pytest.raises(BadInput, match=message) as caught:
        load(written(tmp_path, graph))
    assert "\n" not in str(caught.value)
    assert "eyes.onnx" in str(caught.value)


def test_weights_outside_of_the_file_are_refused(tmp_path: Path) -> None:
    big = numpy_helper.from_array(np.ones((3, 512), np.float32), "weights")
    nodes = [
        helper.make_node("ReduceMean", ["pixels", "axes"], ["m"], keepdims=0),
        helper.make_node("MatMul", ["m", "weights"], ["found"]),
    ]
    path = written(tmp_path, model(nodes, out=["n", 512], tensors=(AXES, big)))
    assert load(path).width == 512
    onnx.save(
        onnx.load(path), path, save_as_external_data=True, all_tensors_to_one_file=True, location="w.bin",
        size_threshold=0,
    )  # fmt: skip
    with pytest.raises(BadInput, match=r"weights outside of the file: .*eyes\.onnx"):
        load(path)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (None, r"nothing says how.*write .*eyes\.json: \{"),
        ("{", "not JSON"),
        ("[1]", "not how pictures are normalised"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 0], "size": 16}', "not how pictures are normalised"),
        ('{"mean": [0, 0], "std": [1, 1, 1], "size": 16}', "not how pictures are normalised"),
        ('{"mean": [0, 0, NaN], "std": [1, 1, 1], "size": 16}', "not how pictures are normalised"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "size": "big"}', "not how pictures are normalised"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1]}', "not how pictures are normalised"),
    ],
)
def test_a_file_beside_it_that_does_not_say_it(how: str | None, message: str, tmp_path: Path) -> None:
    path = written(tmp_path, model([MEANS], tensors=(AXES,)))
    (tmp_path / "eyes.json").unlink()
    if how is not None:
        (tmp_path / "eyes.json").write_text(how)
    with pytest.raises(BadInput, match=message):
        load(path)


@pytest.mark.parametrize("data", [b"", b"\x00" * 100, b"PK\x03\x04", b"not a model at all"])
def test_a_file_that_is_no_onnx(data: bytes, tmp_path: Path) -> None:
    path = written(tmp_path, model([MEANS], tensors=(AXES,)))
    Path(path).write_bytes(data)
    with pytest.raises(ClmoeError) as caught:
        load(path)
    assert caught.value.exit_code == 3
    with pytest.raises(BadInput, match=r"cannot read the data.*No such file"):
        load(str(tmp_path / "none.onnx"))


def test_other_sizes_and_weights_are_refused(exported: str) -> None:
    with pytest.raises(UsageProblem, match=r"cannot read pictures of this size.*20x20.*16x16.*--image-size 16"):
        load(exported, size=(20, 20))
    with pytest.raises(UsageProblem, match="weights inside"):
        load(exported, weights="w.safetensors")


def test_a_store_knows_the_file_by_what_is_in_it(exported: str, tmp_path: Path) -> None:
    record = BackboneSession(exported, experts="mlp:8").record(None, None)
    assert record.features is not None
    assert (record.image_size, record.channels, record.features.arch) == (16, 3, "eyes.onnx")
    elsewhere = tmp_path / "moved.onnx"
    elsewhere.write_bytes(Path(exported).read_bytes())
    (tmp_path / "moved.json").write_text(json.dumps(HOW))
    session = BackboneSession(str(elsewhere), keep=False)
    assert session.record(record.features, None) == record
    assert (session.name, session.width, session.vectors(pictures(3).numpy()).shape) == ("moved.onnx", 8, (3, 8))
    (tmp_path / "moved.json").write_text(json.dumps(HOW | {"mean": [0.1, 0.1, 0.1]}))
    with pytest.raises(StoreIncompatible, match="other features"):
        BackboneSession(str(elsewhere), keep=False).record(record.features, None)
    with pytest.raises(UsageProblem, match=r"is an ONNX file.*--features FILE\.onnx"):
        BackboneSession().record(record.features, None)
    with pytest.raises(StoreIncompatible, match=r"--features FILE\.onnx"):
        BackboneSession("resnet18").record(record.features, None)
