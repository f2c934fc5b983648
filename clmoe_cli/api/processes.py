"""Several processes and one store: process 0 writes, the others follow what it holds ."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import torch

from clmoe_cli.api.opened import Opened
from clmoe_cli.data.batch import Batch
from clmoe_cli.method.routing.decide import Decision
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.distributed.processes import PeerLost
from store_schema import Follower, Manifest, Store, StoreDamaged, Writer, writer
from store_schema.errors import ObjectVanished
from store_schema.store import RETRIES, newest

T = TypeVar("T")


def alike(text: bytes) -> bool:
    """Whether all processes say the same; the answer is the same in all of them."""
    mine = torch.tensor([list(hashlib.sha256(text).digest())])
    return bool((collectives.gathered(mine, [1] * collectives.world()) == mine).all())


@contextmanager
def writing(
    opened: Opened, *, seed: int, timeout: float | None, on_wait: Callable[[str], None] = lambda holder: None
) -> Iterator[Writer]:
    """The store, locked by process 0 (:func:`store_schema.writer`); for the others the snapshot that it builds on.

    What was read of it before it was locked is read again only if it has changed since.
    """
    store, known = opened.path, opened.snapshot
    if collectives.rank() > 0:
        collectives.meet()
        found = newest(Path(store), known)
        if found.manifest.generation == 0:
            found = Store(found.root, found.manifest.model_copy(update={"seed": seed}), found.head)
        yield Follower(found)
        return
    with writer(store, seed=seed, timeout=timeout, create=True, on_wait=on_wait, known=known) as locked:
        collectives.meet()
        yield locked


def committed(locked: Writer, commit: Callable[[], Manifest]) -> Manifest:
    """What process 0 has committed, once all have come as far and it has; read by the others before it goes on.

    Raises Lost for a process that has ended before the commit; what is in the store stays so whoever ends later.
    """
    collectives.meet()
    if collectives.rank() == 0:
        manifest = commit()
        with suppress(collectives.Lost):
            collectives.meet()
            collectives.meet()
        return manifest
    try:
        collectives.meet()
        manifest = Store.open(locked.root).manifest
        collectives.meet()
    except collectives.Lost as error:
        raise PeerLost(error, "it was committing: clmoe inspect tells whether the task is in the store") from error
    return manifest


def read_together(opened: Opened, use: Callable[[Store], T]) -> T:
    """Reads a store; several processes the same generation of it (:meth:`clmoe_cli.api.opened.Opened.read`).

    ``use`` must raise ObjectVanished in all of them or in none, as :func:`decided_together` does.
    """
    if collectives.world() == 1:
        return opened.read(use)
    tried: bytes | None = None
    problem: ObjectVanished | None = None
    found = opened.snapshot
    for _ in range(RETRIES):
        store, found = found or Store.open(opened.path), None
        if not alike(store.head):
            continue  # a commit came between
        if problem is not None and store.head == tried:
            raise problem
        try:
            return use(store)
        except ObjectVanished as error:
            tried, problem = store.head, error
    raise problem or StoreDamaged(
        "the store changes whenever it is opened, or the processes see different ones", where=opened.path
    )


def decided_together(batch: Batch, unit: int, decide: Callable[[Batch], Iterator[Decision]]) -> Iterator[Decision]:
    """Decides for a batch, each process for its share of it, ``unit`` consecutive images at a time; order is kept.

    A process that is alone hands on what ``decide`` has decided as it comes, several all of it at the end. Fewer units
    than processes are decided by each process. Raises ObjectVanished where any process has met it.
    """
    n, world = len(batch.images), collectives.world()
    if world == 1:
        yield from decide(batch)
        return
    units = -(-n // unit)
    shared = units >= world
    edges = [min(n, unit * (units * i // world)) for i in range(world)] + [n]
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    share = slice(edges[collectives.rank()], edges[collectives.rank() + 1]) if shared else slice(0, n)
    own, problem = None, None
    try:
        own = Decision.joined(list(decide(batch.taken(share))))
    except ObjectVanished as error:
        problem = error
    missed = torch.tensor([float(own is None)])
    collectives.summed([missed])
    if own is None or bool(missed > 0):
        raise problem or ObjectVanished("another process missed a file of the store")
    yield own.each(lambda values: collectives.gathered(values, sizes)) if shared else own
