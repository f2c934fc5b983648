"""Features are kept between commands: found again to the bit, bounded, whole under kills, and never in the way."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shells

from clmoe_cli.backbone import cache, places
from clmoe_cli.backbone.cache import FeatureCache, key_of
from clmoe_cli.runtime import limits
from store_schema.records import FeaturesRecord

WIDTH = 16
pytestmark = pytest.mark.usefixtures("empty_cache")
RECORD = FeaturesRecord(arch="eyes", sha256="0" * 64)


def vectors(count: int, seed: int = 0) -> dict[bytes, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {rng.bytes(32): rng.normal(size=WIDTH).astype(np.float32) for _ in range(count)}


def same(found: dict[bytes, np.ndarray], right: dict[bytes, np.ndarray]) -> bool:
    return found.keys() == right.keys() and all(np.array_equal(found[key], right[key]) for key in right)


def file() -> Path:
    return places.cache_folder() / cache.NAME


def test_what_was_put_is_found_to_the_bit() -> None:
    kept, some = FeatureCache(WIDTH), vectors(1203)
    assert kept.get(list(some)) == {}
    kept.put(some)
    assert same(FeatureCache(WIDTH).get([*some, b"x" * 32]), some)
    assert FeatureCache(WIDTH + 1).get(list(some)) == {}


def test_a_key_tells_pictures_types_and_networks_apart() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    other = picture.copy()
    other[2, 3, 3] += 1
    variants = [picture, other, picture.astype(np.float32), picture.reshape(3, 2, 8), picture[:1]]
    records = [RECORD, RECORD.model_copy(update={"sha256": "1" * 64}), RECORD.model_copy(update={"mean": (0.0,) * 3})]
    keys = [key_of(record, one) for record in records for one in variants]
    assert len(set(keys)) == len(keys)
    assert key_of(RECORD, picture) == key_of(RECORD, np.asfortranarray(picture))


def test_a_value_that_is_not_what_was_kept_is_not_found() -> None:
    some = vectors(3)
    FeatureCache(WIDTH).put(some)
    first, second, third = some
    with sqlite3.connect(file()) as base:
        (value,) = base.execute("SELECT value FROM features WHERE key = ?", (first,)).fetchone()
        base.execute("UPDATE features SET value = ? WHERE key = ?", (bytes([value[0] ^ 1]) + value[1:], first))
        base.execute("UPDATE features SET value = 'text' WHERE key = ?", (second,))
    base.close()
    assert list(FeatureCache(WIDTH).get(list(some))) == [third]


@pytest.mark.parametrize("damage", ["no database", "torn", "other table"])
def test_a_file_that_is_none_costs_time_and_no_answer(damage: str) -> None:
    some, kept = vectors(300), FeatureCache(WIDTH)
    kept.put(some)
    data = file().read_bytes()
    for beside in ("-wal", "-shm"):
        file().with_name(cache.NAME + beside).unlink(missing_ok=True)
    if damage == "other table":
        file().unlink()
        with sqlite3.connect(file()) as base:
            base.execute("CREATE TABLE features (a)")
        base.close()
    else:
        file().write_bytes(b"no database" * 100 if damage == "no database" else data[:5000])
    # Whatever is found is what was kept.
    found = kept.get(list(some))
    assert same(found, {key: some[key] for key in found})
    assert damage == "torn" or not found
    kept.put(some)
    if damage != "other table":  # which is somebody's own, and is left
        assert same(kept.get(list(some)), some)


def test_the_oldest_go_when_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "KEPT_FEATURES_BYTES", 1 << 18)
    old, young, new = vectors(600, 1), vectors(600, 2), vectors(500, 3)
    long_ago = FeatureCache(WIDTH)
    long_ago._today -= 9
    long_ago.put(old)
    long_ago.put(young)
    assert len(FeatureCache(WIDTH).get(list(young))) == 600  # used today
    FeatureCache(WIDTH).put(new)
    left = FeatureCache(WIDTH)
    assert left.get(list(old)) == {}
    assert len(left.get(list(young))) > 0
    for seed in range(4, 12):
        left.put(vectors(500, seed))
    assert file().stat().st_size < 2 * limits.KEPT_FEATURES_BYTES


def test_a_folder_that_cannot_be_written_or_made(tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("a file")
    kept, some = FeatureCache(WIDTH, tmp_path / "taken" / "below"), vectors(2)
    kept.put(some)
    assert kept.get(list(some)) == {}


FILL = """
import sys, numpy as np
from pathlib import Path
from clmoe_cli.backbone.cache import FeatureCache
kept, rng = FeatureCache(16, Path(sys.argv[1])), np.random.default_rng(int(sys.argv[2]))
for round in range(int(sys.argv[3])):
    kept.put({rng.bytes(32): np.full(16, rng.normal(), np.float32) for _ in range(50)})
    print(round, flush=True)
"""


def filling(folder: Path, seed: int, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", FILL, str(folder), str(seed), str(rounds)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=shells.clean())


def test_several_processes_lose_nothing(tmp_path: Path) -> None:
    running = [filling(tmp_path, seed, 10) for seed in range(3)]
    assert [process.wait(120) for process in running] == [0, 0, 0]
    for process in running:
        process.stdout.close()  # type: ignore[union-attr]
    with sqlite3.connect(tmp_path / cache.NAME) as base:
        assert base.execute("SELECT COUNT(*) FROM features").fetchone() == (3 * 10 * 50,)
    base.close()


def test_a_kill_leaves_what_was_kept(tmp_path: Path) -> None:
    process = filling(tmp_path, 0, 10_000)
    assert process.stdout is not None
    for _ in range(5):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    process.wait(60)
    process.stdout.close()
    rng = np.random.default_rng(0)
    keys = []
    for _ in range(5):
        for _ in range(50):
            keys.append(rng.bytes(32))
            rng.normal()
    kept = FeatureCache(16, tmp_path)
    assert len(kept.get(keys)) == 250
    some = vectors(3)
    kept.put(some)
    assert same(kept.get(list(some)), some)  # no lock of the killed process is waited for: putting would give up


def test_a_cache_that_cannot_be_written_says_so_and_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    vectors = {bytes([i]) * 32: np.full(4, i, np.float32) for i in range(3)}
    assert FeatureCache(4, tmp_path / "cache").put(vectors)
    (tmp_path / "file").write_text("no folder")
    assert not FeatureCache(4, tmp_path / "file").put(vectors)
    monkeypatch.setattr(os, "access", lambda *_: False)  # root may write anywhere
    kept = FeatureCache(4, tmp_path / "cache")
    assert kept.get(list(vectors)).keys() == vectors.keys()
    assert not kept.put({b"9" * 32: np.zeros(4, np.float32)})
