"""``learn --refine TASK``: whoever knows which task data are of says so."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shells
import small_store as small

from clmoe_cli.api.learn import learn
from clmoe_cli.api.planning import plan
from clmoe_cli.data import Batch
from store_schema import BadInput, Store, UsageProblem, verify


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small.build(tmp_path / "store", 3)


def more(number: int, contrast: float = 1.0) -> Batch:
    """Enough images of a task to refine it, as bright as before or less."""
    batch = small.batch(number, 120)
    return replace(batch, images=(batch.images * contrast).astype(batch.images.dtype))


def test_the_named_task_is_refined_and_the_others_stay(root: Path) -> None:
    before = small.told(root)
    options = replace(small.OPTIONS, refine="task2")
    planned = plan(str(root), more(2), options)
    assert (planned.status, planned.task, small.told(root)) == ("refined", "task2", before)
    report = learn(str(root), more(2), options)
    assert (report.status, report.task, report.onset.verdict) == ("refined", "task2", "known")
    assert report.onset.reason == "of task2, as asked: nothing was compared"
    now = small.told(root)
    assert {name: now[name] for name in ("task1", "task3")} == {name: before[name] for name in ("task1", "task3")}
    assert Store.open(root).manifest.task("task2").images == 180
    assert verify(root) == []


def test_data_that_look_new_refine_the_task_that_is_named(root: Path) -> None:
    """Images that the onset takes for another task's: the same classes, turned upside down."""
    batch = more(2)
    turned = replace(batch, images=np.ascontiguousarray(batch.images[:, :, ::-1, ::-1].swapaxes(2, 3)))
    assert plan(str(root), turned, small.OPTIONS).onset.verdict == "new"
    assert learn(str(root), turned, replace(small.OPTIONS, refine="task2")).status == "refined"


def test_an_equal_refinement_is_what_if_known_refine_makes(root: Path, tmp_path: Path) -> None:
    other = small.build(tmp_path / "other", 3)
    learn(str(root), more(1), replace(small.OPTIONS, refine="task1"))
    learn(str(other), more(1), replace(small.OPTIONS, if_known="refine"))
    assert Store.open(root).manifest.content_hash() == Store.open(other).manifest.content_hash()


def test_classes_that_the_task_has_not_are_refused(root: Path) -> None:
    with pytest.raises(BadInput, match=r"classes that the task has not.*classes of task task1"):
        learn(str(root), more(2), replace(small.OPTIONS, refine="task1"))


def test_a_task_of_other_inputs_is_refused(root: Path) -> None:
    batch = more(2)
    rows = replace(batch, images=batch.images.reshape(len(batch.images), -1))
    with pytest.raises(UsageProblem, match="the task to refine reads other inputs"):
        learn(str(root), rows, replace(small.OPTIONS, refine="task2"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--refine", "task9"), "unknown task; found 'task9'"),
        (("--refine", "task1", "--name", "birds"), "keeps its name and its expert [--refine]; found --name"),
        (("--refine", "task1", "--expert", "new"), "found --expert"),
        (("--refine", "task1", "--if-known", "new"), "found --if-known new"),
        (("--refine", "task1", "--segment"), "--refine is one task, --segment several"),
    ],
)
def test_flags_that_contradict_each_other(args: tuple[str, ...], message: str, root: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "more.npz", x=more(1).images, y=more(1).labels)
    done = shells.spawn("learn", tmp_path / "more.npz", *args, "--store", root, cwd=tmp_path)
    assert done.returncode == 2
    assert message in done.stderr.decode()


def test_the_command_refines(root: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "more.npz", x=more(1).images, y=more(1).labels)
    done = shells.spawn(
        "learn", tmp_path / "more.npz", "--refine", "task1", *shells.QUICK, "--json", "--store", root, cwd=tmp_path
    )
    assert json.loads(done.stdout)["status"] == "refined"
