"""Commands that write, killed at each of their steps on the disk, and at their system calls with strace."""

from __future__ import annotations

import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import small_store as small
from campaigns import some
from tracing import CALLS, Strace

from clmoe_cli.api import resuming
from store_schema import ClmoeError, verify


def check(root: Path, old: tuple[str, ...], new: tuple[str, ...], before: dict[str, list[bytes]]) -> tuple[str, ...]:
    """After a crash: the old state or the new one, whole, and every task answers as before."""
    now = small.state(root)
    assert now in (old, new)
    if now:
        assert [f for f in verify(root) if f.damage] == []
    for name, answer in small.told(root).items():
        assert answer == before.get(name, answer), name
    return now


@pytest.mark.parametrize("name", some(small.COMMANDS, *small.FEW))
def test_killed_at_every_file_operation(
    name: str, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, act = small.COMMANDS[name]
    monkeypatch.setattr(resuming, "PAUSE", 0.0)  # checkpoints are steps as well
    good = small.build(tmp_path / "good", tasks)
    reference = tmp_path / "reference"
    if tasks:
        shutil.copytree(good, reference)
    old = small.state(good) if tasks else ()
    before = small.told(good) if tasks else {}
    act(reference)
    new = small.state(reference)
    seen, failures, cases, n, finished = set(), [], 0, 0, False
    while not finished:
        for torn in (False, True) if whole else (n % 2 == 1,):
            root = tmp_path / f"own{cases}"
            if tasks:
                shutil.copytree(good, root)

            def killed(root: Path = root, n: int = n, torn: bool = torn) -> None:
                small.killed_at(n, torn)
                act(root)

            status = small.in_child(killed)
            cases += 1
            try:
                assert status in (0, -signal.SIGKILL)
                finished = status == 0
                now = check(root, old, new, before)
                seen.add(now)
                if now == old:
                    act(root)  # the next run goes on from there
                assert small.state(root) == new
                assert list((root / "tmp").iterdir()) == []
                assert [f for f in verify(root) if f.damage] == []
            except (AssertionError, ClmoeError) as error:
                failures.append((n, torn, repr(error)))
            shutil.rmtree(root)
        n += 1 if whole else 61 if name.endswith("learn") else 11
    record_property("cases", cases)
    record_property("failures", len(failures))
    assert failures == []
    assert cases > (n if whole else 2)
    if whole:
        assert seen == {old, new}


@pytest.mark.campaign
@pytest.mark.parametrize("name", small.COMMANDS)
def test_killed_at_system_calls(
    name: str, tmp_path: Path, record_property: pytest.RecordProperty, strace: Strace
) -> None:
    """Real processes, at calls that touch the store."""
    tasks = small.COMMANDS[name][0]
    good = small.build(tmp_path / "good", tasks) if tasks else tmp_path / "good"
    data = small.batch(1 if tasks == 0 else 3)
    np.savez(tmp_path / "task.npz", x=data.images, y=data.labels)
    learn = ["learn", "--data", str(tmp_path / "task.npz"), "--arch", "mlp:8,8", "--epochs", "1"]
    root = tmp_path / "store"
    others = {
        "prune": ["prune", "--task", "task2", "--yes"],
        "undo": ["undo"],
        "rename": ["rename", "task2", "birds"],
        "copy": ["copy", str(small.learned(3)), str(root), "--task", "task3"],
        "first copy": ["copy", str(small.learned(3)), str(root)],
    }
    verb = others.get(name, learn)
    command = [sys.executable, "-m", "clmoe_cli", *verb, *([] if "copy" in verb else ["--store", str(root)])]

    def fresh() -> None:
        shutil.rmtree(root, ignore_errors=True)
        if tasks:
            shutil.copytree(good, root)

    fresh()
    strace.run(command)  # modules are compiled then, and later runs make the same calls
    fresh()
    old, before = (small.state(good), small.told(good)) if tasks else ((), {})
    points = strace.points(command, root, CALLS)
    new = small.state(root)
    rng = np.random.default_rng(0)
    points = [points[i] for i in rng.permutation(len(points))[:40]]
    failures, hit = [], 0
    for point in points:
        fresh()
        done = strace.injected(command, point, "signal=KILL")
        hit += done.returncode in (-signal.SIGKILL, 128 + signal.SIGKILL)
        try:
            if check(root, old, new, before) == old:
                assert strace.run(command).returncode == 0
            assert small.state(root) == new
            assert list((root / "tmp").iterdir()) == []
        except (AssertionError, ClmoeError) as error:
            failures.append((point, repr(error)))
    record_property("cases", len(points))
    record_property("killed", hit)
    record_property("failures", len(failures))
    assert failures == []
    assert hit > 0.9 * len(points)
