"""``benchmarks/card.py`` where there is no card, and beside one that is made up."""

from __future__ import annotations

import argparse
import importlib.util
import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType

import pytest
from card import Card
from pictures import batch

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script, by another name than that of the tests' own card, with two tasks of made-up pictures for P6."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("bench_card", BENCHMARKS / "card.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "bench_card", module)
    spec.loader.exec_module(module)
    train, test = (batch([0, 4, 2, 7], 320, seed, side=14) for seed in (1, 2))
    made = module.Data((train.images, train.labels), (test.images, test.labels), ((0, 4), (2, 7)))
    monkeypatch.setattr(module, "digits", lambda tasks: lambda places: made)
    return module


def options(device: str) -> argparse.Namespace:
    return argparse.Namespace(
        root=Path("none"), photos=None, device=device, images=320, photographs=0, arch="mlp:8,8", deep="no-such",
        epochs=1, seconds=200.0,
    )  # fmt: skip


@pytest.mark.campaign
@pytest.mark.parametrize("device", ["cpu", "mps"])
def test_one_table(device: str, script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "resolved", lambda name: name)
    with Card() if device == "mps" else nullcontext():
        found, rows = script.measured(options(device), tmp_path, script.Time(200.0))
    head = script.header(found)
    assert {len(row) for row in rows} == {len(head)} == {4}
    assert len(found["processor"]["seconds"]) == 2
    assert 0 < found["processor"]["training"][0] < found["processor"]["seconds"][0]
    if device == "cpu":
        assert head[2] == "no card here"
        assert [row[2] for row in rows] == ["–", "–", "–", "left out"]
        return
    assert len(found["on card"]["seconds"]) == 2
    assert found["labels that differ"] == 0
    assert found["largest difference of a confidence"] < 1e-4
    assert found["verified on the other device"] is True
    assert float(rows[0][3]) > 0


def test_what_time_does_not_allow_is_left_out(script: ModuleType, tmp_path: Path) -> None:
    data = script.digits(None)(None)
    plain = script.LearnOptions(arch="mlp:8,8", method=script.Options(script.Schedule(epochs=1)))
    left = iter([10.0, 0.0])
    found = script.learn_all(tmp_path / "store", data, plain, lambda: next(left))
    assert len(found.seconds) == 1
    assert script.shown(found, 1)[0] == f"{found.seconds[0]:.1f}"
    assert script.shown(None, 1) == ["–", "–"]
