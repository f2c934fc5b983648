"""The solved gate: round trip, what is refused, and that a task leaves with its rows."""

from __future__ import annotations

import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save
from store_samples import Make

from clmoe_cli.api.prune import PruneOptions, prune
from store_schema import (
    ClmoeError,
    SolvedGate,
    SolvedGaussians,
    Store,
    StoreDamaged,
    coarse_form,
    encode_gate,
    encode_gaussians,
    rows_of,
    verify,
    writer,
)
from store_schema.gates import decode_gate, decode_gaussians


def gate_of(classes: int, d: int, k: int, seed: int = 0) -> SolvedGate:
    rng = np.random.default_rng(seed)
    return SolvedGate(
        rng.normal(size=(classes, d)).astype(np.float32),
        rng.normal(size=(classes, d, k)).astype(np.float16),
        rng.random(classes).astype(np.float32),
    )


def same(a: SolvedGate, b: SolvedGate) -> bool:
    return all(getattr(a, key).tobytes() == getattr(b, key).tobytes() for key in ("means", "coarse", "scales"))


@given(classes=st.integers(1, 7), d=st.integers(1, 9), k=st.integers(1, 5), seed=st.integers(0, 99))
def test_gates_round_trip(classes: int, d: int, k: int, seed: int) -> None:
    gate = gate_of(classes, d, k, seed)
    data = encode_gate(gate, "relu-1")
    assert data == encode_gate(gate, "relu-1")
    assert same(decode_gate(data, "file", "relu-1", classes), gate)


@given(counts=st.lists(st.integers(1, 4), min_size=1, max_size=6), data=st.data())
def test_tasks_leave_and_come_back_with_their_rows(counts: list[int], data: st.DataObject) -> None:
    parts = [gate_of(count, 5, 2, i) for i, count in enumerate(counts)]
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.joined(part)
    kept = data.draw(st.lists(st.booleans(), min_size=len(counts), max_size=len(counts)))
    rest = whole.taken(rows_of(counts, kept))
    wanted = [part for part, keep in zip(parts, kept, strict=True) if keep]
    assert len(rest.means) == sum(len(part.means) for part in wanted)
    if wanted:
        never_saw = wanted[0]
        for part in wanted[1:]:
            never_saw = never_saw.joined(part)
        assert same(rest, never_saw)


@pytest.mark.parametrize("directions", [0, 1, 2, 5])
def test_the_coarse_form_is_a_part_of_the_statistics(directions: int) -> None:
    rng = np.random.default_rng(0)
    full = rng.random((3, 6, directions)).astype(np.float16)
    quantiles = rng.random((3, 11)).astype(np.float32)
    found = coarse_form(rng.random((3, 6)).astype(np.float32), full, quantiles, 2)
    assert found.coarse.shape == (3, 6, 2)
    assert np.array_equal(found.coarse[:, :, :directions], full[:, :, :2])
    np.testing.assert_allclose(found.scales, quantiles.astype(np.float64).mean(axis=1), rtol=1e-6)


def header_of(data: bytes) -> tuple[dict[str, object], bytes]:
    (size,) = struct.unpack_from("<Q", data)
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def test_what_is_no_gate_is_refused() -> None:
    gate = gate_of(3, 4, 2)
    data = encode_gate(gate, "relu-1")
    with pytest.raises(StoreDamaged, match="another object"):
        decode_gate(data, "file", "scattering-1", 3)
    for classes in (2, 4, 0):
        with pytest.raises(StoreDamaged, match="wrong shape or type"):
            decode_gate(data, "file", "relu-1", classes)
    metadata = {"clmoe": "schema 1, gate, features relu-1"}
    whole = {"means": gate.means, "coarse": gate.coarse, "scales": gate.scales}
    for change in (
        {"means": gate.means.astype(np.float16)}, {"coarse": gate.coarse.astype(np.float32)},
        {"coarse": gate.coarse[:, :2]}, {"scales": gate.scales[:2]}, {"means": gate.means[:, :, None]},
        {"more": gate.means}, {"means": np.full_like(gate.means, np.nan)},
    ):  # fmt: skip
        with pytest.raises(StoreDamaged):
            decode_gate(save({**whole, **change}, metadata=metadata), "file", "relu-1", 3)
    header, body = header_of(data)
    header["scales"] = {**header["scales"], "dtype": "F64"}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    with pytest.raises(StoreDamaged):
        decode_gate(struct.pack("<Q", len(text)) + text + body, "file", "relu-1", 3)
    with pytest.raises(ClmoeError, match="cannot be stored"):
        encode_gate(SolvedGate(gate.means * np.float32(np.inf), gate.coarse, gate.scales), "relu-1")


@given(cut=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_damage_reads_otherwise_than_as_damage_or_another_number(cut: int, bit: int) -> None:
    data = bytearray(encode_gate(gate_of(2, 3, 1), "relu-1"))
    data[cut % len(data)] ^= 1 << bit
    try:
        found = decode_gate(bytes(data), "file", "relu-1", 2)
    except StoreDamaged:
        return
    assert found.means.shape == (2, 3)
    assert found.coarse.shape == (2, 3, 1)
    assert found.scales.shape == (2,)


def test_a_gate_that_differs_from_its_tasks_is_found(make_store: Make) -> None:
    root = make_store("a", "b")
    assert not verify(root)
    with writer(root) as locked:
        solved = locked.store.read_gate((7,))
        assert solved is not None
        other = SolvedGate(solved.means + np.float32(0.5), solved.coarse, solved.scales)
        record = locked.manifest.gates[0].model_copy(
            update={"solved": locked.put(encode_gate(other, "relu-1"), "safetensors")}
        )
        locked.commit(locked.manifest.model_copy(update={"gates": (record,)}))
    (finding,) = [f for f in verify(root) if f.damage]
    assert "gate" in finding.problem
    assert record.solved.sha256 in finding.file


def test_a_missing_gate_is_named(make_store: Make) -> None:
    root = make_store("a")
    ref = Store.open(root).manifest.gates[0].solved
    path = root / "objects" / ref.sha256[:2] / f"{ref.sha256}.safetensors"
    path.unlink()
    assert {f.file for f in verify(root) if f.damage} == {str(path)}
    assert Store.open(root).read_gate((8,)) is None


def test_pruning_leaves_the_gate_of_a_store_that_never_saw_the_task(make_store: Make) -> None:
    root = make_store("a", "b", "c")
    parts = [Store.open(root).read_subnetwork(name).gate for name in ("a", "c")]
    prune(str(root), PruneOptions(task="b"), lambda plan: True)
    own = [coarse_form(p["means"], p["directions"], p["quantiles"], 2) for p in parts]
    found = Store.open(root).read_gate((7,))
    assert found is not None
    assert same(found, own[0].joined(own[1]))
    assert not verify(root)
    prune(str(root), PruneOptions(expert="e1"), lambda plan: True)
    assert Store.open(root).manifest.gates == ()


def gaussians_of(classes: int, d: int, m: int, k: int, seed: int = 0, exact: bool = False) -> SolvedGaussians:
    rng = np.random.default_rng(seed)
    shapes = {
        "means": (classes, d), "weights": (classes, d), "scales": (classes,), "centre": (d,), "spread": (d,),
        "reach": (d, m), "grams": (classes, k, k), "choice": (2,),
    }  # fmt: skip
    doubles = {"weights", "choice", *(("reach",) if exact else ())}
    kinds = {key: np.float64 if key in doubles else np.float32 for key in shapes}
    return SolvedGaussians({key: rng.normal(size=shape).astype(kinds[key]) for key, shape in shapes.items()})


def same_arrays(a: SolvedGaussians, b: SolvedGaussians) -> bool:
    return set(a.arrays) == set(b.arrays) and all(
        (v.dtype, v.shape, v.tobytes()) == (b.arrays[key].dtype, b.arrays[key].shape, b.arrays[key].tobytes())
        for key, v in a.arrays.items()
    )


@given(
    classes=st.integers(1, 5),
    d=st.integers(1, 9),
    m=st.integers(1, 6),
    k=st.integers(1, 4),
    seed=st.integers(0, 99),
    exact=st.booleans(),
)
def test_gates_of_gaussians_round_trip(classes: int, d: int, m: int, k: int, seed: int, exact: bool) -> None:
    gate = gaussians_of(classes, d, m, k, seed, exact)
    data = encode_gaussians(gate, "scattering-1")
    shuffled = SolvedGaussians({key: gate.arrays[key] for key in reversed(gate.arrays)})
    assert data == encode_gaussians(shuffled, "scattering-1")
    assert same_arrays(decode_gaussians(data, "file", "scattering-1", classes), gate)


def test_what_is_no_gate_of_gaussians_is_refused() -> None:
    gate = gaussians_of(3, 4, 2, 2)
    data = encode_gaussians(gate, "vector-1")
    with pytest.raises(StoreDamaged, match="another object"):
        decode_gaussians(data, "file", "unit-1", 3)
    with pytest.raises(StoreDamaged):
        decode_gaussians(encode_gate(gate_of(3, 4, 2), "vector-1"), "file", "vector-1", 3)
    with pytest.raises(StoreDamaged):
        decode_gate(data, "file", "vector-1", 3)
    for classes in (2, 4, 0):
        with pytest.raises(StoreDamaged, match="wrong shape or type"):
            decode_gaussians(data, "file", "vector-1", classes)
    metadata = {"clmoe": "schema 2, gate, features vector-1"}
    whole = dict(gate.arrays)
    assert save(dict(sorted(whole.items())), metadata=metadata) == data
    changes: list[dict[str, np.ndarray]] = [{"more": whole["means"]}]
    for key, value in whole.items():
        # One too few along each axis, one axis too many, another type, what is no number.
        changes += [{key: np.delete(value, 0, axis=axis)} for axis in range(value.ndim) if key != "reach" or axis == 0]
        changes += [{key: value[..., None]}, {key: value.astype(np.float16)}, {key: value.astype(np.int32)}]
        for bad in (np.nan, np.inf, -np.inf):
            changes.append({key: np.where(np.arange(value.size).reshape(value.shape) == 1, bad, value)})
            changes[-1][key] = changes[-1][key].astype(value.dtype)
        if key != "reach":
            changes.append({key: value.astype(np.float32 if value.dtype == np.float64 else np.float64)})
    for change in changes:
        with pytest.raises(StoreDamaged):
            decode_gaussians(save({**whole, **change}, metadata=metadata), "file", "vector-1", 3)
    for key in whole:
        with pytest.raises(StoreDamaged, match="wrong arrays"):
            decode_gaussians(
                save({k: v for k, v in whole.items() if k != key}, metadata=metadata), "file", "vector-1", 3
            )
    with pytest.raises(StoreDamaged):
        decode_gaussians(save(whole), "file", "vector-1", 3)
    header, body = header_of(data)
    header["scales"] = {**header["scales"], "dtype": "F64"}  # type: ignore[dict-item]
    text = json.dumps(header).encode()
    with pytest.raises(StoreDamaged):
        decode_gaussians(struct.pack("<Q", len(text)) + text + body, "file", "vector-1", 3)
    for unfit in ({"means": whole["means"] * np.float32(np.inf)}, {"scales": whole["scales"][:2]}):
        with pytest.raises(ClmoeError, match="cannot be stored"):
            encode_gaussians(SolvedGaussians({**whole, **unfit}), "vector-1")


@given(cut=st.integers(0, 1200), bit=st.integers(0, 7))
def test_no_damage_to_a_gate_of_gaussians_reads_otherwise_than_as_damage_or_another_number(cut: int, bit: int) -> None:
    data = bytearray(encode_gaussians(gaussians_of(2, 3, 2, 1), "vector-1"))
    data[cut % len(data)] ^= 1 << bit
    try:
        found = decode_gaussians(bytes(data), "file", "vector-1", 2)
    except StoreDamaged:
        return
    wanted = gaussians_of(2, 3, 2, 1)
    assert {k: v.shape for k, v in found.arrays.items()} == {k: v.shape for k, v in wanted.arrays.items()}
