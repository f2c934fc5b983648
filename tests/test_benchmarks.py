from __future__ import annotations

import ast
import csv
import importlib
import inspect
import json
import os
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from clmoe_cli.cli.app import app
from clmoe_cli.data import read_batch
from store_schema import Store

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
OURS = ("clmoe", "clmoe_cli", "store_schema")


@pytest.fixture
def scenes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("scenes")


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.mark.parametrize("path", sorted(BENCHMARKS.glob("*.py")), ids=lambda path: path.stem)
def test_benchmarks_use_what_the_packages_have(path: Path) -> None:
    tree = ast.parse(path.read_text())
    modules: dict[str, object] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in (
            "clmoe",
            "clmoe_cli",
            "store_schema",
        ):
            home = importlib.import_module(str(node.module))
            for alias in node.names:
                if not hasattr(home, alias.name):
                    importlib.import_module(f"{node.module}.{alias.name}")
                found = getattr(home, alias.name)
                if inspect.ismodule(found):
                    modules[alias.asname or alias.name] = found
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
            assert hasattr(modules[node.value.id], node.attr), f"{node.value.id}.{node.attr}, line {node.lineno}"


def test_pictures_are_made_brighter_as_a_camera_would(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    brightness = importlib.import_module("brightness")
    pixels = np.array([0, 10, 101, 200, 255], np.uint8)
    assert brightness.brighter(pixels, 1.0).tolist() == pixels.tolist()
    assert brightness.brighter(pixels, 1.5).tolist() == [0, 15, 152, 255, 255]
    assert brightness.brighter(pixels, 0.0).tolist() == [0] * 5
    asked = brightness.of_digits(np.arange(6, dtype=np.uint8)[:, None], np.array([1, 2, 1, 3, 2, 1]), (1, 3))
    assert asked.labels.tolist() == [1, 1, 3, 1]
    assert asked.images[:, 0].tolist() == [0, 2, 3, 5]


@pytest.mark.campaign
def test_the_papers_figures_can_be_drawn_without_mnist(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "paper.py"), "--quick", "--out", str(tmp_path), "--no-dense"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert json.loads(done.stdout) == summary
    assert summary["source"] == "mnist5k"
    assert summary["outputs_bit_identical"] == [True]
    assert 90 < summary["accuracy_mean"][0] <= 100
    for name in ("fig2", "fig3a", "fig3b", "table1"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(table(tmp_path / f"{name}.csv")) >= 18
    accuracies = [float(row["accuracy"]) for row in table(tmp_path / "fig3b.csv")]
    assert len(accuracies) == 21
    assert all(0.5 < a <= 1 for a in accuracies)
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode != 0
    assert "store0 exists" in again.stderr
    assert json.loads((tmp_path / "summary.json").read_text()) == summary


def test_colour_pictures_follow_from_the_seed(scenes: ModuleType) -> None:
    some = scenes.pictures("apple", "train", 120, 24, 0)
    assert some.shape == (120, 24, 24, 3)
    assert some.dtype == np.uint8
    assert np.array_equal(some[:7], scenes.pictures("apple", "train", 7, 24, 0))
    others = [("apple", "train", 7, 24, 1), ("apple", "test", 7, 24, 0), ("lime", "train", 7, 24, 0)]
    assert all((some[:7] != scenes.pictures(*other)).mean() > 0.5 for other in others)
    assert len(np.unique(some.reshape(120, -1), axis=0)) == 120


def test_apples_and_limes_differ_in_colour_alone(scenes: ModuleType) -> None:
    red, green = scenes.KINDS["apple"], scenes.KINDS["lime"]
    assert (red.shape, red.texture) == (green.shape, green.texture)
    share = {}
    for name in ("apple", "lime", "heart"):
        x = scenes.pictures(name, "test", 100, 24, 0).astype(float)
        share[name] = float((x[..., 0] > x[..., 1]).mean(axis=(1, 2)).mean())
    assert share["lime"] < share["heart"] < share["apple"]
    assert share["apple"] - share["lime"] > 0.3


def test_every_outline_is_inside_its_square_and_is_its_own(scenes: ModuleType) -> None:
    at = np.linspace(-1.5, 1.5, 61)
    covers = {name: shape(at[None, :], at[:, None]) > 0 for name, shape in scenes.SHAPES.items()}
    edge = np.abs(at) > 1.2
    for name, cover in covers.items():
        assert 0.05 < cover.mean() < 0.35, name
        assert not cover[edge].any(), name
        assert not cover[:, edge].any(), name
    for a, b in combinations(covers, 2):
        both, either = (covers[a] & covers[b]).sum(), (covers[a] | covers[b]).sum()
        assert both / either < 0.9, (a, b)


def test_tasks_of_two_classes_are_written_as_folders(scenes: ModuleType, tmp_path: Path) -> None:
    scenes.make_folders(tmp_path, train=3, test=2, side=16, seed=0)
    assert len(scenes.TASKS) >= 5
    assert len({name for classes in scenes.TASKS for name in classes}) == len(scenes.KINDS)
    for number, classes in enumerate(scenes.TASKS, 1):
        for part, n in (("train", 3), ("test", 2)):
            batch = read_batch(str(tmp_path / f"task{number}" / part), labels="required")
            assert batch.images.shape == (2 * n, 3, 16, 16)
            assert sorted(batch.classes()) == sorted(classes)
    mixed = read_batch(str(tmp_path / "mixed"), labels="required")
    assert len(mixed.images) == 2 * len(scenes.KINDS)
    first = Image.open(tmp_path / "task1" / "train" / "apple" / "00001.png")
    assert np.array_equal(np.asarray(first), scenes.pictures("apple", "train", 1, 16, 0)[0])


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The benchmarks' commands run here, which spares the seconds that a process needs to start; those called."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    called: list[str] = []

    def clmoe(*args: str, store: Path) -> Any:
        called.append(args[0])
        done = CliRunner().invoke(app, [*args, "--store", str(store), "--json", "-q"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    for name in ("sequence", "resnet"):
        monkeypatch.setattr(importlib.import_module(name), "clmoe", clmoe)
    return called


@pytest.mark.campaign
def test_the_colour_benchmark_runs_small(
    in_process: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    size = ("--tasks", "2", "--train", "40", "--test", "10", "--side", "16", "--epochs", "1")
    monkeypatch.setattr(sys, "argv", ["colour.py", *size, "--arch", "mlp:20", "--out", str(tmp_path)])
    importlib.import_module("colour").main()
    found = json.loads((tmp_path / "colour.json").read_text())
    assert found == json.loads(capsys.readouterr().out)
    assert in_process.count("learn") == 2
    assert found["answers_bit_identical_after_every_task"] is True
    assert found["verified"] is True
    assert [len(row) for row in found["accuracy_after_every_task"]] == [1, 2]
    assert set(found["routers"]) == {"fused", "gate"}
    assert sum(row["images"] for row in found["routers"]["fused"]["confusion"]) == 40
    assert 0 <= found["joint"]["accuracy"] <= min(found["joint"]["given"] + [1.0])
    assert "no id, `fused`" in (tmp_path / "colour.md").read_text()
    with pytest.raises(SystemExit, match="store0 exists"):
        importlib.import_module("colour").main()


def test_a_changed_answer_is_told(in_process: list[str]) -> None:
    digest = importlib.import_module("sequence").digest
    columns = {"label": np.array([1, 2]), "confidence": np.array([0.5, 0.75]), "p_value": np.array([np.nan, 1.0])}
    assert digest(columns) == digest({key: value.copy() for key, value in columns.items()})
    moved = np.nextafter(columns["confidence"], 1)
    assert digest(columns) != digest({**columns, "confidence": moved})


@pytest.mark.campaign
def test_the_resnet_benchmark_runs_small(
    in_process: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    size = ("--train", "40", "--test", "5", "--side", "16", "--epochs", "1", "--image-size", "0", "--alone", "2")
    monkeypatch.setattr(sys, "argv", ["resnet.py", *size, "--arch", "mlp:20", "--out", str(tmp_path)])
    importlib.import_module("resnet").main()
    found = json.loads((tmp_path / "resnet.json").read_text())
    assert all(found["checks"].values())
    assert len(found["checks"]) == 6
    assert found["pictures_alone"] == 2


def test_joint_networks_pool_as_the_experts_do(in_process: list[str]) -> None:
    joint = importlib.import_module("joint")
    net = joint.network("cnn:4,8,16", (1, 12, 28), 5, (0.2, 0.3))
    assert net(torch.zeros(2, 1, 12, 28)).shape == (2, 5)
    assert sum(isinstance(layer, torch.nn.MaxPool2d) for layer in net) == 2
    assert [layer.p for layer in net.modules() if isinstance(layer, torch.nn.Dropout)] == [0.3]
    assert all(layer.bias is None for layer in net if isinstance(layer, torch.nn.Conv2d))


@pytest.mark.campaign
def test_the_processes_benchmark_compares_small(
    in_process: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """With the launches left out: three ways are the same command, the third has another seed, the fifth other bits."""
    processes, sequence = (importlib.import_module(name) for name in ("processes", "sequence"))
    seconds = iter([8.0, 4.0, 2.0, 1.0, 1.0, 2.0, 8.0, 1.0, 1.0, 2.0])

    def learn(data: Path, store: Path, way: str, flags: list[str]) -> dict[str, float]:
        seed = ("--seed", "9") if way == "2 processes" else ()
        sequence.clmoe("learn", "--data", str(data), "--name", "task1", *flags, *seed, store=store)
        return dict.fromkeys(("training", "learn", "command"), next(seconds))

    monkeypatch.setattr(processes, "learn", learn)
    size = ("--part", "task", "--arch", "mlp:20", "--images", "80", "--epochs", "1", "--repeat", "2")
    monkeypatch.setattr(sys, "argv", ["processes.py", *size, "--out", str(tmp_path / "out")])
    processes.main()
    found = json.loads((tmp_path / "out" / "processes.json").read_text())
    ways = found["results"]["mlp:20"]
    # In the second repetition the second way comes first, and the first, which takes 2 seconds, comes last.
    assert ways["1 process, 2 threads"]["learn_speedup"] == [1.5, 1.0, 2.0]
    assert ways["2 processes"]["learn_speedup"] == [2.125, 0.25, 4.0]
    assert ways["1 process, 2 threads"]["differing"] == 0
    assert ways["1 process, 2 threads"]["overlap"] == 1
    assert ways["2 processes"]["differing"] > 0.1
    assert ways["2 processes"]["overlap"] < 0.9
    assert ways[processes.NUDGED]["differing"] < ways["2 processes"]["differing"]
    assert found["images"] == 80


def test_a_step_is_timed_as_processes_take_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    importlib.import_module("processes").time_steps("cnn:8,16", 0.01)
    found = json.loads(capsys.readouterr().out)
    assert found["step"] > 0
    assert found["steps"] >= 3
    assert found["weights"] > 8 * 9 + 16 * 8 * 9


@pytest.mark.campaign
def test_growth_goes_on_with_tasks_that_are_copied(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    growth = importlib.import_module("growth")
    for name, value in {"COUNTS": (1,), "ALONE": 1, "TOGETHER": 2, "LAST": 1}.items():
        monkeypatch.setattr(growth, name, value)
    found = growth.after_vectors(tmp_path / "store", 5)
    assert list(found) == [1, 5]
    manifest = Store.open(tmp_path / "store").manifest
    assert [task.name for task in manifest.tasks] == ["t0", "t1", "t2", "t3", "t4"]
    for row in found.values():
        assert row["accuracy"] > 0.9
        assert row["task"] == sum(size for name, size in row.items() if name.startswith("task."))
    assert growth.vectors_table(found).count("\n") == 4


HELD = """
import pathlib, time
x = b"1" * {megabytes} * 2**20
pathlib.Path("{ready}").touch()
while not pathlib.Path("{seen}").exists():
    time.sleep(0.005)
"""


def test_peak_memory_is_that_of_the_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A command that holds memory ends when it has been looked at."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory = importlib.import_module("memory")
    looked = memory.resident

    def resident(pid: int) -> tuple[int, int]:
        ready = list(tmp_path.glob("*.ready"))
        found = looked(pid)
        for path in ready:
            path.with_suffix(".seen").touch()
        return found

    monkeypatch.setattr(memory, "resident", resident)

    def held(megabytes: int, name: str) -> str:
        return HELD.format(megabytes=megabytes, ready=tmp_path / f"{name}.ready", seen=tmp_path / f"{name}.seen")

    few, many = (memory.measured([sys.executable, "-c", held(n, str(n))]) for n in (1, 101))
    assert 95 < many["anonymous_mib"] - few["anonymous_mib"] < 110
    assert many["resident_mib"] > many["anonymous_mib"]
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {held(101, 'nested')!r}])"
    assert memory.measured([sys.executable, "-c", nested])["anonymous_mib"] > 100
    with pytest.raises(SystemExit, match="exit 3: no"):
        memory.measured([sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"])


def test_the_streamed_npz_is_what_numpy_reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    memory = importlib.import_module("memory")
    path = tmp_path / "x.npz"
    images = memory.write_npz(path, 25_000_000)
    batch = read_batch(str(path), labels="ignored")
    assert batch.images.shape == (images, 3, 64, 64)
    assert 0 <= batch.images.min() < 0.1 < 0.9 < batch.images.max() <= 1
    assert abs(path.stat().st_size - 25_000_000) < 60_000
    assert np.array_equal(batch.images[400:500], batch.images[:100])


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("speed")


@pytest.mark.campaign
def test_ratios_are_of_the_same_turns(speed: ModuleType) -> None:
    found = speed.ratio({"a": [2.0, 4.0, 9.0], "b": [1.0, 2.0, 3.0]}, "a", "b")
    assert (found.median, found.low, found.high, found.turns) == (2.0, 2.0, 2.5, 3)
    ran: list[str] = []
    times = speed.by_turns({"a": lambda: ran.append("a"), "b": lambda: ran.append("b")}, 4)
    assert sorted(ran) == ["a"] * 5 + ["b"] * 5
    assert [len(values) for values in times.values()] == [4, 4]


def test_stages_of_a_learn_add_up_and_say_the_loss_before_pruning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    beside = importlib.import_module("beside")
    lines = ["train 1/40  loss 0.1  validation 0.0300, 99 %", "train 2/40  loss 0.1  validation 0.0200, 99 %"]
    lines += [
        "scores: 3 of 7",
        "prune 1/2  loss 0.1  validation 0.0100, 99 %",
        "consolidate 1/10  loss 0.1  validation 0.5, 9 %",
    ]
    found, loss = beside.stages(20.0, [(float(at), line) for at, line in zip((5, 7, 8, 9, 11), lines, strict=True)])
    assert loss == 0.02
    assert sum(found.values()) == pytest.approx(20.0)
    assert found == {
        "start, onset, placement": 3.0, "train": 4.0, "prune": 2.0, "consolidate": 2.0,
        "scores, statistics, gate, commit": 9.0,
    }  # fmt: skip


def test_what_speed_compares_computes_the_same(speed: ModuleType) -> None:
    kernels = importlib.import_module("kernels")
    rng = torch.Generator().manual_seed(0)
    net = kernels.MLP(7, (5, 4))
    params = net.ordered(net.initial_shared(rng) | net.initial_owned(3, rng))
    module = kernels.plain((7, 5, 4), 3)
    with torch.no_grad():
        for value, own in zip(module.parameters(), params.values(), strict=True):
            value.copy_(own)
    x, y = torch.rand((6, 7), generator=rng), torch.randint(3, (6,), generator=rng)
    wanted = kernels.one_by_one(module, x, y)
    for found, value in zip(kernels.gradient_scores(net, params, x, y).values(), wanted, strict=True):
        torch.testing.assert_close(found, value)
