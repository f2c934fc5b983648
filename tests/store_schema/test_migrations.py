"""A store of an older format: read as it is, and of the new format after the next commit, killed anywhere or not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from store_samples import Make, commit_task, contents, names

from store_schema import (
    Manifest,
    Store,
    StoreDamaged,
    StoreIncompatible,
    files,
    layout,
    migrations,
    repair,
    verify,
    writer,
)


def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """This program one format later, in which tasks note how they were made."""

    def upgrade(fields: migrations.Fields) -> migrations.Fields:
        tasks = [{**task, "config": {**task["config"], "made": "before"}} for task in fields["tasks"]]
        return {**fields, "tasks": tasks}

    monkeypatch.setattr(layout, "FORMAT_VERSION", 2)
    monkeypatch.setattr(migrations, "UPGRADES", {1: upgrade})


def test_an_older_store_is_read_as_it_is_and_upgraded_by_the_next_commit(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_store("a", "b")
    before = contents(root)
    with monkeypatch.context() as patch:
        next_version(patch)
        assert verify(root) == []
        assert Store.open(root).manifest.task("a").config["made"] == "before"
        assert repair(root).lost == ()
        assert contents(root) == before
        with writer(root) as locked:
            commit_task(locked, "c", 3)
        assert (root / "FORMAT").read_text() == "2\n"
        assert json.loads((root / "manifests" / "3.json").read_text())["format"] == 2
        assert names(root) == ["a", "b", "c"]
        assert Store.open(root).manifest.task("b").config["made"] == "before"
        assert verify(root) == []
    with pytest.raises(StoreIncompatible, match="format 2"):  # the version before
        Store.open(root)


def test_stopped_between_format_and_head(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_store("a", "b")
    next_version(monkeypatch)
    real = files.rename

    class Killed(BaseException):
        pass

    def rename(source: Path, target: Path) -> None:
        if target.name == "HEAD":
            raise Killed
        real(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(files, "rename", rename)
        with pytest.raises(Killed), writer(root) as locked:
            commit_task(locked, "c", 3)
    assert (root / "FORMAT").read_text() == "2\n"
    assert names(root) == ["a", "b"]
    assert [f for f in verify(root) if f.damage] == []
    with writer(root) as locked:
        commit_task(locked, "c", 3)
    assert names(root) == ["a", "b", "c"]


@pytest.mark.parametrize("number", ["0", "3", "true", '"1"', "null", "1.0"])
def test_other_formats_in_a_manifest_are_refused(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    next_version(monkeypatch)
    data = Manifest(generation=0, parent=None, created_at="", seed=0).to_bytes()
    with pytest.raises(StoreDamaged):
        Manifest.from_bytes(data.replace(b'"format": 2', f'"format": {number}'.encode()), "file")


def test_fields_that_an_upgrade_stumbles_over_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    next_version(monkeypatch)
    for data in (b'{"format": 1}', b'{"format": 1, "tasks": 5}', b"[1]", b"{", b'{"format": 1, "tasks": ["x"]}'):
        with pytest.raises(StoreDamaged):
            Manifest.from_bytes(data, "file")
