"""Tables as data: what they say comes out, and what is not a table of numbers is one line that names the place."""

from __future__ import annotations

import csv
import io
import sys
import tracemalloc
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import clmoe
from clmoe_cli.data import Batch, Raw, columns, look, read_batch, rows, spool
from clmoe_cli.runtime import limits
from store_schema import BadInput, InputRecord, UsageProblem

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
NAMES = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=6).filter(
    lambda name: name == name.strip() and not name.replace(".", "").isnumeric()
)


def table(path: Path, text: str | bytes) -> str:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return str(path)


def read(path: Path, text: str | bytes, column: str | None = None, use: str = "optional") -> Batch:
    return read_batch(table(path / "t.csv", text), labels=use, label_column=column)  # type: ignore[arg-type]


TIMES = 1.7e9 + 3.0 * np.arange(200)


@pytest.mark.parametrize(
    ("column", "held"),
    [
        (TIMES, False),
        (np.where(np.arange(200) % 10 == 0, 0.0, TIMES), False),  # a missing value here and there
        (TIMES - 1.7e9, True),
        (1.7e9 + 86400.0 * np.arange(200), True),
        (np.full(200, 1.7e9), True),
        (0.1 + 1e-16 * np.arange(200), True),  # constant but for float64's rounding
        (np.random.default_rng(0).random(200), True),
        (1e20 * np.random.default_rng(0).random(200), True),
        (np.arange(200) % 2 * 1.0, True),
        (1 + 1e-10 * np.random.default_rng(0).normal(size=200), True),  # computed: a probability near 1
        (-0.42421296 + 1e-8 * np.random.default_rng(0).normal(size=200), True),  # computed: the corner of a picture
        (np.where(np.arange(200) % 10 == 0, 1.0, 1e-60 * np.arange(200)), True),  # most are as good as 0
        (np.round(48.137 + 1e-7 * np.arange(200), 7), False),  # a position, in centimetres
        (1e9 + np.arange(200), False),
        (1.7e9 + 1e-3 * (np.arange(200) % 3), False),  # float32 keeps nothing of it
    ],
)
def test_a_column_whose_differences_float32_loses_is_not_learned(
    column: np.ndarray, held: bool, tmp_path: Path
) -> None:
    x = np.stack([np.arange(200.0), column], axis=1)
    y = np.arange(200) % 2
    text = "a,ts,label\n" + "".join(f"{a!r},{t!r},{k}\n" for (a, t), k in zip(x.tolist(), y.tolist(), strict=True))
    np.savez(tmp_path / "t.npz", x=x, y=y)
    for source, name in ((table(tmp_path / "t.csv", text), "column 'ts'"), (str(tmp_path / "t.npz"), "column 1")):
        assert len(read_batch(source, labels="optional").images) == 200
        if held:
            assert len(read_batch(source, labels="required").images) == 200
            continue
        with pytest.raises(BadInput, match=f"{name} loses its differences: .*subtract its least value"):
            read_batch(source, labels="required")


def test_rows_of_a_rare_class_are_answered_as_often_as_they_are_met(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    parts = []
    for size in (600, 2000):
        y = np.arange(size) < size // 20
        parts.append((rng.normal(size=(size, 6)) + y[:, None] * np.array([1.2, 1.2, 0, 0, 0, 0]), y.astype(int)))
    store = clmoe.Store(tmp_path / "store")
    with pytest.warns(UserWarning, match="out of balance"):
        store.learn(*parts[0], name="rare", arch="mlp:4", epochs=1)
    asked, labels = parts[1]
    # The larger class alone is right for 95 %.
    assert (store.predict(asked, router="gate").label == labels).mean() > 0.95
    store.copy(tmp_path / "copy")
    answers = store.predict(asked).label
    for place, task in ((store.path, "rare"), (tmp_path / "copy", "rare"), (tmp_path / "copy", None)):
        assert (clmoe.Store(place).predict(asked, task=task).label == answers).all()


def test_a_column_below_what_float32_holds_is_not_learned(tmp_path: Path) -> None:
    np.savez(tmp_path / "t.npz", x=np.stack([np.arange(50.0), 1e-46 * np.arange(50)], axis=1), y=np.arange(50) % 2)
    with pytest.raises(BadInput, match=r"column 1 loses.*numbers up to 4\.9e-45.*in a smaller unit"):
        read_batch(str(tmp_path / "t.npz"), labels="required")


@pytest.mark.parametrize(
    ("column", "held"), [(np.sort(1.3e9 + 3e8 * np.random.default_rng(0).random(603)), True), (TIMES, False)]
)
@pytest.mark.parametrize("cells", [1 << 18, 600, 30, 3])
def test_what_rounding_takes_does_not_depend_on_where_blocks_end(
    column: np.ndarray, held: bool, cells: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(columns, "_CELLS", cells)
    monkeypatch.setattr(limits, "COMPARED_ROWS", 20)
    text = "ts,label\n" + "".join(f"{t!r},{k % 2}\n" for k, t in enumerate(column.tolist()))
    if held:
        assert len(read(tmp_path, text, use="required").images) == len(column)
    else:
        with pytest.raises(BadInput, match=r"differ by about 2\.9e"):
            read(tmp_path, text, use="required")


def test_a_column_of_float32s_smallest_numbers_is_not_learned(tmp_path: Path) -> None:
    np.savez(
        tmp_path / "t.npz", x=np.stack([np.arange(50.0), 1e-40 * (1 + np.arange(50))], axis=1), y=np.arange(50) % 2
    )
    with pytest.raises(BadInput, match=r"column 1 loses.*in a smaller unit"):
        read_batch(str(tmp_path / "t.npz"), labels="required")


@pytest.mark.parametrize("flat", [False, True])
def test_pictures_that_are_turned_in_float64_are_learned(flat: bool, tmp_path: Path) -> None:
    pixels = np.zeros((40, 12, 12))
    pixels[:, 4:8, 4:8] = np.random.default_rng(0).random((40, 4, 4))
    # What a spline leaves around a picture, and the usual unit.
    ringing = 1e-8 * np.random.default_rng(1).normal(size=pixels.shape)
    x = (pixels + ringing - 0.1307) / 0.3081
    np.savez(tmp_path / "t.npz", x=x.reshape(40, -1) if flat else x, y=np.arange(40) % 2)
    assert len(read_batch(str(tmp_path / "t.npz"), labels="required").images) == 40


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tables")


@given(
    values=st.lists(st.lists(FLOATS, min_size=2, max_size=2), min_size=1, max_size=9),
    names=st.lists(NAMES, min_size=9, max_size=9),
    separator=st.sampled_from(rows.SEPARATORS),
    position=st.integers(0, 2),
    header=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n", "\r"]),
    mark=st.booleans(),
    cells=st.sampled_from([1, 6, 1 << 18]),
)
def test_what_is_written_is_read(
    place: Path,
    values: list[list[float]],
    names: list[str],
    separator: str,
    position: int,
    header: bool,
    ends: str,
    mark: bool,
    cells: int,
) -> None:
    held = io.StringIO()
    writer = csv.writer(held, delimiter=separator, lineterminator=ends)
    lines = [[*map(repr, row)] for row in values]
    for line, name in zip(lines, names, strict=False):
        line.insert(position, name)
    if header:
        top = ["size", "weight"]
        top.insert(position, "kind")
        lines.insert(0, top)
    writer.writerows(lines)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "_CELLS", cells)
        patch.setattr(spool, "THRESHOLD", 0 if cells == 1 else 1 << 20)
        column = "kind" if header else str(position - 3 if cells == 6 else position)
        batch = read(place, b"\xef\xbb\xbf" * mark + held.getvalue().encode(), column)
    assert batch.images.dtype == np.float32
    assert batch.images.tolist() == np.array(values, np.float32).tolist()
    assert batch.labels is not None
    assert [str(label) for label in batch.labels] == [unicodedata.normalize("NFC", n) for n in names[: len(values)]]
    assert f"{len(values)} row{'s' * (len(values) != 1)}, 2 columns of numbers" in batch.notes[0]


BAD: dict[str, tuple[str | bytes, str]] = {
    "nothing": ("", "empty file"),
    "blank lines": ("\n\n \n", "empty file"),
    "a header alone": ("a,b,y\n", "no rows"),
    "labels alone": ("y\n1\n2\n", "no columns of numbers"),
    "a short row": ("a,b\n1,2\n3\n", r"line 3.*1 cell;.*expected 2"),
    "a long row": ("1,2\n3,4,5\n", r"line 2.*3 cells"),
    "an empty cell": ("a,b\n1,2\n3,\n", r"column 'b' has an empty cell.*line 3"),
    "an empty line of one column": ("1\n\n2\n", r"a cell is empty.*line 2"),
    "NaN": ("a,b\n1,NaN\n", r"column 'b'.*line 2.*'NaN'.*drop the row"),
    "infinity": ("1,2\n-inf,3\n", r"column 0.*line 2.*'-inf'"),
    "beyond float32": ("1,2\n1e39,3\n", r"column 0.*line 2.*'1e39'"),
    "beyond float64": ("1,2\n1e999,3\n", r"column 0.*line 2.*'1e999'"),
    "a word": ("a,b\n1,2\n3,red\n", r"column 'b'.*line 3.*'red'.*--label-column"),
    "an underscore": ("a,b\n1,1_000\n", r"'1_000'"),
    "digits of another script": ("a,b\n1,\u0661\n", r"column 'b'.*\\u0661"),
    "a decimal comma": ("a;b\n1,5;2\n", r"column 'a'.*'1,5'.*decimal point"),
    "two names alike": ("a,b,a\n1,2,3\n", r"several columns of one name.*found a"),
    "a column without a name": (",a,b\n0,1,2\n", r"has no name.*index=False"),
    "a comma at the end": ("a,b,\n1,2,\n", "has no name"),
    "an open quote": ('a,b\n1,"2\n3,4\n', "not a table"),
    "text behind a quote": ('a,b\n1,"2"3\n', "not a table"),
    "a huge cell": ("a,b\n1," + "2" * 140_000 + "\n", "field limit"),
    "a zero byte": (b"a,b\n1,\0\n", r"zero byte|line 2"),
    "Latin-1": (b"a,b\n1,caf\xe9\n", r"not UTF-8.*line 2.*0xe9"),
    "UTF-16": ("a,b\n1,2\n".encode("utf-16"), "UTF-16"),
    "labels that are quantities": ("a,y\n1,0.5\n2,1.5\n", r"column 'y' are numbers.*line 2.*0.5"),
    "an empty label": ("a,y\n1,x\n2,\n", r"line 3.*empty|empty.*line 3"),
    "a long label": ("a,y\n1,x\n2," + "q" * 201 + "\n", r"too long.*line 3.*201"),
    "a header that looks like labels": ("3,1,kind\n1,2,0\n3,4,1\n", r"looks like a header"),
    "binary": (bytes(range(1, 256)), "not UTF-8"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_is_no_table_is_one_line(case: str, tmp_path: Path) -> None:
    text, says = BAD[case]
    column = "2" if case == "a header that looks like labels" else None
    with pytest.raises(BadInput, match=says) as caught:
        read(tmp_path, text, column)
    assert "t.csv" in str(caught.value)
    assert str(caught.value).isprintable()


def test_which_column_has_the_labels(tmp_path: Path) -> None:
    text = "size,colour,y\n1,4,0\n2,5,1\n"
    assert read(tmp_path, text).classes() == (0, 1)
    assert read(tmp_path, text, "colour").classes() == (4, 5)
    assert read(tmp_path, text, "colour").images.tolist() == [[1, 0], [2, 1]]
    assert read(tmp_path, text, "0").classes() == read(tmp_path, text, "-3").classes() == (1, 2)
    ignored = read(tmp_path, text, "y", "ignored")
    assert (ignored.labels, ignored.input_shape) == (None, (2,))
    for column in ("3", "-4", "weight", ""):
        with pytest.raises(BadInput, match=r"no such column of labels.*size, colour, y"):
            read(tmp_path, text, column)
    with pytest.raises(BadInput, match=r"no column of labels.*found a, b.*--label-column"):
        read(tmp_path, "a,b\n1,2\n", use="required")
    with pytest.raises(BadInput, match=r"several columns may be the labels.*found class, target; .*--label-column"):
        read(tmp_path, "a,class,target\n1,2,3\n", use="required")
    with pytest.raises(BadInput, match=r"no column of labels.*2 columns without names"):
        read(tmp_path, "1,2\n3,4\n", use="required")


def test_a_header_is_found_and_no_row_is_taken_for_one(tmp_path: Path) -> None:
    assert len(read(tmp_path, "1,2,3\n4,5,6\n").images) == 2
    assert len(read(tmp_path, "0,1,2\n4,5,6\n").images) == 1  # as pandas numbers columns
    assert len(read(tmp_path, "1,2,x\n4,5,y\n", "2").images) == 2
    assert len(read(tmp_path, "a,2,x\n4,5,y\n", "2").images) == 1
    assert len(read(tmp_path, "0,1,2,kind\n4,5,6,1\n", "kind").images) == 1
    assert len(read(tmp_path, '"a, b",c\n"1",2\n').images) == 1


def test_labels_are_integers_only_where_all_are(tmp_path: Path) -> None:
    for labels, wanted in (
        (["1", "-2"], (-2, 1)),
        (["1", "x"], ("1", "x")),
        (["007", "8"], ("007", "8")),
        (["9" * 20, "8"], ("8", "9" * 20)),
        (["cafe\u0301", "caf\u00e9"], ("caf\u00e9",)),
    ):
        text = "a,y\n" + "".join(f"1,{label}\n" for label in labels)
        assert read(tmp_path, text).classes() == wanted


def test_tables_come_by_suffix_by_word_and_by_pipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "1,2,x\n3,4,y\n"
    for name, column in (("a.CSV", "2"), ("a.tsv", "2"), ("a.txt", "2"), ("iris.data", "2"), ("table", "2")):
        assert read_batch(table(tmp_path / name, text), labels="required", label_column=column).classes() == ("x", "y")
    with pytest.raises(BadInput, match=r"not an npz file.*\.csv"):
        read_batch(table(tmp_path / "table", text), labels="optional")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    assert read_batch("-", labels="required", label_column="-1").images.tolist() == [[1, 2], [3, 4]]
    np.savez(tmp_path / "really.csv", x=np.zeros((2, 3), np.uint8))
    assert read_batch(str(tmp_path / "really.csv.npz"), labels="optional").input_shape == (3,)
    with pytest.raises(UsageProblem, match="--label-column is for tables"):
        read_batch(str(tmp_path), labels="optional", label_column="y")


def test_a_table_goes_through_no_picture_transform(tmp_path: Path) -> None:
    path = table(tmp_path / "t.csv", "1,2\n3,4\n")
    with look(path, labels="optional") as unread:
        assert unread.raw == Raw(False, (2,))
    with pytest.raises(BadInput, match=r"vectors cannot be resized.*--image-size"):
        read_batch(path, labels="optional", input=InputRecord(image_size=8))


def test_lines_without_end_take_no_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "LONGEST", 1 << 18)
    path = table(tmp_path / "t.csv", b"1" * (1 << 23))
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"a line is too long.*line 1"):
            read_batch(path, labels="ignored")
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()
    monkeypatch.setattr(rows, "MOST_COLUMNS", 3)
    with pytest.raises(BadInput, match="too many columns"):
        read(tmp_path, "1,2,3,4\n")


@pytest.mark.campaign
def test_memory_stays_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "THRESHOLD", 1 << 18)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    path = table(tmp_path / "t.csv", "0.25,0.5,0.125,1\n" * 200_000)
    monkeypatch.setattr(columns, "_CELLS", 1 << 14)
    tracemalloc.start()
    try:
        batch = read_batch(path, labels="required", label_column="-1")
        assert tracemalloc.get_traced_memory()[1] < 6 << 20  # the cells as text would be ten times as much
    finally:
        tracemalloc.stop()
    assert batch.images.shape == (200_000, 3)
    assert float(batch.images.sum(dtype=np.float64)) == 200_000 * 0.875


def test_a_column_of_labels_that_is_misspelt_is_suggested(tmp_path: Path) -> None:
    for column, near in (("Kind", "kind"), ("kin", "kind"), ("HEIGHT", "Height")):
        with pytest.raises(BadInput, match=f"no such column of labels.*expected {column}; did you mean '{near}'"):
            read(tmp_path, "Height,kind\n1,a\n2,b\n", column)
    with pytest.raises(BadInput, match=r"expected colour; --label-column NAME"):
        read(tmp_path, "Height,kind\n1,a\n2,b\n", "colour")


@pytest.mark.parametrize("suffix", [".xlsx", ".ODS", ".parquet"])
def test_tables_of_other_formats_are_refused_by_name(suffix: str, tmp_path: Path) -> None:
    (tmp_path / f"t{suffix}").write_bytes(b"PK\x03\x04")
    with pytest.raises(
        BadInput, match=r"tables of this format are not read: .*; expected CSV; save the table as \.csv"
    ):
        read_batch(tmp_path / f"t{suffix}", labels="optional")
