"""``learn``: onset → placement → training → subnetwork → commit, as one atomic step of the store."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Literal

import torch
from torch import Tensor

from clmoe_cli.commands import common
from clmoe_cli.commands.names import one_of
from clmoe_cli.commands.reports import LayerUse, LearnReport, Onset
from clmoe_cli.continual import learning, masks
from clmoe_cli.continual.experts import MLP, parse_arch
from clmoe_cli.continual.onset import Verdict, decide
from clmoe_cli.continual.placement import IMAGES, Candidate, KnownTask, Placement, Thresholds, compare, place
from clmoe_cli.continual.selection import SCORES
from clmoe_cli.continual.training import Labelled, OnEpoch
from clmoe_cli.data import Batch
from clmoe_cli.labels import Codebook
from clmoe_cli.state import Loader, derived_seed, environment, generator, merged, network, to_record
from store_schema import (
    Accuracy,
    BadInput,
    ExpertRecord,
    HistoryEntry,
    LayerRecord,
    Manifest,
    Probe,
    TaskLayer,
    TaskRecord,
    UsageProblem,
    Writer,
    encode_subnetwork,
    encode_weights,
    subnetwork_digest,
    writer,
)

IF_KNOWN = ("skip", "refine", "new")


@dataclass(frozen=True)
class LearnOptions:
    """Everything that ``learn`` can be told; the defaults need no touch.

    ``expert``: an expert's id, ``new``, or None to let placement decide. ``alpha``: rate of false alarms of
    the onset. ``seed`` counts when the store is created; a store keeps its seed.
    """

    name: str | None = None
    arch: str = "mlp:500,500"
    seed: int | None = None
    expert: str | None = None
    if_known: str = "skip"
    alpha: float = 0.01
    method: learning.Options = field(default_factory=learning.Options)
    thresholds: Thresholds = field(default_factory=Thresholds)
    lock_timeout: float | None = None


def learn(
    store: str,
    batch: Batch,
    options: LearnOptions | None = None,
    *,
    on_epoch: OnEpoch = lambda epoch: None,
    on_wait: Callable[[str], None] = lambda holder: None,
) -> LearnReport:
    """Learns a batch as a new task, or says that it is known.

    ``batch``: labelled images, :func:`clmoe_cli.data.read_batch`. Creates the store when there is none.

    Raises BadInput for data that cannot be learned, UsageProblem for options that make no sense,
    StoreDamaged, StoreLocked and DiskProblem from the store. Nothing is changed then.
    """
    options = options or LearnOptions()
    started = time.monotonic()
    _check(batch, options)
    with writer(
        store,
        seed=options.seed if options.seed is not None else 0,
        timeout=options.lock_timeout,
        create=True,
        on_wait=on_wait,
    ) as locked:
        report = _Learning(locked, batch, options, on_epoch).run()
    return replace(report, seconds=round(time.monotonic() - started, 3))


def _check(batch: Batch, options: LearnOptions) -> None:
    if batch.labels is None:
        raise BadInput("no labels to learn from", where=batch.source, expected="labels y [N]")
    classes = batch.classes()
    if len(classes) < 2:
        raise BadInput(
            "a task needs at least two classes",
            where=batch.source,
            found=f"only {classes[0]!r}",
            expected="two or more",
            hint="a subnetwork tells classes apart; with a single one there is nothing to learn: add another class",
        )
    one_of("value of --if-known", options.if_known, IF_KNOWN)
    one_of("score", options.method.score, SCORES)
    try:
        parse_arch(options.arch, 1)
    except ValueError as error:
        raise UsageProblem(str(error)) from error


class _Learning:
    """One run of ``learn`` under the store's lock."""

    def __init__(self, locked: Writer, batch: Batch, options: LearnOptions, on_epoch: OnEpoch) -> None:
        assert batch.labels is not None
        self.locked, self.batch, self.options, self.on_epoch = locked, batch, options, on_epoch
        self.manifest: Manifest = locked.manifest
        self.loader = Loader(locked.store)
        if options.seed is not None and self.manifest.generation > 0 and options.seed != self.manifest.seed:
            raise UsageProblem(
                "the store has another seed",
                found=str(options.seed),
                expected=str(self.manifest.seed),
                hint="leave --seed out: a store keeps the seed that it was created with",
            )
        if options.expert not in (None, "new"):
            one_of("expert", str(options.expert), [e.id for e in self.manifest.experts])
        self.number = self.manifest.next_task
        self.seed = derived_seed(self.manifest.seed, self.number, "task")
        self.generator = generator(self.seed)
        self.classes = batch.classes()
        self.experts = [
            e for e in self.manifest.experts if e.input_shape == batch.input_shape and self.manifest.tasks_of(e.id)
        ]
        self.names = [t.name for t in self.manifest.tasks if t.expert in {e.id for e in self.experts}]

    def run(self) -> LearnReport:
        verdict = self._onset()
        known = verdict.known and self.options.if_known != "new"
        if known and self.options.if_known == "skip":
            return self._skipped(verdict)
        if known:
            return self._refine(verdict)
        name = self._new_name()
        placement, candidates, record = self._place()
        net = network(record)
        x, y = self._tensors(record.input_scale)
        old = [t.name for t in self.manifest.tasks_of(record.id)]
        new_expert = placement.expert is None
        zeros = {key: torch.zeros(shape) for key, shape in net.shared_shapes().items()}
        base = zeros if new_expert else self.loader.shared(record.id)
        frozen = masks.none_of(zeros) if new_expert else self.loader.frozen(record.id)
        readable = masks.none_of(zeros) if new_expert else self.loader.frozen(record.id, placement.reads)
        learned = learning.learn_task(
            name,
            record.id,
            net,
            base,
            frozen,
            readable,
            Labelled(x, y),
            len(self.classes),
            self.options.method,
            self.generator,
            self.on_epoch,
        )
        committed = self._commit(record, net, learned, frozen, old, "learn")
        return self._report(committed, name, "learned", new_expert, verdict, placement, candidates)

    def _onset(self) -> Verdict:
        labels = self.batch.labels
        assert labels is not None
        book = Codebook.of(self.classes, *(t.classes for t in self.manifest.tasks))
        index = common.sample(len(labels), common.ONSET_IMAGES, self.generator)
        codes = torch.from_numpy(book.encode(labels))
        if self.names and set(codes.unique().tolist()) <= set(
            book.codes([c for name in self.names for c in self.manifest.task(name).classes])
        ):
            evidence, _ = common.onset_evidence(self.loader, self.names, self.batch, index, book, "fisher")
            return decide(evidence, codes[index], self.options.alpha)
        if not self.names:
            return Verdict(False, (), None, "no task with images of this shape is known yet")
        # An unseen class settles it; the p-value is reported all the same.
        evidence, _ = common.onset_evidence(self.loader, self.names, self.batch, index, book, "fisher")
        unseen = decide(evidence, None, self.options.alpha)
        return Verdict(False, (), unseen.p_value, "it has classes that no known task has")

    def _place(self) -> tuple[Placement, list[Candidate], ExpertRecord]:
        wanted = self.options.expert
        fitting = [e for e in self.experts if e.arch == self.options.arch and wanted in (None, "new", e.id)]
        if wanted not in (None, "new") and not fitting:
            record = self.manifest.expert(str(wanted))
            raise UsageProblem(
                "the task does not fit into that expert",
                key=record.id,
                found=f"{self.options.arch}, images {common.shape_text(self.batch.input_shape)}",
                expected=f"{record.arch}, images {common.shape_text(record.input_shape)}",
            )
        candidates: list[Candidate] = []
        room: dict[str, float] = {}
        for record in fitting:
            net = network(record)
            x, y = self._tensors(record.input_scale)
            index = common.sample(len(x), IMAGES, self.generator)
            fresh = net.initial_shared(self.generator)
            for task in self.manifest.tasks_of(record.id):
                t = self.loader.task(task.name)
                known = KnownTask(t.name, t.expert, t.params, t.mask, t.scores)
                few = Labelled(x[index], y[index])
                candidates.append(compare(known, fresh, few, len(self.classes), self.options.thresholds))
            frozen = self.loader.frozen(record.id)
            room[record.id] = min(1.0 - float(mask.double().mean()) for mask in frozen.values())
        if wanted not in (None, "new"):
            reads = tuple(c.task for c in candidates if c.constructive)
            return Placement(str(wanted), reads, f"expert {wanted} was asked for"), candidates, fitting[0]
        placement = place(candidates, room, self.options.thresholds)
        if wanted == "new":
            placement = Placement(None, (), "a new expert was asked for")
        if placement.expert is not None:
            return placement, candidates, self.manifest.expert(placement.expert)
        return placement, candidates, self._new_expert()

    def _new_expert(self) -> ExpertRecord:
        number = self.manifest.next_expert
        net = parse_arch(self.options.arch, int(torch.tensor(self.batch.input_shape).prod()))
        return ExpertRecord(
            id=f"e{number}",
            arch=self.options.arch,
            input_shape=self.batch.input_shape,
            input_scale=common.input_scale(self.batch),
            seed=derived_seed(self.manifest.seed, number, "expert"),
            layers=tuple(LayerRecord(name=name, shape=shape) for name, shape in net.shared_shapes().items()),
            weights=None,
        )

    def _refine(self, verdict: Verdict) -> LearnReport:
        if len(verdict.tasks) != 1:
            raise BadInput(
                "cannot refine several tasks at once",
                where=self.batch.source,
                found=", ".join(verdict.tasks),
                expected="data of one task",
                hint="give each task's data by itself",
            )
        name = verdict.tasks[0]
        old = self.manifest.task(name)
        record = self.manifest.expert(old.expert)
        task = self.loader.task(name)
        others = [t.name for t in self.manifest.tasks_of(record.id) if t.name != name]
        taken = self.loader.frozen(record.id, others)
        x, _ = self._tensors(record.input_scale)
        book = Codebook.of(old.classes)
        assert self.batch.labels is not None
        y = torch.from_numpy(book.encode(self.batch.labels))
        learned = learning.refine_task(
            task,
            masks.both(task.mask, masks.inverse(taken)),
            Labelled(x, y),
            self.options.method,
            generator(derived_seed(self.seed, old.images, "refine")),
            self.on_epoch,
        )
        committed = self._commit(record, network(record), learned, taken, others, "refine", old)
        placement = Placement(record.id, (), f"refined in place: {verdict.reason}")
        return self._report(committed, name, "refined", False, verdict, placement, [])

    def _commit(
        self,
        record: ExpertRecord,
        net: MLP,
        learned: learning.Learned,
        frozen: masks.Masks,
        others: list[str],
        action: Literal["learn", "refine"],
        old: TaskRecord | None = None,
    ) -> Manifest:
        task, manifest = learned.subnetwork, self.manifest
        before = self.loader.weights(record.id) if record.weights is not None else None
        weights = merged(before, net, learned)
        body = to_record(learned)
        digest = subnetwork_digest(weights, body.masks, task.name)
        record = record.model_copy(
            update={"weights": self.locked.put(encode_weights(weights, record.id), "safetensors")}
        )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        method = self.options.method
        entry = TaskRecord(
            name=task.name,
            number=old.number if old else self.number,
            expert=record.id,
            classes=old.classes if old else self.classes,
            seed=old.seed if old else self.seed,
            subnetwork=self.locked.put(encode_subnetwork(body), "h5"),
            subnetwork_sha256=digest,
            probe=Probe(
                sha256=common.digest(body.probe_outputs),
                environment=" ".join(f"{k}={v}" for k, v in sorted(environment().items())),
            ),
            layers=tuple(
                TaskLayer(
                    name=name,
                    parameters=mask.numel(),
                    selected=int(mask.sum()),
                    reused=int((mask & frozen[name]).sum()),
                )
                for name, mask in task.mask.items()
            ),
            owned_parameters=sum(v.numel() for n, v in task.params.items() if n not in task.mask),
            accuracy=Accuracy(
                dense=learned.dense.accuracy if learned.dense else None,
                subnetwork=learned.accuracy.accuracy if learned.accuracy else None,
                held_out=learned.held_out,
            ),
            images=len(self.batch.images) + (old.images if old else 0),
            config={"score": method.score, "max_drop": method.tolerance.max_drop, "epochs": method.schedule.epochs},
            learned_at=now,
        )
        tasks = tuple(t for t in manifest.tasks if t.name != task.name)
        experts = tuple(e for e in manifest.experts if e.id != record.id)
        tasks = tuple(sorted((*tasks, entry), key=lambda t: t.number))
        experts = tuple(sorted((*experts, record), key=lambda e: int(e.id[1:])))
        used = masks.union(task.mask, [task.mask, *(self.loader.task(name).mask for name in others)])
        frozen_now = dict(manifest.history[-1].frozen) if manifest.history else {}
        rows = dict(manifest.history[-1].output_rows) if manifest.history else {}
        frozen_now[record.id] = {name: int(mask.sum()) for name, mask in used.items()}
        rows[record.id] = sum(len(t.classes) for t in tasks if t.expert == record.id)
        return self.locked.commit(
            manifest.model_copy(
                update={
                    "tasks": tasks,
                    "experts": experts,
                    "next_task": manifest.next_task + (old is None),
                    "next_expert": max(manifest.next_expert, int(record.id[1:]) + 1),
                    "environment": environment(),
                    "history": (
                        *manifest.history,
                        HistoryEntry(
                            generation=manifest.generation + 1,
                            action=action,
                            task=task.name,
                            frozen=frozen_now,
                            output_rows=rows,
                        ),
                    ),
                }
            )
        )

    def _tensors(self, scale: float) -> tuple[Tensor, Tensor]:
        assert self.batch.labels is not None
        y = torch.from_numpy(Codebook.of(self.classes).encode(self.batch.labels))
        return common.flat(self.batch, scale), y

    def _new_name(self) -> str:
        taken = {t.name for t in self.manifest.tasks}
        name = self.options.name or f"task{self.number}"
        while self.options.name is None and name in taken:
            name += "b"
        if name in taken:
            raise UsageProblem(
                "a task of that name exists", found=repr(name), hint="choose another --name, or prune that task first"
            )
        return name

    def _skipped(self, verdict: Verdict) -> LearnReport:
        placement = Placement(None, (), f"nothing changed: {verdict.reason}")
        return self._report(self.manifest, verdict.tasks[0], "known", False, verdict, placement, [])

    def _report(
        self,
        manifest: Manifest,
        name: str,
        status: str,
        new_expert: bool,
        verdict: Verdict,
        placement: Placement,
        candidates: list[Candidate],
    ) -> LearnReport:
        task = manifest.task(name)
        frozen = manifest.history[-1].frozen[task.expert]
        return LearnReport(
            task=name,
            expert=task.expert,
            status=status,
            new_expert=new_expert,
            classes=task.classes,
            accuracy=task.accuracy.model_dump(),
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
            onset=Onset("known" if verdict.known else "new", verdict.p_value, verdict.tasks, verdict.reason),
            candidates=tuple(asdict(c) for c in candidates),
            reads=placement.reads,
            reason=placement.reason,
            seed=manifest.seed,
            seconds=0.0,
        )
