"""Checking every file of a store in one run."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from store_schema import files, layout
from store_schema.errors import ClmoeError, StoreMissing
from store_schema.records import Manifest
from store_schema.removal import subnetwork_digest
from store_schema.store import Store, verified

Report = Callable[[ClmoeError, Path | None], None]


@dataclass(frozen=True)
class Finding:
    """A file and what is wrong with it; ``damage`` is false for files that do not belong to the store."""

    file: str
    problem: str
    damage: bool


def verify(path: str | Path) -> list[Finding]:
    """Every damaged file of a store: hashes, structure, and the subnetwork hash of each task.

    A commit in the meantime sweeps files away, which is no damage: the check is made again then. Raises
    StoreMissing or StoreIncompatible when there is nothing to check.
    """
    root = Path(path)
    while True:
        before = _head(root)
        findings = _verify(root)
        if not findings or before == _head(root):
            return findings


def _head(root: Path) -> bytes | None:
    try:
        return files.read_regular(root / layout.HEAD, 4096)
    except ClmoeError:
        return None


def _verify(root: Path) -> list[Finding]:
    findings: dict[str, Finding] = {}

    def found(error: ClmoeError, file: Path | None) -> None:
        name = error.where or str(file)
        findings.setdefault(name, Finding(name, str(error), True))

    _check_objects(root, found)
    try:
        store = Store.open(root)
    except StoreMissing:
        raise
    except ClmoeError as error:
        if error.exit_code != 4 or type(error).__name__ == "StoreIncompatible":
            raise
        found(error, None)
        return list(findings.values())
    for manifest_file in sorted((root / layout.MANIFESTS).iterdir()):
        try:
            data = files.read_regular(manifest_file, layout.MAX_MANIFEST)
            manifest = Manifest.from_bytes(data, str(manifest_file))
            if manifest.generation == store.manifest.generation - 1:
                # The parent's hash stands in the manifest of its child.
                if hashlib.sha256(data).hexdigest() != store.manifest.parent:
                    findings[str(manifest_file)] = Finding(str(manifest_file), "damaged file", True)
                    continue
            elif manifest.generation != store.manifest.generation:
                findings[str(manifest_file)] = Finding(str(manifest_file), "a generation that nothing names", False)
                continue
        except ClmoeError as error:
            found(error, manifest_file)
            continue
        _check_contents(Store(root, manifest, store.head), found)
    for stray in root.iterdir():
        if stray.name not in layout.NAMES:
            findings[str(stray)] = Finding(str(stray), "not a file of the store", False)
    return list(findings.values())


def _check_objects(root: Path, found: Report) -> None:
    """Objects are named by their hash, so that each can be checked without a manifest."""
    for path in sorted((root / layout.OBJECTS).glob("*/*")):
        try:
            verified(path, files.read_regular(path, layout.MAX_OBJECT), path.stem)
        except ClmoeError as error:
            found(error, path)


def _check_contents(store: Store, found: Report) -> None:
    for expert in store.manifest.experts:
        try:
            weights = store.read_expert(expert.id)
        except ClmoeError as error:
            found(error, None)
            weights = None
        for task in store.manifest.tasks_of(expert.id):
            try:
                record = store.read_subnetwork(task.name)
            except ClmoeError as error:
                found(error, None)
                continue
            if weights is not None and subnetwork_digest(weights, record.masks, task.name) != task.subnetwork_sha256:
                assert expert.weights is not None
                where = layout.object_path(store.root, expert.weights.sha256, expert.weights.suffix)
                found(ClmoeError(f"the subnetwork of task {task.name} changed", where=str(where)), None)
