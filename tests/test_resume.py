"""A learn that is stopped anywhere and started again ends with the same store as one that ran through."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from campaigns import some
from pictures import bars, batch

from clmoe_cli.api import resuming
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Epoch, Schedule
from store_schema import Interrupted, Store, checkpoints, verify

OPTIONS = LearnOptions(arch="mlp:12,12", method=Options(Schedule(epochs=4)))


@pytest.fixture(scope="module")
def before(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("resume") / "store"
    learn(str(root), batch([0, 4], 150, 0), OPTIONS)
    return root


@pytest.fixture(scope="module")
def after(before: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    root = shutil.copytree(before, tmp_path_factory.mktemp("resume") / "whole")
    learn(str(root), batch([2, 7], 150, 1), OPTIONS)
    assert list((root / "checkpoints").iterdir()) == []
    return Store.open(root).manifest.content_hash()


@pytest.fixture
def own(before: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    return Path(shutil.copytree(before, tmp_path / "own"))


def stopped(root: Path, after_epochs: int, options: LearnOptions = OPTIONS) -> Interrupted:
    """A learn that is interrupted in the epoch after so many; the place where it says that it would go on."""
    seen = 0

    def count(epoch: Epoch) -> None:
        nonlocal seen
        seen += 1
        if seen > after_epochs:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted) as caught:
        learn(str(root), batch([2, 7], 150, 1), options, on_epoch=count)
    return caught.value


@pytest.mark.parametrize("epochs", some((1, 4, 6, 13), 1, 6))
def test_an_interrupted_learn_continues_to_the_same_store(own: Path, after: str, epochs: int) -> None:
    kept = Store.open(own).manifest.content_hash()
    hint = stopped(own, epochs).hint
    assert hint is not None
    assert "run the same command again" in hint
    assert Store.open(own).manifest.content_hash() == kept
    assert verify(own) == []
    seen: list[str] = []
    epochs_again: list[Epoch] = []
    learn(str(own), batch([2, 7], 150, 1), OPTIONS, on_resume=seen.append, on_epoch=epochs_again.append)
    assert hint.endswith(seen[0])
    assert (epochs_again[0].phase == "train") == (epochs < 4)
    assert Store.open(own).manifest.content_hash() == after
    assert list((own / "checkpoints").iterdir()) == []


def test_stopped_again_and_again(own: Path, after: str) -> None:
    for _ in range(4):
        stopped(own, 3)
    assert len(checkpoints.present(own)) == 1
    learn(str(own), batch([2, 7], 150, 1), OPTIONS)
    assert Store.open(own).manifest.content_hash() == after


CHANGES = ("name", "score", "data", "labels", "parent", "threads", "code")


@pytest.mark.parametrize("change", some(CHANGES, "data", "code"))
def test_nothing_else_picks_it_up(own: Path, change: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(own, 3)
    data, options = batch([2, 7], 150, 1), OPTIONS
    if change == "name":
        options = replace(OPTIONS, name="other")
    if change == "score":
        options = replace(OPTIONS, method=replace(OPTIONS.method, score="gradient"))
    if change == "data":
        data.images[5, 0, 3, 3] ^= 1
    if change == "labels":
        assert data.labels is not None
        data.labels[:2] = data.labels[:2][::-1] if data.labels[0] != data.labels[1] else 9 - data.labels[:2]
    if change == "parent":
        learn(str(own), batch([5, 9], 150, 2), OPTIONS)
    if change == "threads":
        monkeypatch.setattr(resuming, "environment", lambda: {"threads": "77"})
    if change == "code":
        monkeypatch.setattr(resuming, "_code", lambda: "that of another state of the package")
    seen: list[str] = []
    learn(str(own), data, options, on_resume=seen.append)
    assert seen == []
    # It is still there for those who asked for it.
    assert len(checkpoints.present(own)) == 1


def test_a_damaged_checkpoint_is_put_aside(own: Path, after: str) -> None:
    stopped(own, 3)
    (path,) = (own / "checkpoints").rglob("*.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    seen: list[str] = []
    learn(str(own), batch([2, 7], 150, 1), OPTIONS, on_resume=seen.append)
    assert seen == []
    assert Store.open(own).manifest.content_hash() == after


def test_checkpoints_take_a_bounded_share_of_the_time(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 1e9)
    written: list[int] = []
    real = checkpoints.save
    monkeypatch.setattr(checkpoints, "save", lambda *args: written.append(real(*args)) or written[-1])
    stopped(own, 3)
    assert len(written) == 1


WAITING = """
import sys, time
from clmoe_cli.cli.app import main
from clmoe_cli.api import resuming
from store_schema import checkpoints

# A checkpoint after every epoch; after so many the process waits for a signal.
resuming.PAUSE, left, real = 0, int(sys.argv.pop(1)), checkpoints.save
def save(*args):
    global left
    done, left = real(*args), left - 1
    if left == 0:
        print("saved", file=sys.stderr, flush=True)
        while True:
            time.sleep(0.01)
    return done
checkpoints.save = save
main()
"""


@pytest.mark.campaign
def test_killed_at_any_moment_and_started_again(before: Path, tmp_path: Path) -> None:
    """Real processes, SIGKILL and SIGINT."""
    x, y = bars([2, 7], 600, 1)
    np.savez(tmp_path / "task.npz", x=x, y=y)
    whole, own = (shutil.copytree(before, tmp_path / name) for name in ("whole", "own"))
    arguments = ["learn", "--data", str(tmp_path / "task.npz"), "--arch", "mlp:24,24", "--epochs", "20"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def command(saves: int, store: Path) -> list[str]:
        return [sys.executable, "-c", WAITING, str(saves), *arguments, "--store", str(store)]

    subprocess.run(command(0, whole), check=True, capture_output=True, env=environment)
    said = ""
    for number, saves in ((signal.SIGKILL, 2), (signal.SIGINT, 5), (None, 0)):
        count = len(list((own / "checkpoints").rglob("*.safetensors")))
        process = subprocess.Popen(command(saves, own), stderr=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert process.stderr is not None
        lines: list[bytes] = []
        while number is not None and b"saved\n" not in lines:
            lines.append(process.stderr.readline())
            assert lines[-1], lines
        if number is not None:
            process.send_signal(number)
        said = b"".join([*lines, process.communicate(timeout=60)[1]]).decode()
        if number == signal.SIGINT:
            assert process.returncode == 130, said
            assert said.splitlines()[-1].startswith("clmoe: interrupted; the store is as it was before this command")
            assert "run the same command again: it goes on after" in said
        assert (count == 0) or "continuing after" in said
    assert "continuing after" in said
    assert Store.open(own).manifest.content_hash() == Store.open(whole).manifest.content_hash()


def test_repair_on_the_command_line(before: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = shutil.copytree(before, tmp_path / "own")
    learn(str(own), batch([2, 7], 150, 1), OPTIONS)
    ref = Store.open(own).manifest.tasks[1].subnetwork
    path = own / "objects" / ref.sha256[:2] / f"{ref.sha256}.h5"
    path.write_bytes(path.read_bytes()[:-1])
    assert run(app, ["inspect", "--verify", "--store", str(own)]) == 4
    assert "--repair" in capsys.readouterr().err
    assert run(app, ["inspect", "--repair", "--verify", "--json", "--store", str(own)]) == 0
    streams = capsys.readouterr()
    report = json.loads(streams.out)
    assert (report["verified"], report["repaired"]["lost"]) == (True, ["task2"])
    assert path.name in report["repaired"]["found"][0]
    assert streams.err.splitlines()[-1] == "back at generation 1; lost: task2"
    assert [t.name for t in Store.open(own).manifest.tasks] == ["task1"]
    # What was lost can be learned again.
    learn(str(own), batch([2, 7], 150, 1), OPTIONS)
    assert verify(own) == []
