from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from store_samples import Make

from store_schema import Checkpoint, StoreDamaged, checkpoints, verify

KEY, OTHER = "a" * 64, "b" * 64


def made(number: int) -> Checkpoint:
    rng = np.random.default_rng(number)
    arrays = {
        "1/result/params/w": rng.random((3, 4)).astype(np.float32),
        "1/result/generator": rng.integers(0, 256, 50).astype(np.uint8),
        "2/reached/numbers": rng.random(2),
        "2/reached/counts": np.array([number, 2]),
        "2/reached/rate": np.array(0.1),
        "2/reached/mask": rng.random(9) < 0.5,
    }
    return Checkpoint(number, "parent", "pets", f"epoch {number} of phase train", arrays)


def same(one: Checkpoint | None, other: Checkpoint) -> bool:
    assert one is not None
    assert (one.number, one.parent, one.task, one.reached) == (other.number, other.parent, other.task, other.reached)
    equal = [one.arrays[k].dtype == v.dtype and np.array_equal(one.arrays[k], v) for k, v in other.arrays.items()]
    return all(equal) and set(one.arrays) == set(other.arrays)


def test_the_newest_checkpoint_takes_the_place_of_the_one_before(make_store: Make) -> None:
    root = make_store("a")
    assert checkpoints.load(root, KEY) is None
    for number in (1, 2, 3):
        checkpoints.save(root, KEY, made(number))
        assert len(checkpoints.files_of(root, KEY)) == 1
    assert same(checkpoints.load(root, KEY), made(3))
    assert checkpoints.load(root, OTHER) is None
    assert checkpoints.present(root) == [KEY]
    assert verify(root) == []
    checkpoints.discard(root, KEY)
    assert list((root / "checkpoints").iterdir()) == []
    checkpoints.discard(root, KEY)


def test_of_two_the_newer_counts_and_a_renamed_one_never(make_store: Make) -> None:
    root = make_store("a")
    checkpoints.save(root, KEY, made(5))
    (older,) = checkpoints.files_of(root, KEY)
    data = older.read_bytes()
    checkpoints.save(root, KEY, made(6))
    older.write_bytes(data)  # as after a crash before it was deleted
    assert same(checkpoints.load(root, KEY), made(6))
    folder = root / "checkpoints" / OTHER
    folder.mkdir()
    (folder / older.name).write_bytes(data)
    assert checkpoints.load(root, OTHER) is None


@given(place=st.integers(0, 10_000), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_checkpoint_is_never_taken_for_one(
    tmp_path_factory: pytest.TempPathFactory, place: int, bit: int, cut: bool
) -> None:
    root = tmp_path_factory.mktemp("store")
    for name in ("checkpoints", "tmp"):
        (root / name).mkdir()
    checkpoints.save(root, KEY, made(1))
    (path,) = checkpoints.files_of(root, KEY)
    data = bytearray(path.read_bytes())
    place %= len(data)
    data[place] ^= 1 << bit
    path.write_bytes(data[:place] if cut else data)
    assert checkpoints.load(root, KEY) is None
    with pytest.raises(StoreDamaged, match=path.name):
        checkpoints.read(path, KEY)


def test_verify_names_a_damaged_checkpoint(make_store: Make) -> None:
    root = make_store("a")
    checkpoints.save(root, KEY, made(1))
    (path,) = checkpoints.files_of(root, KEY)
    path.write_bytes(path.read_bytes()[:-1])
    assert [(f.file, f.damage) for f in verify(root)] == [(str(path), True)]


def test_a_folder_that_is_a_link_is_refused(make_store: Make, tmp_path: Path) -> None:
    root = make_store("a")
    (tmp_path / "elsewhere").mkdir()
    (root / "checkpoints" / KEY).symlink_to(tmp_path / "elsewhere")
    for use in (checkpoints.load, checkpoints.discard, lambda root, key: checkpoints.save(root, key, made(1))):
        with pytest.raises(StoreDamaged, match="symbolic link"):
            use(root, KEY)
    assert list((tmp_path / "elsewhere").iterdir()) == []
