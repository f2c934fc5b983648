"""One answer: what ``learn`` reports is what ``predict`` answers; weights of subnetworks; warnings; what is stored."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from campaigns import some
from hypothesis import given
from hypothesis import strategies as st
from pictures import bars, noisy_bars
from sklearn.datasets import load_digits
from torch import Tensor

from clmoe_cli.api import cautions, measuring
from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.measuring import opinion_weight
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.planning import plan
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.api.reports import LearnReport
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label
from clmoe_cli.method.learn_task import Learned, Options
from clmoe_cli.method.routing import gaussians
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.store_tensors import Loader
from store_schema import Accuracy, ClassAccuracy, Store, TaskRecord, layout

OPTIONS: dict[str, Any] = {"arch": "mlp:24,24", "method": Options(Schedule(epochs=3))}


def digits(classes: tuple[int, ...], part: int) -> Batch:
    """Digits of 8 by 8 as plain vectors; ``part`` 0 to learn from, 1 for new ones."""
    x, y = load_digits(return_X_y=True)
    rows = np.flatnonzero(np.isin(y, classes))
    rows = rows[np.arange(len(rows)) % 3 == 2] if part else rows[np.arange(len(rows)) % 3 != 2]
    return Batch(x[rows].astype(np.float32), y[rows], "digits")


DATA: dict[str, tuple[Callable[[tuple[int, ...], int], Batch], tuple[tuple[int, ...], ...]]] = {
    "digits": (digits, ((1, 5, 7), (8, 3, 9), (2, 8))),
    "bars": (noisy_bars, ((0, 1), (2, 3))),
}


@pytest.mark.parametrize("name", some(DATA, "bars"))
def test_what_is_reported_is_what_new_images_are_answered(name: str, tmp_path: Path) -> None:
    data, tasks = DATA[name]
    for classes in tasks:
        report = learn(str(tmp_path / "s"), data(classes, 0), LearnOptions(if_known="new", **OPTIONS))
        new, told = data(classes, 1), report.accuracy
        answer, within = (predict(str(tmp_path / "s"), new, task=task).accuracy for task in (None, report.task))
        for reported, found in ((told.answer, answer), (told.within, within)):
            assert reported is not None
            assert found is not None
            error = np.sqrt(found * (1 - found) * (1 / len(new.images) + 1 / float(told.held_out or 0)))
            # And an image, where all are right.
            assert abs(reported - found) <= 3 * error + 1 / float(told.held_out or 0)
        assert answer is not None
        assert within is not None
        assert within >= answer - np.sqrt(answer * (1 - answer) / len(new.images))


@pytest.mark.parametrize("name", some(DATA, "bars"))
def test_held_out_images_are_answered_as_predict_answers(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the statistics that are stored, and not those that leave the images out, the answers are the same ones."""
    data, tasks = DATA[name]
    held: list[Tensor] = []
    original = measuring.measured

    def spy(loader: Any, data: Any, learned: Learned, *more: Any) -> measuring.Measured:
        held.append(learned.held)
        return original(loader, data, learned, *more)

    monkeypatch.setattr("clmoe_cli.api.gating.measured", spy)
    monkeypatch.setattr(gaussians, "without", lambda own, part: own)
    monkeypatch.setattr(measuring, "opinion_weight", lambda *told: 0.3)
    for classes in tasks:
        batch = data(classes, 0)
        report = learn(str(tmp_path / "s"), batch, LearnOptions(if_known="new", **OPTIONS))
        assert batch.labels is not None
        rows, told = held.pop().numpy(), report.accuracy
        asked = Batch(batch.images[rows], batch.labels[rows], "held out")
        found, within = (predict(str(tmp_path / "s"), asked, task=task) for task in (None, report.task))
        assert (told.held_out, report.opinion) == (len(rows), 0.3)
        # An image more or less: what other tasks' subnetworks say of it learn does not ask.
        assert told.answer == pytest.approx(found.accuracy, abs=1.001 / len(rows))
        assert told.within == pytest.approx(within.accuracy, abs=1e-12)
        largest = np.unique(batch.labels, return_counts=True)[1].max()
        assert told.guessing == pytest.approx(largest / len(batch.images))
        for own in report.per_class:
            here = asked.labels == own.label
            assert own.images == int(here.sum())
            right = float((found.label[here] == own.label).mean())
            assert own.accuracy == pytest.approx(right, abs=1.001 / int(here.sum()))
        kept = Store.open(tmp_path / "s").manifest.task(report.task)
        confusion, bins = kept.accuracy.confusion, kept.accuracy.calibration
        assert confusion is not None
        assert bins is not None
        wrong = int((found.label != asked.labels).sum())
        assert sum(each.images for each in confusion) == pytest.approx(wrong, abs=1)
        for each in confusion:
            same = (asked.labels == kept.classes[each.position]) & (found.label == each.label)
            assert each.images == pytest.approx(int(same.sum()), abs=1)
        assert sum(one.images for one in bins) == len(rows)
        assert sum(one.right for one in bins) == len(rows) - sum(each.images for each in confusion)
        mean = sum(one.confidence * one.images for one in bins) / len(rows)
        assert mean == pytest.approx(float(found.confidence.mean()), abs=0.05)


def logs(right: float, n: int, y: Tensor) -> Tensor:
    """Log-probabilities [n, 2] that give the label so much."""
    other = torch.full((n, 2), 1 - right, dtype=torch.float64)
    return other.scatter(1, y[:, None], right).log()


def test_a_subnetwork_has_the_weight_that_held_out_images_give_it() -> None:
    y = torch.arange(200) % 2
    surer, worse = logs(0.95, 200, y), logs(0.7, 200, y)
    assert opinion_weight(surer, worse, y) == 0.0
    assert opinion_weight(worse, surer, y) > 0.9
    # As good as each other: the gate, which does not depend on how training went.
    assert opinion_weight(surer, surer, y) == 0.0
    # Each is right where the other is wrong: both have a say.
    half = (torch.arange(200) < 100)[:, None]
    one = torch.where(half, logs(0.99, 200, y), logs(0.2, 200, y))
    two = torch.where(half, logs(0.2, 200, y), logs(0.99, 200, y))
    assert 0.4 < opinion_weight(one, two, y) < 0.6
    # What is certain of the wrong class costs what can be counted.
    certain = torch.zeros(200, 2, dtype=torch.float64).scatter(1, (1 - y)[:, None], 1.0).log()
    assert opinion_weight(surer, certain, y) == 0.0


@given(n=st.integers(1, 12), right=st.floats(0.5, 0.999), gate=st.floats(0.5, 0.999))
def test_few_images_give_less_weight_than_many(n: int, right: float, gate: float) -> None:
    y = torch.arange(n) % 2
    few = opinion_weight(logs(gate, n, y), logs(right, n, y), y)
    many_y = y.repeat(20)
    many = opinion_weight(logs(gate, 20 * n, many_y), logs(right, 20 * n, many_y), many_y)
    assert 0.0 <= few <= many < 1.0
    # The posterior by hand, on a grid of its own.
    grid = np.arange(40) / 40
    posterior = n * np.log((1 - grid) * gate + grid * right) + np.log1p(-grid)
    earned = posterior.max() - posterior[0] > measuring.EARNED
    assert posterior[round(40 * few)] == pytest.approx(posterior.max() if earned else posterior[0], abs=1e-9)


def test_without_held_out_images_the_gate_answers_alone_and_folds_are_counted(tmp_path: Path) -> None:
    x, y = bars([0, 6], 40, 3)
    report = learn(str(tmp_path / "s"), Batch(x[:, None], y, ""), LearnOptions(**OPTIONS))
    assert report.opinion == 0.0
    assert [c.images for c in report.per_class] == [20, 20]
    assert report.accuracy.held_out == 40
    assert report.accuracy.answer == report.accuracy.within
    assert float(report.accuracy.answer or 0) > 0.9
    assert (report.accuracy.subnetwork, report.accuracy.dense) == (None, None)


def codes(found: list[cautions.Caution] | LearnReport) -> list[str]:
    return [c.code for c in (found.warnings if isinstance(found, LearnReport) else found)]


def labelled(*counts: tuple[Label, int]) -> Batch:
    y = np.array([label for label, n in counts for _ in range(n)])
    return Batch(np.zeros((len(y), 1, 4, 4), np.uint8), y, "")


def test_warnings_on_data() -> None:
    assert codes(cautions.of_data(labelled((1, 100), (2, 90)), [])) == []
    assert codes(cautions.of_data(labelled((1, 300), (2, 30)), [])) == ["imbalance"]
    assert codes(cautions.of_data(labelled((1, 299), (2, 30)), [])) == []
    assert codes(cautions.of_data(labelled((1, 100), (2, 29)), [])) == ["few-images"]
    (few,) = cautions.of_data(labelled((1, 30), (2, 30)), [])
    assert (few.code, "only 60 images" in few.text) == ("few-images", True)
    # Enough images, and none of a class that could spare one.
    (few, *_) = cautions.of_data(labelled(*((c, 3) for c in range(30))), [])
    assert (few.code, "only 90 images of 30 classes: all are trained on" in few.text) == ("few-images", True)
    assert codes(cautions.of_data(labelled((1, 100), (2, 7)), [])) == ["imbalance", "few-images", "privacy"]
    assert codes(cautions.of_data(labelled(("cat", 50), ("Cat ", 50)), [])) == ["look-alike"]
    assert codes(cautions.of_data(labelled(("cat", 50), ("dog", 50)), ["DOG"])) == ["look-alike"]
    # Those of the store look alike among themselves: that was said when they were learned.
    assert codes(cautions.of_data(labelled(("cat", 50), ("dog", 50)), ["a", "A", 3])) == []
    many = cautions.of_data(labelled(*((i, 10) for i in range(20))), [])
    assert "and 15 more" in many[0].text


def task_of(within: float | None, guessing: float, held_out: int, *each: tuple[int, float | None]) -> TaskRecord:
    accuracy = Accuracy(
        dense=None, subnetwork=None, held_out=held_out, answer=within, within=within, guessing=guessing,
        per_class=tuple(ClassAccuracy(images=n, accuracy=share) for n, share in each),
    )  # fmt: skip
    return TaskRecord.model_construct(name="t", classes=tuple(range(len(each))), accuracy=accuracy)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        (task_of(0.52, 0.5, 100, (50, 0.5), (50, 0.54)), True),
        (task_of(0.7, 0.5, 100, (50, 0.7), (50, 0.7)), False),
        # Nine of ten are one class: as right as guessing by all images, and not by each class.
        (task_of(0.92, 0.9, 100, (90, 0.93), (10, 0.8)), False),
        (task_of(0.9, 0.9, 100, (90, 1.0), (10, 0.0)), True),
        # So few, or so rare a second class, that chance would do it as well: nothing is said.
        (task_of(0.7, 0.5, 10, (5, 0.6), (5, 0.8)), False),
        (task_of(0.7, 0.5, 20, (10, 0.6), (10, 0.8)), False),
        (task_of(0.75, 0.5, 4, (2, 0.5), (2, 1.0)), False),
        (task_of(1.0, 0.969, 24, (24, 1.0), (0, None)), False),
        (task_of(0.5, 0.5, 20, (10, 0.4), (10, 0.6)), True),
        (task_of(None, 0.5, 0, (0, None), (0, None)), False),
        (task_of(1.0, 1.0, 50, (50, 1.0)), False),
        (task_of(1.0, 0.5, 50, (25, 1.0), (25, 1.0)), False),
        (task_of(0.55, 0.5, 30, (30, 0.55), (0, None)), True),
    ],
)
def test_guessing_is_named_where_no_class_is_told(task: TaskRecord, said: bool) -> None:
    assert ("guessing" in codes(cautions.of_task(task))) == said


def test_classes_of_which_nothing_was_held_out_are_named() -> None:
    (few,) = cautions.of_task(task_of(1.0, 0.969, 24, (24, 1.0), (0, None)))
    assert (few.code, "no image of 1 was held out" in few.text) == ("unjudged", True)
    assert cautions.of_task(task_of(1.0, 0.5, 24, (20, 1.0), (4, 1.0))) == []
    # Where nothing at all was measured, that has been said before.
    assert cautions.of_task(task_of(None, 0.5, 0, (0, None), (0, None))) == []
    assert cautions.of_task(task_of(0.9, 0.5, 20)) == []


def drawn(n: int, seed: int, names: tuple[Label, ...]) -> Batch:
    """Rows of classes that overlap a little, called by these names."""
    centres = np.random.default_rng(7).normal(size=(len(names), 64)) * 0.5
    y, rng = np.arange(n) % len(names), np.random.default_rng(seed)
    x = centres[y] + rng.normal(size=(n, 64))
    return Batch(x.astype(np.float32), np.array(names)[y], "drawn")


@pytest.mark.parametrize("n", some((400, 120, 40), 120))
def test_known_inputs_under_other_names_are_named(n: int, tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    learn(root, drawn(400, 1, ("a", "b")), LearnOptions(**OPTIONS))
    again = drawn(n, 2, ("cat", "dog"))
    planned, asked = plan(root, again, LearnOptions(**OPTIONS)), detect(root, again, use_labels=True)
    # Of many images each command takes a sample of its own.
    said, again_said = (re.sub(r"p = [^,]*", "", one.reason) for one in (planned.onset, asked))
    assert said == again_said
    assert "no known task near it has: cat, dog; yet it looks like task1 (p = " in asked.reason
    report = learn(root, again, LearnOptions(**OPTIONS))
    (conflict,) = [c for c in report.warnings if c.code == "conflict"]
    assert "'cat' as a of task1 (" in conflict.text.replace("'a'", "a")
    assert "clmoe prune --task task2 --yes takes it back" in conflict.text


def test_one_known_class_under_another_name_is_named_and_new_ones_are_not(tmp_path: Path) -> None:
    root, every = str(tmp_path / "s"), drawn(2000, 10, ("a", "b", "c", "d", "e"))
    assert every.labels is not None
    learn(root, every.taken(np.flatnonzero(np.isin(every.labels, ["a", "b"]))), LearnOptions(**OPTIONS))
    new = drawn(2000, 20, ("a", "old", "c", "d", "e"))
    assert new.labels is not None
    report = learn(root, new.taken(np.flatnonzero(np.isin(new.labels, ["old", "c"]))), LearnOptions(**OPTIONS))
    (conflict,) = [c for c in report.warnings if c.code == "conflict"]
    assert "'old' as 'b' of task1 (" in conflict.text
    assert "'c'" not in conflict.text
    assert codes(learn(root, new.taken(np.flatnonzero(np.isin(new.labels, ["d", "e"]))), LearnOptions(**OPTIONS))) == []


def test_a_class_is_another_when_half_of_it_is_taken_for_the_other() -> None:
    def said(*rows: tuple[int, int], others: int = 0) -> list[str]:
        found = [measuring.Confusion(f"n{i}", n, "o", "task1", k) for i, (n, k) in enumerate(rows)]
        task = task_of(0.9, 0.5, sum(n for n, _ in rows) + others)
        return [part for c in cautions.of_conflict(task, None, found) for part in ("n0", "n1") if part in c.text]

    assert said((25, 12)) == ["n0"]
    assert said((25, 5)) == said() == said((1, 1)) == []
    # Of few images a class counts with the others.
    assert said((4, 3)) == ["n0"]
    assert said((4, 3), others=36) == []
    assert said((4, 3), (40, 2)) == []
    assert said((6, 3), (6, 4)) == ["n0", "n1"]


def shapes(n: int, seed: int) -> Batch:
    """Circles and squares of other sizes in other places."""
    rng = np.random.default_rng(seed)
    y, at = np.arange(n) % 2, np.arange(20)
    middle, size = rng.uniform(8, 12, (2, n, 1, 1)), rng.uniform(4, 6, (n, 1, 1))
    down, across = np.abs(at[None, :, None] - middle[0]), np.abs(at[None, None, :] - middle[1])
    circle, square = np.hypot(down, across) < size, np.maximum(down, across) < 0.85 * size
    x = np.where((y == 0)[:, None, None], circle, square) * 200 + rng.integers(0, 20, (n, 20, 20))
    return Batch(x.astype(np.uint8)[:, None], np.array(["circle", "square"])[y], "shapes")


def test_warnings_of_learning(tmp_path: Path) -> None:
    easy = learn(str(tmp_path / "easy"), shapes(300, 0), LearnOptions(**OPTIONS))
    assert codes(easy) == []
    assert float(easy.accuracy.answer or 0) > 0.9
    assert float(predict(str(tmp_path / "easy"), shapes(200, 1)).accuracy or 0) > 0.9
    noise = shapes(300, 2)
    noise.labels[:] = np.random.default_rng(1).permutation(noise.labels)  # type: ignore[index]
    assert codes(learn(str(tmp_path / "noise"), noise, LearnOptions(**OPTIONS))) == ["guessing"]
    # The same pictures with their labels exchanged.
    swapped = shapes(300, 3)
    turned = np.where(swapped.labels == "circle", "square", "circle")
    report = learn(str(tmp_path / "easy"), Batch(swapped.images, turned, "swapped"), LearnOptions(**OPTIONS))
    assert report.status == "learned"
    (conflict,) = [c for c in report.warnings if c.code == "conflict"]
    assert f"clmoe prune --task {report.task} --yes" in conflict.text
    prune(str(tmp_path / "easy"), PruneOptions(task=report.task), lambda plan: True)
    assert float(predict(str(tmp_path / "easy"), shapes(200, 1)).accuracy or 0) > 0.9


def gate_bytes(root: Path, task: str) -> dict[str, int]:
    ref = Store.open(root).manifest.task(task).subnetwork
    with h5py.File(layout.object_path(root, ref.sha256, ref.suffix)) as file:
        return {name: value.id.get_storage_size() for name, value in file["gate"].items()}


def test_statistics_of_two_classes_are_small_and_the_tasks_own(tmp_path: Path) -> None:
    """Two classes of 28 by 28, with as many images as have all directions, after other tasks and alone."""
    roots = [tmp_path / name for name in ("alone", "after")]
    quick = LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=1)))

    def task(classes: list[int], n: int) -> Batch:
        x, y = bars(classes, n, 5, side=28)
        return Batch(x[:, None], y, "")

    learn(str(roots[1]), task([2, 7], 80), quick)
    names = [learn(str(root), task([0, 5], 600), quick).task for root in roots]
    one, two = (Loader(Store.open(root)).gaussians(name) for root, name in zip(roots, names, strict=True))
    assert one.directions.shape[2] == gaussians.OWN
    for key, value in vars(one).items():
        assert torch.equal(value, getattr(two, key)), key
    found = gate_bytes(roots[0], names[0])
    # Those are for plain vectors, and for classes of very different sizes.
    assert set(found) == set(vars(one)) - {"near", "priors"}
    assert sum(found.values()) <= 1 << 20
