"""A store of an older format: read as it is, and of the new format after the next commit, killed anywhere or not."""

from __future__ import annotations

import hashlib
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

STUMBLING = ("", ', "tasks": 5', ', "tasks": ["x"]', ', "experts": ["x"]', ', "gates": 5')
NOW, NEXT = layout.FORMAT_VERSION, layout.FORMAT_VERSION + 1


def next_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """This program one format later, in which tasks note how they were made."""

    def upgrade(fields: migrations.Fields) -> migrations.Fields:
        tasks = [{**task, "config": {**task["config"], "made": "before"}} for task in fields["tasks"]]
        return {**fields, "tasks": tasks}

    monkeypatch.setattr(layout, "FORMAT_VERSION", NEXT)
    monkeypatch.setattr(migrations, "UPGRADES", {**migrations.UPGRADES, NOW: upgrade})


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
        assert (root / "FORMAT").read_text() == f"{NEXT}\n"
        assert json.loads((root / "manifests" / "3.json").read_text())["format"] == NEXT
        assert names(root) == ["a", "b", "c"]
        assert Store.open(root).manifest.task("b").config["made"] == "before"
        assert verify(root) == []
    with pytest.raises(StoreIncompatible, match=f"format {NEXT}"):  # the version before
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
    assert (root / "FORMAT").read_text() == f"{NEXT}\n"
    assert names(root) == ["a", "b"]
    assert [f for f in verify(root) if f.damage] == []
    with writer(root) as locked:
        commit_task(locked, "c", 3)
    assert names(root) == ["a", "b", "c"]


@pytest.mark.parametrize("number", ["0", str(NEXT + 1), "true", '"1"', "null", "1.0"])
def test_other_formats_in_a_manifest_are_refused(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    next_version(monkeypatch)
    data = Manifest(generation=0, parent=None, created_at="", seed=0).to_bytes()
    with pytest.raises(StoreDamaged):
        Manifest.from_bytes(data.replace(f'"format": {NEXT}'.encode(), f'"format": {number}'.encode()), "file")


def test_fields_that_an_upgrade_stumbles_over_are_damage(monkeypatch: pytest.MonkeyPatch) -> None:
    next_version(monkeypatch)
    for data in ("[1]", "{", *(f'{{"format": {n}{more}}}' for n in (1, NOW) for more in STUMBLING)):
        with pytest.raises(StoreDamaged):
            Manifest.from_bytes(data.encode(), "file")


def test_format_1_gains_inputs_and_keeps_its_content_hash(make_store: Make) -> None:
    manifest = Store.open(make_store("a", "b")).manifest
    fields = {**json.loads(manifest.to_bytes()), "format": 1}
    for record in (*fields["experts"], *fields["gates"]):
        assert record.pop("input") is None
    for expert in fields["experts"]:
        assert [expert.pop(key) for key in ("pretrained", "base", "standardised")] == [None] * 3
    assert all(record.pop("input_range") is None for record in fields["gates"])
    for task in fields["tasks"]:
        assert (task.pop("opinion"), task.pop("measured")) == (None, None)
        later = ("answer", "within", "guessing", "per_class", "confusion", "calibration")
        assert [task["accuracy"].pop(key) for key in later] == [None] * len(later)
    content = {
        "objects": sorted(ref.sha256 for ref in manifest.objects()),
        "experts": fields["experts"],
        "tasks": [{k: v for k, v in t.items() if k not in ("learned_at", "probe")} for t in fields["tasks"]],
    }
    before = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    assert Manifest.from_bytes(json.dumps(fields).encode(), "file") == manifest
    assert manifest.content_hash() == before
    given = manifest.experts[0].model_copy(update={"pretrained": "0" * 64})
    assert manifest.model_copy(update={"experts": (given,)}).content_hash() != before
