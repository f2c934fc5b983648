"""``prune`` of several tasks and of unfinished learns; a prompt that holds no lock."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import shells
import small_store as small

import clmoe
from clmoe_cli.api import resuming
from clmoe_cli.api.generations import log, rename, undo
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.prune import PruneOptions, prune, would_prune
from clmoe_cli.api.reports import RemovalReport
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Epoch, Schedule
from store_schema import DiskProblem, Interrupted, Store, UsageProblem, Writer, verify, writer


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small.build(tmp_path / "store", 3)


def names(root: Path) -> list[str]:
    return [task.name for task in Store.open(root).manifest.tasks]


def interrupted(root: Path, name: str = "birds") -> None:
    """Leaves a learn of the third task that was stopped in its second epoch."""

    def stop(epoch: Epoch) -> None:
        if epoch.epoch > 1:
            raise KeyboardInterrupt

    options = LearnOptions(name=name, arch="mlp:8,8", method=Options(Schedule(epochs=3)))
    with pytest.raises(Interrupted):
        learn(str(root), small.batch(3), options, on_epoch=stop)


def test_several_tasks_go_in_one_commit_and_come_back_together(root: Path) -> None:
    before, content = small.told(root), Store.open(root).manifest.content_hash()
    generation = Store.open(root).manifest.generation
    report = prune(str(root), PruneOptions(["task3", "task1", "task3"]), lambda plan: True)
    assert report.removed == ("task3", "task1")
    assert Store.open(root).manifest.generation == generation + 1
    assert small.told(root) == {"task2": before["task2"]}
    assert clmoe.inspect(str(root), check=True).verified
    assert undo(str(root)).returned == ("task1", "task3")
    assert Store.open(root).manifest.content_hash() == content


def test_several_are_the_same_as_one_after_the_other(root: Path, tmp_path: Path) -> None:
    other = shutil.copytree(root, tmp_path / "other")
    prune(str(root), PruneOptions(["task1", "task3"]), lambda plan: True)
    for name in ("task3", "task1"):
        prune(str(other), PruneOptions(name), lambda plan: True)
    assert Store.open(root).manifest.content_hash() == Store.open(other).manifest.content_hash()


def test_one_unknown_task_of_several_leaves_all(root: Path) -> None:
    with pytest.raises(UsageProblem, match=r"unknown task; found 'tusk2'.*did you mean 'task2'"):
        prune(str(root), PruneOptions(["task1", "tusk2"]), lambda plan: True)
    assert names(root) == ["task1", "task2", "task3"]


def test_the_command_takes_arguments_and_options(root: Path, tmp_path: Path) -> None:
    done = shells.spawn("prune", "task1", "--task", "task2", "--yes", "--json", "--store", root, cwd=tmp_path)
    assert json.loads(done.stdout)["removed"] == ["task1", "task2"]
    assert names(root) == ["task3"]
    for value in ('["task3"]', '"task3"'):
        (tmp_path / "clmoe.toml").write_text(f"[prune]\ntask = {value}\n")
        planned = shells.spawn("prune", "--dry-run", "--json", "--store", root, cwd=tmp_path)
        assert json.loads(planned.stdout)["removed"] == ["task3"]


def test_nobody_waits_for_somebody_who_thinks(root: Path) -> None:
    """A question holds no lock; what goes is what was agreed to, whatever was learned meanwhile."""
    asked: list[RemovalReport] = []
    told: list[str] = []

    def think(plan: RemovalReport) -> bool:
        asked.append(plan)
        with writer(root, timeout=0.0):
            pass
        rename(str(root), "task3", "birds", lock_timeout=0.0)
        return True

    report = prune(str(root), PruneOptions("task2"), think, on_change=lambda: told.append("changed"))
    assert (len(asked), told) == (1, ["changed"])
    assert report.removed == ("task2",)
    assert names(root) == ["task1", "birds"]
    assert clmoe.inspect(str(root), check=True).verified


def test_other_tasks_than_were_agreed_to_are_asked_about_again(root: Path) -> None:
    asked: list[RemovalReport] = []

    def think(plan: RemovalReport) -> bool:
        asked.append(plan)
        if len(asked) == 1:
            rename(str(root), "task3", "birds", lock_timeout=0.0)
        return True

    expert = Store.open(root).manifest.task("task3").expert
    report = prune(str(root), PruneOptions(expert=expert), think)
    assert [set(plan.removed) - {"task1", "task2"} for plan in asked] == [{"task3"}, {"birds"}]
    assert "birds" in report.removed
    assert report.removed_experts == (expert,)


def test_a_task_that_another_process_took_away_is_unknown(root: Path) -> None:
    def think(plan: RemovalReport) -> bool:
        prune(str(root), PruneOptions("task2", lock_timeout=0.0), lambda plan: True)
        return True

    with pytest.raises(UsageProblem, match="unknown task; found 'task2'"):
        prune(str(root), PruneOptions("task2"), think)
    assert names(root) == ["task1", "task3"]


def test_the_prompt_of_a_terminal_holds_no_lock(root: Path) -> None:
    """A real process that waits for an answer, and another one that commits meanwhile."""
    main, side = pty.openpty()
    command = [sys.executable, "-m", "clmoe_cli", "prune", "task2", "--store", str(root)]
    asking = subprocess.Popen(command, stdin=side, stderr=side, stdout=subprocess.DEVNULL, env=shells.clean())
    os.close(side)
    said = b""
    while b"Go on?" not in said:
        said += os.read(main, 1000)
    done = shells.spawn("rename", "task3", "birds", "--lock-timeout", "0", "--store", root, cwd=root.parent)
    assert done.returncode == 0, done.stderr
    os.write(main, b"y\n")
    assert asking.wait(60) == 0
    said += os.read(main, 1000)
    os.close(main)
    assert b"the store has changed meanwhile: planned again" in said
    assert names(root) == ["task1", "birds"]


def test_what_fails_after_the_removal_says_that_it_is_in_place(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = iter([10])

    def counted(locked: Writer) -> int:
        try:
            return next(sizes)
        except StopIteration:
            raise DiskProblem("input/output error", where="objects") from None

    monkeypatch.setattr(Writer, "bytes_on_disk", counted)
    with pytest.raises(DiskProblem, match="is gone, and that is in place"):
        prune(str(root), PruneOptions(task="task2"), lambda plan: True)
    assert len(names(root)) == 2
    assert "task2" not in names(root)
    assert verify(root) == []


def test_an_unfinished_learn_is_listed_and_can_be_discarded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    root = small.build(tmp_path / "store", 2)
    interrupted(root)
    (left,) = log(str(root)).unfinished
    assert (left.task, left.reached, left.resumable) == ("birds", "epoch 1 of phase train", True)
    assert clmoe.inspect(str(root)).unfinished == (left,)
    before = small.state(root)
    with pytest.raises(UsageProblem, match=r"unknown unfinished task; found 'bird'.*did you mean 'birds'"):
        would_prune(str(root), PruneOptions(unfinished="bird"))
    plan = would_prune(str(root), PruneOptions(unfinished="birds"))
    assert (plan.applied, plan.unfinished, len(log(str(root)).unfinished)) == (False, ("birds",), 1)
    undo(str(root))
    assert not log(str(root)).unfinished[0].resumable
    undo(str(root))
    report = prune(str(root), PruneOptions(unfinished="birds"), lambda plan: True)
    assert (report.applied, report.freed_bytes) == (True, left.bytes)
    assert log(str(root)).unfinished == ()
    assert list((root / "checkpoints").iterdir()) == []
    assert small.state(root) == before
    assert verify(root) == []


def test_a_first_learn_that_was_interrupted_is_listed_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    interrupted(tmp_path / "store", "first")

    def said(*args: str) -> str:
        return shells.spawn(*args, "--store", tmp_path / "store", cwd=tmp_path).stdout.decode()

    for command in (("inspect",), ("inspect", "--verify"), ("prune", "--gc", "--yes")):
        told = shells.spawn(*command, "--store", tmp_path / "store", cwd=tmp_path)
        assert told.returncode == 4
        assert b"the store is empty" in told.stderr
        assert b"a learn has begun: the same command goes on with it" in told.stderr
    listed = " ".join(said("log").split())
    assert listed.startswith("nothing was committed yet unfinished: learn of first, reached epoch 1 of phase train")
    assert listed.endswith("the same command goes on from there")
    gone = said("prune", "--unfinished", "first", "--yes")
    assert gone.startswith("removed what the unfinished learn of first had reached: ")
    assert said("log") == "nothing was committed yet\n"
    assert not said("prune", "--unfinished", "first", "--yes")


def test_a_damaged_checkpoint_is_no_unfinished_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    root = small.build(tmp_path / "store", 2)
    interrupted(root)
    (path,) = (root / "checkpoints").glob("*/*")
    whole = path.read_bytes()
    for data in (b"", whole[:40], b"\xff" * 64, whole[:-1], whole.replace(b"number", b"nimber")):
        path.write_bytes(data)
        assert log(str(root)).unfinished == ()
    path.unlink()
    path.symlink_to(root / "HEAD")
    assert log(str(root)).unfinished == ()


def test_a_learn_that_runs_is_not_discarded(tmp_path: Path) -> None:
    """It holds the lock, so that whoever would discard it waits."""
    root = small.build(tmp_path / "store", 2)
    file = tmp_path / "3.npz"
    np.savez(file, x=small.batch(3).images, y=small.batch(3).labels)
    args = ["learn", str(file), "--arch", "mlp:8,8", "--epochs", "400", "--name", "long", "--store", str(root)]
    running = subprocess.Popen(
        [sys.executable, "-m", "clmoe_cli", *args],
        env=shells.clean(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until = time.monotonic() + 60
        while not log(str(root)).unfinished:
            assert running.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        done = shells.spawn(
            "prune", "--unfinished", "long", "--yes", "--lock-timeout", "0", "--store", root, cwd=tmp_path
        )
        assert b"locked by another writer" in done.stderr
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert [each.task for each in log(str(root)).unfinished] == ["long"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (PruneOptions(task=()), "one thing"),
        (PruneOptions(task=("task1",), unfinished="task1"), "2 of them"),
        (PruneOptions(unfinished="task1", gc=True), "no older generations"),
    ],
)
def test_what_means_nothing_is_refused(root: Path, options: PruneOptions, message: str) -> None:
    with pytest.raises(UsageProblem, match=message):
        prune(str(root), options, lambda plan: True)
