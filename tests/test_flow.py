"""How a command goes: the store is opened once, what it expects is known before data are read, work is done once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_store as small
import torch
from pictures import SIDE, bars
from PIL import Image
from test_architecture import PROBE

from clmoe_cli.api import common, gating, ranges
from clmoe_cli.api.detect import detect
from clmoe_cli.api.inputs import Expected, Kind
from clmoe_cli.api.learn import learn
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.planning import plan
from clmoe_cli.api.predict import predict
from clmoe_cli.api.segment import learn_stream
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch, Raw
from clmoe_cli.method.subnetwork.compact import Compact
from clmoe_cli.report.progress import note
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.events import Step
from store_schema import Manifest, Store, UsageProblem, store

QUICK = ("--arch", "mlp:8,8", "--epochs", "1", "-q")


def task(path: Path, number: int, images: int = 60) -> Path:
    """An npz of bars, of the classes of task ``number`` of :mod:`small_store`."""
    x, y = bars(small.TASKS[number - 1], images, number)
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture
def world(tmp_path: Path) -> Path:
    """A folder with a store of two tasks, and data of a third."""
    small.build(tmp_path / "store", 2)
    task(tmp_path / "known.npz", 1)
    task(tmp_path / "new.npz", 3)
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is read of any store: a line for each look for one, and each manifest that HEAD names."""
    seen: list[str] = []
    manifest_of, check_format = store.manifest_of, store.check_format

    def read(root: Path, head: bytes) -> Any:
        seen.append("manifest")
        return manifest_of(root, head)

    def looked(root: Path) -> None:
        seen.append("looked")
        check_format(root)

    monkeypatch.setattr(store, "manifest_of", read)
    monkeypatch.setattr(store, "check_format", looked)
    return seen


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run(app, [str(arg) for arg in args])
    return code, *capsys.readouterr()


COMMANDS = {
    "learn": ("--data", "new.npz", *QUICK),
    "learn known": ("--data", "known.npz", *QUICK),
    "learn dry": ("--data", "new.npz", "--dry-run", *QUICK),
    "predict": ("--batch", "new.npz", "-q"),
    "predict fisher": ("--batch", "new.npz", "--router", "fisher", "-q"),
    "predict task": ("--batch", "new.npz", "--task", "task1", "-q"),
    "detect": ("--data", "new.npz", "-q"),
    "inspect": ("-q",),
    "prune": ("--task", "task1", "-y", "-q"),
    "export": ("task1.safetensors", "--task", "task1", "-q"),
}


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_opens_the_store_once(
    command: str, world: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(world)
    code, _, err = call(capsys, command.split()[0], *COMMANDS[command], "--store", "store")
    assert code == 0, err
    assert opened == ["looked", "manifest"]


def test_what_another_commit_has_changed_is_read_again(
    world: Path, opened: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Data are read without the lock; a task that is committed meanwhile is one that the new task builds on."""
    from clmoe_cli.api import reading

    look = reading.look

    def meanwhile(source: str, **more: Any) -> Any:
        small.learn_next(world / "store", 3)
        opened.clear()
        return look(source, **more)

    monkeypatch.setattr(reading, "look", meanwhile)
    x, y = bars([1, 8], 60, 7)
    np.savez(world / "other.npz", x=x, y=y)
    code, out, err = call(capsys, "learn", "--data", world / "other.npz", "--store", world / "store", *QUICK, "--json")
    assert code == 0, err
    assert json.loads(out)["task"] == "other"
    assert [t.name for t in Store.open(world / "store").manifest.tasks] == ["task1", "task2", "task3", "other"]
    assert opened[0] == "manifest"


def test_a_store_that_is_not_there_is_looked_for_before_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clmoe_cli.api.reading.look", lambda *args, **more: pytest.fail("read"))
    data = task(tmp_path / "data.npz", 1)
    for command in ("predict", "detect"):
        code, _, err = call(capsys, command, "--data", data, "--store", tmp_path / "none")
        assert (code, "no store" in err) == (4, True), err


def test_what_a_store_expects(world: Path) -> None:
    expected = Opened.at(str(world / "store")).expected
    assert expected.classes == {"task1": (0, 4), "task2": (2, 7)}
    assert expected.backbone is None
    (kind,) = expected.kinds
    assert (kind.shape, kind.input) == ((1, SIDE, SIDE), None)
    gate = Store.open(world / "store").manifest.gates[0]
    assert kind.values is not None
    assert (kind.values.largest, kind.values.lowest) == (gate.input_range, gate.input_lowest)
    assert Opened.at(str(world / "none")).expected == Expected()


def test_what_is_expected_of_one_task_is_its_kind(world: Path) -> None:
    """Kinds are those of the task; labels are compared with those of all."""
    rows = np.random.default_rng(0).normal(size=(80, 5)).astype(np.float32)
    learn(str(world / "store"), Batch(rows, np.arange(80) % 2 + 20, "rows"), small.OPTIONS)
    opened = Opened.at(str(world / "store"))
    assert [k.shape for k in opened.expected.kinds] == [(1, SIDE, SIDE), (5,)]
    assert [k.shape for k in opened.expected_by("task3").kinds] == [(5,)]
    assert opened.expected_by("task3").classes == opened.expected.classes
    assert Kind((5,), None).takes(Raw(False, (5,)))


def refused(capsys: pytest.CaptureFixture[str], *args: object) -> str:
    code, _, err = call(capsys, *args)
    assert code == 2, err
    return err


def test_names_that_the_store_has_not_are_refused_before_data_are_read(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clmoe_cli.api.reading.look", lambda *args, **more: pytest.fail("read"))
    at = ("--data", world / "new.npz", "--store", world / "store")
    assert "unknown task" in refused(capsys, "predict", *at, "--task", "task9")
    assert "unknown expert" in refused(capsys, "learn", *at, "--expert", "e9")
    assert "another seed" in refused(capsys, "learn", *at, "--seed", "5")


def test_pictures_are_decoded_after_it_is_known_what_they_go_through(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transform that does not fit is refused by the first picture's header."""
    place = world / "photos" / "a"
    place.mkdir(parents=True)
    Image.new("RGB", (20, 20)).save(place / "0.png")
    monkeypatch.setattr("clmoe_cli.data.pictures.decode", lambda *args: pytest.fail("decoded"))
    at = ("--data", world / "photos", "--store", world / "store")
    assert "without a backbone" in refused(capsys, "detect", *at, "--features-weights", "none.safetensors")


def spied(monkeypatch: pytest.MonkeyPatch, module: Any, name: str) -> list[Any]:
    """The first argument of every call of a function."""
    real, seen = getattr(module, name), []

    def call(first: Any, *args: Any, **more: Any) -> Any:
        seen.append(first)
        return real(first, *args, **more)

    monkeypatch.setattr(module, name, call)
    return seen


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images were turned from bytes into shares of one, call by call."""
    real, seen = Batch.scaled, []

    def counting(batch: Batch) -> Any:
        found = real(batch)
        if batch.shares is None and batch.images.dtype == np.uint8:
            seen.append(len(found))
        return found

    monkeypatch.setattr(Batch, "scaled", counting)
    return seen


@pytest.mark.parametrize("architecture", ["mlp:8,8", "cnn:4"])
@pytest.mark.parametrize("tasks", [0, 2])
def test_learn_scales_its_pixels_once(architecture: str, tasks: int, tmp_path: Path, scaled: list[int]) -> None:
    """Of whatever kind the data are: onset, placement, training, features and range take from the same numbers."""
    small.build(tmp_path / "store", tasks)
    scaled.clear()
    learn(str(tmp_path / "store"), small.batch(3), replace(small.OPTIONS, arch=architecture))
    assert scaled == [60]


def test_what_is_learned_does_not_depend_on_where_numbers_lie(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaled once in memory, or part by part where memory has no room: the same store."""
    first = small.state(small.build(tmp_path / "whole", 2))
    monkeypatch.setattr(common, "IN_MEMORY", 0)
    assert small.state(small.build(tmp_path / "parts", 2)) == first


@pytest.mark.parametrize("route", ["image", "batch"])
def test_predict_scales_the_images_that_it_decides_once(
    route: str, world: Path, scaled: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each image for the gate's features and for all subnetworks that are asked about it."""
    monkeypatch.setattr(gating, "CHUNK", 25)
    monkeypatch.setattr(ranges, "cautions", lambda *args: ())
    monkeypatch.setattr("clmoe_cli.api.gating.opinion_of", lambda task: 0.5)
    asked = spied(monkeypatch, Compact, "logits")
    predict(str(world / "store"), small.questions(), route=route, batch_size=25 if route == "batch" else None)
    assert len(asked) >= 3
    assert scaled == [25, 25, 10]


def test_routers_and_detect_scale_once_as_well(world: Path, scaled: list[int]) -> None:
    predict(str(world / "store"), small.questions(), router="fisher")
    assert scaled == [60, 60]  # all of it for the subnetworks; a sample for the range of values
    scaled.clear()
    detect(str(world / "store"), small.questions(), evidence="fisher")
    assert scaled == [60, 60]  # the sample that is judged, and that for the range


@pytest.mark.parametrize("kind", ["vectors", "wide vectors", "floats", "bytes"])
def test_the_scale_of_a_new_kind_is_computed_once(kind: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass over the data serves the new expert, the gate of the kind and its record."""
    rng, y = np.random.default_rng(0), np.arange(80) % 2 + 30
    x = {
        "vectors": rng.normal(size=(80, 5)).astype(np.float32),
        "wide vectors": rng.random(size=(80, 140)).astype(np.float32),
        "floats": 40 * rng.random(size=(80, 1, 9, 9)).astype(np.float32),
        "bytes": rng.integers(0, 255, (80, 1, 9, 9), np.uint8),
    }[kind]
    computed, seen = spied(monkeypatch, common, "input_scale"), spied(monkeypatch, gating, "_amounts")
    learn(str(world / "store"), Batch(x, y, kind), small.OPTIONS)
    assert len(computed) == 1
    assert len(seen) == (kind == "wide vectors")
    manifest = Store.open(world / "store").manifest
    expert, gate = manifest.experts[-1], manifest.gates[-1]
    assert expert.input_scale == gate.input_scale == common.input_scale(Batch(x, y, kind))


@pytest.mark.parametrize("images", ["floats", "bytes"])
def test_the_scale_of_a_known_kind_is_the_gates(images: str, world: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More data of it are looked at only to see whether their unit is the same, and for an expert of their own."""
    batch = small.batch(3)
    if images == "floats":
        batch = replace(batch, images=batch.scaled())
    computed = spied(monkeypatch, common, "input_scale")
    learn(str(world / "store"), batch, replace(small.OPTIONS, expert="new"))
    assert len(computed) == 1
    assert len({gate.input_scale for gate in Store.open(world / "store").manifest.gates}) == 1


def test_features_are_a_step_between_training_and_the_commit(tmp_path: Path) -> None:
    """Computed once from the data, and told of by their number; the gate's statistics rest on them."""
    steps: list[Step] = []
    learn(str(tmp_path / "store"), small.batch(1), small.OPTIONS, on_step=steps.append)
    order = list(dict.fromkeys(step.name for step in steps))
    assert order[order.index("calibration") :] == [
        *("calibration", "features", "gate", "held-out answers", "reading the store", "commit"),
    ]
    assert [step.done for step in steps if step.name == "features"] == [0, 60]


def test_the_gate_measures_what_it_was_given_as_features() -> None:
    batch = small.batch(1)
    kind = gating.kind_of(Manifest(generation=0, parent=None, created_at="", seed=0), batch, 1, 1.0)
    found = gating.features_of_data(batch, kind, (0, 4))
    assert len(found.values) == len(found.rows) == 60
    assert torch.equal(found.at(found.rows[7:9]), found.values[7:9])
    assert [(0, 4)[c] for c in found.y.tolist()] == batch.labels.tolist()


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        ("learn", ("--score", "best"), "unknown score"),
        pytest.param("learn", ("--evidence", "best"), "unknown evidence", marks=pytest.mark.campaign),
        pytest.param("learn", ("--if-known", "best"), "unknown value of --if-known", marks=pytest.mark.campaign),
        pytest.param(
            "learn", ("--boundaries", "best", "--segment"), "unknown value of --boundaries", marks=pytest.mark.campaign
        ),
        ("learn", ("--boundaries", "images"), "--boundaries needs --segment"),
        ("predict", ("--router", "best"), "unknown router"),
        pytest.param("predict", ("--route", "best"), "unknown value of --route", marks=pytest.mark.campaign),
        pytest.param("detect", ("--evidence", "best"), "unknown evidence", marks=pytest.mark.campaign),
        ("detect", ("--device", "best"), "unknown device"),
    ],
)
def test_unknown_names_are_refused_without_torch(
    command: str, option: tuple[str, ...], words: str, tmp_path: Path
) -> None:
    """In a process of its own: what is imported stays imported here. The data are no data at all."""
    data = tmp_path / "data.npz"
    data.write_bytes(b"none")
    done = subprocess.run(
        [sys.executable, "-c", PROBE, command, "--data", str(data), *option],
        capture_output=True, text=True, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert words in done.stderr, done.stderr
    assert done.stderr.endswith("heavy:"), done.stderr


def test_functions_refuse_unknown_names_before_they_look_at_the_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Store, "open", lambda path: pytest.fail("opened"))
    monkeypatch.setattr("clmoe_cli.api.segment.boundaries", lambda *args, **more: pytest.fail("looked for boundaries"))
    batch = small.batch(1)
    for options in (
        replace(small.OPTIONS, evidence="best"),
        replace(small.OPTIONS, if_known="best"),
        replace(small.OPTIONS, method=replace(small.OPTIONS.method, score="best")),
    ):
        for act in (learn, plan, learn_stream):
            with pytest.raises(UsageProblem, match="unknown"):
                act("store", batch, options)
    with pytest.raises(UsageProblem, match="unknown router"):
        predict("store", batch, router="best")
    with pytest.raises(UsageProblem, match="unknown evidence"):
        detect("store", batch, evidence="best")


APART = ("torch.distributed", "WORLD_SIZE", "LOCAL_RANK", "collectives.rank", "launched(", "dist.")


def test_what_several_processes_cost_is_in_one_place() -> None:
    """Elsewhere nothing asks which of how many processes it is; how many there are is part of a run's fingerprint."""
    root = Path(common.__file__).parents[1]
    asks = {
        f"{path.relative_to(root)}: {word}"
        for path in root.rglob("*.py")
        if path.parent != root / "runtime" / "distributed"
        for word in (*APART, "collectives.world")
        if re.search(rf"(?<!\w){re.escape(word)}", path.read_text())
    }
    assert asks == {"api/resuming.py: collectives.world"}


def test_a_team_shares_images_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "world", lambda: 3)
    for rank in range(3):
        monkeypatch.setattr(collectives, "rank", lambda rank=rank: rank)
        starts, length = collectives.Team.of(alone=False).starts(70, 10)
        assert (list(starts), length) == (list(range(10 * rank, 70, 30)), 10)
        assert collectives.Team.of(alone=False).starts(6, 10) == (range(2 * rank, 6, 6), 2)
        assert collectives.Team.of(alone=True).starts(25, 10) == (range(0, 25, 10), 10)


def test_other_processes_say_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, said in (("0", "one\n"), ("1", "")):
        monkeypatch.setenv("RANK", rank)
        note("one")
        assert capsys.readouterr().err == said
