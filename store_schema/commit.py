"""Writing a store: a lock from before HEAD is read until it is replaced, immutable objects, one rename.

The rename of HEAD is the commit. Before it the old state stands whole, after it the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

from filelock import FileLock, Timeout

from store_schema import files, layout
from store_schema.errors import ClmoeError, DiskProblem, StoreDamaged, StoreLocked, StoreMissing, disk_errors
from store_schema.records import Manifest, ObjectRef
from store_schema.store import Store, check_format, committed, head_bytes, newest

RESERVE = 1 << 20
KEEP = 2


class Writer:
    """Holds the lock; ``store`` is the snapshot that the next commit builds on."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.root = store.root

    @property
    def manifest(self) -> Manifest:
        """The manifest of the current generation; generation 0 is a store without a commit."""
        return self.store.manifest

    def put(self, data: bytes, suffix: str) -> ObjectRef:
        """Makes an object durable; one that is there already is verified and reused."""
        ref = ObjectRef(sha256=hashlib.sha256(data).hexdigest(), size=len(data), suffix=suffix)  # type: ignore[arg-type]
        target = layout.object_path(self.root, ref.sha256, suffix)
        try:
            self.store.read_object(ref)
        except (StoreDamaged, DiskProblem):
            self._reserve(len(data))
            files.make_folder(target.parent)
            files.write_durably(self.root / layout.TMP, target, data)
        return ref

    def commit(self, manifest: Manifest, keep: int = KEEP) -> Manifest:
        """Makes ``manifest`` the next generation; generation, parent and time are set here.

        Afterwards all but the last ``keep`` generations are swept. Raises DiskProblem; the old state stands then.
        """
        generation = self.manifest.generation + 1
        update = {
            "generation": generation,
            "parent": json.loads(self.store.head)["sha256"],
            "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        # Parsed again: whatever is written has passed every check that reading makes.
        data = manifest.model_copy(update=update).to_bytes()
        path = layout.manifest_path(self.root, generation)
        manifest = Manifest.from_bytes(data, str(path))
        for ref in manifest.objects():
            self.store.read_object(ref)
        self._reserve(len(data))
        tmp = self.root / layout.TMP
        files.write_durably(tmp, path, data)
        new_head = head_bytes(manifest.generation, hashlib.sha256(data).hexdigest())
        files.write_durably(tmp, self.root / layout.HEAD, new_head)
        self.store = Store(self.root, manifest, new_head)
        self.collect(keep)
        return manifest

    def collect(self, keep: int = KEEP) -> None:
        """Deletes what the last ``keep`` generations do not need. Never fails a commit that is done."""
        try:
            self._collect(keep)
        except (ClmoeError, OSError):
            return

    def _collect(self, keep: int) -> None:
        needed: set[str] = set()
        for path in (self.root / layout.MANIFESTS).iterdir():
            generation = int(path.stem) if path.stem.isdecimal() else -1
            if not self.manifest.generation - keep < generation <= self.manifest.generation:
                files.remove(path)
                continue
            manifest = Manifest.from_bytes(files.read_regular(path, layout.MAX_MANIFEST), str(path))
            needed |= {f"{ref.sha256}.{ref.suffix}" for ref in manifest.objects()}
        for path in (self.root / layout.OBJECTS).glob("*/*"):
            if path.name not in needed:
                files.remove(path)

    def bytes_on_disk(self) -> int:
        """Size of all objects and manifests."""
        folders = (self.root / layout.OBJECTS, self.root / layout.MANIFESTS)
        return sum(p.stat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())

    def _reserve(self, size: int) -> None:
        with disk_errors(str(self.root)):
            free = shutil.disk_usage(self.root).free
        if free < size + RESERVE:
            raise DiskProblem(
                "no space left on device", where=str(self.root), found=f"{free} bytes free",
                expected=f"at least {size + RESERVE}", hint="free some space and run the command again",
            )  # fmt: skip


@contextmanager
def writer(
    path: str | Path,
    *,
    seed: int = 0,
    timeout: float | None = None,
    create: bool = False,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> Iterator[Writer]:
    """Locks a store for writing; the lock is held until the block ends.

    ``seed`` is that of a store which has no commit yet; ``timeout`` in seconds, None waits for ever; ``on_wait``
    is told once who holds the lock. Raises StoreMissing, StoreLocked, StoreDamaged, StoreIncompatible, DiskProblem.
    """
    root = Path(path)
    _prepare(root, create)
    with _locked(root, timeout, on_wait):
        if create and not (root / layout.FORMAT).exists():
            _found(root, seed)
        check_format(root)
        for stale in (root / layout.TMP).iterdir():
            files.remove(stale)
        store = newest(root)
        if store.manifest.generation == 0:
            if not create:
                raise StoreMissing(
                    "the store is empty", where=str(root), hint="clmoe learn puts the first task into it"
                )
            store = Store(root, store.manifest.model_copy(update={"seed": seed}), store.head)
        yield Writer(store)


def _prepare(root: Path, create: bool) -> None:
    """The folders of a store; nothing of it counts before FORMAT is there."""
    if (root / layout.FORMAT).exists() or not create:
        check_format(root)
    elif root.exists() and not root.is_dir():
        raise DiskProblem("not a folder", where=str(root), hint="choose another --store")
    elif root.exists() and not {p.name for p in root.iterdir()} <= layout.NAMES:
        hint = "choose another --store or an empty folder"
        raise StoreMissing("the folder is not empty and holds no store", where=str(root), hint=hint)
    if create:
        for name in (layout.TMP, layout.MANIFESTS, layout.OBJECTS, layout.CHECKPOINTS):
            files.make_folder(root / name)


def _found(root: Path, seed: int) -> None:
    """Founds a store: generation 0, HEAD, and FORMAT last, so that a HEAD that is missing later is damage."""
    if committed(root):
        check_format(root)
    data = Manifest(generation=0, parent=None, created_at="", seed=seed).to_bytes()
    tmp = root / layout.TMP
    files.write_durably(tmp, layout.manifest_path(root, 0), data)
    files.write_durably(tmp, root / layout.HEAD, head_bytes(0, hashlib.sha256(data).hexdigest()))
    files.write_durably(tmp, root / layout.FORMAT, f"{layout.FORMAT_VERSION}\n".encode())


@contextmanager
def _locked(root: Path, timeout: float | None, on_wait: Callable[[str], None]) -> Iterator[None]:
    path = root / layout.LOCK
    lock = FileLock(path, fallback_to_soft=False)
    with disk_errors(str(path)):
        path.touch(mode=0o664)  # by ourselves, so that it is never world-writable
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
        with disk_errors(str(path)):
            since = datetime.now(UTC).isoformat(timespec="seconds")
            command = " ".join(sys.argv[:2])[:200]
            path.write_text(f"process {os.getpid()} on {socket.gethostname()} ({command}) since {since}\n")
        yield
    finally:
        lock.release()


def _holder(path: Path) -> str:
    """Who holds the lock, in their own words."""
    try:
        return path.read_text(errors="replace").strip() or "another process"
    except OSError:
        return "another process"
