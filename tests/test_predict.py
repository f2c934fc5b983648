"""``predict`` without a task id, end to end: the gate, the shortlist, rejection, batches, scores, pruning."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pytest
import torch
from campaigns import some
from hypothesis import given
from hypothesis import strategies as st
from pictures import bars
from pictures import batch as batch_of
from trained import PAIRS, bars_store

from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import EVERY, PredictReport, predict
from clmoe_cli.api.predictions import Confusion
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.api.reports import plain
from clmoe_cli.api.scoring import calibration_error, score
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.routing.decide import OPINION
from clmoe_cli.method.routing.features import features
from clmoe_cli.method.routing.gaussians import GaussianGate
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.store_tensors import Loader
from store_schema import BadInput, Store, StoreIncompatible, UsageProblem, writer

OPTIONS = {"arch": "mlp:32,32", "method": Options(Schedule(epochs=4))}


def learned(root: Path, *names: str) -> str:
    return str(shutil.copytree(bars_store(*names), root))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(bars_store(*PAIRS))


@pytest.fixture
def mixed() -> Batch:
    return batch_of(tuple(c for pair in PAIRS.values() for c in pair), 800, 2)


def scored(report: PredictReport) -> Any:
    assert report.scores is not None
    return report.scores


def test_single_images_of_all_tasks_are_answered(store: str, mixed: Batch) -> None:
    fused, gate = predict(store, mixed), predict(store, mixed, router="gate")
    assert (fused.router, fused.route) == ("fused", "image")
    for found in (fused, gate):
        assert scored(found).accuracy > 0.98
        assert scored(found).calibration_error < 0.05
        assert bool(((found.confidence > 0) & (found.confidence <= 1)).all())
    # The paper's evidence is nowhere near: the gate is what makes the difference.
    assert scored(predict(store, mixed, router="loss")).accuracy < 0.8


def test_the_shortlist_alone_is_read(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read: set[str] = set()
    original = Store.read_subnetwork

    def spy(self: Store, task: str, *groups: Any) -> Any:
        read.add(task)
        return original(self, task, *groups)

    monkeypatch.setattr(Store, "read_subnetwork", spy)
    monkeypatch.setattr("clmoe_cli.method.routing.gaussians.GaussianGate.shortlist.__defaults__", (2,))
    predict(store, batch_of(PAIRS["task2"], 1, 3))
    assert read
    assert "task2" in read
    assert len(read) <= 2
    read.clear()
    monkeypatch.setattr("clmoe_cli.method.routing.decide.TASKS", 1)
    predict(store, batch_of(PAIRS["task3"], 40, 3), route="batch")
    assert read == {"task3"}


def test_subnetworks_are_asked_by_fused_alone(store: str, mixed: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    # These bars the gate parts so well that no subnetwork has earned a say: it is given one.
    monkeypatch.setattr("clmoe_cli.api.gating.opinion_of", lambda task: OPINION)
    fused, gate = predict(store, mixed), predict(store, mixed, router="gate")
    assert not np.array_equal(fused.confidence, gate.confidence)
    asked: list[int] = []

    def silent(net: Any, params: Any, x: torch.Tensor) -> torch.Tensor:
        asked.append(len(x))
        return torch.zeros(len(x), 2, dtype=torch.float64)

    monkeypatch.setattr("clmoe_cli.method.reproducible.logits", silent)
    assert np.array_equal(predict(store, mixed, router="gate").confidence, gate.confidence)
    assert not asked
    # An opinion of one half each, at its weight: what it takes from the surer class it gives to the other.
    told = predict(store, mixed)
    sure = gate.confidence > 0.999
    assert sum(asked) >= len(mixed.images)
    assert float((gate.confidence - told.confidence)[sure].mean()) == pytest.approx(OPINION / 2, abs=0.005)


def test_rejection_keeps_its_rate_whatever_was_learned_later(tmp_path: Path) -> None:
    first = batch_of(PAIRS["task1"], 1500, 7)
    rates = []
    for number in range(1, len(PAIRS) + 1):
        root = bars_store(*list(PAIRS)[:number])
        found = predict(str(root), first, reject=0.1)
        rates.append(float((~found.known).mean()))
        assert np.array_equal(found.known, ~(found.p_value < 0.1))
    assert 0.06 < rates[0] < 0.15
    assert max(rates) - min(rates) < 0.01
    unknown = predict(str(root), batch_of((2, 5), 300, 7), reject=0.1)
    assert float((~unknown.known).mean()) > 0.6
    assert unknown.to_json()["rejected"] == int((~unknown.known).sum())


def test_the_order_of_the_tasks_does_not_matter(mixed: Batch) -> None:
    names = list(PAIRS)[:2]
    store, other = (str(bars_store(*order)) for order in (names, names[::-1]))
    loaders = [Loader(Store.open(path)) for path in (store, other)]
    for name in names:
        one, two = (loader.answering(name)[0] for loader in loaders)
        assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(two).values(), strict=True))
    found, wanted = (predict(path, mixed, router="gate") for path in (other, store))
    assert np.array_equal(found.label, wanted.label)
    np.testing.assert_allclose(found.p_value, wanted.p_value)


@pytest.mark.campaign
def test_a_pruned_task_was_never_seen(store: str, mixed: Batch, tmp_path: Path) -> None:
    own, never = tmp_path / "own", learned(tmp_path / "never", "task1", "task3", "task4")
    shutil.copytree(store, own)
    before = predict(str(own), batch_of(PAIRS["task4"], 60, 5), task="task4")
    prune(str(own), PruneOptions(task="task2"), lambda plan: True)
    gates = [Store.open(path).manifest.gates[0] for path in (own, never)]
    assert gates[0] == gates[1]
    found, wanted = (predict(str(path), mixed, router="gate") for path in (own, never))
    assert found.to_json() == wanted.to_json() | {"predictions": plain(found.rows())}
    assert np.array_equal(found.confidence, wanted.confidence)
    assert np.array_equal(found.p_value, wanted.p_value)
    after = predict(str(own), batch_of(PAIRS["task4"], 60, 5), task="task4")
    assert np.array_equal(before.confidence, after.confidence)


@pytest.mark.parametrize("router", EVERY)
def test_batches_of_a_file(store: str, router: str) -> None:
    names = ("task3", "task1", "task4", "task2")
    parts = [batch_of(PAIRS[name], 50, 9) for name in names]
    joined = Batch(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]), "")
    found = predict(store, joined, router=router, route="batch", batch_size=50)
    assert (found.route, len(found.label)) == ("batch", 200)
    per_batch = [set(found.task[i : i + 50].tolist()) for i in range(0, 200, 50)]
    assert all(len(tasks) == 1 for tasks in per_batch)
    if router in ("fused", "gate", "fisher"):
        assert per_batch == [{name} for name in names]
        assert scored(found).accuracy > 0.95


def test_a_last_batch_may_be_shorter(store: str) -> None:
    part = batch_of(PAIRS["task2"], 45, 4)
    for router in ("fused", "fisher"):
        assert set(predict(store, part, router=router, route="batch", batch_size=20).task.tolist()) == {"task2"}
    whole = predict(store, part, route="batch", batch_size=1000)
    assert np.array_equal(whole.label, predict(store, part, route="batch").label)


def test_a_large_batch_is_answered_in_parts(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    batch = batch_of(PAIRS["task3"], 130, 4)
    wanted = predict(store, batch, route="batch")
    seen: list[int] = []

    def spy(x: torch.Tensor, shape: tuple[int, ...], name: str, **more: Any) -> torch.Tensor:
        seen.append(len(x))
        return features(x, shape, name, **more)

    monkeypatch.setattr("clmoe_cli.api.gating.features", spy)
    monkeypatch.setattr("clmoe_cli.api.gating.CHUNK", 50)
    found = predict(store, batch, route="batch")
    assert seen == [50, 50, 50, 30]
    assert np.array_equal(found.label, wanted.label)
    assert np.array_equal(found.task, wanted.task)
    np.testing.assert_allclose(found.p_value, wanted.p_value, atol=0.01)
    seen.clear()
    predict(store, batch, route="batch", batch_size=50)
    assert seen == [50, 50, 30]


def test_options_that_make_no_sense(store: str, mixed: Batch) -> None:
    for told in ({"batch_size": 5}, {"batch_size": 0, "route": "batch"}, {"router": "gates"}, {"reject": 1.5}):
        with pytest.raises(UsageProblem):
            predict(store, mixed, **told)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="shape"):
        predict(store, batch_of((0, 3), 5, 0).__class__(np.zeros((2, 1, 9, 9), np.uint8), None, ""))


def test_a_store_of_other_features_says_so(store: str, mixed: Batch, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(store, own)
    with writer(str(own)) as locked:
        record = locked.manifest.gates[0].model_copy(update={"features": "scattering-9"})
        locked.commit(locked.manifest.model_copy(update={"gates": (record,)}))
    with pytest.raises(StoreIncompatible, match="another --router"):
        predict(str(own), mixed)
    with pytest.raises(StoreIncompatible, match="another --store"):
        learn(str(own), batch_of(PAIRS["task1"], 500, 1), LearnOptions(name="task1", **OPTIONS))
    with writer(str(own)) as locked:
        locked.commit(locked.manifest.model_copy(update={"gates": ()}))
    with pytest.raises(StoreIncompatible):
        predict(str(own), mixed)
    with pytest.raises(StoreIncompatible):
        learn(str(own), batch_of(PAIRS["task1"], 500, 1), LearnOptions(name="task1", **OPTIONS))
    assert len(predict(str(own), mixed, router="fisher").label) == 800


def test_refining_replaces_the_statistics_in_their_place(store: str, mixed: Batch, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(store, own)
    report = learn(str(own), batch_of(PAIRS["task2"], 900, 11), LearnOptions(if_known="refine", **OPTIONS))
    assert (report.status, report.task) == ("refined", "task2")
    loader, old = Loader(Store.open(own)), Loader(Store.open(store))
    gate, before = loader.gate((1, 16, 16)), old.gate((1, 16, 16))
    assert isinstance(gate, GaussianGate)
    assert isinstance(before, GaussianGate)
    changed = (gate.solved.means != before.solved.means).any(dim=1)
    assert changed.tolist() == [False, False, True, True, False, False, False, False]
    assert loader.answering("task2")[0].counts.tolist() == [450.0, 450.0]
    assert scored(predict(str(own), mixed)).accuracy > 0.97


@pytest.mark.parametrize("shape", [(20,), (1, 4, 6)])
@pytest.mark.parametrize("unit", some((1.0, 1e4, 1e-4), 1e4))
def test_vectors_of_any_unit_have_a_gate_too(shape: tuple[int, ...], unit: float, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    size = int(np.prod(shape))
    centres = rng.normal(0, 1, (2, size))
    # Classes 2 and 3 point where 0 and 1 do: only their length tells them apart.
    centres = np.concatenate([centres, 3 * centres])

    def blob(classes: tuple[int, ...], n: int) -> Batch:
        y = np.array(classes)[np.arange(n) % len(classes)]
        x = unit * (centres[y] + rng.normal(0, 0.15, (n, size)))
        return Batch(x.astype(np.float32).reshape(n, *shape), y, "")

    scales = []
    for pair in ((0, 1), (2, 3)):
        learn(str(tmp_path / "s"), blob(pair, 300), LearnOptions(**OPTIONS))
        (record,) = Store.open(tmp_path / "s").manifest.gates
        scales.append(record.input_scale)
    assert record.features == "vector-1"
    assert scales[0] == scales[1]
    assert (scales[0] == 1.0) == (unit == 1.0)
    assert scored(predict(str(tmp_path / "s"), blob((0, 1, 2, 3), 300), router="gate")).accuracy > 0.97


def test_scores_by_hand() -> None:
    truth = np.array([1, 5, 5, 2, 9, 1])
    book = LabelEncoder.of([1, 5, 2])
    predicted = np.array(book.codes([1, 5, 2, 2, 1, 5]))
    task = np.array(["a", "b", "b", "b", "a", "a"])
    found = score(truth, predicted, book, task, np.full(6, 0.5), {"a": (1, 5), "b": (2, 5)})
    assert found.accuracy == 0.5
    assert found.accuracy_by_task == {"a": 0.5, "b": pytest.approx(2 / 3)}
    assert found.confusion == (
        Confusion(("a",), 2, {"a": 2}),
        Confusion(("a", "b"), 2, {"b": 2}),
        Confusion(("b",), 1, {"b": 1}),
        Confusion((), 1, {"a": 1}),
    )
    # Names of class folders are text.
    tasks: dict[str, tuple[int | str, ...]] = {"a": (1, 5), "b": (2, 5)}
    named = score(truth.astype(str), predicted, book, task, np.full(6, 0.5), tasks)
    # A label that no task knows stays the text that it is.
    assert [row.label for row in named.per_class] == [1, 5, 2, "9"]
    assert replace(named, per_class=found.per_class, wrong=found.wrong) == found
    both = LabelEncoder.of([1, 5, 2], ["1", "5", "2"])
    tasks["c"] = ("1", "5", "2")
    assert score(truth.astype(str), predicted, both, task, np.full(6, 0.5), tasks).accuracy == 0.0


@given(
    confidence=st.lists(st.floats(0, 1), min_size=1, max_size=60),
    right=st.lists(st.booleans(), min_size=60, max_size=60),
)
def test_calibration_error_equals_the_slow_reference(confidence: list[float], right: list[bool]) -> None:
    total = 0.0
    for b in range(15):
        inside = [i for i, c in enumerate(confidence) if min(int(c * 15), 14) == b]
        total += abs(sum(confidence[i] - right[i] for i in inside))
    found = calibration_error(np.array(confidence), np.array(right[: len(confidence)]))
    assert found == pytest.approx(total / len(confidence))


def test_statistics_of_very_many_images_rest_on_some(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clmoe_cli.api.measuring.MOST", 60)
    x, y = bars([2, 5], 400, 1)
    # The second half looks otherwise: it must have its share.
    x[200:] = 255 - x[200:].transpose(0, 2, 1)
    learn(str(tmp_path / "s"), Batch(x[:, None], y, ""), LearnOptions(name="many", **OPTIONS))
    found = Loader(Store.open(tmp_path / "s")).answering("many")[0]
    assert found.counts.tolist() == [60.0, 60.0]
    later = predict(str(tmp_path / "s"), Batch(x[300:, None], y[300:], ""))
    assert float((later.p_value < 0.05).mean()) < 0.3


def test_inspect_counts_the_gate(store: str) -> None:
    found = inspect(store).bytes
    assert found.gates == {"1×16×16": Store.open(store).manifest.gates[0].solved.size}
    assert found.total == sum(ref.size for ref in Store.open(store).manifest.objects())


def test_the_command_line(store: str, mixed: Batch, tmp_path: Path) -> None:
    np.savez(tmp_path / "mixed.npz", x=mixed.images[:, 0], y=mixed.labels)

    def clmoe(*args: str) -> subprocess.CompletedProcess[str]:
        command = [forking.served() / "clmoe", "predict", "--batch", str(tmp_path / "mixed.npz"), *args]
        return subprocess.run(
            command, check=False, capture_output=True, text=True, env={**os.environ, "CLMOE_STORE": store}
        )

    shown = clmoe("--reject", "0.05")
    assert shown.returncode == 0, shown.stderr
    assert "% of 800 images" in shown.stdout
    assert "answered by" in shown.stdout
    assert all(name in shown.stdout for name in PAIRS)
    found = json.loads(clmoe("--reject", "0.05", "--json", "-q").stdout)
    assert {"accuracy", "accuracy_by_task", "confusion", "calibration_error", "rejected"} <= set(found)
    rows = found["predictions"]
    assert all(row["known"] == (row["p_value"] >= 0.05) for row in rows)
    assert found["rejected"] == sum(not row["known"] for row in rows)
    assert sum(row["images"] for row in found["confusion"]) == 800
    wrong = clmoe("--batch-size", "5")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert "--route batch" in wrong.stderr
