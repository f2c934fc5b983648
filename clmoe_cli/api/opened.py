"""A store as a command opens it: once, before any data are read."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from clmoe_cli.api.addresses import local
from clmoe_cli.api.inputs import Expected
from clmoe_cli.runtime.distributed import stores
from store_schema import Store, StoreMissing, Writer, check_local

T = TypeVar("T")


@dataclass(frozen=True)
class Opened:
    """The folder of a store, and the snapshot that it held when it was opened; None where it has no task yet.

    Each function of the API takes one in place of the folder, and then does not open the store again. It is opened
    again only where a commit has swept a file of the snapshot.
    """

    path: str
    snapshot: Store | None

    @staticmethod
    def at(store: str | Opened) -> Opened:
        """A store that may not be there yet; one that is open is handed on.

        Raises StoreIncompatible (newer format), StoreDamaged, DiskProblem, and UsageProblem for an address: what is
        there can only be read.
        """
        if isinstance(store, Opened):
            return store
        check_local(store)
        try:
            return Opened(store, Store.open(store))
        except StoreMissing:
            return Opened(store, None)

    @staticmethod
    def existing(store: str | Opened) -> Opened:
        """The same; raises StoreMissing for a store without a task."""
        if isinstance(store, Opened) and store.snapshot is not None:
            return store
        path = local(store.path if isinstance(store, Opened) else store)
        return Opened(path, Store.open(path))

    @cached_property
    def expected(self) -> Expected:
        """What it expects of data; nothing where it has no task."""
        return Expected() if self.snapshot is None else Expected.of(self.snapshot.manifest)

    def expected_by(self, task: str | None) -> Expected:
        """The same of data for one task, if it is named. Raises UsageProblem for an unknown one."""
        if task is None or self.snapshot is None:
            return self.expected
        return self.expected.by(self.snapshot.manifest, task)

    def read(self, use: Callable[[Store], T]) -> T:
        """What ``use`` makes of the snapshot, or of a newer one where a file of it has gone.

        Of several processes all use the same one (:func:`clmoe_cli.runtime.distributed.stores.read_together`).
        """
        return stores.read_together(self.path, self.snapshot, use)

    def writing(
        self, *, seed: int, timeout: float | None, on_wait: Callable[[str], None]
    ) -> AbstractContextManager[Writer]:
        """The store, locked; read again if it has changed (:func:`clmoe_cli.runtime.distributed.stores.writing`)."""
        return stores.writing(self.path, self.snapshot, seed=seed, timeout=timeout, on_wait=on_wait)
