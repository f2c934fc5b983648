"""Which transform is used when nobody says, and stores whose tasks read images of different kinds."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_store as small
from pictures import bars
from PIL import Image

from clmoe_cli.api.inputs import Kind, decided
from clmoe_cli.api.opened import Opened
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Raw, look
from store_schema import FeaturesRecord, InputRecord, Store, UsageProblem, verify

SIZE8, SIZE12 = (InputRecord(image_size=size, channels=3) for size in (8, 12))
GREY8 = InputRecord(image_size=8, channels=1)
SEEN = FeaturesRecord(arch="net", sha256="0" * 64)


@pytest.mark.parametrize(
    ("kind", "raw", "takes"),
    [
        (Kind((5,), None), Raw(False, (5,)), True),
        (Kind((5,), None), Raw(False, (6,)), False),
        (Kind((5,), None), Raw(False, (1, 5, 5)), False),
        (Kind((1, 8, 8), None), Raw(False, (1, 8, 8)), True),
        (Kind((1, 8, 8), None), Raw(False, (3, 8, 8)), False),
        (Kind((1, 8, 8), None), Raw(True, (3, 8, 8)), True),
        (Kind((1, 8, 8), None), Raw(True, (3, 8, 9)), False),
        (Kind((3, 8, 8), SIZE8), Raw(False, (1, 20, 30)), True),
        (Kind((3, 8, 8), SIZE8), Raw(True, (1, 20, 30)), True),
        (Kind((3, 8, 8), SIZE8), Raw(False, (192,)), False),
        (Kind((4, 8, 8), InputRecord(image_size=8)), Raw(False, (4, 9, 9)), True),
        (Kind((4, 8, 8), InputRecord(image_size=8)), Raw(False, (3, 9, 9)), False),
        (Kind((1, 8, 8), None), Raw(True, None), False),
    ],
)
def test_what_a_kind_takes(kind: Kind, raw: Raw, takes: bool) -> None:
    assert kind.takes(raw) == takes


def test_one_transform_decides_and_several_do_not() -> None:
    assert decided([]) is None
    assert decided([Kind((5,), None)]) is None
    assert decided([Kind((5,), None), Kind((3, 8, 8), SIZE8)]) == SIZE8
    assert decided([Kind((1, 8, 8), GREY8), Kind((3, 8, 8), SIZE8)]) == InputRecord(image_size=8)
    seen = SIZE8.model_copy(update={"features": SEEN})
    for other, text in ((SIZE12, "image size 12, colour"), (seen, "image size 8, colour, features of net")):
        with pytest.raises(UsageProblem, match=f"{text}.*--image-size"):
            decided([Kind((3, 8, 8), SIZE8), Kind((3, 8, 8), other)])


def folder(root: Path, classes: list[int], n: int, seed: int) -> Path:
    """Pictures of bars in classes' folders, of sizes of chance and coloured."""
    x, y = bars(classes, n, seed)
    rng = np.random.default_rng(seed)
    for index, (image, label) in enumerate(zip(x, y, strict=True)):
        place = root / f"bar{label}"
        place.mkdir(parents=True, exist_ok=True)
        side = int(rng.integers(16, 40))
        picture = Image.fromarray(np.stack([image, image // 2, image // 3], axis=2))
        picture.resize((side, side)).save(place / f"{index:03d}.png")
    return root


def learn(store: Path, source: Path, **told: Any) -> Any:
    opened = Opened.at(str(store))
    with look(str(source), labels="required") as unread:
        batch = unread.read(opened.expected.transform(unread.raw, **told))
    return small.learn(opened, batch, small.OPTIONS)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store whose tasks read 16×16 colour pictures, 12×12 grey arrays and vectors; their data."""
    root = tmp_path_factory.mktemp("inputs")
    store = root / "store"
    folder(root / "photos", [0, 4], 80, 1)
    folder(root / "more", [2, 7], 80, 2)
    folder(root / "asked", [0, 4, 2, 7], 24, 3)
    x, y = bars([5, 9], 80, 4, side=12)
    np.savez(root / "grey.npz", x=x, y=y)
    np.savez(root / "vectors.npz", x=x.reshape(80, -1)[:, ::2] / np.float32(255), y=y + 20)
    assert learn(store, root / "photos", image_size=16).new_expert
    learn(store, root / "more")  # follows the first
    assert learn(store, root / "grey.npz", image_size=0).new_expert
    assert learn(store, root / "vectors.npz").new_expert
    return root


def call(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    code = run(app, [str(arg) for arg in args])
    return code, *capsys.readouterr()


def test_one_store_for_pictures_arrays_and_vectors(world: Path) -> None:
    manifest = Store.open(world / "store").manifest
    kinds = [(manifest.expert(t.expert).input_shape, manifest.expert(t.expert).input) for t in manifest.tasks]
    colour = (3, 16, 16), InputRecord(image_size=16, channels=3)
    assert kinds == [colour, colour, ((1, 12, 12), None), ((72,), None)]
    assert {(g.input_shape, g.input) for g in manifest.gates} == set(kinds)
    assert manifest.tasks[0].classes == ("bar0", "bar4")
    assert verify(world / "store") == []


@pytest.mark.parametrize(
    ("source", "tasks"),
    [("asked", {"task1", "task2"}), ("grey.npz", {"grey"}), ("vectors.npz", {"vectors"})],
)
def test_predict_reads_as_the_tasks_did(
    source: str, tasks: set[str], world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = world / "store"
    code, out, err = call(capsys, "predict", "--batch", world / source, "--store", store, "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert {row["task"] for row in report["predictions"]} <= tasks
    assert report["accuracy"] > 0.6
    again = call(capsys, "detect", "--data", world / source, "--store", store, "--json")
    assert {row["task"] for row in json.loads(again[1])["tasks"]} <= tasks
    if source == "asked":
        explicit = call(capsys, "predict", "--batch", world / source, "--store", store, "--json", "--image-size", 16)
        assert explicit[1] == out
        one = call(capsys, "predict", "--batch", world / source, "--store", store, "--json", "--task", "task2")
        assert {row["task"] for row in json.loads(one[1])["predictions"]} == {"task2"}
        wrong = call(capsys, "predict", "--batch", world / source, "--store", store, "--image-size", 12)
        assert wrong[0] == 3
        assert "3×12×12 (image size 12, colour)" in wrong[2]
        assert "3×16×16 (image size 16, colour)" in wrong[2]


def test_each_row_says_its_file(world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, asked = world / "store", folder(tmp_path / "asked", [0, 4], 12, 5)
    broken = asked / "bar0" / "0-broken.png"
    broken.write_bytes(b"")
    names = sorted(str(p.relative_to(asked)) for p in asked.rglob("*.png") if p != broken)
    args = ("predict", "--batch", asked, "--store", store)
    code, _, err = call(capsys, *args)
    assert code == 3
    assert all(text in err for text in ("1 of 13 pictures", "bar0/0-broken.png", "--skip-broken"))
    code, out, err = call(capsys, *args, "--skip-broken", "--json")
    assert (code, err) == (0, "skipped 1 broken picture: bar0/0-broken.png\n")
    report = json.loads(out)
    assert report["skipped"] == 1
    assert [row["file"] for row in report["predictions"]] == names
    for suffix in ("csv", "ndjson", "npz"):
        assert call(capsys, *args, "--skip-broken", "-q", "--output", tmp_path / f"out.{suffix}") == (0, "", "")
    with (tmp_path / "out.csv").open(newline="") as file:
        assert [row["file"] for row in csv.DictReader(file)] == names
    assert [json.loads(line)["file"] for line in (tmp_path / "out.ndjson").read_text().splitlines()] == names
    assert np.load(tmp_path / "out.npz")["file"].tolist() == names
    assert names[0] in call(capsys, *args, "--skip-broken")[1]
    rows = json.loads(call(capsys, "predict", "--batch", world / "grey.npz", "--store", store, "--json")[1])
    assert "file" not in rows["predictions"][0]


def test_several_transforms_are_asked_about(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, photos = tmp_path / "store", folder(tmp_path / "photos", [0, 4], 64, 6)
    code, _, err = call(capsys, "learn", "--data", photos, "--store", store)
    assert code == 3
    assert "pictures differ in size" in err
    assert "--image-size" in err
    assert not store.exists()
    quick = ("--arch", "mlp:8,8", "--epochs", 1, "-q", "--json")
    for size in (8, 12):
        code, out, _ = call(capsys, "learn", "--data", photos, "--store", store, "--image-size", size, *quick)
        assert (code, json.loads(out)["new_expert"], json.loads(out)["skipped"]) == (0, True, 0)
    for command in ("learn", "detect", "predict"):
        code, _, err = call(capsys, command, "--data", photos, "--store", store)
        assert code == 2
        assert "(image size 8, colour) or (image size 12, colour)" in err
    assert call(capsys, "predict", "--data", photos, "--store", store, "--image-size", 12)[0] == 0
    assert call(capsys, "predict", "--data", photos, "--store", store, "--task", "task1")[0] == 0
    code, out, _ = call(capsys, "inspect", "--store", store, "--verify", "--json")
    assert code == 0
    assert [expert["input"]["image_size"] for expert in json.loads(out)["experts"]] == [8, 12]
    assert call(capsys, "prune", "--store", store, "--task", "task1", "--yes", "-q")[0] == 0
    assert [gate.input for gate in Store.open(store).manifest.gates] == [SIZE12]
    assert call(capsys, "predict", "--data", photos, "--store", store)[0] == 0
