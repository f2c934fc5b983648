"""Power cuts: every prefix of the store's file operations, with what was not fsynced lost, torn or out of order.

A recorder notes the operations of real commits. A model of a file system that keeps no more than POSIX promises replays
them: the bytes of a file are sure after its fsync, a name in a folder after the folder's. What is not sure is kept or
lost by chance, each by itself.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import pytest
import small_store as small
from campaigns import some

from clmoe_cli.api import resuming
from store_schema import ClmoeError, files, verify


@dataclass
class Recorder:
    """The operations of :mod:`store_schema.files`, in order, with paths below ``root``."""

    root: Path
    steps: list[tuple[str, str, object]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.open: dict[int, str] = {}

    def name(self, path: Path) -> str:
        return os.path.relpath(path, self.root)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in small.OPERATIONS:
            real = getattr(files, name)

            def call(*args: Any, name: str = name, real: Callable[..., object] = real) -> object:
                result = real(*args)
                self.note(name, args, result)
                return result

            patch.setattr(files, name, call)

    def note(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        first = args[0]
        if isinstance(first, Path):
            if name == "create":
                assert isinstance(result, int)
                self.open[result] = self.name(first)
            more: object = self.name(args[1]) if name == "rename" and isinstance(args[1], Path) else args[1:]
            self.steps.append((name, self.name(first), more))
        else:
            assert isinstance(first, int)
            data = bytes(args[1][:result]) if name == "write" else b""
            self.steps.append((name, self.open[first], data))


def replay(base: Path, steps: list[tuple[str, str, object]], target: Path, rng: np.random.Generator) -> None:
    """The folder as a power cut after these steps may leave it."""
    shutil.copytree(base, target) if base.exists() else target.mkdir()
    content: dict[int, bytearray] = {}
    sure: dict[int, bytes] = {}
    names: dict[str, int] = {}
    loose: list[tuple[str, str, int]] = []
    """Changes of names since the fsync of their folder: put, take or make; name; file."""

    def settle(folder: str) -> None:
        for change in [c for c in loose if str(PurePath(c[1]).parent) == folder]:
            apply(change)
            loose.remove(change)

    def apply(change: tuple[str, str, int]) -> None:
        kind, name, file = change
        path = target / name
        if kind == "make":
            path.mkdir(exist_ok=True)
        elif not path.parent.is_dir():
            return  # its folder did not survive
        elif kind == "take":
            path.rmdir() if path.is_dir() else path.unlink(missing_ok=True)
        elif kind == "put":
            path.write_bytes(durable(file))

    def durable(file: int) -> bytes:
        done, now = sure.get(file), bytes(content[file])
        if done == now:
            return now
        # Not fsynced: any part of it may be there, or zeros in its place.
        cut = int(rng.integers(len(now) + 1))
        return [now, now[:cut], now[:cut] + bytes(len(now) - cut), b""][int(rng.integers(4))]

    for number, (name, path, more) in enumerate(steps):
        if name == "create":
            content[number] = bytearray()
            names[path] = number
            loose.append(("put", path, number))
        elif name == "write":
            assert isinstance(more, bytes)
            content[names[path]] += more
        elif name == "sync":
            sure[names[path]] = bytes(content[names[path]])
        elif name == "rename":
            assert isinstance(more, str)
            names[more] = names.pop(path)
            loose += [("put", more, names[more]), ("take", path, 0)]
        elif name in ("unlink", "rmdir"):
            loose.append(("take", path, 0))
        elif name == "mkdir":
            loose.append(("make", path, 0))
        elif name == "sync_folder":
            settle(path)
    # In any order and any part of it: a file system may write names in whatever order it likes.
    for i in rng.permutation(len(loose)) if rng.random() < 0.5 else range(len(loose)):
        if rng.random() < 0.5:
            change = loose[i]
            if change[0] == "take" and (target / change[1]).is_dir() and any((target / change[1]).iterdir()):
                continue
            apply(change)


def recorded(name: str, folder: Path) -> tuple[Path, Path, list[tuple[str, str, object]]]:
    """The store before, the store after, and the steps between."""
    tasks, act = small.COMMANDS[name]
    before, after = folder / "before", folder / "after"
    if tasks:
        small.build(before, tasks)
        shutil.copytree(before, after)
    small.learned(3)  # which a copy reads: learned now, its steps are not among those that are recorded
    recorder = Recorder(after)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resuming, "PAUSE", 0.0)
        recorder.install(patch)
        act(after)
    return before, after, recorder.steps


def problems(
    before: Path,
    after: Path,
    steps: list[tuple[str, str, object]],
    folder: Path,
    draws: int,
    *,
    apart: int = 1,
    one: bool = False,
) -> tuple[int, list[str], set[tuple[str, ...]]]:
    """Cases tried, what went wrong, and the states that were seen; ``one`` problem may be enough.

    The cuts are so many steps ``apart``, and one is after the last step.
    """
    allowed = {small.state(folder): small.told(folder) for folder in (before, after)}
    seen, wrong, cases = set(), [], 0
    for n in [*range(0, len(steps), apart), len(steps)]:
        for draw in range(draws):
            root = folder / f"own{cases}"
            replay(before, steps[:n], root, np.random.default_rng([n, draw]))
            cases += 1
            try:
                now = small.state(root)
                damage = [f.file for f in verify(root) if f.damage] if now else []
                # A checkpoint that did not survive is put aside by the next learn; nothing depends on it.
                damage = [f for f in damage if "checkpoints" not in f]
                if now not in allowed or damage:
                    wrong.append(f"step {n}, draw {draw}: {now} {damage}")
                elif small.told(root) != allowed[now]:
                    wrong.append(f"step {n}, draw {draw}: other answers")
                seen.add(now)
            except ClmoeError as error:
                wrong.append(f"step {n}, draw {draw}: {error}")
            shutil.rmtree(root)
            if one and wrong:
                return cases, wrong, seen
    return cases, wrong, seen


@pytest.mark.parametrize("name", some(small.COMMANDS, *small.FEW))
def test_a_power_cut_leaves_the_old_state_or_the_new(
    name: str, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty
) -> None:
    before, after, steps = recorded(name, tmp_path)
    assert {"write", "sync", "rename", "sync_folder"} <= {step[0] for step in steps}
    cases, wrong, seen = problems(before, after, steps, tmp_path, 40 if whole else 1, apart=1 if whole else 4)
    record_property("cases", cases)
    record_property("failures", len(wrong))
    assert wrong == []
    assert seen == {small.state(before), small.state(after)}


@pytest.mark.campaign
@pytest.mark.parametrize("dropped", ["sync", "sync_folder"])
def test_a_missing_fsync_would_be_found(dropped: str, tmp_path: Path) -> None:
    """The campaign can fail: without one kind of fsync it does."""
    before, after, steps = recorded("later learn", tmp_path)
    assert problems(before, after, [s for s in steps if s[0] != dropped], tmp_path, 2, one=True)[1] != []
