"""Exported models: they run without clmoe, by the code of docs/export.md, and answer as ``predict --task`` does."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from pictures import bars
from safetensors.torch import load_file, save_file
from torchvision import models

from clmoe_cli.api import export as exporting
from clmoe_cli.api import measuring, model_files
from clmoe_cli.api.export import export
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.routing.decide import mixed
from clmoe_cli.method.subnetwork import plain, training
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.report import render
from store_schema import ClmoeError, Store, StoreMissing, UsageProblem

ROOT = Path(__file__).parent.parent
TASKS: dict[str, tuple[str, list[Any]]] = {
    "task1": ("mlp:24,16", [9, 5]),
    "pets": ("cnn:4,8", ["dog", "cat"]),
    "scans": ("resnet18", [-3, 7]),
    "meters": ("mlp:12", ["low", "high"]),
    "lamps": ("mlp:10", ["off", "on"]),
}
LARGE = "scans"
WEIGHTS = {"task1": 0.45, "pets": 0.3, "scans": 0.2, "meters": 0.4, "lamps": 0.0}
"""Of the subnetworks beside the gate: what held-out images find would be 0 for most, since bars are easy."""


def images(task: str, n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Images as a person has them, and labels, of which the first in ``TASKS`` is not the first in order."""
    x, y = bars([0, 6], n, seed)
    labels = np.array(TASKS[task][1])[y // 6]
    if task == "pets":
        return np.stack([x, x // 2, 255 - x], axis=3)[:, :15, :13], labels
    if task == "meters":
        units = np.resize(np.float32([0.01, 3, 500]), 60)  # columns of one table
        return x.reshape(n, -1)[:, 100:160] * units + 20 * units, labels
    if task == "lamps":
        return np.where(x > 20, x, 0).astype(np.float32) * 40, labels  # on black: the median is 0
    return x, labels


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    """A folder with a store, questions to each task and all of its exports.

    The network of torchvision, which takes half a minute, is there in the campaign only.
    """
    if not request.config.getoption("--whole"):
        TASKS.pop(LARGE, None)
    root = tmp_path_factory.mktemp("export")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(training, "BATCHES", 4)
        patched.setattr(training, "CONVOLVED_BATCHES", 4)
        patched.setattr(training, "SMALLEST", 24)
        for task, (arch, _) in TASKS.items():
            for part, n, seed in (("train", 72, 1), ("test", 30, 2)):
                x, y = images(task, n, seed)
                np.savez(root / f"{task}.{part}.npz", x=x, y=y)
            large = arch == "resnet18"  # and is pruned in one round
            rounds = {"starts": (0.2,), "failures": 1, "halvings": 0} if large else {"starts": (0.2, 0.6)}
            tolerance = Tolerance(epochs=1, final_epochs=2, **rounds)
            method = Options(Schedule(epochs=1 if large else 4, batch_size=24), tolerance)

            patched.setattr(measuring, "opinion_weight", lambda *logs, weight=WEIGHTS[task]: weight)
            batch = read_batch(str(root / f"{task}.train.npz"), labels="required")
            learn(str(root / "store"), batch, LearnOptions(name=task, arch=arch, expert="new", method=method))
    for task in TASKS:
        export(str(root / "store"), task, root / f"{task}.safetensors")
        export(str(root / "store"), task, root / f"{task}.sparse.safetensors", sparse=True)
        export(str(root / "store"), task, root / f"{task}.onnx")
    (root / "images.npz").write_bytes((root / "task1.test.npz").read_bytes())
    (root / "small.safetensors").write_bytes((root / "task1.sparse.safetensors").read_bytes())
    return root


@pytest.fixture(autouse=True)
def _inside(world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CLMOE_STORE", str(world / "store"))
    monkeypatch.chdir(tmp_path)


def call(capfd: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run(app, [str(arg) for arg in args])
    return code, *capfd.readouterr()


def documented() -> dict[str, list[str]]:
    """Title of a section of docs/export.md → its blocks of Python."""
    sections = re.split(r"^## ", (ROOT / "docs" / "export.md").read_text(encoding="utf-8"), flags=re.M)
    return {s.splitlines()[0]: re.findall(r"^```python\n(.*?)^```", s, flags=re.M | re.S) for s in sections[1:]}


def outside(code: str, folder: Path, *without: str) -> dict[str, Any]:
    """What a process that has nothing of clmoe (nor anything ``without``) leaves in ``said``."""
    names = ("clmoe_cli", "store_schema", *without)
    end = f"\nimport sys\nassert not [m for m in sys.modules if m.partition('.')[0] in {names}]\n"
    code += f"{end}print(json.dumps(said))\n"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def expected(world: Path, task: str, router: str = "fused") -> dict[str, Any]:
    """What ``predict --task`` answers; with the router ``loss`` the subnetwork alone."""
    batch = read_batch(str(world / f"{task}.test.npz"), labels="ignored")
    report = predict(str(world / "store"), batch, task=task, router=router)
    assert len(set(report.labels)) == 2  # a model that always says the same is no test
    return {"labels": list(report.labels), "confidence": report.confidence}


READ = """
def given(task, about):
    x = np.load(f"{task}.test.npz")["x"]
    x = x / np.float32(255) if x.dtype == np.uint8 else x
    return (x.transpose(0, 3, 1, 2) if task == "pets" else x).reshape(-1, *about["input"]["shape"])
said = {}
"""


def test_safetensors_run_without_clmoe_as_documented(world: Path) -> None:
    blocks = [block for block in documented()["safetensors"] if LARGE in TASKS or LARGE not in block]
    code = "".join(blocks) + READ
    code += f"""
said["task1 as documented"] = labels
with torch.no_grad():
    said["difference"] = float((hidden - net.hidden1(x.flatten(1))).abs().max())
    if "scans" in {list(TASKS)}:
        said["scans as documented"] = logits[:30].tolist()
    for task in {list(TASKS)}:
        for file in (f"{{task}}.safetensors", f"{{task}}.sparse.safetensors"):
            net, about = load(file)
            x = torch.from_numpy(given(task, about))
            x = x.expand(-1, 3, -1, -1) if about["network"].get("colour") else x
            sure, best = torch.cat([net(part).softmax(dim=1) for part in x.split(7)]).max(dim=1)
            said[file] = {{"labels": [about["classes"][i] for i in best.tolist()], "confidence": sure.tolist()}}
"""
    said = outside(code, world)
    for task in TASKS:
        told = expected(world, task, "loss")
        for file in (f"{task}.safetensors", f"{task}.sparse.safetensors"):
            assert said[file]["labels"] == told["labels"]
            np.testing.assert_allclose(said[file]["confidence"], told["confidence"], atol=1e-4)
    assert said["task1 as documented"] == expected(world, "task1", "loss")["labels"]
    assert said["difference"] < 1e-5
    assert LARGE not in TASKS or np.isfinite(said["scans as documented"]).all()


def test_onnx_runs_without_clmoe_and_torch_as_documented(world: Path) -> None:
    code = "".join(documented()["ONNX"]) + READ
    code += f"""
said["task1 as documented"] = labels
for task in {list(TASKS)}:
    session = onnxruntime.InferenceSession(f"{{task}}.onnx")
    about = json.loads(session.get_modelmeta().custom_metadata_map["clmoe"])
    x = given(task, about)
    parts = [session.run(None, {{"images": x[i : i + size]}}) for i, size in ((0, 1), (1, 22), (23, 7))]
    logits, sure = (np.concatenate(both) for both in zip(*parts))
    said[task] = {{
        "labels": [about["classes"][i] for i in logits.argmax(axis=1)], "confidence": sure.max(axis=1).tolist(),
        "input": [session.get_inputs()[0].name, session.get_inputs()[0].type, session.get_inputs()[0].shape[1:]],
        "outputs": [(out.name, out.shape[1:]) for out in session.get_outputs()],
    }}
"""
    said = outside(code, world, "torch")
    for task in TASKS:
        told = expected(world, task)
        assert said[task]["labels"] == told["labels"]
        np.testing.assert_allclose(said[task]["confidence"], told["confidence"], atol=1e-4)
        shape = list(Store.open(world / "store").manifest.experts[list(TASKS).index(task)].input_shape)
        assert said[task]["input"] == ["images", "tensor(float)", shape]
        assert said[task]["outputs"] == [["logits", [2]], ["probabilities", [2]]]
    assert said["task1 as documented"] == expected(world, "task1")["labels"]


def test_the_report_and_what_the_file_says(world: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    manifest = Store.open(world / "store").manifest
    for task, (arch, labels) in TASKS.items():
        code, out, err = call(capfd, "export", "--task", task, "out.safetensors", "--json", "-q")
        report = json.loads(out)
        assert (code, err) == (0, f"warning: {report['warnings'][0]['text']}\n")
        assert "holds the subnetwork alone" in err
        assert f"({100 * report['accuracy']['within']:.2f} % of held-out images right)" in err
        tensors, about = model_files.from_safetensors("out.safetensors")
        assert (
            (report["answers"], report["opinion"]) == (about["answers"], WEIGHTS[task]) == ("subnetwork", WEIGHTS[task])
        )
        assert report["schema"] == "clmoe.export/1"
        assert (about["schema"], about["store"]) == ("clmoe.model/1", manifest.content_hash())
        assert (report["arch"], report["task"], report["output"]) == (arch, task, "out.safetensors")
        assert report["classes"] == about["classes"] == list(manifest.task(task).classes) == sorted(labels)
        assert report["bytes"] == (tmp_path / "out.safetensors").stat().st_size
        counted = [value for value in tensors.values() if value.is_floating_point()]
        record = manifest.task(task)
        assert report["standardised"] == about["input"]["standardised"] == (task == "meters")
        scaling = 8 * 60 if task == "meters" else 0
        used = sum(layer.selected for layer in record.layers) + record.owned_parameters
        assert report["parameters"] == sum(x.parameters for x in record.layers) + record.owned_parameters + scaling
        assert report["nonzero"] == sum(int((value != 0).sum()) for value in counted)
        assert report["nonzero"] <= used + scaling
        assert 0 <= report["deviation"] < 1e-4
        assert report["checked_with"] == "torch"
        assert (tmp_path / "out.safetensors").read_bytes() == (world / f"{task}.safetensors").read_bytes()
    code, out, err = call(capfd, "export", "lamps.safetensors", "--task", "lamps", "-v")
    assert code == 0
    assert "input scale" in err
    code, out, err = call(capfd, "export", "meters.safetensors", "--task", "meters", "-v")
    assert code == 0
    assert "standardise its inputs" in err
    assert "input scale" not in err
    assert "exported meters to meters.safetensors" in " ".join(out.split())
    assert "classes high, low" in " ".join(out.split())


def test_a_scale_of_one_changes_no_bit_and_another_is_in_the_weights(world: Path) -> None:
    store = Store.open(world / "store")
    firsts = {"task1": "hidden1.weight", "pets": "conv1.weight", "meters": "hidden1.weight", "lamps": "hidden1.weight"}
    for task, first in firsts.items():
        record = store.manifest.expert(store.manifest.task(task).expert)
        kept = store.read_expert(record.id).shared[first]
        written = load_file(world / f"{task}.safetensors")[first].numpy()
        assert (record.input_scale == 1.0) == (task not in ("meters", "lamps"))
        factor = np.float32(1.0 if record.standardised else record.input_scale)
        np.testing.assert_array_equal(written, kept * factor)  # the expert has one task
        assert (written != 0).any()


def test_sparse_files_are_small_and_have_the_same_bits(world: Path) -> None:
    for task in TASKS:
        dense = load_file(world / f"{task}.safetensors")
        sparse, _ = model_files.from_safetensors(world / f"{task}.sparse.safetensors")
        assert set(dense) == set(sparse)
        for name, value in dense.items():
            assert torch.equal(value, sparse[name])
            assert value.dtype == sparse[name].dtype
    if LARGE in TASKS:
        sizes = [(world / f"scans{kind}.safetensors").stat().st_size for kind in ("", ".sparse")]
        assert sizes[1] < sizes[0] / 2
        assert "layer4.0.conv1.weight.indices" in load_file(world / "scans.sparse.safetensors")


def test_sparse_tensors_keep_signed_zeros_and_dense_ones_stay(tmp_path: Path) -> None:
    few = torch.zeros(3, 2, 2, 5)
    few[0, 1, 0, 2], few[2, 1, 1, 4], few[1, 0, 0, 0] = -0.0, 2.5, -1e-40
    given = {"few": few, "many": torch.randn(4, 3), "none": torch.zeros(6, 6), "owned": torch.zeros(100)}
    path = tmp_path / "x.safetensors"
    path.write_bytes(model_files.to_safetensors(given, {"a": [1, "b"]}, ["few", "many", "none"]))
    assert {k for k in load_file(path) if "." not in k} == {"many", "owned"}
    found, about = model_files.from_safetensors(path)
    assert about == {"a": [1, "b"]}
    for name, value in given.items():
        assert torch.equal(found[name].view(torch.int32), value.view(torch.int32))


@pytest.mark.campaign
def test_another_process_says_nothing_else_and_writes_the_same_bytes(world: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "error", "-m", "clmoe_cli", "export", "--task", "pets", "pets.onnx", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("\n") == 1
    assert json.loads(done.stdout)["checked_with"] == "onnxruntime"
    data = (tmp_path / "pets.onnx").read_bytes()
    assert data == (world / "pets.onnx").read_bytes()
    for place in (str(ROOT).encode(), b"site-packages", b"clmoe_cli/"):
        assert place not in data


def test_without_onnxruntime_the_reference_runs_the_file(world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parts = [torch.rand(1, 1, 16, 16), torch.rand(3, 1, 16, 16)]
    told, runner = model_files.run_onnx(str(world / "task1.onnx"), parts)
    assert runner == "onnxruntime"
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    found, runner = model_files.run_onnx(str(world / "task1.onnx"), parts)
    assert runner == "onnx.reference"
    for answers, others in zip(found, told, strict=True):
        torch.testing.assert_close(answers, others, rtol=1e-4, atol=1e-4)
    report = export(str(world / "store"), "task1", "out.onnx")
    assert report.checked_with == "onnx.reference"


def asked(file: Path, batch: Batch) -> tuple[list[Any], np.ndarray]:
    """Labels [N] of an ONNX file, and the probabilities [N] of them, for which its logits stand as well."""
    session = onnxruntime.InferenceSession(file)
    about = json.loads(session.get_modelmeta().custom_metadata_map["clmoe"])
    logits, probabilities = session.run(None, {"images": batch.scaled()})
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(np.exp(logits), probabilities, rtol=1e-5, atol=1e-7)
    return [about["classes"][i] for i in logits.argmax(axis=1)], probabilities.max(axis=1)


def test_onnx_answers_as_predict_does_far_from_all_that_was_learned(world: Path) -> None:
    rng = np.random.default_rng(3)
    x, _ = images("meters", 40, 5)
    far = (x * 10 ** rng.uniform(-2, 2, (40, 1)) * rng.choice([-1, 1], (40, 1))).astype(np.float32)
    noise = rng.integers(0, 256, (40, 16, 16)).astype(np.uint8)
    flat = np.full((3, 1, 16, 16), [[[[0]]], [[[7]]], [[[255]]]], dtype=np.uint8)
    for task, given in (("meters", far), ("task1", noise[:, None]), ("scans", flat)):
        if task not in TASKS:
            continue
        report = predict(str(world / "store"), batch := Batch(given, None, "far"), task=task)
        labels, sure = asked(world / f"{task}.onnx", batch)
        assert labels == list(report.labels)
        np.testing.assert_allclose(sure, report.confidence, atol=1e-4)


def test_an_onnx_file_says_what_answers_and_holds_no_subnetwork_of_weight_0(
    world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    held = {task: {value.name for value in onnx.load(world / f"{task}.onnx").graph.initializer} for task in TASKS}
    assert any("hidden1.weight" in name for name in held["task1"])
    assert not any("hidden1.weight" in name for name in held["lamps"])
    code, out, err = call(capfd, "export", "--task", "meters", "out.onnx", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert (report["answers"], report["opinion"], report["warnings"]) == ("mixture", WEIGHTS["meters"], [])
    about = json.loads(onnx.load("out.onnx").metadata_props[0].value)
    assert (about["answers"], about["opinion"]) == ("mixture", WEIGHTS["meters"])


@pytest.mark.parametrize(
    ("answers", "opinion", "words"),
    [
        ("mixture", 0.3, "as predict --task does: the gate, and the subnetwork with weight 0.30"),
        ("mixture", 0.0, "as predict --task does: the gate"),
        ("subnetwork", 0.3, "as the subnetwork alone"),
        ("subnetwork", 1.0, "as predict --task does: the subnetwork"),
        ("subnetwork", None, "as predict --task does: the subnetwork"),
    ],
)
def test_people_are_told_whose_answers_a_file_gives(
    answers: str, opinion: float | None, words: str, world: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    report = export(str(world / "store"), "task1", "out.safetensors")
    render.show(replace(report, answers=answers, opinion=opinion), False)
    assert f"answers {words}\n" in capfd.readouterr().out


@pytest.mark.parametrize("name", ["format1", "format2"])
def test_stores_without_gaussians_are_exported_as_they_answer(
    name: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    golden = Path(__file__).parent / "golden" / name
    batch = Batch(np.load(golden / "expected.npz")["x"], None, "golden")
    store = shutil.copytree(golden / "store", tmp_path / "store")
    for suffix in ("onnx", "safetensors"):
        code, out, err = call(capfd, "export", "--task", "task2", f"out.{suffix}", "--store", store, "--json")
        assert (code, err) == (0, "")
        report = json.loads(out)
        assert (report["answers"], report["opinion"], report["warnings"]) == ("subnetwork", None, [])
    report = predict(str(store), batch, task="task2")
    session = onnxruntime.InferenceSession("out.onnx")
    (probabilities,) = session.run(["probabilities"], {"images": batch.scaled()})
    np.testing.assert_allclose(probabilities.max(axis=1), report.confidence, atol=1e-4)
    assert [Store.open(store).manifest.task("task2").classes[i] for i in probabilities.argmax(axis=1)] == list(
        report.labels
    )


def test_behind_a_backbone_only_the_head_is_exported(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(1)
    save_file(models.resnet18().state_dict(), tmp_path / "backbone.safetensors")
    x, y = bars([0, 6], 60, 1)
    seeing = BackboneSession("resnet18", str(tmp_path / "backbone.safetensors"), "mlp:8,8")
    through = seeing.record(None, 32)
    wide = np.repeat(np.repeat(x[:, None], 2, axis=2), 2, axis=3)
    batch = Batch(seeing.vectors(wide), y, "bars", through)
    learn("features", batch, LearnOptions(name="seen", arch="mlp:8,8", method=Options(Schedule(epochs=1))))
    code, out, err = call(capfd, "export", "--task", "seen", "seen.safetensors", "--store", "features")
    assert (code, err.count("\n")) == (0, 1)
    assert "reads features of resnet18, which is not in the file, [512]" in " ".join(out.split())
    tensors, about = model_files.from_safetensors("seen.safetensors")
    assert through.features is not None
    assert about["input"]["features"] == {"arch": "resnet18", "sha256": through.features.sha256}
    assert (about["input"]["shape"], about["input"]["image_size"], about["input"]["channels"]) == ([512], 32, 3)
    answers = plain.module(about["network"], tensors)(torch.from_numpy(batch.scaled()))
    labels = [about["classes"][i] for i in answers.argmax(dim=1).tolist()]
    assert labels == list(predict("features", batch, task="seen", router="loss").labels)
    export("features", "seen", "seen.onnx")
    told = predict("features", batch, task="seen")
    labels, sure = asked(tmp_path / "seen.onnx", batch)
    assert labels == list(told.labels)
    np.testing.assert_allclose(sure, told.confidence, atol=1e-4)


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (("--task", "task1", "out.pt"), 2, ("found .pt", ".safetensors, .onnx")),
        (("--task", "task1", "out"), 2, ("no suffix",)),
        (("--task", "task1", "nowhere/out.onnx"), 2, ("no such folder",)),
        (("--task", "task1", "folder.onnx"), 2, ("is a folder",)),
        (("--task", "tas1", "out.onnx"), 2, ("unknown task", "did you mean 'task1'")),
        (("--task", "task1", "out.onnx", "--sparse"), 2, ("--sparse is for safetensors",)),
        (("--task", "task1", "out.safetensors", "--store", "nowhere"), 4, ("no store",)),
        (("--task", "task1"), 2, ("OUT",)),
        (("out.onnx",), 2, ("--task",)),
    ],
)
def test_errors_are_one_line_and_write_nothing(
    args: tuple[str, ...], code: int, words: tuple[str, ...], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.onnx").mkdir()
    found, out, err = call(capfd, "export", *args)
    assert (found, out, err.count("\n")) == (code, "", 1)
    for word in words:
        assert word in err
    assert left(tmp_path) == ["folder.onnx"]


@pytest.mark.parametrize("package", ["onnx", "onnxscript"])
def test_a_missing_package_is_said_before_any_work(
    package: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    code, out, err = call(capfd, "export", "--task", "task1", "out.onnx")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "pip install 'clmoe[export]'" in err
    assert left(tmp_path) == []
    assert call(capfd, "export", "--task", "task1", "out.safetensors")[0] == 0


def test_a_file_that_answers_otherwise_is_not_kept(
    world: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = exporting.to_safetensors

    def wrong(values: dict[str, torch.Tensor], *more: Any) -> bytes:
        return real(values | {"output.bias": values["output.bias"] + 0.01}, *more)

    (tmp_path / "out.safetensors").write_text("earlier")
    monkeypatch.setattr(exporting, "to_safetensors", wrong)
    with pytest.raises(ClmoeError, match="answers otherwise than the subnetwork") as caught:
        export(str(world / "store"), "task1", "out.safetensors")
    assert "0.01" in str(caught.value)
    assert (tmp_path / "out.safetensors").read_text() == "earlier"
    assert left(tmp_path) == ["out.safetensors"]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "mixed", lambda gate, said, weight: mixed(gate, said, weight + 0.1))
        with pytest.raises(ClmoeError, match="answers otherwise than the store"):
            export(str(world / "store"), "task1", "out.onnx")
    assert left(tmp_path) == ["out.safetensors"]
    export(str(world / "store"), "task1", "out.safetensors")
    assert (tmp_path / "out.safetensors").read_bytes() == (world / "task1.safetensors").read_bytes()


@pytest.mark.parametrize("change", [{"output.bias": None}, {"hidden9.bias": 3}, {"output.weight": 3}])
def test_parameters_that_are_not_the_architectures_are_damage(
    change: dict[str, int | None], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    real = exporting.parameters

    def other(*args: Any) -> dict[str, torch.Tensor | None]:
        sizes = {key: None if n is None else torch.zeros(n, n) for key, n in change.items()}
        return {key: value for key, value in (real(*args) | sizes).items() if value is not None}

    monkeypatch.setattr(exporting, "parameters", other)
    code, out, err = call(capfd, "export", "--task", "task1", "out.safetensors")
    assert (code, out, err.count("\n")) == (4, "", 1)
    assert "not those of its architecture" in err


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_of_several_processes_the_first_alone_exports(
    second: pytest.MonkeyPatch, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert call(capfd, "export", "--task", "task1", "out.safetensors") == (0, "", "")
    assert left(tmp_path) == []
    second.setenv("RANK", "0")
    assert call(capfd, "export", "--task", "task1", "out.safetensors", "--json")[0] == 0
    assert left(tmp_path) == ["out.safetensors"]


def test_python_raises_what_the_command_says(tmp_path: Path, world: Path) -> None:
    with pytest.raises(UsageProblem, match="unknown output format"):
        export(str(world / "store"), "task1", tmp_path / "x.zip")
    with pytest.raises(StoreMissing):
        export(str(tmp_path / "none"), "task1", tmp_path / "x.onnx")
