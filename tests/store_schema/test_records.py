from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from store_samples import SHAPES

from store_schema import (
    Accuracy,
    BadInput,
    ClmoeError,
    DiskProblem,
    ExpertRecord,
    FeaturesRecord,
    GateRecord,
    HistoryEntry,
    InputRecord,
    LayerRecord,
    Manifest,
    ObjectRef,
    StoreDamaged,
    StoreIncompatible,
    StoreLocked,
    StoreMissing,
    TaskLayer,
    TaskRecord,
    UsageProblem,
)
from store_schema.errors import disk_errors

EMPTY = Manifest(generation=0, parent=None, created_at="", seed=5)
EXPERT = ExpertRecord(
    id="e1", arch="mlp:5,3", input_shape=(7,), input_scale=1.0, seed=1,
    layers=tuple(LayerRecord(name=n, shape=s) for n, s in SHAPES.items()), weights=None,
)  # fmt: skip
OBJECT = ObjectRef(sha256="0" * 64, size=1, suffix="h5")
TASK = TaskRecord(
    name="t", number=1, expert="e1", classes=(1, "1"), seed=1, subnetwork=OBJECT, subnetwork_sha256="0" * 64,
    probe=None,
    layers=tuple(TaskLayer(name=n, parameters=s[0] * s[1], selected=0, reused=0) for n, s in SHAPES.items()),
    owned_parameters=1, accuracy=Accuracy(dense=None, subnetwork=None, held_out=0), images=1, config={}, learned_at="",
)  # fmt: skip
GATE = GateRecord(input_shape=(7,), input_scale=1.0, features="relu-1", solved=OBJECT)
SMALL = InputRecord(image_size=64, channels=3)
PICTURES = GATE.model_copy(update={"input": SMALL})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("generation", -1), ("generation", "1"), ("generation", True), ("seed", 1.5), ("parent", "xyz"),
        ("format", 1 << 20), ("tasks", None), ("tasks", [1]), ("unknown", 1), ("experts", [{"id": "../x"}]),
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


def test_an_initial_manifest_is_empty() -> None:
    manifest = Manifest(generation=0, parent=None, created_at="", seed=5)
    assert list(manifest.objects()) == []


LABELS = st.one_of(
    st.integers(-(2**63), 2**63 - 1), st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=200)
)


@given(labels=st.lists(LABELS, min_size=1, max_size=8, unique_by=lambda v: (type(v), v)))
def test_labels_of_any_kind_come_back_as_they_were(labels: list[int | str]) -> None:
    task = TASK.model_copy(update={"classes": tuple(labels)})
    data = EMPTY.model_copy(update={"experts": (EXPERT,), "tasks": (task,), "next_task": 2}).to_bytes()
    back = Manifest.from_bytes(data, "m.json")
    assert [(type(v), v) for v in back.tasks[0].classes] == [(type(v), v) for v in labels]
    assert back.to_bytes() == data


@pytest.mark.parametrize("label", [True, 1.5, None, "", "a\nb", "a\x85b", "x" * 201, 2**63, (1,), "\ud800"])
def test_labels_that_are_no_labels_are_refused(label: object) -> None:
    with pytest.raises(ValidationError):
        TaskRecord(**{**dict(TASK), "classes": (label,)})


def test_the_same_label_twice_is_refused_and_its_text_is_another() -> None:
    TaskRecord(**{**dict(TASK), "classes": (1, "1")})
    with pytest.raises(ValidationError, match="class occurs twice"):
        TaskRecord(**{**dict(TASK), "classes": (1, "1", 1)})


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tasks": (TASK, TASK), "next_task": 2}, "task occurs twice"),
        ({"tasks": (TASK, TASK.model_copy(update={"name": "u"})), "next_task": 2}, "task number occurs twice"),
        ({"tasks": (TASK,)}, "number that is yet to be given"),
        ({"experts": (EXPERT, EXPERT)}, "expert occurs twice"),
        ({"experts": (), "tasks": (TASK,), "next_task": 2}, "does not exist"),
        ({"experts": (EXPERT.model_copy(update={"layers": EXPERT.layers * 2}),)}, "layer of expert e1 occurs twice"),
        ({"repair_floor": 3}, "later generation"),
        ({"generation": 1}, "without weights"),
        ({"gates": (GATE, GATE)}, "gate occurs twice"),
        ({"gates": (PICTURES, GATE, PICTURES)}, "gate occurs twice"),
    ],
)
def test_manifests_are_consistent(change: dict[str, object], said: str) -> None:
    data = EMPTY.model_copy(update={"experts": (EXPERT,), **change}).to_bytes()
    with pytest.raises(StoreDamaged, match=said):
        Manifest.from_bytes(data, "m.json")


def test_kinds_of_input_are_told_apart_by_shape_and_transform() -> None:
    second = EXPERT.model_copy(update={"id": "e2", "input": SMALL})
    tasks = (TASK, TASK.model_copy(update={"name": "u", "number": 2, "expert": "e2"}))
    update = {"experts": (EXPERT, second), "tasks": tasks, "next_task": 3, "gates": (GATE, PICTURES)}
    manifest = Manifest.from_bytes(EMPTY.model_copy(update=update).to_bytes(), "m.json")
    assert manifest.gate((7,)) == GATE
    assert manifest.gate((7,), SMALL) == PICTURES
    assert manifest.gate((7,), InputRecord(image_size=65, channels=3)) is None
    assert manifest.gate((8,), SMALL) is None
    assert [t.name for t in manifest.tasks_of_shape((7,))] == ["t"]
    assert [t.name for t in manifest.tasks_of_shape((7,), SMALL)] == ["u"]
    assert manifest.tasks_of_shape((8,), SMALL) == []


@pytest.mark.parametrize(
    "fields",
    [
        {}, {"image_size": 0}, {"image_size": 4097}, {"image_size": 8.0}, {"channels": 2}, {"channels": 4},
        {"features": {"arch": "a", "sha256": "0"}}, {"features": {"arch": "", "sha256": "0" * 64}}, {"size": 5},
    ],
)  # fmt: skip
def test_inputs_are_checked(fields: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        InputRecord.model_validate(fields)
    InputRecord(features=FeaturesRecord(arch="resnet18", sha256="0" * 64))


def test_layers_have_bounds() -> None:
    with pytest.raises(ValidationError, match="larger than any object"):
        LayerRecord(name="a", shape=(2**31, 2**31))
    with pytest.raises(ValidationError, match="selects more than there is"):
        TaskLayer(name="a", parameters=4, selected=5, reused=0)


def test_errors_are_one_line_and_name_their_fields() -> None:
    error = StoreDamaged("bad\nthing", where="a\x1b[31m.h5", key="k", found="x\ty", expected="z", hint="do")
    assert str(error) == "bad thing: a\\x1b[31m.h5 [k]; found x y; expected z; do"
    assert error.as_dict() == {
        "kind": "StoreDamaged", "what": "bad\nthing", "where": "a\x1b[31m.h5", "key": "k", "found": "x\ty",
        "expected": "z", "hint": "do",
    }  # fmt: skip
    assert [e.exit_code for e in (UsageProblem, BadInput, StoreMissing, StoreDamaged, StoreIncompatible)] == [
        2,
        3,
        4,
        4,
        4,
    ]
    assert [StoreLocked.exit_code, DiskProblem.exit_code, ClmoeError.exit_code] == [5, 6, 1]
    with pytest.raises(DiskProblem, match="no space left on device: here; free some space"), disk_errors("here"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_records_are_found_by_name_whatever_was_looked_up_before() -> None:
    with_one = EMPTY.model_copy(update={"experts": (EXPERT,), "tasks": (TASK,), "next_task": 2})
    untouched = with_one.to_bytes()
    assert with_one.task("t") is with_one.tasks[0]
    assert with_one.expert("e1") is with_one.experts[0]
    assert with_one.to_bytes() == untouched
    other = with_one.model_copy(update={"tasks": (TASK.model_copy(update={"name": "other"}),), "experts": ()})
    assert other.task("other").name == "other"
    for look, name in ((other.task, "t"), (other.expert, "e1"), (with_one.task, "other")):
        with pytest.raises(KeyError):
            look(name)


def past(*states: dict[str, tuple[int, int]]) -> tuple[HistoryEntry, ...]:
    """Entries after which experts have so many frozen weights and output rows."""
    return tuple(
        HistoryEntry(
            generation=i, action="learn", task=None,
            frozen={e: {"h": weights, "i": 1} for e, (weights, _) in state.items()},
            output_rows={e: rows for e, (_, rows) in state.items()},
        )
        for i, state in enumerate(states, start=1)
    )  # fmt: skip


STATE = st.dictionaries(
    st.sampled_from(["e1", "e2", "e10"]), st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=3
)


@given(st.lists(STATE, max_size=6))
def test_a_history_is_read_as_it_was_written(states: list[dict[str, tuple[int, int]]]) -> None:
    manifest = EMPTY.model_copy(update={"history": past(*states), "generation": len(states)})
    data = manifest.to_bytes()
    assert Manifest.from_bytes(data, "m.json") == manifest
    assert Manifest.from_bytes(data, "m.json").to_bytes() == data
    # Before format 5 each entry had all experts.
    fields = {**manifest.model_dump(mode="json"), "format": 4}
    assert Manifest.from_bytes(json.dumps(fields).encode(), "m.json") == manifest


def test_an_entry_of_the_history_has_what_it_changed() -> None:
    every: dict[str, tuple[int, int]] = {f"e{i}": (i, 1) for i in range(1, 100)}
    states = every, {**every, "e5": (9, 1)}, {**every, "e5": (9, 2)}, {e: c for e, c in every.items() if e != "e7"}
    manifest = EMPTY.model_copy(update={"history": past(*states), "generation": 4})
    entries = json.loads(manifest.to_bytes())["history"]
    assert (len(entries[0]["frozen"]), len(entries[0]["output_rows"])) == (99, 99)
    assert (entries[1]["frozen"], entries[1]["output_rows"]) == ({"e5": {"h": 9, "i": 1}}, {})
    assert (entries[2]["frozen"], entries[2]["output_rows"]) == ({}, {"e5": 2})
    assert entries[3]["frozen"] == {"e5": {"h": 5, "i": 1}, "e7": {}}
