"""What ``learn`` has to do with a batch: novelty, then placement. Nothing is trained or written here."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clmoe_cli.api import checks, common
from clmoe_cli.api.evidence import onset_evidence, shortlisted
from clmoe_cli.api.inputs import kind_text
from clmoe_cli.api.names import new_task
from clmoe_cli.api.session import Session
from clmoe_cli.api.starting import homes
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label, LabelEncoder
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.scaling import LEAST, Scaling
from clmoe_cli.method.tasks.novelty import Verdict, decide, listed, unseen
from clmoe_cli.method.tasks.placement import Candidate, KnownTask, Placement, compare, images_of, place
from clmoe_cli.runtime.events import counted
from clmoe_cli.runtime.words import one_of
from clmoe_cli.store_tensors import derived_seed
from store_schema import BadInput, ExpertRecord, LayerRecord, TaskRecord, UsageProblem


@dataclass(frozen=True)
class Skip:
    """The batch is of known tasks, and is left."""

    verdict: Verdict


@dataclass(frozen=True)
class Refine:
    """The batch improves the known task ``old`` of the expert ``record``; ``others``: the expert's other tasks."""

    verdict: Verdict
    old: TaskRecord
    record: ExpertRecord
    others: list[str]


@dataclass(frozen=True)
class New:
    """The batch becomes the task ``name`` of the expert ``record``, which reads its inputs by ``scaling``."""

    verdict: Verdict
    name: str
    placement: Placement
    candidates: list[Candidate]
    record: ExpertRecord
    scaling: Scaling


def next_step(session: Session) -> Skip | Refine | New:
    """Decides by the images and labels of the batch.

    Raises BadInput for data that cannot be learned or refined, UsageProblem for an expert or a name that does not fit.
    """
    if session.options.refine is not None:
        return _refine(session, _as_asked(session, session.options.refine))
    verdict, near = _novelty(session)
    if verdict.known and session.options.if_known == "skip":
        return Skip(verdict)
    if verdict.known and session.options.if_known != "new":
        return _refine(session, verdict)
    taken = [t.name for t in session.manifest.tasks]
    source = None if session.options.numbered else session.batch.source
    name = new_task(session.options.name, session.number, taken, source)
    placement, candidates = _placed(session, near)
    if placement.expert is None:
        record, scaling = _new_expert(session)
    else:
        record = session.manifest.expert(placement.expert)
        scaling = session.loader.scaling(record.id)
    return New(verdict, name, placement, candidates, record, scaling)


def _as_asked(session: Session, wanted: str) -> Verdict:
    """The verdict on data of a task that is named. Raises UsageProblem for one that is not there, or reads others."""
    name = one_of("task", wanted, [t.name for t in session.manifest.tasks])
    if name not in session.names:
        record = session.manifest.expert(session.manifest.task(name).expert)
        raise UsageProblem(
            "the task to refine reads other inputs",
            key="--refine",
            found=kind_text(session.batch.input_shape, session.batch.input),
            expected=f"{kind_text(record.input_shape, record.input)}, as task {name}",
        )
    return Verdict("known", (name,), None, f"of {name}, as asked: nothing was compared")


def labelled(session: Session, record: ExpertRecord, scaling: Scaling, classes: tuple[Label, ...]) -> Labelled:
    """The batch as an expert reads it: images [N, D], class indices [N]. BadInput for values beyond float32."""
    return _as_read(session, session.batch, record, scaling, classes)


def _as_read(
    session: Session, batch: Batch, record: ExpertRecord, scaling: Scaling, classes: tuple[Label, ...]
) -> Labelled:
    assert batch.labels is not None
    y = torch.from_numpy(LabelEncoder.of(classes).encode(batch.labels))
    plain = common.rows(batch, Scaling(record.input_scale))
    checks.check_range(plain, record.input_scale, batch, session.on_step)
    return Labelled(common.rows(batch, scaling) if scaling.standardised else plain, y)


def _novelty(session: Session) -> tuple[Verdict, list[str]]:
    """Known or new, and the tasks that the batch was compared with."""
    labels = session.batch.labels
    assert labels is not None
    book = LabelEncoder.of(session.classes, *(t.classes for t in session.manifest.tasks))
    index = common.sample(len(labels), common.ONSET_IMAGES, session.generator)
    codes = torch.from_numpy(book.encode(labels))
    if not session.names:
        return Verdict("new", (), None, "no task with inputs of this shape is known yet"), []
    checks.check_unit(session.batch, session.input_scale, session.on_step)
    few = common.part(session.batch, index)
    near = shortlisted(session.loader, few)
    evidence, _ = onset_evidence(session.loader, near, few, book, session.options.evidence, session.on_step)
    verdict = decide(evidence, codes[index], session.options.alpha, lambda code: book.labels[code])
    # A class so rare that the sample has missed it is as conclusive as any other.
    seen = set(codes.unique().tolist())
    for names in (session.names, verdict.tasks) if verdict.known else ():
        foreign = [book.labels[code] for code in sorted(seen - _codes(session, book, names))]
        if foreign:
            fitted = ", ".join(verdict.tasks)
            why = f"it has classes that are not of {fitted}, which its images fit: {listed(foreign)}"
            return Verdict("new", (), verdict.p_value, unseen(foreign) if names is session.names else why), near
    return verdict, near


def _codes(session: Session, book: LabelEncoder, names: Sequence[str]) -> set[int]:
    return set(book.codes([c for name in names for c in session.manifest.task(name).classes]))


def _placed(session: Session, near: Sequence[str]) -> tuple[Placement, list[Candidate]]:
    """Into which expert, reading which of its tasks, and the comparisons with the tasks that are ``near``."""
    options, manifest = session.options, session.manifest
    fitting = homes(session.start, session.experts, manifest, options, session.batch)
    candidates: list[Candidate] = []
    room: dict[str, tuple[float, str]] = {}
    for record in fitting:
        own = [t.name for t in manifest.tasks_of(record.id) if t.name in near]
        if own:
            candidates += _compared(session, record, own)
            room[record.id] = _room(session, record)
    if options.expert not in (None, "new"):
        reads = tuple(c.task for c in candidates if c.constructive)
        return Placement(fitting[0].id, reads, f"into expert {options.expert}, as asked"), candidates
    placement = place(candidates, room, options.thresholds)
    if len(session.classes) == 1 and fitting:
        placement = Placement(fitting[0].id, (), "into the first expert that reads them: one class takes no weights")
    if options.expert == "new":
        placement = Placement(None, (), "a new expert, as asked")
    elif not fitting:
        lacks = "reads inputs of this shape"
        if any(e.arch == options.arch and session.start.fits(e) for e in session.experts):
            lacks = f"standardises such vectors, as those begun with {LEAST} and more do"
        elif session.experts:
            lacks = f"has architecture {options.arch} and this start"
            able = [e for e in session.experts if session.start.fits(e)]
            lacks += f" (--arch {able[-1].arch} goes on in {able[-1].id})" if able else ""
        placement = Placement(None, (), f"a new expert, since none yet {lacks}")
    return placement, candidates


def _compared(session: Session, record: ExpertRecord, names: Sequence[str]) -> list[Candidate]:
    """The comparison of the batch with each of these tasks of an expert."""
    net, rng = session.network(record), session.generator
    checks.check_values([record], session.batch, session.on_step)  # of all images, so that the right one is named
    index = common.sample(len(session.batch.images), images_of(net), rng)
    scaling = session.loader.scaling(record.id)
    few = _as_read(session, common.part(session.batch, index), record, scaling, session.classes)
    draws = session.start.draws(net, rng)
    found = []
    for name in counted(names, session.on_step, "placement", "tasks"):
        t = session.loader.task(name)
        known = KnownTask(t.name, t.expert, t.net, t.params, t.mask, t.scores)
        found.append(compare(known, draws, few, len(session.classes), session.options.thresholds, rng))
    return found


def _room(session: Session, record: ExpertRecord) -> tuple[float, str]:
    """The least free share of a large layer of an expert, and the layer's name."""
    used = session.manifest.history[-1].frozen[record.id]
    sizes = {x.name: math.prod(x.shape) for x in record.layers}
    # A few kernels near the pixels may well be full: the next task reads them.
    large = [name for name, size in sizes.items() if size >= common.COUNTED * sum(sizes.values())]
    return min((1.0 - used[name] / sizes[name], name) for name in large)


def _new_expert(session: Session) -> tuple[ExpertRecord, Scaling]:
    number, batch = session.manifest.next_expert, session.batch
    net = parse_arch(session.options.arch, batch.input_shape)
    scaling = common.new_scaling(batch, net, session.input_scale)
    record = ExpertRecord(
        id=f"e{number}",
        arch=session.options.arch,
        input_shape=batch.input_shape,
        input_scale=scaling.factor,
        seed=derived_seed(session.manifest.seed, number, "expert"),
        layers=tuple(LayerRecord(name=name, shape=shape) for name, shape in net.shared_shapes().items()),
        weights=None,
        input=batch.input,
        pretrained=session.start.sha256,
        standardised=scaling.standardised or None,
    )
    return record, scaling


def _refine(session: Session, verdict: Verdict) -> Refine:
    if len(verdict.tasks) != 1:
        raise BadInput(
            "cannot refine several tasks at once",
            where=session.batch.source,
            found=", ".join(verdict.tasks),
            expected="data of one task",
            hint="give each task's data by itself",
        )
    old = session.manifest.task(verdict.tasks[0])
    checks.check_refining(session.batch, old)
    record = session.manifest.expert(old.expert)
    session.start.require(record)
    others = [t.name for t in session.manifest.tasks_of(record.id) if t.name != old.name]
    return Refine(verdict, old, record, others)
