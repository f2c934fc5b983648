"""``clmoe.sklearn``: the checks of scikit-learn, pipelines, and learning class after class."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

import clmoe
from clmoe.sklearn import ContinualClassifier

X, Y = load_iris(return_X_y=True)
NAMES = np.array(["setosa", "versicolor", "virginica"])


def quick(**options: Any) -> ContinualClassifier:
    return ContinualClassifier(arch="mlp:8", epochs=1, **options)


@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([quick()])
def test_it_is_an_estimator(estimator: Any, check: Any) -> None:
    check(estimator)


def test_it_goes_into_pipelines_and_cross_validation() -> None:
    scores = cross_val_score(make_pipeline(StandardScaler(), quick()), X, Y, cv=3)
    assert scores.mean() > 0.9


@pytest.mark.filterwarnings("ignore:one class only", "ignore:only")
@pytest.mark.parametrize("kind", ["objects", "series", "categories"])
def test_labels_of_pandas_come_task_by_task(kind: str) -> None:
    labels = NAMES[Y].astype(object)
    given = labels if kind == "objects" else pd.Series(labels, dtype="category" if kind == "categories" else None)
    found = quick()
    for part in (Y < 2, Y == 2):
        found.partial_fit(X[part], given[part])
    assert found.classes_.tolist() == NAMES.tolist()
    assert len(found.store_.tasks) == 2
    assert found.score(X, given) > 0.9


@pytest.mark.filterwarnings("ignore:one class only", "ignore:only")
def test_classes_come_one_after_the_other() -> None:
    found = quick()
    for label in NAMES:
        found.partial_fit(X[NAMES[Y] == label], NAMES[Y][NAMES[Y] == label])
    assert found.classes_.tolist() == NAMES.tolist()
    assert len(found.store_.tasks) == 3
    assert found.score(X, NAMES[Y]) > 0.9
    shares = found.predict_proba(X)
    assert shares.shape == (150, 3)
    np.testing.assert_allclose(shares.sum(axis=1), 1.0)
    np.testing.assert_allclose(shares.max(axis=1), found.store_.predict(X).confidence, atol=1e-12)
    assert found.predict(X).tolist() == found.store_.predict(X).label.tolist()


def test_a_pickle_brings_its_store_along(tmp_path: Path) -> None:
    found = quick().fit(X, Y)
    again = pickle.loads(pickle.dumps(found))  # noqa: S301 - of this test's own
    assert again.store_.path != found.store_.path
    np.testing.assert_array_equal(again.predict_proba(X), found.predict_proba(X))
    with pytest.raises(AttributeError):
        clone(found).classes_  # noqa: B018


def test_a_folder_is_a_store_like_any_other(tmp_path: Path) -> None:
    folder = tmp_path / "store"
    quick(store=folder).fit(X[Y < 2], NAMES[Y[Y < 2]])
    assert clmoe.Store(folder).tasks[0].classes == ("setosa", "versicolor")
    with pytest.raises(ValueError, match=r"the store has tasks: .*; partial_fit goes on with them"):
        quick(store=folder).fit(X, Y)


def test_labels_that_a_store_does_not_know_are_coded() -> None:
    found = quick().fit(X, Y == 0)
    assert found.classes_.tolist() == [False, True]
    assert found.score(X, Y == 0) > 0.95
    with pytest.raises(ValueError, match="are all given to the first call"):
        quick().fit(X[Y < 2], Y[Y < 2] * 1.0).partial_fit(X, Y * 1.0)


def test_numbers_and_text_are_not_labels_of_one_estimator() -> None:
    for first, then in ((Y, NAMES[Y]), (NAMES[Y], Y), (NAMES[Y].astype(object), Y)):
        found = quick().fit(X[Y < 2], first[Y < 2])
        with pytest.raises(ValueError, match="all numbers or all text"):
            found.partial_fit(X[Y == 2], then[Y == 2])
        assert len(found.store_.tasks) == 1
        assert found.predict(X[:1]) == first[:1]
