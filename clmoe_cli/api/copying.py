"""``copy``: tasks of one store into another, which answer there as before, bit for bit.

An expert of which any task is copied is copied as an expert of its own, without the weights that only its other tasks
use: what is left is what ``prune`` of these would leave. No torch is imported before a gate is solved anew.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from clmoe_cli.api.addresses import local
from clmoe_cli.api.inputs import kind_text
from clmoe_cli.api.names import check_name, proper
from clmoe_cli.api.reports import Report
from clmoe_cli.backbone.session import backbone_of, check_same
from clmoe_cli.data.labels import clashes
from clmoe_cli.runtime.events import OnStep, counted, silent
from clmoe_cli.runtime.words import nfc, one_of
from store_schema import (
    ExpertRecord,
    GateRecord,
    HistoryEntry,
    Manifest,
    Store,
    StoreDamaged,
    StoreIncompatible,
    StoreMissing,
    TaskRecord,
    UsageProblem,
    Writer,
    check_local,
    encode_subnetwork,
    encode_weights,
    is_remote,
    read_consistently,
    remove_tasks,
    subnetwork_digest,
    unwritten,
    used_and_kept,
    writer,
)


@dataclass(frozen=True)
class Copied:
    """A task in the store that it is copied to, its expert there, and what both are called where it comes from."""

    task: str
    expert: str
    old_task: str
    old_expert: str


@dataclass(frozen=True)
class CopyReport(Report):
    """What ``copy`` did, or (``applied`` false) would do: the ``generation`` that it makes, and the tasks that come."""

    schema: ClassVar[str] = "clmoe.copy/1"
    applied: bool
    generation: int
    new_store: bool
    tasks: tuple[Copied, ...]


@dataclass(frozen=True)
class CopyOptions:
    """``tasks``: which ones, none for all; ``names``: old names of tasks → new ones."""

    tasks: Sequence[str] = ()
    names: Mapping[str, str] | None = None
    dry_run: bool = False
    lock_timeout: float | None = None


def copy(
    source: str,
    target: str,
    options: CopyOptions | None = None,
    *,
    on_wait: Callable[[str], None] = lambda holder: None,
    on_step: OnStep = silent,
) -> CopyReport:
    """Copies tasks of the store ``source`` into the store ``target``, which is made where there is none.

    Everything that a task answers with goes along: its subnetwork, its certificates, its calibration and the gate's
    statistics. The gate of ``target`` is solved anew from the statistics of all tasks, as ``learn`` and ``prune`` do.
    Tasks that ``target`` had stay as they are. In an empty one tasks and experts keep their numbers, and the seed of
    ``source`` is the store's. ``source`` is only read, and not locked.

    Raises UsageProblem for unknown names, and for names and labels that clash; StoreIncompatible where the stores read
    the same inputs in different ways; StoreMissing, StoreDamaged, StoreLocked, DiskProblem. Nothing is changed then.
    """
    options = options or CopyOptions()
    there, into = Path(source).resolve(), Path(target).resolve()
    if there == into:
        raise UsageProblem("a store cannot be copied into itself", found=source, hint="name another folder")
    if not is_remote(source) and (there.is_relative_to(into) or into.is_relative_to(there)):
        raise UsageProblem(
            "a store cannot lie in another one", found=f"{source} and {target}", hint="name another folder"
        )
    check_local(target)
    source = local(source)
    known = Store.open(source)
    here = _opened(target, known.manifest.seed)
    plan = _planned(known.manifest, here.manifest, options)
    if options.dry_run:
        return _report(here.manifest, plan, applied=False)
    read_consistently(source, lambda store: _check_whole(store, options, here.manifest), known)
    with writer(
        target, seed=known.manifest.seed, timeout=options.lock_timeout, create=True, on_wait=on_wait, known=here
    ) as locked:
        before = locked.manifest
        plan, manifest = read_consistently(source, lambda store: _merged(locked, store, options, on_step), known)
        locked.commit(manifest)
    return _report(before, plan, applied=True)


def _check_whole(source: Store, options: CopyOptions, here: Manifest) -> None:
    """Reads all that would be copied, so that a damaged source makes no store."""
    plan = _planned(source.manifest, here, options)
    for expert in plan.experts:
        source.read_expert(expert)
        source.read_base(expert)
    for name in plan.names:
        source.read_subnetwork(name)


def _opened(target: str, seed: int) -> Store:
    """The store that is copied into; as its first commit finds it where there is none yet."""
    try:
        return Store.open(target)
    except StoreMissing:
        return unwritten(target, seed=seed)


@dataclass(frozen=True)
class _Plan:
    """What comes: tasks by their old names → new names and numbers, experts by their old ids → new ids."""

    names: Mapping[str, str]
    numbers: Mapping[str, int]
    experts: Mapping[str, str]
    homes: Mapping[str, str]
    next_task: int
    next_expert: int


def _report(before: Manifest, plan: _Plan, *, applied: bool) -> CopyReport:
    tasks = [Copied(new, plan.experts[plan.homes[old]], old, plan.homes[old]) for old, new in plan.names.items()]
    return CopyReport(applied, before.generation + 1, before.generation == 0, tuple(tasks))


def _planned(there: Manifest, here: Manifest, options: CopyOptions) -> _Plan:
    """What is copied under which names; raises what :func:`copy` raises for what does not go together."""
    known = [t.name for t in there.tasks]
    wanted = {one_of("task", name, known) for name in options.tasks} or set(known)
    tasks = [t for t in there.tasks if t.name in wanted]
    names = _names([t.name for t in tasks], [t.name for t in here.tasks], options.names or {})
    experts = [e for e in there.experts if any(t.expert == e.id for t in tasks)]
    _check_together(there, here, tasks, experts)
    if here.generation == 0:
        numbers, ids = {t.name: t.number for t in tasks}, {e.id: e.id for e in experts}
        next_task, next_expert = there.next_task, there.next_expert
    else:
        numbers = {t.name: n for n, t in enumerate(tasks, start=here.next_task)}
        next_task, next_expert, ids = here.next_task + len(tasks), here.next_expert, {}
        for expert in experts:
            number = max(int(expert.id[1:]), next_expert)
            ids[expert.id], next_expert = f"e{number}", number + 1
    return _Plan(names, numbers, ids, {t.name: t.expert for t in tasks}, next_task, next_expert)


def _names(tasks: Sequence[str], taken: Sequence[str], renamed: Mapping[str, str]) -> dict[str, str]:
    """Old names → new names. UsageProblem for one that is none, and for those that clash."""
    asked = {one_of("task to rename", old, tasks): nfc(new) for old, new in renamed.items()}
    for new in asked.values():
        check_name(new, "--rename")
    names = {old: asked.get(old, old) for old in tasks}
    seen, clash = set(map(nfc, taken)), []
    for old, new in names.items():
        clash += [old] if nfc(new) in seen else []
        seen.add(nfc(new))
    if clash:
        twice = list(dict.fromkeys(names[old] for old in clash))
        there = not set(map(nfc, taken)).isdisjoint(map(nfc, twice))
        raise UsageProblem(
            "names of tasks that exist already" if there else "several tasks would have one name",
            found=", ".join(map(repr, twice[:8])) + (", …" if len(twice) > 8 else ""),
            expected="names that only one task has",
            hint=f"--rename {shlex.quote(f'{clash[0]}=NEW')}, or clmoe rename for the task that is there",
        )
    return names


def _check_together(
    there: Manifest, here: Manifest, tasks: Sequence[TaskRecord], experts: Sequence[ExpertRecord]
) -> None:
    """Refuses what cannot be in one store: other backbones, gates of other features, labels that look alike."""
    backbone = backbone_of(here)
    for expert in experts:
        if backbone is not None and expert.input is not None and expert.input.features is not None:
            check_same(backbone, expert.input.features)
    labels = [label for t in here.tasks for label in t.classes]
    twins = clashes(labels, [label for t in tasks for label in t.classes])
    if twins:
        as_text = isinstance(twins[0], str)
        raise UsageProblem(
            "labels clash with those of the store",
            found=f"{', '.join(map(repr, twins[:8]))} as {'text' if as_text else 'integers'}",
            expected="integers" if as_text else "text",
            hint="leave these tasks out, or copy into another store",
        )
    for kind in dict.fromkeys((e.input_shape, e.input) for e in experts):
        if here.tasks_of_shape(*kind):
            _check_gates(here.gate(*kind), there.gate(*kind), kind_text(*kind))


def _check_gates(here: GateRecord | None, there: GateRecord | None, kind: str) -> None:
    """StoreIncompatible where the tasks of two stores are not told apart by the same features."""

    def shown(gate: GateRecord | None) -> dict[str, str]:
        if gate is None:
            return {"gate": "none"}
        return {
            "gate": gate.rule or "subspaces",
            "--eyes": gate.eyes,
            "features": gate.features,
            "input scale": f"{gate.input_scale:.9g}",
            "eye": gate.eye.sha256[:12] if gate.eye else "none",
        }

    found, expected = shown(there), shown(here)
    other = next((key for key in expected if found.get(key) != expected[key]), None)
    if other is not None:
        raise StoreIncompatible(
            "the stores tell such inputs apart in different ways",
            key=kind,
            found=f"{other} {found.get(other, 'none')}",
            expected=f"{other} {expected[other]}",
            hint="copy into another store, or learn these tasks from their data",
        )


def _merged(locked: Writer, source: Store, options: CopyOptions, on_step: OnStep) -> tuple[_Plan, Manifest]:
    """Writes the objects of what is copied; returns what that is, and the manifest of the store with it."""
    there, here = source.manifest, locked.manifest
    plan = _planned(there, here, options)
    read = counted(tuple(plan.experts), on_step, "copying", "experts")
    parts = [_expert(locked, source, plan, expert) for expert in read]
    experts = (*here.experts, *(part.record for part in parts))
    came = [task for part in parts for task in part.tasks]
    tasks = tuple(sorted((*here.tasks, *came), key=lambda t: t.number))
    last = here.history[-1] if here.history else None
    frozen = {**(last.frozen if last else {}), **{part.record.id: part.frozen for part in parts}}
    rows = {e.id: sum(len(t.classes) for t in tasks if t.expert == e.id) for e in experts}
    name = Path(source.root).resolve().name
    history = here.history
    for task in sorted(came, key=lambda t: t.number):
        entry = HistoryEntry(
            generation=here.generation + 1,
            action="copy",
            task=task.name,
            frozen=frozen,
            output_rows=rows,
            images=task.images,
            source=name if proper(name) else None,
        )
        history = (*history, entry)
    update = {
        "experts": tuple(sorted(experts, key=lambda e: int(e.id[1:]))),
        "tasks": tasks,
        "gates": tuple(_gates(locked, source, plan)),
        "next_task": plan.next_task,
        "next_expert": plan.next_expert,
        "history": history,
        "environment": here.environment or there.environment,
    }
    return plan, here.model_copy(update=update)


@dataclass(frozen=True)
class _Part:
    """An expert as it is copied, its tasks, and how many weights of each layer these use."""

    record: ExpertRecord
    tasks: tuple[TaskRecord, ...]
    frozen: dict[str, int]


def _expert(locked: Writer, source: Store, plan: _Plan, old: str) -> _Part:
    """Writes an expert without the tasks that stay behind, and the tasks that come, under their new names."""
    there, new = source.manifest, plan.experts[old]
    record, own = there.expert(old), there.tasks_of(old)
    bits = {t.name: source.read_subnetwork(t.name, ("masks",)).masks for t in own}
    behind = [t.name for t in own if t.name not in plan.names]
    weights, _ = remove_tasks(source.read_expert(old), bits, behind)
    weights = replace(weights, owned={plan.names[name]: params for name, params in weights.owned.items()})
    tasks = []
    known = [label for t in there.tasks if t.name in plan.names for label in t.classes]
    for task in own:
        if task.name in plan.names:
            name = plan.names[task.name]
            if subnetwork_digest(weights, bits[task.name], name) != task.subnetwork_sha256:
                raise StoreDamaged(
                    f"the subnetwork of task {task.name} changed",
                    where=str(source.root),
                    hint="clmoe inspect --verify lists what is damaged",
                )
            body = replace(source.read_subnetwork(task.name), task=name, expert=new)
            measured = None if task.measured is None else tuple(
                m.model_copy(update={"task": plan.names[m.task]}) for m in task.measured if m.task in plan.names
            )  # fmt: skip
            update = {
                "name": name,
                "number": plan.numbers[task.name],
                "expert": new,
                "subnetwork": locked.put(encode_subnetwork(body), "h5"),
                "measured": measured,
            }
            tasks.append(task.forgetting(known).model_copy(update=update))
    stored = locked.put(encode_weights(weights, new), "safetensors")
    frozen = {layer.name: int(used_and_kept(bits, behind, layer.name)[1].sum()) for layer in record.layers}
    base = None if record.base is None else locked.put(source.read_object(record.base), "safetensors")
    return _Part(record.model_copy(update={"id": new, "weights": stored, "base": base}), tuple(tasks), frozen)


def _gates(locked: Writer, source: Store, plan: _Plan) -> Iterator[GateRecord]:
    """The gates of the store: those of other kinds of input as they are, the others solved anew."""
    here, there = locked.manifest, source.manifest
    kinds = dict.fromkeys((there.expert(old).input_shape, there.expert(old).input) for old in plan.experts)
    yield from (gate for gate in here.gates if (gate.input_shape, gate.input) not in kinds)
    # Torch is imported by who needs a gate solved anew, and by nobody else.
    from clmoe_cli.api import gating

    for kind in kinds:
        gate = there.gate(*kind)
        if gate is not None:
            yield gating.joined(locked, source, gate, plan.names)
