"""``learn --segment`` as scripts meet it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import forking
import numpy as np
import pytest
from pictures import mixed_blobs as blobs

from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.segment import _Part, learn_stream
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from store_schema import BadInput, Store

QUICK = ("--arch", "mlp:32,32", "--epochs", "3", "-q", "--seed", "0")
FIELDS = {"schema", "task", "expert", "status", "classes", "accuracy", "onset", "start", "stop"}


def corners(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return blobs(n, [(1, 1), (6, 6)], [1, 5], seed)


def others(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    return blobs(n, [(1, 6), (6, 1)], [2, 6], seed)


def saved(path: Path, *parts: tuple[np.ndarray, np.ndarray]) -> Path:
    np.savez(path, x=np.concatenate([x for x, _ in parts]), y=np.concatenate([y for _, y in parts]))
    return path


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [n for n in os.environ if n.startswith("CLMOE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("boundaries", ["labels", "images"])
def test_a_stream_is_cut_learned_and_a_return_recognised(tmp_path: Path, boundaries: str) -> None:
    data = saved(tmp_path / "stream.npz", corners(500, 3), others(450, 1), corners(300, 2))
    args = ("learn", "--data", data, "--segment", "--boundaries", boundaries, "--name", "part", "--json", *QUICK)
    command = [forking.served() / "clmoe", *map(str, args), "--store", "store"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    answer = json.loads(done.stdout)
    assert list(answer) == ["schema", "segments"]
    assert answer["schema"] == "clmoe.learn/2"
    parts = answer["segments"]
    assert [(p["start"], p["stop"]) for p in parts] == [(0, 500), (500, 950), (950, 1250)]
    assert all(set(p) >= FIELDS for p in parts)
    assert [(p["status"], p["task"]) for p in parts] == [
        ("learned", "part.1"),
        ("learned", "part.2"),
        ("known", "part.1"),
    ]
    assert [p["classes"] for p in parts] == [[1, 5], [2, 6], [1, 5]]
    manifest = Store.open("store").manifest
    assert [t.name for t in manifest.tasks] == ["part.1", "part.2"]
    assert [h.task for h in manifest.history if h.task] == ["part.1", "part.2"]


def test_people_see_a_row_a_segment(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = saved(tmp_path / "stream.npz", corners(450, 0), others(420, 1))
    args = ["learn", "--data", data, "--segment", "--store", tmp_path / "store", "-v", *QUICK[:4]]
    assert run(app, [str(a) for a in args]) == 0
    shown = capsys.readouterr()
    assert "2 segments: 2 learned as new" in shown.out
    assert "0 to 449" in shown.out
    assert "450 to 869" in shown.out
    assert shown.err.count("onset: ") == 2


def test_a_segment_of_one_class_is_refused_before_anything_is_learned(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = saved(tmp_path / "first.npz", corners(450, 0))
    assert run(app, ["learn", "--data", str(first), "--store", "store", *QUICK]) == 0
    before = {p: p.read_bytes() for p in Path("store").rglob("*") if p.is_file()}
    x, y = others(400, 1)
    data = saved(tmp_path / "stream.npz", corners(400, 2), (x[y == 2], y[y == 2]))
    capsys.readouterr()
    assert run(app, ["learn", "--data", str(data), "--segment", "--store", "store", *QUICK]) == 3
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert f"images 400 to {399 + int((y == 2).sum())}" in error
    assert "only 2" in error
    assert {p: p.read_bytes() for p in Path("store").rglob("*") if p.is_file()} == before
    assert run(app, ["learn", "--data", str(data), "--segment", "--store", "none", *QUICK]) == 3
    assert not Path("none").exists()


def test_a_segment_that_fails_says_where_and_what_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = saved(tmp_path / "first.npz", others(450, 1))
    assert run(app, ["learn", "--data", str(first), "--store", "store", "--name", "part.2", *QUICK]) == 0
    data = saved(tmp_path / "stream.npz", corners(500, 0), blobs(450, [(1, 4), (6, 4)], [3, 7], 1))
    capsys.readouterr()
    args = ["learn", "--data", str(data), "--segment", "--name", "part", "--store", "store", *QUICK]
    assert run(app, args) == 2
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1
    assert "segment 2 of 2, images 500 to 949" in error
    assert "what came before it is in the store and stays known" in error
    assert [t.name for t in Store.open("store").manifest.tasks] == ["part.2", "part.1"]


def test_unknown_boundaries_and_missing_labels_are_refused(tmp_path: Path) -> None:
    data = saved(tmp_path / "stream.npz", corners(100, 0))
    assert run(app, ["learn", "--data", str(data), "--segment", "--boundaries", "both", "--store", "none"]) == 2
    assert run(app, ["learn", "--data", str(data), "--boundaries", "images", "--store", "none"]) == 2
    with pytest.raises(BadInput, match="no labels"):
        learn_stream("none", Batch(corners(100, 0)[0][:, None], None, "x"), LearnOptions())
    assert not Path("none").exists()


def test_a_neighbours_images_at_the_ends_of_a_segment_are_left_out() -> None:
    labels = np.array([7] * 3 + [1, 2] * 100 + [3] * 10 + [1, 2] * 100 + [9] * 2)
    stream = Batch(np.arange(len(labels) * 4, dtype=np.float32).reshape(-1, 4), labels, "")
    kept = _Part(stream, LearnOptions(), 1, 0, len(labels)).without_strays().batch
    # The rare class in the middle is the segment's own.
    assert kept.classes() == (1, 2, 3)
    assert len(kept.images) == len(labels) - 5
    assert np.array_equal(kept.images, stream.images[3:-2])
