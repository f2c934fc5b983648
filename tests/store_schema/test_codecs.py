from __future__ import annotations

import io
import json
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from store_samples import SHAPES, make_task

from store_schema import (
    ExpertRecord,
    ExpertWeights,
    LayerRecord,
    Manifest,
    StoreDamaged,
    decode_subnetwork,
    decode_weights,
    encode_subnetwork,
    encode_weights,
    remove_tasks,
    subnetwork_digest,
)

NAMES = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=30)
RECORD = ExpertRecord(
    id="e1", arch="mlp:5,3", input_shape=(7,), input_scale=1.0, seed=1,
    layers=tuple(LayerRecord(name=n, shape=s) for n, s in SHAPES.items()), weights=None,
)  # fmt: skip


@given(
    mask=hnp.arrays(bool, st.tuples(st.integers(1, 9), st.integers(1, 13))),
    name=NAMES,
    value=st.floats(-6e4, 6e4, width=16),
)
def test_subnetworks_round_trip(mask: np.ndarray, name: str, value: float) -> None:
    scores = np.where(mask, np.float16(value), np.float16(0)).astype(np.float16)
    record = replace(make_task(name, 0), masks={"w": mask}, scores={"w": scores}, score_scale={"w": 2.0})
    data = encode_subnetwork(record)
    assert data == encode_subnetwork(record)
    back = decode_subnetwork(data, "file", name, "e1", {"w": mask.shape})
    assert np.array_equal(back.masks["w"], mask)
    assert back.scores["w"].tobytes() == scores.tobytes()
    assert back.score_scale == {"w": 2.0}
    assert back.calibration["fisher"].tobytes() == record.calibration["fisher"].tobytes()
    assert back.probe_outputs.tobytes() == record.probe_outputs.tobytes()


@given(task=NAMES, other=NAMES, seed=st.integers(0, 99))
def test_weights_round_trip_whatever_tasks_are_called(task: str, other: str, seed: int) -> None:
    rng = np.random.default_rng(seed)
    shared = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    owned = {t: {"output.bias": rng.normal(size=2).astype(np.float32)} for t in (task, other, f"{task}/{other}")}
    weights = ExpertWeights(shared, owned)
    data = encode_weights(weights, "e1")
    assert data == encode_weights(weights, "e1")
    back = decode_weights(data, "file", RECORD, list(owned))
    assert all(back.shared[n].tobytes() == shared[n].tobytes() for n in shared)
    assert all(back.owned[t]["output.bias"].tobytes() == owned[t]["output.bias"].tobytes() for t in owned)
    with pytest.raises(StoreDamaged):
        decode_weights(data, "file", RECORD, [*owned, "never-learned" * 3])


def damaged_h5(change: Callable[[h5py.File], None]) -> bytes:
    image = io.BytesIO(encode_subnetwork(make_task("t", 0)))
    with h5py.File(image, "r+") as file:
        change(file)
    return image.getvalue()


def replaced(key: str, **options: object) -> Callable[[h5py.File], None]:
    def change(file: h5py.File) -> None:
        attrs = dict(file[key].attrs)
        del file[key]
        file.create_dataset(key, **options)  # type: ignore[arg-type]
        file[key].attrs.update(attrs)

    return change


def external(file: h5py.File) -> None:
    del file["probe_outputs"]
    file.create_dataset("probe_outputs", shape=(4,), dtype="f4", external=[("/etc/hostname", 0, 16)])


def virtual(file: h5py.File) -> None:
    layout = h5py.VirtualLayout(shape=(4,), dtype="f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", shape=(4,))
    del file["probe_outputs"]
    file.create_virtual_dataset("probe_outputs", layout)


HOSTILE: dict[str, Callable[[h5py.File], None]] = {
    "soft link": lambda f: f.__setitem__("statistics/x", h5py.SoftLink("/masks")),
    "external link": lambda f: f.__setitem__("statistics/x", h5py.ExternalLink("/etc/passwd", "/")),
    "link cycle": lambda f: f.__setitem__("statistics/x", f["statistics"]),
    "external storage": external,
    "virtual data set": virtual,
    "huge chunked": replaced("probe_outputs", shape=(1 << 50,), dtype="f4", chunks=(1024,), compression="gzip"),
    "huge compact": replaced("calibration/fisher", shape=(1 << 40,), dtype="f8"),
    "another type": replaced("probe_outputs", data=np.zeros(3, dtype="c8")),
    "strings": replaced("probe_outputs", data=np.array([b"x"], dtype=object), dtype=h5py.string_dtype()),
    "another filter": replaced("probe_outputs", data=np.zeros((8, 2), "f4"), scaleoffset=2),
    "not a number": replaced("calibration/fisher", data=np.array([np.nan])),
    "infinite score": replaced("scores/hidden1.bias", data=np.full(5, np.inf, "f2")),
    "score outside the mask": replaced("scores/hidden1.weight", data=np.ones((5, 7), "f2")),
    "short mask": replaced("masks/hidden1.weight", data=np.zeros(2, "u1")),
    "unknown group": lambda f: f.create_group("extra") and None,
    "missing group": lambda f: f.__delitem__("gate"),
    "another task": lambda f: f.attrs.__setitem__("task", "u"),
    "newer schema": lambda f: f.attrs.__setitem__("schema", 99),
    "lost attribute": lambda f: f.attrs.__delitem__("layers"),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_hdf5_is_refused_in_one_line(change: Callable[[h5py.File], None]) -> None:
    with pytest.raises(StoreDamaged) as caught:
        decode_subnetwork(damaged_h5(change), "a/file.h5", "t", "e1", SHAPES)
    assert "a/file.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_unchanged_file_is_read() -> None:
    decode_subnetwork(damaged_h5(lambda file: None), "file", "t", "e1", SHAPES)


def safetensors(header: dict[str, object], body: bytes, size: int | None = None) -> bytes:
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + body


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


GOOD = {
    "__metadata__": {"clmoe": "schema 1, expert e1"},
    "shared/hidden1.weight": entry([5, 7], 0, 140),
    "shared/hidden2.weight": entry([3, 5], 140, 200),
    "task/t/output.bias": entry([2], 200, 208),
}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x00" * 7,
        safetensors(GOOD, bytes(208), size=1 << 60),
        safetensors(GOOD, bytes(207)),
        safetensors(GOOD, bytes(209)),
        safetensors({**GOOD, "task/t/output.bias": entry([2], 196, 204)}, bytes(208)),
        safetensors({**GOOD, "task/t/output.bias": entry([2], 200, 208, "I32")}, bytes(208)),
        safetensors({**GOOD, "task/t/output.bias": entry([1 << 60], 200, 208)}, bytes(208)),
        safetensors({**GOOD, "task/t/output.bias": entry([0], 200, 200)}, bytes(200)),
        safetensors({**GOOD, "task/t/output.bias": {"dtype": "F32"}}, bytes(208)),
        safetensors({**GOOD, "task/other/output.bias": entry([1], 208, 212)}, bytes(212)),
        safetensors({**GOOD, "shared/hidden1.weight": entry([7, 5], 0, 140)}, bytes(208)),
        safetensors({k: v for k, v in GOOD.items() if "task" not in k}, bytes(200)),
        safetensors(GOOD, np.full(52, np.nan, "<f4").tobytes()),
    ],
)
def test_hostile_safetensors_is_refused(data: bytes) -> None:
    with pytest.raises(StoreDamaged, match="a/file"):
        decode_weights(data, "a/file", RECORD, ["t"])


def test_the_good_safetensors_is_read() -> None:
    decode_weights(safetensors(GOOD, bytes(208)), "file", RECORD, ["t"])


@given(seed=st.integers(0, 200), removed=st.sets(st.sampled_from(["a", "b", "c"])))
def test_removal_frees_exactly_what_no_other_task_uses(seed: int, removed: set[str]) -> None:
    rng = np.random.default_rng(seed)
    masks = {t: {n: rng.random(s) < 0.3 for n, s in SHAPES.items()} for t in "abc"}
    shared = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    owned = {t: {"output.bias": rng.normal(size=2).astype(np.float32)} for t in "abc"}
    before = ExpertWeights(shared, owned)
    after, freed = remove_tasks(before, masks, sorted(removed))
    for n in SHAPES:
        for i in np.ndindex(SHAPES[n]):
            kept = any(masks[t][n][i] for t in "abc" if t not in removed)
            assert after.shared[n][i] == (shared[n][i] if kept else 0)
        alone = [any(masks[t][n][i] for t in removed) and not any(masks[t][n][i] for t in set("abc") - removed)
                 for i in np.ndindex(SHAPES[n])]  # fmt: skip
        assert freed[n] == sum(alone)
    assert set(after.owned) == set("abc") - removed
    for t in after.owned:
        assert subnetwork_digest(after, masks[t], t) == subnetwork_digest(before, masks[t], t)


@given(layer=st.sampled_from(list(SHAPES)), bit=st.integers(0, 31), position=st.integers(0, 10_000))
def test_one_thawed_bit_changes_the_digest(layer: str, bit: int, position: int) -> None:
    masks = make_task("t", 1).masks
    shared = {n: np.ones(s, np.float32) for n, s in SHAPES.items()}
    weights = ExpertWeights(shared, {"t": {"b": np.ones(2, np.float32)}})
    before = subnetwork_digest(weights, masks, "t")
    used = np.flatnonzero(masks[layer])
    shared[layer].reshape(-1).view(np.uint32)[used[position % len(used)]] ^= np.uint32(1 << bit)
    assert subnetwork_digest(weights, masks, "t") != before


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", -1), ("generation", "1"), ("generation", True), ("seed", 1.5), ("parent", "xyz"),
        ("format", 2), ("tasks", None), ("tasks", [1]), ("unknown", 1), ("experts", [{"id": "../x"}]),
    ],
)  # fmt: skip
def test_manifests_are_checked_field_by_field(make_store: Callable[..., Path], key: str, value: object) -> None:
    root = make_store("a")
    fields = json.loads((root / "manifests" / "1.json").read_bytes())
    fields[key] = value
    with pytest.raises(StoreDamaged, match=key):
        Manifest.from_bytes(json.dumps(fields).encode(), "m.json")


def test_classes_keep_their_type(make_store: Callable[..., Path]) -> None:
    data = (make_store("a") / "manifests" / "1.json").read_bytes()
    manifest = Manifest.from_bytes(data, "m.json")
    assert manifest.tasks[0].classes == (1, "1")
    assert manifest.to_bytes() == data
