"""``log``, ``undo``, ``checkout`` and ``rename``: a store goes back and forth, and no answer changes by a bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shells

import clmoe
from clmoe_cli.api.generations import log, rename, undo
from store_schema import Store

QUICK: dict[str, Any] = {"arch": "mlp:16", "epochs": 2, "expert": "e1"}


def clusters(first: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(first)
    y = np.repeat(np.arange(first, first + 2), 80)
    return rng.normal(size=(160, 12)) + 6 * np.eye(12)[y], y


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks in one expert, of which the second was compared with the first."""
    folder = tmp_path_factory.mktemp("generations")
    for first in (0, 2):
        x, y = clusters(first)
        np.savez(folder / f"from{first}.npz", x=x, y=y)
        how = QUICK if first else {**QUICK, "expert": None}
        clmoe.Store(folder / "store").learn(folder / f"from{first}.npz", name=f"t{first}", **how)
    return folder / "store"


@pytest.fixture
def store(learned: Path, tmp_path: Path) -> str:
    shutil.copytree(learned, tmp_path / "store")
    return str(tmp_path / "store")


def answers(store: str, task: str | None = None) -> tuple[list[Any], bytes, bytes]:
    x = np.concatenate([clusters(0)[0], clusters(2)[0]])
    found = clmoe.Store(store).predict(x, task=task)
    return found.label.tolist(), found.confidence.tobytes(), found.p_value.tobytes()


def content(store: str) -> str:
    return Store.open(store).manifest.content_hash()


def test_the_log_says_what_was_done_when_and_of_what(store: str) -> None:
    found = log(store)
    assert [(d.generation, d.action, d.task, d.images, d.source) for d in found.commits] == [
        (1, "learn", "t0", 160, "from0.npz"),
        (2, "learn", "t2", 160, "from2.npz"),
    ]
    assert [d.there for d in found.commits] == [True, True]
    assert all(d.at is not None and d.at.startswith("20") for d in found.commits)


def test_an_undo_goes_back_and_a_second_one_forth(store: str) -> None:
    whole, before = answers(store), content(store)
    planned = undo(store, dry_run=True)
    assert (planned.applied, planned.removed, content(store)) == (False, ("t2",), before)
    report = undo(store)
    assert (report.applied, report.generation, report.restored, report.removed) == (True, 3, 1, ("t2",))
    assert [task.name for task in clmoe.Store(store).tasks] == ["t0"]
    assert clmoe.inspect(store, check=True).verified
    assert undo(store).returned == ("t2",)
    assert content(store) == before
    assert answers(store) == whole
    assert clmoe.inspect(store, check=True).verified


def test_the_first_task_can_be_taken_back_and_learned_again(tmp_path: Path) -> None:
    store, (x, y) = clmoe.Store(tmp_path / "store"), clusters(0)
    store.learn(x, y, arch="mlp:16", epochs=2)
    first = content(store.path)
    assert undo(store.path).removed == ("task1",)
    assert store.tasks == ()
    store.learn(x, y, arch="mlp:16", epochs=2)
    assert content(store.path) == first


def test_a_prune_can_be_taken_back_unless_older_generations_went(store: str) -> None:
    whole = answers(store)
    clmoe.Store(store).prune("t0")
    assert undo(store).returned == ("t0",)
    assert answers(store) == whole
    clmoe.Store(store).prune("t0", gc=True)
    with pytest.raises(clmoe.UsageProblem, match="nothing to undo: no older generation is kept"):
        undo(store)


def test_a_repair_does_not_go_back_behind_an_undo(store: str) -> None:
    undo(store)
    newest = Store.open(store).manifest
    weights = newest.experts[0].weights
    assert weights is not None
    path = Path(store) / "objects" / weights.sha256[:2] / f"{weights.sha256}.{weights.suffix}"
    path.write_bytes(b"damaged")
    with pytest.raises(clmoe.StoreDamaged, match="no generation is whole"):
        clmoe.inspect(store, mend=True)


def test_only_generations_that_are_there_can_be_checked_out(store: str) -> None:
    undo(store, 1)
    for number in (0, 1, 9):
        with pytest.raises(clmoe.UsageProblem, match=f"is there; found {number}; expected generation 2"):
            undo(store, number)
    with pytest.raises(clmoe.UsageProblem, match="the store is at that generation; found 3"):
        undo(store, 3)


def test_a_changed_manifest_is_not_gone_back_to(store: str) -> None:
    path = Path(store) / "manifests" / "1.json"
    path.write_bytes(path.read_bytes().replace(b'"t0"', b'"x0"'))
    before = content(store)
    with pytest.raises(clmoe.StoreDamaged, match="damaged file"):
        undo(store)
    assert content(store) == before


@pytest.mark.parametrize("old", ["t0", "t2"])
def test_a_renamed_task_answers_as_before(old: str, store: str) -> None:
    whole, alone = answers(store), answers(store, old)
    digests = {t.number: t.subnetwork_sha256 for t in Store.open(store).manifest.tasks}
    rename(store, old, "birds & co")
    assert answers(store) == whole
    assert answers(store, "birds & co") == alone
    manifest = Store.open(store).manifest
    assert {t.number: t.subnetwork_sha256 for t in manifest.tasks} == digests
    names = {t.name for t in manifest.tasks}
    assert "birds & co" in names
    assert all(m.task in names for t in manifest.tasks for m in t.measured or ())
    assert clmoe.inspect(store, check=True).verified
    assert [(d.action, d.task, d.source) for d in log(store).commits][-1] == ("rename", "birds & co", old)
    clmoe.Store(store).prune("birds & co")
    assert clmoe.inspect(store, check=True).verified
    undo(store)
    assert answers(store) == whole


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nobody", "x", "unknown task; found 'nobody'"),
        ("t0", "t2", "a task of that name exists"),
        ("t0", "", "not a name for a task"),
        ("t0", "a\nb", "not a name for a task"),
    ],
)
def test_names_that_mean_nothing_are_refused(old: str, new: str, message: str, store: str) -> None:
    before = content(store)
    with pytest.raises(clmoe.UsageProblem, match=message):
        rename(store, old, new)
    assert content(store) == before


def test_the_commands_say_what_they_did(store: str, tmp_path: Path) -> None:
    def said(*args: str) -> str:
        done = shells.spawn(*args, "--store", store, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return done.stdout.decode()

    assert "nothing was changed; it would go back to generation 1" in said("undo", "--dry-run")
    assert "gone:  t2" in said("undo")
    assert json.loads(said("checkout", "2", "--json"))["returned"] == ["t2"]
    assert said("rename", "t2", "birds") == "t2 is now birds\n"
    listed = said("log").splitlines()
    assert listed[0].split() == ["generation", "what", "task", "images", "from", "when", "can", "go", "back"]
    assert listed[-1].split()[:4] == ["5", "rename", "birds", "was"]
    missing = shells.spawn("undo", "--store", str(tmp_path / "nowhere"), cwd=tmp_path)
    assert missing.returncode == 4
    assert not (tmp_path / "nowhere").exists()
