"""Going back to the newest generation that verifies whole, and saying what is lost by that; never across a prune."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from store_schema import checkpoints, files, layout
from store_schema.commit import Writer, make_folders, write_format
from store_schema.errors import ClmoeError, DiskProblem, StoreDamaged, StoreIncompatible
from store_schema.locking import locked
from store_schema.records import Manifest
from store_schema.store import Store, check_format, head_bytes, parse_head
from store_schema.verification import Finding, check_contents, verify

ALIKE = 40
"""Equal digits, of 64, of hashes that were once the same; of two that never were it is four, and 40 never happens."""


@dataclass(frozen=True)
class Repaired:
    """``generation``: the one that stands now; ``found``: what was damaged; ``lost``: tasks (or generations whose
    manifest cannot be read) that are gone; all empty when nothing had to be done."""

    generation: int
    found: tuple[str, ...]
    lost: tuple[str, ...]


def repair(
    path: str | Path, *, timeout: float | None = None, on_wait: Callable[[str], None] = lambda holder: None
) -> Repaired:
    """Makes a damaged store whole again: the newest generation of which every file verifies becomes HEAD.

    Damaged files that it does not need are deleted. Raises StoreDamaged, and changes nothing, when no generation since
    the last prune is whole; StoreMissing, StoreLocked, DiskProblem, also where a file cannot be read: it may be whole.
    """
    root = Path(path)
    if not Store.exists(root):
        check_format(root)
    with locked(root, timeout, on_wait):
        make_folders(root)
        found, store, whole = _judged(root)
        if found.found:
            write_format(root)
            files.write_durably(root / layout.TMP, root / layout.HEAD, store.head)
            _tidied(store, whole)
        return found


def would_repair(path: str | Path) -> tuple[Repaired, Store]:
    """What :func:`repair` would do, and the store as that would leave it; it is only read, and not locked.

    Raises what that does, and StoreMissing.
    """
    root = Path(path)
    if not Store.exists(root):
        check_format(root)
    return _judged(root)[:2]


def _judged(root: Path) -> tuple[Repaired, Store, set[int]]:
    """What is damaged and lost, the store as the newest whole generation has it, and which generations are whole."""
    try:
        findings = [f for f in verify(root) if f.damage]
    except StoreIncompatible:
        findings = [Finding(str(root / layout.FORMAT), "another format", True)]
    if unread := [f for f in findings if f.unread]:
        raise DiskProblem(
            "files of the store cannot be read, and may be whole", where=", ".join(f.file for f in unread),
            found=unread[0].problem, expected="a store of which every file can be read",
            hint="check the permissions; what the disk has lost for good is to be deleted before --repair",
        )  # fmt: skip
    damage = [f.file for f in findings]
    whole, unreadable, readable = _examined(root, _head(root))
    if not whole:
        raise StoreDamaged(
            "no generation is whole", where=", ".join(damage) or str(root),
            expected="one since the last prune of which every file verifies",
            hint="restore the store from a copy",
        )  # fmt: skip
    manifest, data = whole[0]
    head = head_bytes(manifest.generation, hashlib.sha256(data).hexdigest(), manifest.repair_floor)
    kept = {t.name for t in manifest.tasks}
    newer = [m for m in readable if m.generation > manifest.generation]
    gone = dict.fromkeys(t.name for m in newer for t in m.tasks if t.name not in kept)
    unknown = [f"whatever generation {n} had learned" for n in unreadable if n > manifest.generation]
    repaired = Repaired(manifest.generation, tuple(damage), (*gone, *unknown))
    return repaired, Store(root, manifest, head), {m.generation for m, _ in whole}


def _head(root: Path) -> tuple[int, str, int] | None:
    """What HEAD says, if it can be read: generation, sha256 of its manifest, and how far a repair may go back.

    Where HEAD and its manifest do not agree, the hash tells which of them changed: that of a changed manifest has
    nothing in common with the one in HEAD, a changed HEAD still has most of its digits.
    """
    try:
        head = parse_head(files.read_regular(root / layout.HEAD, layout.MAX_HEAD))
    except (ClmoeError, ValueError):
        return None
    for path, number in layout.manifests(root):
        try:
            found = hashlib.sha256(files.read_regular(path, layout.MAX_MANIFEST)).hexdigest()
        except ClmoeError:
            continue
        if sum(a == b for a, b in zip(found, head[1], strict=False)) >= ALIKE:
            return number, found, 0  # the manifest is the one that HEAD means, and has the floor itself
    return head


def _examined(
    root: Path, head: tuple[int, str, int] | None
) -> tuple[list[tuple[Manifest, bytes]], list[int], list[Manifest]]:
    """Generations that are whole (newest first), those whose manifest cannot be read, and those where it can."""
    whole, unreadable, readable = [], [], []
    floor = head[2] if head else 0
    expected = {head[0]: head[1]} if head else {}
    generations = [(p, n) for p, n in layout.manifests(root) if n > 0 and (head is None or n <= head[0])]
    if head is not None and head[0] not in [n for _, n in generations]:
        unreadable.append(head[0])
    for path, number in sorted(generations, key=lambda item: -item[1]):
        try:
            data = files.read_regular(path, layout.MAX_MANIFEST)
            if hashlib.sha256(data).hexdigest() != expected.get(number, hashlib.sha256(data).hexdigest()):
                raise StoreDamaged("damaged file", where=str(path))
            manifest = Manifest.from_bytes(data, str(path))
        except ClmoeError:
            unreadable.append(number)
            if head is None:
                break  # it may have been a prune, and nothing else says so
            continue
        if manifest.parent:
            expected[number - 1] = manifest.parent
        readable.append(manifest)
        floor = max(floor, manifest.repair_floor)
        if number >= floor and _is_whole(Store(root, manifest, b"")):
            whole.append((manifest, data))
    return whole, unreadable, readable


def _is_whole(store: Store) -> bool:
    problems: list[ClmoeError] = []
    check_contents(store, lambda error, file: problems.append(error))
    return not problems


def _tidied(store: Store, whole: set[int]) -> None:
    """Deletes what the repaired store does not need: manifests that are not whole, objects of theirs, checkpoints."""
    for path, number in layout.manifests(store.root):
        if number not in whole:
            files.remove(path)
    for key in checkpoints.present(store.root):
        for path in checkpoints.files_of(store.root, key):
            try:
                checkpoints.read(path, key)
            except ClmoeError:
                files.remove(path)
    Writer(store).collect()
