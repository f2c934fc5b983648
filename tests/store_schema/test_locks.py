from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock
from store_samples import Make, commit_task, names

from store_schema import (
    StoreLocked,
    StoreMissing,
    read_consistently,
    verify,
    writer,
)

HOLD = """
import sys
from store_schema import writer
with writer(sys.argv[1]):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_writers_exclude_each_other_and_a_killed_holder_frees_the_lock(make_store: Make) -> None:
    root = make_store("a")
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        waited: list[str] = []
        started = time.monotonic()
        with (
            pytest.raises(StoreLocked, match=f"process {holder.pid} "),
            writer(root, timeout=0.2, on_wait=waited.append),
        ):
            pass
        assert time.monotonic() - started >= 0.2
        assert len(waited) == 1
        assert names(root) == ["a"]
        holder.send_signal(signal.SIGKILL)
        holder.wait()
        with writer(root, timeout=5) as locked:
            commit_task(locked, "b", 1)
    finally:
        holder.kill()
        holder.communicate()
    assert names(root) == ["a", "b"]


WRITE = """
import sys
sys.path.insert(0, sys.argv[3])
from store_samples import commit_task
from store_schema import writer
for i in range(3):
    with writer(sys.argv[1], create=True) as locked:
        commit_task(locked, f"{sys.argv[2]}-{i}", i)
"""


@pytest.mark.campaign
def test_every_task_of_concurrent_writers_is_there(tmp_path: Path) -> None:
    root, here = tmp_path / "s", str(Path(__file__).parent.parent)
    writers = [subprocess.Popen([sys.executable, "-c", WRITE, str(root), str(w), here]) for w in range(4)]
    reads = 0
    while any(w.poll() is None for w in writers):
        try:
            count = read_consistently(root, lambda s: (len(s.read_expert("e1").owned), len(s.manifest.tasks)))
        except StoreMissing:
            continue
        assert count[0] == count[1]
        reads += 1
    assert [w.returncode for w in writers] == [0] * 4
    assert sorted(names(root)) == sorted(f"{w}-{i}" for w in range(4) for i in range(3))
    assert reads > 0
    assert verify(root) == []


def test_the_lock_is_one_file_for_ever(make_store: Make) -> None:
    root = make_store("a")
    before = (root / "lock").stat().st_ino
    with writer(root) as locked:
        commit_task(locked, "b", 1)
        assert f"process {os.getpid()} " in (root / "lock").read_text()
    assert (root / "lock").stat().st_ino == before


def test_a_lock_that_cannot_be_let_go_undoes_nothing(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_store("a")
    real = FileLock.release

    def failing(lock: FileLock) -> None:
        real(lock)
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr(FileLock, "release", failing)
        with writer(root) as locked:
            commit_task(locked, "b", 1)
    assert names(root) == ["a", "b"]
    with writer(root, timeout=0):
        pass
