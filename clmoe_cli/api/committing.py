"""The last steps of ``learn``: a learned task as records and objects, one commit, one report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import PurePath
from typing import Literal

from clmoe_cli.api import common, gating, reports
from clmoe_cli.api.inputs import kept_columns
from clmoe_cli.api.measuring import Kind, Measured
from clmoe_cli.api.names import proper
from clmoe_cli.api.reports import LayerUse, LearnReport, Onset, Status, accuracy_of, per_class_of
from clmoe_cli.api.scoring import calibration
from clmoe_cli.api.session import Session
from clmoe_cli.method.learn_task import Learned
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.tasks.novelty import Verdict
from clmoe_cli.method.tasks.placement import Candidate, Placement
from clmoe_cli.runtime.events import counted, whole
from clmoe_cli.store_tensors import environment, merged, to_record
from store_schema import (
    Accuracy,
    ClassAccuracy,
    ConfidenceBin,
    ExpertRecord,
    ExpertWeights,
    HistoryEntry,
    Manifest,
    MeasuredRecord,
    ObjectRef,
    Probe,
    SubnetworkRecord,
    TaskLayer,
    TaskRecord,
    Writer,
    WrongAnswer,
    encode_base,
    encode_subnetwork,
    encode_weights,
    subnetwork_digest,
)
from store_schema.layout import MAX_CONFUSIONS


@dataclass(frozen=True)
class Origin:
    """Where a task comes from, and where it goes.

    ``record``: its expert's, without weights if it is a new one, and ``others``, the expert's other tasks. Its number
    and seed, its classes, images seen so far; ``scaling``: how the expert reads inputs; ``measured``: how it agreed
    with tasks of its expert before.
    """

    action: Literal["learn", "refine"]
    record: ExpertRecord
    others: Sequence[str]
    number: int
    seed: int
    classes: tuple[int | str, ...]
    images: int
    scaling: Scaling
    measured: tuple[MeasuredRecord, ...] | None


def commit_learned(
    session: Session, locked: Writer, learned: Learned, origin: Origin, kind: Kind, measures: Measured
) -> Manifest:
    """Commits a task to its expert, with what was measured of it. Returns what was committed."""
    task, manifest, record, others = learned.subnetwork, locked.manifest, origin.record, origin.others
    loader, batch, on_step, net = session.loader, session.batch, session.on_step, session.network(origin.record)
    before = loader.weights(record.id) if record.weights is not None else None
    read = counted(others, on_step, "reading the store", "tasks")
    used = masks.union(task.mask, [task.mask, *(loader.task(name).mask for name in read)])
    weights = merged(before, net, learned, used, origin.scaling)
    stored = locked.put(encode_weights(weights, record.id), "safetensors")
    base = record.base
    if record.weights is None and net.base:
        below = {name: value.numpy(force=True) for name, value in net.base.items()}
        base = locked.put(encode_base(below), "safetensors")
    record = record.model_copy(update={"weights": stored, "base": base})
    # Later tasks may read a refined one; what it reuses is what was there before it.
    earlier = [loader.task(name).mask for name in others if manifest.task(name).number < origin.number]
    reused = masks.intersection(task.mask, masks.union(task.mask, earlier))
    body = to_record(learned, measures.statistics)
    stored_task = _Stored(locked.put(encode_subnetwork(body), "h5"), weights, body, reused, measures)
    entry = _task_record(session, learned, origin, stored_task)
    tasks = sorted((*(t for t in manifest.tasks if t.name != task.name), entry), key=lambda t: t.number)
    experts = sorted((*(e for e in manifest.experts if e.id != record.id), record), key=lambda e: int(e.id[1:]))
    last = manifest.history[-1] if manifest.history else None
    now_frozen = {**(last.frozen if last else {}), record.id: {n: int(m.sum()) for n, m in used.items()}}
    rows = {
        **(last.output_rows if last else {}),
        record.id: sum(len(t.classes) for t in tasks if t.expert == record.id),
    }
    history = HistoryEntry(
        generation=manifest.generation + 1,
        action=origin.action,
        task=task.name,
        frozen=now_frozen,
        output_rows=rows,
        images=len(batch.images),
        source=_named(batch.source),
    )
    update = {
        "tasks": tuple(tasks),
        "experts": tuple(experts),
        "gates": gating.updated(locked, loader, batch, kind, origin.number, measures.statistics),
        "next_task": max(manifest.next_task, origin.number + 1),
        "next_expert": max(manifest.next_expert, int(record.id[1:]) + 1),
        "environment": environment(),
        "history": (*manifest.history, history),
    }
    with whole(on_step, "commit"):
        return locked.commit(manifest.model_copy(update=update))


@dataclass(frozen=True)
class _Stored:
    """A task as it goes to disk: its object, the expert's weights, what it reuses of other tasks, what was measured."""

    subnetwork: ObjectRef
    weights: ExpertWeights
    body: SubnetworkRecord
    reused: masks.Masks
    measures: Measured


def _task_record(session: Session, learned: Learned, origin: Origin, stored: _Stored) -> TaskRecord:
    task, method = learned.subnetwork, session.options.method
    return TaskRecord(
        name=task.name,
        number=origin.number,
        expert=origin.record.id,
        classes=origin.classes,
        seed=origin.seed,
        subnetwork=stored.subnetwork,
        subnetwork_sha256=subnetwork_digest(stored.weights, stored.body.masks, task.name),
        probe=Probe(
            sha256=common.digest(stored.body.probe_outputs),
            environment=" ".join(f"{k}={v}" for k, v in sorted(environment().items())),
        ),
        layers=tuple(
            TaskLayer(
                name=name,
                parameters=mask.numel(),
                selected=int(mask.sum()),
                reused=int(stored.reused[name].sum()),
            )
            for name, mask in task.mask.items()
        ),
        owned_parameters=sum(v.numel() for n, v in task.params.items() if n not in task.mask),
        opinion=stored.measures.opinion,
        accuracy=_accuracy(learned, stored.measures),
        measured=origin.measured,
        images=origin.images,
        sketch=tuple(tuple(round(v, 4) for v in row) for row in learned.sketch.tolist()),
        config={
            "score": method.score, "max_drop": method.tolerance.max_drop, "epochs": method.schedule.epochs,
            **({"augment": learned.augmented} if learned.augmented else {}),
            **kept_columns(session.batch),
        },
        learned_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )  # fmt: skip


def _accuracy(learned: Learned, measures: Measured) -> Accuracy:
    """What held-out images tell of a task. Without any, the gate's own are those that its fits left out."""
    each = measures.per_class
    wrong = [WrongAnswer(position=c, label=label, images=n) for c, label, n in measures.wrong[:MAX_CONFUSIONS]]
    bins = [
        ConfidenceBin(images=one.images, right=one.right, confidence=round(one.confidence, 4))
        for one in calibration(measures.confidence.numpy(), measures.right.numpy())
    ]
    return Accuracy(
        dense=learned.dense.accuracy if learned.dense else None,
        subnetwork=learned.accuracy.accuracy if learned.accuracy else None,
        held_out=learned.held_out or measures.held_out,
        answer=measures.answer,
        within=measures.within,
        guessing=measures.guessing,
        per_class=None if each is None else tuple(ClassAccuracy(images=n, accuracy=share) for n, share in each),
        confusion=None if each is None else tuple(wrong),
        calibration=None if each is None else tuple(bins),
    )


def measured(candidates: Sequence[Candidate], expert: str) -> tuple[MeasuredRecord, ...]:
    """What placement measured with the tasks of the expert that was chosen."""
    return tuple(
        MeasuredRecord(
            task=c.task,
            hamming=c.hamming,
            overlap=c.overlap,
            divergence=c.divergence,
            chance_overlap=c.chance_overlap,
        )
        for c in candidates
        if c.expert == expert
    )


def onset_of(verdict: Verdict) -> Onset:
    """A verdict as reports have it."""
    return Onset(verdict.verdict, verdict.p_value, verdict.tasks, verdict.reason)


def candidates_of(candidates: Sequence[Candidate]) -> tuple[reports.Candidate, ...]:
    """Comparisons as reports have them."""
    return tuple(reports.Candidate(**asdict(candidate)) for candidate in candidates)


def learn_report(
    manifest: Manifest,
    name: str,
    status: Status,
    new_expert: bool,
    verdict: Verdict,
    placement: Placement,
    candidates: list[Candidate],
) -> LearnReport:
    """The report on a task that the manifest has."""
    task = manifest.task(name)
    frozen = manifest.history[-1].frozen[task.expert]
    return LearnReport(
        task=name,
        expert=task.expert,
        status=status,
        new_expert=new_expert,
        classes=task.classes,
        accuracy=accuracy_of(task),
        per_class=per_class_of(task),
        opinion=task.opinion,
        layers=tuple(
            LayerUse(
                layer.name,
                layer.parameters,
                layer.selected,
                layer.reused,
                round(100.0 * frozen[layer.name] / layer.parameters, 4),
            )
            for layer in task.layers
        ),
        owned_parameters=task.owned_parameters,
        onset=onset_of(verdict),
        candidates=candidates_of(candidates),
        reads=placement.reads,
        reason=placement.reason,
        seed=manifest.seed,
        seconds=0.0,
    )


def _named(source: str) -> str | None:
    """The name of the file that a batch is from, without its folder; None where it is no clean name."""
    name = PurePath(source).name or source
    return name if proper(name) else None
