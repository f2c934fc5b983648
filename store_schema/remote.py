"""Reading a store on object storage: its newest generation is kept as a store in a folder of this machine.

Objects never change and are named by their content, so that each is fetched once. HEAD is written last here as well:
what lies in the folder is a whole store at any time, and is read as any other.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from store_schema import files, layout, objects
from store_schema.commit import Writer, make_folders
from store_schema.errors import ClmoeError, DiskProblem, StoreDamaged, StoreMissing, UsageProblem
from store_schema.locking import locked
from store_schema.records import Manifest
from store_schema.store import RETRIES, Store, parse_head


def mirrored(address: str, folder: Path) -> Path:
    """The store at that address as it is now, in a folder below ``folder``; what is there already is not fetched.

    Any address that fsspec knows, as ``s3://``, ``gs://``, ``https://``, ``memory://``. Raises StoreMissing,
    StoreDamaged, UsageProblem for an address of an unknown kind, and DiskProblem for what cannot be read or written.
    """
    remote = _Remote(address)
    root = folder / "stores" / hashlib.sha256(address.encode()).hexdigest()[:32]
    if _kept(root) == remote.read(layout.HEAD, layout.MAX_HEAD):
        return root
    files.make_folder(root)
    with locked(root, None, lambda holder: None):
        make_folders(root)
        head = remote.read(layout.HEAD, layout.MAX_HEAD)
        for _ in range(RETRIES):
            try:
                _fetch(remote, root, head)
                break
            except FileNotFoundError as error:
                # A commit has swept it meanwhile; otherwise it is missing.
                before, head = head, remote.read(layout.HEAD, layout.MAX_HEAD)
                if head == before:
                    raise StoreDamaged("missing file", where=str(error), hint="restore it from a copy") from error
    return root


def _kept(root: Path) -> bytes | None:
    """HEAD of what was fetched before."""
    try:
        return files.read_regular(root / layout.HEAD, layout.MAX_HEAD)
    except ClmoeError:
        return None


def _fetch(remote: _Remote, root: Path, head: bytes) -> None:
    """Fetches what the generation that ``head`` names needs, then puts HEAD in its place, then sweeps the rest.

    Raises FileNotFoundError for what is not there.
    """
    try:
        generation, sha256, _ = parse_head(head)
    except ValueError as error:
        raise StoreDamaged("not a valid HEAD", where=remote.address) from error
    path = layout.manifest_path(root, generation)
    data = remote.fetch(str(path.relative_to(root)), layout.MAX_MANIFEST, sha256)
    manifest = Manifest.from_bytes(data, f"{remote.address}/{path.relative_to(root)}")
    for ref in manifest.objects():
        here = layout.object_path(root, ref.sha256, ref.suffix)
        if not here.exists():
            objects.put(root, remote.fetch(str(here.relative_to(root)), ref.size, ref.sha256), ref.suffix)
    files.write_durably(root / layout.TMP, path, data)
    files.write_durably(root / layout.TMP, root / layout.FORMAT, remote.fetch(layout.FORMAT, 64))
    files.write_durably(root / layout.TMP, root / layout.HEAD, head)
    Writer(Store(root, manifest, head)).collect(keep=1)


class _Remote:
    """The files of a store at an address."""

    def __init__(self, address: str) -> None:
        import fsspec  # only who reads from afar needs it

        self.address = address.rstrip("/")
        try:
            found: tuple[Any, str] = fsspec.core.url_to_fs(self.address)
        except (ValueError, ImportError) as error:
            hint = "a package may be missing: pip install s3fs for s3, gcsfs for gs, adlfs for az, aiohttp for http"
            raise UsageProblem("cannot read from there", where=address, found=str(error), hint=hint) from error
        self.system, self.base = found[0], found[1].rstrip("/")

    def read(self, name: str, limit: int) -> bytes:
        """A file of at most ``limit`` bytes. Raises StoreMissing where it is not there, StoreDamaged, DiskProblem."""
        try:
            return self.fetch(name, limit)
        except FileNotFoundError as error:
            raise StoreMissing("no store", where=self.address, found=f"no {name}", hint="check --store") from error

    def fetch(self, name: str, limit: int, sha256: str | None = None) -> bytes:
        """The same; FileNotFoundError where it is not there, StoreDamaged where its hash is another."""
        where = f"{self.address}/{name}"
        try:
            data: bytes = self.system.cat_file(f"{self.base}/{name}", start=0, end=limit + 1)
        except FileNotFoundError as error:
            raise FileNotFoundError(where) from error
        except Exception as error:  # each kind of storage has errors of its own
            what = f"{type(error).__name__}: {error}".splitlines()[0]
            raise DiskProblem(
                "cannot read the file", where=where, found=what, hint="check address and access"
            ) from error
        if len(data) > limit:
            raise StoreDamaged("damaged file", where=where, found="more bytes", expected=f"at most {limit}")
        if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:
            raise StoreDamaged("damaged file", where=where, expected=f"sha256 {sha256[:12]}…")
        return data
