"""Writing a store: a lock from before HEAD is read until it is replaced, immutable objects, one rename.

The rename of HEAD is the commit. Before it the old state stands whole, after it the new one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

from store_schema import files, layout, objects
from store_schema.errors import ClmoeError, DiskProblem, StoreDamaged, StoreMissing, disk_errors
from store_schema.locking import locked
from store_schema.records import Manifest, ObjectRef, Suffix
from store_schema.store import (
    Store,
    check_format,
    check_local,
    check_place,
    committed,
    head_bytes,
    newest,
    without_task,
)

KEEP = 2
FOLDERS = (layout.TMP, layout.MANIFESTS, layout.OBJECTS, layout.CHECKPOINTS)
NOT_HELD = "another process holds the lock of this store"


class Writer:
    """Makes the next generation of a store; ``store`` is the snapshot that it builds on.

    Whoever has one holds the lock: :func:`writer` takes it. Processes without the lock have a :class:`Follower`.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self.root = store.root
        self.swept = True
        """Whether the last collection left nothing behind that it should have deleted."""

    @property
    def manifest(self) -> Manifest:
        """The manifest of the current generation; generation 0 is a store without a commit."""
        return self.store.manifest

    def put(self, data: bytes, suffix: Suffix) -> ObjectRef:
        """Makes an object durable; one that is there already is verified and reused. Raises DiskProblem."""
        return objects.put(self.root, data, suffix)

    def commit(self, manifest: Manifest, keep: int = KEEP) -> Manifest:
        """Makes ``manifest`` the next generation; generation, parent and times are set here.

        Afterwards all but the last ``keep`` generations are swept. Raises StoreDamaged when an object is not
        there, and DiskProblem; the old state stands then, unless the message says otherwise.
        """
        generation, now = self.manifest.generation + 1, datetime.now(UTC).isoformat(timespec="seconds")
        history = [e.model_copy(update={"at": now}) if e.generation == generation else e for e in manifest.history]
        update = {
            "generation": generation,
            "parent": json.loads(self.store.head)["sha256"],
            "created_at": now,
            "history": tuple(history),
        }
        # Parsed again: whatever is written has passed every check that reading makes.
        data = manifest.model_copy(update=update).to_bytes()
        path = layout.manifest_path(self.root, generation)
        manifest = Manifest.from_bytes(data, str(path))
        for ref in manifest.objects():
            objects.get(self.root, ref)
        objects.reserve(self.root, len(data))
        files.write_durably(self.root / layout.TMP, path, data)
        write_format(self.root)  # before HEAD: an older version must not meet a manifest that it cannot read
        self._replace_head(
            Store(self.root, manifest, head_bytes(generation, hashlib.sha256(data).hexdigest(), manifest.repair_floor))
        )
        self.collect(keep)
        return manifest

    def _replace_head(self, new: Store) -> None:
        path = self.root / layout.HEAD
        try:
            files.write_durably(self.root / layout.TMP, path, new.head)
        except DiskProblem as error:
            # Only the last fsync failed if the new HEAD is there: then this writer builds on it from now on.
            with suppress(ClmoeError):
                if files.read_regular(path, layout.MAX_HEAD) == new.head:
                    self.store = new
                    error.hint = "the commit is in place, but a power cut may undo it: see clmoe inspect --verify"
            raise
        self.store = new

    def collect(self, keep: int = KEEP) -> bool:
        """Deletes what the last ``keep`` generations do not need; tells whether all of it is gone.

        Files that are not named like the store's own are left alone. Never fails a commit that is done.
        """
        try:
            self.swept = self._collect(keep)
        except (ClmoeError, OSError):
            self.swept = False
        return self.swept

    def _collect(self, keep: int) -> bool:
        needed: set[str] = set()
        gone = True
        for path, generation in layout.manifests(self.root):
            if not self.manifest.generation - keep < generation <= self.manifest.generation:
                gone &= files.remove(path)
                continue
            manifest = Manifest.from_bytes(files.read_regular(path, layout.MAX_MANIFEST), str(path))
            needed |= {f"{ref.sha256}.{ref.suffix}" for ref in manifest.objects()}
        for path in objects.present(self.root):
            if path.name not in needed:
                gone &= files.remove(path)
        return gone

    def bytes_on_disk(self) -> int:
        """Size of all objects and manifests."""
        folders = (self.root / layout.OBJECTS, self.root / layout.MANIFESTS)
        with disk_errors(str(self.root)):
            return sum(p.lstat().st_size for folder in folders for p in folder.rglob("*") if p.is_file())


class Follower(Writer):
    """What a process has of a store that another one holds the lock of: the snapshot; whatever would write is refused.

    Its methods raise RuntimeError, since only a mistake in the program calls them.
    """

    def put(self, data: bytes, suffix: Suffix) -> ObjectRef:
        """Refused."""
        raise RuntimeError(NOT_HELD)

    def commit(self, manifest: Manifest, keep: int = KEEP) -> Manifest:
        """Refused."""
        raise RuntimeError(NOT_HELD)

    def collect(self, keep: int = KEEP) -> bool:
        """Refused."""
        raise RuntimeError(NOT_HELD)


@contextmanager
def writer(
    path: str | Path,
    *,
    seed: int = 0,
    timeout: float | None = None,
    create: bool = False,
    on_wait: Callable[[str], None] = lambda holder: None,
    known: Store | None = None,
) -> Iterator[Writer]:
    """Locks a store for writing; the lock is held until the block ends.

    ``seed`` is that of a store which has no commit yet; ``timeout`` in seconds, None waits for ever; ``on_wait``
    is told once who holds the lock. ``known``: a snapshot that was read without the lock, and is not read again unless
    the store has changed. Raises StoreMissing, StoreLocked, StoreDamaged, StoreIncompatible, DiskProblem.
    """
    check_local(path)
    root = Path(path)
    _check_place(root, create)
    if create:
        files.make_folder(root)
    with locked(root, timeout, on_wait):
        make_folders(root)  # copies of a store may lack the empty ones
        if create and not (root / layout.FORMAT).exists():
            _found(root, seed)
        check_format(root)
        with disk_errors(str(root / layout.TMP)):
            for stale in (root / layout.TMP).iterdir():
                files.remove(stale)
        store = newest(root, known)
        if store.manifest.generation == 0:
            if not create:
                raise without_task(root)
            store = Store(root, store.manifest.model_copy(update={"seed": seed}), store.head)
        yield Writer(store)


def unwritten(path: str | Path, *, seed: int = 0) -> Store:
    """What the first commit would build on where :meth:`Store.open` finds nothing; nothing is made there.

    Raises StoreMissing and DiskProblem where :func:`writer` could not create a store, StoreDamaged.
    """
    root = Path(path)
    _check_place(root, create=True)
    if committed(root):
        check_format(root)
    return Store(root, _empty(seed), b"")


def _empty(seed: int) -> Manifest:
    return Manifest(generation=0, parent=None, created_at="", seed=seed)


def _check_place(root: Path, create: bool) -> None:
    """What must hold before the lock can be taken; nothing of a store counts before FORMAT is there."""
    with disk_errors(str(root)):
        if (root / layout.FORMAT).exists() or not create:
            check_format(root)
            return
        check_place(root)
        above = next((path for path in root.resolve().parents if (path / layout.FORMAT).is_file()), None)
        if above is not None and committed(above):
            hint = "name another folder for the store"
            raise StoreMissing(
                "a store cannot lie in another one", where=str(root), found=f"the store {above}", hint=hint
            )
        if root.exists() and not {p.name for p in root.iterdir()} <= layout.NAMES:
            hint = "name another folder for the store, or an empty one"
            raise StoreMissing("the folder is not empty and holds no store", where=str(root), hint=hint)


def make_folders(root: Path) -> None:
    """The folders of a store; a link in their place would have us sweep somebody else's files."""
    for name in FOLDERS:
        path = root / name
        if path.is_symlink() or (path.exists() and not path.is_dir()):
            raise StoreDamaged("not a folder of the store", where=str(path), expected="a folder, and no link to one")
        files.make_folder(path)


def _found(root: Path, seed: int) -> None:
    """Founds a store: generation 0, HEAD, and FORMAT last, so that a HEAD that is missing later is damage."""
    if committed(root):
        check_format(root)
    data = _empty(seed).to_bytes()
    tmp = root / layout.TMP
    files.write_durably(tmp, layout.manifest_path(root, 0), data)
    files.write_durably(tmp, root / layout.HEAD, head_bytes(0, hashlib.sha256(data).hexdigest(), 0))
    write_format(root)


def write_format(root: Path) -> None:
    """Writes FORMAT, unless it is there and right."""
    data = f"{layout.FORMAT_VERSION}\n".encode()
    with suppress(ClmoeError):
        if files.read_regular(root / layout.FORMAT, 64) == data:
            return
    files.write_durably(root / layout.TMP, root / layout.FORMAT, data)
