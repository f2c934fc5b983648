from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
from store_samples import SHAPES, make_task

from store_schema import (
    ExpertRecord,
    LayerRecord,
    StoreDamaged,
    decode_subnetwork,
    decode_weights,
    encode_subnetwork,
)

RECORD = ExpertRecord(
    id="e1", arch="mlp:5,3", input_shape=(7,), input_scale=1.0, seed=1,
    layers=tuple(LayerRecord(name=n, shape=s) for n, s in SHAPES.items()), weights=None,
)  # fmt: skip  # fmt: skip


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


def compressed(file: h5py.File, **options: object) -> h5py.Dataset:
    return file.create_dataset("statistics/x", dtype="f4", compression="gzip", shuffle=True, **options)


def resizable(file: h5py.File) -> None:
    compressed(file, shape=(10,), maxshape=(None,), chunks=(5 << 20,))[:] = 1


def chunk_of(file: h5py.File, raw: bytes, filter_mask: int = 0) -> None:
    compressed(file, shape=(1 << 18,), chunks=(1 << 18,)).id.write_direct_chunk((0,), raw, filter_mask)


@cache
def zeros(mebibytes: int) -> bytes:
    packer = zlib.compressobj(6)
    return b"".join(packer.compress(bytes(1 << 20)) for _ in range(mebibytes)) + packer.flush()


def overlong(file: h5py.File) -> None:
    chunk_of(file, zeros(300))


def sparse(file: h5py.File) -> None:
    compressed(file, shape=(1 << 11,), chunks=(1 << 10,))[:10] = 1


def packed_twice(file: h5py.File) -> None:
    plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    plist.set_chunk((1000,))
    plist.set_deflate(4)
    plist.set_deflate(4)
    space = h5py.h5s.create_simple((1000,))
    made = h5py.h5d.create(file["statistics"].id, b"x", h5py.h5t.NATIVE_FLOAT, space, plist)
    made.write(space, space, np.zeros(1000, "f4"))


def bomb(key: str, size: int, dtype: str) -> Callable[[h5py.File], None]:
    """A data set of so many zeros in a few bytes."""

    def change(file: h5py.File) -> None:
        attrs = dict(file[key].attrs)
        del file[key]
        how: dict[str, object] = {"shape": (1, size), "chunks": (1, size), "compression": "gzip", "shuffle": True}
        made = file.create_dataset(key, dtype=dtype, **how)
        made.id.write_direct_chunk((0, 0), zeros(made.nbytes >> 20))
        made.attrs.update(attrs)

    return change


def packed(value: object, dtype: str = "u2") -> Callable[[h5py.File], None]:
    return replaced("gate/directions", data=np.array(value, dtype))


def older(change: Callable[[h5py.File], None]) -> Callable[[h5py.File], None]:
    """The same in an object of schema 2, whose scores have the shape of their masks."""

    def both(file: h5py.File) -> None:
        file.attrs["schema"] = 2
        for name, value in make_task("t", 0).scores.items():
            replaced(f"scores/{name}", data=value)(file)
        change(file)

    return both


def many(file: h5py.File) -> None:
    packed = zeros(400)
    for name in "abc":
        made = file.create_dataset(
            f"gate/{name}", shape=(400 << 20,), dtype="u1", chunks=(400 << 20,), compression="gzip", shuffle=True
        )
        made.id.write_direct_chunk((0,), packed)


HOSTILE: dict[str, Callable[[h5py.File], None]] = {
    "soft link": lambda f: f.__setitem__("statistics/x", h5py.SoftLink("/masks")),
    "external link": lambda f: f.__setitem__("statistics/x", h5py.ExternalLink("/etc/passwd", "/")),
    "link cycle": lambda f: f.__setitem__("statistics/x", f["statistics"]),
    "external storage": external,
    "virtual data set": virtual,
    "huge chunked": replaced(
        "probe_outputs", shape=(1 << 50,), dtype="f4", chunks=(1024,), compression="gzip", shuffle=True
    ),
    "huge compact": replaced("calibration/fisher", shape=(1 << 40,), dtype="f8"),
    "another type": replaced("probe_outputs", data=np.zeros(3, dtype="c8")),
    "strings": replaced("probe_outputs", data=np.array([b"x"], dtype=object), dtype=h5py.string_dtype()),
    "another filter": replaced("probe_outputs", data=np.zeros((8, 2), "f4"), scaleoffset=2),
    "not a number": replaced("calibration/fisher", data=np.array([np.nan])),
    "infinite score": replaced("scores/hidden1.bias", data=np.full(5, np.inf, "f2")),
    "scores of the mask's shape": replaced("scores/hidden1.weight", data=np.ones((5, 7), "f2")),
    "a score too few": replaced("scores/hidden1.weight", data=np.ones(3, "f2")),
    "more scores than weights": replaced("scores/hidden1.weight", data=np.ones(36, "f2")),
    "score outside the mask of schema 2": older(replaced("scores/hidden1.weight", data=np.ones((5, 7), "f2"))),
    "selected scores in schema 2": older(replaced("scores/hidden1.weight", data=np.ones(3, "f2"))),
    "packed directions in schema 2": older(packed([[3, 4, 1, 6]])),
    "a mask that is a bomb": bomb("masks/hidden1.weight", 300 << 20, "u1"),
    "scores that are a bomb": bomb("scores/hidden1.weight", 100 << 20, "f2"),
    "directions that are a bomb": bomb("gate/directions", 100 << 20, "u2"),
    "packed directions of one row": packed([3, 4, 1, 6]),
    "packed directions without numbers": packed([[3]]),
    "packed directions between halves": packed([[0, 2 * 2049]]),
    "packed directions beyond halves": packed([[20, 256]]),
    "packed directions of a strange step": packed([[2**32 - 1, 2]], "u4"),
    "short mask": replaced("masks/hidden1.weight", data=np.zeros(2, "u1")),
    "unknown group": lambda f: f.create_group("extra") and None,
    "missing group": lambda f: f.__delitem__("gate"),
    "another task": lambda f: f.attrs.__setitem__("task", "u"),
    "newer schema": lambda f: f.attrs.__setitem__("schema", 99),
    "lost attribute": lambda f: f.attrs.__delitem__("layers"),
    "two names of one data set": lambda f: f.__setitem__("statistics/x", f["statistics/means"]),
    "a chunk larger than its data": resizable,
    "a stream that never ends": overlong,
    "a stream that ends early": lambda f: chunk_of(f, zlib.compress(bytes(100))),
    "no stream at all": lambda f: chunk_of(f, b"\xff" * 64),
    "a chunk that skips its filters": lambda f: chunk_of(f, bytes(1 << 20), 3),
    "a chunk that is not there": sparse,
    "chunks as they are": replaced("calibration/fisher", data=np.zeros(30), chunks=(8,)),
    "packed twice": packed_twice,
    "too much in all": many,
    "resizable": replaced("calibration/fisher", data=np.zeros(3), maxshape=(None,)),
    "fletcher": replaced("calibration/fisher", data=np.zeros(3), fletcher32=True),
    "big endian": replaced("calibration/fisher", data=np.zeros(3, ">f8")),
    "compound": replaced("calibration/fisher", data=np.zeros(3, [("a", "f8")])),
    "a group for a data set": lambda f: f.create_group("statistics/x") and None,
    "a list for a name": lambda f: f.attrs.__setitem__("task", np.array([1, 2])),
    "an attribute of floats": lambda f: f["masks/hidden1.weight"].attrs.__setitem__("shape", [5.0, 7.0]),
    "scale is not finite": lambda f: f["scores/hidden1.bias"].attrs.__setitem__("scale", np.inf),
    "another shape of a mask": lambda f: f["masks/hidden1.weight"].attrs.__setitem__("shape", [7, 5]),
    "no mask": lambda f: f.__delitem__("masks/hidden1.weight"),
    "one-dimensional probe outputs": replaced("probe_outputs", data=np.zeros(3, "f4")),
    "whole numbers for calibration": replaced("calibration/fisher", data=np.zeros(3, "i8")),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_hdf5_is_refused_in_one_line(change: Callable[[h5py.File], None]) -> None:
    with pytest.raises(StoreDamaged) as caught:
        decode_subnetwork(damaged_h5(change), "a/file.h5", "t", "e1", SHAPES)
    assert "a/file.h5" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("packed twice", "filters"), ("fletcher", "filters"), ("another filter", "filters"),
        ("soft link", "soft or external link"), ("external link", "soft or external link"),
        ("external storage", "virtual or external"), ("virtual data set", "virtual or external"),
        ("huge chunked", "bytes declared;"), ("huge compact", "bytes declared;"), ("too much in all", "so far"),
        ("directions that are a bomb", "so far"), ("a mask that is a bomb", "packed bits"),
        ("scores that are a bomb", "each selected one"), ("a score too few", "that the mask selects"),
        ("packed directions between halves", "numbers of half precision"), ("packed directions in schema 2", "uint16"),
        ("score outside the mask of schema 2", "outside the mask"),
    ],
)  # fmt: skip
def test_each_is_refused_by_the_check_that_is_meant_for_it(kind: str, said: str) -> None:
    """And not by a later one, when something was already opened or allocated."""
    with pytest.raises(StoreDamaged, match=said):
        decode_subnetwork(damaged_h5(HOSTILE[kind]), "file", "t", "e1", SHAPES)


@pytest.mark.parametrize("change", [lambda file: None, older(lambda file: None)])
def test_the_unchanged_file_is_read(change: Callable[[h5py.File], None]) -> None:
    found, expected = decode_subnetwork(damaged_h5(change), "file", "t", "e1", SHAPES), make_task("t", 0)
    for name, value in expected.scores.items():
        assert found.scores[name].tobytes() == value.tobytes()


FUZZ = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
from store_samples import SHAPES, make_task
from store_schema import StoreDamaged, decode_subnetwork, encode_subnetwork
data = encode_subnetwork(make_task("t", 0))
rng = np.random.default_rng(0)
heap = data.index(b"GCOL")
# The first: a wrong length of an object in a heap, at which the library loops for ever.
changes = [[(heap + 24, 0x77)]] + [
    [(int(rng.integers(len(data))), int(rng.integers(256))) for _ in range(rng.integers(1, 6))] for _ in range(600)
] + [[(heap + int(rng.integers(200)), int(rng.integers(256)))] for _ in range(600)]
refused = []
for change in changes:
    bad = bytearray(data)
    for place, value in change:
        bad[place] = value
    try:
        decode_subnetwork(bytes(bad), "f", "t", "e1", SHAPES)
        refused.append(False)
    except StoreDamaged as error:
        assert "\\n" not in str(error)
        refused.append(True)
assert refused[0] and sum(refused) > 300
# Not ru_maxrss: that begins with what the parent process had in memory.
(peak,) = [line for line in open("/proc/self/status") if line.startswith("VmHWM")]
print(int(peak.split()[1]) >> 10)
"""


def test_changed_bytes_never_crash_or_hang_the_reader() -> None:
    """Past the hash, as an attacker would: in a process of its own, which a fault in the library may take down."""
    command = [sys.executable, "-c", FUZZ, str(Path(__file__).parent.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 1024


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
        safetensors({**GOOD, "__metadata__": {"clmoe": "schema 1, expert e2"}}, bytes(208)),
        safetensors({k: v for k, v in GOOD.items() if k != "__metadata__"}, bytes(208)),
        safetensors({**GOOD, "__metadata__": {"clmoe": "schema 1, expert e1", "x": "y" * (9 << 20)}}, bytes(208)),
        safetensors({**GOOD, "task/t/output.bias": entry([True, 2], 200, 208)}, bytes(208)),
        safetensors({**GOOD, "task/t/output.bias": entry([1] * 1000 + [2], 200, 208)}, bytes(208)),
        safetensors({**GOOD, "task/t/": GOOD["task/t/output.bias"]}, bytes(208)),
        struct.pack("<Q", 100_000) + b"[" * 100_000,
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


def test_headers_are_checked_before_the_library_reads_them() -> None:
    moved = {**GOOD, "shared/hidden2.weight": entry([3, 5], 136, 196)}
    long = {**GOOD, "__metadata__": {"x": "y" * (9 << 20)}}
    for header, said in ((moved, "overlap or leave gaps"), (long, "a header of")):
        with pytest.raises(StoreDamaged, match=said):
            decode_weights(safetensors(header, bytes(208)), "file", RECORD, ["t"])


def test_the_good_safetensors_is_read() -> None:
    decode_weights(safetensors(GOOD, bytes(208)), "file", RECORD, ["t"])
