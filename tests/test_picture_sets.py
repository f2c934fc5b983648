"""``clmoe tasks`` on data sets of picture files: torchvision's layouts become class folders that ``learn`` reads."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clmoe_cli.api.known_sets import PICTURES, folder_name
from clmoe_cli.api.tasks import TasksOptions, TasksReport, make_tasks, parse_classes
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import class_folders, read_batch
from store_schema import InputRecord
from store_schema.errors import BadInput, DiskProblem, UsageProblem

TRAIN, TEST = 4, 2
"""Pictures of each class."""


def picture(path: Path, number: int) -> Path:
    """A picture whose size and bytes tell it from the others."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((20 + number % 5, 24, 3), 40 + number, np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def gtsrb(root: Path) -> None:
    base = root / "gtsrb"
    rows = ["Filename;Width;Height;Roi.X1;Roi.Y1;Roi.X2;Roi.Y2;ClassId"]
    for label in range(3):
        for i in range(TRAIN):
            # The same names in each class.
            picture(base / "GTSRB" / "Training" / f"{label:05d}" / f"00000_{i:05d}.ppm", 10 * label + i)
        for i in range(TEST):
            name = f"{label * TEST + i:05d}.ppm"
            picture(base / "GTSRB" / "Final_Test" / "Images" / name, 100 + 10 * label + i)
            rows.append(f"{name};24;20;1;1;9;9;{label}")
    (base / "GT-final_test.csv").write_text("\n".join(rows) + "\n")


def flowers102(root: Path) -> None:
    from scipy.io import savemat

    base = root / "flowers-102"
    ids = range(1, 3 * (TRAIN + TEST) + 1)
    for i in ids:
        picture(base / "jpg" / f"image_{i:05d}.jpg", i)
    labels = np.array([(i - 1) % 3 + 1 for i in ids], np.uint8)
    savemat(base / "imagelabels.mat", {"labels": labels[None]})
    parts = {"trnid": list(ids)[:6], "valid": list(ids)[6:12], "tstid": list(ids)[12:]}
    savemat(base / "setid.mat", {name: np.array([part], np.uint16) for name, part in parts.items()})


def oxford_pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    number = 0
    for part, each in (("trainval", TRAIN), ("test", TEST)):
        lines = []
        for label, name in enumerate(("Abyssinian", "american_bulldog", "Bengal"), start=1):
            for _ in range(each):
                number += 1
                picture(base / "images" / f"{name}_{number}.jpg", number)
                lines.append(f"{name}_{number} {label} {1 + label % 2} 1")
        (base / "annotations" / f"{part}.txt").write_text("\n".join(lines) + "\n")


def eurosat(root: Path) -> None:
    for label, name in enumerate(("AnnualCrop", "Forest", "SeaLake")):
        for i in range(TRAIN + TEST):
            picture(root / "eurosat" / "2750" / name / f"{name}_{i}.jpg", 10 * label + i)


def food101(root: Path) -> None:
    base = root / "food-101"
    (base / "meta").mkdir(parents=True)
    names = ("apple_pie", "baby_back_ribs", "cheesecake")
    number = 0
    for part, each in (("train", TRAIN), ("test", TEST)):
        listed: dict[str, list[str]] = {}
        for name in names:
            for _ in range(each):
                number += 1
                picture(base / "images" / name / f"{number}.jpg", number)
                listed.setdefault(name, []).append(f"{name}/{number}")
        (base / "meta" / f"{part}.json").write_text(json.dumps(listed))


MAKERS: dict[str, Callable[[Path], None]] = {
    "gtsrb": gtsrb, "flowers102": flowers102, "oxford-pets": oxford_pets, "eurosat": eurosat, "food101": food101,
}  # fmt: skip
NAMES = {
    "gtsrb": ["0", "1", "2"],
    "flowers102": ["pink_primrose", "hard-leaved_pocket_orchid", "canterbury_bells"],
    "oxford-pets": ["Abyssinian", "American_Bulldog", "Bengal"],
    "eurosat": ["AnnualCrop", "Forest", "SeaLake"],
    "food101": ["apple_pie", "baby_back_ribs", "cheesecake"],
}
FOLDERS = {
    "gtsrb": "gtsrb/GTSRB", "flowers102": "flowers-102/jpg", "oxford-pets": "oxford-iiit-pet/images",
    "eurosat": "eurosat/2750", "food101": "food-101/images",
}  # fmt: skip


@pytest.fixture(autouse=True)
def any_checksum(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision compares the published checksums of Flowers102's tables."""
    monkeypatch.setattr("torchvision.datasets.flowers102.check_integrity", lambda path, md5: Path(path).is_file())


@pytest.fixture(params=PICTURES)
def source(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def root(source: str, tmp_path: Path) -> Path:
    MAKERS[source](tmp_path / "root")
    return tmp_path / "root"


def cut(source: str, root: Path, out: Path, dry_run: bool = False, **options: Any) -> TasksReport:
    options = {"classes": [[0, 2], [1]], "test_fraction": TEST / (TRAIN + TEST), **options}
    return make_tasks(source, out, TasksOptions(root=str(root), **options), dry_run=dry_run)


def pictures(folder: Path) -> dict[str, bytes]:
    """The bytes of all files by their path in the folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_makers_and_names_are_those_of_the_sources() -> None:
    assert list(MAKERS) == list(NAMES) == list(FOLDERS) == list(PICTURES)


def test_folders(source: str, root: Path, tmp_path: Path) -> None:
    out, names = tmp_path / "out", NAMES[source]
    report = cut(source, root, out)
    folders = ["task1", "task1.test", "task2", "task2.test", "mixed.test"]
    assert sorted(path.name for path in out.iterdir()) == sorted(folders)
    assert [file.path for file in report.files] == [str(out / name) for name in folders]
    classes = [(names[0], names[2])] * 2 + [(names[1],)] * 2 + [tuple(names)]
    assert [file.classes for file in report.files] == classes
    assert [file.images for file in report.files] == [2 * TRAIN, 2 * TEST, TRAIN, TEST, 3 * TEST]
    originals = {path.read_bytes() for path in (root / FOLDERS[source]).rglob("*") if path.is_file()}
    read = InputRecord(image_size=16)
    for file in report.files:
        found = pictures(Path(file.path))
        assert len(set(found.values())) == len(found) == file.images
        assert set(found.values()) <= originals
        assert not any(name.startswith(".") for name in found)
        batch = read_batch(file.path, labels="required", input=read)
        assert batch.labels is not None
        assert sorted(set(batch.labels.tolist())) == sorted(file.classes)
        assert len(batch.images) == file.images
        assert not batch.warnings
    train = set(pictures(out / "task1").values()) | set(pictures(out / "task2").values())
    test = set(pictures(out / "task1.test").values()) | set(pictures(out / "task2.test").values())
    assert not train & test
    assert set(pictures(out / "mixed.test").values()) == test
    assert train | test == originals


def test_pictures_have_the_class_and_the_part_that_the_data_set_says(source: str, root: Path, tmp_path: Path) -> None:
    cut(source, root, tmp_path / "out", classes=[[0, 1, 2]])
    found = pictures(tmp_path / "out" / "task1")
    known = {content: path for path, content in pictures(root / FOLDERS[source]).items()}
    for name, content in found.items():
        of, file = name.split("/")
        original = known[content]
        assert file == Path(original).name
        number = NAMES[source].index(of)
        if source == "gtsrb":
            assert original.startswith(f"Training/{number:05d}/")
        elif source == "flowers102":
            which = int(file[6:11])
            assert (which - 1) % 3 == number
            assert which <= 12
        elif source == "oxford-pets":
            assert file.rpartition("_")[0].replace("_", "").casefold() == of.replace("_", "").casefold()
        else:
            assert original.startswith(f"{of}/")


def test_names_numbers_order_and_limit(source: str, root: Path, tmp_path: Path) -> None:
    names = NAMES[source]
    by_name = cut(source, root, tmp_path / "a", classes=[[names[2].upper(), names[0].replace("_", " ")]])
    by_number = cut(source, root, tmp_path / "b", classes=[["2", 0]])
    assert by_name.files[0].classes == by_number.files[0].classes == (names[2], names[0])
    assert pictures(tmp_path / "a") == pictures(tmp_path / "b")
    every = cut(source, root, tmp_path / "c", classes=(), tasks=3, per_class=1)
    assert [file.classes for file in every.files[:6:2]] == [(name,) for name in names]
    assert [file.images for file in every.files] == [1, TEST] * 3 + [3 * TEST]
    drawn = [cut(source, root, tmp_path / "d", True, classes=(), tasks=3, order=f"random:{i}") for i in range(9)]
    orders = {tuple(file.classes[0] for file in report.files[:6:2]) for report in drawn}
    assert len(orders) > 1
    assert all(sorted(order) == sorted(names) for order in orders)


def test_a_seed_gives_the_same_pictures(source: str, root: Path, tmp_path: Path) -> None:
    def chosen(out: str, seed: int) -> dict[str, bytes]:
        cut(source, root, tmp_path / out, per_class=1, seed=seed)
        return pictures(tmp_path / out)

    first = chosen("a", 1)
    assert chosen("b", 1) == first
    assert any(chosen(f"c{seed}", seed) != first for seed in range(2, 9))


def test_a_dry_run_writes_nothing_and_says_the_same(source: str, root: Path, tmp_path: Path) -> None:
    plan = cut(source, root, tmp_path / "out", dry_run=True)
    assert not (tmp_path / "out").exists()
    done = cut(source, root, tmp_path / "out")
    assert plan.dry_run
    assert plan.files == done.files
    assert cut(source, root, tmp_path / "out", dry_run=True).files == done.files


def test_missing_and_damaged_roots(source: str, root: Path, tmp_path: Path) -> None:
    def refused(where: Path, says: str) -> str:
        with pytest.raises(BadInput, match=says) as caught:
            cut(source, where, tmp_path / "out")
        text = str(caught.value)
        assert where.name in text
        assert "download=True" in text
        assert PICTURES[source].name in text
        assert text.isprintable()
        assert not (tmp_path / "out").exists()
        return text

    refused(tmp_path / "nowhere", "missing")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "not in the folder")
    whole = tmp_path / "whole"
    shutil.copytree(root, whole)
    if source != "eurosat":  # there the pictures are all there is
        lost = sorted((root / FOLDERS[source]).rglob("*.*"))[0]
        lost.unlink()
        text = refused(root, "damaged")
        assert "1 of 18 pictures missing" in text
        assert lost.name in text
    shutil.rmtree(root)
    shutil.copytree(whole, root)
    table = {
        "gtsrb": "gtsrb/GT-final_test.csv",
        "flowers102": "flowers-102/setid.mat",
        "oxford-pets": "oxford-iiit-pet/annotations/test.txt",
        "eurosat": "eurosat/2750/Forest",
        "food101": "food-101/meta/test.json",
    }[source]
    if source == "eurosat":
        shutil.rmtree(root / table)
        (root / table).mkdir()
        refused(root, "damaged.*Forest")
        return
    for damage in (b"hello, world", b"\xff\xfe\x00"):
        (root / table).write_bytes(damage)
        refused(root, "cannot be read|damaged")
    (root / table).unlink()
    refused(root, "not in the folder" if source == "flowers102" else "damaged.*" + Path(table).name)


def test_unknown_classes_are_named(source: str, root: Path, tmp_path: Path) -> None:
    for wrong, says in ((["zebra\n"], "no such class"), ([9], "0 to 2"), ([0, NAMES[source][0]], "twice")):
        with pytest.raises(UsageProblem, match=says) as caught:
            cut(source, root, tmp_path / "out", classes=[wrong])
        assert str(caught.value).isprintable()
    if source == "food101":
        with pytest.raises(UsageProblem, match="did you mean cheesecake"):
            cut(source, root, tmp_path / "out", classes=[["chesecake"]])
    assert not (tmp_path / "out").exists()


@pytest.fixture
def eggs(tmp_path: Path) -> Path:
    """A small EuroSAT."""
    eurosat(tmp_path / "root")
    return tmp_path / "root"


def test_what_is_there_is_kept_and_other_pictures_are_not_mixed_in(eggs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    report = cut("eurosat", eggs, out)
    before = pictures(out)
    (out / "task1" / ".DS_Store").write_text("left behind")
    assert cut("eurosat", eggs, out) == report
    (out / "task1" / ".DS_Store").unlink()
    assert pictures(out) == before
    for changed in ({"seed": 5, "per_class": 1}, {"classes": [[0], [1]]}):
        with pytest.raises(UsageProblem, match=r"the folder has other pictures.*task") as caught:
            cut("eurosat", eggs, out, **changed)
        assert str(caught.value).isprintable()
        assert pictures(out) == before
    # One pixel more or less is another picture.
    one = next(iter((out / "task2.test" / "Forest").iterdir()))
    one.write_bytes(one.read_bytes()[:-1] + b"!")
    shutil.rmtree(out / "task1")
    with pytest.raises(UsageProblem, match=f"task2.test.*Forest/{one.name}"):
        cut("eurosat", eggs, out)
    with pytest.raises(UsageProblem, match="other pictures"):
        cut("eurosat", eggs, out, dry_run=True)
    assert not (out / "task1").exists()


def test_a_folder_that_is_empty_is_filled_and_a_file_is_refused(eggs: Path, tmp_path: Path) -> None:
    (tmp_path / "out" / "task1").mkdir(parents=True)
    cut("eurosat", eggs, tmp_path / "out")
    assert len(pictures(tmp_path / "out" / "task1")) == 2 * TRAIN
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "task1").write_text("a file")
    with pytest.raises(UsageProblem, match="not a folder"):
        cut("eurosat", eggs, tmp_path / "other")
    (tmp_path / "hidden" / "task1").mkdir(parents=True)
    (tmp_path / "hidden" / "task1" / ".keys").write_text("dear")
    with pytest.raises(UsageProblem, match="other pictures"):
        cut("eurosat", eggs, tmp_path / "hidden")
    assert (tmp_path / "hidden" / "task1" / ".keys").read_text() == "dear"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_nothing_half_written_is_left(
    error: BaseException, eggs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copied = shutil.copyfileobj, 0

    def fails(source: Any, target: Any) -> None:
        nonlocal copied
        copied += 1
        if copied > 2 * TRAIN + 3:  # within the second folder
            raise error
        copy(source, target)

    monkeypatch.setattr(class_folders.shutil, "copyfileobj", fails)
    with pytest.raises((DiskProblem, KeyboardInterrupt)) as caught:
        cut("eurosat", eggs, tmp_path / "out")
    if caught.type is DiskProblem:
        assert "No space left" in str(caught.value)
        assert "task1.test" in str(caught.value)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["task1"]
    assert len(pictures(tmp_path / "out" / "task1")) == 2 * TRAIN
    monkeypatch.undo()
    cut("eurosat", eggs, tmp_path / "out")
    assert len(list((tmp_path / "out").iterdir())) == 5


def test_files_of_one_name_and_those_that_a_system_left(eggs: Path, tmp_path: Path) -> None:
    base = eggs / "eurosat" / "2750" / "Forest"
    for part in ("x", "y"):
        picture(base / part / "FOREST_0.jpg", 90 + ord(part))
    (base / "._Forest_0.jpg").write_bytes(b"resources")
    cut("eurosat", eggs, tmp_path / "out", classes=[[1]])
    found = [*pictures(tmp_path / "out" / "task1"), *pictures(tmp_path / "out" / "task1.test")]
    assert len(found) == TRAIN + TEST + 2
    contents = {*pictures(tmp_path / "out" / "task1").values(), *pictures(tmp_path / "out" / "task1.test").values()}
    assert len(contents) == TRAIN + TEST + 2
    assert not any(Path(name).name.startswith(".") for name in found)


def test_classes_that_share_a_folder_are_refused(eggs: Path, tmp_path: Path) -> None:
    picture(eggs / "eurosat" / "2750" / "sealake" / "1.jpg", 77)
    with pytest.raises(BadInput, match="classes of one name: SeaLake, sealake"):
        cut("eurosat", eggs, tmp_path / "out")


def test_a_class_that_is_missing_moves_no_number(tmp_path: Path) -> None:
    """torchvision counts the folders that are there; the test part has the true numbers."""
    gtsrb(tmp_path / "root")
    shutil.rmtree(tmp_path / "root" / "gtsrb" / "GTSRB" / "Training" / "00000")
    report = cut("gtsrb", tmp_path / "root", tmp_path / "out", classes=[[1, 2]])
    assert report.files[0].classes == ("1", "2")
    found = pictures(tmp_path / "out" / "task1")
    known = pictures(tmp_path / "root" / "gtsrb" / "GTSRB" / "Training")
    assert all(known[f"0000{name}"] == content for name, content in found.items())
    with pytest.raises(UsageProblem, match="no such class"):
        cut("gtsrb", tmp_path / "root", tmp_path / "out2", classes=[[0]])


def test_scipy_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flowers102(tmp_path / "root")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    with pytest.raises(UsageProblem, match=r"Flowers102 is read by scipy.*pip install scipy"):
        cut("flowers102", tmp_path / "root", tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "folder"),
    [
        ("colt's foot", "colts_foot"), ("American Bulldog", "American_Bulldog"), ("a/b\\c", "a_b_c"),
        ("../../etc", "etc"), (".hidden", "hidden"), ("hard-leaved", "hard-leaved"), ("cafe\u0301", "café"),
        ("\x1b[31m", "31m"), ("::", ""), ("n" * 300, "n" * 100),
    ],
)  # fmt: skip
def test_folder_names_are_safe(name: str, folder: str) -> None:
    assert folder_name(name) == folder


def test_classes_may_be_names() -> None:
    assert parse_classes("tiger lily, 5", names=True) == ("tiger lily", 5)
    for text in ("", "a,,b", "a,a", "1,01"):
        with pytest.raises(UsageProblem):
            parse_classes(text, names=True)


def test_the_command_line(
    eggs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)  # a pipe
    out = str(tmp_path / "out")
    args = ["tasks", "eurosat", out, "--root", str(eggs), "--classes", "forest,SeaLake", "--per-class", "2"]
    assert run(app, [*args, "--json"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert [file["classes"] for file in files] == [["Forest", "SeaLake"]] * 3
    assert files[0]["images"] == 4
    assert run(app, [*args, "-v"]) == 0
    printed = capsys.readouterr()
    assert "3 folders in" in printed.err
    assert "Forest, SeaLake" in printed.out
    assert run(app, ["tasks", "eurosat", out, "--root", str(eggs), "--classes", "Forrest"]) == 2
    assert "did you mean Forest?" in capsys.readouterr().err
    assert run(app, ["tasks", "eurosat", out, "--classes", "Forest"]) == 2
    assert "--root" in capsys.readouterr().err
