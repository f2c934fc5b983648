from __future__ import annotations

import contextlib
import errno
import io
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from clmoe_cli.data import Batch, npz, read_batch, sources, spool
from clmoe_cli.data.npz import write_npz
from store_schema.errors import BadInput, DiskProblem, UsageProblem

X = np.arange(4 * 6, dtype=np.uint8).reshape(4, 6)
Y = np.array([3, 1, 3, 2])


def to_npz(**arrays: Any) -> bytes:
    held = io.BytesIO()
    np.savez(held, allow_pickle=True, **arrays)
    return held.getvalue()


def to_zip(*members: tuple[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w", method) as archive:
        for name, data in members:
            archive.writestr(name, data)
    return held.getvalue()


def to_npy(array: Any, *, pickled: bool = False) -> bytes:
    held = io.BytesIO()
    np.lib.format.write_array(held, np.asarray(array), allow_pickle=pickled)
    return held.getvalue()


def raw_npy(header: str, data: bytes = b"", version: tuple[int, int] = (1, 0)) -> bytes:
    length = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + length + header.encode() + data


def declared(shape: str, descr: str = "'|u1'", data: bytes = b"") -> bytes:
    return raw_npy(f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n", data)


def patched(data: bytes, signature: bytes, offset: int, value: bytes) -> bytes:
    """The zip with bytes changed at an offset after every such signature."""
    out, at = bytearray(data), data.find(signature)
    while at >= 0:
        out[at + offset : at + offset + len(value)] = value
        at = data.find(signature, at + 4)
    return bytes(out)


def encrypted() -> bytes:
    return patched(patched(to_npz(x=X), b"PK\1\2", 8, b"\1\0"), b"PK\3\4", 6, b"\1\0")


def flipped() -> bytes:
    data = to_npz(x=X)
    at = data.index(X.tobytes())
    return data[:at] + b"\xff" + data[at + 1 :]


def twice() -> bytes:
    with pytest.warns(UserWarning, match="Duplicate"):
        return to_zip(("x.npy", to_npy(X)), ("x.npy", to_npy(X)))


def bomb(claim: int) -> bytes:
    """A small deflated member whose directory entry claims ``claim`` bytes, and whose header agrees."""
    shape = f"({claim - 128}, 1)"
    head = raw_npy(f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}}}".ljust(117) + "\n")
    data = to_zip(("x.npy", head + bytes(1 << 16)), method=zipfile.ZIP_DEFLATED)
    return patched(data, b"PK\1\2", 24, struct.pack("<I", claim))


def nan_at(index: int, value: float = np.nan, dtype: str = "f4") -> Any:
    images = np.zeros((5, 2, 2), dtype)
    images[index, 1, 0] = value
    return images


def text(label: str) -> Any:
    return np.array(["a", "b", label, "c"])


BEYOND = np.frombuffer(struct.pack("<4I", 97, 98, 0x110000, 99), "<U1")
BAD: dict[str, tuple[Callable[[], bytes], str]] = {
    "empty file": (lambda: b"", "empty"),
    "text": (lambda: b"x,y\n1,2\n", "not an npz"),
    "npy cut short": (lambda: to_npy(X)[:-1], "does not match"),
    "npy too long": (lambda: to_npy(X) + b"x", "does not match"),
    "npy of objects": (lambda: to_npy(X.astype(object), pickled=True), "type"),
    "npy header is code": (lambda: raw_npy("__import__('os').abort()\n"), "unreadable"),
    "npy of 8 PiB": (lambda: declared(f"({2**53}, 1)"), "does not match"),
    "npy of NaN": (lambda: to_npy(nan_at(2)), "image 2"),
    "npy of one row": (lambda: to_npy(X[0]), "not a shape"),
    "pickle": (lambda: pickle.dumps(X), "not an npz"),
    "cut short": (lambda: to_npz(x=X, y=Y)[:-30], "damaged"),
    "cut in half": (lambda: to_npz(x=X, y=Y)[:200], "damaged"),
    "only the magic": (lambda: b"PK\3\4", "damaged"),
    "front cut off": (lambda: b"PK" + to_npz(x=X)[60:], "damaged"),
    "checksum": (flipped, "damaged"),
    "checksum of deflate": (
        lambda: patched(to_zip(("x.npy", to_npy(X)), method=8), b"PK\1\2", 16, b"abcd"),
        "damaged",
    ),
    "no members": (lambda: to_zip(), "nothing"),
    "no arrays": (lambda: to_zip(("word/document.xml", b"<a/>")), "no images"),
    "other names": (lambda: to_npz(pictures=X, y=Y), "pictures, y"),
    "a name with a newline": (lambda: to_zip(("a\nb.npy", to_npy(X))), "no images"),
    "path outside": (lambda: to_zip(("../x.npy", to_npy(X)), ("/x.npy", to_npy(X))), "no images"),
    "twice": (twice, "more than once"),
    "encrypted": (encrypted, "encrypted"),
    "bzip2": (lambda: to_zip(("x.npy", to_npy(X)), method=zipfile.ZIP_BZIP2), "method 12"),
    "lzma": (lambda: to_zip(("x.npy", to_npy(X)), method=zipfile.ZIP_LZMA), "method 14"),
    "not an array": (lambda: to_zip(("x.npy", b"hello")), "header is unreadable"),
    "empty member": (lambda: to_zip(("x.npy", b"")), "header is unreadable"),
    "header is code": (lambda: to_zip(("x.npy", raw_npy("__import__('os').abort()\n"))), "unreadable"),
    "header too deep": (lambda: to_zip(("x.npy", raw_npy("(" * 9000 + "\n"))), "unreadable"),
    "header of 4 GB": (
        lambda: to_zip(("x.npy", b"\x93NUMPY\x02\x00\xff\xff\xff\xff" + b" " * 99)),
        "unreadable",
    ),
    "npy version 9": (lambda: to_zip(("x.npy", raw_npy("{}", version=(9, 0)))), "unreadable"),
    "negative shape": (lambda: to_zip(("x.npy", declared("(-1, 6)"))), "unreadable"),
    "8 PiB": (lambda: to_zip(("x.npy", declared("(2**53, 1)".replace("2**53", str(2**53))))), "does not match"),
    "beyond 64 bits": (lambda: to_zip(("x.npy", declared(f"({2**63}, {2**63})"))), "does not match"),
    "member too short": (lambda: to_zip(("x.npy", declared("(4, 6)", data=bytes(23)))), "23 bytes"),
    "member too long": (lambda: to_zip(("x.npy", declared("(4, 6)", data=bytes(25)))), "25 bytes"),
    "ratio bomb": (lambda: bomb(1 << 31), "impossible compression"),
    "lying directory": (lambda: bomb(1 << 17), "damaged"),
    "stored size lies": (lambda: patched(to_npz(x=X), b"PK\1\2", 24, struct.pack("<I", 1 << 30)), "match"),
    "int64 pixels": (lambda: to_npz(x=X.astype(int).reshape(4, 2, 3)), "astype('uint8')"),
    "uint16 pixels": (lambda: to_npz(x=X.astype("u2").reshape(4, 2, 3)), "astype('uint8')"),
    "bool pixels": (lambda: to_npz(x=X.reshape(4, 2, 3) > 3), "* 255"),
    "an odd integer": (lambda: to_npz(x=nan_at(3, 2**24 + 1, "i8")[:, :, 0]), "16777217 in image 3"),
    "the largest integer": (lambda: to_npz(x=nan_at(1, 2**64 - 1, "u8")[:, :, 0]), f"{2**64 - 1} in image 1"),
    "a large integer": (lambda: to_npz(x=nan_at(2, -(2**31) + 1, "<i4")[:, :, 0]), "-2147483647 in image 2"),
    "date pixels": (lambda: to_npz(x=X.astype("M8[s]")), "datetime64"),
    "complex pixels": (lambda: to_npz(x=X.astype(complex)), "complex128"),
    "long double": (lambda: to_npz(x=X.astype(np.longdouble)), "float16"),
    "object pixels": (lambda: to_npz(x=X.astype(object)), "stack"),
    "string pixels": (lambda: to_npz(x=X.astype(str)), "type"),
    "records": (lambda: to_npz(x=np.zeros(4, [("a", "u1"), ("b", "f4")])), "type"),
    "nested type": (lambda: to_zip(("x.npy", declared("(4,)", "('|u1', (6,))", bytes(24)))), "type"),
    "scalar": (lambda: to_npz(x=np.uint8(1)), "not a shape"),
    "1-D": (lambda: to_npz(x=X[0]), "not a shape"),
    "5-D": (lambda: to_npz(x=X.reshape(4, 1, 1, 2, 3)), "not a shape"),
    "no channel axis": (lambda: to_npz(x=np.zeros((4, 8, 8, 2), np.uint8)), "channels"),
    "no images": (lambda: to_npz(x=X[:0], y=Y[:0]), "no images"),
    "no pixels": (lambda: to_npz(x=X[:, :0]), "no images"),
    "no rows, vast": (lambda: to_zip(("x.npy", declared(f"(0, {2**62})"))), "no images"),
    "NaN": (lambda: to_npz(x=nan_at(2)), "image 2"),
    "Inf": (lambda: to_npz(x=nan_at(4, -np.inf)), "image 4"),
    "NaN in float16": (lambda: to_npz(x=nan_at(1, dtype="f2")), "image 1"),
    "overflow": (lambda: to_npz(x=nan_at(3, 1e39, "f8")), "beyond float32 in image 3"),
    "float labels": (lambda: to_npz(x=X, y=Y / 1), "y.astype(int)"),
    "bool labels": (lambda: to_npz(x=X, y=Y > 1), "bool"),
    "object labels": (lambda: to_npz(x=X, y=Y.astype(object)), "object"),
    "date labels": (lambda: to_npz(x=X, y=Y.astype("M8[s]")), "datetime64"),
    "complex labels": (lambda: to_npz(x=X, y=Y.astype(complex)), "complex"),
    "record labels": (lambda: to_npz(x=X, y=np.zeros(4, [("a", "u1")])), "type"),
    "vast labels": (lambda: to_npz(x=X, y=Y.astype("u8") + np.uint64(2**63)), "too big"),
    "column of labels": (lambda: to_npz(x=X, y=Y[:, None]), "y.ravel()"),
    "one-hot labels": (lambda: to_npz(x=X, y=np.eye(4, dtype=int)), "argmax"),
    "one label": (lambda: to_npz(x=X, y=np.int64(3)), "do not match"),
    "too few labels": (lambda: to_npz(x=X, y=Y[:3]), "[4]"),
    "long label": (lambda: to_npz(x=X, y=text("a" * 201)), "too long"),
    "empty label": (lambda: to_npz(x=X, y=text("")), "empty"),
    "blank label": (lambda: to_npz(x=X, y=text(" ")), "empty"),
    "no characters": (lambda: to_zip(("x.npy", to_npy(X)), ("y.npy", declared("(4,)", "'<U0'"))), "empty"),
    "newline in a label": (lambda: to_npz(x=X, y=text("a\nb")), "control"),
    "escape in a label": (lambda: to_npz(x=X, y=text("\x1b[31m")), "control"),
    "line separator": (lambda: to_npz(x=X, y=text("a\u2028b")), "control"),
    "half a surrogate": (lambda: to_npz(x=X, y=text("\ud800")), "control"),
    "not UTF-8": (lambda: to_npz(x=X, y=np.array([b"a", b"b", b"\xff", b"c"])), "UTF-8"),
    "not Unicode": (lambda: to_npz(x=X, y=BEYOND), "not text"),
    "labels damaged": (lambda: to_zip(("x.npy", to_npy(X)), ("y.npy", b"")), "unreadable"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_files_are_refused_in_one_line(case: str, tmp_path: Path) -> None:
    make, says = BAD[case]
    path = tmp_path / "batch.npz"
    path.write_bytes(make())
    with pytest.raises(BadInput) as caught:
        read_batch(str(path), labels="optional")
    assert "batch.npz" in str(caught.value)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()


def test_no_pickle_is_run(tmp_path: Path) -> None:
    class Bad:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.mkdir, (str(tmp_path / "ran"),)

    path = tmp_path / "b.npz"
    path.write_bytes(to_npz(x=np.array([[Bad(), Bad()]], dtype=object)))
    with pytest.raises(BadInput):
        read_batch(str(path), labels="ignored")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("claim", [1 << 31, 1 << 17])
def test_memory_stays_bounded(claim: int, tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    path.write_bytes(bomb(claim))
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match=r"bomb\.npz"):
            read_batch(str(path), labels="ignored")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_a_deflated_header_bomb_is_not_expanded(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    head = b"\x93NUMPY\x02\x00" + struct.pack("<I", 1 << 26)
    path.write_bytes(to_zip(("x.npy", head + b" " * (1 << 26)), method=zipfile.ZIP_DEFLATED))
    tracemalloc.start()
    try:
        with pytest.raises(BadInput, match="unreadable"):
            read_batch(str(path), labels="ignored")
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
    finally:
        tracemalloc.stop()


def test_the_limit_counts_all_arrays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(to_npz(x=X, y=Y))
    monkeypatch.setattr(npz, "MAX_BYTES", X.nbytes + Y.nbytes)
    assert len(read_batch(str(path), labels="required").images) == 4
    monkeypatch.setattr(npz, "MAX_BYTES", X.nbytes + Y.nbytes - 1)
    with pytest.raises(BadInput, match="too big"):
        read_batch(str(path), labels="required")


def test_the_rest_of_the_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    path.write_bytes(to_npz(x=X, data=X[:1], y=Y.astype(object), extra=np.array([{}])))
    batch = read_batch(str(path), labels="ignored")
    assert batch.labels is None
    np.testing.assert_array_equal(batch.images, X)


@pytest.mark.parametrize("key", ["x", "X", "images", "data"])
@pytest.mark.parametrize("label_key", ["y", "Y", "labels", "targets", None])
def test_names(key: str, label_key: str | None, tmp_path: Path) -> None:
    path = tmp_path / "b.npz"
    np.savez(path, **{key: X}, **({label_key: Y} if label_key else {}))  # type: ignore[arg-type]
    batch = read_batch(str(path), labels="optional")
    assert batch.source == str(path)
    assert batch.classes() == ((1, 2, 3) if label_key else ())
    if label_key is None:
        with pytest.raises(BadInput, match="no labels") as caught:
            read_batch(str(path), labels="required")
        assert str(path) in str(caught.value)


LAYOUTS: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "vector": ((6,), (6,)),
    "grey": ((5, 6), (1, 5, 6)),
    "grey first": ((1, 5, 6), (1, 5, 6)),
    "grey last": ((5, 6, 1), (1, 5, 6)),
    "colour first": ((3, 5, 6), (3, 5, 6)),
    "colour last": ((5, 6, 3), (3, 5, 6)),
    "alpha last": ((5, 6, 4), (4, 5, 6)),
    "both": ((3, 5, 3), (3, 5, 3)),
}
ONE = st.sampled_from(sorted(LAYOUTS))
DTYPE = st.sampled_from(["|u1", "<f2", ">f2", "<f4", ">f4", "<f8", ">f8"])


@settings(max_examples=80, deadline=None)
@given(
    layout=ONE,
    dtype=DTYPE,
    count=st.integers(1, 4),
    fortran=st.booleans(),
    packed=st.booleans(),
    block=st.sampled_from([None, 1, 64, 1 << 20]),
)
def test_layouts_round_trip(
    layout: str, dtype: str, count: int, fortran: bool, packed: bool, block: int | None
) -> None:
    stored, canonical = LAYOUTS[layout]
    images = np.random.default_rng(count).integers(0, 256, (count, *stored)).astype(dtype)
    held = io.BytesIO()
    (np.savez_compressed if packed else np.savez)(held, x=images.copy(order="F" if fortran else "C"))
    with pytest.MonkeyPatch.context() as patch:
        if block is not None:  # everything lies on disk, handled in parts of so many bytes
            patch.setattr(spool, "THRESHOLD", 0)
            patch.setattr(spool, "BLOCK", block)
        batch = from_stdin(held.getvalue())
    assert batch.input_shape == canonical
    assert batch.images.dtype == (np.uint8 if dtype == "|u1" else np.float32)
    assert batch.images.dtype.isnative
    assert batch.images.flags.c_contiguous
    assert batch.images.flags.writeable
    moved = np.moveaxis(images, -1, 1) if layout in ("grey last", "colour last", "alpha last") else images
    np.testing.assert_array_equal(batch.images, moved.reshape(count, *canonical))
    assert batch.scaled().dtype == np.float32
    np.testing.assert_allclose(batch.scaled(), batch.images / (255 if dtype == "|u1" else 1), rtol=1e-6)


def from_stdin(data: bytes) -> Batch:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
        return read_batch("-", labels="optional")


INTEGERS = st.sampled_from(["i1", "<i2", ">i2", "<i4", ">i8", "<u2", "u4", ">u8", "?"])


@settings(max_examples=60, deadline=None)
@given(dtype=INTEGERS, data=st.data(), block=st.sampled_from([1, 64, 1 << 20]))
def test_integers_are_read_as_they_are_or_refused(dtype: str, data: st.DataObject, block: int) -> None:
    kind = np.dtype(dtype)
    low, high = (0, 1) if kind.kind == "b" else (np.iinfo(kind).min, np.iinfo(kind).max)
    near = st.sampled_from([n for n in (0, 2**24, 2**24 + 1, -(2**24) - 2, 2**40, low, high) if low <= n <= high])
    values = data.draw(st.lists(st.one_of(near, st.integers(low, high)), min_size=4, max_size=4))
    array = np.array(values, dtype=kind).reshape(2, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "BLOCK", block)
        lost = next((i for i, value in enumerate(values) if int(np.float32(value)) != value), None)
        if lost is not None:
            with pytest.raises(BadInput, match=f"float32 does not hold.* {values[lost]} in image {lost // 2}"):
                from_stdin(to_npz(x=array))
            return
        batch = from_stdin(to_npz(x=array))
    assert batch.images.dtype == np.float32
    assert batch.images.tolist() == array.astype(int).tolist()


def test_a_single_array_has_no_labels(tmp_path: Path) -> None:
    for array in (X, X.astype("<f8"), np.asfortranarray(X.astype(">i8"))):
        np.save(tmp_path / "a.npy", array)
        batch = read_batch(str(tmp_path / "a.npy"), labels="optional")
        np.testing.assert_array_equal(batch.images, X)
        assert batch.labels is None
        assert batch.images.dtype == (np.uint8 if array.dtype == np.uint8 else np.float32)
        np.testing.assert_array_equal(from_stdin((tmp_path / "a.npy").read_bytes()).images, X)
    with pytest.raises(BadInput, match=r"no labels in the file: .*a\.npy"):
        read_batch(str(tmp_path / "a.npy"), labels="required")
    with pytest.raises(UsageProblem, match="--label-column is for tables"):
        read_batch(str(tmp_path / "a.npy"), labels="optional", label_column="0")


def test_text_comes_out_composed() -> None:
    spelled = [unicodedata.normalize(form, name) for name in ("caf\u00e9", "th\u00e9") for form in ("NFC", "NFD")]
    batch = from_stdin(to_npz(x=X, y=np.array(spelled)))
    assert batch.classes() == ("caf\u00e9", "th\u00e9")
    long = unicodedata.normalize("NFD", "\u00e9" * 200)
    assert len(from_stdin(to_npz(x=X, y=text(long))).classes()) == 4


INT_TYPES = st.sampled_from(["i1", "u1", "<i2", ">i4", "u4", "<i8", ">u8"])
TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), min_size=1, max_size=8)


@settings(max_examples=50, deadline=None)
@given(values=st.lists(st.integers(0, 127), min_size=1, max_size=9), dtype=INT_TYPES)
def test_integer_labels(values: list[int], dtype: str) -> None:
    batch = from_stdin(to_npz(x=np.zeros((len(values), 2), np.uint8), y=np.array(values, dtype)))
    assert batch.labels is not None
    assert batch.labels.dtype == np.int64
    assert batch.labels.tolist() == values
    assert batch.classes() == tuple(sorted(set(values)))
    assert all(type(label) is int for label in batch.classes())


@settings(max_examples=50, deadline=None)
@given(values=st.lists(TEXT.filter(str.strip), min_size=1, max_size=9), as_bytes=st.booleans())
def test_text_labels(values: list[str], as_bytes: bool) -> None:
    array = np.array([value.encode() for value in values]) if as_bytes else np.array(values).astype(">U8")
    batch = from_stdin(to_npz(x=np.zeros((len(values), 2), np.uint8), y=array))
    assert batch.labels is not None
    assert batch.labels.dtype.kind == "U"
    assert batch.labels.dtype.isnative
    composed = [unicodedata.normalize("NFC", value) for value in values]
    assert batch.labels.tolist() == composed
    assert batch.classes() == tuple(sorted(set(composed)))


SOUND = [to_npz(x=X, y=Y), to_zip(("x.npy", to_npy(X)), ("y.npy", to_npy(Y.astype(str))), method=8)]


@settings(max_examples=300, deadline=None)
@given(data=st.data(), which=st.sampled_from(SOUND))
def test_any_damage_is_bad_input_or_harmless(data: st.DataObject, which: bytes) -> None:
    damaged = bytearray(which)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    kept = data.draw(st.integers(len(damaged) // 2, len(damaged)))
    with contextlib.suppress(BadInput):
        assert from_stdin(bytes(damaged[:kept])).images.size == X.size


def test_stdin_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    for data in (b"", b"hello", to_npz(x=X)[:100]):
        with pytest.raises(BadInput, match="stdin"):
            from_stdin(data)
    monkeypatch.setattr(sources, "MAX_STREAM_BYTES", 100)
    with pytest.raises(BadInput, match="too much"):
        from_stdin(to_npz(x=X))


def test_a_terminal_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.TextIOWrapper(io.BytesIO())
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stdin", terminal)
    with pytest.raises(UsageProblem):
        read_batch("-", labels="ignored")


def test_paths(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    for name in ("missing.npz", "file/below.npz", "n" * 300, "nul\0byte", "two\nlines"):
        with pytest.raises(BadInput) as caught:
            read_batch(str(tmp_path / name), labels="ignored")
        assert str(caught.value).isprintable()
        assert tmp_path.name in str(caught.value)
    with pytest.raises(UsageProblem):
        read_batch("", labels="ignored")
    with pytest.raises(BadInput, match="regular"):
        read_batch(os.devnull, labels="ignored")


def test_a_named_pipe_is_read(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    source = tmp_path / "b.npz"
    source.write_bytes(to_npz(x=X, y=Y))
    with subprocess.Popen(["sh", "-c", f"cat '{source}' > '{path}'"]):
        np.testing.assert_array_equal(read_batch(str(path), labels="required").images, X)


@pytest.mark.parametrize(("number", "kind"), [(errno.EIO, DiskProblem), (errno.EACCES, BadInput)])
def test_failing_reads(number: int, kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise OSError(number, os.strerror(number))

    path = tmp_path / "b.npz"
    path.write_bytes(to_npz(x=X))
    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(kind, match=r"b\.npz"):
        read_batch(str(path), labels="ignored")


def picture(path: Path, mode: str = "L", size: tuple[int, int] = (5, 3), value: int = 7) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
    Image.fromarray(np.full(shape, value, np.uint8)).convert(mode).save(path)


def test_image_folder(tmp_path: Path) -> None:
    for index, name in enumerate(["dog/b.png", "cat/a.png", "dog/a.png", ".hidden/a.png"]):
        picture(tmp_path / name, value=index)
    (tmp_path / "notes.txt").write_text("")
    batch = read_batch(str(tmp_path), labels="required")
    assert batch.labels is not None
    assert batch.labels.tolist() == ["cat", "dog", "dog"]
    assert batch.images.dtype == np.uint8
    assert batch.input_shape == (1, 3, 5)
    assert batch.images[:, 0, 0, 0].tolist() == [1, 2, 0]
    assert read_batch(str(tmp_path), labels="ignored").labels is None


def test_one_colour_picture_makes_all_colour(tmp_path: Path) -> None:
    picture(tmp_path / "a" / "1.png")
    picture(tmp_path / "b" / "1.png", "RGB", value=9)
    batch = read_batch(str(tmp_path), labels="optional")
    assert batch.input_shape == (3, 3, 5)
    assert batch.images[:, :, 0, 0].tolist() == [[7, 7, 7], [9, 9, 9]]


def test_flat_folder_has_no_labels(tmp_path: Path) -> None:
    picture(tmp_path / "2.png", value=2)
    picture(tmp_path / "1.PNG", value=1)
    (tmp_path / ".cache").mkdir()
    batch = read_batch(str(tmp_path), labels="optional")
    assert batch.labels is None
    assert batch.images[:, 0, 0, 0].tolist() == [1, 2]
    with pytest.raises(BadInput, match="class folders"):
        read_batch(str(tmp_path), labels="required")


def test_bad_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(name: str, says: str) -> None:
        with pytest.raises(BadInput, match=says) as caught:
            read_batch(str(tmp_path / name), labels="optional")
        assert name in str(caught.value)
        assert str(caught.value).isprintable()

    (tmp_path / "empty").mkdir()
    refused("empty", "no pictures")
    (tmp_path / "hollow" / "a").mkdir(parents=True)
    refused("hollow", "no pictures")
    picture(tmp_path / "half" / "a" / "1.png")
    (tmp_path / "half" / "b").mkdir()
    refused("half", "class folder has no pictures")
    picture(tmp_path / "sizes" / "a" / "1.png")
    picture(tmp_path / "sizes" / "a" / "2.png", size=(4, 3))
    refused("sizes", "2.png.*4x3.*5x3.*--image-size")
    picture(tmp_path / "broken" / "a" / "1.png")
    (tmp_path / "broken" / "a" / "2.png").write_bytes(b"hello")
    refused("broken", "2.png")
    whole = (tmp_path / "broken" / "a" / "1.png").read_bytes()
    (tmp_path / "broken" / "a" / "2.png").write_bytes(whole[:-30])
    refused("broken", "2.png")
    (tmp_path / "broken" / "a" / "2.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 3\n")
    refused("broken", "2.png")
    (tmp_path / "deep").mkdir()
    Image.fromarray(np.zeros((3, 5), np.uint16)).save(tmp_path / "deep" / "1.png")
    refused("deep", "8-bit")
    picture(tmp_path / "names" / "a\tb" / "1.png")
    refused("names", "control")
    picture(tmp_path / "huge" / "1.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    refused("huge", "too many pixels: .*1.png; found 5x3.*at most 10 pixels")


def test_reading_imports_neither_torch_nor_images() -> None:
    code = "import sys, clmoe_cli.data as d; assert not {'torch', 'torchvision', 'PIL'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[1])


def test_write_npz_is_deterministic(tmp_path: Path) -> None:
    arrays = {"x": np.asfortranarray(X), "y": np.array(["a", "ü", "b", "c"])}
    for name in ("a.npz", "b.npz"):
        write_npz(tmp_path / name, arrays)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()
    batch = read_batch(str(tmp_path / "a.npz"), labels="required")
    np.testing.assert_array_equal(batch.images, X)
    assert batch.classes() == ("a", "b", "c", "ü")
    with np.load(tmp_path / "a.npz") as loaded:
        np.testing.assert_array_equal(loaded["x"], X)


def test_write_npz_fails_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "a.npz"
    write_npz(target, {"x": X})
    before = target.read_bytes()
    with pytest.raises(DiskProblem, match="below"):
        write_npz(target / "below.npz", {"x": X})
    with pytest.raises(ValueError, match="pickle"):
        write_npz(target, {"x": X.astype(object)})

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskProblem, match=r"a\.npz.*No space"):
        write_npz(target, {"x": X + 1})
    assert target.read_bytes() == before
    assert list(tmp_path.iterdir()) == [target]
