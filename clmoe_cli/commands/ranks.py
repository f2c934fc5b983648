"""Several processes and one store: process 0 writes, the others follow what it holds (:mod:`clmoe_cli.distributed`)."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple
from pathlib import Path
from typing import TypeVar

import torch

from clmoe_cli.batch import Batch
from clmoe_cli.continual import parallel
from clmoe_cli.continual.fusion import Decision
from store_schema import Manifest, Store, StoreDamaged, Writer, read_consistently, writer
from store_schema.store import newest

T = TypeVar("T")


@contextmanager
def writing(
    store: str, *, seed: int, timeout: float | None, on_wait: Callable[[str], None] = lambda holder: None
) -> Iterator[Writer]:
    """The store, locked by process 0 (:func:`store_schema.writer`); for the others the snapshot that it builds on."""
    if parallel.rank() > 0:
        parallel.told()
        found = newest(Path(store))
        if found.manifest.generation == 0:
            found = Store(found.root, found.manifest.model_copy(update={"seed": seed}), found.head)
        yield Writer(found)
        return
    with writer(store, seed=seed, timeout=timeout, create=True, on_wait=on_wait) as locked:
        parallel.tell()
        yield locked


def committed(locked: Writer, commit: Callable[[], Manifest]) -> Manifest:
    """What process 0 has committed, once it has; the others wait for it."""
    if parallel.rank() == 0:
        manifest = commit()
        parallel.tell()
        return manifest
    parallel.told()
    return Store.open(locked.root).manifest


def read_together(store: str, use: Callable[[Store], T]) -> T:
    """Reads a store; several processes the same generation of it. Raises StoreDamaged where a writer came between."""
    if parallel.world() == 1:
        return read_consistently(store, use)
    opened = Store.open(store)
    mine = torch.tensor(list(hashlib.sha256(opened.head).digest()))
    if not bool((parallel.gathered(mine[None], [1] * parallel.world()) == mine).all()):
        raise StoreDamaged("the store changed while it was opened", where=store, hint="run the command again")
    return use(opened)


def decided_together(batch: Batch, unit: int, decide: Callable[[Batch], Decision]) -> Decision:
    """Decides for a batch, each process for its share of it, ``unit`` consecutive images at a time; order is kept."""
    n, world = len(batch.images), parallel.world()
    units = -(-n // unit)
    if world == 1 or units < world:
        return decide(batch)
    edges = [min(n, unit * (units * i // world)) for i in range(world)] + [n]
    sizes = [stop - start for start, stop in itertools.pairwise(edges)]
    own = decide(batch.taken(slice(edges[parallel.rank()], edges[parallel.rank() + 1])))
    return Decision(*(parallel.gathered(values, sizes) for values in astuple(own)))
