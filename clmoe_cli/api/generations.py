"""``log``, ``undo``, ``checkout`` and ``rename``: what was done to a store, and taking it back. Imports no torch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import ClassVar

from clmoe_cli.api.addresses import local
from clmoe_cli.api.contents import Unfinished, unfinished
from clmoe_cli.api.names import check_name, new_task
from clmoe_cli.api.reports import Report
from clmoe_cli.runtime.words import one_of
from store_schema import (
    ExpertRecord,
    HistoryEntry,
    Manifest,
    Store,
    StoreDamaged,
    TaskRecord,
    UsageProblem,
    Writer,
    encode_subnetwork,
    encode_weights,
    read_consistently,
    writer,
)
from store_schema.files import read_regular
from store_schema.layout import MAX_MANIFEST, manifest_path, manifests


@dataclass(frozen=True)
class Done:
    """What one commit did: its ``generation``, when (``at``, UTC), to which task, with how many images of which file.

    ``there``: whether the store can still go back to what it was after it. Null: stores of before do not say.
    """

    generation: int
    action: str
    task: str | None
    at: str | None
    images: int | None
    source: str | None
    there: bool


@dataclass(frozen=True)
class LogReport(Report):
    """All commits of a store in their order; ``generation``: the one that stands.

    ``unfinished``: learns that were interrupted, or run now.
    """

    schema: ClassVar[str] = "clmoe.log/1"
    generation: int
    commits: tuple[Done, ...]
    unfinished: tuple[Unfinished, ...]


@dataclass(frozen=True)
class UndoReport(Report):
    """A store that went back to ``restored``, as the new ``generation``; tasks that went, and that came back.

    ``applied`` is false where that is only what would be done.
    """

    schema: ClassVar[str] = "clmoe.undo/1"
    applied: bool
    generation: int
    restored: int
    removed: tuple[str, ...]
    returned: tuple[str, ...]


@dataclass(frozen=True)
class RenameReport(Report):
    """A task that has a new name."""

    schema: ClassVar[str] = "clmoe.rename/1"
    generation: int
    old: str
    new: str


def log(store: str) -> LogReport:
    """What was done to a store, from its beginning; it is only read. Raises StoreMissing and the store's errors."""
    opened = Store.open(local(store), empty=True)
    now = opened.manifest.generation
    there = {number for _, number in manifests(opened.root) if number <= now}
    commits = [
        Done(e.generation, e.action, e.task, e.at, e.images, e.source, e.generation in there)
        for e in opened.manifest.history
    ]
    return LogReport(now, tuple(commits), unfinished(opened))


def undo(
    store: str,
    generation: int | None = None,
    *,
    dry_run: bool = False,
    lock_timeout: float | None = None,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> UndoReport:
    """Goes back to a generation that is still there, None for the one before, as a new generation.

    So an undo can be undone. A repair never goes back behind it. Raises UsageProblem for a generation that is gone,
    StoreMissing, StoreDamaged, StoreLocked and DiskProblem; nothing is changed then. ``dry_run``: says what would be
    done, and reads only.
    """
    known = Store.open(store)
    if dry_run:
        return read_consistently(store, lambda opened: _planned(opened, generation)[0])
    with writer(store, seed=known.manifest.seed, timeout=lock_timeout, on_wait=on_wait, known=known) as locked:
        report, manifest = _planned(locked.store, generation)
        locked.commit(manifest)
    return replace(report, applied=True)


def _planned(store: Store, wanted: int | None) -> tuple[UndoReport, Manifest]:
    """What going back would do, and the manifest of the new generation."""
    now = store.manifest
    target = now.generation - 1 if wanted is None else wanted
    path = manifest_path(store.root, target)
    if target == now.generation:
        raise UsageProblem("the store is at that generation", found=str(target), hint="clmoe log lists them")
    there = [number for _, number in manifests(store.root) if number < now.generation]
    if not isinstance(target, int) or target not in there:  # the Python API may be given anything
        shown = f"generation {' or '.join(map(str, there))}" if there else "no generation: this one alone is kept"
        hint = "the last two generations are kept, and after prune --gc the last one alone"
        if wanted is None and not there:
            raise UsageProblem("nothing to undo: no older generation is kept", where=str(store.root), hint=hint)
        raise UsageProblem("no such generation is there", found=str(target), expected=shown, hint=hint)
    data = read_regular(path, MAX_MANIFEST)
    if target == now.generation - 1 and hashlib.sha256(data).hexdigest() != now.parent:
        raise StoreDamaged("damaged file", where=str(path), hint="clmoe inspect --verify lists what is damaged")
    old, following = Manifest.from_bytes(data, str(path)), now.generation + 1
    last = old.history[-1] if old.history else None
    frozen, rows = (last.frozen, last.output_rows) if last else ({}, {})
    entry = HistoryEntry(generation=following, action="undo", task=None, frozen=frozen, output_rows=rows)
    update = {
        "format": now.format,
        "seed": now.seed,
        "history": (*now.history, entry),
        # What was taken back must not come back by a repair.
        "repair_floor": following,
    }
    before, after = ([task.name for task in each.tasks] for each in (now, old))
    removed = tuple(name for name in before if name not in after)
    returned = tuple(name for name in after if name not in before)
    return UndoReport(False, following, target, removed, returned), old.model_copy(update=update)


def rename(
    store: str,
    old: str,
    new: str,
    *,
    lock_timeout: float | None = None,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> RenameReport:
    """Gives a task another name; answers and certificates of all tasks stay what they are, bit for bit.

    Raises UsageProblem for an unknown task and for a name that is taken or none, and the store's errors.
    """
    check_name(new)
    known = Store.open(store)
    with writer(store, seed=known.manifest.seed, timeout=lock_timeout, on_wait=on_wait, known=known) as locked:
        manifest = locked.manifest
        old = one_of("task", old, [task.name for task in manifest.tasks])
        new = new_task(new, 0, [task.name for task in manifest.tasks])
        task = manifest.task(old)
        experts = tuple(_with_name(locked, e, old, new) if e.id == task.expert else e for e in manifest.experts)
        entry = manifest.history[-1].model_copy(
            update={
                "generation": manifest.generation + 1,
                "action": "rename",
                "task": new,
                "images": None,
                "source": old,
            }
        )
        # A task's object has its name as well.
        body = replace(locked.store.read_subnetwork(old), task=new)
        task = task.model_copy(update={"name": new, "subnetwork": locked.put(encode_subnetwork(body), "h5")})
        tasks = tuple(_measured(task if each.name == old else each, old, new) for each in manifest.tasks)
        update = {"experts": experts, "tasks": tasks, "history": (*manifest.history, entry)}
        committed = locked.commit(manifest.model_copy(update=update))
    return RenameReport(committed.generation, old, new)


def _with_name(locked: Writer, expert: ExpertRecord, old: str, new: str) -> ExpertRecord:
    """The expert whose object has the task's own parameters under its new name."""
    weights = locked.store.read_expert(expert.id)
    owned = {new if name == old else name: params for name, params in weights.owned.items()}
    data = encode_weights(replace(weights, owned=owned), expert.id)
    return expert.model_copy(update={"weights": locked.put(data, "safetensors")})


def _measured(task: TaskRecord, old: str, new: str) -> TaskRecord:
    """The record in which what was measured with the task has its new name."""
    if task.measured is None:
        return task
    each = (m.model_copy(update={"task": new}) if m.task == old else m for m in task.measured)
    return task.model_copy(update={"measured": tuple(each)})
