"""``inspect --task``: one task by itself, its past, and what held-out images told of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import small_store as small

from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.generations import rename, undo
from clmoe_cli.api.inspect import inspect, inspect_task
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from store_schema import ConfidenceBin, Store, TaskRecord, WrongAnswer, writer

GOLDEN = Path(__file__).parent / "golden"


def confused(root: Path) -> Path:
    """A store of two tasks; an image of the first task's second class was answered 2, and two were answered 0."""
    manifest = Store.open(root).manifest
    first, *rest = manifest.tasks
    wrong = [(1, 2, 1), (1, 0, 2)]
    update = {
        "confusion": tuple(WrongAnswer(position=c, label=label, images=n) for c, label, n in wrong),
        "calibration": (ConfidenceBin(images=4, right=1, confidence=0.5),),
    }
    first = first.model_copy(update={"accuracy": first.accuracy.model_copy(update=update)})
    with writer(root, seed=0) as locked:
        locked.commit(manifest.model_copy(update={"tasks": (first, *rest)}))
    return root


def kept(root: Path, name: str = "task1") -> list[tuple[int, int | str | None, int]]:
    found = Store.open(root).manifest.task(name).accuracy.confusion
    assert found is not None
    return [(wrong.position, wrong.label, wrong.images) for wrong in found]


def test_a_task_by_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = confused(small.build(tmp_path / "s", 2))
    rename(str(root), "task1", "birds")
    report = inspect_task(str(root), "birds")
    assert [(c.action, c.images) for c in report.history] == [("learn", 60), ("rename", None)]
    assert report.task == inspect(str(root)).tasks[0]
    assert [(w.label, w.answered, w.images) for w in report.task.confusion or ()] == [(4, 2, 1), (4, 0, 2)]
    for args in (["birds"], ["--task", "birds"]):
        assert run(app, ["inspect", *args, "--store", str(root)]) == 0
        shown = capsys.readouterr().out
        assert "with 60 images" in shown
        assert "renamed" in shown
        row = next(line for line in shown.splitlines() if line.startswith("4 "))
        assert row.rstrip().endswith("0 (2), 2 (1)")
        assert "50.00 %       4  25.00 %" in shown
    assert run(app, ["inspect", "birds", "--json", "--store", str(root)]) == 0
    assert json.loads(capsys.readouterr().out)["task"]["calibration"] == [{"images": 4, "right": 1, "confidence": 0.5}]


def test_a_label_of_a_task_that_is_gone_is_not_kept(tmp_path: Path) -> None:
    root = confused(small.build(tmp_path / "s", 2))
    copy(str(root), str(tmp_path / "part"), CopyOptions(tasks=("task1",)))
    copy(str(root), str(tmp_path / "whole"))
    prune(str(root), PruneOptions(task="task2"), lambda plan: True)
    assert kept(root) == kept(tmp_path / "part") == [(1, None, 1), (1, 0, 2)]
    assert kept(tmp_path / "whole") == [(1, 2, 1), (1, 0, 2)]
    undo(str(root))
    assert kept(root) == [(1, 2, 1), (1, 0, 2)]


def test_wrong_answers_that_are_forgotten_are_counted_together(tmp_path: Path) -> None:
    task = Store.open(confused(small.build(tmp_path / "s", 2))).manifest.task("task1").forgetting(["0", 4])
    assert [(w.label, w.images) for w in task.accuracy.confusion or ()] == [(None, 3)]
    fields = task.model_dump()
    fields["accuracy"]["confusion"][0]["position"] = 2
    with pytest.raises(ValueError, match="a class that the task does not have"):
        TaskRecord.model_validate(fields)


@pytest.mark.parametrize("name", ["format1", "format3", "format4"])
def test_of_an_older_store_it_says_what_was_not_kept(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(GOLDEN / name / "store", tmp_path / "s")
    assert run(app, ["inspect", "task2", "--store", str(root)]) == 0
    assert "confusion and calibration: not kept" in " ".join(capsys.readouterr().out.split())


def test_what_is_of_the_whole_store_goes_with_no_task(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = str(small.build(tmp_path / "s", 1))
    assert run(app, ["inspect", "task1", "--verify", "--store", root]) == 2
    assert "leave out --verify" in capsys.readouterr().err
    assert run(app, ["inspect", root]) == 2
    assert f"--store {root}" in capsys.readouterr().err
    assert run(app, ["inspect", "tsk1", "--store", root]) == 2
    assert "did you mean 'task1'?" in capsys.readouterr().err
