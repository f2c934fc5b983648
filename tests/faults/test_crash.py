"""``learn`` and ``prune`` killed at each of their steps on the disk, and at their system calls with strace."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import small_store as small

from clmoe_cli.commands import resuming
from store_schema import ClmoeError, Store, StoreMissing, verify

Act = Callable[[Path], None]

COMMANDS: dict[str, tuple[int, Act]] = {
    "first learn": (0, lambda root: small.learn_next(root, 1)),
    "later learn": (2, lambda root: small.learn_next(root, 3)),
    "prune": (3, small.prune_second),
}


def state(root: Path) -> tuple[str, ...]:
    """Content hash and tasks, or nothing for a store that has none yet."""
    try:
        manifest = Store.open(root).manifest
    except StoreMissing:
        return ()
    return (manifest.content_hash(), *(t.name for t in manifest.tasks))


def told(root: Path) -> dict[str, list[bytes]]:
    """What each task answers by itself."""
    return {name: small.answers(root, name) for name in state(root)[1:]}


def check(root: Path, old: tuple[str, ...], new: tuple[str, ...], before: dict[str, list[bytes]]) -> tuple[str, ...]:
    """After a crash: the old state or the new one, whole, and every task answers as before."""
    now = state(root)
    assert now in (old, new)
    if now:
        assert [f for f in verify(root) if f.damage] == []
    for name, answer in told(root).items():
        assert answer == before.get(name, answer), name
    return now


@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_file_operation(
    name: str, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks, act = COMMANDS[name]
    monkeypatch.setattr(resuming, "PAUSE", 0.0)  # checkpoints are steps as well
    good = small.build(tmp_path / "good", tasks)
    reference = tmp_path / "reference"
    if tasks:
        shutil.copytree(good, reference)
    old = state(good) if tasks else ()
    before = told(good) if tasks else {}
    act(reference)
    new = state(reference)
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
                assert state(root) == new
                assert list((root / "tmp").iterdir()) == []
                assert [f for f in verify(root) if f.damage] == []
            except (AssertionError, ClmoeError) as error:
                failures.append((n, torn, repr(error)))
            shutil.rmtree(root)
        n += 1 if whole else 7
    record_property("cases", cases)
    record_property("failures", len(failures))
    assert failures == []
    assert cases > (n if whole else 4)
    if whole:
        assert seen == {old, new}


CALLS = {
    "openat": "openat", "write": "write", "fsync": "fsync", "rename": "rename,renameat,renameat2",
    "unlink": "unlink,unlinkat", "flock": "flock",
}  # fmt: skip


def clmoe(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "clmoe_cli", *arguments]


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not here, or may not trace")
    return found


@pytest.mark.parametrize("name", ["later learn", "prune"])
def test_killed_at_system_calls(
    name: str, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty, strace: str
) -> None:
    """Real processes; calls are counted on a run that is only watched, among those that touch the store."""
    tasks = COMMANDS[name][0]
    good = small.build(tmp_path / "good", tasks)
    data = small.batch(3)
    np.savez(tmp_path / "task.npz", x=data.images, y=data.labels)
    verbs = {
        "later learn": ["learn", "--data", str(tmp_path / "task.npz"), "--arch", "mlp:8,8", "--epochs", "1"],
        "prune": ["prune", "--task", "task2", "--yes"],
    }
    log = tmp_path / "log"

    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(root: Path, *options: str) -> int:
        traced = [strace, "-f", "-o", str(log), *options] if options else []
        command = [*traced, *clmoe(*verbs[name], "--store", str(root))]
        return subprocess.run(command, capture_output=True, check=False, timeout=120, env=environment).returncode

    reference = shutil.copytree(good, tmp_path / "store")
    old, before = state(good), told(good)
    # -y tells descriptors by their path; --seccomp-bpf is fast, but injects no signals.
    # strace counts each thread for itself: the first one writes the store.
    assert run(reference, "--seccomp-bpf", "-y", "-e", f"trace={','.join(CALLS.values())}") == 0
    new = state(reference)
    everything = log.read_text().splitlines()
    main = everything[0].split()[0]
    points = []
    for call, names in CALLS.items():
        pattern = re.compile(rf"^{main} +({names.replace(',', '|')})\(")
        own = [line for line in everything if pattern.match(line)]
        found = [(names, i + 1) for i, line in enumerate(own) if str(reference) in line]
        assert found, call
        points += found
    rng = np.random.default_rng(0)
    chosen = rng.permutation(len(points))[: 40 if whole else 1]
    failures, hit = [], 0
    for i in chosen:
        names, count = points[i]
        shutil.rmtree(reference)
        shutil.copytree(good, reference)
        status = run(reference, "-e", f"trace={names}", "-e", f"inject={names}:signal=KILL:when={count}")
        hit += status in (-signal.SIGKILL, 128 + signal.SIGKILL)
        try:
            if check(reference, old, new, before) == old:
                assert run(reference) == 0
            assert state(reference) == new
            assert list((reference / "tmp").iterdir()) == []
        except (AssertionError, ClmoeError) as error:
            failures.append((names, count, repr(error)))
    record_property("cases", len(chosen))
    record_property("failures", len(failures))
    assert failures == []
    assert hit >= len(chosen) // 2, "hardly any was killed"
