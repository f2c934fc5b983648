"""The public API: every name is there, none costs an import of torch, and the functions work on a store."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import shells
import small_store as small

import clmoe


def test_every_name_of_the_api_is_there() -> None:
    assert sorted(clmoe.__all__) == dir(clmoe) == sorted(clmoe._WHERE)
    for name in clmoe.__all__:
        assert getattr(clmoe, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'lern'"):
        clmoe.lern  # noqa: B018


def test_importing_it_imports_no_torch() -> None:
    code = "import sys, clmoe; clmoe.LearnReport; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=shells.clean(), timeout=60)


def test_a_task_is_learned_asked_about_and_removed(tmp_path: Path) -> None:
    store, file = str(tmp_path / "store"), tmp_path / "task.npz"
    data = small.batch(1)
    np.savez(file, x=data.images, y=data.labels)
    batch = clmoe.read_batch(str(file), labels="required")
    planned = clmoe.plan(store, batch, small.OPTIONS)
    learned = clmoe.learn(store, batch, small.OPTIONS)
    assert (planned.task, planned.dry_run, learned.task) == ("task1", True, "task1")
    assert clmoe.detect(store, batch).verdict == "known"
    assert clmoe.predict(store, batch).accuracy is not None
    assert [task.name for task in clmoe.inspect(store).tasks] == ["task1"]
    removed = clmoe.prune(store, clmoe.PruneOptions(task="task1"), lambda plan: True)
    assert removed.removed == ("task1",)
    with pytest.raises(clmoe.ClmoeError):
        clmoe.predict(store, batch)
