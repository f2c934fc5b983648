"""A store at an address: read from there, each file fetched once, never written."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import shells
import small_store as small

import clmoe
from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.export import export
from clmoe_cli.api.generations import log, rename, undo
from clmoe_cli.api.learn import learn
from clmoe_cli.api.prune import PruneOptions, prune, would_prune
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from store_schema import DiskProblem, Store, StoreDamaged, StoreMissing, UsageProblem, mirrored, writer

ADDRESS = "memory://bucket/store"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLMOE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def system() -> Iterator[Any]:
    """fsspec's file system in memory, empty before and after."""
    found = fsspec.filesystem("memory")
    found.store.clear()
    yield found
    found.store.clear()


@pytest.fixture
def root(tmp_path: Path, system: Any) -> Path:
    """The store, which is at the address as well."""
    root = small.build(tmp_path / "store", 2)
    upload(system, root)
    return root


def upload(system: Any, root: Path) -> None:
    """The files of a store, and no others, at the address."""
    system.store.clear()
    for path in root.rglob("*"):
        if path.is_file():
            system.pipe_file(f"/bucket/store/{path.relative_to(root)}", path.read_bytes())


def reads(system: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files that are fetched from now on."""
    seen: list[str] = []
    real = system.cat_file

    def cat_file(path: str, **kwargs: Any) -> bytes:
        seen.append(path.removeprefix("/bucket/store/"))
        return bytes(real(path, **kwargs))

    monkeypatch.setattr(type(system), "cat_file", lambda self, path, **kwargs: cat_file(path, **kwargs))
    return seen


def test_answers_are_those_of_the_folder(root: Path) -> None:
    store = clmoe.Store(ADDRESS)
    images = small.questions().images
    here, there = clmoe.Store(str(root)).predict(images), store.predict(images)
    assert there.confidence.tobytes() == here.confidence.tobytes()
    assert there.label.tolist() == here.label.tolist()
    assert [task.name for task in store.tasks] == ["task1", "task2"]
    assert store.detect(images[:40]).to_json() == clmoe.Store(str(root)).detect(images[:40]).to_json()
    assert clmoe.inspect(ADDRESS, check=True).content_hash == Store.open(root).manifest.content_hash()
    assert log(ADDRESS).generation == 2


def test_every_file_is_fetched_once(root: Path, system: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    seen = reads(system, monkeypatch)
    mirrored(ADDRESS, cache)
    wanted = {f"objects/{r.sha256[:2]}/{r.sha256}.{r.suffix}" for r in Store.open(root).manifest.objects()}
    assert set(seen) == wanted | {"HEAD", "FORMAT", "manifests/2.json"}
    seen.clear()
    mirrored(ADDRESS, cache)
    assert seen == ["HEAD"]
    learn(str(root), small.batch(3), small.OPTIONS)
    upload(system, root)
    seen.clear()
    mirror = mirrored(ADDRESS, cache)
    again = {name for name in seen if name.startswith("objects")}
    assert again.isdisjoint({f"objects/{t.subnetwork.sha256[:2]}/{t.subnetwork.sha256}.h5"
                             for t in Store.open(root).manifest.tasks[:2]})  # fmt: skip
    assert small.told(mirror) == small.told(root)
    here = {p.name for p in (mirror / "objects").rglob("*.*")}
    assert here == {f"{r.sha256}.{r.suffix}" for r in Store.open(root).manifest.objects()}


def test_a_commit_in_the_meantime_is_followed(
    root: Path, system: Any, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    """HEAD names a generation that is swept before its files are fetched."""
    later = Path(shutil.copytree(root, root.parent / "later"))
    prune(str(later), PruneOptions("task1", gc=True), lambda plan: True)
    real, count = type(system).cat_file, 0

    def cat_file(self: Any, path: str, **kwargs: Any) -> bytes:
        nonlocal count
        count += 1
        if count == 4:
            upload(system, later)
        return bytes(real(self, path, **kwargs))

    monkeypatch.setattr(type(system), "cat_file", cat_file)
    assert small.told(mirrored(ADDRESS, cache)) == small.told(later)


def test_what_goes_wrong_is_one_error(root: Path, system: Any, monkeypatch: pytest.MonkeyPatch, cache: Path) -> None:
    with pytest.raises(StoreMissing, match="no store: memory://bucket/nothing"):
        mirrored("memory://bucket/nothing", cache)
    with pytest.raises(UsageProblem, match=r"cannot read from there: nosuch://x"):
        mirrored("nosuch://x", cache)
    weights = Store.open(root).manifest.experts[0].weights
    assert weights is not None
    path = f"/bucket/store/objects/{weights.sha256[:2]}/{weights.sha256}.safetensors"
    data = system.cat_file(path)
    for other, message in ((data[:-1] + b"x", "sha256"), (data + b"x", "more bytes")):
        system.pipe_file(path, other)
        with pytest.raises(StoreDamaged, match=message):
            mirrored(ADDRESS, cache)
    system.rm_file(path)
    with pytest.raises(StoreDamaged, match="missing file"):
        mirrored(ADDRESS, cache)
    system.pipe_file("/bucket/store/HEAD", b"{}")
    with pytest.raises(StoreDamaged, match="not a valid HEAD"):
        mirrored(ADDRESS, cache)

    def refused(self: Any, path: str, **kwargs: Any) -> bytes:
        raise RuntimeError("token expired\nand more")

    monkeypatch.setattr(type(system), "cat_file", refused)
    with pytest.raises(DiskProblem, match="RuntimeError: token expired; check"):
        mirrored(ADDRESS, cache)


def test_nothing_is_written_there(root: Path, system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(system.store)
    monkeypatch.chdir(tmp_path)
    for write in (
        lambda: learn(ADDRESS, small.batch(3), small.OPTIONS),
        lambda: prune(ADDRESS, PruneOptions("task1"), lambda plan: True),
        lambda: would_prune(ADDRESS, PruneOptions("task1")),
        lambda: undo(ADDRESS),
        lambda: undo(ADDRESS, dry_run=True),
        lambda: rename(ADDRESS, "task1", "x"),
        lambda: copy(str(root), ADDRESS),
        lambda: clmoe.inspect(ADDRESS, mend=True),
        lambda: writer(ADDRESS).__enter__(),
    ):
        with pytest.raises(UsageProblem, match="a store on object storage can only be read"):
            write()
    assert dict(system.store) == before
    assert not list(tmp_path.glob("memory*"))


def test_its_tasks_can_be_copied_and_exported(root: Path, tmp_path: Path) -> None:
    copy(ADDRESS, str(tmp_path / "new"), CopyOptions(["task2"]))
    assert small.told(tmp_path / "new")["task2"] == small.told(root)["task2"]
    export(ADDRESS, "task1", str(tmp_path / "task1.safetensors"))
    export(str(root), "task1", str(tmp_path / "same.safetensors"))
    assert (tmp_path / "task1.safetensors").read_bytes() == (tmp_path / "same.safetensors").read_bytes()


def test_the_command_in_this_process(root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "new.npz", x=small.questions().images)
    answers = []
    for store in (ADDRESS, str(root)):
        assert run(app, ["predict", str(tmp_path / "new.npz"), "--store", store, "--json"]) == 0
        answers.append(json.loads(capfd.readouterr().out))
    assert answers[0] == answers[1]


def test_the_command_in_a_process_of_its_own(root: Path, tmp_path: Path) -> None:
    """fsspec's local file system, from clmoe.toml of a folder above."""
    np.savez(tmp_path / "new.npz", x=small.questions().images)
    address = f"file://{root}"
    (tmp_path / "clmoe.toml").write_text(f'store = "{address}"\n')
    (tmp_path / "below").mkdir()
    before = shells.contents(root)
    answers = [
        shells.spawn(
            "predict", tmp_path / "new.npz", *more, "--json", cwd=tmp_path / "below", CLMOE_CACHE=str(tmp_path / "c")
        )
        for more in ((), ("--store", str(root)))
    ]
    assert answers[0].returncode == 0, answers[0].stderr
    assert answers[0].stdout == answers[1].stdout
    assert shells.contents(root) == before
    refused = shells.spawn("learn", tmp_path / "new.npz", cwd=tmp_path / "below")
    assert (refused.returncode, b"can only be read" in refused.stderr) == (2, True)
