"""The same pictures as bytes, shares of one, floats up to 255, divided twice, centred: what is off is said, no more."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_store as small
from campaigns import some
from hypothesis import given
from hypothesis import strategies as st
from pictures import bars

from clmoe_cli.api import ranges
from clmoe_cli.api.detect import detect
from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.learn import learn
from clmoe_cli.api.planning import plan
from clmoe_cli.api.predict import predict
from clmoe_cli.api.reports import Caution
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from store_schema import BadInput, GateRecord, ObjectRef, Store

WAYS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "bytes": lambda x: x,
    "shares": lambda x: x.astype(np.float32) / 255,
    "floats": lambda x: x.astype(np.float32),
    "twice": lambda x: x.astype(np.float32) / 255 / 255,
    "bits": lambda x: (x > 127).astype(np.uint8),
    "centred": lambda x: x.astype(np.float32) / 127.5 - 1,
}
UNITS = {"bytes": 1, "shares": 1, "floats": 255, "twice": 1 / 255, "bits": 1 / 255, "centred": -1}
SAID = {
    ("shares", "floats"): ("found values up to 2", "divide by 255"),
    ("bytes", "twice"): ("found values up to 0.003", "divided by 255 twice?"),
    ("floats", "bytes"): ("found values up to 0.8", "multiply by 255"),
    ("bytes", "centred"): ("found values below 0, to -1", "expected none below 0"),
    ("centred", "shares"): ("found no values below 0", "expected values down to -1"),
}


def asked(way: str, factor: float = 1.0, seed: int = 5, images: int = 60) -> Batch:
    x, y = bars(small.TASKS[0], images, seed)
    dark = (x * factor).clip(0, 255).astype(np.uint8)
    return Batch(WAYS[way](dark[:, None]), y, f"{way}.npz")


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("ranges")
    for way in WAYS:
        assert learn(str(root / way), asked(way, seed=1, images=200), small.OPTIONS).warnings == ()
    return {way: str(root / way) for way in WAYS}


@pytest.mark.parametrize("learned", some(WAYS, "bytes", "shares"))
@pytest.mark.parametrize("given_as", WAYS)
def test_another_unit_is_said_and_the_same_is_not(learned: str, given_as: str, stores: dict[str, str]) -> None:
    if given_as == "floats" and learned in ("twice", "bits"):  # 255² times the store's, which drowns its numbers
        for act in (predict, detect):
            with pytest.raises(BadInput, match=r"most images .* beyond the store's: floats.npz .*; give the values in"):
                act(stores[learned], asked(given_as))  # type: ignore[operator]
        return
    found = predict(stores[learned], asked(given_as)).warnings
    assert len(found) == (UNITS[learned] != UNITS[given_as])
    assert found == detect(stores[learned], asked(given_as)).warnings
    for caution in found:
        assert caution.code == "range"
        assert caution.text.startswith(f"the range of values is not the store's: {given_as}.npz; found ")
        assert "\n" not in caution.text
        for words in SAID.get((learned, given_as), ()):
            assert words in caution.text


@pytest.mark.parametrize("factor", [0.0, 0.1, 0.3, 0.5, 0.7, 1.3, 1.5, 2.0])
def test_darker_and_brighter_pictures_are_of_the_same_range(factor: float, stores: dict[str, str]) -> None:
    for way in ("bytes", "shares"):
        assert predict(stores["shares"], asked(way, factor)).warnings == ()
    unclipped = Batch(WAYS["shares"](asked("bytes").images) * np.float32(factor), None, "")
    assert predict(stores["bytes"], unclipped).warnings == ()


def test_learn_says_it_before_it_trains_and_in_its_report(stores: dict[str, str], tmp_path: Path) -> None:
    told: list[object] = []
    batch = asked("floats", seed=3, images=200)
    assert batch.labels is not None
    other = Batch(batch.images, batch.labels + 20, "floats.npz")
    root = str(tmp_path / "store")
    learn(root, asked("shares"), small.OPTIONS)
    planned = plan(root, other, small.OPTIONS, on_warning=told.append)
    report = learn(root, other, small.OPTIONS, on_epoch=told.append, on_warning=told.append)
    # The same pictures by other labels; that is known once they are learned.
    assert [caution.code for caution in report.warnings] == ["range", "conflict"]
    assert report.warnings[:1] == planned.warnings == (told[0],) == (told[1],)
    assert len(told) > 3
    assert not any(isinstance(each, Caution) for each in told[2:-1])
    # Both are the store's now.
    assert predict(root, asked("shares")).warnings == predict(root, asked("floats")).warnings == ()
    assert len(predict(root, asked("twice")).warnings) == 1


def test_a_line_on_stderr_however_quiet(
    stores: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = asked("floats")
    assert batch.labels is not None
    np.savez(tmp_path / "f.npz", x=batch.images, y=batch.labels)
    learning = ("learn", "--dry-run", "--arch", "mlp:8,8", "--data")
    for command in (("predict", "--batch"), ("detect", "--data"), learning):
        for more in ((), ("--json",)):
            args = [*command, str(tmp_path / "f.npz"), "--store", stores["shares"], "-q", *more]
            assert run(app, args) == 0
            out, err = capsys.readouterr()
            (line,) = err.splitlines()
            assert line.startswith("warning: the range of values is not the store's: ")
            if more:
                assert json.loads(out)["warnings"] == [{"code": "range", "text": line.removeprefix("warning: ")}]
    args = ["predict", "--batch", str(tmp_path / "f.npz"), "--store", stores["floats"], "-q", "--json"]
    assert run(app, args) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["warnings"], err) == ([], "")


@pytest.fixture(scope="module")
def of_rows(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of rows that have no number below 0, as embeddings behind a ReLU."""
    root = str(tmp_path_factory.mktemp("rows") / "store")
    assert learn(root, rows(400, 1), small.OPTIONS).warnings == ()
    return root


def rows(n: int, seed: int) -> Batch:
    centres = np.abs(np.random.default_rng(7).normal(size=(4, 128))) * 2
    y, rng = np.arange(n) % 4, np.random.default_rng(seed)
    return Batch(np.maximum(centres[y] + rng.normal(size=(n, 128)), 0).astype(np.float32), y, "rows.npz")


@pytest.mark.parametrize(
    ("change", "known", "said"),
    [
        (lambda x: x, True, None),
        (lambda x: x * 0, False, "found values up to 0; .*every number is 0"),
        (lambda x: x / 10, False, r"found values up to 0\.[3-6]"),
        (lambda x: x * 10, False, "found values up to [3-6]"),
        (lambda x: x / np.linalg.norm(x, axis=1, keepdims=True), False, r"found values up to 0\.[1-3]"),
        (lambda x: x - x.mean(axis=0), False, "found values below 0, to -[23]"),
    ],
)
def test_rows_of_another_unit_are_said_and_rejected(
    change: Callable[[np.ndarray], np.ndarray], known: bool, said: str | None, of_rows: str
) -> None:
    asked = rows(200, 2)
    batch = Batch(change(asked.images).astype(np.float32), None, "rows.npz")
    found, judged = detect(of_rows, batch), predict(of_rows, batch, reject=0.05)
    assert found.verdict == ("known" if known else "new")
    assert (float(judged.known.mean()) > 0.85) == known == (float(judged.known.mean()) > 0.1)
    assert [c.code for c in found.warnings] == ["range"] * (said is not None)
    assert found.warnings == judged.warnings
    if said is not None:
        assert re.search(said, found.warnings[0].text)


def test_a_file_of_few_rows_many_times_is_known_to_all(tmp_path: Path) -> None:
    two = np.random.default_rng(0).normal(size=(2, 12)).astype(np.float32)
    batch, root = Batch(two.repeat(80, axis=0), np.arange(160) // 80, "twice"), str(tmp_path / "store")
    learn(root, batch, small.OPTIONS)
    assert detect(root, batch).verdict == "known"
    assert predict(root, batch, reject=0.05).known.all()
    assert learn(root, batch, small.OPTIONS).status == "known"


REF = ObjectRef(sha256="0" * 64, size=1, suffix="safetensors")


def gate(**fields: object) -> GateRecord:
    return GateRecord(input_shape=(4,), input_scale=1.0, features="relu-1", solved=REF, **fields)


@given(st.permutations([0.01, 1.0, -3.0, 0.0, 200.0]))
def test_the_order_of_the_tasks_does_not_matter(scales: list[float]) -> None:
    one = np.random.default_rng(0).random((50, 4)).astype(np.float32)
    record = None
    for scale in scales:
        record = gate(**ranges.widened(record, Batch(one * np.float32(scale), None, "")))
    assert record is not None
    largest = one.max(axis=1)
    assert record.input_range == pytest.approx((0.0, 200 * float(np.sort(largest)[-1])), rel=0.1)
    assert record.input_lowest == pytest.approx((-3 * largest.max(), 200 * one.min(axis=1).max()), rel=0.2)


def test_a_few_odd_images_are_no_measure(stores: dict[str, str]) -> None:
    batch = asked("shares")
    odd = Batch(batch.images.copy(), batch.labels, "")
    odd.images[:3] *= 1e3
    assert predict(stores["shares"], odd).warnings == ()


def test_a_store_without_a_range_has_none_later_and_says_nothing(stores: dict[str, str], tmp_path: Path) -> None:
    assert ranges.widened(gate(), asked("floats")) == {"input_range": None, "input_lowest": None}
    manifest = Store.open(stores["shares"]).manifest
    (record,) = manifest.gates
    assert record.input_range is not None
    old = manifest.model_copy(update={"gates": (record.model_copy(update={"input_range": None}),)})
    assert ranges.cautions(Expected.of(manifest), asked("floats")) != ()
    assert ranges.cautions(Expected.of(old), asked("floats")) == ()
    vectors = Batch(np.ones((3, 5), np.float32), None, "")
    assert ranges.cautions(Expected.of(manifest), vectors) == ()
