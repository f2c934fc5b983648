"""Tables of how right answers are, on pages and in a terminal."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_store as small
from test_one_task import GOLDEN, confused
from test_showing import harmless

from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.reports import Bin, ClassAccuracy, WrongAnswer
from clmoe_cli.api.scoring import calibration, calibration_error, gap
from clmoe_cli.report import judging
from clmoe_cli.report.html import report_page
from clmoe_cli.report.judging import Judged


def test_the_matrix_counts_every_image_once() -> None:
    per_class = [ClassAccuracy(1, 10, 0.7), ClassAccuracy("1", 4, 0.25), ClassAccuracy("cat", 0, None)]
    wrong = [WrongAnswer(1, "1", 2), WrongAnswer(1, None, 1), WrongAnswer("1", 1, 3)]
    found = Judged.of(per_class, wrong, [])
    assert found.confusion == (
        ("label", "#images", "#1", "#1", "#cat", "#a class that is gone"),
        [("1", 10, 7, 2, "", 1), ("1", 4, 3, 1, "", ""), ("cat", 0, "", "", "", "")],
    )
    assert [row[0] for row in found.classes[1]] == ["1", 1, "cat"]
    assert found.classes[1][1] == (1, 10, "70.00 %", "1 (2), a class that is gone (1)")


def test_of_many_labels_the_most_frequent_pairs_are_listed() -> None:
    per_class = [ClassAccuracy(i, 10, 0.5) for i in range(300)]
    wrong = [WrongAnswer(i, (i + 1) % 300, 1 + i % 5) for i in range(300)]
    found = Judged.of(per_class, wrong, None)
    assert found.confusion is not None
    assert len(found.confusion[1]) == judging.PAIRS
    assert all(row[2] == 5 for row in found.confusion[1])
    assert found.about_confusion.startswith("The 40 most frequent of 300 pairs")
    assert "600 more wrong answers" in found.about_confusion  # 1,500 are wrong, 900 are in the list
    assert len(found.classes[1]) == judging.CLASSES
    assert "100 more classes" in found.about_classes
    assert found.about_calibration.startswith("Not kept")


def test_bins_of_parts_are_those_of_the_whole() -> None:
    rng = np.random.default_rng(3)
    confidence = rng.random(400)
    right = rng.random(400) < confidence**2
    parts = [*calibration(confidence[:150], right[:150]), *calibration(confidence[150:], right[150:])]
    whole = calibration(confidence, right)
    for one, same in zip(judging.together(parts), whole, strict=True):
        assert (one.images, one.right) == (same.images, same.right)
        assert one.confidence == pytest.approx(same.confidence)
    assert gap(whole) == pytest.approx(calibration_error(confidence, right))
    # By hand: one bin of ten, of which half are right.
    assert gap(calibration(np.full(10, 0.9), np.arange(10) < 5)) == pytest.approx(0.4)
    assert calibration(np.array([1.0, 0.0]), np.array([True, False])) == (Bin(1, 0, 0.0), Bin(1, 1, 1.0))


def test_the_page_of_a_store_has_dates_words_and_wrong_answers(tmp_path: Path) -> None:
    report = inspect(str(confused(small.build(tmp_path / "s", 2))))
    text = report_page(report).decode()
    page = harmless(text)
    assert {"words", "Confusion of labels", "Accuracy by class", "Calibration", "subnetwork"} <= set(page.texts)
    assert report.history[0].at is not None
    assert f"<td>{report.history[0].at[:16].replace('T', ' ')}</td>" in text
    assert "<td>0 (2), 2 (1)</td>" in text
    old = report_page(inspect(str(GOLDEN / "format3" / "store"))).decode()
    assert "Not kept" in old
    assert "Confusion of labels" not in old
    assert "<td>not kept</td>" in old
    hostile = replace(report.tasks[0], confusion=(WrongAnswer(4, "<script>", 1),))
    assert "<script>" not in report_page(replace(report, tasks=(hostile, *report.tasks[1:]))).decode()
