"""Tasks of a single class: no weight is taken, and the gate tells them from others."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_store as small
from pictures import bars

import clmoe
from clmoe_cli.api.learn import learn
from clmoe_cli.report import render

KINDS = (0, 4, 7)


def batch(kind: int, count: int, seed: int) -> clmoe.Batch:
    x, y = bars([kind], count, seed)
    return clmoe.Batch(x[:, None], y, f"bars {kind}")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    root = str(tmp_path_factory.mktemp("one") / "store")
    for kind in KINDS:
        report = learn(root, batch(kind, 120, kind), small.OPTIONS)
        assert (report.status, report.expert) == ("learned", "e1")
        assert [caution.code for caution in report.warnings] == ["one-class"]
    return root


def test_no_weight_is_taken_and_all_images_are_told_apart(store: str) -> None:
    found = clmoe.inspect(store)
    assert [task.classes for task in found.tasks] == [(kind,) for kind in KINDS]
    assert found.experts[0].frozen_percent == 0
    every = [batch(kind, 40, 50 + kind) for kind in KINDS]
    images = np.concatenate([part.images for part in every])
    labels = np.concatenate([part.labels for part in every])
    report = clmoe.predict(store, clmoe.Batch(images, labels, "all"), reject=0.05)
    assert report.accuracy is not None
    assert report.accuracy > 0.95
    assert report.known.mean() > 0.85
    assert set(report.task.tolist()) == {"task1", "task2", "task3"}


def test_the_same_class_is_known_and_another_is_new(store: str) -> None:
    assert clmoe.detect(store, batch(KINDS[1], 60, 90)).verdict == "known"
    assert clmoe.detect(store, batch(2, 60, 90)).verdict == "new"


def test_it_can_be_refined_exported_and_removed(store: str, tmp_path: Path) -> None:
    import shutil

    copy = str(shutil.copytree(store, tmp_path / "copy"))
    report = learn(copy, batch(KINDS[0], 120, 77), replace(small.OPTIONS, if_known="refine"))
    assert (report.status, report.task) == ("refined", "task1")
    for suffix in ("safetensors", "onnx"):
        assert clmoe.export(copy, "task1", str(tmp_path / f"model.{suffix}")).task == "task1"
    clmoe.prune(copy, clmoe.PruneOptions(task="task2"), lambda plan: True)
    assert clmoe.detect(copy, batch(KINDS[1], 60, 90)).verdict == "new"


def test_a_task_of_two_classes_takes_its_weights_beside_them(store: str, tmp_path: Path) -> None:
    import shutil

    copy = str(shutil.copytree(store, tmp_path / "copy"))
    x, y = bars([2, 9], 120, 3)
    report = learn(copy, clmoe.Batch(x[:, None], y, "two"), small.OPTIONS)
    assert report.status == "learned"
    frozen = {expert.id: expert.frozen_percent for expert in clmoe.inspect(copy).experts}
    assert frozen[report.expert] > 0
    assert clmoe.predict(copy, batch(KINDS[0], 40, 51)).accuracy > 0.9


def test_an_answer_without_any_other_is_explained(store: str, tmp_path: Path) -> None:
    alone = str(tmp_path / "alone")
    learn(alone, batch(KINDS[0], 120, 1), small.OPTIONS)
    for root, options in ((alone, {}), (alone, {"router": "gate"}), (store, {"task": "task1"})):
        report = clmoe.predict(root, batch(KINDS[0], 5, 2), explain=True, **options)
        rows = report.to_json()["predictions"]
        assert all(row["reason"].startswith("0 by task1 (e1)") for row in rows)


@pytest.mark.parametrize("suffix", ["safetensors", "onnx"])
def test_an_exported_model_says_that_it_has_one_answer(
    suffix: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    render.show(clmoe.export(store, "task1", tmp_path / f"model.{suffix}"), as_json=False)
    assert "answers as predict --task does: its one class, whatever it reads\n" in capsys.readouterr().out
