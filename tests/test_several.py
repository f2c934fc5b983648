"""``predict`` takes pictures, folders, patterns and files together."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
from pictures import bars
from PIL import Image
from small_store import OPTIONS

import clmoe
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data.several import grouped, joined
from store_schema import BadInput, FeaturesRecord, InputRecord

SIDE = 16


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a store of grey pictures, pictures in class folders, and an npz of more."""
    root = tmp_path_factory.mktemp("several")
    x, y = bars([0, 6], 120, 1, SIDE)
    names = np.array(["left", "", "", "", "", "", "right"])[y]
    clmoe.learn(str(root / "store"), clmoe.Batch(x[:, None], names, "bars"), OPTIONS)
    x, y = bars([0, 6], 12, 2, SIDE)
    for i, (pixels, kind) in enumerate(zip(x, y, strict=True)):
        folder = root / "shots" / ("left" if kind == 0 else "right")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    np.savez(root / "more.npz", x=x[:4], y=np.where(y[:4] == 0, "left", "right"))
    return root


def predicted(
    capsys: pytest.CaptureFixture[str], world: Path, monkeypatch: pytest.MonkeyPatch, *args: object, code: int = 0
) -> tuple[dict, str]:
    monkeypatch.chdir(world)
    assert run(app, ["predict", *map(str, args), "--store", "store", "--json"]) == code
    out, err = capsys.readouterr()
    return (json.loads(out) if out else {}), err


def test_pictures_folders_and_files_are_rows_of_one_answer(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = sorted((world / "shots" / "left").glob("*.png"))[0].relative_to(world)
    found, _ = predicted(capsys, world, monkeypatch, one, "shots/right", "more.npz", "--labels", "ignore")
    rows = found["predictions"]
    count = len(list((world / "shots" / "right").glob("*.png")))
    assert rows[0]["file"] == str(one)
    assert all(row["file"].startswith("shots/right/") for row in rows[1 : 1 + count])
    assert [row["file"] for row in rows[1 + count :]] == [f"more.npz[{i}]" for i in range(4)]
    assert [row["index"] for row in rows] == list(range(count + 5))
    # Each is answered as it is by itself.
    alone, _ = predicted(capsys, world, monkeypatch, "--batch", "shots/right")
    assert [row["label"] for row in alone["predictions"]] == [row["label"] for row in rows[1 : 1 + count]]
    assert [row["p_value"] for row in alone["predictions"]] == [row["p_value"] for row in rows[1 : 1 + count]]


def test_a_pattern_is_written_out_and_one_picture_is_enough(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, _ = predicted(capsys, world, monkeypatch, "shots/*/*.png")
    assert [row["file"] for row in found["predictions"]] == sorted(
        str(path.relative_to(world)) for path in (world / "shots").glob("*/*.png")
    )
    one, _ = predicted(capsys, world, monkeypatch, "--batch", found["predictions"][0]["file"])
    assert len(one["predictions"]) == 1
    assert one["accuracy"] is None


def test_what_answers_are_judged_by(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found, _ = predicted(capsys, world, monkeypatch, "shots", "more.npz")
    assert found["accuracy"] > 0.8
    assert predicted(capsys, world, monkeypatch, "shots", "--labels", "ignore")[0]["accuracy"] is None
    foreign = tmp_path / "holiday"
    for name in ("monday", "tuesday"):
        (foreign / name).mkdir(parents=True)
        for path in list((world / "shots" / "left").glob("*.png"))[:2]:
            (foreign / name / path.name).write_bytes(path.read_bytes())
    auto, err = predicted(capsys, world, monkeypatch, foreign)
    assert auto["accuracy"] is None
    assert "not taken for labels" in err
    assert predicted(capsys, world, monkeypatch, foreign, "--labels", "folder")[0]["accuracy"] == 0
    mixed, err = predicted(capsys, world, monkeypatch, "more.npz", sorted((world / "shots").glob("*/*.png"))[0])
    assert mixed["accuracy"] is None
    assert "none are looked at" in err


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ((), 2, "no data given"),
        (("nothing*.png",), 3, "no file has such a name"),
        (("shots", "gone.png"), 3, "gone.png"),
        (("-", "shots"), 2, "stdin is read by itself"),
        (("shots", "--labels", "perhaps"), 2, "auto, folder, ignore"),
    ],
)
def test_what_cannot_be_asked_is_said_in_a_line(
    args: tuple[str, ...], code: int, words: str, world: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    _, err = predicted(capsys, world, monkeypatch, *args, code=code)
    assert words in err


def test_inputs_of_different_kinds_are_refused(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    np.savez(tmp_path / "rows.npz", x=np.zeros((3, 9), np.float32))
    _, err = predicted(capsys, world, monkeypatch, "shots", tmp_path / "rows.npz", code=3)
    assert "inputs of different kinds" in err


def test_pictures_that_follow_each_other_are_one_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "b.JPG", "[c].png"):
        Path(name).touch()
    Path("d").mkdir()
    assert grouped(["a.png", "b.JPG", "d", "[c].png", "x.npz"]) == [("a.png", "b.JPG"), "d", ("[c].png",), "x.npz"]
    assert grouped(["?.png"]) == [("a.png",)]


def test_broken_pictures_are_named_as_they_were_given(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = next((world / "shots" / "left").glob("*.png"))
    for name in ("one", "two"):
        (world / name).mkdir()
        (world / name / "torn.png").write_bytes(whole.read_bytes()[:40])
    _, err = predicted(capsys, world, monkeypatch, "one/torn.png", whole, "two/torn.png", code=3)
    assert "2 of 3 pictures broken: one/torn.png, two/torn.png" in err


def test_kinds_that_differ_by_what_they_went_through_are_told_apart() -> None:
    seen = InputRecord(features=FeaturesRecord(arch="net", sha256="0" * 64))
    x = np.zeros((1, 3), np.float32)
    with pytest.raises(BadInput, match=re.escape("[3] (features of net) beside [3]")):
        joined([clmoe.Batch(x, None, "a.npz"), clmoe.Batch(x, None, "b.jpg", seen)])


def test_what_has_the_name_of_a_picture_is_read_as_one_everywhere(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)
    picture = next((world / "shots" / "left").glob("*.png"))
    assert run(app, ["detect", "--data", str(picture), "--store", "store", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1
    assert run(app, ["learn", "--data", str(picture), "--store", "store"]) == 3
    assert "no labels to learn from" in (said := capsys.readouterr().err)
    assert "photos/CLASS/picture.jpg" in said


def test_a_pipe_with_the_name_of_a_picture_is_refused_and_not_waited_for(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    for asked in (tmp_path / "pipe.png", tmp_path):
        _, err = predicted(capsys, world, monkeypatch, asked, code=3)
        assert "not a regular file" in err


def test_a_link_to_itself_is_a_broken_picture(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "self.png").symlink_to("self.png")
    (tmp_path / "whole.png").write_bytes(next((world / "shots" / "left").glob("*.png")).read_bytes())
    _, err = predicted(capsys, world, monkeypatch, tmp_path, code=3)
    assert "self.png" in err
    found, _ = predicted(capsys, world, monkeypatch, tmp_path, "--skip-broken")
    assert [row["file"] for row in found["predictions"]] == ["whole.png"]


def test_detect_takes_several_as_one_batch(
    world: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(world)

    def detected(*args: str, code: int = 0) -> str:
        assert run(app, ["detect", *args, "--store", "store", "--json"]) == code
        out, err = capsys.readouterr()
        return out or err

    pictures = sorted(map(str, Path("shots/left").glob("*.png")))
    one = json.loads(detected(*pictures))
    assert one["verdict"] == "known"
    assert {key: one[key] for key in ("p_value", "tasks")} == {
        key: json.loads(detected("shots/left"))[key] for key in ("p_value", "tasks")
    }
    assert json.loads(detected("shots/left/*.png")) == one
    assert json.loads(detected(*pictures, "shots/right", "more.npz"))["verdict"] == "known"
    assert "data given twice" in detected("shots/left", "more.npz", "--data", "more.npz", code=2)
    assert "no file has such a name" in detected("shots/*.gif", code=3)
