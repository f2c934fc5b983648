"""What a task is called without ``--name``: after its file or folder, where that says something."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import shells
import small_store as small

from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.generations import rename
from clmoe_cli.api.names import new_task, suggested
from clmoe_cli.api.planning import plan
from clmoe_cli.api.segment import learn_stream
from store_schema import UsageProblem

SAYING = {
    "birds.npz": "birds",
    "birds.train.npz": "birds",
    "task7.npz": "task7",
    "mnist-2.csv": "mnist-2",
    "two words.npz": "two words",
    "鳥.npz": "鳥",
    unicodedata.normalize("NFD", "vögel.npz"): "vögel",
}
NOTHING = (
    "task.npz",
    "train.npz",
    "3.npz",
    "data.csv",
    "x.npz",
    "train_images.npz",
    "-birds.npz",
    ".birds",
    f"{'b' * 61}.npz",
)


@pytest.mark.parametrize("name", [*SAYING, *NOTHING])
def test_files(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    assert suggested(str(tmp_path / name)) == SAYING.get(name)


def test_folders_pipes_and_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "v1.2 cats").mkdir()
    (tmp_path / "photos").mkdir()
    monkeypatch.chdir(tmp_path / "v1.2 cats")
    assert suggested(".") == "v1.2 cats"
    assert [suggested(name) for name in ("../photos", "-", "", "the inputs", "gone.npz")] == [None] * 5


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    source = tmp_path / "birds.npz"
    source.touch()
    assert new_task(None, 3, ["birds", "birds-2", "task3"], str(source)) == "birds-3"
    assert new_task("own", 3, [], str(source)) == "own"
    assert new_task(None, 3, ["task3"], "the inputs") == "task3b"


def test_learn_names_by_the_file_and_a_stream_by_numbers(tmp_path: Path) -> None:
    source, store = tmp_path / "birds.npz", str(small.build(tmp_path / "s", 2))
    source.touch()
    batch = replace(small.batch(3, 300), source=str(source))
    assert plan(store, batch, small.OPTIONS).task == "birds"
    assert plan(store, batch, replace(small.OPTIONS, name="own")).task == "own"
    assert [part.task for part in learn_stream(store, batch, small.OPTIONS, dry_run=True).segments] == ["task3"]


@pytest.mark.parametrize("name", ["-birds", "--gc", "-"])
def test_no_new_task_has_the_name_of_an_option(name: str, tmp_path: Path) -> None:
    store = small.build(tmp_path / "s", 2)
    before = shells.contents(tmp_path)
    words = rf"not a name for a task.*; found '{name}'; expected 1 to 200 printable characters, and no hyphen first"
    with pytest.raises(UsageProblem, match=words):
        plan(str(store), small.batch(3), replace(small.OPTIONS, name=name))
    with pytest.raises(UsageProblem, match=words):
        learn_stream(str(store), small.batch(3), replace(small.OPTIONS, name=name))
    with pytest.raises(UsageProblem, match=words):
        rename(str(store), "task1", name)
    with pytest.raises(UsageProblem, match=words):
        copy(str(store), str(tmp_path / "new"), CopyOptions(names={"task1": name}))
    assert shells.contents(tmp_path) == before


def test_a_task_of_before_keeps_the_name_of_an_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = small.build(tmp_path / "s", 2)
    with monkeypatch.context() as patch:  # as before such names were refused
        patch.setattr("clmoe_cli.api.generations.check_name", lambda name: None)
        rename(str(store), "task1", "-gc")
    for words in (["prune", "--task", "-gc"], ["prune", "--", "-gc"], ["copy", "s", "new", "--task", "-gc"]):
        own = [] if words[0] == "copy" else ["--store", "s"]
        done = shells.spawn(words[0], *own, "--dry-run", *words[1:], cwd=tmp_path, light=True)
        assert done.returncode == 0, done.stderr
        assert b" -gc" in done.stdout
    assert shells.spawn("rename", "--store", "s", "--", "-gc", "gc", cwd=tmp_path, light=True).returncode == 0
