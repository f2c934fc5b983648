"""The lock of a store: a kernel lock on a file that stays, with the holder's name in it."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from store_schema import files, layout
from store_schema.errors import StoreDamaged, StoreLocked, disk_errors


@contextmanager
def locked(root: Path, timeout: float | None, on_wait: Callable[[str], None]) -> Iterator[None]:
    """Holds a store's lock; a killed holder's lock is free at once.

    ``timeout`` in seconds, None waits for ever; ``on_wait`` is told once who holds it. Raises StoreLocked naming
    the holder, StoreDamaged when the lock file is something else, DiskProblem.
    """
    # Only writers need it, and it is not light.
    from filelock import FileLock, Timeout

    path = root / layout.LOCK
    lock = FileLock(path, fallback_to_soft=False)
    with disk_errors(str(path)):
        if path.is_symlink() or (path.exists() and not path.is_file()):
            raise StoreDamaged("not a regular file", where=str(path), expected="a regular file")
        files.touch(path)  # by ourselves, so that it is never world-writable
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait(_holder(path))
            try:
                lock.acquire(timeout=-1 if timeout is None else timeout, poll_interval=0.05)
            except Timeout as error:
                raise StoreLocked(
                    "the store is locked by another writer", where=str(path), found=_holder(path),
                    expected=f"a free lock within {timeout:g} s", hint="wait for it, or raise --lock-timeout",
                ) from error  # fmt: skip
    try:
        since = datetime.now(UTC).isoformat(timespec="seconds")
        command = " ".join(sys.argv[:2])[:200]
        with disk_errors(str(path)):
            files.overwrite(path, f"process {os.getpid()} on {socket.gethostname()} ({command}) since {since}\n")
        yield
    finally:
        # What was done is done: a lock that cannot be let go ends with the process.
        with suppress(OSError):
            lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, in their own words."""
    try:
        return path.read_text(errors="replace")[:500].strip() or "another process"
    except OSError:
        return "another process"
