"""Backbones from the command line: features once a picture, one backbone a store, the same from every source."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import small_store as small
import torch
from pictures import bars
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision import models

from clmoe_cli.api.detect import detect
from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.learn import learn
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.predict import predict
from clmoe_cli.backbone.session import BackboneSession, check_same
from clmoe_cli.backbone.torchvision_models import Backbone
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.cli.reading import How, read
from clmoe_cli.data import Batch, Raw, spool
from store_schema import FeaturesRecord, InputRecord, Store, StoreIncompatible, UsageProblem, verify

SIDE = 32
QUICK = ("--arch", "mlp:16,16", "--epochs", 2, "-q")
COMMANDS = ("learn", "detect", "predict")


def weights(path: Path, seed: int) -> Path:
    torch.manual_seed(seed)
    net = models.resnet18(weights=None)
    for module in net.modules():
        if isinstance(module, nn.Conv2d):  # torchvision's own start loses the picture in a deep network
            nn.init.kaiming_normal_(module.weight)
    save_file({k: v for k, v in net.state_dict().items() if not k.startswith("fc.")}, path)
    return path


def pictures(path: Path, classes: list[int], n: int, seed: int) -> Path:
    x, y = bars(classes, n, seed, SIDE)
    np.savez(path, x=x, y=y)
    return path


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run(app, [str(arg) for arg in args])
    return code, *capsys.readouterr()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of two tasks on features, data, the store's weights and others."""
    root = tmp_path_factory.mktemp("seeing")
    weights(root / "own.safetensors", 1)
    weights(root / "other.safetensors", 2)
    for number, classes in enumerate(([0, 4], [2, 7]), 1):
        source = pictures(root / f"task{number}.npz", classes, 80, number)
        told = ("--features", "resnet18", "--image-size", SIDE) if number == 1 else ()
        args = ("learn", "--data", source, "--store", root / "store", *QUICK, *told)
        assert run(app, [str(a) for a in (*args, "--features-weights", root / "own.safetensors")]) == 0
    pictures(root / "mixed.npz", [0, 4, 2, 7], 60, 3)
    x, y = bars([5, 9], 80, 4, SIDE)
    np.savez(root / "vectors.npz", x=x.reshape(80, -1)[:, :512] / np.float32(255), y=y)
    return root


def own(world: Path) -> tuple[object, ...]:
    return "--features-weights", world / "own.safetensors"


def test_the_store_names_what_pictures_went_through(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Store.open(world / "store").manifest
    for record in (*manifest.experts, *manifest.gates):
        assert record.input_shape == (512,)
        assert record.input is not None
        assert (record.input.image_size, record.input.channels) == (SIDE, 3)
        assert record.input.features is not None
        assert record.input.features.arch == "resnet18"
    assert [gate.features for gate in manifest.gates] == ["vector-root-1"]  # a ResNet ends in a ReLU: amounts
    assert verify(world / "store") == []
    code, out, _ = call(capsys, "inspect", "--store", world / "store", "--verify")
    assert code == 0
    assert "features of resnet18" in " ".join(out.split())


def test_predict_and_detect_need_the_weights_alone(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--data", world / "mixed.npz", "--store", world / "store", *own(world), "--json")
    code, out, err = call(capsys, "predict", *args)
    # Whatever took over a second has a line besides.
    said = [line for line in err.splitlines() if not re.match(r"loading resnet18 …|[a-z0-9 ]+: \d+/\d+ ", line)]
    assert (code, said) == (0, ["features of resnet18: 60 pictures"])
    assert json.loads(out)["accuracy"] > 0.7
    assert {row["task"] for row in json.loads(out)["predictions"]} == {"task1", "task2"}
    assert call(capsys, "predict", *args, "--features", "resnet18", "-q") == (0, out, "")
    code, again, _ = call(capsys, "detect", *args, "-q")
    assert code == 0
    assert [row["task"] for row in json.loads(again)["tasks"]] == ["task1", "task2"]
    only = call(capsys, "predict", *args, "--task", "task2", "-q")
    assert {row["task"] for row in json.loads(only[1])["predictions"]} == {"task2"}


@pytest.mark.parametrize("command", COMMANDS)
def test_other_weights_are_refused(command: str, world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = Store.open(world / "store").head
    args = (command, "--data", world / "mixed.npz", "--store", world / "store")
    code, _, err = call(capsys, *args, "--features-weights", world / "other.safetensors")
    manifest = Store.open(world / "store").manifest
    assert code == 4
    assert manifest.experts[0].input is not None
    assert manifest.experts[0].input.features is not None
    assert f"expected resnet18 with weights {manifest.experts[0].input.features.sha256[:16]}" in err
    assert "found resnet18 with weights" in err
    assert "--features-weights" in err
    code, _, err = call(capsys, *args, *own(world), "--features", "resnet34")
    assert code == 4
    assert all(text in err for text in ("found resnet34", "expected resnet18", "--features resnet18"))
    # Another size is another kind of input, and still no way around.
    code, _, err = call(capsys, *args, "--image-size", 40, "--features-weights", world / "other.safetensors")
    assert code == 4
    assert Store.open(world / "store").head == before


@pytest.mark.parametrize("command", COMMANDS)
def test_batches_of_another_backbone_are_refused_by_the_functions_as_well(command: str, world: Path) -> None:
    record = Store.open(world / "store").manifest.experts[0].input
    assert record is not None
    other = record.model_copy(update={"features": FeaturesRecord(arch="resnet18", sha256="0" * 64)})
    batch = Batch(np.zeros((64, 512), np.float32), np.arange(64) % 2, "here", other)
    calls = {"learn": lambda s: learn(s, batch, small.OPTIONS), "detect": lambda s: detect(s, batch)}
    with pytest.raises(StoreIncompatible, match="weights 00000000"):
        calls.get(command, lambda s: predict(s, batch))(str(world / "store"))


def test_without_weights_the_published_ones_are_asked_for(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    code, _, err = call(capsys, "predict", "--data", world / "mixed.npz", "--store", world / "store")
    assert code == 3
    assert "--features-weights" in err


def test_options_in_variables_and_in_the_file(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = ("predict", "--data", world / "mixed.npz", "--store", world / "store", "-q", "--json")
    told = call(capsys, *args, *own(world))
    Path("clmoe.toml").write_text(f'features-weights = "{world / "own.safetensors"}"\n')
    assert call(capsys, *args) == told
    monkeypatch.setenv("CLMOE_PREDICT_FEATURES_WEIGHTS", str(world / "other.safetensors"))
    assert call(capsys, *args)[0] == 4


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    seen: list[int] = []
    real = Backbone.features

    def features(self: Backbone, images: Tensor, device: str, *told: Any) -> Tensor:
        seen.append(len(images))
        return real(self, images, device, *told)

    monkeypatch.setattr(Backbone, "features", features)
    return seen


def test_each_picture_is_seen_once(
    world: Path, empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(world / "store", tmp_path / "store")
    source = pictures(tmp_path / "more.npz", [5, 9], 80, 5)
    seen = counted(monkeypatch)
    for command, more in (("learn", QUICK), ("detect", ()), ("predict", ("--router", "fisher"))):
        assert call(capsys, command, "--data", source, "--store", store, *own(world), *more)[0] == 0
        assert sum(seen) == (80 if command == "learn" else 0)  # features are kept for the next command
        seen.clear()


def seen(world: Path, source: Path) -> Batch:
    seeing = BackboneSession("resnet18", str(world / "own.safetensors"), "mlp:8,8", keep=False)
    return read(str(source), "required", Expected(), How(SIDE, backbone=seeing, quiet=True))


def test_folders_and_arrays_give_the_same_features(world: Path, tmp_path: Path) -> None:
    x, y = bars([0, 4], 12, 6, SIDE)
    order = np.argsort(y, kind="stable")
    for index in order:
        place = tmp_path / "folder" / f"bar{y[index]}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[index]).save(place / f"{index:02d}.png")
    np.savez(tmp_path / "grey.npz", x=x[order], y=y[order])
    np.savez(tmp_path / "colour.npz", x=np.repeat(x[order][..., None], 3, axis=3), y=y[order])
    np.savez(tmp_path / "shares.npz", x=x[order] / np.float32(255), y=y[order])
    found = seen(world, tmp_path / "folder")
    assert found.images.dtype == np.float32
    assert found.images.shape == (12, 512)
    assert found.files is not None
    assert len(np.unique(found.images, axis=0)) == 12
    for name in ("grey", "colour"):
        other = seen(world, tmp_path / f"{name}.npz")
        assert other.input == found.input
        np.testing.assert_array_equal(other.images, found.images)
    np.testing.assert_allclose(seen(world, tmp_path / "shares.npz").images, found.images, rtol=1e-3, atol=1e-3)
    np.savez(tmp_path / "wrong.npz", x=x * np.float32(1), y=y)
    with pytest.raises(Exception, match=r"wrong\.npz.*divide them by 255"):
        seen(world, tmp_path / "wrong.npz")


def test_pictures_pass_in_parts_and_only_their_features_are_held(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = pictures(tmp_path / "many.npz", [0, 4], 40, 7)
    plain = seen(world, source).images
    monkeypatch.setattr(spool, "THRESHOLD", 1000)
    monkeypatch.setattr(spool, "BLOCK", 16 * 3 * SIDE * SIDE)
    sizes, held = counted(monkeypatch), []
    made = spool.Spool.__init__

    def noted(self: spool.Spool, shape: tuple[int, ...], *rest: Any) -> None:
        held.append(shape)
        made(self, shape, *rest)

    monkeypatch.setattr(spool.Spool, "__init__", noted)
    found = seen(world, source)
    assert sizes == [16, 16, 8]
    assert held == [(40,), (40, 512)]  # labels and features
    assert spool._map_of(found.images) is not None
    np.testing.assert_allclose(found.images, plain, rtol=1e-4, atol=1e-4)


def test_vectors_never_go_through_a_backbone(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    store = shutil.copytree(world / "store", tmp_path / "store")
    sizes = counted(monkeypatch)
    # As long as the features are, and still another kind of input.
    args = ("--data", world / "vectors.npz", "--store", store)
    assert call(capsys, "predict", *args)[0] == 3
    assert call(capsys, "learn", *args, *QUICK)[0] == 0
    assert sizes == []
    assert [e.input is None for e in Store.open(store).manifest.experts][-1]
    code, out, _ = call(capsys, "predict", *args, "--json", *own(world))
    assert {row["task"] for row in json.loads(out)["predictions"]} == {"vectors"}
    code, _, err = call(capsys, "predict", *args, "--features", "resnet18")
    assert code == 2
    assert "vectors of 512 numbers" in err


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--arch", "cnn:4"), 2, ["--arch", "mlp:WIDTH"]),
        (("--arch", "cnn:4", "--features", "resnet18"), 2, ["--features none"]),
        (("--features", "resnet18", "--image-size", "0"), 2, ["contradict"]),
        (("--features", "resnet5O"), 4, ["found resnet5O", "expected resnet18"]),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...], code: int, words: list[str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("learn", "--data", world / "task1.npz", "--store", world / "store", *own(world))
    found, _, err = call(capsys, *args, *options)
    assert found == code
    assert all(word in err for word in words), err


def test_without_a_store_or_a_backbone_in_it(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ("--data", world / "task1.npz", "--store", tmp_path / "store")
    code, _, err = call(capsys, "learn", *args, *own(world), *QUICK)
    assert code == 2
    assert "--features ARCH" in err
    assert not (tmp_path / "store").exists()
    assert call(capsys, "predict", *args, "--features", "resnet18", *own(world))[0] == 4
    assert call(capsys, "learn", *args, *QUICK, "--features", "none")[0] == 0
    code, _, err = call(capsys, "predict", *args, "--features", "resnet18", "--image-size", SIDE, *own(world))
    assert code == 4
    assert "leave out --features" in err
    assert call(capsys, "predict", *args)[0] == 0


def test_which_size_and_which_kind(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, photo, store = str(world / "own.safetensors"), Raw(True, (3, 90, 60)), str(world / "store")

    def chosen(store: str, raw: Raw = photo, arch: str | None = None, size: int | None = None) -> InputRecord | None:
        return Opened.at(store).expected.transform(raw, size, BackboneSession(arch, file, "mlp:8"))

    fresh = chosen(str(tmp_path / "none"), arch="resnet18")
    assert fresh is not None
    assert fresh.image_size == 224
    ours = Store.open(store).manifest.experts[0].input
    assert ours is not None
    assert [chosen(store), chosen(store, arch="resnet18"), chosen(store, size=SIDE)] == [ours] * 3
    for shape in ((1, 28, 28), (4, 50, 50), (3, SIDE, SIDE)):
        assert chosen(store, Raw(False, shape)) == ours
    assert chosen(store, size=48) == ours.model_copy(update={"image_size": 48})
    assert chosen(store, size=0) is None
    assert chosen(store, arch="none") is None
    assert chosen(store, arch="none", size=48) == InputRecord(image_size=48)
    with pytest.raises(UsageProblem, match="cannot read pictures"):
        BackboneSession("inception_v3", file, "mlp:8").record(None, 32)
    # A store with pictures as they are beside the others: its own shape is read so, other pictures are seen.
    both = tmp_path / "both"
    shutil.copytree(store, both)
    args = ("learn", "--data", world / "task1.npz", "--store", both, *QUICK)
    assert call(capsys, *args, "--features", "none")[0] == 0
    assert chosen(str(both), Raw(False, (1, SIDE, SIDE))) is None
    assert chosen(str(both), Raw(False, (1, SIDE, SIDE)), arch="resnet18") == ours
    assert chosen(str(both), Raw(False, (1, 50, 50))) == ours


def test_a_store_runs_with_its_own_weights_alone() -> None:
    one = FeaturesRecord(arch="resnet18", sha256="ab" * 32)
    check_same(one, FeaturesRecord(arch="resnet18", sha256="ab" * 32))
    check_same(None, None)
    other = FeaturesRecord(arch="resnet18", sha256="cd" * 32)
    for recorded, found, words in (
        (one, other, ["resnet18 with weights abababab", "resnet18 with weights cdcdcdcd", "--features-weights"]),
        (one, FeaturesRecord(arch="resnet34", sha256=one.sha256), ["resnet34 with", "expected resnet18 with"]),
        (one, None, ["found no backbone", "--features resnet18"]),
        (None, one, ["expected no backbone", "leave out --features"]),
    ):
        with pytest.raises(StoreIncompatible) as caught:
            check_same(recorded, found)
        assert caught.value.exit_code == 4
        assert "\n" not in str(caught.value)
        assert all(word in str(caught.value) for word in words)
