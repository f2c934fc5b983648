from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def table(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_the_papers_figures_can_be_drawn_without_mnist(tmp_path: Path) -> None:
    command = [sys.executable, str(BENCHMARKS / "paper.py"), "--quick", "--out", str(tmp_path), "--no-dense"]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert json.loads(done.stdout) == summary
    assert summary["source"] == "mnist5k"
    assert summary["outputs_bit_identical"] == [True]
    assert 90 < summary["accuracy_mean"][0] <= 100
    for name in ("fig2", "fig3a", "fig3b", "table1"):
        assert (tmp_path / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert len(table(tmp_path / f"{name}.csv")) >= 18
    accuracies = [float(row["accuracy"]) for row in table(tmp_path / "fig3b.csv")]
    assert len(accuracies) == 21
    assert all(0.5 < a <= 1 for a in accuracies)
    again = subprocess.run(command, check=False, capture_output=True, text=True)
    assert again.returncode != 0
    assert "store0 exists" in again.stderr
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
