"""Names of tasks are data, never paths; modes follow the umask, of checkpoints as well."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
import small_store as small
from campaigns import some

from clmoe_cli.api import resuming
from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.method.subnetwork.training import Epoch
from store_schema import Interrupted, Store

NAMES = ("../../evil", "/etc/passwd", "a/b", "..", "C:\\x", "task 1", "ключ", "'; rm -rf /", "e1", "%s{0}", "e-rf")


@pytest.mark.parametrize("name", some(NAMES, *NAMES[:4]))
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    root = tmp_path / "deep" / "store"
    learn(str(root), small.batch(1), replace(small.OPTIONS, name=name))
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    assert [p.name for p in root.parent.iterdir()] == ["store"]
    assert not any(name in str(p) for p in root.rglob("*") if name not in ("..", "e1"))
    assert inspect(str(root), check=True).tasks[0].name == name
    assert small.answers(root, name)
    learn(str(root), small.batch(2), small.OPTIONS)
    prune(str(root), PruneOptions(task=name), lambda plan: True)
    assert [t.name for t in Store.open(root).manifest.tasks] == ["task2"]


@pytest.mark.parametrize(("umask", "file", "folder"), [(0, 0o664, 0o775), (0o077, 0o600, 0o700)])
def test_modes_of_a_learn_in_progress(
    umask: int, file: int, folder: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    seen: list[Epoch] = []

    def stop(epoch: Epoch) -> None:
        seen.append(epoch)
        if len(seen) > 2:
            raise KeyboardInterrupt

    before = os.umask(umask)
    try:
        with pytest.raises(Interrupted):
            learn(str(tmp_path / "s"), small.batch(1), small.OPTIONS, on_epoch=stop)
    finally:
        os.umask(before)
    found = list((tmp_path / "s").rglob("*"))
    assert any("checkpoints" in str(p) and p.is_file() for p in found)
    assert {p.stat().st_mode & 0o777 for p in found if p.is_file() and p.name != "lock"} == {file}
    assert {p.stat().st_mode & 0o777 for p in found if p.is_dir()} == {folder}
    assert not (tmp_path / "s" / "lock").stat().st_mode & 0o002
