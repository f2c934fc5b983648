"""``learn --dry-run``: onset and placement on the store as it is; nothing is trained, locked or written."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import replace

from clmoe_cli.api import processes
from clmoe_cli.api.checks import check_expert
from clmoe_cli.api.committing import candidates_of, learn_report, onset_of
from clmoe_cli.api.learn import Learning
from clmoe_cli.api.options import LearnOptions, check
from clmoe_cli.api.reports import Accuracy, LearnReport, OnWarning, PlannedLayer
from clmoe_cli.api.resuming import Resuming
from clmoe_cli.api.starting import Start
from clmoe_cli.data import Batch
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.tasks.novelty import Verdict
from clmoe_cli.method.tasks.placement import Candidate, Placement
from clmoe_cli.store_tensors import generator, network
from store_schema import ExpertRecord, Store, StoreMissing, TaskRecord, Writer, unwritten


def plan(
    store: str,
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
    check_expert(store, options.expert)
    start = Start.of(options, batch)

    def use(opened: Store) -> LearnReport:
        manifest = opened.manifest
        later = {
            "next_task": manifest.next_task + sum(report.status == "learned" for report in before),
            "next_expert": manifest.next_expert + sum(report.new_expert for report in before),
        }
        writer = Writer(Store(opened.root, manifest.model_copy(update=later), opened.head))
        resuming = Resuming(writer, batch, options, lambda reached: None)
        return _Planning(writer, batch, options, start, lambda epoch: None, resuming, on_warning).run()

    try:
        report = processes.read_together(store, use)
    except StoreMissing:
        report = use(unwritten(store, seed=options.seed or 0))
    seconds = round(time.monotonic() - started, 3)
    return replace(report, dry_run=True, seconds=seconds, skipped=len(batch.skipped))


class _Planning(Learning):
    """A run of ``learn`` that ends where training would begin."""

    def _learn(
        self, name: str, verdict: Verdict, placement: Placement, candidates: list[Candidate], record: ExpertRecord
    ) -> LearnReport:
        net = network(record)
        self._labelled(self.batch, record)
        new = placement.expert is None
        taken = {} if new else self.loader.frozen(record.id)
        read = {} if new else self.loader.frozen(record.id, placement.reads)
        return LearnReport(
            task=name,
            expert=record.id,
            status="learned",
            new_expert=new,
            classes=self.classes,
            accuracy=Accuracy(),
            per_class=(),
            opinion=None,
            layers=(),
            owned_parameters=sum(
                value.numel() for value in net.initial_owned(len(self.classes), generator(self.seed)).values()
            ),
            onset=onset_of(verdict),
            candidates=candidates_of(candidates),
            reads=placement.reads,
            reason=placement.reason,
            seed=self.manifest.seed,
            seconds=0.0,
            plan=_layers(record, taken, read),
        )

    def _relearn(self, old: TaskRecord, record: ExpertRecord, others: list[str], verdict: Verdict) -> LearnReport:
        self._labelled(self.batch, record, old.classes)
        taken = self.loader.frozen(record.id, others)
        read = masks.both(taken, self.loader.task(old.name).mask)
        placement = Placement(record.id, (), f"refined in place, in expert {record.id}")
        report = learn_report(self.manifest, old.name, "refined", False, verdict, placement, [])
        return replace(report, plan=_layers(record, taken, read))


def _layers(record: ExpertRecord, taken: masks.Masks, read: masks.Masks) -> tuple[PlannedLayer, ...]:
    """``taken``: entries of other tasks; an expert without tasks has none of either."""
    layers = []
    for layer in record.layers:
        size = math.prod(layer.shape)
        used, seen = (int(m[layer.name].sum()) if m else 0 for m in (taken, read))
        layers.append(PlannedLayer(layer.name, size, seen, size - used))
    return tuple(layers)
