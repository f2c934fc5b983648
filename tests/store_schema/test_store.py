from __future__ import annotations

from pathlib import Path

import pytest
from store_samples import Make, commit_task, snapshot

from store_schema import (
    Follower,
    Store,
    StoreDamaged,
    StoreIncompatible,
    StoreMissing,
    layout,
    read_consistently,
    verify,
    writer,
)


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
    known = layout.FORMAT_VERSION
    (root / "FORMAT").write_text(f"{known + 1}\n")
    with pytest.raises(StoreIncompatible, match=rf"format {known + 1}.*format {known}"):
        Store.open(root)
    with pytest.raises(StoreIncompatible), writer(root):
        pass


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


def test_a_manifest_never_names_objects_that_are_not_there(make_store: Make) -> None:
    root = make_store("a")
    with writer(root) as locked:
        lost = locked.manifest.tasks[0].subnetwork.model_copy(update={"sha256": "0" * 64})
        task = locked.manifest.tasks[0].model_copy(update={"subnetwork": lost})
        with pytest.raises(StoreDamaged, match="missing"):
            locked.commit(locked.manifest.model_copy(update={"tasks": (task,)}))
    assert Store.open(root).manifest.generation == 1


def test_a_store_exists_from_its_foundation(tmp_path: Path) -> None:
    root = tmp_path / "s"
    assert not Store.exists(root)
    with writer(root, create=True):
        pass
    assert Store.exists(root)
    (root / "FORMAT").unlink()
    assert Store.exists(root)


def test_a_snapshot_stays_and_reload_follows_head(make_store: Make) -> None:
    root = make_store("a")
    store = Store.open(root)
    with writer(root) as locked:
        commit_task(locked, "b", 1)
    assert [t.name for t in store.manifest.tasks] == ["a"]
    assert [t.name for t in Store.open(store.root).manifest.tasks] == ["a", "b"]


def test_only_who_holds_the_lock_writes(make_store: Make) -> None:
    root = make_store("a", "b")
    before = snapshot(root)
    follower = Follower(Store.open(root))
    assert (follower.root, follower.manifest) == (root, Store.open(root).manifest)
    for write in (
        lambda: follower.put(b"x", "h5"),
        lambda: follower.commit(follower.manifest),
        lambda: follower.collect(keep=1),
    ):
        with pytest.raises(RuntimeError, match="another process holds the lock"):
            write()
    assert snapshot(root) == before
    with writer(root) as locked:
        assert not isinstance(locked, Follower)
