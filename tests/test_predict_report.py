"""``predict --report``, ``--top`` and ``--only``: the wrong, the unsure and the unknown among the inputs."""

from __future__ import annotations

import base64
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictures import batch as batch_of
from PIL import Image
from test_showing import Page
from trained import PAIRS, bars_store

from clmoe_cli.api.predict import UNSURE, PredictReport, predict
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.report import answers
from clmoe_cli.report.answers import answers_page
from clmoe_cli.report.thumbnails import of_input
from store_schema.records import FeaturesRecord, InputRecord


@pytest.fixture(scope="module")
def store() -> str:
    return str(bars_store(*PAIRS))


@pytest.fixture(scope="module")
def mixed() -> Batch:
    """Images of all tasks, every seventh with another label than its own, and some of nothing that is known."""
    found = batch_of(tuple(c for pair in PAIRS.values() for c in pair), 210, 2)
    assert found.labels is not None
    labels = found.labels.copy()
    labels[::7] = (labels[::7] + 1) % 12
    images = found.images.copy()
    images[:10] = np.random.default_rng(3).integers(0, 256, images[:10].shape)
    images[20:60] = (images[20:60] // 2) + (images[60:100] // 2)
    return Batch(images, labels, "mixed.npz")


@pytest.fixture(scope="module")
def report(store: str, mixed: Batch) -> PredictReport:
    return predict(store, mixed, reject=0.05, top=3)


def test_confusion_and_accuracy_of_labels_count_every_image(report: PredictReport, mixed: Batch) -> None:
    scores = report.scores
    assert scores is not None
    assert mixed.labels is not None
    wrong = [(t, p) for t, p in zip(mixed.labels.tolist(), report.labels, strict=True) if t != p]
    assert {(w.label, w.answered): w.images for w in scores.wrong} == {pair: wrong.count(pair) for pair in wrong}
    assert [w.images for w in scores.wrong] == sorted((w.images for w in scores.wrong), reverse=True)
    for own in scores.per_class:
        here = mixed.labels == own.label
        assert own.images == here.sum()
        assert own.accuracy == pytest.approx(float((report.label[here] == own.label).mean()))
    assert sum(one.right for one in scores.calibration) == len(mixed.images) - len(wrong)


@pytest.mark.parametrize("how", [{}, {"route": "batch", "batch_size": 30}, {"task": "task1"}, {"router": "loss"}])
def test_the_answer_is_the_first_of_the_most_likely_labels(store: str, mixed: Batch, how: dict[str, Any]) -> None:
    plain, found = predict(store, mixed, **how), predict(store, mixed, top=3, **how)
    np.testing.assert_array_equal(plain.label, found.label)
    np.testing.assert_array_equal(plain.confidence, found.confidence)
    for row in found.rows():
        assert row.top is not None
        labels, sure = [one.label for one in row.top], [one.confidence for one in row.top]
        assert labels[0] == row.label
        assert sure[0] == pytest.approx(row.confidence, abs=1e-12)
        assert sure == sorted(sure, reverse=True)
        assert len(set(labels)) == len(labels) <= 3
        assert sum(sure) <= 1 + 1e-9
    assert all(row.top is None for row in plain.rows())


def test_all_labels_that_were_compared_have_all_of_the_confidence(store: str, mixed: Batch) -> None:
    rows = predict(store, mixed, top=1000).rows()
    assert all(sum(one.confidence for one in row.top or ()) == pytest.approx(1.0) for row in rows)


@pytest.mark.parametrize("which", ["wrong", "unsure", "unknown"])
def test_only_the_rows_of_a_sort_are_shown(which: str, report: PredictReport, mixed: Batch) -> None:
    assert mixed.labels is not None
    wanted = {
        "wrong": report.label != mixed.labels,
        "unsure": report.confidence < UNSURE,
        "unknown": ~report.known,
    }[which]
    only = report.only(which)
    assert 0 < only.count == wanted.sum()
    assert [row.index for row in only.rows()] == np.flatnonzero(wanted).tolist() == only.arrays()["index"].tolist()
    assert [row.truth for row in only.rows()] == mixed.labels[wanted].tolist()
    assert only.printed().accuracy == report.accuracy
    assert only.printed().rejected == report.printed().rejected


def test_the_page_shows_the_wrong_the_unsure_and_the_unknown(
    report: PredictReport, mixed: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "SHOWN", 4)
    text = answers_page(report, mixed).decode()
    page = Page(text)
    assert {"Wrong", "Unsure", "Unknown", "Confusion of labels", "Accuracy by class", "Calibration"} <= set(page.texts)
    assert "script" not in page.seen
    sources = [value for name, value in page.attributes if name == "src"]
    assert all(value.startswith("data:image/jpeg;base64,") for value in sources)
    parts = re.split("<h2", text)
    for which in ("wrong", "unsure", "unknown"):
        part = next(part for part in parts if part.startswith(f">{which.capitalize()}<"))
        rows = report.rows_of(which)
        assert part.count("<figure>") == min(4, len(rows))
        named = set(map(int, re.findall(r"<figcaption>image (\d+)<", part)))
        assert named <= set(rows.tolist())
        assert (f"4 of {len(rows)} are shown" in part) == (len(rows) > 4)
        worst = {"wrong": -report.confidence, "unsure": report.confidence, "unknown": report.p_value}[which]
        assert max(worst[list(named)]) <= min(worst[np.setdiff1d(rows, list(named))], default=9.0)


def test_without_labels_nothing_is_wrong(store: str, mixed: Batch) -> None:
    plain = Batch(mixed.images, None, "<b>&.npz", files=tuple(f"<i>{i}.png" for i in range(len(mixed.images))))
    text = answers_page(predict(store, plain), plain).decode()
    assert ">Wrong<" not in text
    assert ">Unknown<" not in text
    assert ">Unsure<" in text
    assert "Calibration" not in text
    assert "<b>" not in text
    assert "<i>" not in text


def pixels(uri: str) -> np.ndarray[Any, Any]:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))))


def test_small_pictures_of_inputs(tmp_path: Path) -> None:
    grey = np.zeros((2, 1, 12, 20), np.float32)
    grey[0, :, :, 10:] = 7.5  # in whatever unit
    shown = pixels(of_input(Batch(grey, None, "x"), 0) or "")
    assert shown.shape == (12, 20)
    assert shown[:, :8].max() < 30
    assert shown[:, 12:].min() > 225
    assert pixels(of_input(Batch(grey, None, "x"), 1) or "").max() < 5
    red = np.zeros((1, 3, 200, 100), np.uint8)
    red[:, 0] = 255
    assert pixels(of_input(Batch(red, None, "x"), 0) or "").shape == (96, 48, 3)
    assert of_input(Batch(np.zeros((1, 30), np.float32), None, "x"), 0) is None
    assert of_input(Batch(np.zeros((1, 2, 8, 8), np.float32), None, "x"), 0) is None
    # What a backbone has read is read again from its file, if that is still there.
    Image.new("RGB", (30, 30), "blue").save(tmp_path / "a.png")
    through = InputRecord(features=FeaturesRecord(arch="net", sha256="0" * 64))
    seen = Batch(np.zeros((2, 30), np.float32), None, str(tmp_path), through, ("a.png", "gone.png"))
    assert pixels(of_input(seen, 0) or "")[5, 5, 2] > 225
    assert of_input(seen, 1) is None


def test_the_command_writes_rows_and_page(
    store: str, mixed: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("mixed.npz", x=mixed.images, y=mixed.labels)
    command = ["predict", "mixed.npz", "--store", store, "--only", "wrong", "--top", "2"]
    assert run(app, [*command, "--output", "-", "--report", "page.html"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert 30 <= len(rows) < 90
    assert all(row["truth"] != row["label"] == row["top"][0]["label"] for row in rows)
    assert ">Wrong<" in Path("page.html").read_text()
    assert run(app, [*command, "--output", "rows.csv"]) == 0
    found = list(csv.DictReader(io.StringIO(Path("rows.csv").read_text())))
    assert [int(row["index"]) for row in found] == [row["index"] for row in rows]
    assert found[0]["truth"] == str(rows[0]["truth"])
    for one, row in zip(found, rows, strict=True):
        for place, top in enumerate(row["top"], start=1):
            assert one[f"top{place}_label"] == str(top["label"])
            assert float(one[f"top{place}_confidence"]) == top["confidence"]
    assert not {"top", "top3_label"} & set(found[0])
    assert run(app, [*command, "--output", "rows.npz"]) == 0
    arrays = np.load("rows.npz")
    assert arrays["index"].tolist() == [row["index"] for row in rows]
    assert arrays["top_label"].shape == arrays["top_confidence"].shape == (len(rows), 2)
    assert run(app, command) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == [
        "image", "is", "label", "task", "expert", "confidence", "p-value", "then",
    ]  # fmt: skip
    assert run(app, [*command, "--explain"]) == 0
    assert capsys.readouterr().out.splitlines()[0].split() == ["image", "is", "sure", "why", "then"]


def test_that_nothing_is_of_a_sort_is_said(
    store: str, mixed: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "mixed.npz", x=mixed.images[:4])
    command = ["predict", str(tmp_path / "mixed.npz"), "--store", store, "--only", "unknown", "--reject", "1e-9"]
    assert run(app, command) == 0
    out, err = capsys.readouterr()
    assert "none of 4 inputs is unknown" in err
    assert out == ""


def test_labels_that_no_task_knows_have_no_table(
    store: str, mixed: Batch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savez(tmp_path / "other.npz", x=mixed.images[:4], y=[77, 78, 77, 78])
    assert run(app, ["predict", str(tmp_path / "other.npz"), "--store", store]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "accuracy 0.00 % of 4 images"


@pytest.mark.parametrize(
    ("extra", "code", "said"),
    [
        (["--only", "wrong", "--labels", "ignore"], 3, "no labels tell what is wrong"),
        (["--only", "unknown"], 2, "add --reject 0.05"),
        (["--only", "wrnog"], 2, "did you mean 'wrong'?"),
        (["--report", "page.pdf"], 2, "expected .html"),
        (["--report", "none/page.html"], 2, "make it first"),
        (["--top", "0"], 2, "--top"),
    ],
)
def test_what_cannot_be_shown_is_refused_first(
    extra: list[str], code: int, said: str, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    np.savez("x.npz", x=np.zeros((2, 8, 8), np.float32))
    assert run(app, ["predict", "x.npz", "--store", store, *extra]) == code
    assert said in capsys.readouterr().err
