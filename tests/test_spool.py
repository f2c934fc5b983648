"""Arrays beyond memory: what comes back is what went in, nothing stays on disk, memory stays bounded."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from clmoe_cli.data import Batch, read_batch, spool
from clmoe_cli.data.extraction import FeatureSpool
from store_schema import BadInput, DiskProblem

DTYPES = st.sampled_from(["u1", "<f2", ">f4", "<f8", ">i8", "<U3"])
SHAPES = arrays.array_shapes(min_dims=1, max_dims=4, max_side=6)
ROWS = arrays.arrays(DTYPES.map(np.dtype), SHAPES)


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    place = tmp_path / "aside"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@pytest.fixture
def on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "THRESHOLD", 0)


def spooled(array: np.ndarray, at_once: int = 1, spare: int = 0) -> np.ndarray:
    with spool.Spool((len(array) + spare, *array.shape[1:]), array.dtype, "here") as held:
        for start in range(0, len(array), at_once):
            held.append(array[start : start + at_once])
        return held.finish()


@given(array=ROWS, at_once=st.integers(1, 9), spare=st.integers(0, 2), disk=st.booleans(), seed=st.integers(0, 9))
def test_what_comes_back_is_what_went_in(array: np.ndarray, at_once: int, spare: int, disk: bool, seed: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "THRESHOLD", 0 if disk else 1 << 20)
        back = spooled(array, at_once, spare)
    assert back.dtype == array.dtype
    assert back.flags.c_contiguous
    assert back.flags.writeable
    assert (spool._map_of(back) is not None) == disk
    spool.release(back[:1])
    assert back.tobytes() == array.tobytes()
    index = np.random.default_rng(seed).integers(0, len(array), 2 * len(array))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "_GATHERED", 2)
        assert spool.taken(back, index).tobytes() == array[index].tobytes()
        mask = index[: len(array)] % 2 == 0
        assert spool.taken(back, mask).tobytes() == array[mask].tobytes()
    parts = list(spool.blocks(back, at_once))
    assert [start for start, _ in parts] == list(range(0, len(array), at_once))
    assert b"".join(part.tobytes() for _, part in parts) == array.tobytes()


@given(array=ROWS.filter(lambda a: a.ndim > 1), rows=st.integers(1, 7), block=st.sampled_from([1, 40, 4096]))
def test_fortran_order_is_turned_around(array: np.ndarray, rows: int, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "BLOCK", block)
        parts = list(spool.transposed_blocks(array.ravel(order="F"), array.shape, rows))
    assert all(len(part) <= rows for part in parts)
    assert b"".join(part.tobytes() for part in parts) == array.tobytes()


@pytest.mark.usefixtures("on_disk")
def test_nothing_has_a_name_on_disk(own_folder: Path) -> None:
    back = spooled(np.arange(12.0).reshape(4, 3))
    assert list(own_folder.iterdir()) == []
    assert back[3].tolist() == [9, 10, 11]


@pytest.mark.usefixtures("on_disk")
def test_parts_of_a_batch_are_copies(monkeypatch: pytest.MonkeyPatch) -> None:
    batch = Batch(spooled(np.arange(12, dtype=np.float32).reshape(4, 3)), np.array(["a", "b", "c", "d"]), "here")
    part = batch.taken(np.array([3, 1]))
    assert spool._map_of(part.images) is None
    assert part.images.tolist() == [[9, 10, 11], [3, 4, 5]]
    assert part.labels is not None
    assert part.labels.tolist() == ["d", "b"]


def test_a_disk_without_room_is_said_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "THRESHOLD", 10)
    usage = SimpleNamespace(free=11)
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage)
    assert len(spooled(np.zeros(11, np.uint8))) == 11
    with pytest.raises(DiskProblem, match=r"aside; found 11 bytes free; expected 12 bytes; .*TMPDIR"):
        spooled(np.zeros(12, np.uint8))


@pytest.mark.usefixtures("on_disk")
def test_a_disk_that_fills_up_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: object) -> object:
        return Path("/dev/full").open("r+b", buffering=0)

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(DiskProblem, match="No space left"):
        spooled(np.zeros(5, np.uint8))


@pytest.mark.usefixtures("on_disk")
def test_no_such_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/nowhere")
    with pytest.raises(DiskProblem, match="nowhere"):
        spooled(np.zeros(5, np.uint8))


def test_memory_that_is_too_small_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "THRESHOLD", 1 << 62)
    with pytest.raises(BadInput, match="do not fit in memory"):
        spooled(np.zeros(1, np.uint8), spare=1 << 50)


CHILD = """
import sys
from pathlib import Path
import numpy as np
from clmoe_cli.data import spool
from clmoe_cli.data import read_batch

spool.THRESHOLD = spool.BLOCK = 2 << 20

def most():
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if "VmHWM" in x).split()[1]) << 10

before = most()
batch = read_batch(sys.argv[1], labels="ignored")
total = sum(int(block[:, -1].sum(dtype=np.int64)) for _, block in spool.blocks(batch.images, 100))
few = batch.taken(np.random.default_rng(0).permutation(len(batch.images))[:100])
print(most() - before, batch.images.nbytes, total)
"""


@pytest.mark.campaign
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("packed", [False, True])
def test_memory_stays_bounded(order: str, packed: bool, tmp_path: Path) -> None:
    x = np.asarray(np.zeros((16_000, 6000), np.uint8), order="F" if order == "F" else "C")
    x[:, -1] = 1
    path = tmp_path / "big.npz"
    (np.savez_compressed if packed else np.savez)(path, x=x)
    done = subprocess.run([sys.executable, "-c", CHILD, path], capture_output=True, text=True, check=True)
    grown, size, total = map(int, done.stdout.split())
    assert (size, total) == (x.nbytes, len(x))
    # The array itself, anywhere in memory, would be 92 MiB.
    assert grown < 48 << 20


def test_a_pipe_larger_than_memory_goes_to_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=np.arange(300, dtype=np.float32).reshape(100, 3))
    monkeypatch.setattr(spool, "THRESHOLD", 100)
    with path.open("rb") as stream, spool.pipe(stream, 1 << 20, "stdin") as held:
        assert held.read() == path.read_bytes()
    assert read_batch(str(path), labels="ignored").images.sum() == 300 * 299 / 2


class Means:
    """An extractor of one feature that says how many pictures it was given at once."""

    name, width = "means", 1

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def vectors(self, pictures: np.ndarray) -> np.ndarray:
        self.sizes.append(len(pictures))
        if (pictures == 255).any():
            raise BadInput("too bright")
        return pictures.reshape(len(pictures), -1).mean(axis=1, dtype=np.float32)[:, None]


@given(st.lists(st.integers(0, 9), max_size=6), st.integers(1, 8))
def test_features_of_pictures_do_not_hang_on_how_they_come(parts: list[int], at_once: int) -> None:
    x = np.arange(sum(parts) * 4, dtype=np.uint8).reshape(-1, 1, 2, 2)
    means = Means()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "BLOCK", 4 * at_once)
        with FeatureSpool((len(x), 1, 2, 2), x.dtype, "here", means) as held:
            for part in np.split(x, np.cumsum(parts)[:-1]) if parts else ():
                held.append(part)
                assert held.rows <= len(x)
            found = held.finish()
    np.testing.assert_array_equal(found[:, 0], x.reshape(len(x), 4).mean(axis=1, dtype=np.float32))
    assert means.sizes == [at_once] * (len(x) // at_once) + [len(x) % at_once] * (len(x) % at_once > 0)


def test_what_cannot_be_extracted_says_where_it_is() -> None:
    with FeatureSpool((2, 1, 2, 2), np.dtype(np.uint8), "here.npz", Means()) as held:
        held.append(np.full((1, 1, 2, 2), 255, np.uint8))
        with pytest.raises(BadInput, match=r"here\.npz.*too bright|too bright.*here\.npz"):
            held.finish()
