from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clmoe_cli.commands.inspect import inspect
from clmoe_cli.commands.learn import learn
from clmoe_cli.commands.options import LearnOptions
from clmoe_cli.commands.predict import predict
from clmoe_cli.continual.learning import Options
from clmoe_cli.continual.placement import Thresholds
from clmoe_cli.continual.selection import Tolerance
from clmoe_cli.continual.training import Schedule
from clmoe_cli.data import Batch

ALL_CONSTRUCTIVE = Thresholds(overlap=-9.0, divergence=9.0, least=-1.0)


def spots(centres: list[int], first: int, n: int, seed: int) -> Batch:
    """Noisy 8×8 images with one bright pixel, whose place is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % len(centres)
    x = rng.random((n, 64), dtype=np.float32) * 0.4
    x[np.arange(n), np.array(centres)[labels]] += 0.7
    return Batch(x, labels + first, f"spots {centres}")


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
    assert max(layer["frozen_percent"] for layer in before["layers"]) > 95
    learn(str(tmp_path / "empty"), data, alone)
    reached = predict(store, asked, task=report.task).accuracy
    empty = predict(str(tmp_path / "empty"), asked, task="task1").accuracy
    assert reached is not None
    assert empty is not None
    assert reached >= empty - 0.02
    assert reached > 0.9


@pytest.mark.parametrize(("thresholds", "cause"), [
    (Thresholds(divergence=9.0, least=1.1), "overlap"),
    (Thresholds(overlap=-9.0, divergence=-0.1, least=-1.0), "diverges"),
])  # fmt: skip
def test_too_little_overlap_and_divergence_start_an_expert(tmp_path: Path, thresholds: Thresholds, cause: str) -> None:
    store = str(tmp_path / "store")
    options = LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=3)), thresholds=thresholds)
    learn(store, spots([5, 9], 0, 200, 0), options)
    report = learn(store, spots([30, 40], 2, 200, 1), options)
    assert (report.expert, report.new_expert, report.reads) == ("e2", True, ())
    assert cause in report.reason


def test_more_images_refine_a_task_and_leave_the_others_bit_for_bit(tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    options = LearnOptions(arch="mlp:32,16", method=Options(Schedule(epochs=10)), thresholds=ALL_CONSTRUCTIVE)
    learn(store, spots([5, 9], 0, 80, 0), options)
    learn(store, spots([30, 40], 2, 600, 1), options)
    first, second = spots([5, 9], 0, 500, 7), spots([30, 40], 2, 500, 8)
    before, kept = predict(store, first, task="task1"), predict(store, second, task="task2")
    more = LearnOptions(arch=options.arch, method=options.method, if_known="refine", alpha=0.0)
    report = learn(store, spots([5, 9], 0, 1200, 2), more)
    assert (report.status, report.task) == ("refined", "task1")
    after = predict(store, first, task="task1")
    assert after.accuracy is not None
    assert before.accuracy is not None
    assert after.accuracy >= before.accuracy
    assert after.accuracy > 0.95
    same = predict(store, second, task="task2")
    assert np.array_equal(same.confidence, kept.confidence)
    assert np.array_equal(same.labels, kept.labels)
    assert inspect(store, check=True).verified
