"""``inspect``: what the store holds; frozen percentages. Imports no torch unless verifying."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.api.addresses import local
from clmoe_cli.api.contents import (
    Bytes,
    Commit,
    Expert,
    Frozen,
    FrozenRows,
    Input,
    Measured,
    Repaired,
    Rows,
    Shares,
    Task,
    Then,
    Unfinished,
    calibration_of,
    confusion_of,
    percent,
    selected,
    shares,
    together,
    unfinished,
)
from clmoe_cli.api.inputs import kind_text
from clmoe_cli.api.reports import Features, Report, accuracy_of, per_class_of
from clmoe_cli.runtime.events import OnStep, Step, counted, silent, whole
from clmoe_cli.runtime.words import amount, one_of
from store_schema import (
    DiskProblem,
    InputRecord,
    Manifest,
    ObjectRef,
    Store,
    StoreDamaged,
    TaskRecord,
    check_local,
    read_consistently,
    repair,
    verify,
    would_repair,
)

AllBits = Mapping[str, Mapping[str, NDArray[np.bool_]]]


@dataclass(frozen=True)
class InspectReport(Report):
    """The contract's object: experts, tasks, overlap matrix, history, bytes; ``findings`` of ``--verify``.

    Of each layer of an expert, weights that one task reads (``single``), several tasks (``shared``) and none
    (``free``) add up to its ``parameters``; the first two are ``frozen``. ``overlap`` is of the stored masks, which
    overlap by construction, since later tasks read earlier ones whole; ``measured`` of a task is what placement
    measured with its expert's tasks before it was learned (None: learned before that was kept). ``unfinished``: learns
    that were interrupted, or run now.
    """

    schema: ClassVar[str] = "clmoe.inspect/1"
    generation: int
    seed: int
    content_hash: str
    experts: tuple[Expert, ...]
    tasks: tuple[Task, ...]
    frozen_percent: float
    overlap: tuple[tuple[float | None, ...], ...]
    history: tuple[Commit, ...]
    bytes: Bytes
    verified: bool | None = None
    repaired: Repaired | None = None
    dry_run: bool = False
    unfinished: tuple[Unfinished, ...] = ()


@dataclass(frozen=True)
class TaskReport(Report):
    """One task: what ``inspect`` has of it, its expert's architecture and kind of input, and what was done to it.

    ``history``: the commits from the one that brought the task on, under all names that it had.
    """

    schema: ClassVar[str] = InspectReport.schema
    generation: int
    task: Task
    arch: str
    kind: str
    history: tuple[Commit, ...]


def inspect_task(store: str, name: str) -> TaskReport:
    """Reports on one task, from the manifest alone. Raises UsageProblem for an unknown name, and the store's errors."""

    def use(opened: Store) -> TaskReport:
        manifest = opened.manifest
        task = manifest.task(one_of("task", name, [t.name for t in manifest.tasks]))
        expert = manifest.expert(task.expert)
        kind = kind_text(expert.input_shape, expert.input)
        return TaskReport(manifest.generation, _task(task), expert.arch, kind, _done_to(task.name, _history(manifest)))

    return read_consistently(local(store), use)


def _done_to(name: str, history: Sequence[Commit]) -> tuple[Commit, ...]:
    """The commits that concern a task, back to the one that brought it; a rename says what it was called before.

    Those by which the store went back are among them, since they may have taken some of the others back.
    """
    found: list[Commit] = []
    for commit in reversed(history):
        if commit.action != "undo" and (commit.task != name or commit.action == "prune"):
            continue
        found.append(commit)
        if commit.action in ("learn", "copy"):
            break
        if commit.action == "rename" and commit.source is not None:
            name = commit.source
    return tuple(reversed(found))


def inspect(
    store: str, *, check: bool = False, mend: bool = False, dry_run: bool = False, on_step: OnStep = silent
) -> InspectReport:
    """Reports on a store, which is only read.

    ``check``: every file's hash and structure, the bytes of every task's subnetwork against the hash stored at
    its commit, and its outputs on the fixed probe inputs. Raises StoreDamaged naming every damaged file, and
    DiskProblem where there are only some that cannot be read.
    ``mend``: before anything else, a damaged store goes back to its newest generation that is whole
    (:func:`store_schema.repair`); with ``dry_run`` it stays as it is, and the report is what it would be afterwards.
    """
    if mend:
        check_local(store)
    store = local(store)
    if mend and dry_run:
        found, left = would_repair(store)
        if check:
            _certify(left, on_step)
        return replace(_inspect(left, check, on_step), repaired=Repaired(**vars(found)), dry_run=True)
    if mend:
        with whole(on_step, "repairing"):
            repaired = Repaired(**vars(repair(store)))
        return replace(inspect(store, check=check, on_step=on_step), repaired=repaired)
    if check:
        findings = [
            f
            for f in verify(store, lambda what, done, total: on_step(Step(f"checking {what}", done, total, what)))
            if f.damage
        ]
        if findings and all(f.unread for f in findings):
            raise DiskProblem(
                f"{amount(len(findings), 'file')} that cannot be read",
                where=", ".join(f.file for f in findings),
                found="; ".join(f.problem for f in findings),
                hint="check the permissions of the folder and the files",
            )
        if findings:
            raise StoreDamaged(
                amount(len(findings), "damaged file"),
                where=", ".join(f.file for f in findings),
                found="; ".join(f.problem for f in findings),
                hint="restore the files from a copy of the store, or go back with clmoe inspect --repair",
            )

    def use(opened: Store) -> InspectReport:
        if check:
            _certify(opened, on_step)
        return _inspect(opened, check, on_step)

    return replace(read_consistently(store, use), dry_run=dry_run)


def _certify(opened: Store, on_step: OnStep) -> None:
    from clmoe_cli.api.certify import certify_outputs

    certify_outputs(opened, on_step)


def _inspect(opened: Store, check: bool, on_step: OnStep) -> InspectReport:
    manifest = opened.manifest
    bits = {
        t.name: opened.read_subnetwork(t.name, ("masks",)).masks
        for t in counted(manifest.tasks, on_step, "reading the store", "tasks")
    }
    experts = tuple(_expert(manifest, e.id, bits) for e in manifest.experts)
    whole = together("", [layer for expert in experts for layer in expert.layers])
    return InspectReport(
        generation=manifest.generation,
        seed=manifest.seed,
        content_hash=manifest.content_hash(),
        experts=experts,
        tasks=tuple(map(_task, manifest.tasks)),
        frozen_percent=whole.frozen_percent,
        overlap=_overlap(manifest, bits),
        history=_history(manifest),
        bytes=_bytes(manifest),
        verified=True if check else None,
        unfinished=unfinished(opened),
    )


def _task(task: TaskRecord) -> Task:
    measured = None
    if task.measured is not None:
        measured = tuple(Measured(m.task, m.hamming, m.overlap, m.divergence, m.chance_overlap) for m in task.measured)
    return Task(
        name=task.name,
        expert=task.expert,
        classes=task.classes,
        accuracy=accuracy_of(task),
        per_class=per_class_of(task),
        opinion=task.opinion,
        measured=measured,
        layers=tuple(selected(own.name, own.parameters, own.selected, own.reused) for own in task.layers),
        owned_parameters=task.owned_parameters,
        images=task.images,
        learned_at=task.learned_at,
        bytes=task.subnetwork.size,
        confusion=confusion_of(task),
        calibration=calibration_of(task),
    )


def _expert(manifest: Manifest, expert: str, bits: AllBits) -> Expert:
    record = manifest.expert(expert)
    tasks = manifest.tasks_of(expert)
    layers: list[Shares] = []
    for layer in record.layers:
        used, several = np.zeros((2, *layer.shape), dtype=bool)
        for t in tasks:
            several |= used & bits[t.name][layer.name]
            used |= bits[t.name][layer.name]
        frozen, shared = int(used.sum()), int(several.sum())
        layers.append(shares(layer.name, used.size, frozen - shared, shared))
    rows = sum(len(t.classes) for t in tasks)
    return Expert(
        id=expert,
        arch=record.arch,
        input_shape=record.input_shape,
        kind=kind_text(record.input_shape, record.input),
        input=None if record.input is None else _input(record.input),
        eyes="none" if (gate := manifest.gate(record.input_shape, record.input)) is None else gate.eyes,
        tasks=tuple(t.name for t in tasks),
        layers=tuple(layers),
        frozen_percent=together("", layers).frozen_percent,
        output_rows=Rows(rows, rows, 100.0 if rows else 0.0),
        owned_parameters=sum(t.owned_parameters for t in tasks),
    )


def _input(record: InputRecord) -> Input:
    seen = None if record.features is None else Features(record.features.arch, record.features.sha256)
    return Input(record.image_size, record.channels, seen)


def _history(manifest: Manifest) -> tuple[Commit, ...]:
    """Frozen weights per layer after each commit; output rows in percent of the rows that the expert has now."""
    sizes = {(e.id, layer.name): int(np.prod(layer.shape)) for e in manifest.experts for layer in e.layers}
    rows_now = {e.id: sum(len(t.classes) for t in manifest.tasks_of(e.id)) for e in manifest.experts}
    entries = []
    for entry in manifest.history:
        experts = {}
        for expert, frozen in entry.frozen.items():
            if expert not in rows_now:
                continue
            rows = entry.output_rows.get(expert, 0)
            experts[expert] = Then(
                layers=tuple(_frozen(name, sizes[expert, name], count) for name, count in frozen.items()),
                output_rows=FrozenRows(rows, percent(rows, max(rows, rows_now[expert]))),
            )
        done = entry.at, entry.images, entry.source
        entries.append(Commit(entry.generation, entry.action, entry.task, experts, *done))
    return tuple(entries)


def _overlap(manifest: Manifest, bits: AllBits) -> tuple[tuple[float | None, ...], ...]:
    """Cohen's kappa of every two tasks, [T, T] in the order of the tasks; None where they share no expert."""
    names = [t.name for t in manifest.tasks]
    matrix: list[list[float | None]] = [[None] * len(names) for _ in names]
    for expert in manifest.experts:
        own = [i for i, t in enumerate(manifest.tasks) if t.expert == expert.id]
        differ = np.zeros((len(own), len(own)))
        chance = np.zeros_like(differ)
        for layer in expert.layers:
            packed = np.stack([bits[names[i]][layer.name].ravel() for i in own]) if own else np.zeros((0, 1))
            flat = packed.astype(np.float32)
            counts = flat.sum(axis=1, dtype=np.float64)
            both = (flat @ flat.T).astype(np.float64)
            density = counts / flat.shape[1]
            differ += counts[:, None] + counts[None, :] - 2 * both
            a, b = density[:, None], density[None, :]
            chance += flat.shape[1] * (a * (1 - b) + b * (1 - a))
        kappa = 1.0 - np.divide(differ, chance, out=np.zeros_like(differ), where=chance > 0)
        for i, row in zip(own, kappa, strict=True):
            for j, value in zip(own, row, strict=True):
                matrix[i][j] = round(float(value), 6)
    return tuple(map(tuple, matrix))


def _bytes(manifest: Manifest) -> Bytes:
    def size(*files: ObjectRef | None) -> int:
        return sum(file.size for file in files if file is not None)

    experts = {e.id: size(e.weights, e.base) for e in manifest.experts if e.weights is not None}
    tasks = {t.name: t.subnetwork.size for t in manifest.tasks}
    gates = {kind_text(g.input_shape, g.input): size(g.solved, g.eye, g.eye_base) for g in manifest.gates}
    # Experts may share a base, and an eye that of an expert.
    once = {file.sha256: file.size for file in manifest.objects()}
    return Bytes(experts, tasks, gates, sum(once.values()))


def _frozen(name: str, parameters: int, frozen: int) -> Frozen:
    return Frozen(name, parameters, frozen, percent(frozen, parameters))
