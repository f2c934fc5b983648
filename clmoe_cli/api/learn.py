"""``learn``: onset → placement → training → subnetwork → commit, as one atomic step of the store."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Unpack

import torch

from clmoe_cli.api import cautions, common, gating, ranges
from clmoe_cli.api.checks import check_expert
from clmoe_cli.api.committing import Origin, commit_learned, learn_report, measured
from clmoe_cli.api.measuring import Confusion
from clmoe_cli.api.next_step import New, Refine, Skip, labelled, next_step
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnOptions, check
from clmoe_cli.api.reports import LearnReport
from clmoe_cli.api.resuming import Resuming
from clmoe_cli.api.session import Callbacks, Listeners, Session
from clmoe_cli.api.starting import Start
from clmoe_cli.data import Batch
from clmoe_cli.method import learn_task
from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.tasks.placement import Placement
from clmoe_cli.runtime.distributed import stores
from clmoe_cli.runtime.events import whole
from clmoe_cli.store_tensors import derived_seed, generator
from store_schema import Manifest, Writer


def learn(
    store: str | Opened,
    batch: Batch,
    options: LearnOptions | None = None,
    **callbacks: Unpack[Callbacks],
) -> LearnReport:
    """Learns a batch as a new task, or says that it is known.

    ``store``: its folder, or the store as it was opened. ``batch``: labelled images,
    :func:`clmoe_cli.data.read_batch`. Creates the store when there is none.

    Raises BadInput for data that cannot be learned, UsageProblem for options that make no sense,
    StoreDamaged, StoreLocked and DiskProblem from the store. Nothing is changed then. What training had reached
    is kept: the same call goes on from there and ends with the same task, bit for bit. A KeyboardInterrupt becomes
    Interrupted, which says so. ``callbacks``: those of :class:`clmoe_cli.api.session.Listeners`.
    """
    options, listeners = options or LearnOptions(), Listeners(**callbacks)
    started, seed = time.monotonic(), options.seed or 0
    check(batch, options)
    opened = Opened.at(store)
    check_expert(opened, options.expert)
    with whole(listeners.on_step, "loading weights"):
        start = Start.of(options, batch)
    with (
        opened.writing(seed=seed, timeout=options.lock_timeout, on_wait=listeners.on_wait) as locked,
        Resuming(
            locked, batch, replace(options, weights=start.sha256), listeners.on_resume, listeners.on_step
        ) as resuming,
    ):
        session = Session(locked.store, common.prepared(batch), options, start, listeners)
        report = _learned(session, locked, resuming)
    return replace(report, seconds=round(time.monotonic() - started, 3), skipped=len(batch.skipped))


def _learned(session: Session, locked: Writer, resuming: Resuming) -> LearnReport:
    """Learns the batch, refines a task with it, or leaves it."""
    session.check()
    session.warn(*ranges.cautions(session.expected, session.batch))
    match next_step(session):
        case Skip() as step:
            report = skipped(session, step)
        case Refine() as step:
            report = _refine(session, step, locked, resuming)
        case New() as step:
            report = _learn(session, step, locked, resuming)
    session.warn(*cautions.of_time(session.options.time_limit, resuming.limit.cut))
    return replace(report, warnings=tuple(session.warnings))


def skipped(session: Session, step: Skip) -> LearnReport:
    """The report on data that are left."""
    placement = Placement(None, (), "nothing was changed, since its task is known (--if-known says otherwise)")
    return learn_report(session.manifest, step.verdict.tasks[0], "known", False, step.verdict, placement, [])


def _learn(session: Session, step: New, locked: Writer, resuming: Resuming) -> LearnReport:
    manifest, record, net = session.manifest, step.record, session.network(step.record)
    session.warn(*cautions.of_data(session.batch, session.known_labels))
    learned = learn_task.learn_task(
        learn_task.Identity(step.name, record.id, len(session.classes)),
        net,
        _shared(session, step, net),
        labelled(session, record, step.scaling, session.classes),
        # A generator of its own, so that training does not depend on how many tasks were compared.
        _setting(session, resuming, step.name, net, derived_seed(manifest.seed, session.number, "train")),
    )
    others = [t.name for t in manifest.tasks_of(record.id)]
    agreed = measured(step.candidates, record.id)
    images = len(session.batch.images)
    origin = Origin(
        "learn", record, others, session.number, session.seed, session.classes, images, step.scaling, agreed
    )
    committed, confused = _commit(session, locked, learned, origin)
    learned_as = committed.task(step.name)
    session.warn(*cautions.of_task(learned_as), *cautions.of_conflict(learned_as, step.verdict.conflict, confused))
    new_expert = step.placement.expert is None
    return learn_report(committed, step.name, "learned", new_expert, step.verdict, step.placement, step.candidates)


def _refine(session: Session, step: Refine, locked: Writer, resuming: Resuming) -> LearnReport:
    old, record, seen = step.old, step.record, len(session.batch.images)
    net, scaling = session.network(record), session.loader.scaling(record.id)
    learned = learn_task.refine_task(
        session.loader.task(old.name),
        net,
        session.loader.frozen(record.id, step.others),
        labelled(session, record, scaling, old.classes),
        # Fewer images than it was learned from must not decide anew which weights it needs.
        seen > old.images,
        _setting(session, resuming, old.name, net, derived_seed(session.seed, old.images, "refine")),
    )
    origin = Origin(
        "refine", record, step.others, old.number, old.seed, old.classes, old.images + seen, scaling, old.measured
    )
    committed, _ = _commit(session, locked, learned, origin)
    placement = Placement(record.id, (), f"refined in place, in expert {record.id}")
    return learn_report(committed, old.name, "refined", False, step.verdict, placement, [])


def _shared(session: Session, step: New, net: Network) -> learn_task.Shared:
    """The shared weights of the task's expert, and which of them it may read."""
    if step.placement.expert is None:
        zeros = {key: torch.zeros(shape) for key, shape in net.shared_shapes().items()}
        return learn_task.Shared(zeros, masks.zeros_like(zeros), masks.zeros_like(zeros))
    loader, expert = session.loader, step.record.id
    weights = loader.shared(expert)
    frozen = loader.frozen(expert, on_step=session.on_step)
    return learn_task.Shared(weights, frozen, loader.frozen(expert, step.placement.reads))


def _setting(session: Session, resuming: Resuming, name: str, net: Network, seed: int) -> learn_task.Setting:
    """How a task of that name is trained."""
    listeners, journal = session.listeners, resuming.begin(name)
    return learn_task.Setting(
        session.options.method,
        generator(seed),
        listeners.on_epoch,
        journal,
        session.start.beside(net),
        listeners.on_step,
        listeners.on_cost,
        session.batch.input_shape,
    )


def _commit(
    session: Session, locked: Writer, learned: learn_task.Learned, origin: Origin
) -> tuple[Manifest, tuple[Confusion, ...]]:
    """What is committed, by the one process that writes, and for which known classes the new ones are taken.

    Features of the data, the gate's statistics and held-out answers from them, then the commit.
    """
    confused: list[Confusion] = []

    def commit() -> Manifest:
        kind, on_step = session.kind(origin.number, origin.record, learned), session.on_step
        features = gating.features_of_data(session.batch, kind, origin.classes, on_step)
        measures = gating.measure(session.loader, features, learned, on_step)
        confused.extend(measures.confused)
        return commit_learned(session, locked, learned, origin, kind, measures)

    return stores.committed(locked, commit), tuple(confused)
