from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from store_samples import Make, commit_task

from store_schema import (
    ClmoeError,
    ExpertWeights,
    Store,
    StoreDamaged,
    encode_subnetwork,
    encode_weights,
    verify,
    writer,
)


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
    store.read_gate((7,))


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


def test_verify_names_pointers_and_objects_together(make_store: Make) -> None:
    root = make_store("a", "b")
    objects = sorted((root / "objects").glob("*/*"))
    damaged = [root / "FORMAT", root / "HEAD", root / "manifests" / "1.json", root / "manifests" / "2.json", *objects]
    for path in damaged:
        path.write_bytes(b"x" + path.read_bytes()[1:])
    found = " ".join(f.file for f in verify(root) if f.damage)
    assert [p for p in damaged if str(p) not in found] == []


def test_verify_notices_a_swapped_object_and_a_changed_parent(make_store: Make) -> None:
    root = make_store("a", "b")
    one, two = (t.subnetwork for t in Store.open(root).manifest.tasks)
    paths = [root / "objects" / r.sha256[:2] / f"{r.sha256}.h5" for r in (one, two)]
    good = [p.read_bytes() for p in paths]
    paths[0].write_bytes(good[1])
    assert {f.file for f in verify(root) if f.damage} == {str(paths[0])}
    paths[0].write_bytes(good[0])
    parent = root / "manifests" / "1.json"
    parent.write_text(parent.read_text().replace('"images": 100', '"images": 101'))
    assert {f.file for f in verify(root) if f.damage} == {str(parent)}


def test_another_valid_object_of_the_same_task_is_damage(make_store: Make) -> None:
    """Only its hash tells that these are not the bytes that were committed; they are not the next commit's either."""
    root = make_store("a")
    ref, record = Store.open(root).manifest.tasks[0].subnetwork, Store.open(root).read_subnetwork("a")
    path = root / "objects" / ref.sha256[:2] / f"{ref.sha256}.h5"
    good = path.read_bytes()
    path.write_bytes(encode_subnetwork(replace(record, probe_outputs=record.probe_outputs + 1)))
    assert path.stat().st_size == ref.size
    with pytest.raises(StoreDamaged, match="damaged file"):
        Store.open(root).read_subnetwork("a")
    assert named_as_damaged(root) == str(path)
    with writer(root) as locked:
        assert locked.put(good, "h5") == ref
    assert path.read_bytes() == good
    assert verify(root) == []


def test_a_manifest_that_head_does_not_name_is_refused(make_store: Make) -> None:
    """It is a valid one of this generation, and says of a task what was never committed."""
    root = make_store("a", "b")
    path = root / "manifests" / "2.json"
    changed = path.read_text().replace('"images": 100', '"images": 101')
    path.write_text(changed)
    with pytest.raises(StoreDamaged, match="HEAD and its manifest do not agree"):
        Store.open(root)
    with pytest.raises(StoreDamaged, match="HEAD and its manifest do not agree"), writer(root):
        pass
    assert str(path) in named_as_damaged(root)


def test_a_thawed_weight_is_caught_though_all_hashes_are_right(make_store: Make) -> None:
    root = make_store("a")
    with writer(root) as locked:
        weights, mask = locked.store.read_expert("e1"), locked.store.read_subnetwork("a").masks["hidden1.weight"]
        for bits, caught in ((~mask, False), (mask, True)):
            value = weights.shared["hidden1.weight"].copy()
            value[tuple(np.argwhere(bits)[0])] += 1
            thawed = ExpertWeights({**weights.shared, "hidden1.weight": value}, weights.owned)
            ref = locked.put(encode_weights(thawed, "e1"), "safetensors")
            expert = locked.manifest.experts[0].model_copy(update={"weights": ref})
            locked.commit(locked.manifest.model_copy(update={"experts": (expert,)}))
            assert any("task a changed" in f.problem and ref.sha256 in f.file for f in verify(root)) is caught


def test_files_of_others_are_noted_and_left_alone(make_store: Make) -> None:
    root = make_store("a", "b", "c")
    folder = next((root / "objects").iterdir())
    strays = [
        root / "notes.txt",
        folder / f"{folder.name}.h5",
        root / "manifests" / "old.json",
        root / "manifests" / "02.json",
    ]
    for path in strays:
        path.write_text("mine")
    findings = verify(root)
    assert {f.file for f in findings} == set(map(str, strays))
    assert not any(f.damage for f in findings)
    with writer(root) as locked:
        commit_task(locked, "d", 3)
        assert locked.collect(keep=1)
    assert [path.read_text() for path in strays] == ["mine"] * 4


@pytest.mark.parametrize("name", ["tmp", "objects", "manifests", "checkpoints"])
def test_a_folder_that_is_a_link_is_refused_and_not_swept(make_store: Make, tmp_path: Path, name: str) -> None:
    root = make_store("a")
    (root / name).rename(tmp_path / "moved")
    (tmp_path / "moved" / "thesis.tex").write_text("mine")
    (root / name).symlink_to(tmp_path / "moved")
    with pytest.raises(StoreDamaged, match="not a folder of the store"), writer(root):
        pass
    assert (tmp_path / "moved" / "thesis.tex").read_text() == "mine"


@pytest.mark.parametrize("dangling", [False, True])
def test_a_lock_that_is_a_link_is_refused_and_not_written_to(make_store: Make, tmp_path: Path, dangling: bool) -> None:
    root, target = make_store("a"), tmp_path / "profile"
    if not dangling:
        target.write_text("mine")
    (root / "lock").unlink()
    (root / "lock").symlink_to(target)
    with pytest.raises(StoreDamaged, match="lock"), writer(root):
        pass
    assert (target.read_text() == "mine") if not dangling else not target.exists()


def test_copies_without_the_empty_folders_are_written_to(make_store: Make) -> None:
    root = make_store("a")
    for name in ("tmp", "checkpoints"):
        (root / name).rmdir()
    with writer(root) as locked:
        commit_task(locked, "b", 1)
    assert verify(root) == []


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


@pytest.mark.parametrize(
    "text", [b"1", b"1\x1e", b"1\n\n", b" 1\n", b"01\n", b"+1\n", b"1.0\n", b"", b"x\n", b"\xb9\n"]
)
def test_a_format_that_is_no_number_is_damage(make_store: Make, text: bytes) -> None:
    root = make_store("a")
    (root / "FORMAT").write_bytes(text)
    with pytest.raises(StoreDamaged, match="FORMAT"):
        Store.open(root)
