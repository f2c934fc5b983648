"""The public API: every name is there, none costs an import of torch, and the functions work on a store."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shells
import small_store as small

import clmoe


def test_every_name_of_the_api_is_there() -> None:
    assert sorted(clmoe.__all__) == dir(clmoe) == sorted(clmoe._WHERE)
    for name in clmoe.__all__:
        assert getattr(clmoe, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lern'"):
        clmoe.lern  # noqa: B018


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, clmoe; clmoe.LearnReport; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=shells.clean(), timeout=60)


def test_a_task_is_learned_asked_about_and_removed(tmp_path: Path) -> None:
    store, file = str(tmp_path / "store"), tmp_path / "task.npz"
    data = small.batch(1)
    np.savez(file, x=data.images, y=data.labels)
    batch = clmoe.read_batch(str(file), labels="required")
    planned = clmoe.plan(store, batch, small.OPTIONS)
    learned = clmoe.learn(store, batch, small.OPTIONS)
    assert (planned.task, planned.dry_run, learned.task) == ("task1", True, "task1")
    assert clmoe.detect(store, batch).verdict == "known"
    assert clmoe.predict(store, batch).accuracy is not None
    assert [task.name for task in clmoe.inspect(store).tasks] == ["task1"]
    removed = clmoe.prune(store, clmoe.PruneOptions(task="task1"), lambda plan: True)
    assert removed.removed == ("task1",)
    with pytest.raises(clmoe.ClmoeError):
        clmoe.predict(store, batch)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> str:
    store = str(tmp_path_factory.mktemp("api") / "store")
    clmoe.learn(store, small.batch(1), small.OPTIONS)
    return store


X = small.batch(1).images[:6].astype(np.float32)
ARRAYS = {
    "float64": (lambda: clmoe.Batch(X.astype(float), None, "mine"), "not images: mine; found float64"),
    "a list": (lambda: clmoe.Batch([[1.0]], None, "mine"), "not images: mine; found list"),
    "one image": (
        lambda: clmoe.Batch(X[0, 0], None, "mine") and clmoe.Batch(X[:0], None, "mine"),
        "not a shape of images",
    ),
    "fewer labels": (lambda: clmoe.Batch(X, np.arange(5), "mine"), r"labels do not match.*found \[5\]; expected \[6\]"),
    "labels of float": (lambda: clmoe.Batch(X, np.arange(6.0), "mine"), "not labels: mine; found float64"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_a_batch_of_arrays_is_checked(case: str) -> None:
    make, message = ARRAYS[case]
    with pytest.raises(clmoe.BadInput, match=message):
        make()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("act", ["learn", "detect", "predict"])
def test_values_that_are_no_numbers_are_refused(value: float, act: str, learned: str, tmp_path: Path) -> None:
    data = small.batch(2)
    images = data.images.astype(np.float32) / 255
    images[3, ..., 0] = value
    batch = clmoe.Batch(images, data.labels, "mine")
    call = {
        "learn": lambda store: clmoe.learn(store, batch, small.OPTIONS),
        "detect": lambda store: clmoe.detect(store, batch),
        "predict": lambda store: clmoe.predict(store, batch),
    }[act]
    for store in (learned,) if act != "learn" else (learned, str(tmp_path / "new")):
        with pytest.raises(clmoe.BadInput, match=r"not every value is a number: mine \[image 3\]; found NaN or Inf"):
            call(store)
    assert [task.name for task in clmoe.inspect(learned).tasks] == ["task1"]


@pytest.mark.parametrize("alpha", [2.0, -0.1, np.nan])
def test_an_alpha_that_is_no_rate_is_refused(alpha: float, learned: str) -> None:
    batch = small.batch(2)
    for call in (
        lambda: clmoe.detect(learned, batch, alpha=alpha),
        lambda: clmoe.learn(learned, batch, dataclasses.replace(small.OPTIONS, alpha=alpha)),
        lambda: clmoe.plan(learned, batch, dataclasses.replace(small.OPTIONS, alpha=alpha)),
    ):
        with pytest.raises(clmoe.UsageProblem, match=r"alpha is a rate.*from 0 to 1"):
            call()


def test_what_is_no_batch_is_refused(learned: str) -> None:
    for given in (X, learned, None):
        for call in (clmoe.learn, clmoe.plan, clmoe.detect, clmoe.predict):
            with pytest.raises(clmoe.UsageProblem, match=r"not a batch.*clmoe\.read_batch\(path"):
                call(learned, given)


def test_a_file_is_read_by_its_path_and_only_for_a_use_that_there_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=X)
    assert len(clmoe.read_batch(tmp_path / "a.npz", labels="optional").images) == 6
    with pytest.raises(
        clmoe.UsageProblem, match="labels; found 'require'; expected one of required, optional, ignored"
    ):
        clmoe.read_batch(tmp_path / "a.npz", labels="require")


def test_a_column_that_float32_flattens_is_asked_about_but_not_learned(tmp_path: Path) -> None:
    times = np.stack([np.arange(60.0), 1.7e9 + np.arange(60)], axis=1)
    np.savez(tmp_path / "a.npz", x=times, y=np.arange(60) % 2)
    batch = clmoe.read_batch(tmp_path / "a.npz", labels="optional")
    for call in (clmoe.learn, clmoe.plan):
        with pytest.raises(clmoe.BadInput, match="column 1 loses its differences"):
            call(str(tmp_path / "store"), batch, small.OPTIONS)
    assert not (tmp_path / "store").exists()


CALLS = {
    "a misspelt option": ("predict", {"tpo": 3}, "unknown option of predict; found 'tpo'.*did you mean 'top'"),
    "an option of another function": ("detect", {"reject": 0.1}, "unknown option of detect; found 'reject'"),
    "no options of learn": ("learn", {"option": None}, "unknown option of learn; .*did you mean 'options'"),
    "no store": ("inspect", {}, r"not a call of inspect; found missing .*'store'; expected inspect\(store, "),
    "no data": ("read_batch", {"labels": "required"}, r"not a call of read_batch; found missing .*'source'"),
    "a stream": ("learn_stream", {"store": "s"}, "not a call of learn_stream; found missing"),
}


@pytest.mark.parametrize("case", CALLS)
def test_calls_that_mean_nothing_are_one_line_as_those_of_a_store(case: str) -> None:
    name, options, message = CALLS[case]
    with pytest.raises(clmoe.UsageProblem, match=message) as caught:
        getattr(clmoe, name)(**options)
    assert "\n" not in str(caught.value)
