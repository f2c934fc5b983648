"""Six ``learn`` processes beside six plain PyTorch ones on the same images, and where their time goes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import time
from collections import defaultdict
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from p6 import PAIRS

from clmoe_cli.data import read_batch
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.learn_task import split
from clmoe_cli.store_tensors import derived_seed, generator
from store_schema import Store

HERE = Path(__file__).parent
LINE = re.compile(r"^(\w+) (\d+)/\d+ .*validation ([\d.]+)")
STAGES = ("start, onset, placement", "train", "prune", "consolidate", "scores, statistics, gate, commit")
HALF = 5e-5
"""Of the last digit of a loss that is printed."""


def timed_lines(command: list[str]) -> tuple[float, list[tuple[float, str]], str]:
    """Runs a command: its seconds, its lines on stderr with their times, its stdout."""
    started = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        assert running.stdout is not None
        lines = [(time.monotonic() - started, line) for line in running.stderr]
        out = running.stdout.read()
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {running.returncode}: {''.join(line for _, line in lines)}")
    return time.monotonic() - started, lines, out


def stages(total: float, lines: list[tuple[float, str]]) -> tuple[dict[str, float], float]:
    """Seconds of each stage of a ``learn``, and the least held-out loss before pruning."""
    found: dict[str, float] = defaultdict(float)
    epochs = [(at, match) for at, line in lines if (match := LINE.match(line))]
    gaps = np.median([b[0] - a[0] for a, b in pairwise(epochs)])
    before = epochs[0][0] - float(gaps)
    found[STAGES[0]] = before
    for at, match in epochs:
        found[match[1]] += at - before
        before = at
    found[STAGES[-1]] = total - before
    return dict(found), min(float(match[3]) for _, match in epochs if match[1] == "train")


def rows_of(file: Path, store: Path, out: Path) -> Path:
    """Which images the newest task's ``learn`` trained on, and which told it when to stop."""
    manifest, batch = Store.open(store).manifest, read_batch(str(file), labels="required")
    labels = torch.from_numpy(np.unique(batch.labels, return_inverse=True)[1])
    rng = generator(derived_seed(manifest.seed, manifest.next_task - 1, "train"))
    parts = split(Labelled(torch.arange(len(labels))[:, None], labels), rng)
    np.savez(out, training=parts.training.x[:, 0].numpy(), held=parts.tuning.x[:, 0].numpy())
    return out


def six(data: Path, store: Path) -> dict[str, Any]:
    """Six tasks, each by ``learn`` and then by the plain program."""
    rows = []
    for i in range(1, len(PAIRS) + 1):
        file = str(data / f"task{i}.npz")
        took, lines, _ = timed_lines(
            [sys.executable, "-m", "clmoe_cli", "learn", "--data", file, "--store", str(store)]
        )
        parts, loss = stages(took, lines)
        alike = [file, "--rows", str(rows_of(Path(file), store, data / "rows.npz"))]
        until = ["--until", str(loss + HALF)]
        alone, _, out = timed_lines([sys.executable, str(HERE / "plain.py"), *alike, *until])
        converged, _, _ = timed_lines([sys.executable, str(HERE / "plain.py"), *alike])
        rows.append(
            {"learn": took, "plain": alone, "plain converged": converged, "stages": parts, "loss": loss}
            | {f"plain {key}": value for key, value in json.loads(out).items()}
        )
        print(rows[-1], file=sys.stderr, flush=True)
    each = np.array([row["learn"] / row["plain"] for row in rows])
    total = {key: sum(row[key] for row in rows) for key in ("learn", "plain", "plain converged")}
    return {
        "ratio of the sums": total["learn"] / total["plain"],
        "ratio to plain ones that converge": total["learn"] / total["plain converged"],
        "of single tasks": [float(each.min()), float(np.median(each)), float(each.max())],
        "sums": total,
        "stages": {name: sum(row["stages"].get(name, 0.0) for row in rows) for name in STAGES},
        "rows": rows,
    }
