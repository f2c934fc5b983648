"""What a task is called without ``--name``: after its file or folder, where that says something."""

from __future__ import annotations

import unicodedata
from dataclasses import replace
from pathlib import Path

import pytest
import small_store as small

from clmoe_cli.api.names import new_task, suggested
from clmoe_cli.api.planning import plan
from clmoe_cli.api.segment import learn_stream

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
    assert [suggested(name) for name in ("../photos", "-", "the inputs", "gone.npz")] == [None] * 4


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
