"""The contract of the command line, on a small store of four tasks."""

from __future__ import annotations

import csv
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import read_batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import DiskProblem, Store, files

QUICK = ["--arch", "mlp:40,30", "--epochs", "6"]
SHAPE = (10, 10)


def images(centres: list[int], n: int, seed: int, shape: tuple[int, ...] = SHAPE) -> tuple[np.ndarray, np.ndarray]:
    """uint8 images with a bright patch whose place is the class."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape))
    y = np.arange(n) % len(centres)
    bright = np.exp(-((np.arange(size)[None] - np.array(centres)[:, None]) ** 2) / 18.0)
    x = (200 * bright[y] + 40 * rng.random((n, size))).clip(0, 255).astype(np.uint8)
    return x.reshape(n, *shape), y


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


@pytest.fixture(scope="session")
def files_of(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("data")
    made = {}
    for name, centres, labels in (("a", [10, 40], [1, 5]), ("b", [60, 85], [2, 5]), ("s", [25, 70], ["cat", "dog"])):
        for part, n, seed in (("train", 480, 1), ("test", 120, 2)):
            x, y = images(centres, n, seed)
            made[f"{name}.{part}"] = save(root / f"{name}.{part}.npz", x=x, y=np.array(labels)[y])
    x, y = images([30, 120], 420, 3, (6, 6, 3))
    made["colour"] = save(root / "colour.npz", images=x, labels=y)
    return made


@pytest.fixture(scope="session")
def store(files_of: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shared") / "store"
    for name in ("a.train", "b.train", "s.train", "colour"):
        args = ["learn", "--data", str(files_of[name]), "--store", str(root), "--name", name[0], *QUICK, "-q"]
        assert run(app, args) == 0
    return root


@pytest.fixture
def own(store: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(store, tmp_path / "own"))


@pytest.fixture
def call(store: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("CLMOE_STORE", str(store))
    monkeypatch.chdir(tmp_path)

    def invoke(*args: object) -> tuple[int, str, str]:
        code = run(app, [str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return invoke


Call = Callable[..., tuple[int, str, str]]


def ok(call: Call, *args: object) -> dict[str, Any]:
    code, out, err = call(*args, "--json", "-q")
    assert code == 0, err
    assert err == ""
    found: dict[str, Any] = json.loads(out)
    assert found["schema"].startswith(f"clmoe.{args[0]}/")
    return found


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in root.rglob("*") if p.is_file() and p.name != "lock"}


def bad_files(folder: Path) -> dict[str, Path]:
    x, y = images([10, 40], 20, 0)
    wrong = x.astype(np.float32) / 255
    wrong[3, 2, 1] = np.nan
    objects = np.empty(20, dtype=object)
    (folder / "text.npz").write_text("not a zip")
    return {
        "missing": folder / "missing.npz",
        "not an npz": folder / "text.npz",
        "no images": save(folder / "1.npz", y=y),
        "no labels": save(folder / "2.npz", x=x),
        "lengths": save(folder / "3.npz", x=x, y=y[:-1]),
        "nan": save(folder / "4.npz", x=wrong, y=y),
        "infinite": save(folder / "5.npz", x=np.where(np.isnan(wrong), np.inf, wrong), y=y),
        "objects": save(folder / "6.npz", x=objects, y=y),
        "empty": save(folder / "7.npz", x=x[:0], y=y[:0]),
        "single class": save(folder / "8.npz", x=x, y=y * 0),
        "float labels": save(folder / "9.npz", x=x, y=y.astype(float)),
    }


BAD = ["missing", "not an npz", "no images", "no labels", "lengths", "nan", "infinite", "objects", "empty",
       "single class", "float labels"]  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_bad_data_gives_one_line_and_changes_nothing(kind: str, call: Call, own: Path, tmp_path: Path) -> None:
    path, before = bad_files(tmp_path)[kind], snapshot(own)
    for target in (own, tmp_path / "new"):
        code, out, err = call("learn", "--data", path, "--store", target)
        assert (code, out) == (3, "")
        assert err.count("\n") == 1
        assert path.name in err
        assert "Traceback" not in err
    assert snapshot(own) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        (["predict", "--batch", "{a}", "--router", "fischer"], 2, "did you mean 'fisher'"),
        (["predict", "--batch", "{a}", "--task", "A"], 2, "unknown task"),
        (["predict", "--batch", "{a}", "--route", "images"], 2, "did you mean 'image'"),
        (["predict", "--batch", "{a}", "--output", "x.txt"], 2, ".npz, .csv"),
        (["predict", "--batch", "{a}", "--reject", "2"], 2, "--reject"),
        (["predict", "--batch", "{odd}"], 3, "no expert knows images of this shape"),
        (["predict", "--batch", "{colour}", "--task", "a"], 3, "another shape"),
        (["predict", "--batch", "{a}", "--store", "nowhere"], 4, "no store"),
        (["inspect", "--store", "nowhere"], 4, "learn creates it"),
        (["prune", "--task", "a", "--store", "nowhere"], 4, "no store"),
        (["prune", "--task", "aa", "--yes"], 2, "did you mean 'a'"),
        (["prune", "--expert", "e9", "--yes"], 2, "unknown expert"),
        (["prune", "--yes"], 2, "one of --task"),
        (["prune", "--task", "a", "--expert", "e1"], 2, "one of --task"),
        (["prune", "--to-frozen", "101"], 2, "percentage"),
        (["learn", "--data", "{a}", "--name", "a", "--if-known", "new"], 2, "exists"),
        (["learn", "--data", "{a}", "--arch", "mlp:x"], 2, "mlp:500,500"),
        (["learn", "--data", "{a}", "--score", "gradients"], 2, "did you mean 'gradient"),
        (["learn", "--data", "{a}", "--if-known", "maybe"], 2, "skip"),
        (["learn", "--data", "{a}", "--expert", "e9"], 2, "unknown expert"),
        (["learn", "--data", "{a}", "--seed", "77"], 2, "another seed"),
        (["learn", "--data", "{a}", "--device", "abacus"], 2, "device"),
        (["learn"], 2, "--data"),
        (["lern"], 2, "learn"),
        (["learn", "--dta", "x"], 2, "--d"),
        (["inspect", "--format", "pdf"], 2, "csv or md"),
        (["tasks", "mnits", "out", "--classes", "1,2"], 2, "mnist"),
    ],
)
def test_errors_are_one_line_with_the_right_code(
    args: list[str], code: int, words: str, call: Call, store: Path, files_of: dict[str, Path], tmp_path: Path
) -> None:
    odd = save(tmp_path / "odd.npz", x=np.zeros((4, 9, 9), np.uint8))
    names = {"a": files_of["a.train"], "odd": odd, "colour": files_of["colour"]}
    filled = [a.format(**names) for a in args]
    before = snapshot(store)
    for extra in ([], ["--json"]):
        found, out, err = call(*filled, *extra)
        assert found == code, err
        assert out == ""
        assert err.count("\n") == 1
        assert words in err
        if extra:
            assert json.loads(err)["error"]["exit_code"] == code
    assert snapshot(store) == before


def test_a_newer_format_is_refused_by_name(call: Call, own: Path, files_of: dict[str, Path]) -> None:
    (own / "FORMAT").write_text("7\n")
    for args in (["inspect"], ["learn", "--data", files_of["a.train"]], ["predict", "--batch", files_of["a.test"]]):
        code, _, err = call(*args, "--store", own)
        assert (code, "format 7" in err) == (4, True)


def test_damage_is_named(call: Call, own: Path, files_of: dict[str, Path]) -> None:
    manifest = Store.open(own).manifest
    weights = manifest.expert(manifest.task("a").expert).weights
    assert weights is not None
    path = own / "objects" / weights.sha256[:2] / f"{weights.sha256}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    for args in (["predict", "--batch", files_of["a.test"], "-q"], ["inspect", "--verify"]):
        code, out, err = call(*args, "--store", own)
        assert (code, out, path.name in err) == (4, "", True)


def test_no_write_permission_is_a_disk_problem(call: Call, files_of: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    code, out, err = call("learn", "--data", files_of["a.train"], "--store", tmp_path / "file" / "store", "-q")
    assert (code, out, err.count("\n")) == (6, "", 1)


def test_a_full_disk_is_a_disk_problem(
    call: Call, own: Path, files_of: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = snapshot(own)

    def full(*args: object) -> None:
        raise DiskProblem("no space left on device", where=str(own))

    monkeypatch.setattr(files, "write_durably", full)
    args = ["learn", "--data", files_of["a.train"], "--store", own, "--if-known", "new", *QUICK, "-q"]
    code, _, err = call(*args)
    assert (code, "no space" in err) == (6, True)
    assert snapshot(own) == before


def test_learning_reports_the_contract(store: Path, call: Call, files_of: dict[str, Path]) -> None:
    report = ok(call, "learn", "--data", files_of["b.test"])
    assert (report["status"], report["task"], report["onset"]["verdict"]) == ("known", "b", "known")
    keys = {"task", "expert", "status", "new_expert", "classes", "accuracy", "layers", "owned_parameters", "onset",
            "candidates", "seconds"}  # fmt: skip
    assert keys <= set(report)
    assert {"dense", "subnetwork"} <= set(report["accuracy"])
    assert {"name", "parameters", "selected", "reused", "frozen_percent"} == set(report["layers"][0])
    assert Store.open(store).manifest.generation == 4


def test_known_and_new_by_detect(call: Call, files_of: dict[str, Path], tmp_path: Path) -> None:
    found = ok(call, "detect", "--data", files_of["a.test"], "--exit-code")
    assert (found["verdict"], found["task"]) == ("known", "a")
    assert {"deviation", "p_value", "hamming", "overlap", "divergence"} <= set(found["tasks"][0])
    assert all(0 < row["hamming"] < 1 for row in found["tasks"])
    x, y = images([2, 95], 64, 9)
    new = save(tmp_path / "new.npz", x=x, y=y)
    code, out, _ = call("detect", "--data", new, "--exit-code", "--json")
    assert (code, json.loads(out)["verdict"]) == (10, "new")
    swapped = np.load(files_of["a.test"])
    other = save(tmp_path / "swapped.npz", x=swapped["x"], y=6 - swapped["y"])
    assert ok(call, "detect", "--data", other)["verdict"] == "known"
    for data, verdict in ((files_of["a.test"], "known"), (new, "new")):
        assert ok(call, "detect", "--data", data, "--evidence", "gradient")["verdict"] == verdict
    conflict = ok(call, "detect", "--data", other, "--use-labels")
    assert (conflict["verdict"], "conflict" in conflict["reason"]) == ("new", True)


@pytest.mark.parametrize("router", ["fused", "gate", "loss", "gradient", "paper", "fisher"])
def test_batches_are_routed(router: str, call: Call, files_of: dict[str, Path]) -> None:
    for name in ("a", "b", "s"):
        args = ["--batch", files_of[f"{name}.test"], "--route", "batch", "--router", router]
        found = ok(call, "predict", *args)
        assert {p["task"] for p in found["predictions"]} == {name}
        assert found["accuracy"] > 0.95


def test_labels_keep_their_kind(call: Call, store: Path, files_of: dict[str, Path]) -> None:
    strings = ok(call, "predict", "--batch", files_of["s.test"], "--task", "s")
    assert {p["label"] for p in strings["predictions"]} == {"cat", "dog"}
    numbers = ok(call, "predict", "--batch", files_of["a.test"], "--task", "a")
    assert {p["label"] for p in numbers["predictions"]} == {1, 5}
    colour = ok(call, "predict", "--batch", files_of["colour"])
    assert colour["accuracy"] > 0.95
    assert {p["expert"] for p in colour["predictions"]} == {Store.open(store).manifest.task("c").expert}


def test_outputs_agree_with_each_other(call: Call, files_of: dict[str, Path], tmp_path: Path) -> None:
    for suffix in ("npz", "csv", "json", "ndjson"):
        args = ["--batch", files_of["a.test"], "--reject", "0.1", "--output", tmp_path / f"out.{suffix}", "-q"]
        assert call("predict", *args) == (0, "", "")
    rows = json.loads((tmp_path / "out.json").read_text())["predictions"]
    assert [json.loads(line) for line in (tmp_path / "out.ndjson").read_text().splitlines()] == rows
    table = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    assert [(r["label"], r["task"]) for r in table] == [(str(r["label"]), r["task"]) for r in rows]
    arrays = np.load(tmp_path / "out.npz")
    assert set(arrays) == {"label", "task", "expert", "confidence", "known", "p_value"}
    for key in arrays:
        assert arrays[key].tolist() == [type(arrays[key].tolist()[0])(r[key]) for r in rows]
    assert arrays["known"].tolist() == (arrays["p_value"] >= 0.1).tolist()
    assert not arrays["known"].all()


def test_images_from_stdin(store: Path, files_of: dict[str, Path]) -> None:
    command = [sys.executable, "-m", "clmoe_cli", "predict", "--batch", "-", "--store", str(store), "--json"]
    done = subprocess.run(command, input=files_of["a.test"].read_bytes(), capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["predictions"]) == 120


def test_inspect_counts_what_the_masks_say(store: Path, call: Call) -> None:
    found = ok(call, "inspect")
    opened = Store.open(store)
    for expert in found["experts"]:
        for layer in expert["layers"]:
            used = np.any([opened.read_subnetwork(t).masks[layer["name"]] for t in expert["tasks"]], axis=0)
            assert (layer["frozen"], layer["parameters"]) == (int(used.sum()), used.size)
            assert layer["frozen_percent"] == pytest.approx(100 * used.mean(), abs=1e-4)
    assert [h["task"] for h in found["history"]] == ["a", "b", "s", "c"]
    kappa = found["overlap"]
    assert all(kappa[i][i] == 1.0 for i in range(4))
    # What placement measured before a task was learned stands beside what its mask shares now.
    measured = {t["name"]: {m["task"]: m["overlap"] for m in t["measured"]} for t in found["tasks"]}
    homes = {t["name"]: t["expert"] for t in found["tasks"]}
    assert measured["a"] == {}
    for name, others in measured.items():
        before = [t["name"] for t in found["tasks"] if homes[t["name"]] == homes[name]]
        assert set(others) == set(before[: before.index(name)])
    shown = call("inspect")[1]
    assert ("overlap by construction" in shown) == any(measured.values())
    assert {"experts", "tasks", "total"} <= set(found["bytes"])
    assert ok(call, "inspect", "--verify")["verified"] is True
    rows = list(csv.DictReader(io.StringIO(call("inspect", "--format", "csv")[1])))
    assert rows[-1]["task"] == "c"
    assert call("inspect", "--format", "md")[1].startswith("| generation |")


def test_plots_are_written(call: Call, tmp_path: Path) -> None:
    assert call("inspect", "--plot", tmp_path / "f.png", "-q")[0] == 0
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def answers(call: Call, store: Path, task: str, data: Path, folder: Path) -> bytes:
    out = folder / "answers.npz"
    assert call("predict", "--batch", data, "--task", task, "--store", store, "--output", out, "-q")[0] == 0
    return out.read_bytes()


def test_pruning_frees_what_no_other_task_uses(
    call: Call, own: Path, files_of: dict[str, Path], tmp_path: Path
) -> None:
    opened = Store.open(own)
    task = opened.manifest.task("b")
    mates = [t.name for t in opened.manifest.tasks_of(task.expert) if t.name != "b"]
    masks = opened.read_subnetwork("b").masks
    rest = {
        n: np.any([opened.read_subnetwork(t).masks[n] for t in mates] or [m & False], axis=0) for n, m in masks.items()
    }
    alone = sum(int((m & ~rest[n]).sum()) for n, m in masks.items())
    before = {t: answers(call, own, t, files_of[f"{t}.test"], tmp_path) for t in ("a", "s")}
    unchanged = snapshot(own)
    plan = json.loads(call("prune", "--task", "b", "--store", own, "--json", "-q")[1])
    assert (plan["applied"], plan["freed_parameters"]) == (False, alone)
    assert snapshot(own) == unchanged
    done = ok(call, "prune", "--task", "b", "--store", own, "--gc", "--yes")
    assert (done["applied"], done["removed"], done["freed_parameters"]) == (True, ["b"], alone)
    assert {t: answers(call, own, t, files_of[f"{t}.test"], tmp_path) for t in ("a", "s")} == before
    assert not [p for p in own.rglob("*.h5") if task.subnetwork.sha256 in p.name]
    assert ok(call, "inspect", "--verify", "--store", own)["frozen_percent"] == done["frozen_percent"]
    again = ok(call, "learn", "--data", files_of["b.train"], "--store", own, *QUICK)
    assert again["status"] == "learned"


def test_pruning_experts_and_down_to_a_percentage(call: Call, own: Path) -> None:
    last = Store.open(own).manifest.experts[-1].id
    done = ok(call, "prune", "--expert", last, "--store", own, "--yes")
    assert (done["removed"], done["removed_experts"]) == (["c"], [last])
    done = ok(call, "prune", "--to-frozen", "5", "--store", own, "--yes")
    found = ok(call, "inspect", "--store", own)
    assert all(e["frozen_percent"] <= 5 for e in found["experts"])
    ok(call, "prune", "--to-frozen", "0", "--store", own, "--yes")
    empty = ok(call, "inspect", "--store", own)
    assert (empty["tasks"], empty["experts"], empty["frozen_percent"]) == ([], [], 0.0)
    code, _, err = call("predict", "--batch", "x.npz", "--store", own)
    assert code == 3, err


def test_one_process_or_many_give_the_same_content(store: Path, files_of: dict[str, Path], tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    method = Options(Schedule(epochs=6), Tolerance(max_drop=0.3 / 100))
    for name in ("a.train", "b.train"):
        batch = read_batch(str(files_of[name]), labels="required")
        learn(str(here), batch, LearnOptions(arch="mlp:40,30", method=method))
        command = [sys.executable, "-m", "clmoe_cli", "learn", "--data", str(files_of[name]), *QUICK, "-q"]
        environment = {**os.environ, "CLMOE_STORE": str(there), "OMP_NUM_THREADS": "1"}
        subprocess.run(command, env=environment, check=True, capture_output=True)
    assert Store.open(here).manifest.content_hash() == Store.open(there).manifest.content_hash()
    assert Store.open(here).manifest.content_hash() != Store.open(store).manifest.content_hash()


def test_progress_goes_to_stderr_and_results_to_stdout(call: Call, own: Path, files_of: dict[str, Path]) -> None:
    code, out, err = call("learn", "--data", files_of["a.train"], "--store", own, "--if-known", "new", *QUICK, "--json")
    assert code == 0
    assert json.loads(out)["status"] == "learned"
    assert any(line.startswith("train 1/6") for line in err.splitlines())


def test_refining_keeps_the_other_tasks(call: Call, own: Path, files_of: dict[str, Path], tmp_path: Path) -> None:
    before = answers(call, own, "b", files_of["b.test"], tmp_path)
    more = ok(call, "learn", "--data", files_of["a.train"], "--store", own, "--if-known", "refine", *QUICK)
    assert (more["status"], more["task"]) == ("refined", "a")
    assert answers(call, own, "b", files_of["b.test"], tmp_path) == before
    code, _, err = call("learn", "--data", files_of["a.test"], "--store", own, "--if-known", "refine", "-q")
    assert (code, "too few" in err) == (3, True)


def test_settings_flag_before_environment_before_file(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: Path
) -> None:
    monkeypatch.delenv("CLMOE_STORE")
    (tmp_path / "clmoe.toml").write_text('store = "from-file"\n')
    assert "from-file" in call("inspect")[2]
    monkeypatch.setenv("CLMOE_STORE", "from-environment")
    assert "from-environment" in call("inspect")[2]
    assert "from-flag" in call("inspect", "--store", "from-flag")[2]
    (tmp_path / "clmoe.toml").write_text("[inspect]\nfromat = 1\n")
    code, _, err = call("inspect")
    assert (code, "fromat" in err) == (2, True)


def test_help_names_every_command(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in ("learn", "detect", "predict", "inspect", "prune", "tasks"))


def test_interruption_exits_130_and_leaves_the_store(own: Path, files_of: dict[str, Path]) -> None:
    before = snapshot(own)
    command = [sys.executable, "-m", "clmoe_cli", "learn", "--data", str(files_of["a.train"]), "--store", str(own),
               "--if-known", "new", "--arch", "mlp:800,800", "--epochs", "1000"]  # fmt: skip
    child = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        # Where the tests themselves run in the background, SIGINT is ignored, and children would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert child.stderr is not None
    for number in (1, 2):  # amid the training
        assert child.stderr.readline().startswith(f"train {number}/")
    child.send_signal(signal.SIGINT)
    _, err = child.communicate(timeout=60)
    assert child.returncode == 130
    assert err.splitlines()[-1].startswith("clmoe: interrupted")
    assert "Traceback" not in err
    assert {path: data for path, data in snapshot(own).items() if "/checkpoints/" not in path} == before
