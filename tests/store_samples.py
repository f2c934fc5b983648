from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from store_schema import (
    Accuracy,
    ExpertRecord,
    ExpertWeights,
    GateRecord,
    HistoryEntry,
    LayerRecord,
    Store,
    SubnetworkRecord,
    TaskLayer,
    TaskRecord,
    Writer,
    coarse_form,
    encode_gate,
    encode_subnetwork,
    encode_weights,
    subnetwork_digest,
)

Make = Callable[..., Path]
"""The fixture ``make_store``: a store with tasks of these names."""
SHAPES = {"hidden1.weight": (5, 7), "hidden2.weight": (3, 5)}


def snapshot(root: Path) -> dict[str, bytes]:
    """Every file of a folder."""
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def contents(root: Path) -> dict[str, bytes]:
    """Every file of a store but its lock."""
    return {name: data for name, data in snapshot(root).items() if name != "lock"}


def names(root: Path) -> list[str]:
    """The store's tasks."""
    return [t.name for t in Store.open(root).manifest.tasks]


def make_task(name: str, seed: int) -> SubnetworkRecord:
    rng = np.random.default_rng(seed)
    masks = {layer: rng.random(shape) < 0.4 for layer, shape in SHAPES.items()}
    scores = {layer: np.where(masks[layer], rng.random(shape), 0).astype(np.float16) for layer, shape in SHAPES.items()}
    scores["hidden1.bias"] = rng.random(5).astype(np.float16)
    return SubnetworkRecord(
        task=name,
        expert="e1",
        masks=masks,
        scores=scores,
        score_scale=dict.fromkeys(scores, 0.25),
        calibration={"fisher": np.sort(rng.random(60))},
        statistics={"means": rng.random((2, 8)).astype(np.float32)},
        gate={
            "means": rng.random((2, 4)).astype(np.float32),
            "directions": rng.random((2, 4, 3)).astype(np.float16),
            "quantiles": np.sort(rng.random((2, 11))).astype(np.float32),
            "counts": np.array([50.0, 50.0]),
        },
        probe_outputs=rng.random((8, 2)).astype(np.float32),
    )


def commit_task(locked: Writer, name: str, seed: int) -> None:
    """Puts one more task into expert e1, as ``learn`` does."""
    manifest, body = locked.manifest, make_task(name, seed)
    rng = np.random.default_rng(seed)
    shared = {layer: np.zeros(shape, np.float32) for layer, shape in SHAPES.items()}
    owned: dict[str, dict[str, np.ndarray]] = {}
    if manifest.experts:
        before = locked.store.read_expert("e1")
        shared = {layer: value.copy() for layer, value in before.shared.items()}
        owned = {task: dict(params) for task, params in before.owned.items()}
    for layer, mask in body.masks.items():
        fresh = mask & (shared[layer] == 0)
        shared[layer][fresh] = rng.normal(size=fresh.sum()).astype(np.float32)
    owned[name] = {"output.weight": rng.normal(size=(2, 3)).astype(np.float32)}
    weights = ExpertWeights(shared, owned)
    expert = ExpertRecord(
        id="e1", arch="mlp:5,3", input_shape=(7,), input_scale=1.0, seed=1,
        layers=tuple(LayerRecord(name=n, shape=s) for n, s in SHAPES.items()),
        weights=locked.put(encode_weights(weights, "e1"), "safetensors"),
    )  # fmt: skip
    task = TaskRecord(
        name=name, number=manifest.next_task, expert="e1", classes=(1, "1"), seed=seed,
        subnetwork=locked.put(encode_subnetwork(body), "h5"),
        subnetwork_sha256=subnetwork_digest(weights, body.masks, name), probe=None,
        layers=tuple(
            TaskLayer(name=n, parameters=m.size, selected=int(m.sum()), reused=0) for n, m in body.masks.items()
        ),
        owned_parameters=6, accuracy=Accuracy(dense=1.0, subnetwork=1.0, held_out=50), images=100,
        config={"score": "gradient"}, learned_at=f"2000-01-01T00:00:{seed % 60:02d}",
    )  # fmt: skip
    own = coarse_form(body.gate["means"], body.gate["directions"], body.gate["quantiles"], 2)
    old = locked.store.read_gate((7,))
    solved = locked.put(encode_gate(own if old is None else old.joined(own), "relu-1"), "safetensors")
    gate = GateRecord(input_shape=(7,), input_scale=1.0, features="relu-1", solved=solved)
    entry = HistoryEntry(generation=manifest.generation + 1, action="learn", task=name, frozen={}, output_rows={})
    update = {
        "experts": (expert,),
        "gates": (gate,),
        "tasks": (*manifest.tasks, task),
        "next_task": manifest.next_task + 1,
        "history": (*manifest.history, entry),
    }
    locked.commit(manifest.model_copy(update=update))
