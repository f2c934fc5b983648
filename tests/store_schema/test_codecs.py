from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from store_samples import SHAPES, Make, make_task

from store_schema import (
    ClmoeError,
    ExpertRecord,
    ExpertWeights,
    LayerRecord,
    Store,
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
)  # fmt: skip  # fmt: skip


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


@given(
    seed=st.integers(0, 99),
    density=st.floats(0, 1),
    shape=hnp.array_shapes(min_dims=1, max_dims=4, max_side=12),
    kind=st.sampled_from(["scores", "image_scores"]),
)
def test_scores_come_back_where_the_mask_selects_them(
    seed: int, density: float, shape: tuple[int, ...], kind: str
) -> None:
    rng = np.random.default_rng(seed)
    mask = rng.random(shape) < density
    found = {"w": np.where(mask, rng.random(shape), 0).astype(np.float16), "b": rng.random(3).astype(np.float16)}
    changes = {"scores": {}, "score_scale": {}, kind: found, f"{kind[:-1]}_scale": dict.fromkeys(found, 1.0)}
    record = replace(make_task("t", 0), masks={"w": mask}, **changes)
    data = encode_subnetwork(record)
    back = decode_subnetwork(data, "file", "t", "e1", {"w": shape})
    assert np.array_equal(back.masks["w"], mask)
    assert all(getattr(back, kind)[name].tobytes() == value.tobytes() for name, value in found.items())
    # Scores are read with the masks that they belong to; what is not wanted is not read.
    alone = decode_subnetwork(data, "file", "t", "e1", {"w": shape}, (kind,))
    assert getattr(alone, kind)["w"].tobytes() == found["w"].tobytes()
    assert decode_subnetwork(data, "file", "t", "e1", {"w": shape}, ("gate",)).masks == {}


@pytest.mark.parametrize("density", [0.0, 0.003, 0.01, 0.02, 0.05, 0.1, 0.3, 0.5, 1.0])
def test_masks_and_scores_take_about_their_entropy(density: float) -> None:
    rng, shape = np.random.default_rng(0), (500, 784)
    mask = rng.random(shape) < density
    sizes = []
    for scores in ({}, {"w": np.where(mask, rng.random(shape), 0).astype(np.float16)}):
        bare = replace(make_task("t", 0), masks={"w": mask}, scores=scores, score_scale=dict.fromkeys(scores, 1.0))
        sizes.append(len(encode_subnetwork(bare)))
    empty = replace(make_task("t", 0), masks={"w": np.zeros((8, 8), bool)}, scores={}, score_scale={})
    share = np.clip(mask.mean(), 1e-9, 1 - 1e-9)
    entropy = mask.size / 8 * -(share * np.log2(share) + (1 - share) * np.log2(1 - share))
    assert sizes[0] - len(encode_subnetwork(empty)) <= 1.45 * entropy + 1500
    assert sizes[1] - sizes[0] <= 2 * mask.sum() + 1500


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


def test_bytes_do_not_depend_on_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    task, weights = make_task("t", 0), ExpertWeights({"w": np.ones((2, 2), np.float32)}, {"t": {"b": np.ones(2, "f4")}})
    before = encode_subnetwork(task), encode_weights(weights, "e1")
    second = int(time.time())
    while int(time.time()) == second:  # HDF5 keeps whole seconds
        time.sleep(0.01)
    assert (encode_subnetwork(task), encode_weights(weights, "e1")) == before


def test_bytes_per_task_and_expert(make_store: Make, capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Store.open(make_store("a", "b")).manifest
    sizes = {t.name: t.subnetwork.size for t in manifest.tasks}
    expert = sum(e.weights.size for e in manifest.experts if e.weights is not None)
    weights = sum(mask.size for mask in make_task("a", 0).masks.values())
    with capsys.disabled():
        print(f"\nbytes per task {sizes}, per expert {expert}, for {weights} weights")
    assert max(sizes.values()) < 16 << 10


@pytest.mark.parametrize(
    "change",
    [
        {"scores": {"w": np.full((2, 2), np.nan, np.float16)}},
        {"scores": {"w": np.ones((2, 2), np.float16)}},
        {"scores": {"w": np.zeros((2, 2), np.float32)}},
        {"score_scale": {"w": np.inf}},
        {"score_scale": {}},
        {"calibration": {"loss": np.array([np.inf])}},
        {"statistics": {"a/b": np.zeros(2)}},
        {"statistics": {"a": np.array(["text"], dtype=object)}},
        {"task": "a\x00b"},
        {"masks": {"a/b": np.zeros((2, 2), bool)}, "scores": {}},
    ],
)
def test_what_could_not_be_read_is_never_written(change: dict[str, object]) -> None:
    good = replace(
        make_task("t", 0), masks={"w": np.eye(2) > 0}, scores={"w": np.eye(2, dtype=np.float16)}, score_scale={"w": 1.0}
    )
    encode_subnetwork(good)
    with pytest.raises(ClmoeError, match="cannot be stored") as caught:
        encode_subnetwork(replace(good, **change))  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("place", ["shared", "owned"])
def test_weights_that_are_not_finite_are_never_written(value: float, place: str) -> None:
    good, bad = np.ones((2, 2), np.float32), np.full((2, 2), value, np.float32)
    weights = ExpertWeights({"w": bad if place == "shared" else good}, {"t": {"b": bad if place == "owned" else good}})
    with pytest.raises(ClmoeError, match="expert e1 cannot be stored"):
        encode_weights(weights, "e1")


@pytest.mark.parametrize("name", ["a/b", ""])
def test_parameters_that_would_be_read_as_another_tasks_are_never_written(name: str) -> None:
    weights = ExpertWeights({"w": np.ones((2, 2), np.float32)}, {"t": {name: np.ones(2, np.float32)}})
    with pytest.raises(ClmoeError, match="cannot be stored"):
        encode_weights(weights, "e1")


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


STANDARDISED = RECORD.model_copy(update={"standardised": True})


def standardised(centre: np.ndarray | None = None, spread: np.ndarray | None = None) -> ExpertWeights:
    rng = np.random.default_rng(0)
    shared = {n: rng.normal(size=s).astype(np.float32) for n, s in SHAPES.items()}
    owned = {t: {"output.bias": rng.normal(size=2).astype(np.float32)} for t in ("input", "input/centre")}
    given = {"centre": np.linspace(-1, 1, 7, dtype=np.float32), "spread": np.full(7, 0.5, np.float32)}
    given |= {k: v for k, v in {"centre": centre, "spread": spread}.items() if v is not None}
    return ExpertWeights(shared, owned, given)


def test_centre_and_spread_of_the_inputs_round_trip_whatever_tasks_are_called() -> None:
    weights = standardised()
    data = encode_weights(weights, "e1")
    back = decode_weights(data, "file", STANDARDISED, list(weights.owned))
    for name, value in weights.inputs.items():
        assert back.inputs[name].tobytes() == value.tobytes()
    assert set(back.owned) == set(weights.owned)
    with pytest.raises(StoreDamaged, match="another object"):
        decode_weights(data, "file", RECORD, list(weights.owned))
    plain = encode_weights(ExpertWeights(weights.shared, weights.owned), "e1")
    assert decode_weights(plain, "file", RECORD, list(weights.owned)).inputs == {}
    assert b"schema 1, expert e1" in plain
    with pytest.raises(StoreDamaged, match="another object"):
        decode_weights(plain, "file", STANDARDISED, list(weights.owned))


@pytest.mark.parametrize(
    "bad",
    [
        {"spread": np.zeros(7, np.float32)},
        {"spread": np.linspace(-1, 1, 7, dtype=np.float32)},
        {"spread": np.full(7, np.inf, np.float32)},
        {"centre": np.full(7, np.nan, np.float32)},
        {"spread": np.ones((7, 1), np.float32)},
        {"spread": np.ones(6, np.float32)},
    ],
)
def test_inputs_that_could_not_be_standardised_with_are_never_written(bad: dict[str, np.ndarray]) -> None:
    with pytest.raises(ClmoeError, match="expert e1 cannot be stored"):
        encode_weights(standardised(**bad), "e1")
    with pytest.raises(ClmoeError, match="cannot be stored"):
        encode_weights(ExpertWeights(standardised().shared, {}, {"centre": np.ones(7, np.float32)}), "e1")


def test_an_object_of_other_columns_than_the_experts_is_damage() -> None:
    six = {"centre": np.ones(6, np.float32), "spread": np.ones(6, np.float32)}
    weights = standardised()
    data = encode_weights(ExpertWeights(weights.shared, weights.owned, six), "e1")
    with pytest.raises(StoreDamaged, match="wrong shape"):
        decode_weights(data, "file", STANDARDISED, list(weights.owned))


def test_a_task_is_what_its_inputs_are_set_against_too() -> None:
    masks = make_task("input", 1).masks
    weights, moved = standardised(), standardised(centre=np.zeros(7, np.float32))
    digest = subnetwork_digest(weights, masks, "input")
    assert subnetwork_digest(moved, masks, "input") != digest
    assert subnetwork_digest(ExpertWeights(weights.shared, weights.owned), masks, "input") != digest
    left, _ = remove_tasks(weights, {"input": masks, "input/centre": make_task("x", 2).masks}, ["input/centre"])
    assert left.inputs == weights.inputs
    assert subnetwork_digest(left, masks, "input") == digest
