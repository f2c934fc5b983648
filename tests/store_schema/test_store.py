from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import commit_task

from store_schema import (
    ClmoeError,
    DiskProblem,
    Manifest,
    Store,
    StoreDamaged,
    StoreIncompatible,
    StoreLocked,
    StoreMissing,
    files,
    read_consistently,
    verify,
    writer,
)

Make = Callable[..., Path]


def snapshot(root: Path) -> dict[str, bytes]:
    return {str(p.relative_to(root)): p.read_bytes() for p in sorted(root.rglob("*")) if p.is_file()}


def names(root: Path) -> list[str]:
    return [t.name for t in Store.open(root).manifest.tasks]


def test_what_was_committed_is_read_back(make_store: Make) -> None:
    store = Store.open(make_store("a", "b"))
    assert store.manifest.generation == 2
    assert set(store.read_expert("e1").owned) == {"a", "b"}
    assert store.read_subnetwork("b").task == "b"
    assert verify(store.root) == []


def test_reading_writes_nothing_and_takes_no_lock(make_store: Make) -> None:
    root = make_store("a")
    before = snapshot(root)
    with writer(root):
        Store.open(root).read_subnetwork("a")
        verify(root)
    assert {k: v for k, v in snapshot(root).items() if k != "lock"} == {k: v for k, v in before.items() if k != "lock"}


@pytest.mark.parametrize("setup", ["absent", "empty folder", "other files", "no commit"])
def test_missing_stores_are_named(tmp_path: Path, setup: str) -> None:
    root = tmp_path / "s"
    if setup != "absent":
        root.mkdir()
    if setup == "other files":
        (root / "notes.txt").write_text("mine")
    if setup == "no commit":
        root.rmdir()
        with writer(root, create=True):
            pass
    with pytest.raises(StoreMissing, match=str(root)):
        Store.open(root)


def test_a_folder_with_other_files_is_not_taken_over(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(StoreMissing, match="not empty"), writer(tmp_path, create=True):
        pass
    assert snapshot(tmp_path) == {"notes.txt": b"mine"}


def test_newer_formats_are_refused_by_name(make_store: Make) -> None:
    root = make_store("a")
    (root / "FORMAT").write_text("2\n")
    with pytest.raises(StoreIncompatible, match=r"format 2.*format 1"):
        Store.open(root)
    with pytest.raises(StoreIncompatible), writer(root):
        pass


def named_as_damaged(root: Path) -> str:
    try:
        return " ".join(f.file for f in verify(root) if f.damage)
    except ClmoeError as error:
        return str(error) if error.exit_code == 4 else ""


def read_all(root: Path) -> None:
    store = Store.open(root)
    store.read_expert("e1")
    for name in ("a", "b"):
        store.read_subnetwork(name)


def test_every_flipped_bit_and_cut_is_noticed_and_named(make_store: Make) -> None:
    root = make_store("a", "b")
    current = json.loads((root / "HEAD").read_text())["generation"]
    wanted = {ref.sha256 for ref in Store.open(root).manifest.objects()}
    for path in sorted(p for p in root.rglob("*") if p.is_file() and p.name != "lock"):
        good = path.read_bytes()
        for position in range(0, len(good), max(1, len(good) // 12)):
            bad = bytearray(good)
            bad[position] ^= 1 << (position % 8)
            for data in (bytes(bad), good[:position]):
                path.write_bytes(data)
                needed = path.stem in wanted or path.name in ("FORMAT", "HEAD", f"{current}.json")
                if not needed:
                    continue
                assert path.name in named_as_damaged(root), (path, position)
                with pytest.raises(ClmoeError) as caught:
                    read_all(root)
                assert caught.value.exit_code == 4
        path.write_bytes(good)
    assert verify(root) == []


def test_verify_names_every_damaged_file_in_one_run(make_store: Make) -> None:
    root = make_store("a", "b")
    objects = [root / "objects" / r.sha256[:2] / f"{r.sha256}.{r.suffix}" for r in Store.open(root).manifest.objects()]
    objects[0].unlink()
    objects[1].write_bytes(b"x" * objects[1].stat().st_size)
    found = {Path(f.file).name for f in verify(root) if f.damage}
    assert {objects[0].name, objects[1].name} <= found


@pytest.mark.parametrize("lost", ["HEAD", "FORMAT", "manifests/1.json"])
def test_a_lost_file_is_damage_and_never_an_empty_store(make_store: Make, lost: str) -> None:
    root = make_store("a")
    (root / lost).unlink()
    with pytest.raises(StoreDamaged, match=lost):
        Store.open(root)
    with pytest.raises(StoreDamaged, match=lost), writer(root, create=True):
        pass


def test_links_and_folders_in_place_of_objects_are_refused(make_store: Make, tmp_path: Path) -> None:
    root = make_store("a")
    ref = Store.open(root).manifest.tasks[0].subnetwork
    path = root / "objects" / ref.sha256[:2] / f"{ref.sha256}.h5"
    kept = tmp_path / "elsewhere.h5"
    shutil.move(path, kept)
    path.symlink_to(kept)
    with pytest.raises(StoreDamaged, match="symbolic link"):
        Store.open(root).read_subnetwork("a")
    path.unlink()
    path.mkdir()
    with pytest.raises(ClmoeError) as caught:
        Store.open(root).read_subnetwork("a")
    assert caught.value.exit_code in (4, 6)


OPERATIONS = ("make_folder", "write_durably", "sync_folder", "remove")


def interrupted_after(monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException) -> list[str]:
    """Lets n file operations through, then raises at every further one."""
    done: list[str] = []
    for name in OPERATIONS:
        real = getattr(files, name)

        def call(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            if len(done) >= n:
                raise error
            done.append(name)
            return real(*args)

        monkeypatch.setattr(files, name, call)
    return done


class Killed(BaseException):
    pass


@pytest.mark.parametrize("first", [True, False], ids=["first commit", "later commit"])
def test_a_commit_cut_off_anywhere_leaves_the_old_state_or_the_new(
    make_store: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool
) -> None:
    seen = set()
    for n in range(100):
        root = tmp_path / f"s{n}"
        if not first:
            with writer(root, create=True) as locked:
                commit_task(locked, "a", 0)
        with monkeypatch.context() as patch:
            done = interrupted_after(patch, n, Killed())
            try:
                with writer(root, create=True) as locked:
                    commit_task(locked, "b", 1)
                finished = True
            except Killed:
                finished = False
        old = [] if first else ["a"]
        try:
            now = names(root)
        except StoreMissing:
            now = []
        assert now in (old, [*old, "b"])
        seen.add(len(now))
        if now:
            assert [f for f in verify(root) if f.damage] == []
        with writer(root, create=True) as locked:
            if "b" not in now:
                commit_task(locked, "b", 1)
            commit_task(locked, "c", 2)
        assert names(root) == [*old, "b", "c"]
        assert list((root / "tmp").iterdir()) == []
        if finished:
            assert n == len(done)
            break
    assert seen == {len(old), len(old) + 1}


@pytest.mark.parametrize("number", [28, 5, 30, 13, 24], ids=["ENOSPC", "EIO", "EROFS", "EACCES", "EMFILE"])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_errors_of_the_disk_are_said_in_one_line_and_lose_nothing(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    root = make_store("a")
    before = snapshot(root)
    real = getattr(os, call)

    def fail(*args: object, **kwargs: object) -> object:
        writes = call != "open" or (len(args) > 1 and int(args[1]) & os.O_EXCL and "tmp" in str(args[0]))  # type: ignore[call-overload]
        if writes:
            raise OSError(number, os.strerror(number), str(root))
        return real(*args, **kwargs)

    with writer(root) as locked:
        monkeypatch.setattr(os, call, fail)
        try:
            with pytest.raises(DiskProblem) as caught:
                commit_task(locked, "b", 1)
        finally:
            monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert names(root) == ["a"]
    after = snapshot(root)
    assert all(after[k] == v for k, v in before.items() if k != "lock")


def test_short_writes_are_completed(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    root = make_store("a")
    monkeypatch.undo()
    assert verify(root) == []


def test_the_same_content_is_stored_once(make_store: Make) -> None:
    root = make_store("a")
    with writer(root) as locked:
        ref = locked.manifest.tasks[0].subnetwork
        path = root / "objects" / ref.sha256[:2] / f"{ref.sha256}.h5"
        before = path.stat().st_mtime_ns
        assert locked.put(path.read_bytes(), "h5") == ref
        assert path.stat().st_mtime_ns == before


def test_two_generations_are_kept_and_gc_keeps_one(make_store: Make) -> None:
    root = make_store("a", "b", "c")
    assert sorted(p.name for p in (root / "manifests").iterdir()) == ["2.json", "3.json"]
    with writer(root) as locked:
        locked.collect(keep=1)
    assert [p.name for p in (root / "manifests").iterdir()] == ["3.json"]
    assert len(list((root / "objects").glob("*/*"))) == len(set(Store.open(root).manifest.objects()))
    assert verify(root) == []


def test_a_reader_starts_again_when_its_objects_were_swept(make_store: Make) -> None:
    root = make_store("a")
    opened = []

    def use(store: Store) -> list[str]:
        opened.append(store.manifest.generation)
        if len(opened) == 1:
            for i, name in enumerate("bcd"):
                with writer(root) as locked:
                    commit_task(locked, name, i + 1)
        return sorted(store.read_expert("e1").owned)

    assert read_consistently(root, use) == ["a", "b", "c", "d"]
    assert opened == [1, 4]


def test_content_hash_knows_content_and_no_clock(make_store: Make) -> None:
    one, two, three = make_store("a", "b"), make_store("a", "b", folder="t"), make_store("a", "c", folder="u")
    manifest = Store.open(one).manifest
    assert manifest.content_hash() == Store.open(two).manifest.content_hash()
    assert manifest.content_hash() != Store.open(three).manifest.content_hash()
    later = tuple(t.model_copy(update={"learned_at": "later"}) for t in manifest.tasks)
    same = manifest.model_copy(update={"tasks": later, "created_at": "x", "generation": 9})
    assert same.content_hash() == manifest.content_hash()
    other = tuple(t.model_copy(update={"seed": 99}) for t in manifest.tasks)
    assert manifest.model_copy(update={"tasks": other}).content_hash() != manifest.content_hash()


HOLD = """
import sys, time
from store_schema import writer
with writer(sys.argv[1]):
    print("held", flush=True)
    time.sleep(60)
"""


def test_writers_exclude_each_other_and_a_killed_holder_frees_the_lock(make_store: Make) -> None:
    root = make_store("a")
    holder = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waited: list[str] = []
        started = time.monotonic()
        with (
            pytest.raises(StoreLocked, match=f"process {holder.pid} "),
            writer(root, timeout=0.2, on_wait=waited.append),
        ):
            pass
        assert time.monotonic() - started >= 0.2
        assert len(waited) == 1
        assert names(root) == ["a"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with writer(root, timeout=5) as locked:
            commit_task(locked, "b", 1)
    finally:
        holder.kill()
        holder.communicate()
    assert names(root) == ["a", "b"]


WRITE = """
import sys
sys.path.insert(0, sys.argv[3])
from store_samples import commit_task
from store_schema import writer
for i in range(3):
    with writer(sys.argv[1], create=True) as locked:
        commit_task(locked, f"{sys.argv[2]}-{i}", i)
"""


def test_every_task_of_concurrent_writers_is_there(tmp_path: Path) -> None:
    root, here = tmp_path / "s", str(Path(__file__).parent.parent)
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(root), str(w), here]) for w in range(4)]
    reads = 0
    while any(w.poll() is None for w in writers):
        try:
            count = read_consistently(root, lambda s: (len(s.read_expert("e1").owned), len(s.manifest.tasks)))
        except StoreMissing:
            continue
        assert count[0] == count[1]
        reads += 1
    assert [w.returncode for w in writers] == [0] * 4
    assert sorted(names(root)) == sorted(f"{w}-{i}" for w in range(4) for i in range(3))
    assert reads > 0
    assert verify(root) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o664)])
def test_modes_follow_the_umask_and_are_never_world_writable(make_store: Make, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        root = make_store("a")
    finally:
        os.umask(before)
    found = {p.stat().st_mode & 0o777 for p in root.rglob("*") if p.is_file() and p.name != "lock"}
    assert found == {mode}
    assert not (root / "lock").stat().st_mode & 0o002


def test_a_manifest_never_names_objects_that_are_not_there(make_store: Make) -> None:
    root = make_store("a")
    with writer(root) as locked:
        lost = locked.manifest.tasks[0].subnetwork.model_copy(update={"sha256": "0" * 64})
        task = locked.manifest.tasks[0].model_copy(update={"subnetwork": lost})
        with pytest.raises(StoreDamaged, match="missing"):
            locked.commit(locked.manifest.model_copy(update={"tasks": (task,)}))
    assert Store.open(root).manifest.generation == 1


def test_an_initial_manifest_is_empty() -> None:
    manifest = Manifest(generation=0, parent=None, created_at="", seed=5)
    assert list(manifest.objects()) == []
