"""Data that look like what the store knows, and are not quite: named or read right, never a wrong answer in silence."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from campaigns import some
from hypothesis import given
from hypothesis import strategies as st
from pictures import two_clouds as blobs
from PIL import Image

from clmoe_cli.api.checks import judged
from clmoe_cli.api.detect import detect
from clmoe_cli.api.export import export
from clmoe_cli.api.learn import learn
from clmoe_cli.api.names import new_task
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.planning import plan
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, would_prune
from clmoe_cli.api.segment import learn_stream
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.data.labels import LabelEncoder, clashes
from clmoe_cli.data.several import joined
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.runtime.choices import ROUTERS
from clmoe_cli.runtime.words import nfc, one_of
from store_schema import BadInput, Store, UsageProblem

QUICK = LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=2)))
CAFE, DECOMPOSED = "caf\u00e9", "cafe\u0301"


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Task "task1" of the integers 1 and 5, and a task called café of the classes café and thé; only read."""
    root = str(tmp_path_factory.mktemp("misread") / "store")
    learn(root, blobs(200, 1, (1, 5)), QUICK)
    learn(root, blobs(200, 2, (CAFE, "th\u00e9"), 3.0), replace(QUICK, name=DECOMPOSED))
    return root


def test_names_are_kept_composed(store: str) -> None:
    assert [task.name for task in Store.open(store).manifest.tasks] == ["task1", CAFE]


@pytest.mark.parametrize("value", [-9.2e18, 2e19, 3e38, 1e5])
@pytest.mark.parametrize("labelled", [True, False])
def test_fill_values_are_refused_by_index(value: float, labelled: bool, store: str) -> None:
    batch = blobs(40, 3, (1, 5))
    batch.images[7, 2] = value
    batch = batch if labelled else replace(batch, labels=None)
    for router in ROUTERS:
        for route in ("image", "batch"):
            with pytest.raises(BadInput, match=r"far beyond the others: blobs \[row 7, feature 2, both from 0\]"):
                predict(store, batch, router=router, route=route)
    with pytest.raises(BadInput, match=r"\[row 7, feature 2, both from 0\]"):
        predict(store, batch, task="task1")
    for evidence in ("fisher", "gradient"):
        with pytest.raises(BadInput, match=r"\[row 7, feature 2, both from 0\]"):
            detect(store, batch, evidence=evidence)


def test_a_fill_value_of_a_table_is_found_by_its_column(store: str) -> None:
    batch = blobs(40, 3, (1, 5))
    batch = replace(batch, columns=tuple(f"c{number}" for number in range(batch.input_shape[0])))
    batch.images[7, 2] = -1e9
    with pytest.raises(BadInput, match=r"^a row has values far beyond .*\[row 7 from 0, column 'c2'\]; found -1e\+09;"):
        predict(store, batch)
    with pytest.raises(BadInput, match=r"\[blobs\[7\], column 'c2'\]"):  # of several files the one that has it
        predict(
            store,
            joined(
                [replace(batch, images=batch.images[:3] * 0, labels=None, source="good"), replace(batch, labels=None)]
            ),
        )


def test_fill_values_are_refused_before_onset_sees_them(store: str) -> None:
    batch = blobs(200, 3, (1, 5))
    batch.images[150, 2] = -9.2e18
    for act in (learn, plan):
        with pytest.raises(BadInput, match=r"\[row 150, feature 2, both from 0\]"):
            act(store, batch, QUICK)  # type: ignore[operator]


@pytest.mark.parametrize("value", [-9.2e18, 3e38])
@pytest.mark.parametrize("by_label", [True, False])
def test_fill_values_are_refused_before_a_segment_is_learned(value: float, by_label: bool, tmp_path: Path) -> None:
    first, second = blobs(200, 1, ("a", "b")), blobs(200, 2, ("c", "d"), 4.0)
    assert first.labels is not None
    assert second.labels is not None
    x, y = np.concatenate([first.images, second.images]), np.concatenate([first.labels, second.labels])
    x[300, 2] = value
    with pytest.raises(BadInput, match="far beyond the others"):
        learn_stream(str(tmp_path / "s"), Batch(x, y, "stream"), QUICK, use_labels=by_label)
    assert not (tmp_path / "s").exists()


def test_a_unit_of_its_own_is_no_fill_value(tmp_path: Path) -> None:
    batch = blobs(200, 1, (1, 5))
    learn(str(tmp_path / "s"), replace(batch, images=batch.images * np.float32(1e9)), QUICK)
    asked = blobs(50, 2, (1, 5))
    report = predict(str(tmp_path / "s"), replace(asked, images=asked.images * np.float32(1e9)))
    assert report.accuracy == 1.0


def test_text_of_integers_is_judged_as_the_integers(store: str) -> None:
    batch = blobs(60, 4, ("1", "5"))
    assert predict(store, batch).accuracy == predict(store, blobs(60, 4, (1, 5))).accuracy == 1.0
    assert detect(store, batch, use_labels=True) == detect(store, blobs(60, 4, (1, 5)), use_labels=True)


def test_integers_and_text_clash_where_they_would_be_learned(store: str) -> None:
    before = Store.open(store).manifest
    text = blobs(200, 5, ("1", "5"))
    with pytest.raises(
        BadInput, match=r"labels clash.*blobs; found '1', '5' as text; expected integers, as 1 of task task1"
    ):
        learn(store, text, QUICK)
    with pytest.raises(BadInput, match=r"astype\(int\)"):
        learn(store, replace(text, labels=np.where(text.labels == "1", "1", "n")), replace(QUICK, if_known="refine"))
    with pytest.raises(BadInput, match="labels clash"):
        plan(store, text, QUICK)
    with pytest.raises(BadInput, match="in an npz, or a table"):
        learn(store, replace(text, files=("a",) * 200), QUICK)
    # Before the first segment is learned, though only the second clashes.
    first = np.where(text.labels == "1", "a", "b")
    stream = Batch(np.concatenate([text.images + 9, text.images]), np.concatenate([first, text.labels]), "stream")
    with pytest.raises(BadInput, match="labels clash"):
        learn_stream(store, stream, QUICK)
    assert Store.open(store).manifest == before


def test_text_is_known_however_it_is_composed(store: str) -> None:
    batch = blobs(60, 6, (DECOMPOSED, "the\u0301"), 3.0)
    assert predict(store, batch).accuracy == 1.0
    assert learn(store, blobs(200, 7, (DECOMPOSED, "the\u0301"), 3.0), QUICK).status == "known"
    assert detect(store, batch, use_labels=True).task == CAFE


def test_tasks_are_named_however_it_is_composed(store: str, tmp_path: Path) -> None:
    assert set(predict(store, blobs(9, 6, (1, 5)), task=DECOMPOSED).task) == {CAFE}
    assert would_prune(store, PruneOptions(task=DECOMPOSED)).removed == (CAFE,)
    assert export(store, DECOMPOSED, tmp_path / "a.safetensors").task == CAFE
    with pytest.raises(UsageProblem, match="a task of that name exists"):
        learn(store, blobs(200, 8, ("new", "other"), -5.0), replace(QUICK, name=DECOMPOSED))
    assert one_of("task", DECOMPOSED, [CAFE]) == CAFE
    assert one_of("task", DECOMPOSED, [CAFE, DECOMPOSED]) == DECOMPOSED
    assert new_task(DECOMPOSED, 1, []) == CAFE


def test_labels_that_nobody_knows_are_said(store: str, tmp_path: Path) -> None:
    batch = blobs(60, 4, (1, "1"))  # as an array of text
    assert judged(Opened.at(store).expected, batch) == (batch, "")
    batch = replace(batch, labels=np.where(np.arange(60) < 12, "zebra", "1"))
    same, text = judged(Opened.at(store).expected, batch)
    assert same is batch
    assert text == "no task knows the label zebra: 12 of 60 images cannot be right"
    days = replace(batch, labels=np.array(["day1", "day2"])[np.arange(60) % 2])
    assert "day1, day2: 60 of 60" in judged(Opened.at(store).expected, days)[1]
    found, text = judged(Opened.at(store).expected, replace(days, files=("a",) * 60))
    assert found.labels is None
    assert text == "no task has a class of the name of a folder (day1, day2): the folders are not taken for labels"
    assert judged(Opened.at(str(tmp_path)).expected, batch) == (batch, "")
    assert judged(Opened.at(store).expected, replace(batch, labels=None))[1] == ""


LABELS = st.lists(st.one_of(st.integers(-3, 12), st.sampled_from(["1", "-2", "01", "a", CAFE, DECOMPOSED, "\u212b"])))


@given(known=LABELS, new=LABELS)
def test_a_label_has_one_code_and_clashes_only_with_its_twin(known: list[int | str], new: list[int | str]) -> None:
    book = LabelEncoder.of(known)
    same = {(type(v), nfc(v) if isinstance(v, str) else v) for v in known}
    assert len(book.labels) == len(same)
    assert book.codes(known) == [book.codes([v])[0] for v in known]
    for kind in (int, str):
        own = [v for v in new if isinstance(v, kind)]
        if not own:
            continue
        every, codes = book.reading(np.array(own))
        assert every.labels[: len(book.labels)] == book.labels
        for label, code in zip(own, codes.tolist(), strict=True):
            exact = [
                i for i, v in enumerate(every.labels) if type(v) is kind and str(v) and nfc(str(v)) == nfc(str(label))
            ]
            twin = [i for i, v in enumerate(book.labels) if type(v) is not kind and nfc(str(v)) == nfc(str(label))]
            assert code == (exact or twin)[0]
        clashing = clashes(known, own)
        for label in own:
            mine = (kind, nfc(label) if isinstance(label, str) else label) in same
            others = any(type(v) is not kind and nfc(str(v)) == nfc(str(label)) for v in known)
            assert (label in clashing) == (others and not mine)


@pytest.mark.parametrize("arch", some(("mlp:8", "mlp:1", "cnn:4"), "mlp:1"))
def test_images_of_a_single_number(arch: str, tmp_path: Path) -> None:
    root, width = str(tmp_path / "s"), 1
    for seed, labels, shift in ((1, ("a", "b"), 0.0), (2, ("c", "d"), 9.0)):
        batch = blobs(200, seed, labels, shift, width)
        if arch.startswith("cnn"):
            batch = replace(batch, images=batch.images[:, :, None, None])
        assert learn(root, batch, replace(QUICK, arch=arch)).status == "learned"
    asked = replace(batch, labels=None)
    for router in ROUTERS:
        for route in ("image", "batch"):
            report = predict(root, asked, router=router, route=route)
            assert np.isfinite(report.confidence).all()
    assert predict(root, batch, explain=True).explained is not None
    assert detect(root, asked).images == 200
    export(root, "task1", tmp_path / "a.safetensors")


def test_class_folders_answer_for_integers(tmp_path: Path) -> None:
    root = str(tmp_path / "s")
    rng = np.random.default_rng(0)
    y = np.arange(200) % 2
    x = (rng.integers(0, 60, (200, 3, 3)) + 150 * y[:, None, None]).astype(np.uint8)
    learn(root, Batch(x[:, None], np.array([1, 5])[y], "npz"), QUICK)
    for i in range(20):
        (tmp_path / "f" / str(5 if y[i] else 1)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(x[i]).save(tmp_path / "f" / str(5 if y[i] else 1) / f"{i}.png")
    batch = read_batch(str(tmp_path / "f"), labels="optional")
    assert judged(Opened.at(root).expected, batch) == (batch, "")
    assert predict(root, batch).accuracy == 1.0
