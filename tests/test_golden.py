"""Stores that earlier versions wrote open, answer as they did, and can be gone on with."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import small_store as small

from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from store_schema import Store, layout, verify

GOLDEN = Path(__file__).parent / "golden"


def formats() -> list[str]:
    return sorted(p.name for p in GOLDEN.glob("format*"))


def test_each_format_has_a_golden_store() -> None:
    assert formats() == [f"format{n}" for n in range(1, layout.FORMAT_VERSION + 1)]


@pytest.mark.parametrize("name", formats())
def test_it_opens_answers_and_is_gone_on_with(name: str, tmp_path: Path) -> None:
    root = Path(shutil.copytree(GOLDEN / name / "store", tmp_path / "store"))
    expected = np.load(GOLDEN / name / "expected.npz")
    assert verify(root) == []
    assert Store.open(root).manifest.content_hash() == str(expected["content_hash"])
    full = predict(str(root), Batch(expected["x"], None, "golden"))
    np.testing.assert_array_equal(full.task, expected["task"])
    np.testing.assert_array_equal(full.label, expected["label"])
    # Kernels differ between machines.
    np.testing.assert_allclose(full.confidence, expected["confidence"], atol=1e-3)
    small.learn_next(root, 3)
    assert [t.name for t in Store.open(root).manifest.tasks] == ["task1", "task2", "task3"]
    assert verify(root) == []
    for task in ("task1", "task2"):
        answer = predict(str(root), Batch(expected["x"], None, "golden"), task=task)
        own = expected["task"] == task
        np.testing.assert_array_equal(answer.label[own], expected["label"][own])
