"""``prune``: take tasks out again; every other task's outputs stay bit-identical. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.api.reports import RemovalReport
from clmoe_cli.runtime.events import OnStep, counted, silent
from clmoe_cli.runtime.words import one_of
from store_schema import (
    DiskProblem,
    HistoryEntry,
    Manifest,
    Store,
    TaskRecord,
    UsageProblem,
    Writer,
    checkpoints,
    encode_weights,
    read_consistently,
    remove_tasks,
    used_and_kept,
    writer,
)

AllBits = Mapping[str, Mapping[str, NDArray[np.bool_]]]


@dataclass(frozen=True)
class PruneOptions:
    """Exactly one of ``task`` (one or several), ``expert``, ``to_frozen`` (percent), ``unfinished``, or ``gc``.

    ``unfinished``: the task that an interrupted ``learn`` was learning; what that had reached is discarded. ``gc``:
    alone or with one of them; without ``unfinished``.
    """

    task: str | Sequence[str] | None = None
    expert: str | None = None
    to_frozen: float | None = None
    gc: bool = False
    lock_timeout: float | None = None
    unfinished: str | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The tasks that are named, in the order of their names."""
        return (self.task,) if isinstance(self.task, str) else tuple(self.task or ())


def prune(
    store: str,
    options: PruneOptions,
    confirm: Callable[[RemovalReport], bool],
    *,
    on_wait: Callable[[str], None] = lambda holder: None,
    on_step: OnStep = silent,
    on_change: Callable[[], None] = lambda: None,
) -> RemovalReport:
    """Plans a removal, asks ``confirm`` with the plan, and commits it if that says yes.

    The store is locked once that has said yes. Where it has changed by then, ``on_change`` is told, the removal is
    planned again, and ``confirm`` is asked again if other tasks or experts would go.

    ``to_frozen``: removes whole tasks, each time the one that frees most (the older one where two are equal),
    until no expert has more than that percentage of its shared weights frozen. An expert that loses its last task
    goes as well. ``gc``: older generations are
    deleted at once, so that a removed task cannot be recovered.

    Raises UsageProblem for unknown names or options that exclude each other, and the store's errors.
    """
    _check(options)
    if options.unfinished is not None:
        return _discarded(store, options, confirm, on_wait)
    known = Store.open(store)  # a missing store is an error, and no lock is made for it
    while True:
        known, planned = read_consistently(store, lambda opened: (opened, _planned(opened, options, on_step)), known)
        if not confirm(planned.report):
            return planned.report
        with writer(store, seed=0, timeout=options.lock_timeout, on_wait=on_wait, known=known) as locked:
            if locked.store.head != known.head:
                on_change()
                agreed, planned, known = planned.goes, _planned(locked.store, options, on_step), locked.store
                if planned.goes != agreed:
                    continue
            return _removed(locked, options, planned)


def would_prune(store: str, options: PruneOptions) -> RemovalReport:
    """What :func:`prune` would remove; the store is only read, and not locked. Raises what that does."""
    _check(options)
    if options.unfinished is not None:
        return replace(_unfinished(store, options.unfinished)[0], dry_run=True)
    return replace(read_consistently(store, lambda opened: _planned(opened, options).report), dry_run=True)


def _removed(locked: Writer, options: PruneOptions, planned: _Planned) -> RemovalReport:
    before = locked.bytes_on_disk()
    if any(planned.goes):
        locked.commit(_stored(locked, planned), keep=1 if options.gc else 2)
    elif options.gc:
        locked.collect(keep=1)
    try:
        freed = max(0, before - locked.bytes_on_disk())
    except DiskProblem as error:
        error.hint = "what was to be removed is gone, and that is in place: see clmoe log"
        raise
    return replace(planned.report, applied=True, freed_bytes=freed)


def _discarded(
    store: str, options: PruneOptions, confirm: Callable[[RemovalReport], bool], on_wait: Callable[[str], None]
) -> RemovalReport:
    """Discards what interrupted ``learn`` of a task had reached; a ``learn`` that runs is waited for."""
    plan, keys = _unfinished(store, str(options.unfinished))
    if not confirm(plan):
        return plan
    freed = checkpoints.discard_all(Path(store), keys, timeout=options.lock_timeout, on_wait=on_wait)
    return replace(plan, applied=True, freed_bytes=freed)


def _unfinished(store: str, name: str) -> tuple[RemovalReport, list[str]]:
    """What discarding would do, and the keys of the checkpoints of that task."""
    found = checkpoints.unfinished(Store.open(store, empty=True))
    name = one_of("unfinished task", name, list(dict.fromkeys(each.task for each in found)))
    keys = [each.key for each in found if each.task == name]
    return RemovalReport(False, (), (), 0, {}, 0.0, False, 0, unfinished=(name,)), keys


def _check(options: PruneOptions) -> None:
    given = [v for v in (options.tasks or None, options.expert, options.to_frozen, options.unfinished) if v is not None]
    if len(given) > 1 or not (given or options.gc):
        raise UsageProblem(
            "prune needs one thing to remove",
            found=f"{len(given)} of them",
            expected="one of --task, --expert, --to-frozen, --unfinished, or --gc",
        )
    if options.unfinished is not None and options.gc:
        raise UsageProblem("an unfinished learn has no older generations", found="--gc", hint="leave out --gc")
    if options.to_frozen is not None and not 0 <= options.to_frozen <= 100:
        raise UsageProblem("--to-frozen is a percentage", found=str(options.to_frozen), expected="0 to 100")


@dataclass(frozen=True)
class _Planned:
    """Every task's masks, the tasks to remove, the plan, and the manifest without them."""

    bits: AllBits
    names: list[str]
    report: RemovalReport
    manifest: Manifest

    @property
    def goes(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The tasks and experts that would be gone."""
        return self.report.removed, self.report.removed_experts


def _planned(store: Store, options: PruneOptions, on_step: OnStep = silent) -> _Planned:
    tasks = counted(store.manifest.tasks, on_step, "reading the store", "tasks")
    bits = {t.name: store.read_subnetwork(t.name, ("masks",)).masks for t in tasks}
    names = _chosen(store.manifest, bits, options)
    return _Planned(bits, names, *_plan(store.manifest, bits, names, options))


def _chosen(manifest: Manifest, bits: AllBits, options: PruneOptions) -> list[str]:
    if options.tasks:
        names = [t.name for t in manifest.tasks]
        return list(dict.fromkeys(one_of("task", name, names) for name in options.tasks))
    if options.expert is not None:
        ids = [e.id for e in manifest.experts]
        return [t.name for t in manifest.tasks_of(one_of("expert", options.expert, ids))]
    if options.to_frozen is None:
        return []
    removed: list[str] = []
    for expert in manifest.experts:
        left = [t.name for t in manifest.tasks_of(expert.id)]
        size = sum(int(np.prod(layer.shape)) for layer in expert.layers)
        flat = {name: np.concatenate([bits[name][layer.name].ravel() for layer in expert.layers]) for name in left}
        uses = sum((flat[name].astype(np.int32) for name in left), np.zeros(size, dtype=np.int32))
        while left and 100.0 * float((uses > 0).sum()) / size > options.to_frozen:
            frees = [int((flat[name] & (uses == 1)).sum()) for name in left]
            name = left.pop(int(np.argmax(frees)))
            uses -= flat[name]
            removed.append(name)
    return removed


def _plan(manifest: Manifest, bits: AllBits, names: list[str], options: PruneOptions) -> tuple[RemovalReport, Manifest]:
    """What would go, and the manifest without it (its weights still those of before)."""
    rest = tuple(t for t in manifest.tasks if t.name not in names)
    left = [label for t in rest for label in t.classes]
    rest = tuple(_without(t, names, left) for t in rest)
    # An expert without a task has nothing left that anybody could use.
    gone = tuple(e.id for e in manifest.experts if not any(t.expert == e.id for t in rest))
    freed: dict[str, dict[str, int]] = {}
    frozen: dict[str, dict[str, int]] = {}
    for expert in manifest.experts:
        own = {t.name: bits[t.name] for t in manifest.tasks_of(expert.id)}
        layers = {layer.name: used_and_kept(own, names, layer.name) for layer in expert.layers} if own else {}
        if set(own) & set(names):
            freed[expert.id] = {name: int((used & ~kept).sum()) for name, (used, kept) in layers.items()}
        if expert.id not in gone:
            frozen[expert.id] = {name: int(kept.sum()) for name, (_, kept) in layers.items()}
    experts = tuple(e for e in manifest.experts if e.id not in gone)
    size = sum(int(np.prod(layer.shape)) for e in experts for layer in e.layers)
    used = sum(n for counts in frozen.values() for n in counts.values())
    plan = RemovalReport(
        applied=False,
        removed=tuple(names),
        removed_experts=gone,
        freed_parameters=sum(n for counts in freed.values() for n in counts.values()),
        freed=freed,
        frozen_percent=round(100.0 * used / size, 4) if size else 0.0,
        gc=options.gc,
        freed_bytes=0,
    )
    rows = {e.id: sum(len(t.classes) for t in rest if t.expert == e.id) for e in experts}
    history = manifest.history
    generation = manifest.generation + 1
    removed: Sequence[str | None] = names or [None]
    for gone_task in removed:
        entry = HistoryEntry(generation=generation, action="prune", task=gone_task, frozen=frozen, output_rows=rows)
        history = (*history, entry)
    update = {"tasks": rest, "experts": experts, "history": history, "repair_floor": generation}
    return plan, manifest.model_copy(update=update)


def _without(task: TaskRecord, names: Sequence[str], left: Iterable[int | str]) -> TaskRecord:
    """A task's record without what was measured with the named tasks, and without labels that are not ``left``."""
    measured = None if task.measured is None else tuple(m for m in task.measured if m.task not in names)
    return task.forgetting(left).model_copy(update={"measured": measured})


def _stored(locked: Writer, planned: _Planned) -> Manifest:
    """Writes the weights of the experts that lost tasks: freed entries are zero, owned parameters gone."""
    bits, names, manifest = planned.bits, planned.names, planned.manifest
    experts = []
    for expert in manifest.experts:
        own = [t.name for t in locked.manifest.tasks_of(expert.id)]
        if set(own) & set(names):
            masks = {name: bits[name] for name in own}
            weights, _ = remove_tasks(locked.store.read_expert(expert.id), masks, names)
            ref = locked.put(encode_weights(weights, expert.id), "safetensors")
            expert = expert.model_copy(update={"weights": ref})
        experts.append(expert)
    # Torch is imported by who needs a gate solved anew, and by nobody else.
    from clmoe_cli.api import gating

    gates = [gating.without(locked, gate, names) for gate in locked.manifest.gates]
    left = tuple(gate for gate in gates if gate is not None)
    return manifest.model_copy(update={"experts": tuple(experts), "gates": left})
