from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import some
from store_samples import Make, commit_task, contents, names, snapshot

from store_schema import (
    DiskProblem,
    StoreMissing,
    files,
    verify,
    writer,
)

OPERATIONS = ("create", "write", "sync", "rename", "unlink", "rmdir", "mkdir", "sync_folder", "touch", "overwrite")


def failing_after(
    monkeypatch: pytest.MonkeyPatch, n: int, error: BaseException, *, once: bool = False, torn: bool = False
) -> list[str]:
    """Lets n file operations through, then raises at every further one (or at the next only).

    ``torn``: a write that fails leaves half of its bytes.
    """
    done: list[str] = []
    for name in OPERATIONS:
        real = getattr(files, name)

        def call(*args: object, name: str = name, real: Callable[..., object] = real) -> object:
            if len(done) == n if once else len(done) >= n:
                if once:
                    done.append(name)
                if torn and name == "write":
                    real(args[0], args[1][: len(args[1]) // 2])  # type: ignore[index, arg-type]
                raise error
            done.append(name)
            return real(*args)

        monkeypatch.setattr(files, name, call)
    return done


NUMBERS = ((errno.ENOSPC, errno.EROFS), (errno.EIO, errno.EACCES))


class Killed(BaseException):
    pass


@pytest.mark.parametrize(
    ("first", "torn"),
    [
        pytest.param(True, False, id="first commit-before a write", marks=pytest.mark.campaign),
        pytest.param(True, True, id="first commit-amid a write"),
        pytest.param(False, False, id="later commit-before a write", marks=pytest.mark.campaign),
        pytest.param(False, True, id="later commit-amid a write"),
    ],
)
def test_a_commit_cut_off_anywhere_leaves_the_old_state_or_the_new(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: bool, torn: bool
) -> None:
    seen, ran = set(), set()
    good = tmp_path / "good"
    for i in range(0 if first else 2):  # two, so that the commit has something to sweep
        with writer(good, create=True) as locked:
            commit_task(locked, f"a{i}", i)
    with monkeypatch.context() as patch:
        steps = failing_after(patch, 200, Killed())
        trial = tmp_path / "trial"
        if not first:
            shutil.copytree(good, trial)
        with writer(trial, create=True) as locked:
            commit_task(locked, "b", 9)
        ran |= set(steps)
    # Only a write is cut off amid itself; the last goes through.
    for n in [n for n, name in enumerate(steps) if name == "write" or not torn] + [len(steps)]:
        root = tmp_path / f"s{n}"
        if not first:
            shutil.copytree(good, root)
        old = [] if first else names(root)
        with monkeypatch.context() as patch:
            failing_after(patch, n, Killed(), torn=torn)
            try:
                with writer(root, create=True) as locked:
                    commit_task(locked, "b", 9)
                finished = True
            except Killed:
                finished = False
            assert finished == (n == len(steps))
        try:
            now = names(root)
        except StoreMissing:
            now = []
        assert now in (old, [*old, "b"])
        seen.add(len(now))
        if now:
            assert [f for f in verify(root) if f.damage] == []
        with writer(root, create=True) as locked:
            if "b" not in now:
                commit_task(locked, "b", 9)
            commit_task(locked, "c", 10)
        assert names(root) == [*old, "b", "c"]
        assert list((root / "tmp").iterdir()) == []
        assert verify(root) == []
    assert seen == {len(old), len(old) + 1}
    assert ran >= set(OPERATIONS) - ({"unlink", "rmdir"} if first else {"rmdir"})


@pytest.mark.parametrize("numbers", some(NUMBERS, NUMBERS[0]))
def test_any_operation_that_fails_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, numbers: tuple[int, int]
) -> None:
    finished, said = 0, set()
    good = tmp_path / "good"
    for i in range(2):
        with writer(good, create=True) as locked:
            commit_task(locked, f"a{i}", i)
    for n in range(200):
        root, number = tmp_path / f"s{n}", numbers[n % 2]
        shutil.copytree(good, root)
        with monkeypatch.context() as patch:
            error = OSError(number, os.strerror(number))
            done = failing_after(patch, n, error, once=True)
            problem = None
            try:
                with writer(root) as locked:
                    commit_task(locked, "b", 9)
                finished += 1
            except DiskProblem as caught:
                problem = str(caught)
        if problem is not None:
            assert os.strerror(number).lower() in problem
            assert str(root) in problem
            assert "\n" not in problem
            said.add(names(root) == ["a0", "a1"])
            # Only the very last fsync fails after the commit, and says so.
            assert ("in place" in problem) == (names(root) != ["a0", "a1"])
        assert names(root) in (["a0", "a1"], ["a0", "a1", "b"])
        assert [f for f in verify(root) if f.damage] == []
        with writer(root) as locked:
            commit_task(locked, "c", 10)
        assert names(root)[-1] == "c"
        assert verify(root) == []
        if len(done) <= n:
            break
    assert said == {True, False}
    assert finished >= 2  # sweeping afterwards never fails a commit


def test_a_commit_makes_everything_durable_before_head_names_it(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is synced before it gets its name and its folder after, and HEAD is the last that gets one."""
    root = make_store("a")
    opened: dict[int, Path] = {}
    done: list[tuple[str, Path]] = []
    create, sync, rename, sync_folder = files.create, files.sync, files.rename, files.sync_folder

    def created(path: Path) -> int:
        fd = create(path)
        opened[fd] = path
        return fd

    def synced(fd: int) -> None:
        done.append(("sync", opened[fd]))
        sync(fd)

    def renamed(source: Path, target: Path) -> None:
        assert done[-1] == ("sync", source), target
        done.append(("rename", target))
        rename(source, target)

    def folder_synced(path: Path) -> None:
        done.append(("sync folder", path))
        sync_folder(path)

    steps = {"create": created, "sync": synced, "rename": renamed, "sync_folder": folder_synced}
    for name, step in steps.items():
        monkeypatch.setattr(files, name, step)
    with writer(root) as locked:
        commit_task(locked, "b", 1)
    named = [path for what, path in done if what == "rename"]
    for i, (what, path) in enumerate(done):
        assert what != "rename" or done[i + 1] == ("sync folder", path.parent), path
    assert [path.suffix for path in named[:-2]] == [".safetensors", ".h5", ".safetensors"]
    assert named[-2:] == [root / "manifests" / "2.json", root / "HEAD"]


def test_a_writer_goes_on_from_a_head_whose_last_fsync_failed(
    make_store: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_store("a")
    real = files.sync_folder

    def fail(path: Path) -> None:
        if path == root:
            raise OSError(5, "Input/output error", str(path))
        real(path)

    with writer(root) as locked:
        with monkeypatch.context() as patch:
            patch.setattr(files, "sync_folder", fail)
            with pytest.raises(DiskProblem, match="in place"):
                commit_task(locked, "b", 1)
        commit_task(locked, "c", 2)
    assert names(root) == ["a", "b", "c"]
    assert verify(root) == []


def test_too_little_space_is_said_before_anything_is_written(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_store("a")
    before = contents(root)
    usage = shutil.disk_usage(root)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with writer(root) as locked, pytest.raises(DiskProblem, match="free some space"):
        commit_task(locked, "b", 1)
    assert contents(root) == before


def test_what_could_not_be_swept_is_told(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    root = make_store("a", "b")
    with writer(root) as locked:
        with monkeypatch.context() as patch:
            patch.setattr(files, "unlink", lambda path: (_ for _ in ()).throw(PermissionError(13, "no", str(path))))
            assert not locked.collect(keep=1)
            assert not locked.swept
        assert locked.collect(keep=1)
        assert locked.swept


@pytest.mark.parametrize("number", [28, 5, 30, 13, 24], ids=["ENOSPC", "EIO", "EROFS", "EACCES", "EMFILE"])
@pytest.mark.parametrize("call", ["open", "write", "fsync"])
def test_errors_of_the_disk_are_said_in_one_line_and_lose_nothing(
    make_store: Make, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    root = make_store("a")
    before = snapshot(root)
    real = getattr(os, call)

    def fail(*args: object, **kwargs: object) -> object:
        writes = call != "open" or (len(args) > 1 and int(args[1]) & os.O_EXCL and "tmp" in str(args[0]))  # type: ignore[call-overload]
        if writes:
            raise OSError(number, os.strerror(number), str(root))
        return real(*args, **kwargs)

    with writer(root) as locked:
        monkeypatch.setattr(os, call, fail)
        try:
            with pytest.raises(DiskProblem) as caught:
                commit_task(locked, "b", 1)
        finally:
            monkeypatch.undo()
    assert "\n" not in str(caught.value)
    assert names(root) == ["a"]
    after = snapshot(root)
    assert all(after[k] == v for k, v in before.items() if k != "lock")


def test_short_writes_are_completed(make_store: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, data[:7]))
    root = make_store("a")
    monkeypatch.undo()
    assert verify(root) == []


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664), (0, 0o664)])
def test_modes_follow_the_umask_and_are_never_world_writable(make_store: Make, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        root = make_store("a")
    finally:
        os.umask(before)
    found = {p.stat().st_mode & 0o777 for p in root.rglob("*") if p.is_file() and p.name != "lock"}
    assert found == {mode}
    folders = {p.stat().st_mode & 0o777 for p in (root, *root.rglob("*")) if p.is_dir()}
    assert folders == {0o775 & ~umask}
    assert not (root / "lock").stat().st_mode & 0o002
