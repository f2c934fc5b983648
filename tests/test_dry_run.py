"""``--dry-run``: what would be done, and not a byte or a time of a file that is another afterwards."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shells
import small_store as small

from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from store_schema import Store, StoreDamaged, StoreMissing, layout, repair, would_repair

Call = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shells.folder(tmp_path_factory.mktemp("dry"))


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(root, tmp_path / "here"))
    return tmp_path / "here"


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Call:
    def invoke(*args: object, code: int = 0) -> dict[str, Any]:
        assert run(app, [*map(str, args), "--json", "-q"]) == code
        out, err = capfd.readouterr()
        found: dict[str, Any] = json.loads(err if code else out)
        return found

    return invoke


def dry(call: Call, here: Path, *args: object, code: int = 0) -> dict[str, Any]:
    before = shells.contents(here)
    found = call(*args, "--dry-run", code=code)
    assert shells.contents(here) == before
    if not code:
        assert found["dry_run"] is True
    return found


LEARN = ("learn", "--store", "store", *shells.QUICK)


@pytest.mark.parametrize(
    "args",
    [
        ("--data", "3.npz"),
        pytest.param(("--data", "3.npz", "--name", "bars"), marks=pytest.mark.campaign),
        pytest.param(("--data", "3.npz", "--expert", "new"), marks=pytest.mark.campaign),
        pytest.param(("--data", "3.npz", "--expert", "e1"), marks=pytest.mark.campaign),
        ("--data", "3.npz", "--arch", "mlp:9,9"),
        ("--data", "1.npz"),
        ("--data", "more.npz", "--if-known", "refine"),
        pytest.param(("--data", "1.npz", "--if-known", "new"), marks=pytest.mark.campaign),
        ("--data", "3.npz", "--store", "nowhere", "--seed", "7"),
    ],
    ids=lambda args: " ".join(args),
)
def test_a_learn_does_what_its_dry_run_says(args: tuple[str, ...], here: Path, call: Call) -> None:
    plan = dry(call, here, *LEARN, *args)
    assert not (here / "nowhere").exists()
    done = call(*LEARN, *args)
    same = ("task", "expert", "status", "new_expert", "classes", "onset", "reads", "reason", "seed", "candidates")
    assert {key: plan[key] for key in same} == {key: done[key] for key in same}
    assert (done["dry_run"], done["plan"]) == (False, None)
    if plan["status"] != "refined":  # more data may come with more of its own
        assert plan["owned_parameters"] == done["owned_parameters"]
    if plan["status"] == "known":
        assert plan["plan"] is None
        assert plan["layers"] == done["layers"]
        return
    assert [layer["name"] for layer in plan["plan"]] == [layer["name"] for layer in done["layers"]]
    for before, after in zip(plan["plan"], done["layers"], strict=True):
        assert before["parameters"] == after["parameters"]
        assert after["reused"] <= before["read"]
        assert after["selected"] - after["reused"] <= before["free"]
        if plan["new_expert"]:
            assert (before["read"], before["free"]) == (0, before["parameters"])
    if plan["status"] == "learned":
        assert plan["layers"] == []
        assert plan["accuracy"] == {
            **dict.fromkeys(("answer", "within", "subnetwork", "dense", "guessing")),
            "held_out": 0,
        }


def test_a_plan_counts_weights(here: Path, call: Call) -> None:
    opened = Store.open("store")
    bits = [opened.read_subnetwork(task.name).masks for task in opened.manifest.tasks]
    plan = dry(call, here, *LEARN, "--data", "3.npz", "--expert", "e1")
    readable = [bits[int(name.removeprefix("task")) - 1] for name in plan["reads"]]
    for layer in plan["plan"]:
        used = np.any([mask[layer["name"]] for mask in bits], axis=0)
        assert layer["free"] == (~used).sum() > 0
        assert layer["read"] == (np.any([mask[layer["name"]] for mask in readable], axis=0).sum() if readable else 0)
    again = dry(call, here, *LEARN, "--data", "more.npz", "--if-known", "refine")
    assert (again["status"], again["task"]) == ("refined", "task1")
    for layer in again["plan"]:
        own, other = (mask[layer["name"]] for mask in bits)
        assert (layer["read"], layer["free"]) == ((own & other).sum(), (~other).sum())


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("--data", "nothing.npz"), 3),
        (("--data", "3.npz", "--expert", "e9"), 2),
        (("--data", "3.npz", "--name", "task1"), 2),
        (("--data", "3.npz", "--seed", "9"), 2),
        (("--data", "huge.npz"), 3),
        (("--data", "1.npz", "--if-known", "refine"), 3),
        (("--data", "3.npz", "--store", "full"), 4),
        (("--data", "3.npz", "--store", "3.npz"), 6),
        (("--data", "3.npz", "--store", "damaged"), 4),
    ],
    ids=str,
)
def test_a_dry_run_of_learn_fails_as_learn_would(args: tuple[str, ...], code: int, here: Path, call: Call) -> None:
    part = small.batch(3)
    assert part.labels is not None
    x = part.images.astype(np.float32) / 255
    x[0, 0, 0, 0] = 1e9
    np.savez(here / "huge.npz", x=x, y=part.labels)
    (here / "full").mkdir()
    (here / "full" / "letter").write_text("dear")
    shutil.copytree(here / "store", here / "damaged")
    (here / "damaged" / "HEAD").write_text("{}")
    plan = dry(call, here, *LEARN, *args, code=code)
    done = call(*LEARN, *args, code=code)
    assert plan == done


def test_a_dry_run_waits_for_no_lock_and_leaves_an_empty_store_alone(here: Path, call: Call) -> None:
    import fcntl

    with (here / "store" / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert dry(call, here, *LEARN, "--data", "3.npz", "--lock-timeout", "0")["task"] == "task3"
        assert dry(call, here, "prune", "--store", "store", "--task", "task1", "--lock-timeout", "0")["removed"]
    assert call(*LEARN, "--data", "nothing.npz", "--store", "empty", code=3)
    bad = [*LEARN, "--data", "3.npz", "--store", "empty", "--name", "n" * 201]
    assert call(*bad, code=2)
    assert dry(call, here, *LEARN, "--data", "3.npz", "--store", "empty")["new_expert"] is True


@pytest.mark.campaign
def test_a_stream_is_cut_and_nothing_of_it_learned(here: Path, call: Call) -> None:
    parts = [small.batch(number, 600) for number in (3, 1, 2)]
    x = np.concatenate([part.images for part in parts])
    np.savez(here / "stream.npz", x=x, y=np.concatenate([np.asarray(part.labels) for part in parts]))
    before = shells.contents(here)
    args = (*LEARN, "--data", "stream.npz", "--segment")
    plan = call(*args, "--store", "empty", "--dry-run")
    assert shells.contents(here) == before
    found = [(s["start"], s["stop"], s["task"], s["status"], s["dry_run"]) for s in plan["segments"]]
    names = ["task1", "task2", "task3"]
    assert [row[2:] for row in found] == [(name, "learned", True) for name in names]
    assert [row[:2] for row in found] == [(0, 600), (600, 1200), (1200, 1800)]
    assert [s["expert"] for s in plan["segments"]] == ["e1", "e2", "e3"]
    done = call(*args, "--store", "empty")
    assert [(s["start"], s["stop"], s["task"]) for s in done["segments"]] == [row[:3] for row in found]


def test_prune(here: Path, call: Call) -> None:
    for what in (["--task", "task1"], ["--expert", "e1"], ["--to-frozen", "1"], ["--gc"], ["--task", "task1", "--yes"]):
        plan = dry(call, here, "prune", "--store", "store", *what)
        assert plan["applied"] is False
        assert plan["freed_bytes"] == 0
    plan = dry(call, here, "prune", "--store", "store", "--task", "task1")
    done = call("prune", "--store", "store", "--task", "task1", "--yes")
    changed = {"applied", "freed_bytes", "dry_run"}
    assert {k: v for k, v in plan.items() if k not in changed} == {k: v for k, v in done.items() if k not in changed}
    assert done["applied"] is True
    for args, code in ((["--task", "task9"], 2), ([], 2), (["--gc", "--store", "nowhere"], 4)):
        dry(call, here, "prune", "--store", "store", *args, code=code)
    assert not (here / "nowhere").exists()


def test_prune_asks_nobody(here: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def asked(*args: object, **kwargs: object) -> bool:
        raise AssertionError("it was asked")

    monkeypatch.setattr("typer.confirm", asked)
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert run(app, ["prune", "--store", "store", "--task", "task1", "--dry-run"]) == 0
    out, err = capfd.readouterr()
    assert out.startswith("would remove task1: ")
    assert err == ""


def test_tasks(here: Path, call: Call, capfd: pytest.CaptureFixture[str]) -> None:
    args = ("tasks", "mnist5k", "digits", "--classes", "1,5", "--classes", "2,6")
    plan = dry(call, here, *args)
    done = call(*args)
    assert plan["files"] == done["files"]
    assert all(Path(file["path"]).exists() for file in done["files"])
    assert done["dry_run"] is False
    before = shells.contents(here)
    assert run(app, [*args, "--dry-run"]) == 0
    assert capfd.readouterr().out.startswith("nothing was written; this would be:\n")
    assert shells.contents(here) == before


def newest_object(store: Path) -> Path:
    opened = Store.open(store)
    ref = opened.manifest.task("task2").subnetwork
    return layout.object_path(store, ref.sha256, ref.suffix)


@pytest.mark.parametrize("damage", ["none", "an object", "HEAD", "FORMAT", "everything"])
@pytest.mark.parametrize("verify", [(), ("--verify",)])
def test_repair(damage: str, verify: tuple[str, ...], here: Path, call: Call) -> None:
    store = here / "store"
    if damage in ("an object", "everything"):
        newest_object(store).write_bytes(b"gone")
    if damage == "HEAD":
        (store / "HEAD").write_text("{}")
    if damage == "FORMAT":
        (store / "FORMAT").unlink()
    if damage == "everything":
        for path in store.glob("manifests/*"):
            path.write_text("{}")
    args = ("inspect", "--store", "store", "--repair", *verify)
    code = 4 if damage == "everything" else 0
    plan = dry(call, here, *args, code=code)
    done = call(*args, code=code)
    if code:
        assert plan == done
        return
    assert bool(plan["repaired"]["found"]) is (damage != "none")
    assert plan["repaired"]["lost"] == (["task2"] if damage == "an object" else [])
    assert {**plan, "dry_run": False} == done
    assert plan["verified"] is (True if verify else None)


def test_what_would_be_repaired_is_said_and_left(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    newest_object(here / "store").write_bytes(b"gone")
    assert run(app, ["inspect", "--store", "store", "--repair", "--dry-run"]) == 0
    assert "would go back to generation 1; lost: task2" in capfd.readouterr().err
    found, whole = would_repair("store")
    assert [task.name for task in whole.manifest.tasks] == ["task1"]
    with pytest.raises(StoreDamaged):
        Store.open("store").read_subnetwork("task2")
    assert repair("store") == found
    assert Store.open("store").head == whole.head
    with pytest.raises(StoreMissing):
        would_repair("nowhere")
