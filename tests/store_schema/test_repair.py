from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from store_samples import Make, commit_task, contents, names

from store_schema import (
    DiskProblem,
    ObjectRef,
    Store,
    StoreDamaged,
    StoreMissing,
    files,
    layout,
    repair,
    verify,
    writer,
)


def layout_path(root: Path, ref: ObjectRef) -> Path:
    return layout.object_path(root, ref.sha256, ref.suffix)


def own_objects(root: Path) -> list[Path]:
    """Objects that only the current generation needs."""
    current = Store.open(root).manifest
    old = json.loads((root / "manifests" / f"{current.generation - 1}.json").read_text())
    return [layout_path(root, ref) for ref in current.objects() if ref.sha256 not in json.dumps(old)]


def flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


@pytest.mark.parametrize("damage", [flipped, Path.unlink, lambda path: path.write_bytes(b"")])
def test_each_damaged_file_of_the_newest_generation_is_gone_back_from(
    make_store: Make, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    root = make_store("a", "b", "c")
    files = [root / "HEAD", root / "FORMAT", root / "manifests" / "3.json", *own_objects(root)]
    assert len(files) == 6
    for number, path in enumerate(files):
        own = Path(shutil.copytree(root, tmp_path / f"own{number}"))
        damage(own / path.relative_to(root))
        found = repair(own)
        assert path.name in " ".join(found.found)
        assert verify(own) == []
        if path.name in ("HEAD", "FORMAT"):
            assert (names(own), found.lost) == (["a", "b", "c"], ())
        else:
            assert (names(own), found.generation) == (["a", "b"], 2)
            assert found.lost == (("whatever generation 3 had learned",) if path.suffix == ".json" else ("c",))
        with writer(own) as locked:
            commit_task(locked, "d", 7)
        assert names(own)[-1] == "d"
        assert verify(own) == []


def test_a_changed_head_loses_nothing(make_store: Make) -> None:
    root = make_store("a", "b", "c")
    with writer(root) as locked:
        locked.commit(locked.manifest.model_copy(update={"repair_floor": 4}))
    good = (root / "HEAD").read_bytes()
    for place in range(0, len(good), 17):
        bad = bytearray(good)
        bad[place] ^= 1 << place % 8
        (root / "HEAD").write_bytes(bad)
        assert repair(root).lost == ()
        assert (root / "HEAD").read_bytes() == good


@pytest.mark.parametrize("number", [errno.EACCES, errno.EIO])
def test_what_cannot_be_read_is_not_gone_back_from(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """A file whose permissions are wrong is whole: nothing is deleted for it, and nothing lost."""
    root = make_store("a", "b", "c")
    before = contents(root)
    for path in (root / "HEAD", root / "FORMAT", root / "manifests" / "3.json", *own_objects(root)):
        real = os.open

        def refused(name: Any, *args: Any, path: Path = path, real: Any = real) -> int:
            if str(name) == str(path):
                raise OSError(number, os.strerror(number), str(path))
            return int(real(name, *args))

        with monkeypatch.context() as patched:
            patched.setattr(files.os, "open", refused)
            assert [f.file for f in verify(root) if f.unread] == [str(path)]
            with pytest.raises(DiskProblem, match=f"cannot be read, and may be whole.*{path.name}.*permissions"):
                repair(root)
        assert {k: v for k, v in contents(root).items() if k != "lock"} == before
    assert repair(root).found == ()


def test_a_folder_that_is_no_store_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(StoreMissing):
        repair(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["cats"]


def test_of_whole_generations_the_newest_stands(make_store: Make) -> None:
    root = make_store("a", "b", "c")
    assert (root / "manifests" / "2.json").exists()
    (root / "HEAD").unlink()
    found = repair(root)
    assert (found.generation, found.lost) == (3, ())
    assert names(root) == ["a", "b", "c"]


def test_a_whole_store_stays_as_it_is(make_store: Make) -> None:
    root = make_store("a", "b")
    before = contents(root)
    found = repair(root)
    assert (found.generation, found.found, found.lost) == (2, (), ())
    assert contents(root) == before


def test_damage_that_the_newest_generation_does_not_need_costs_nothing(make_store: Make) -> None:
    root = make_store("a", "b", "c")
    flipped(root / "manifests" / "2.json")
    assert repair(root).lost == ()
    assert names(root) == ["a", "b", "c"]
    assert verify(root) == []


def test_where_no_generation_is_whole_nothing_is_changed(make_store: Make) -> None:
    root = make_store("a", "b")
    flipped(layout_path(root, Store.open(root).manifest.task("a").subnetwork))
    before = contents(root)
    with pytest.raises(StoreDamaged, match="no generation is whole"):
        repair(root)
    assert contents(root) == before


@pytest.mark.parametrize("lost", ["manifest", "object", "HEAD and manifest"])
def test_never_across_a_prune(make_store: Make, lost: str) -> None:
    root = make_store("a", "b", "c")
    with writer(root) as locked:
        locked.commit(locked.manifest.model_copy(update={"repair_floor": 4}))
    assert json.loads((root / "HEAD").read_text())["repair_floor"] == 4
    if lost == "object":
        layout_path(root, Store.open(root).manifest.task("c").subnetwork).unlink()
    else:
        (root / "manifests" / "4.json").unlink() if lost == "manifest" else flipped(root / "manifests" / "4.json")
    if lost == "HEAD and manifest":
        flipped(root / "HEAD")
    with pytest.raises(StoreDamaged, match="no generation is whole"):
        repair(root)
    assert (root / "manifests" / "3.json").exists()


def test_a_head_whose_floor_was_changed_is_damage(make_store: Make) -> None:
    root = make_store("a", "b")
    fields = json.loads((root / "HEAD").read_text())
    (root / "HEAD").write_text(json.dumps({**fields, "repair_floor": 1}) + "\n")
    with pytest.raises(StoreDamaged, match="HEAD and its manifest do not agree"):
        Store.open(root)
    assert repair(root).lost == ()
    assert names(root) == ["a", "b"]
