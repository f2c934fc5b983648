"""``learn --plot``: what is drawn, what is refused before any work is done, and when there is no curve."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from pictures import bright_rows as bars
from PIL import Image

from clmoe_cli.api import resuming
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import read_batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Epoch, Quality, Schedule
from clmoe_cli.report.curves import Curve

QUICK = ("--arch", "mlp:16,16", "--epochs", "3")
Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = bars([1, 9], 300, 3)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    return tmp_path / "x.npz"


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Call:
    monkeypatch.setenv("CLMOE_STORE", str(tmp_path / "store"))

    def invoke(*args: object) -> tuple[int, str, str]:
        code = run(app, [str(a) for a in args])
        out = capsys.readouterr()
        return code, out.out, out.err

    return invoke


def texts(svg: Path) -> list[str]:
    """What is written in a picture: matplotlib draws letters as shapes, and notes the words beside them."""
    return [text for text in re.findall(r"<!-- (.*?) -->", svg.read_text()) if not text.startswith("$")]


def points(svg: Path, colour: str) -> int:
    """Markers of that colour."""
    return len(re.findall(rf'<use [^>]*style="fill: {colour}', svg.read_text()))


def test_all_formats_are_written_and_stdout_is_the_result(call: Call, data: Path, tmp_path: Path) -> None:
    for suffix, magic in ((".png", b"\x89PNG"), (".pdf", b"%PDF")):  # .svg below
        path, store = tmp_path / f"curve{suffix}", tmp_path / suffix[1:]
        code, out, err = call("learn", "--data", data, "--store", store, *QUICK, "--plot", path, "--json")
        assert code == 0, err
        assert json.loads(out)["status"] == "learned"
        assert err.splitlines()[-1] == f"wrote {path}"
        assert path.read_bytes().startswith(magic)
    with Image.open(tmp_path / "curve.png") as picture:
        assert picture.size == (1200, 720)


def test_every_epoch_and_every_phase_is_drawn(call: Call, data: Path, tmp_path: Path) -> None:
    path, again = tmp_path / "a.svg", tmp_path / "b.svg"
    code, _, err = call("learn", "--data", data, *QUICK, "--name", "a $\\frac$ of it", "--plot", path)
    assert code == 0, err
    epochs = [line for line in err.splitlines() if "  validation " in line]
    words = texts(path)
    rounds = sum(line.startswith("prune 1/") for line in epochs)
    assert {"train", f"prune, {rounds} rounds", "consolidate", "training", "validation"} <= set(words)
    assert "learned a $\\frac$ of it in expert e1" in words
    # Training loss in blue; validation loss and accuracy in orange. Each has one marker in the legend besides.
    assert points(path, "#1f77b4") == len(epochs) + 1
    assert points(path, "#ff7f0e") == 2 * len(epochs) + 1
    options = ("--store", tmp_path / "other", "--name", "a $\\frac$ of it", "-q")
    assert call("learn", "--data", data, *QUICK, *options, "--plot", again)[0] == 0
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.campaign
def test_a_stream_has_panels_for_each_segment_that_was_learned(call: Call, data: Path, tmp_path: Path) -> None:
    parts = [bars([1, 9], 300, 0), bars([2, 7], 300, 1), bars([4, 11], 300, 2)]
    x, y = (np.concatenate(part) for part in zip(*parts, strict=True))
    np.savez(tmp_path / "stream.npz", x=x, y=y)
    assert call("learn", "--data", data, *QUICK, "-q")[0] == 0
    path = tmp_path / "s.svg"
    code, out, err = call("learn", "--data", tmp_path / "stream.npz", "--segment", *QUICK, "--plot", path, "--json")
    assert code == 0, err
    reports = json.loads(out)["segments"]
    assert [r["status"] for r in reports] == ["known", "learned", "learned"]
    titles = [text for text in texts(path) if text.startswith(("learned", "known"))]
    assert titles == [f"learned {r['task']} in expert {r['expert']}" for r in reports[1:]]
    begun = [f"segment {i} of 3: images {r['start']} to {r['stop'] - 1}" for i, r in enumerate(reports, 1)]
    assert [line for line in err.splitlines() if line.startswith("segment ")] == begun


def test_known_data_have_no_curve(call: Call, data: Path, tmp_path: Path) -> None:
    assert call("learn", "--data", data, *QUICK, "-q")[0] == 0
    path = tmp_path / "x.png"
    code, out, err = call("learn", "--data", data, *QUICK, "--plot", path, "-v", "--json")
    assert (code, json.loads(out)["status"], path.exists()) == (0, "known", False)
    assert err.splitlines()[-1] == f"no curve, {path} was not written: nothing was trained"
    code, out, err = call("learn", "--data", data, *QUICK, "--plot", path, "-q", "--json")
    assert (code, err, path.exists()) == (0, "", False)


def test_what_an_interrupted_run_had_trained_is_said_to_be_missing(
    call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    monkeypatch.setenv("CLMOE_DEVICE", "cpu")
    seen: list[Epoch] = []

    def stop(epoch: Epoch) -> None:
        seen.append(epoch)
        if len(seen) == 3:
            raise KeyboardInterrupt

    method = Options(Schedule(epochs=3), Tolerance(max_drop=0.3 / 100))
    batch = read_batch(str(data), labels="required")
    with pytest.raises(Exception, match="interrupted"):
        learn(str(tmp_path / "store"), batch, LearnOptions(arch="mlp:16,16", method=method), on_epoch=stop)
    path = tmp_path / "x.svg"
    code, _, err = call("learn", "--data", data, *QUICK, "--device", "cpu", "--plot", path)
    assert code == 0, err
    assert "continuing after epoch 2 of phase train" in err.splitlines()
    assert "without the epochs of an interrupted run, which had reached epoch 2 of phase train" in texts(path)
    assert points(path, "#1f77b4") == sum("  validation " in line for line in err.splitlines()) + 1


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("x.gif", ".png, .svg or .pdf"),
        ("x", "no suffix"),
        ("nowhere/x.png", "no such folder"),
        ("folder.png", "is a folder"),
    ],
)
def test_pictures_that_cannot_be_written_are_refused_before_any_work(
    call: Call, data: Path, tmp_path: Path, name: str, said: str
) -> None:
    (tmp_path / "folder.png").mkdir()
    for source in (data, tmp_path / "missing.npz"):
        code, out, err = call("learn", "--data", source, *QUICK, "--plot", tmp_path / name)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert said in err
    assert not (tmp_path / "store").exists()


def test_without_matplotlib_nothing_is_trained(
    call: Call, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, out, err = call("learn", "--data", data, *QUICK, "--plot", tmp_path / "x.png")
    assert (code, out) == (2, "")
    assert err == "clmoe: pictures need matplotlib; pip install 'clmoe[plot]'\n"
    assert not (tmp_path / "store").exists()
    assert call("learn", "--data", data, *QUICK, "-q")[0] == 0


def test_a_disk_that_fails_comes_after_the_result(call: Call, data: Path, tmp_path: Path) -> None:
    """A folder that went away while it was trained: the task is learned and reported, the picture is an error."""
    path = tmp_path / "gone" / "x.png"
    path.parent.mkdir()
    from clmoe_cli.report import curves

    real = curves.plot_curves

    def late(*args: object) -> None:
        path.parent.rmdir()
        real(*args)  # type: ignore[arg-type]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "plot_curves", late)
        code, out, err = call("learn", "--data", data, *QUICK, "--plot", path, "--json", "-q")
    assert (code, json.loads(out)["status"], json.loads(err)["error"]["exit_code"]) == (6, "learned", 6)


def epoch(phase: str, number: int, loss: float) -> Epoch:
    return Epoch(phase, number, 2, loss, Quality(loss, 0.5))


def test_the_summary_has_a_block_an_epoch(call: Call, data: Path) -> None:
    told = [("train", 1, 1.0), ("train", 2, 0.1), ("prune", 1, math.nan), ("prune", 2, 10.0), ("prune", 1, 0.0)]
    curve = Curve([epoch(*one) for one in told])
    assert [name for name, _ in curve.phases()] == ["train", "prune", "prune"]
    assert curve.summary() == "validation loss ▇▆|?█|▁  1.0000 to 0.0000"
    assert Curve([epoch("train", 1, math.inf)]).summary() == "validation loss ?  inf to inf"
    code, _, err = call("learn", "--data", data, *QUICK, "-v")
    assert code == 0
    lines = err.splitlines()
    (said,) = [line for line in lines if line.startswith("task1: validation loss ")]
    assert len(re.findall("[▁▂▃▄▅▆▇█]", said)) == sum(bool(re.search("validation [01]", line)) for line in lines)
