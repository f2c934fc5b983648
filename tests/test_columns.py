"""Names of the columns of a table: what is in another place than when it was learned, or lacks, is named."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import clmoe

HEADER = ("height", "width", "weight, kg", "größe", "age")


def told_apart(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows [2·count, 5] of two classes, and their labels."""
    x = np.random.default_rng(seed).normal(size=(2 * count, 5)) + np.repeat([[0.0], [3.0]], count, axis=0)
    return x.round(3), np.repeat(["small", "large"], count)


def written(path: Path, order: Sequence[int], names: Sequence[str] = HEADER, seed: int = 1) -> Path:
    x, y = told_apart(40, seed)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(names[i] for i in order), "label"])
        rows.writerows([*row, label] for row, label in zip(x[:, list(order)].tolist(), y, strict=True))
    return path


def test_columns_in_another_order_are_refused_with_their_places(tmp_path: Path) -> None:
    store = clmoe.Store(tmp_path / "store")
    store.learn(written(tmp_path / "learned.csv", range(5)), name="first", arch="mlp:4", epochs=1)
    learned = store.report().to_json()
    moved = written(tmp_path / "moved.csv", [1, 0, 2, 4, 3], seed=2)
    words = (
        r"in another order than when they were learned: .*; found 'width' at 0, not 1, 'height' at 1, not 0, 'age' at 3"
    )
    table = pd.read_csv(moved)
    for ask in (store.predict, store.detect, store.learn):
        for given in (moved, table):
            with pytest.raises(clmoe.BadInput, match=words):
                ask(given)
    with pytest.raises(clmoe.BadInput, match=words):
        store.predict(moved, task="first")
    assert store.report().to_json() == learned
    assert store.predict(written(tmp_path / "same.csv", range(5), seed=2)).accuracy is not None
    assert store.predict(table[[*HEADER, "label"]]).accuracy == store.predict(tmp_path / "same.csv").accuracy
    # Other names, and none, are taken as they come.
    assert store.predict(written(tmp_path / "renamed.csv", range(5), ["a", "b", "c", "d", "height"])).count == 80
    assert store.predict(told_apart(5, 3)[0]).count == 10


def test_columns_that_lack_are_named(tmp_path: Path) -> None:
    store = clmoe.Store(tmp_path / "store")
    store.learn(written(tmp_path / "learned.csv", range(5)), name="first", arch="mlp:4", epochs=1)
    with pytest.raises(clmoe.BadInput, match=r"expected 5; .* \(missing: weight, kg; not learned: nothing\)"):
        store.predict(written(tmp_path / "less.csv", [0, 1, 3, 4]))
    more = pd.read_csv(tmp_path / "less.csv").assign(x=1.0, z=2.0)
    with pytest.raises(clmoe.BadInput, match=r"\(missing: weight, kg; not learned: x, z\)"):
        store.predict(more)
