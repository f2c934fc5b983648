"""Disks that are full, broken or read-only, met by the command line: exit 6 with one line, the old state intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import small_store as small
from store_samples import contents
from tracing import CALLS, Strace

from clmoe_cli.api import resuming
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from store_schema import Store, files, verify

NUMBERS = (errno.ENOSPC, errno.EIO, errno.EROFS, errno.EMFILE, errno.EACCES, errno.EDQUOT)
OVERRULED = {"unlink", "rmdir"}
"""Sweeping may fail: it is made up for by the next run."""


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small.build(tmp_path_factory.mktemp("disk") / "store", 2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("data") / "task.npz"
    batch = small.batch(3, 72)  # enough that nothing is warned of
    np.savez(path, x=batch.images, y=batch.labels)
    return str(path)


def verbs(data: str) -> dict[str, list[str]]:
    return {
        "learn": ["learn", "--quiet", "--data", data, "--arch", "mlp:8,8", "--epochs", "1"],
        "prune": ["prune", "--quiet", "--task", "task1", "--yes"],
    }


def failing_at(n: int, number: int, *, on: bool, short: bool) -> list[str]:
    """The n-th file operation of this process fails (``on``: all later ones too); ``short``: writes are short."""
    done: list[str] = []
    for name in small.OPERATIONS:
        real = getattr(files, name)

        def call(*args: Any, name: str = name, real: Callable[..., object] = real) -> object:
            done.append(name)
            if len(done) - 1 == n or (on and len(done) - 1 > n):
                if name == "write":
                    real(args[0], args[1][: len(args[1]) // 3])
                raise OSError(number, os.strerror(number))
            if short and name == "write":
                return real(args[0], args[1][: max(7, len(args[1]) // 5)])
            return real(*args)

        setattr(files, name, call)
    return done


@pytest.mark.parametrize("verb", ["learn", pytest.param("prune", marks=pytest.mark.campaign)])
def test_any_operation_may_fail(
    verb: str, good: Path, data: str, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    command, old = verbs(data)[verb], contents(good)
    before = Store.open(good).manifest.content_hash()
    failures, cases, n, ended = [], 0, 0, False
    while not ended:
        for number in (NUMBERS[n % 6], NUMBERS[(n + 3) % 6]) if whole else (NUMBERS[n % 6],):
            root, said = tmp_path / f"own{cases}", tmp_path / "said"
            shutil.copytree(good, root)
            on = bool((n + cases) % 2)

            def act(root: Path = root, said: Path = said, n: int = n, number: int = number, on: bool = on) -> int:
                done = failing_at(n, number, on=on, short=not on)
                sys.stderr = said.open("w")
                code = run(app, [*command, "--store", str(root)])
                sys.stderr.close()
                (tmp_path / "last").write_text(" ".join(done[: n + 1]) if len(done) > n else "")
                return code

            code, cases = small.in_child(act), cases + 1
            line, failed = said.read_text(), (tmp_path / "last").read_text().split()
            ended = ended or not failed
            now = Store.open(root).manifest.content_hash()
            wrong = []
            if code not in (0, 6) or (code == 6 and (line.count("\n") != 1 or os.strerror(number).lower() not in line)):
                wrong.append(f"exit {code}: {line}")
            if code == 0 and failed and failed[-1] not in OVERRULED:
                wrong.append(f"{failed[-1]} failed, and nobody said so")
            if code == 6 and "in place" not in line and (now != before or not old.items() <= contents(root).items()):
                wrong.append("the old state is gone")
            if [f for f in verify(root) if f.damage]:
                wrong.append("damage")
            if run(app, [*verbs(data)["learn"], "--name", "next", "--if-known", "new", "--store", str(root)]) != 0:
                wrong.append("the next run fails")
            if list((root / "tmp").iterdir()):
                wrong.append("left in tmp")
            failures += [f"{verb} {n} {errno.errorcode[number]} {failed[-1:]}: {w}" for w in wrong]
            shutil.rmtree(root)
        n += 1 if whole else 601
    record_property("cases", cases)
    record_property("failures", len(failures))
    assert failures == [], failures[:20]


@pytest.mark.campaign
@pytest.mark.parametrize("verb", ["learn", "prune", "predict", "inspect"])
def test_system_calls_that_fail(
    verb: str, good: Path, data: str, tmp_path: Path, record_property: pytest.RecordProperty, strace: Strace
) -> None:  # fmt: skip
    """Real processes, reads as well; what fails is whatever the command asks of the store's files."""
    root = tmp_path / "store"
    other = {"predict": ["predict", "--json", "--batch", data], "inspect": ["inspect", "--verify", "--json"]}
    command = [sys.executable, "-m", "clmoe_cli", *(verbs(data) | other)[verb], "--store", str(root)]
    shutil.copytree(good, root)
    points = strace.points(command, root, (*CALLS, "read"))
    rng = np.random.default_rng(0)
    points = [points[i] for i in rng.permutation(len(points))[:40]]
    before, old = Store.open(good).manifest.content_hash(), contents(good)
    failures, refused, cases = [], 0, 0
    for i, point in enumerate(points):
        shutil.rmtree(root)
        shutil.copytree(good, root)
        name = ("EIO", "ENOSPC", "EROFS", "EMFILE")[i % 4]
        done = strace.injected(command, point, f"error={name}")
        if not strace.hit(root):
            continue
        cases += 1
        refused += done.returncode in (4, 6)
        wrong = []
        if done.returncode not in (0, 4, 6):
            wrong.append("exit code")
        if done.returncode and (done.stderr.count("\n") != 1 or done.stdout):
            wrong.append("not one line")
        if (
            done.returncode
            and "in place" not in done.stderr
            and (Store.open(root).manifest.content_hash() != before or not old.items() <= contents(root).items())
        ):
            wrong.append("the old state is gone")
        if [f for f in verify(root) if f.damage]:
            wrong.append("damage")
        following = [*verbs(data)["learn"], "--name", "next", "--if-known", "new"]
        if strace.run([*command[:3], *following, *command[-2:]]).returncode:
            wrong.append("the next run fails")
        if list((root / "tmp").iterdir()):
            wrong.append("left in tmp")
        failures += [f"{verb} {point} {name}: {w}: {done.returncode} {done.stderr[-300:]}" for w in wrong]
    record_property("cases", cases)
    record_property("refused", refused)
    record_property("failures", len(failures))
    assert not failures, "\n".join(failures)
    assert cases > len(points) // 2
    assert refused > cases // 4


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 3 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode != 0:
        pytest.skip("may not mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def spawn(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "clmoe_cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.campaign
def test_a_disk_that_is_really_full_and_one_that_is_read_only(good: Path, data: str, tiny_disk: Path) -> None:
    root = Path(shutil.copytree(good, tiny_disk / "store"))
    before = contents(root)
    filler = tiny_disk / "filler"
    with filler.open("wb", buffering=0) as file:
        while shutil.disk_usage(tiny_disk).free:
            file.write(bytes(4096))
    done = spawn(*verbs(data)["learn"], "--store", str(root))
    assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
    assert "no space left" in done.stderr
    assert contents(root) == before
    filler.unlink()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    for verb in verbs(data).values():
        done = spawn(*verb, "--store", str(root))
        assert (done.returncode, done.stderr.count("\n")) == (6, 1), done.stderr
        assert "read-only" in done.stderr
    assert spawn("inspect", "--verify", "--json", "--store", str(root)).returncode == 0
    assert spawn("predict", "--json", "--batch", data, "--store", str(root)).returncode == 0
    assert contents(root) == before
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    assert spawn(*verbs(data)["learn"], "--store", str(root)).returncode == 0
    assert list((root / "tmp").iterdir()) == []
