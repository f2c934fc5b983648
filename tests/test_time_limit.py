"""``--time-limit``: whole tasks, one line and the report that say so; values that mean nothing; continued runs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from campaigns import some
from pictures import batch

from clmoe_cli.api import resuming
from clmoe_cli.api.certify import certify_outputs
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions, check_options
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Cost, Epoch, Schedule
from clmoe_cli.report.progress import Progress
from store_schema import Interrupted, Store, UsageProblem, checkpoints, verify

OPTIONS = LearnOptions(arch="mlp:12,12", method=Options(Schedule(epochs=6)))
NO_TIME = 1e-6
"""Minutes in which nothing gets more than its least part."""


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    given = batch([2, 7], 200, 1)
    assert given.labels is not None
    np.savez(tmp_path / "data.npz", x=given.images, y=given.labels)
    return tmp_path / "data.npz"


@pytest.mark.parametrize("value", ["0", "-1", "nan", "inf"])
def test_times_that_mean_nothing(value: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["learn", "--data", str(data), "--store", "store", "--time-limit", value]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "--time-limit" in err
    assert "a number of minutes above 0" in err
    assert not Path("store").exists()
    with pytest.raises(UsageProblem):
        check_options(LearnOptions(time_limit=float(value)))


def test_a_task_that_time_has_cut_is_whole(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    args = ["learn", "--data", str(data), "--arch", "mlp:12,12", "--store", "store", "--json"]
    assert run(app, [*args, "--time-limit", str(NO_TIME)]) == 0
    out, err = capsys.readouterr()
    report = json.loads(out)
    (caution,) = [one for one in report["warnings"] if one["code"] == "time-limit"]
    assert "(train, prune, consolidate)" in caution["text"]
    assert err.splitlines().count(f"warning: {caution['text']}") == 1
    assert report["accuracy"]["held_out"] > 0
    assert report["status"] == "learned"
    assert verify("store") == []
    certify_outputs(Store.open("store"))
    assert list(Path("store/checkpoints").iterdir()) == []
    # What is known is left, and time has ended nothing.
    assert run(app, [*args, "--time-limit", str(NO_TIME)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "known"


def test_settings_and_variables_have_it(
    data: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    args = ["learn", "--data", str(data), "--arch", "mlp:12,12", "--json", "-q"]
    Path("clmoe.toml").write_text(f"[learn]\ntime-limit = {NO_TIME}\n")
    assert run(app, [*args, "--store", "first"]) == 0
    assert [one["code"] for one in json.loads(capsys.readouterr().out)["warnings"]] == ["time-limit"]
    Path("clmoe.toml").unlink()
    monkeypatch.setenv("CLMOE_LEARN_TIME_LIMIT", "-3")
    assert run(app, [*args, "--store", "second"]) == 2


def test_time_enough_is_no_difference(tmp_path: Path) -> None:
    found = []
    for minutes in (None, 600.0):
        root = tmp_path / str(minutes)
        report = learn(str(root), batch([2, 7], 200, 1), replace(OPTIONS, time_limit=minutes))
        assert "time-limit" not in {one.code for one in report.warnings}
        found.append(Store.open(root).manifest.content_hash())
    assert found[0] == found[1]


@pytest.mark.campaign
def test_refining_has_a_limit(tmp_path: Path) -> None:
    for images in (300, 250, 600):  # fewer images than before are trained inside the mask
        options = replace(OPTIONS, if_known="refine", time_limit=None if images == 300 else NO_TIME)
        report = learn(str(tmp_path / "store"), batch([2, 7], images, images), options)
        cut = [one.text for one in report.warnings if one.code == "time-limit"]
        assert len(cut) == (images != 300)
    assert verify(tmp_path / "store") == []


@pytest.mark.parametrize("again", some((None, 600.0, NO_TIME), 600.0))
def test_an_interrupted_learn_goes_on_with_another_limit(
    again: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it had reached is taken up, and its time counts; without a limit, or with time enough, the bits are those of
    a run that was not interrupted."""
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    whole, root = tmp_path / "whole", tmp_path / "store"
    learn(str(whole), batch([2, 7], 200, 1), OPTIONS)
    told: list[Epoch] = []

    def count(epoch: Epoch) -> None:
        told.append(epoch)
        if len(told) > 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        learn(str(root), batch([2, 7], 200, 1), replace(OPTIONS, time_limit=900.0), on_epoch=count)
    assert len(checkpoints.present(root)) == 1
    seen: list[str] = []
    epochs: list[Epoch] = []
    options = replace(OPTIONS, time_limit=again)
    report = learn(str(root), batch([2, 7], 200, 1), options, on_resume=seen.append, on_epoch=epochs.append)
    assert seen == ["epoch 2 of phase train"]
    assert (epochs[0].phase, epochs[0].epoch) == ("train", 3)
    if again == NO_TIME:
        assert [one.code for one in report.warnings] == ["time-limit"]
        assert [epoch.phase for epoch in epochs] == ["train", "prune", "consolidate"]
    else:
        assert Store.open(root).manifest.content_hash() == Store.open(whole).manifest.content_hash()
    assert verify(root) == []


def test_the_cost_is_said_before_training(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    order: list[object] = []
    learn(str(tmp_path / "store"), batch([2, 7], 200, 1), OPTIONS, on_cost=order.append, on_epoch=order.append)
    first = order[0]
    assert isinstance(first, Cost)
    assert not any(isinstance(told, Cost) for told in order[1:])
    assert first.steps == 34
    assert first.seconds > 0
    assert first.total == first.epochs * first.steps * first.seconds
    shown = Progress(quiet=False)
    shown.cost(Cost(78, 30, 0.1, float("inf")))
    shown.cost(Cost(78, 30, 0.1, 90.0))
    shown.cost(Cost(78, 30, 1e-5, 90.0))
    for alone in (0.04, 0.099, 0.2):
        shown.cost(Cost(1, 1, 0.1, float("inf"), alone, 4))
    Progress(quiet=True).cost(Cost(78, 30, 0.1, 90.0, 0.04, 4))
    assert capsys.readouterr().err.splitlines() == [
        "training: at most about 4 min (78 epochs of 30 steps)",
        "training: at most about 90 s (78 epochs of 30 steps; the time limit leaves 90 s)",
        "several processes do not pay here: a step takes 100 ms, in one process with OMP_NUM_THREADS=4 40 ms",
    ]
