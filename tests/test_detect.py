"""Known, new or undecided: the same in ``detect``, ``learn`` and ``predict --reject``, at any brightness and shape."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import small_store as small
import torch
from campaigns import some
from pictures import bars

from clmoe_cli.api import evidence
from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.predict import predict
from clmoe_cli.api.segment import learn_stream
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.tasks.shortlist import voted
from clmoe_cli.store_tensors import Loader
from store_schema import Store

UNLEARNED = [3, 11]
FACTORS = (0.1, 0.3, 0.5, 0.7, 1.0, 1.3, 1.5, 2.0)


def pictures(classes: list[int], seed: int, factor: float = 1.0, images: int = 200) -> Batch:
    x, y = bars(classes, images, seed)
    return Batch(x[:, None].astype(np.float32) / 255 * np.float32(factor), y, "pictures")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = tmp_path_factory.mktemp("detect") / "store"
    for number in (1, 2, 3):
        learn(str(root), pictures(small.TASKS[number - 1], number, images=600), small.OPTIONS)
    return str(root)


@pytest.mark.parametrize("factor", some(FACTORS, 0.1))
def test_detect_and_reject_do_not_contradict_each_other(factor: float, store: str) -> None:
    for number, classes in enumerate(small.TASKS, start=1):
        known = pictures(classes, 40, factor)
        found, asked = detect(store, known), predict(store, known, reject=0.05)
        assert (found.verdict, found.task) == ("known", f"task{number}")
        assert float((~asked.known).mean()) < 0.15
    new = pictures(UNLEARNED, 41, factor)
    found, asked = detect(store, new), predict(store, new, reject=0.05)
    assert (found.verdict, found.task, found.expert) == ("new", None, None)
    assert float((~asked.known).mean()) > 0.4


def test_black_pictures_are_new_to_both(store: str) -> None:
    for classes in (small.TASKS[0], UNLEARNED):
        black = pictures(classes, 40, 0.0)
        assert detect(store, black).verdict == "new"
        assert not predict(store, black, reject=0.05).known.any()


def test_the_evidence_is_what_reject_judges_by(store: str) -> None:
    asked = pictures([*small.TASKS[0], *UNLEARNED], 7)
    loader = Loader(Store.open(store))
    names = [t.name for t in loader.manifest.tasks]
    book = LabelEncoder.of(*(t.classes for t in loader.manifest.tasks))
    said, raw = evidence.onset_evidence(loader, names, asked, book, "gate")
    answers = predict(store, asked, router="gate")
    best = torch.stack([said[name].p for name in names]).max(dim=0).values.numpy()
    assert (best >= answers.p_value).all()
    assert float((best == answers.p_value).mean()) > 0.9
    assert all(raw[name].shape == (len(asked.images),) for name in names)
    assert said["task1"].calibration == 300


def test_a_stream_of_darker_pictures_of_known_tasks_is_known(store: str) -> None:
    parts = [pictures(small.TASKS[i], 50 + i, 0.5, 300) for i in (1, 0)]
    labels = [part.labels for part in parts if part.labels is not None]
    stream = Batch(np.concatenate([part.images for part in parts]), np.concatenate(labels), "stream")
    for kind in ("gate",):
        options = dataclasses.replace(small.OPTIONS, evidence=kind)
        found = learn_stream(store, stream, options, dry_run=True).segments
        assert [(part.status, part.task) for part in found] == [("known", "task2"), ("known", "task1")]


FEW = dataclasses.replace(small.OPTIONS, if_known="skip")


@pytest.fixture
def scarce(tmp_path: Path) -> Path:
    """A store whose only task has twenty images a class."""
    learn(str(tmp_path / "scarce"), pictures(small.TASKS[0], 1, images=40), small.OPTIONS)
    return tmp_path / "scarce"


def test_without_calibration_nothing_is_new(scarce: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for classes in (small.TASKS[0], UNLEARNED):
        batch = pictures(classes, 9)
        found = detect(str(scarce), batch)
        assert (found.verdict, found.task, found.p_value) == ("undecided", None, None)
        assert found.reason == "no known task near it has the 30 images a class that p-values need"
    np.savez(tmp_path / "asked.npz", x=batch.images)
    args = ["detect", "--data", str(tmp_path / "asked.npz"), "--store", str(scarce), "-q"]
    assert run(app, args) == 0
    assert run(app, [*args, "--exit-code"]) == 11
    assert capsys.readouterr().out.count("undecided  p = not available") == 2
    assert run(app, [*args, "--exit-code", "--json"]) == 11
    assert json.loads(capsys.readouterr().out)["verdict"] == "undecided"


def test_labels_decide_where_images_cannot(scarce: Path) -> None:
    same = pictures(small.TASKS[0], 9, images=100)
    assert same.labels is not None
    report = learn(str(scarce), same, small.OPTIONS)
    assert (report.status, report.onset.verdict, report.task) == ("known", "known", "task1")
    assert detect(str(scarce), same, use_labels=True).verdict == "known"
    swapped = Batch(same.images, 4 - same.labels, "swapped")
    assert detect(str(scarce), swapped, use_labels=True).verdict == "undecided"
    unseen = pictures(UNLEARNED, 9)
    assert detect(str(scarce), unseen, use_labels=True).verdict == "new"
    report = learn(str(scarce), swapped, small.OPTIONS)
    assert (report.status, report.onset.verdict, report.task) == ("learned", "undecided", "task2")
    report = learn(str(scarce), unseen, small.OPTIONS)
    assert (report.status, report.onset.verdict) == ("learned", "new")


def vectors(classes: list[int], n: int, seed: int) -> Batch:
    rng = np.random.default_rng(seed)
    y = np.array(classes)[np.arange(n) % len(classes)]
    return Batch((rng.normal(0, 1, (n, 20)) + np.eye(20)[y] * 6).astype(np.float32), y, "vectors")


def test_images_of_a_shape_that_no_expert_has_are_new(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    learn(root, pictures(small.TASKS[0], 1, images=200), small.OPTIONS)
    larger = Batch(bars([0, 4], 60, 1, side=24)[0][:, None], None, "larger")
    for batch, shape in ((vectors([1, 2], 200, 1), "20"), (larger, "1×24×24")):
        found = detect(root, batch)
        assert (found.verdict, found.task, found.p_value, found.tasks) == ("new", None, None, ())
        assert found.reason == f"no task with inputs of this shape ({shape}) is known yet"
    learn(root, vectors([1, 2], 200, 1), dataclasses.replace(small.OPTIONS, name="vectors"))
    found = detect(root, vectors([1, 2], 200, 2))
    assert (found.verdict, found.task, [row.task for row in found.tasks]) == ("known", "vectors", ["vectors"])
    found = detect(root, pictures(small.TASKS[0], 2))
    assert (found.verdict, [row.task for row in found.tasks]) == ("known", ["task1"])


@pytest.mark.parametrize("factor", [0.1, 0.5, 1.0, 2.0])
def test_the_shortlist_has_the_right_task_at_any_brightness(
    factor: float, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = Loader(Store.open(store))
    monkeypatch.setattr(evidence, "LIMIT", 1)
    for number, classes in enumerate(small.TASKS, start=1):
        assert evidence.shortlisted(loader, pictures(classes, 60, factor, 50)) == [f"task{number}"]
        assert detect(store, pictures(classes, 61, factor)).task == f"task{number}"
    monkeypatch.setattr(evidence, "LIMIT", 2)
    mixed = pictures([*small.TASKS[0], *small.TASKS[2]], 60, factor, 80)
    assert evidence.shortlisted(loader, mixed) == ["task1", "task3"]
    assert detect(store, mixed).verdict == "known"


def test_votes() -> None:
    nearest = torch.tensor([[3, 3, 1], [3, 1, 0], [2, 3, 0]])
    assert voted(nearest, 5, 1) == [3]
    assert voted(nearest, 5, 3) == [1, 2, 3]
    assert voted(nearest, 5, 4) == [0, 1, 2, 3]
    assert len(voted(nearest, 5, 9)) == 5
