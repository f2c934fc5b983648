"""Names of the columns of a table: what is in another place than when it was learned, or lacks, is named."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import clmoe
from clmoe_cli.api.inputs import other_columns

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


def test_a_table_that_lacks_columns_is_learned_with_a_warning(tmp_path: Path) -> None:
    store = clmoe.Store(tmp_path / "store")
    store.learn(written(tmp_path / "learned.csv", range(5)), name="first", arch="mlp:4", epochs=1)
    less = pd.read_csv(written(tmp_path / "less.csv", [0, 1, 3, 4])).assign(z=1.0, w=1.0)
    words = r"columns are not those of the table that was learned: .*found without weight, kg; with z, w; a table of"
    with pytest.warns(UserWarning, match=words):
        assert store.detect(less).verdict == "new"
    with pytest.warns(UserWarning, match=words) as said:
        assert store.learn(less, dry_run=True, arch="mlp:4").dry_run
    assert {warning.filename for warning in said} == {__file__}
    assert [task.name for task in store.tasks] == ["first"]
    with pytest.warns(UserWarning, match=words):
        report = store.learn(less, name="second", arch="mlp:4", epochs=1)
    assert "columns" in [caution.code for caution in report.warnings]
    # Another table, of which a column happens to have a name of the first one's.
    other = pd.DataFrame(told_apart(40, 3)[0][:, :3], columns=["age", "a", "b"])
    assert store.detect(other).warnings == ()


def test_the_table_that_shares_most_is_meant(tmp_path: Path) -> None:
    x, y = told_apart(40, 1)
    store = clmoe.Store(tmp_path / "store")
    whole = pd.DataFrame(np.hstack([x, x]), columns=list("abcdefghij"))
    store.learn(whole, y, name="whole", arch="mlp:4", epochs=1)
    store.learn(pd.DataFrame(x[:, :2], columns=["a", "b"]), y, name="small", arch="mlp:4", epochs=1, expert="new")
    store.learn(
        pd.DataFrame(np.hstack([x, x])[:, :9], columns=list("qrstuvwxy")), y, name="nine", arch="mlp:4", epochs=1
    )
    warn = r"the columns are not those .*found without {}; a table of other columns is another kind of input"
    with pytest.warns(UserWarning, match=warn.format("g, h, i, j")):
        store.detect(whole[list("abcdef")])
    # As wide as a table that it has nothing of: it is answered, and not without a word.
    with pytest.warns(UserWarning, match="found without j; columns are read by their places"):
        report = store.predict(whole.drop(columns="j"))
    assert [caution.code for caution in report.warnings] == ["columns"]
    swapped = whole.rename(columns={"d": "else"})
    with pytest.warns(UserWarning, match="found without d; with else; columns are read by their places"):
        assert set(store.predict(swapped).task) == {"whole"}


def test_of_two_tables_the_one_that_is_as_wide_is_meant(tmp_path: Path) -> None:
    x, y = told_apart(40, 1)
    store = clmoe.Store(tmp_path / "store")
    five = pd.DataFrame(x, columns=list("abcde"))
    store.learn(five, y, name="five", arch="mlp:4", epochs=1)
    with pytest.warns(UserWarning, match="found without e; a table of other columns"):
        store.learn(five[list("abcd")], y, name="four", arch="mlp:4", epochs=1, expert="new")
    other = five.rename(columns={"e": "z"})
    words = "found without e; with z; columns are read by their places"
    with pytest.warns(UserWarning, match=words):
        store.detect(other)
    with pytest.warns(UserWarning, match=words):
        store.learn(other, y, name="other", arch="mlp:4", epochs=1, if_known="new")
    assert store.predict(other).warnings == ()
    with pytest.warns(UserWarning, match=words):
        store.predict(other, task="five")


def test_many_columns_are_compared_at_once(tmp_path: Path) -> None:
    known, given = (tuple(f"{start}{i}" for i in range(100_000)) for start in "ab")
    lacks, new = other_columns([known, ("b0",)], given)
    assert (lacks, len(new)) == ((), 99_999)


@pytest.mark.parametrize(
    ("names", "called"),
    [(("target", "a", "labels"), "target, labels"), (("x", "y", "z"), ""), (("a", "y", "z"), "y"), ("abc", "")],
)
def test_features_that_are_called_like_labels_are_named(names: Sequence[str], called: str, tmp_path: Path) -> None:
    x, y = told_apart(40, 3)
    table = pd.DataFrame(x[:, :3], columns=list(names)).assign(answer=y)
    with warnings.catch_warnings(action="ignore"):
        report = clmoe.Store(tmp_path / "store").learn(table, y="answer", arch="mlp:4", epochs=1)
    found = [caution.text for caution in report.warnings if caution.code == "labels"]
    which = "them" if "," in called else "it"
    wanted = f"called like labels and read as features: {called}; leave {which} out where that tells the answer"
    assert found == ([wanted] if called else [])
