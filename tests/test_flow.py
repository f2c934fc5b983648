"""How a command goes: the store is opened once, what it expects is known before data are read, work is done once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_store as small
from pictures import SIDE, bars
from PIL import Image

from clmoe_cli.api.inputs import Expected, Kind
from clmoe_cli.api.opened import Opened
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Raw
from store_schema import Store, store

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
    from clmoe_cli.cli import reading

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
    assert json.loads(out)["task"] == "task4"
    assert [t.name for t in Store.open(world / "store").manifest.tasks] == ["task1", "task2", "task3", "task4"]
    assert opened[0] == "manifest"


def test_a_store_that_is_not_there_is_looked_for_before_data_are_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clmoe_cli.cli.reading.look", lambda *args, **more: pytest.fail("read"))
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
    from clmoe_cli.api.learn import learn
    from clmoe_cli.data import Batch

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
    monkeypatch.setattr("clmoe_cli.cli.reading.look", lambda *args, **more: pytest.fail("read"))
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
