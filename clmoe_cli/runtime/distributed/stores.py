"""Several processes and one store: process 0 writes, the others follow what it holds; all read the same generation.

A process that is alone does what it would do without any of this.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol, Self, TypeVar

import torch
from torch import Tensor

from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.distributed.processes import PeerLost
from store_schema import Follower, Manifest, Store, StoreDamaged, Writer, read_consistently, writer
from store_schema.errors import ObjectVanished
from store_schema.store import RETRIES, newest

T = TypeVar("T")


class Rows(Protocol):
    """What is found of some rows, in tensors [n, …]."""

    def each(self, use: Callable[..., Tensor]) -> Self:
        """The same of which each tensor is what ``use`` makes of it."""


R = TypeVar("R", bound=Rows)


@contextmanager
def writing(
    path: str,
    known: Store | None,
    *,
    seed: int,
    timeout: float | None,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> Iterator[Writer]:
    """The store, locked by process 0 (:func:`store_schema.writer`); for the others the snapshot that it builds on.

    ``known``: what was read of it before it was locked; it is read again only if it has changed since.
    """
    if not collectives.leads():
        collectives.meet()
        found = newest(Path(path), known)
        if found.manifest.generation == 0:
            found = Store(found.root, found.manifest.model_copy(update={"seed": seed}), found.head)
        yield Follower(found)
        return
    with writer(path, seed=seed, timeout=timeout, create=True, on_wait=on_wait, known=known) as locked:
        collectives.meet()
        yield locked


def committed(locked: Writer, commit: Callable[[], Manifest]) -> Manifest:
    """What process 0 has committed, once all have come as far and it has; read by the others before it goes on.

    Raises Lost for a process that has ended before the commit; what is in the store stays so whoever ends later.
    """
    collectives.meet()
    if collectives.leads():
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


def read_together(path: str, known: Store | None, use: Callable[[Store], T]) -> T:
    """Reads a store; several processes the same generation of it (:func:`store_schema.read_consistently`).

    ``known``: a snapshot of it, with which to begin. ``use`` must raise ObjectVanished in all of them or in none, as
    :func:`in_shares` does.
    """
    if collectives.world() == 1:
        return read_consistently(path, use, known)
    tried: bytes | None = None
    problem: ObjectVanished | None = None
    for _ in range(RETRIES):
        store, known = known or Store.open(path), None
        if not collectives.alike(store.head):
            continue  # a commit came between
        if problem is not None and store.head == tried:
            raise problem
        try:
            return use(store)
        except ObjectVanished as error:
            tried, problem = store.head, error
    raise problem or StoreDamaged(
        "the store changes whenever it is opened, or the processes see different ones", where=path
    )


def in_shares(n: int, unit: int, decide: Callable[[slice], Iterator[R]], joined: Callable[[list[R]], R]) -> Iterator[R]:
    """Decides for n rows, each process for its share of them, ``unit`` consecutive ones at a time; order is kept.

    ``decide``: what is found of some rows, part by part; ``joined``: the parts as one. A process that is alone hands on
    what is decided as it comes, several all of it at the end. Fewer units than processes are decided by each process.
    Raises ObjectVanished where any process has met it.
    """
    world = collectives.world()
    if world == 1:
        yield from decide(slice(0, n))
        return
    units = -(-n // unit)
    shared = units >= world
    edges = [min(n, unit * (units * i // world)) for i in range(world)] + [n]
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    share = slice(edges[collectives.rank()], edges[collectives.rank() + 1]) if shared else slice(0, n)
    own, problem = None, None
    try:
        own = joined(list(decide(share)))
    except ObjectVanished as error:
        problem = error
    missed = torch.tensor([float(own is None)])
    collectives.summed([missed])
    if own is None or bool(missed > 0):
        raise problem or ObjectVanished("another process missed a file of the store")
    yield own.each(lambda values: collectives.gathered(values, sizes)) if shared else own
