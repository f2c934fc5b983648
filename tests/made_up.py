"""Made-up stores of many tasks and experts that look as if learned: what inspect reads of them is consistent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from store_samples import make_task

from store_schema import (
    Accuracy,
    ExpertRecord,
    ExpertWeights,
    HistoryEntry,
    LayerRecord,
    TaskLayer,
    TaskRecord,
    encode_subnetwork,
    encode_weights,
    writer,
)

SMALL = {"hidden1.weight": (12, 30), "hidden2.weight": (10, 12)}


def made_up(
    root: Path,
    experts: Sequence[int],
    shapes: Mapping[str, tuple[int, ...]] = SMALL,
    names: Mapping[int, str] | None = None,
    measured: bool = True,
    arch: str = "mlp:12,10",
) -> Path:
    """A store whose expert number i has ``experts[i]`` tasks, learned in turn; some get ``names``, by number from 1."""
    rng = np.random.default_rng(7)
    owners = [f"e{i + 1}" for i, tasks in enumerate(experts) for _ in range(tasks)]
    used: dict[str, dict[str, np.ndarray]] = {}
    frozen: dict[str, dict[str, int]] = {}
    rows: dict[str, int] = {}
    tasks: list[TaskRecord] = []
    history: list[HistoryEntry] = []
    with writer(root, seed=3, create=True) as locked:
        for number, expert in enumerate(owners, 1):
            name = (names or {}).get(number, f"task{number}")
            before = used.setdefault(expert, {n: np.zeros(s, bool) for n, s in shapes.items()})
            masks = {n: (rng.random(s) < 0.03) | (before[n] & (rng.random(s) < 0.7)) for n, s in shapes.items()}
            layers = [
                TaskLayer(name=n, parameters=m.size, selected=int(m.sum()), reused=int((m & before[n]).sum()))
                for n, m in masks.items()
            ]
            used[expert] = {n: before[n] | m for n, m in masks.items()}
            frozen = {**frozen, expert: {n: int(m.sum()) for n, m in used[expert].items()}}
            rows = {**rows, expert: rows.get(expert, 0) + 2}
            numbers = {n: np.zeros(s, np.float16) for n, s in shapes.items()}
            body = replace(
                make_task(name, number), expert=expert, masks=masks, scores=numbers,
                score_scale=dict.fromkeys(numbers, 1.0),
            )  # fmt: skip
            accuracy: dict[str, Any] = {"dense": None, "subnetwork": None, "held_out": 0}
            if measured:
                dense = float(np.round(1 - rng.random() ** 2 / 8, 3))
                accuracy = {"dense": dense, "subnetwork": max(0.0, dense - 0.01 * (number % 3)), "held_out": 50}
            tasks.append(
                TaskRecord(
                    name=name, number=number, expert=expert, classes=(2 * number, f"class {number}"), seed=number,
                    subnetwork=locked.put(encode_subnetwork(body), "h5"), subnetwork_sha256="0" * 64, probe=None,
                    layers=tuple(layers), owned_parameters=6, accuracy=Accuracy(**accuracy), images=100 * number,
                    config={}, learned_at=f"2030-01-{1 + number % 28:02d}T10:00:00+00:00",
                )
            )  # fmt: skip
            history.append(HistoryEntry(generation=1, action="learn", task=name, frozen=frozen, output_rows=rows))
        records = []
        for expert, masks in used.items():
            weights = ExpertWeights({n: m.astype(np.float32) for n, m in masks.items()}, {})
            records.append(
                ExpertRecord(
                    id=expert, arch=arch, input_shape=(1, 5, 6), input_scale=1.0, seed=1,
                    layers=tuple(LayerRecord(name=n, shape=s) for n, s in shapes.items()),
                    weights=locked.put(encode_weights(weights, expert), "safetensors"),
                )
            )  # fmt: skip
        update = {
            "experts": tuple(records),
            "tasks": tuple(tasks),
            "history": tuple(history),
            "next_task": len(tasks) + 1,
            "next_expert": len(records) + 1,
        }
        locked.commit(locked.manifest.model_copy(update=update))
    return root
