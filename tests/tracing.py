"""Real processes under strace: which system calls touch a store, and what happens when one of them goes wrong."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

CALLS = ("openat", "write", "fsync", "rename", "unlink", "flock")
"""Calls that change something or claim it, as the standard library makes them on Linux."""


@dataclass(frozen=True)
class Point:
    """The ``number``-th system call of its kind in the first thread, which does all the store's work."""

    call: str
    number: int


@dataclass(frozen=True)
class Strace:
    """Runs commands with one thread for arithmetic, watched or not."""

    path: str
    log: Path

    def run(self, command: list[str], *options: str) -> subprocess.CompletedProcess[str]:
        traced = [self.path, "-f", "-o", str(self.log), *options] if options else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.run(
            [*traced, *command], capture_output=True, text=True, check=False, timeout=120, env=environment
        )

    def points(self, command: list[str], root: Path, calls: Iterable[str]) -> list[Point]:
        """The calls that touch the folder in a run of the command, which must succeed."""
        # -y tells descriptors by their path; --seccomp-bpf is fast, but injects no signals.
        done = self.run(command, "--seccomp-bpf", "-y", "-e", f"trace={','.join(calls)}")
        assert done.returncode == 0, done.stderr
        lines = self.log.read_text().splitlines()
        main, found = lines[0].split()[0], []
        for call in calls:
            own = [line for line in lines if re.match(rf"{main} +{call}\(", line)]
            found += [Point(call, i + 1) for i, line in enumerate(own) if str(root) in line]
        assert found
        return found

    def injected(self, command: list[str], point: Point, what: str) -> subprocess.CompletedProcess[str]:
        """A run in which that call fails (``error=EIO``) or kills the process (``signal=KILL``)."""
        inject = f"inject={point.call}:{what}:when={point.number}"
        return self.run(command, "-y", "-e", f"trace={point.call}", "-e", inject)

    def hit(self, root: Path) -> bool:
        """Whether the call that failed in the last run was of the folder: what Python reads before is not always as
        many calls."""
        return any("(INJECTED)" in line and str(root) in line for line in self.log.read_text().splitlines())
