"""``detect``: does a batch belong to a known task?"""

from __future__ import annotations

import torch

from clmoe_cli.api import common, ranges
from clmoe_cli.api.checks import check_values
from clmoe_cli.api.evidence import GATE, onset_evidence, shortlisted
from clmoe_cli.api.inputs import Expected, kind_text
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.reports import Compared, DetectReport
from clmoe_cli.backbone.session import check_backbone
from clmoe_cli.data import Batch
from clmoe_cli.data.batch import check_batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.tasks.novelty import Verdict, decide
from clmoe_cli.method.tasks.placement import DRAWS, IMAGES, KnownTask, agreement
from clmoe_cli.runtime.choices import EVIDENCE
from clmoe_cli.runtime.events import OnStep, counted, silent
from clmoe_cli.runtime.words import check_rate, one_of
from clmoe_cli.store_tensors import Loader, derived_seed, generator
from store_schema import BadInput


def detect(
    store: str | Opened,
    batch: Batch,
    *,
    use_labels: bool = False,
    alpha: float = 0.01,
    evidence: str = GATE,
    device: str = "cpu",
    on_step: OnStep = silent,
) -> DetectReport:
    """Decides whether a batch is known or new; the store is only read.

    ``evidence``: ``gate`` (the p-values that ``predict --reject`` uses), ``fisher`` (whitened deviation) or
    ``gradient`` (the paper's score deviation); ``alpha``: rate of false alarms. Labels count only with ``use_labels``.
    Images of a kind that no expert reads are new. The verdict is ``undecided`` where tasks that might fit have no
    p-values and labels do not tell.

    Raises BadInput (labels asked for and missing, values that are no numbers), UsageProblem for an unknown evidence and
    an alpha that is no rate, and the store's errors.
    """
    check_batch(batch)
    one_of("evidence", evidence, EVIDENCE)
    check_rate("--alpha", alpha)
    if use_labels and batch.labels is None:
        raise BadInput("--use-labels needs labels", where=batch.source, expected="labels y [N]")
    return Opened.existing(store).read(
        lambda snapshot: _detect(Loader(snapshot, device), batch, use_labels, alpha, evidence, on_step)
    )


def _detect(loader: Loader, batch: Batch, use_labels: bool, alpha: float, kind: str, on_step: OnStep) -> DetectReport:
    manifest = loader.manifest
    check_backbone(Expected.of(manifest).backbone, batch)
    if not manifest.tasks_of_shape(batch.input_shape, batch.input):
        shape = kind_text(batch.input_shape, batch.input)
        return _report(
            loader, batch, Verdict("new", (), None, f"no task with inputs of this shape ({shape}) is known yet"), []
        )
    check_values(common.experts_for(manifest, batch), batch, on_step)
    book = LabelEncoder.of(*(t.classes for t in manifest.tasks))
    rng = generator(derived_seed(manifest.seed, 0, "detect"))
    index = common.sample(len(batch.images), max(common.ONSET_IMAGES, IMAGES), rng)
    few = common.prepared(common.part(batch, index))
    names = shortlisted(loader, few)
    found, raw = onset_evidence(loader, names, few, book, kind, on_step)
    labels = None
    if use_labels and few.labels is not None:
        book, codes = book.reading(few.labels)
        labels = torch.from_numpy(codes)
    verdict = decide(found, labels, alpha, lambda code: book.labels[code])
    rows: list[Compared] = []
    for name in counted(names, on_step, "overlap", "tasks"):
        task = loader.task(name)
        x = common.flat(few, loader.scaling(task.expert))
        # Without labels the pseudo-labels of the task's own subnetwork stand in.
        known = KnownTask(task.name, task.expert, task.net, task.params, task.mask, task.scores)
        pseudo = torch.unique(logits(task.net, task.params, x).argmax(dim=1), return_inverse=True)[1]
        draws = [task.net.initial_shared(rng) for _ in range(DRAWS)]
        agreed = agreement(known, draws, Labelled(x, pseudo), int(pseudo.max()) + 1)
        rows.append(
            Compared(
                task=name,
                expert=task.expert,
                deviation=float(raw[name].mean()),
                p_value=found[name].p_value() if found[name].available else None,
                hamming=agreed.hamming,
                overlap=agreed.overlap,
                divergence=agreed.divergence,
            )
        )
    return _report(loader, batch, verdict, rows)


def _report(loader: Loader, batch: Batch, verdict: Verdict, rows: list[Compared]) -> DetectReport:
    chosen = verdict.tasks[0] if verdict.known else None
    return DetectReport(
        verdict=verdict.verdict,
        task=chosen,
        expert=loader.manifest.task(chosen).expert if chosen else None,
        p_value=verdict.p_value,
        reason=verdict.reason,
        images=len(batch.images),
        tasks=tuple(rows),
        skipped=len(batch.skipped),
        warnings=ranges.cautions(Expected.of(loader.manifest), batch),
    )
