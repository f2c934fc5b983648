"""``learn``: onset → placement → training → subnetwork → commit, as one atomic step of the store."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

import torch

from clmoe_cli.api import cautions, checks, common, gating, processes, ranges
from clmoe_cli.api.checks import check_expert, check_range, check_refining, check_seed
from clmoe_cli.api.committing import Origin, commit_learned, learn_report, measured
from clmoe_cli.api.evidence import onset_evidence, shortlisted
from clmoe_cli.api.measuring import Confusion
from clmoe_cli.api.names import new_task
from clmoe_cli.api.options import LearnOptions, check
from clmoe_cli.api.reports import Caution, LearnReport, OnWarning
from clmoe_cli.api.resuming import Resuming
from clmoe_cli.api.starting import Start, homes
from clmoe_cli.backbone.session import check_backbone
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Codebook, Label
from clmoe_cli.method import learn_task
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.training import OnEpoch
from clmoe_cli.method.tasks.novelty import Verdict, decide, listed, unseen
from clmoe_cli.method.tasks.placement import IMAGES, Candidate, KnownTask, Placement, compare, place
from clmoe_cli.runtime.events import OnStep, counted, silent, whole
from clmoe_cli.runtime.words import one_of
from clmoe_cli.store_tensors import Loader, derived_seed, generator, network
from store_schema import BadInput, ExpertRecord, LayerRecord, Manifest, MeasuredRecord, TaskRecord, Writer


def learn(
    store: str,
    batch: Batch,
    options: LearnOptions | None = None,
    *,
    on_epoch: OnEpoch = lambda epoch: None,
    on_wait: Callable[[str], None] = lambda holder: None,
    on_resume: Callable[[str], None] = lambda reached: None,
    on_step: OnStep = silent,
    on_warning: OnWarning = lambda caution: None,
) -> LearnReport:
    """Learns a batch as a new task, or says that it is known.

    ``batch``: labelled images, :func:`clmoe_cli.data.read_batch`. Creates the store when there is none.

    Raises BadInput for data that cannot be learned, UsageProblem for options that make no sense,
    StoreDamaged, StoreLocked and DiskProblem from the store. Nothing is changed then. What training had reached
    is kept: the same call goes on from there (``on_resume`` is told from where) and ends with the same task, bit for
    bit. A KeyboardInterrupt becomes Interrupted, which says so. ``on_step`` is told of all that may take long,
    ``on_warning`` of what looks wrong, as soon as it is seen.
    """
    options = options or LearnOptions()
    started, seed = time.monotonic(), options.seed or 0
    check(batch, options)
    check_expert(store, options.expert)
    with whole(on_step, "loading weights"):
        start = Start.of(options, batch)
    with (
        processes.writing(store, seed=seed, timeout=options.lock_timeout, on_wait=on_wait) as locked,
        Resuming(locked, batch, replace(options, weights=start.sha256), on_resume, on_step) as resuming,
    ):
        report = Learning(locked, batch, options, start, on_epoch, resuming, on_warning).run()
    return replace(report, seconds=round(time.monotonic() - started, 3), skipped=len(batch.skipped))


class Learning:
    """One run of ``learn`` under the store's lock."""

    def __init__(
        self,
        locked: Writer,
        batch: Batch,
        options: LearnOptions,
        start: Start,
        on_epoch: OnEpoch,
        resuming: Resuming,
        on_warning: OnWarning = lambda caution: None,
    ) -> None:
        assert batch.labels is not None
        self.on_warning, self.warnings = on_warning, list[Caution]()
        self.start, self.resuming, self.on_step = start, resuming, resuming.on_step
        self.locked, self.batch, self.options, self.on_epoch = locked, batch, options, on_epoch
        self.manifest: Manifest = locked.manifest
        self.loader = Loader(locked.store, options.method.device)
        check_seed(self.manifest, options.seed)
        checks.check_labels(self.manifest, batch)
        if options.expert not in (None, "new"):
            one_of("expert", str(options.expert), [*(e.id for e in self.manifest.experts), "new"])
        check_backbone(self.manifest, batch)
        gating.check(self.manifest, batch, "use a clmoe of the version that wrote it, or another --store")
        self.number = self.manifest.next_task
        self.seed = derived_seed(self.manifest.seed, self.number, "task")
        self.generator = generator(self.seed)
        self.classes = batch.classes()
        self.experts = [e for e in self.manifest.experts if common.reads(e, batch) and self.manifest.tasks_of(e.id)]
        self.names = [t.name for t in self.manifest.tasks if t.expert in {e.id for e in self.experts}]
        self.near: list[str] = []
        self.confused: tuple[Confusion, ...] = ()
        self.new_scaling = Scaling()

    def run(self) -> LearnReport:
        """Learns the batch, refines a task with it, or leaves it."""
        for caution in ranges.cautions(self.manifest, self.batch):
            self.warn(caution)
        report = self._run()
        return replace(report, warnings=tuple(self.warnings))

    def warn(self, caution: Caution) -> None:
        """Tells whoever listens at once, and puts it into the report."""
        self.warnings.append(caution)
        self.on_warning(caution)

    def _run(self) -> LearnReport:
        verdict = self._onset()
        known = verdict.known and self.options.if_known != "new"
        if known and self.options.if_known == "skip":
            return self._skipped(verdict)
        if known:
            return self._refine(verdict)
        name = new_task(self.options.name, self.number, [t.name for t in self.manifest.tasks])
        return self._learn(name, verdict, *self._place())

    def _learn(
        self, name: str, verdict: Verdict, placement: Placement, candidates: list[Candidate], record: ExpertRecord
    ) -> LearnReport:
        labels = [label for task in self.manifest.tasks for label in task.classes]
        for caution in cautions.of_data(self.batch, labels):
            self.warn(caution)
        net = network(record)
        old = [t.name for t in self.manifest.tasks_of(record.id)]
        new_expert = placement.expert is None
        learned = learn_task.learn_task(
            learn_task.Identity(name, record.id, len(self.classes)),
            net,
            self._shared(net, record, placement),
            self._labelled(self.batch, record),
            # A generator of its own, so that training does not depend on how many tasks were compared.
            self._setting(name, derived_seed(self.manifest.seed, self.number, "train")),
        )
        committed = self._commit(record, net, learned, old, "learn", measured(candidates, record.id))
        for caution in cautions.of_task(committed.task(name)):
            self.warn(caution)
        for caution in cautions.of_conflict(name, verdict.conflict, self.confused):
            self.warn(caution)
        return learn_report(committed, name, "learned", new_expert, verdict, placement, candidates)

    def _shared(self, net: Network, record: ExpertRecord, placement: Placement) -> learn_task.Shared:
        """The shared weights of the task's expert, and which of them it may read."""
        if placement.expert is None:
            zeros = {key: torch.zeros(shape) for key, shape in net.shared_shapes().items()}
            return learn_task.Shared(zeros, masks.none_of(zeros), masks.none_of(zeros))
        frozen = self.loader.frozen(record.id, on_step=self.on_step)
        readable = self.loader.frozen(record.id, placement.reads)
        return learn_task.Shared(self.loader.shared(record.id), frozen, readable)

    def _setting(self, name: str, seed: int) -> learn_task.Setting:
        """How a task of that name is trained."""
        journal = self.resuming.begin(name)
        return learn_task.Setting(
            self.options.method, generator(seed), self.on_epoch, journal, self.start.params, self.on_step
        )

    def _onset(self) -> Verdict:
        labels = self.batch.labels
        assert labels is not None
        book = Codebook.of(self.classes, *(t.classes for t in self.manifest.tasks))
        index = common.sample(len(labels), common.ONSET_IMAGES, self.generator)
        codes = torch.from_numpy(book.encode(labels))
        if not self.names:
            return Verdict("new", (), None, "no task with images of this shape is known yet")
        checks.check_unit(self.batch, self.on_step)
        few = common.part(self.batch, index)
        self.near = shortlisted(self.loader, few)
        evidence, _ = onset_evidence(self.loader, self.near, few, book, self.options.evidence, self.on_step)
        verdict = decide(evidence, codes[index], self.options.alpha, lambda code: book.labels[code])
        # A class so rare that the sample has missed it is as conclusive as any other.
        seen = set(codes.unique().tolist())
        for names in (self.names, verdict.tasks) if verdict.known else ():
            foreign = [book.labels[code] for code in sorted(seen - self._codes(book, names))]
            if foreign:
                fitted = ", ".join(verdict.tasks)
                why = f"it has classes that are not of {fitted}, which its images fit: {listed(foreign)}"
                return Verdict("new", (), verdict.p_value, unseen(foreign) if names is self.names else why)
        return verdict

    def _codes(self, book: Codebook, names: Sequence[str]) -> set[int]:
        return set(book.codes([c for name in names for c in self.manifest.task(name).classes]))

    def _place(self) -> tuple[Placement, list[Candidate], ExpertRecord]:
        wanted = self.options.expert
        fitting = homes(self.start, self.experts, self.manifest, self.options, self.batch)
        candidates: list[Candidate] = []
        frozen = self.manifest.history[-1].frozen if self.manifest.history else {}
        room: dict[str, tuple[float, str]] = {}
        for record in fitting:
            near = [t.name for t in self.manifest.tasks_of(record.id) if t.name in self.near]
            if not near:
                continue
            net = network(record)
            index = common.sample(len(self.batch.images), IMAGES, self.generator)
            few = self._labelled(common.part(self.batch, index), record)
            draws = self.start.draws(net, self.generator)
            for name in counted(near, self.on_step, "placement", "tasks"):
                t = self.loader.task(name)
                known = KnownTask(t.name, t.expert, t.net, t.params, t.mask, t.scores)
                candidates.append(
                    compare(known, draws, few, len(self.classes), self.options.thresholds, self.generator)
                )
            used = frozen[record.id]
            sizes = {x.name: math.prod(x.shape) for x in record.layers}
            # A few kernels near the pixels may well be full: the next task reads them.
            large = [name for name, size in sizes.items() if size >= common.COUNTED * sum(sizes.values())]
            room[record.id] = min((1.0 - used[name] / sizes[name], name) for name in large)
        if wanted not in (None, "new"):
            reads = tuple(c.task for c in candidates if c.constructive)
            return Placement(str(wanted), reads, f"into expert {wanted}, as asked"), candidates, fitting[0]
        placement = place(candidates, room, self.options.thresholds)
        if wanted == "new":
            placement = Placement(None, (), "a new expert, as asked")
        elif not fitting:
            lacks = "reads images of this shape"
            if any(e.arch == self.options.arch and self.start.fits(e) for e in self.experts):
                lacks = "standardises such vectors"
            elif self.experts:
                lacks = f"has architecture {self.options.arch} and this start"
            placement = Placement(None, (), f"a new expert, since none yet {lacks}")
        if placement.expert is not None:
            return placement, candidates, self.manifest.expert(placement.expert)
        return placement, candidates, self._new_expert()

    def _new_expert(self) -> ExpertRecord:
        number = self.manifest.next_expert
        net = parse_arch(self.options.arch, self.batch.input_shape)
        self.new_scaling = common.new_scaling(self.batch, net, self.on_step)
        return ExpertRecord(
            id=f"e{number}",
            arch=self.options.arch,
            input_shape=self.batch.input_shape,
            input_scale=self.new_scaling.factor,
            seed=derived_seed(self.manifest.seed, number, "expert"),
            layers=tuple(LayerRecord(name=name, shape=shape) for name, shape in net.shared_shapes().items()),
            weights=None,
            input=self.batch.input,
            pretrained=self.start.sha256,
            standardised=self.new_scaling.standardised or None,
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
        check_refining(self.batch, old)
        record = self.manifest.expert(old.expert)
        self.start.require(record)
        others = [t.name for t in self.manifest.tasks_of(record.id) if t.name != name]
        return self._relearn(old, record, others, verdict)

    def _relearn(self, old: TaskRecord, record: ExpertRecord, others: list[str], verdict: Verdict) -> LearnReport:
        task = self.loader.task(old.name)
        taken = self.loader.frozen(record.id, others)
        learned = learn_task.refine_task(
            task,
            network(record),
            taken,
            self._labelled(self.batch, record, old.classes),
            # Fewer images than it was learned from must not decide anew which weights it needs.
            len(self.batch.images) > old.images,
            self._setting(old.name, derived_seed(self.seed, old.images, "refine")),
        )
        committed = self._commit(record, network(record), learned, others, "refine", old.measured, old)
        placement = Placement(record.id, (), f"refined in place, in expert {record.id}")
        return learn_report(committed, old.name, "refined", False, verdict, placement, [])

    def _commit(
        self,
        record: ExpertRecord,
        net: Network,
        learned: learn_task.Learned,
        others: list[str],
        action: Literal["learn", "refine"],
        agreed: tuple[MeasuredRecord, ...] | None,
        old: TaskRecord | None = None,
    ) -> Manifest:
        method, seen = self.options.method, len(self.batch.images)
        config: dict[str, str | float | int] = {
            "score": method.score,
            "max_drop": method.tolerance.max_drop,
            "epochs": method.schedule.epochs,
        }
        origin = (
            Origin(old.number, old.seed, old.classes, old.images + seen, config, self._scaling(record), agreed)
            if old
            else Origin(self.number, self.seed, self.classes, seen, config, self._scaling(record), agreed)
        )

        def commit() -> Manifest:
            committed, self.confused = commit_learned(
                self.locked, self.loader, record, net, learned, others, action, origin, self.batch, self.on_step
            )
            return committed

        return processes.committed(self.locked, commit)

    def _labelled(self, batch: Batch, record: ExpertRecord, classes: tuple[Label, ...] | None = None) -> Labelled:
        """Images [N, D] as the expert reads them, class indices [N]; the classes are the new task's unless given."""
        assert batch.labels is not None
        y = torch.from_numpy(Codebook.of(classes or self.classes).encode(batch.labels))
        plain = common.rows(batch, Scaling(record.input_scale))
        check_range(plain, record.input_scale, batch.source, self.on_step)
        scaling = self._scaling(record)
        return Labelled(common.rows(batch, scaling) if scaling.standardised else plain, y)

    def _scaling(self, record: ExpertRecord) -> Scaling:
        return self.loader.scaling(record.id) if record.weights is not None else self.new_scaling

    def _skipped(self, verdict: Verdict) -> LearnReport:
        placement = Placement(None, (), "nothing was changed, since its task is known (--if-known says otherwise)")
        return learn_report(self.manifest, verdict.tasks[0], "known", False, verdict, placement, [])
