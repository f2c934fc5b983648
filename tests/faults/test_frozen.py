"""One changed bit in what a task computes with is caught every time, though all hashes of files are right."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import small_store as small

from clmoe_cli.api.inspect import inspect
from store_schema import ExpertWeights, Store, StoreDamaged, encode_weights, verify, writer


def test_a_changed_bit_is_caught_every_time(
    tmp_path: Path, whole: bool, record_property: pytest.RecordProperty
) -> None:
    """In shared weights that a task uses, and in its owned parameters."""
    good = small.build(tmp_path / "good", 2)
    store = Store.open(good)
    weights = store.read_expert("e1")
    masks = {t.name: store.read_subnetwork(t.name).masks for t in store.manifest.tasks}
    rng, missed, cases = np.random.default_rng(0), [], 300 if whole else 20
    for case in range(cases):
        shared = {k: v.copy() for k, v in weights.shared.items()}
        owned = {t: {k: v.copy() for k, v in params.items()} for t, params in weights.owned.items()}
        task = f"task{case % 2 + 1}"
        if case % 3:
            layers = [name for name in shared if masks[task][name].any()]
            array = shared[layers[case % len(layers)]]
            at = tuple(rng.permutation(np.argwhere(masks[task][layers[case % len(layers)]]))[0])
        else:
            array = owned[task][sorted(owned[task])[case % len(owned[task])]]
            at = tuple(int(rng.integers(n)) for n in array.shape)
        bits = array.view(np.uint32)
        bits[at] ^= np.uint32(1 << int(rng.choice([*range(23), 31])))  # fraction or sign: the number stays finite
        root = Path(shutil.copytree(good, tmp_path / f"own{case}"))
        with writer(root) as locked:
            ref = locked.put(encode_weights(ExpertWeights(shared, owned), "e1"), "safetensors")
            expert = locked.manifest.experts[0].model_copy(update={"weights": ref})
            locked.commit(locked.manifest.model_copy(update={"experts": (expert,)}))
        said = " ".join(f.problem for f in verify(root) if f.damage)
        if f"task {task} changed" not in said:
            missed.append((case, task, said))
        with pytest.raises(StoreDamaged):
            inspect(str(root), check=True)
        shutil.rmtree(root)
    record_property("cases", cases)
    record_property("failures", len(missed))
    assert missed == []


def test_outputs_of_every_task_are_certified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the outputs are computed with is checked by them alone, when the hash of the weights is blind."""
    root = small.build(tmp_path / "store", 2)
    inspect(str(root), check=True)
    from clmoe_cli.api import certify

    real = certify.probe
    monkeypatch.setattr(certify, "probe", lambda net, params: real(net, params) * (1 + 2e-7))
    with pytest.raises(StoreDamaged, match=r"outputs of 2 tasks changed.*task1, task2"):
        inspect(str(root), check=True)
