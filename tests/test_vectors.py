"""Tables: columns with units of their own, through every command, and what a store keeps of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import UNITS, bars, table

from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.planning import plan
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.scaling import LEAST
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import Store, verify

METHOD = Options(Schedule(epochs=6), Tolerance(final_epochs=4))
OPTIONS = LearnOptions(arch="mlp:24,16", method=METHOD)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Two tasks of one expert."""
    root = str(tmp_path_factory.mktemp("vectors") / "store")
    first = learn(root, table((0, 1), 300, 1), replace(OPTIONS, name="first"))
    second = learn(root, table((2, 3), 300, 2), replace(OPTIONS, name="second", expert=first.expert))
    assert (first.expert, second.expert) == ("e1", "e1")
    return root


def accuracy(store: str, task: str, classes: tuple[int, ...]) -> float:
    scores = predict(store, table(classes, 200, 9), task=task).scores
    assert scores is not None
    return scores.accuracy


def test_a_subnetwork_learns_from_columns_that_others_drown(store: str) -> None:
    assert accuracy(store, "first", (0, 1)) > 0.97
    assert accuracy(store, "second", (2, 3)) > 0.97


def test_what_is_kept_of_the_inputs_verifies_and_counts(store: str) -> None:
    opened = Store.open(store)
    (record,) = opened.manifest.experts
    assert record.standardised is True
    inputs = opened.read_expert("e1").inputs
    assert {name: value.shape for name, value in inputs.items()} == {"centre": (8,), "spread": (8,)}
    in_units = inputs["spread"] / record.input_scale / UNITS
    assert ((in_units > 0.3) & (in_units < 8)).all()
    assert verify(store) == []


@pytest.mark.parametrize("router", ["fisher", "loss", "paper"])
def test_every_router_and_its_explanation_read_as_the_expert_does(store: str, router: str) -> None:
    data = table((0, 1, 2, 3), 60, 4)
    whole = predict(store, data, router=router, explain=True)
    one = predict(store, data.taken(slice(7, 8)), router=router)
    assert one.labels[0] == whole.labels[7]
    assert np.isfinite(whole.confidence).all()


def test_detect_and_dry_run_go_through(store: str) -> None:
    report = detect(store, table((0, 1), 100, 5))
    assert (report.verdict, report.task) == ("known", "first")
    planned = plan(store, table((4, 5), 100, 6), OPTIONS)
    assert planned.dry_run


def test_other_tasks_refining_and_removal_leave_centre_and_spread(store: str, tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    learn(root, table((0, 1), 150, 1), replace(OPTIONS, name="first"))
    before = {k: v.tobytes() for k, v in Store.open(root).read_expert("e1").inputs.items()}
    learn(root, table((2, 3), 150, 2, UNITS * 50), replace(OPTIONS, name="second", expert="e1"))
    learn(root, table((2, 3), 300, 3, UNITS * 50), replace(OPTIONS, if_known="refine"))
    answers = predict(root, table((2, 3), 50, 4, UNITS * 50), task="second")
    prune(root, PruneOptions(task="first"), lambda found: True)
    after = {k: v.tobytes() for k, v in Store.open(root).read_expert("e1").inputs.items()}
    assert after == before
    assert verify(root) == []
    again = predict(root, table((2, 3), 50, 4, UNITS * 50), task="second")
    assert again.confidence.tobytes() == answers.confidence.tobytes()


def test_few_rows_are_not_standardised_and_more_of_them_go_elsewhere(tmp_path: Path) -> None:
    root = str(tmp_path / "store")
    learn(root, table((0, 1), LEAST - 1, 1), OPTIONS)
    (record,) = Store.open(root).manifest.experts
    assert record.standardised is None
    assert Store.open(root).read_expert("e1").inputs == {}
    more = learn(root, table((2, 3), 150, 2), OPTIONS)
    assert (more.expert, more.new_expert) == ("e2", True)
    assert (
        more.reason
        == f"a new expert, since none yet standardises such vectors, as those begun with {LEAST} and more do"
    )
    assert learn(root, table((4, 5), 60, 3), replace(OPTIONS, expert="e1")).expert == "e1"
    assert verify(root) == []


@pytest.mark.parametrize(
    ("arch", "white"),
    [
        ("mlp:24,16", True),
        *(pytest.param(*case, marks=pytest.mark.campaign) for case in [("mlp:24,16", False), ("cnn:4", True)]),
    ],
)
def test_perceptrons_read_pictures_on_white_as_those_on_black(arch: str, white: bool, tmp_path: Path) -> None:
    x, y = bars([0, 6], 120, 1)
    pictures = Batch((255 - x if white else x)[:, None], y, "pictures")
    learn(str(tmp_path / "s"), pictures, replace(OPTIONS, arch=arch))
    opened = Store.open(tmp_path / "s")
    (record,) = opened.manifest.experts
    assert record.standardised is (True if white and arch.startswith("mlp") else None)
    inputs = opened.read_expert("e1").inputs
    assert {k: set(v.tolist()) for k, v in inputs.items()} == (
        {"centre": {1.0}, "spread": {1.0}} if record.standardised else {}
    )
    assert verify(tmp_path / "s") == []
    scores = predict(str(tmp_path / "s"), pictures, task="task1").scores
    assert scores is not None
    assert arch == "cnn:4" or scores.accuracy > 0.95


def test_no_row_is_near_what_a_store_of_few_rows_keeps_of_them(tmp_path: Path) -> None:
    data = table((0, 1), LEAST, 1)
    learn(str(tmp_path / "s"), data, OPTIONS)
    opened = Store.open(tmp_path / "s")
    inputs, scale = opened.read_expert("e1").inputs, opened.manifest.experts[0].input_scale
    rows = (data.images * scale - inputs["centre"]) / inputs["spread"]
    usual = np.sqrt(np.mean(rows**2))
    for guess in (0.0, 1.0, -1.0):  # the centre, and a spread above and below it
        distance = np.sqrt(np.mean((rows - guess) ** 2, axis=1))
        assert distance.min() > 0.5 * usual


@pytest.mark.parametrize(
    ("least", "units", "width", "features"),
    [
        (0.0, 1.0, 128, "vector-root-1"),
        (-0.5, 1.0, 128, "vector-1"),
        pytest.param(0.0, 1e4, 128, "vector-1", marks=pytest.mark.campaign),
        pytest.param(0.0, 1.0, 12, "vector-1", marks=pytest.mark.campaign),
    ],
    ids=["amounts", "below zero", "many units", "a table"],
)
def test_embeddings_of_amounts_are_read_by_their_roots(
    least: float, units: float, width: int, features: str, tmp_path: Path
) -> None:
    """The first task says which; a later one of any values is read alike, and pruning it changes nothing."""
    rng = np.random.default_rng(0)
    scale = np.geomspace(1, units, width).astype(np.float32)
    centres = rng.exponential(1.0, (4, width))

    def made(classes: tuple[int, int], n: int, shift: float) -> Batch:
        y = np.array(classes)[np.arange(n) % 2]
        x = (centres[y] * rng.gamma(9.0, 1 / 9, (n, width)) + shift) * scale
        return Batch(x.astype(np.float32), y, "made")

    root = str(tmp_path / "s")
    learn(root, made((0, 1), 200, least), OPTIONS)
    alone = predict(root, asked := made((0, 1), 100, least)).arrays()
    learn(root, made((2, 3), 200, least - 0.1), OPTIONS)
    (record,) = Store.open(root).manifest.gates
    assert record.features == features
    assert predict(root, made((0, 1), 100, least)).accuracy > 0.9
    prune(root, PruneOptions(task="task2"), lambda plan: True)
    for name, value in predict(root, asked).arrays().items():
        if value.dtype.kind == "f":
            np.testing.assert_allclose(value, alone[name], atol=1e-6)
        else:
            assert np.array_equal(value, alone[name]), name
    assert verify(root) == []
