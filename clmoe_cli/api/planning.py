"""``learn --dry-run``: onset and placement on the store as it is; nothing is trained, locked or written."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from clmoe_cli.api import common, ranges
from clmoe_cli.api.cautions import of_data
from clmoe_cli.api.checks import check_expert
from clmoe_cli.api.committing import candidates_of, learn_report, onset_of
from clmoe_cli.api.learn import skipped
from clmoe_cli.api.next_step import New, Refine, Skip, labelled, next_step
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.options import LearnOptions, check
from clmoe_cli.api.reports import Accuracy, LearnReport, OnWarning, PlannedLayer
from clmoe_cli.api.session import Listeners, Session
from clmoe_cli.api.starting import Start
from clmoe_cli.data import Batch
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.tasks.placement import Placement
from clmoe_cli.store_tensors import generator
from store_schema import ExpertRecord, Store, unwritten


def plan(
    store: str | Opened,
    batch: Batch,
    options: LearnOptions | None = None,
    before: Sequence[LearnReport] = (),
    on_warning: OnWarning = lambda caution: None,
) -> LearnReport:
    """What :func:`clmoe_cli.api.learn.learn` would do with a batch; raises what that does before it trains.

    ``before``: what would have been learned by then. Tasks and experts are numbered after it; nothing else of it is
    known.
    """
    options = options or LearnOptions()
    started = time.monotonic()
    check(batch, options)
    opened = Opened.at(store)
    check_expert(opened, options.expert)
    start = Start.of(options, batch)

    def use(snapshot: Store) -> LearnReport:
        manifest = snapshot.manifest
        later = {
            "next_task": manifest.next_task + sum(report.status == "learned" for report in before),
            "next_expert": manifest.next_expert + sum(report.new_expert for report in before),
        }
        later_on = Store(snapshot.root, manifest.model_copy(update=later), snapshot.head)
        session = Session(later_on, common.prepared(batch), options, start, Listeners(on_warning=on_warning))
        session.check()
        session.warn(*ranges.cautions(session.expected, batch))
        report = _report(session, next_step(session))
        return replace(report, warnings=tuple(session.warnings))

    report = opened.read(use) if opened.snapshot else use(unwritten(opened.path, seed=options.seed or 0))
    seconds = round(time.monotonic() - started, 3)
    return replace(report, dry_run=True, seconds=seconds, skipped=len(batch.skipped))


def _report(session: Session, step: Skip | Refine | New) -> LearnReport:
    """What would be done."""
    match step:
        case Skip():
            return skipped(session, step)
        case Refine():
            return _refined(session, step)
        case New():
            return _new(session, step)


def _refined(session: Session, step: Refine) -> LearnReport:
    old, record, loader = step.old, step.record, session.loader
    labelled(session, record, loader.scaling(record.id), old.classes)
    taken = loader.frozen(record.id, step.others)
    read = masks.intersection(taken, loader.task(old.name).mask)
    placement = Placement(record.id, (), f"refined in place, in expert {record.id}")
    report = learn_report(session.manifest, old.name, "refined", False, step.verdict, placement, [])
    return replace(report, plan=_layers(record, taken, read))


def _new(session: Session, step: New) -> LearnReport:
    record, net, new = step.record, session.network(step.record), step.placement.expert is None
    session.warn(*of_data(session.batch, session.known_labels))
    labelled(session, record, step.scaling, session.classes)
    taken = {} if new else session.loader.frozen(record.id)
    read = {} if new else session.loader.frozen(record.id, step.placement.reads)
    owned = net.initial_owned(len(session.classes), generator(session.seed))
    return LearnReport(
        task=step.name,
        expert=record.id,
        status="learned",
        new_expert=new,
        classes=session.classes,
        accuracy=Accuracy(),
        per_class=(),
        opinion=None,
        layers=(),
        owned_parameters=sum(value.numel() for value in owned.values()),
        onset=onset_of(step.verdict),
        candidates=candidates_of(step.candidates),
        reads=step.placement.reads,
        reason=step.placement.reason,
        seed=session.manifest.seed,
        seconds=0.0,
        plan=_layers(record, taken, read),
    )


def _layers(record: ExpertRecord, taken: masks.Masks, read: masks.Masks) -> tuple[PlannedLayer, ...]:
    """``taken``: entries of other tasks; an expert without tasks has none of either."""
    layers = []
    for layer in record.layers:
        size = math.prod(layer.shape)
        used, seen = (int(m[layer.name].sum()) if m else 0 for m in (taken, read))
        layers.append(PlannedLayer(layer.name, size, seen, size - used))
    return tuple(layers)
