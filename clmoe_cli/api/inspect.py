"""``inspect``: what the store holds; frozen percentages. Imports no torch unless verifying."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.api.inputs import kind_text
from clmoe_cli.api.reports import Report, accuracy_of, per_class_of
from clmoe_cli.runtime.events import OnStep, Step, counted, silent, whole
from store_schema import Manifest, Store, StoreDamaged, read_consistently, repair, verify, would_repair

AllBits = Mapping[str, Mapping[str, NDArray[np.bool_]]]


@dataclass(frozen=True)
class InspectReport(Report):
    """The contract's object: experts, tasks, overlap matrix, history, bytes; ``findings`` of ``--verify``.

    Of each layer of an expert, weights that one task reads (``single``), several tasks (``shared``) and none
    (``free``) add up to its ``parameters``; the first two are ``frozen``. ``overlap`` is of the stored masks, which
    overlap by construction, since later tasks read earlier ones whole; ``measured`` of a task is what placement
    measured with its expert's tasks before it was learned (None: learned before that was kept).
    """

    schema: ClassVar[str] = "clmoe.inspect/1"
    generation: int
    seed: int
    content_hash: str
    experts: tuple[dict[str, Any], ...]
    tasks: tuple[dict[str, Any], ...]
    frozen_percent: float
    overlap: tuple[tuple[float | None, ...], ...]
    history: tuple[dict[str, Any], ...]
    bytes: dict[str, Any]
    verified: bool | None = None
    repaired: dict[str, Any] | None = None
    dry_run: bool = False


def inspect(
    store: str, *, check: bool = False, mend: bool = False, dry_run: bool = False, on_step: OnStep = silent
) -> InspectReport:
    """Reports on a store, which is only read.

    ``check``: every file's hash and structure, the bytes of every task's subnetwork against the hash stored at
    its commit, and its outputs on the fixed probe inputs. Raises StoreDamaged naming every damaged file.
    ``mend``: before anything else, a damaged store goes back to its newest generation that is whole
    (:func:`store_schema.repair`); with ``dry_run`` it stays as it is, and the report is what it would be afterwards.
    """
    if mend and dry_run:
        found, left = would_repair(store)
        if check:
            _certify(left, on_step)
        return replace(_inspect(left, check, on_step), repaired=asdict(found), dry_run=True)
    if mend:
        with whole(on_step, "repairing"):
            repaired = asdict(repair(store))
        return replace(inspect(store, check=check, on_step=on_step), repaired=repaired)
    if check:
        findings = [
            f
            for f in verify(store, lambda what, done, total: on_step(Step(f"checking {what}", done, total, what)))
            if f.damage
        ]
        if findings:
            raise StoreDamaged(
                f"{len(findings)} damaged file{'s' if len(findings) > 1 else ''}",
                where=", ".join(f.file for f in findings),
                found="; ".join(f.problem for f in findings),
                expected="every file as it was committed",
                hint="restore the files from a copy of the store, or go back with clmoe inspect --repair",
            )
        read_consistently(store, lambda opened: _certify(opened, on_step))
    return replace(read_consistently(store, lambda opened: _inspect(opened, check, on_step)), dry_run=dry_run)


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
    parameters = sum(layer["parameters"] for e in experts for layer in e["layers"])
    frozen = sum(layer["frozen"] for e in experts for layer in e["layers"])
    return InspectReport(
        generation=manifest.generation,
        seed=manifest.seed,
        content_hash=manifest.content_hash(),
        experts=experts,
        tasks=tuple(
            {
                "name": t.name,
                "expert": t.expert,
                "classes": list(t.classes),
                "accuracy": accuracy_of(t),
                "per_class": list(per_class_of(t)),
                "opinion": t.opinion,
                "measured": None if t.measured is None else [m.model_dump() for m in t.measured],
                "layers": [
                    {**layer.model_dump(), "percent": _percent(layer.selected, layer.parameters)} for layer in t.layers
                ],
                "owned_parameters": t.owned_parameters,
                "images": t.images,
                "learned_at": t.learned_at,
                "bytes": t.subnetwork.size,
            }
            for t in manifest.tasks
        ),
        frozen_percent=_percent(frozen, parameters),
        overlap=_overlap(manifest, bits),
        history=_history(manifest),
        bytes=_bytes(manifest),
        verified=True if check else None,
    )


def _expert(manifest: Manifest, expert: str, bits: AllBits) -> dict[str, Any]:
    record = manifest.expert(expert)
    tasks = manifest.tasks_of(expert)
    layers = []
    for layer in record.layers:
        used, several = np.zeros((2, *layer.shape), dtype=bool)
        for t in tasks:
            several |= used & bits[t.name][layer.name]
            used |= bits[t.name][layer.name]
        frozen, shared = int(used.sum()), int(several.sum())
        parts = {"single": frozen - shared, "shared": shared, "free": used.size - frozen}
        layers.append({**_share(layer.name, used.size, frozen), **parts})
    rows = sum(len(t.classes) for t in tasks)
    return {
        "id": expert,
        "arch": record.arch,
        "input_shape": list(record.input_shape),
        "kind": kind_text(record.input_shape, record.input),
        "input": None if record.input is None else record.input.model_dump(),
        "tasks": [t.name for t in tasks],
        "layers": layers,
        "frozen_percent": _percent(sum(x["frozen"] for x in layers), sum(x["parameters"] for x in layers)),
        "output_rows": {"rows": rows, "frozen": rows, "frozen_percent": 100.0 if rows else 0.0},
        "owned_parameters": sum(t.owned_parameters for t in tasks),
    }


def _history(manifest: Manifest) -> tuple[dict[str, Any], ...]:
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
            experts[expert] = {
                "layers": [_share(name, sizes[expert, name], count) for name, count in frozen.items()],
                "output_rows": {"frozen": rows, "frozen_percent": _percent(rows, max(rows, rows_now[expert]))},
            }
        entries.append({"generation": entry.generation, "action": entry.action, "task": entry.task, "experts": experts})
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


def _bytes(manifest: Manifest) -> dict[str, Any]:
    weights = {e.id: e.weights.size for e in manifest.experts if e.weights is not None}
    tasks = {t.name: t.subnetwork.size for t in manifest.tasks}
    gates = {kind_text(g.input_shape, g.input): g.solved.size for g in manifest.gates}
    parts = {"experts": weights, "tasks": tasks, "gates": gates}
    return {**parts, "total": sum(sum(sizes.values()) for sizes in parts.values())}


def _share(name: str, parameters: int, frozen: int) -> dict[str, Any]:
    return {"name": name, "parameters": parameters, "frozen": frozen, "frozen_percent": _percent(frozen, parameters)}


def _percent(part: int, whole: int) -> float:
    return round(100.0 * part / whole, 4) if whole else 0.0
