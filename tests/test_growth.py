from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_store as small
import torch
from pictures import spots

from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.method.tasks.placement import Candidate, KnownTask, Thresholds, compare
from clmoe_cli.store_tensors import Loader
from store_schema import BadInput, Store, SubnetworkRecord
from store_schema.subnetworks import GROUPS

ALL_CONSTRUCTIVE = Thresholds(overlap=0.0, divergence=9.0, least=-1.0)


@pytest.mark.campaign
def test_a_full_expert_is_followed_by_another_that_learns_as_well(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    # Each task takes 40 % of the weights: the fourth finds nothing left.
    method = Options(Schedule(epochs=15), Tolerance(starts=(0.4,), floor=0.4))
    options = LearnOptions(arch="mlp:6", method=method, thresholds=ALL_CONSTRUCTIVE)
    alone = LearnOptions(arch="mlp:6", method=method)
    for number in range(8):
        centres = [5 * number, 5 * number + 2]
        data, asked = spots(centres, 2 * number, 600, number), spots(centres, 2 * number, 400, 100 + number)
        before = inspect(store).experts[0] if number else None
        report = learn(store, data, options)
        if report.expert == "e2":
            break
    assert report.expert == "e2"
    assert report.new_expert
    assert "no free capacity in expert e1" in report.reason
    assert before is not None
    assert max(layer.frozen_percent for layer in before.layers) > 95
    learn(str(tmp_path / "empty"), data, alone)
    reached = predict(store, asked, task=report.task).accuracy
    empty = predict(str(tmp_path / "empty"), asked, task="task1").accuracy
    assert reached is not None
    assert empty is not None
    assert reached >= empty - 0.02
    assert reached > 0.9


@pytest.mark.parametrize(("thresholds", "cause"), [
    (Thresholds(divergence=9.0, least=1.1), "overlap"),
    (Thresholds(overlap=0.0, divergence=-0.1, least=-1.0), "diverges"),
])  # fmt: skip
def test_too_little_overlap_and_divergence_start_an_expert(tmp_path: Path, thresholds: Thresholds, cause: str) -> None:
    store = str(tmp_path / "store")
    options = LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=3)), thresholds=thresholds)
    learn(store, spots([5, 9], 0, 200, 0), options)
    report = learn(store, spots([30, 40], 2, 200, 1), options)
    assert (report.expert, report.new_expert, report.reads) == ("e2", True, ())
    assert cause in report.reason


def two_tasks(store: str, options: LearnOptions) -> None:
    """A first task from few images, and a second one that reads it."""
    learn(store, spots([5, 9], 0, 12, 0), options)
    learn(store, spots([30, 40], 2, 600, 1), options)


def test_a_task_reads_the_weights_of_constructive_tasks_and_of_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, constructive = small.build(tmp_path / "store", 1), set[str]()

    def judged(known: KnownTask, *args: Any) -> Candidate:
        return replace(compare(known, *args), constructive=known.name in constructive)

    monkeypatch.setattr("clmoe_cli.api.next_step.compare", judged)
    for number in (2, 3):
        constructive |= {"task1"} if number == 3 else set()
        report = learn(str(root), small.batch(number), replace(small.OPTIONS, expert="e1"))
        assert (report.task, report.expert) == (f"task{number}", "e1")
    store = Store.open(root)
    masks = {t.name: store.read_subnetwork(t.name).masks for t in store.manifest.tasks}
    one, two, three = (masks[f"task{n}"] for n in (1, 2, 3))
    for layer in one:
        assert not (one[layer] & two[layer]).any()
        assert not (two[layer] & three[layer]).any()
    assert any((one[layer] & three[layer]).any() for layer in one)


def test_learning_reads_the_statistics_of_a_known_task_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, reads = small.build(tmp_path / "store", 2), Counter[str]()
    original = Store.read_subnetwork

    def spy(self: Store, task: str, groups: Collection[str] = GROUPS) -> SubnetworkRecord:
        reads[task] += "gate" in groups and set(groups) != set(GROUPS)
        return original(self, task, groups)

    monkeypatch.setattr(Store, "read_subnetwork", spy)
    learn(str(root), small.batch(3), small.OPTIONS)
    assert reads == {"task1": 1, "task2": 1}


def test_more_images_refine_a_task_and_leave_the_others_bit_for_bit(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    options = LearnOptions(arch="mlp:32,16", method=Options(Schedule(epochs=10)), thresholds=ALL_CONSTRUCTIVE)
    two_tasks(store, options)
    first, second = spots([5, 9], 0, 500, 7), spots([30, 40], 2, 500, 8)
    # The gate is right from a few images; the subnetwork alone shows what more of them teach.
    before, kept = predict(store, first, task="task1", router="fisher"), predict(store, second, task="task2")
    old = Loader(Store.open(store)).task("task1")
    more = LearnOptions(arch=options.arch, method=options.method, if_known="refine", alpha=0.0)
    report = learn(store, spots([5, 9], 0, 1200, 2), more)
    assert (report.status, report.task) == ("refined", "task1")
    # The first task found nothing to reuse, whoever reads it later.
    assert [layer.reused for layer in report.layers] == [0, 0]
    after = predict(store, first, task="task1", router="fisher")
    assert after.accuracy is not None
    assert before.accuracy is not None
    assert after.accuracy > before.accuracy
    assert after.accuracy > 0.95
    loader = Loader(Store.open(store))
    new, other = loader.task("task1"), loader.task("task2")
    # Free weights were tried as well, what the other task uses stood still, and what nobody uses is zero.
    assert any(bool((mask & ~old.mask[name]).any()) for name, mask in new.mask.items())
    for name, mask in new.mask.items():
        both = mask & other.mask[name]
        assert torch.equal(new.params[name][both], other.params[name][both])
        assert not loader.shared("e1")[name][~(mask | other.mask[name])].any()
    same = predict(store, second, task="task2")
    assert np.array_equal(same.confidence, kept.confidence)
    assert np.array_equal(same.labels, kept.labels)
    assert inspect(store, check=True).verified


def test_refining_gives_weights_up_that_nobody_else_uses(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    dense = Options(Schedule(epochs=10), Tolerance(starts=(0.9,), floor=0.9))
    learn(store, spots([5, 9], 0, 80, 0), LearnOptions(arch="mlp:32,16", method=dense))
    sparse = Options(Schedule(epochs=10), Tolerance(starts=(0.2,), floor=0.2))
    more = LearnOptions(arch="mlp:32,16", method=sparse, if_known="refine", alpha=0.0)
    assert learn(store, spots([5, 9], 0, 1200, 2), more).status == "refined"
    loader = Loader(Store.open(store))
    for name, mask in loader.task("task1").mask.items():
        assert float(mask.double().mean()) < 0.5
        assert not loader.shared("e1")[name][~mask].any()


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (spots([5, 9], 0, 60, 2), "too few images"),
        (Batch(spots([5, 9], 0, 600, 2).images[::2], np.zeros(300, dtype=np.int64), ""), "classes are missing"),
        (Batch(np.concatenate([spots([5, 9], 0, 600, 2).images[::2], spots([5, 9], 0, 20, 3).images]),
               np.concatenate([np.zeros(300, dtype=np.int64), spots([5, 9], 0, 20, 3).labels]), ""), "too rare"),
    ],
)  # fmt: skip
def test_data_that_would_make_a_task_forget_do_not_refine_it(tmp_path: Path, given: Batch, complaint: str) -> None:
    store = str(tmp_path / "store")
    options = LearnOptions(arch="mlp:32,16", method=Options(Schedule(epochs=5)))
    learn(store, spots([5, 9], 0, 80, 0), options)
    before = Store.open(store).manifest
    with pytest.raises(BadInput, match=complaint):
        learn(store, given, LearnOptions(arch="mlp:32,16", method=options.method, if_known="refine", alpha=0.0))
    assert Store.open(store).manifest == before


def test_a_stray_label_of_another_task_is_not_known(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    options = LearnOptions(arch="mlp:32,16", method=Options(Schedule(epochs=5)))
    learn(store, spots([5, 9], 0, 600, 0), options)
    learn(store, spots([30, 40], 2, 600, 1), options)
    again, stray = spots([5, 9], 0, 2000, 3), spots([30, 40], 2, 1, 4)
    assert learn(store, again, options).status == "known"
    assert again.labels is not None
    assert stray.labels is not None
    mixed = Batch(np.concatenate([again.images, stray.images]), np.concatenate([again.labels, stray.labels]), "")
    assert learn(store, mixed, options).status == "learned"


def test_a_broken_image_is_named(tmp_path: Path) -> None:
    data = spots([5, 9], 0, 600, 0)
    data.images[7, 3] = 1e30
    with pytest.raises(BadInput, match="far beyond the others") as caught:
        learn(str(tmp_path / "store"), data, LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=2))))
    assert caught.value.key == "row 7, feature 3, both from 0"
    assert caught.value.exit_code == 3


def test_a_task_that_is_only_guessed_is_reported(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    noise = Batch(rng.random((600, 64), dtype=np.float32), rng.integers(0, 2, 600), "")
    options = LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=2)))
    assert "guessing" in {c.code for c in learn(str(tmp_path / "noise"), noise, options).warnings}
    found = learn(str(tmp_path / "spots"), spots([5, 9], 0, 600, 0), options).warnings
    assert "guessing" not in {c.code for c in found}
