"""Convolutional experts as people meet them: several tasks in one, pruned, refined, interrupted, asked in every way."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from campaigns import some
from pictures import batch as sized

from clmoe_cli.api import resuming
from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import EVERY, PredictReport, predict
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Epoch, Schedule
from store_schema import Interrupted, Store

OPTIONS = LearnOptions(arch="cnn:4,8", method=Options(Schedule(epochs=3), Tolerance(floor=0.05)))
# The last maps of such a network are single pixels: a batch of one image has no statistics.
SINGLE = replace(OPTIONS, arch="shufflenet_v2_x0_5", method=Options(Schedule(epochs=1), Tolerance(floor=0.2)))

batch = partial(sized, side=14)


def told(root: Path, task: str) -> list[bytes]:
    """What a task answers, to the bit."""
    found = predict(str(root), batch([0, 4, 2, 7], 40, 9), task=task)
    return [np.ascontiguousarray(value).tobytes() for value in (found.label, found.confidence, found.p_value)]


def checked(root: Path, capsys: pytest.CaptureFixture[str]) -> str:
    assert run(app, ["inspect", "--store", str(root), "--verify"]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("kernels") / "store"
    learn(str(root), batch([0, 4]), OPTIONS)
    return root


@pytest.fixture(scope="module")
def two(one: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shutil.copytree(one, tmp_path_factory.mktemp("kernels") / "store")
    learn(str(root), batch([2, 7], seed=1), replace(OPTIONS, expert="e1"))
    return Path(root)


@pytest.fixture
def own(two: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(two, tmp_path / "own"))


def test_a_second_task_leaves_the_first_as_it_was(one: Path, two: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = Store.open(two).manifest.tasks
    assert [task.expert for task in tasks] == ["e1", "e1"]
    # The second reads and moves weights of the same kernels.
    assert all(layer.selected > 0 for task in tasks for layer in task.layers)
    assert told(two, "task1") == told(one, "task1")
    before, after = (Store.open(root).manifest.task("task1") for root in (one, two))
    assert before == after
    shared = [Store.open(root).read_expert("e1") for root in (one, two)]
    for name, value in shared[0].owned["task1"].items():
        assert value.tobytes() == shared[1].owned["task1"][name].tobytes(), name
    running = [name for name in shared[1].owned["task2"] if "running" in name]
    assert running
    for name in running:
        assert not np.array_equal(shared[1].owned["task1"][name], shared[1].owned["task2"][name])
    checked(two, capsys)


@pytest.mark.parametrize(("gone", "left"), [("task1", "task2"), ("task2", "task1")])
def test_pruning_one_task_leaves_the_other(own: Path, gone: str, left: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = told(own, left)
    assert run(app, ["prune", "--store", str(own), "--task", gone, "--yes"]) == 0
    capsys.readouterr()
    assert [task.name for task in Store.open(own).manifest.tasks] == [left]
    assert told(own, left) == before
    kept = Store.open(own).read_subnetwork(left).masks
    for name, value in Store.open(own).read_expert("e1").shared.items():
        assert not value[~kept[name]].any()
    checked(own, capsys)


@pytest.mark.parametrize("n", some((260, 320), 320), ids=["in its mask", "with a new mask"])
def test_refining_one_task_leaves_the_other(own: Path, n: int, capsys: pytest.CaptureFixture[str]) -> None:
    other, before = told(own, "task2"), told(own, "task1")
    report = learn(str(own), batch([0, 4], n, 5), replace(OPTIONS, if_known="refine"))
    assert (report.task, report.status) == ("task1", "refined")
    assert told(own, "task2") == other
    assert told(own, "task1") != before
    assert Store.open(own).manifest.task("task1").images == 300 + n
    checked(own, capsys)


@pytest.mark.campaign
def test_interrupted_in_every_phase_it_ends_with_the_same_store(
    one: Path, two: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    root = shutil.copytree(one, tmp_path / "own")
    stopped: list[str] = []

    def again() -> None:
        seen: list[Epoch] = []

        def stop(epoch: Epoch) -> None:
            seen.append(epoch)
            if len(seen) == 3:
                stopped.append(epoch.phase)
                raise KeyboardInterrupt

        learn(str(root), batch([2, 7], seed=1), replace(OPTIONS, expert="e1"), on_epoch=stop)

    # As many times as training has phases and rounds; then there are fewer than three epochs left.
    for _ in range(40):
        try:
            again()
        except Interrupted:
            continue
        break
    assert set(stopped) == {"train", "prune", "consolidate"}
    assert Store.open(root).manifest.content_hash() == Store.open(two).manifest.content_hash()


@pytest.mark.parametrize("router", some(EVERY, "fused"))
def test_every_router_answers_alone_as_among_others(two: Path, router: str) -> None:
    asked = batch([0, 4, 2, 7], 24, 9)
    together = predict(str(two), asked, router=router)
    alone: list[PredictReport] = [
        predict(str(two), asked.taken(np.array([i])), router=router) for i in range(len(asked.images))
    ]
    assert together.labels == tuple(found.labels[0] for found in alone)
    assert together.task.tolist() == [found.task[0] for found in alone]
    np.testing.assert_allclose(together.confidence, [found.confidence[0] for found in alone], rtol=0, atol=1e-5)
    # Rounding may move an image over one of the thousand quantiles that p-values are read from.
    np.testing.assert_allclose(together.p_value, [found.p_value[0] for found in alone], rtol=0, atol=1.1e-3)
    whole = predict(str(two), asked, router=router, route="batch")
    assert len(set(whole.task.tolist())) == 1


def test_what_is_known_and_what_is_not(two: Path) -> None:
    for evidence in ("fisher", "gradient"):
        assert detect(str(two), batch([0, 4], 60, 3), evidence=evidence).verdict == "known"
    noise = Batch(np.random.default_rng(0).integers(0, 256, (60, 1, 14, 14), np.uint8), None, "noise")
    assert detect(str(two), noise).verdict == "new"


@pytest.mark.campaign
def test_a_network_of_torchvision_and_images_one_at_a_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, first, second = tmp_path / "store", batch([0, 4], 80, 0, side=32), batch([2, 7], 80, 1, side=32)
    learn(str(root), first, SINGLE)
    asked = batch([0, 4], 20, 5, side=32)
    before = predict(str(root), asked, task="task1").confidence.tobytes()
    learn(str(root), second, replace(SINGLE, expert="e1"))
    assert predict(str(root), asked, task="task1").confidence.tobytes() == before
    single = asked.taken(np.array([0]))
    assert detect(str(root), single).images == 1
    assert predict(str(root), single).labels
    checked(root, capsys)
