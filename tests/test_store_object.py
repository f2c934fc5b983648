"""``clmoe.Store``: arrays, tensors, tables, data sets and paths give what files give; errors are one line each."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from PIL import Image

import clmoe
from clmoe_cli.report import notebook

QUICK: dict[str, Any] = {"arch": "mlp:16", "epochs": 2}


def clusters(classes: int = 3, each: int = 80, first: int = 0) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(first)
    y = np.repeat(np.arange(first, first + classes), each)
    return rng.normal(size=(len(y), 12)) + 6 * np.eye(12)[y], y


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> clmoe.Store:
    made = clmoe.Store(tmp_path_factory.mktemp("object") / "store")
    x, y = clusters()
    made.learn(x, y, name="low", **QUICK)
    return made


def test_a_store_learns_answers_and_forgets(tmp_path: Path) -> None:
    store = clmoe.Store(tmp_path / "store", progress=False)
    assert store.tasks == ()
    assert repr(store).endswith("0 tasks, 0 classes)")
    for first in (0, 3):
        x, y = clusters(first=first)
        assert store.learn(x, y, name=f"from{first}", **QUICK).status == "learned"
    assert [task.name for task in store.tasks] == ["from0", "from3"]
    assert repr(store).endswith("2 tasks, 6 classes)")
    assert store.report().generation == 2
    report = store.predict(x, y)
    assert report.accuracy == 1.0
    assert set(report.task.tolist()) == {"from3"}
    assert store.detect(x).verdict == "known"
    assert store.detect(x, y).verdict == "known"
    assert store.detect(x, y - 3).verdict == "new"
    assert store.prune("from0").removed == ("from0",)
    assert [task.name for task in store.tasks] == ["from3"]


def same(store: clmoe.Store, given: Any, y: Any = None) -> None:
    x, _ = clusters()
    found, wanted = store.predict(given, y), store.predict(x)
    assert found.label.tolist() == wanted.label.tolist()
    np.testing.assert_allclose(found.confidence, wanted.confidence, atol=1e-6)


def test_whatever_holds_the_numbers_is_answered_alike(store: clmoe.Store, tmp_path: Path) -> None:
    x, y = clusters()
    np.savez(tmp_path / "asked.npz", x=x, y=y)
    frame = pd.DataFrame(x, columns=[f"c{i}" for i in range(12)])
    same(store, x.tolist())
    same(store, torch.from_numpy(x).requires_grad_())
    same(store, np.asfortranarray(x))
    same(store, frame)
    same(store, frame.assign(kind=y), "kind")
    same(store, tmp_path / "asked.npz")
    same(store, [str(tmp_path / "asked.npz")])
    same(store, torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y)))
    assert store.predict(frame.assign(kind=y), "kind").accuracy == 1.0
    assert store.predict(torch.utils.data.TensorDataset(torch.from_numpy(x), torch.from_numpy(y))).accuracy == 1.0


def test_labels_of_pandas_and_of_tensors_are_labels(tmp_path: Path) -> None:
    x, y = clusters()
    store = clmoe.Store(tmp_path / "store")
    store.learn(x, pd.Series([f"kind {i}" for i in y]), **QUICK)
    assert store.tasks[0].classes == ("kind 0", "kind 1", "kind 2")
    other = clmoe.Store(tmp_path / "other")
    other.learn(x, torch.from_numpy(y), **QUICK)
    assert other.tasks[0].classes == (0, 1, 2)


def test_pictures_are_named_by_their_paths_and_may_have_labels(tmp_path: Path) -> None:
    rng, store, paths, labels = np.random.default_rng(0), clmoe.Store(tmp_path / "store"), [], []
    for i in range(160):
        shade = 40 + 150 * (i % 2)
        pixels = np.clip(rng.normal(shade, 10, (16, 16, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
        paths.append(tmp_path / f"{i}.png")
        labels.append(["dark", "bright"][i % 2])
    store.learn(paths, labels, image_size=16, **QUICK)
    report = store.predict(paths[:6])
    assert report.label.tolist() == labels[:6]
    assert report.file is not None
    assert report.file.tolist() == [str(path) for path in paths[:6]]
    with pytest.raises(clmoe.BadInput, match=r"labels do not match.*found \[3\]; expected \[6\]"):
        store.predict(paths[:6], labels[:3])


X, Y = clusters()


class Pairs(torch.utils.data.Dataset[Any]):
    """A data set of the rows of ``X`` with these labels."""

    def __init__(self, labels: list[Any]) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(X)

    def __getitem__(self, at: int) -> tuple[Any, Any]:
        return X[at], self.labels[at]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "rows of several lengths": ({"X": [[1, 2], [3]], "y": [0, 1]}, "not an array: X"),
    "nothing": ({"X": [], "y": []}, "not a list of paths; found nothing"),
    "a path among numbers": ({"X": ["a.png", 3], "y": [0, 1]}, "found a list that has int among paths"),
    "a loader of batches": (
        {"X": torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.zeros(4, 12))), "y": Y},
        "batches cannot be used: X; found DataLoader; give its .dataset",
    ),
    "objects": ({"X": X.astype(object), "y": Y}, "images of this type cannot be used"),
    "no labels": ({"X": X}, "no labels: the inputs; found X; .*; give y"),
    "fewer labels": ({"X": X, "y": Y[:5]}, r"labels do not match the images: .*found \[5\]"),
    "a label that is NaN": (
        {"X": X, "y": np.where(np.arange(len(Y)) == 2, np.nan, Y)},
        "a label is missing: .*row 2 from 0",
    ),
    "labels that are none": ({"X": X, "y": ["a", None, None, *"bcd" * len(Y)][: len(Y)]}, "row 1 from 0 and 1 more"),
    "NaN beside text": ({"X": X, "y": [float("nan"), *map(str, Y[1:])]}, "a label is missing: .*row 0 from 0"),
    "one label that is masked": (
        {"X": X, "y": ["a", np.ma.masked, *"bc" * len(Y)][: len(Y)]},
        "label is missing: .*row 1 ",
    ),
    "NaN under a mask": (
        {"X": X, "y": np.ma.array(np.where(Y == 1, np.nan, Y), mask=Y == 0)},
        "row 0 from 0 and 159 more",
    ),
    "NaN in a row of labels": (
        {"X": X, "y": np.where(np.arange(len(Y)) == 5, np.nan, 1.0)[:, None] * [1, 1]},
        "row 5 ",
    ),
    "None in a row of labels": ({"X": X, "y": [[None], *[[1]] * (len(Y) - 1)]}, "a label is missing: .*row 0 from 0;"),
    "labels of half the bits": (
        {"X": X, "y": [torch.tensor(0.0, dtype=torch.bfloat16)] * len(Y)},
        "cannot be used|array",
    ),
    "a label beyond 64 bits": (
        {"X": X, "y": [10**30, *Y.tolist()[1:]]},
        "a label is too big: the inputs .*found 10000",
    ),
    "labels of several lengths": ({"X": Pairs([0, [1], *[0] * len(Y)])}, "not an array: y"),
    "a sparse matrix": (
        {"X": scipy.sparse.csr_matrix(X), "y": Y},
        r"a sparse matrix cannot be used: X; .*; X.toarray\(\)",
    ),
    "a sparse tensor": ({"X": torch.from_numpy(X).to_sparse(), "y": Y}, r"sparse matrix cannot .*; X.to_dense\(\)"),
    "a sparse tensor for labels": ({"X": X, "y": torch.from_numpy(Y).to_sparse()}, r"sparse matrix .*; y.to_dense\(\)"),
    "a tensor without values": (
        {"X": torch.zeros(len(Y), 12, device="meta"), "y": Y},
        "not a tensor that can be read: X;",
    ),
    "a tensor of other bits": (
        {"X": torch.zeros(len(Y), 12).to(torch.float8_e4m3fn), "y": Y},
        "not a tensor that can be",
    ),
    "a class": ({"X": dict, "y": Y}, "images of this type cannot be used"),
    "one label for all": ({"X": X, "y": 3}, r"labels do not match the images: .*found \[\]"),
    "a name for all": ({"X": X, "y": "label"}, r"labels do not match the images: .*found \[\]"),
    "records for labels": ({"X": X, "y": np.zeros(len(Y), dtype="i4,f4")}, "labels of this type cannot be used"),
    "odd labels": ({"X": X, "y": [np.void(b"a")] * len(Y)}, "labels of this type cannot be used"),
    "masked rows": ({"X": [np.ma.masked_less(row, -2) for row in X], "y": Y}, "values are masked: X; found"),
    "records": ({"X": np.ma.zeros(len(Y), dtype="i4,f4"), "y": Y}, "images of this type cannot be used"),
    "a value that is masked": ({"X": np.ma.masked_less(X, -2), "y": Y}, "values are masked: X; found"),
    "a label that is masked": (
        {"X": X, "y": np.ma.array(Y, mask=np.arange(len(Y)) % 4 == 3)},
        "a label is missing: .*row 3 from 0 and",
    ),
    "no time": ({"X": X, "y": np.where(np.arange(len(Y)) == 1, np.datetime64("NaT"), np.datetime64(0, "s"))}, "row 1"),
    "no label in a data set": ({"X": Pairs(["a", None, *"bc" * len(Y)])}, "a label is missing: .*row 1 from 0;"),
    "NaN in a data set": (
        {"X": Pairs([*"bc" * 20, float("nan"), *"bc" * len(Y)])},
        "a label is missing: .*row 40 from",
    ),
    "labels in two columns": (
        {"X": pd.DataFrame(X).assign(target=Y, label=Y)},
        "several columns may be the labels: X; found target, label;",
    ),
    "two columns of a name": (
        {"X": pd.DataFrame(X, columns=[*"abcdefghijk", "a"]), "y": Y},
        "several.* name: X; found a",
    ),
    "NaN as a short integer": (
        {"X": X, "y": np.where(np.arange(len(Y)) == 2, -(2**31), Y).astype("i4")},
        "in row 2 from 0, which NaN becomes",
    ),
    "NaN as an integer": ({"X": X, "y": np.where(np.arange(len(Y)) == 2, -(2**63), Y)}, "which NaN becomes"),
    "labels that are no names": ({"X": X, "y": Y + 0.5}, "labels of this type cannot be used"),
    "not a number": ({"X": np.where(X > 7, np.nan, X), "y": Y}, "not every feature is a number"),
    "a misspelt option": ({"X": X, "y": Y, "epoch": 3}, "unknown option of learn; .*did you mean 'epochs'"),
    "no epochs": ({"X": X, "y": Y, "epochs": 0}, "not a value of epochs; found 0"),
    "a share in percent": ({"X": X, "y": Y, "max_drop": 300.0}, "max_drop / 100 is a rate"),
    "no such file": ({"X": "nowhere.npz"}, "nowhere.npz"),
}


def test_labels_come_as_a_list_of_anything_that_holds_one(store: clmoe.Store) -> None:
    for one in (int, np.int32, torch.tensor, np.array):
        assert store.predict(X, [one(each) for each in Y.tolist()]).accuracy == 1.0
    assert store.predict(X, top=np.int64(2), reject=np.float32(0.01)).top_label is not None
    rows = [torch.tensor(row, requires_grad=True) for row in X]
    assert store.predict(rows, Y).accuracy == 1.0


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_learned_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    given, message = WRONG[case]
    with pytest.raises(clmoe.ClmoeError, match=message) as caught:
        clmoe.Store(tmp_path / "store").learn(**given)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "store").exists()


def test_columns_of_a_frame_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    frame = pd.DataFrame(X).assign(when="today")
    store = clmoe.Store(tmp_path / "store")
    with pytest.raises(clmoe.BadInput, match="columns that are no numbers: X; found when"):
        store.learn(frame, Y)
    with pytest.raises(clmoe.BadInput, match=r"no such column: X \[kinds\]"):
        store.learn(frame, "kinds")


def test_items_of_a_data_set_have_one_shape() -> None:
    class Mixed(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 4

        def __getitem__(self, i: int) -> tuple[Any, int]:
            if i >= 4:
                raise IndexError
            return torch.zeros(3, 8 + i % 2, 8), i % 2

    with pytest.raises(clmoe.BadInput, match=r"several shapes: X; found \[3, 8, 8\] and \[3, 9, 8\]"):
        clmoe.Store("nowhere").learn(Mixed())


def test_what_looks_wrong_is_a_warning_of_python(store: clmoe.Store) -> None:
    with pytest.warns(UserWarning, match="range|beyond|times") as caught:
        store.predict(X * 1000)
    assert caught[0].filename == __file__


def test_a_notebook_shows_the_store_as_a_table(store: clmoe.Store, tmp_path: Path) -> None:
    shown = store._repr_html_()
    assert "<td>low</td><td>0, 1, 2</td><td>240</td>" in shown
    nasty = clmoe.Store(tmp_path / "store")
    nasty.learn(X, np.array(["<b>a", "&b", "c"])[Y], name="<i>x", **QUICK)
    assert "<i>x" not in nasty._repr_html_()
    assert "&lt;b&gt;a" in nasty._repr_html_()


def test_a_report_is_short_in_a_notebook(store: clmoe.Store) -> None:
    class Printer:
        said = ""

        def text(self, said: str) -> None:
            self.said += said

    printer = Printer()
    store.predict(X)._repr_pretty_(printer, False)
    assert printer.said.startswith("PredictReport(label=<240>, labels=<240>, task=<240>")
    assert "router='fused'" in printer.said


def test_nothing_is_printed_where_nobody_watches(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    clmoe.Store(tmp_path / "store").learn(X, Y, **QUICK)
    assert capfd.readouterr() == ("", "")
    assert not notebook.in_notebook()


def test_what_is_no_folder_is_no_store(tmp_path: Path) -> None:
    (tmp_path / "t1.csv").write_text("a,b\n1,2\n")
    for path in (tmp_path / "t1.csv", tmp_path / "t1.csv" / "store"):
        with pytest.raises(clmoe.ClmoeError, match=r"not a folder: .*t1\.csv"):
            clmoe.Store(path)
    store = clmoe.Store(tmp_path / "later")
    (tmp_path / "later").write_text("")
    with pytest.raises(clmoe.ClmoeError, match="not a folder"):
        _ = store.tasks
    with pytest.raises(clmoe.UsageProblem, match="not a path; found 3"):
        clmoe.Store(3)  # type: ignore[arg-type]


def pictures(count: int = 120) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    y = np.arange(count) % 2
    shades = (60 + 130 * y)[:, None, None, None]
    pixels = np.random.default_rng(0).normal(shades, 10, (count, 14, 16, 3))
    return np.clip(pixels, 0, 255).astype(np.uint8), y


@pytest.fixture(scope="module")
def colour(tmp_path_factory: pytest.TempPathFactory) -> clmoe.Store:
    made = clmoe.Store(tmp_path_factory.mktemp("colour") / "store")
    made.learn(*pictures(), image_size=12, **QUICK)
    return made


def test_a_picture_of_pillow_is_one_picture(colour: clmoe.Store) -> None:
    x, _ = pictures(2)
    first, second = (Image.fromarray(each) for each in x)
    wanted = colour.predict(x)
    for given, at in ((first, [0]), ([second], [1]), ([first, second], [0, 1]), (first.convert("RGBA"), [0])):
        found = colour.predict(given)
        assert found.label.tolist() == wanted.label[at].tolist()
        np.testing.assert_allclose(found.confidence, wanted.confidence[at], atol=1e-6)
    assert len(colour.predict([first.convert("L"), second]).label) == 2
    assert len(colour.predict(first.convert("L")).label) == 1
    with pytest.raises(clmoe.BadInput, match="several shapes"):
        colour.predict([first, second.resize((5, 6))])
    with pytest.raises(clmoe.BadInput, match="not an 8-bit picture; found I"):
        colour.predict(first.convert("I"))


def test_an_array_that_may_be_one_picture_is_refused(colour: clmoe.Store, tmp_path: Path) -> None:
    x, y = pictures(14)
    np.save(tmp_path / "one.npy", x[0])
    bare = x[0], x[0] / 255, torch.from_numpy(x[0]).permute(2, 0, 1), tmp_path / "one.npy"
    for given in bare:
        with pytest.raises(clmoe.BadInput, match=r"three axes may be one picture or several: .*; x\[None\] if it is"):
            colour.predict(given)
        with pytest.raises(clmoe.BadInput, match="three axes"):
            colour.detect(given)
    assert len(colour.predict(x[0][None]).label) == 1
    assert len(colour.predict(x[..., 0]).label) == 14
    # Labels say how many there are, and a task may have grey pictures of three columns.
    assert len(colour.predict(x[0], y).label) == len(colour.predict(tmp_path / "one.npy", y).label) == 14
    narrow = clmoe.Store(tmp_path / "narrow")
    narrow.learn(pictures()[0][:, 0, :4, :], pictures()[1], **QUICK)
    assert len(narrow.predict(x[:, 0, :4, :]).label) == 14


def test_arrays_that_cannot_be_written_to_are_read_without_a_warning(colour: clmoe.Store) -> None:
    x, y = pictures(6)
    x.flags.writeable = y.flags.writeable = False
    assert colour.predict(x, y).accuracy == 1.0


WRONG_CALLS: dict[str, tuple[str, tuple[Any, ...], dict[str, Any], str]] = {
    "a misspelt option": ("predict", (X,), {"tpo": 3}, "unknown option of predict; found 'tpo'.*did you mean 'top'"),
    "an option of another method": ("detect", (X,), {"reject": 0.1}, "unknown option of detect"),
    "a second task": ("prune", ("a", "b"), {}, r"not a call of prune; found too many.*expected prune\(task=…, expert="),
    "no inputs": ("predict", (), {}, r"not a call of predict; found missing .*'X'; expected predict\(X, y=…"),
    "inputs twice": (
        "learn",
        (X,),
        {"X": X},
        r"not a call of learn; found multiple values.*expected learn\(X, y=….* refine=…",
    ),
    "nothing to prune": ("prune", (), {}, "prune needs one thing to remove"),
    "a task in place of its name": ("prune", (3,), {}, "not the name of a task; found int"),
    "a report of something": ("report", (), {"task": "low"}, "unknown option of report"),
    "no labels at the top": ("predict", (X,), {"top": 0}, "--top is a number of labels"),
    "text for a number": (
        "predict",
        (X,),
        {"top": "3"},
        "not a value of top; found '3'; expected a whole number or None",
    ),
    "text for a rate": (
        "predict",
        (X,),
        {"reject": "0.05"},
        "not a value of reject; found '0.05'; expected a number or",
    ),
    "a seed beyond 64 bits": ("learn", (X, Y), {"seed": 2**63}, r"not a seed \[--seed\]; found 9223372036854775808"),
    "a seed below nothing": ("learn", (X, Y), {"seed": -1}, "not a seed"),
    "a number for a name": ("learn", (X, Y), {"arch": 3}, "not a value of arch; found 3; expected text"),
    "a list for minutes": (
        "learn",
        (X, Y),
        {"time_limit": [1]},
        r"not a value of time_limit; found \[1\]; expected a numb",
    ),
    "yes for a number": (
        "learn",
        (X, Y),
        {"epochs": True},
        "not a value of epochs; found True; expected a whole number$",
    ),
    "a share for text": ("prune", (), {"to_frozen": "x"}, "not a value of to_frozen; found 'x'"),
    "no size": ("detect", (X,), {"image_size": -1}, r"not a size of pictures \[--image-size\]; found -1"),
    "a generation that is gone": ("checkout", (7,), {}, "no such generation is there; found 7"),
    "a generation that is none": ("checkout", (0.5,), {}, "not a value of generation; found 0.5"),
    "a name that is none": ("rename", ("low", 5), {}, "not a value of new; found 5; expected text"),
    "a name of nothing": ("rename", ("lo", "high"), {}, "unknown task; .*did you mean 'low'"),
    "a copy without a place": ("copy", (), {}, r"not a call of copy; .*expected copy\(target, task=…, rename=…"),
    "a copy into itself": ("copy", (), {"target": "itself"}, "a store cannot be copied into itself"),
    "a copy of nothing": ("copy", ("nowhere", "lo"), {}, "unknown task"),
    "an export of nothing": ("export", ("nowhere.onnx",), {}, r"not a call of export; .*'task'"),
    "an export to nowhere": ("export_all", (5,), {}, "not a path; found 5"),
    "text for a level": ("detect", (X,), {"alpha": "0.05"}, "not a value of alpha; found '0.05'; expected a number$"),
}


@pytest.mark.parametrize("case", WRONG_CALLS)
def test_calls_that_mean_nothing_are_refused_in_one_line(case: str, store: clmoe.Store) -> None:
    name, args, options, message = WRONG_CALLS[case]
    if options.get("target") == "itself":
        options = {"target": store}
    with pytest.raises(clmoe.UsageProblem, match=message) as caught:
        getattr(store, name)(*args, **options)
    assert "\n" not in str(caught.value)
    with pytest.raises(clmoe.UsageProblem, match=r"unknown option of Store; .*did you mean 'progress'"):
        clmoe.Store("nowhere", progres=True)  # type: ignore[call-arg]


def test_the_likeliest_labels_and_reasons_are_told(store: clmoe.Store) -> None:
    report = store.predict(X[:5], top=2, explain=True)
    assert report.top_label is not None
    assert report.explained is not None
    assert report.top_label.shape == (5, 2)
    assert report.top_label[:, 0].tolist() == report.label.tolist()
    assert len(report.explained.reason) == 5


def test_what_prune_would_take_out_is_told_without_a_change(store: clmoe.Store) -> None:
    report = store.prune(["low"], dry_run=True)
    assert (report.removed, report.applied, report.dry_run) == (("low",), False, True)
    assert [task.name for task in store.tasks] == ["low"]
    assert store.prune(expert="e1", dry_run=True).removed_experts == ("e1",)


def test_a_store_goes_back_is_renamed_copied_and_exported(store: clmoe.Store, tmp_path: Path) -> None:
    assert [each.action for each in store.log().commits] == ["learn"]
    assert store.verify().generation == 1
    assert [each.task for each in store.copy(tmp_path / "other", rename={"low": "three"}).tasks] == ["three"]
    other = clmoe.Store(tmp_path / "other")
    assert other.rename("three", "few").new == "few"
    assert [task.name for task in other.tasks] == ["few"]
    assert other.undo(dry_run=True).applied is False
    assert other.undo().returned == ("three",)
    assert other.checkout(2).returned == ("few",)
    assert store.copy(other, ["low"], dry_run=True).applied is False
    assert other.predict(X).label.tolist() == store.predict(X).label.tolist()
    with pytest.warns(UserWarning, match="predict"):
        written = other.export(tmp_path / "few.safetensors", "few")
    assert (written.task, Path(written.output).is_file()) == ("few", True)
    with pytest.raises(clmoe.UsageProblem, match=r"unknown output format.*expected .onnx, .pt2"):
        other.export_all(tmp_path / "all.txt")
    (next((tmp_path / "other" / "objects").rglob("*.h5"))).write_bytes(b"")
    with pytest.raises(clmoe.StoreDamaged, match="damaged"):
        other.verify()


def test_labels_of_a_frame_are_found_as_those_of_a_csv_file(tmp_path: Path) -> None:
    frame = pd.DataFrame(X, columns=[f"c{i}" for i in range(12)]).assign(label=np.array(["a", "b", "c"])[Y])
    frame.to_csv(tmp_path / "t.csv", index=False)
    store = clmoe.Store(tmp_path / "store")
    store.learn(frame, **QUICK)
    assert store.tasks[0].classes == ("a", "b", "c")
    assert store.predict(frame).accuracy == store.predict(tmp_path / "t.csv").accuracy == 1.0
    assert store.predict(frame.drop(columns=["label"])).accuracy is None
    assert store.detect(frame).verdict == "known"
    renamed = frame.rename(columns={"label": "kind"})
    assert store.predict(renamed, label_column="kind").accuracy == 1.0
    with pytest.raises(clmoe.UsageProblem, match="--label-column is for tables: the inputs"):
        store.predict(X, label_column="kind")


def test_a_column_that_was_learned_as_a_feature_is_one(tmp_path: Path) -> None:
    store, frame = clmoe.Store(tmp_path / "store"), pd.DataFrame(X[:, :2], columns=["x", "y"])
    store.learn(frame, Y, **QUICK)
    assert store.predict(frame).accuracy is None
    more = pd.DataFrame(X[:, :1], columns=["x"]).assign(label=Y)
    assert store.learn(more, name="more", **QUICK).status == "learned"
    with pytest.raises(clmoe.BadInput, match="several columns may be the labels: X; found y, label, target"):
        clmoe.Store(tmp_path / "other").learn(frame.assign(label=0, target=1), **QUICK)


def test_grey_pictures_asked_of_a_store_of_colour_ones_are_told_what_to_become(tmp_path: Path) -> None:
    store, y = clmoe.Store(tmp_path / "store", progress=False), np.arange(80) % 2
    colour = np.random.default_rng(0).integers(0, 256, (80, 3, 16, 16)).astype(np.uint8)
    colour[y == 1, :, 8:] = 0
    store.learn(colour, y, **QUICK)
    with pytest.raises(
        clmoe.BadInput, match="found 1×16×16; expected 3×16×16; the pictures are grey: give them as RGB, or"
    ):
        store.predict(colour[:, :1])
    with pytest.raises(clmoe.BadInput, match=r"found 1×8×8; .*; reshape the images, or"):
        store.predict(colour[:, :1, ::2, ::2])
