"""``benchmarks/peers.py`` on made-up vectors, with the peers that this environment has."""

from __future__ import annotations

import argparse
import importlib
import json
import runpy
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
BAYES, HAT = "scikit-learn GaussianNB", "HAT (hat-cl)"


@pytest.fixture
def peers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers")


def blobs(peers: ModuleType, tasks: int, each: int) -> Any:
    """Tasks of two classes, each a ball of its own in 20 columns; class 0 lies at 0 and so on."""
    parts = []
    for seed in (1, 2):
        rng = np.random.default_rng(seed)
        y = np.arange(2 * tasks * each) % (2 * tasks)
        x = rng.normal(0, 1, (len(y), 20)).astype(np.float32)
        x[np.arange(len(y)), y] += 12
        parts.append((x, y))
    return peers.Data(*parts, tuple((2 * i, 2 * i + 1) for i in range(tasks)))


def options(out: Path, kill_images: int = 0) -> argparse.Namespace:
    return argparse.Namespace(out=out, venvs=None, seeds=[0], kill_images=kill_images)


def test_a_peer_is_measured_by_its_script_and_an_absent_one_is_named(
    peers: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the launches left out: a script is run here, as its command says."""
    called: list[str] = []

    def ran(command: list[str], folder: Path, until: Any = None) -> Any:
        called.append(command[2])
        monkeypatch.setattr(sys, "argv", command[1:])
        runpy.run_path(command[1], run_name="__main__")
        return peers.Ran(0, 2.0, 1.0, "")

    monkeypatch.setattr(peers, "ran", ran)
    wanted = [peer for peer in peers.PEERS if peer.name in (BAYES, HAT)]
    result = peers.measured(options(tmp_path), wanted, {"blobs": blobs(peers, 2, 30)})
    absent, bayes = result["peers"]
    assert called == ["learn", "learn", "predict"]
    assert absent["absent"] == "not run: hat-cl is not installed"
    found = bayes["data"]["blobs"][0]
    assert found["accuracy"] == 1
    assert found["learn_seconds"] == 4
    assert 500 < found["bytes"] < 10_000
    assert found["setting"]["smoothing"] in (1e-9, 1e-2, 1e-1)
    assert [row["held_out"] for row in bayes["choices"]["blobs"]] == [1, 1, 1]
    assert json.loads((tmp_path / "peers.json").read_text()) == result
    rows = peers.summary(result).splitlines()
    assert len(rows) == 4
    assert "| 100.00 | 4 |" in rows[3]
    # What is done is not done again.
    assert peers.measured(options(tmp_path), wanted, {"blobs": blobs(peers, 2, 30)}) == result
    assert len(called) == 3


@pytest.mark.campaign
@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_a_kill_while_a_peer_saves_loses_all_and_clmoe_keeps_it(peers: ModuleType, tmp_path: Path) -> None:
    wanted = [peer for peer in peers.PEERS if peer.name in ("clmoe", BAYES)]
    result = peers.measured(options(tmp_path, 60), wanted, {"blobs": blobs(peers, 3, 60)})
    clmoe, bayes = (row["killed"] for row in result["peers"])
    assert all(row["data"]["blobs"][0]["accuracy"] > 0.95 for row in result["peers"])
    assert [kept["answers_as_before"] for kept in clmoe["saving"]] == [True, True]
    assert all(kept["killed"] and kept["same_end"] for kept in clmoe["saving"])
    assert bayes["learning"]["answers_as_before"]
    assert not any(kept["loads"] or kept["learns_again"] for kept in bayes["saving"])
    assert peers.left(bayes) == "learning: task starts again; saving: all lost, 2 of 2"
    assert not (tmp_path / "scratch").exists()


def test_what_runs_too_long_is_killed(peers: ModuleType, tmp_path: Path) -> None:
    busy = [sys.executable, "-c", "while True: pass"]
    assert peers.ran(busy, tmp_path, until=lambda used: used >= 0.02).code == -signal.SIGKILL


def test_what_is_left_after_a_kill_is_said(peers: ModuleType) -> None:
    kept = {"loads": True, "answers_as_before": True, "or_as_after": False, "learns_again": True}
    gone = dict.fromkeys(kept, False)
    goes_on, starts = ({"learning": {**kept, "share_of_seconds": share}} for share in (0.4, 1.0))
    assert peers.left(starts) == "learning: task starts again"
    assert peers.left({**goes_on, "saving": [kept, kept]}) == "learning: task goes on; saving: whole, 2 of 2"
    assert peers.left({**starts, "saving": [kept, gone]}) == "learning: task starts again; saving: all lost, 1 of 2"
    assert peers.left({"learning": {**gone, "share_of_seconds": 1.0}}) == "learning: earlier tasks lost"


def test_lines_of_user_code_are_those_with_code(peers: ModuleType) -> None:
    source = '''"""A docstring
of two lines."""

import json  # why


def f(x):
    """Another."""
    # a comment
    text = """not a
docstring"""
    return json.dumps(
        x,
    )
'''
    assert peers.code_lines(source) == 7
    assert peers.code_lines("x = 1\n") == 1
    assert peers.lines_of(peers.PEERS[0]) == 2
