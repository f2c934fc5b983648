"""``detect``: does a batch belong to a known task?"""

from __future__ import annotations

import torch

from clmoe_cli.choices import EVIDENCE
from clmoe_cli.commands import common
from clmoe_cli.commands.checks import check_values
from clmoe_cli.commands.names import one_of
from clmoe_cli.commands.reports import DetectReport
from clmoe_cli.continual.images import Labelled
from clmoe_cli.continual.onset import decide
from clmoe_cli.continual.placement import DRAWS, IMAGES, KnownTask, agreement
from clmoe_cli.continual.steps import OnStep, counted, silent
from clmoe_cli.data import Batch
from clmoe_cli.labels import Codebook
from clmoe_cli.seeing import check_backbone
from clmoe_cli.state import Loader, derived_seed, generator
from store_schema import BadInput, read_consistently


def detect(
    store: str,
    batch: Batch,
    *,
    use_labels: bool = False,
    alpha: float = 0.01,
    evidence: str = "fisher",
    device: str = "cpu",
    on_step: OnStep = silent,
) -> DetectReport:
    """Decides whether a batch is known or new; the store is only read.

    ``evidence``: ``fisher`` (whitened deviation) or ``gradient`` (the paper's score deviation); ``alpha``: rate
    of false alarms. Labels count only with ``use_labels``.

    Raises BadInput (no expert knows such images, labels asked for and missing) and the store's errors.
    """
    one_of("evidence", evidence, EVIDENCE)
    if use_labels and batch.labels is None:
        raise BadInput("--use-labels needs labels", where=batch.source, expected="labels y [N]")
    return read_consistently(
        store, lambda opened: _detect(Loader(opened, device), batch, use_labels, alpha, evidence, on_step)
    )


def _detect(loader: Loader, batch: Batch, use_labels: bool, alpha: float, kind: str, on_step: OnStep) -> DetectReport:
    manifest = loader.manifest
    check_backbone(manifest, batch)
    experts = common.experts_for(manifest, batch)
    names = [t.name for e in experts for t in manifest.tasks_of(e.id)]
    check_values(experts, batch, on_step)
    book = Codebook.of(*(t.classes for t in manifest.tasks))
    rng = generator(derived_seed(manifest.seed, 0, "detect"))
    index = common.sample(len(batch.images), max(common.ONSET_IMAGES, IMAGES), rng)
    few = common.part(batch, index)
    names = common.shortlisted(manifest, names, few)
    found, raw = common.onset_evidence(loader, names, batch, index, book, kind, on_step)
    labels = None
    if use_labels and batch.labels is not None:
        book, codes = book.reading(batch.labels)
        labels = torch.from_numpy(codes)[index]
    verdict = decide(found, labels, alpha, lambda code: book.labels[code])
    rows = []
    for name in counted(names, on_step, "overlap", "tasks"):
        task = loader.task(name)
        record = manifest.expert(manifest.task(name).expert)
        x = common.flat(few, record.input_scale)
        # Without labels the pseudo-labels of the task's own subnetwork stand in.
        known = KnownTask(task.name, task.expert, task.net, task.params, task.mask, task.scores)
        pseudo = _pseudo(found[name].predicted)
        draws = [task.net.initial_shared(rng) for _ in range(DRAWS)]
        agreed = agreement(known, draws, Labelled(x, pseudo), int(pseudo.max()) + 1)
        rows.append(
            {
                "task": name,
                "expert": task.expert,
                "deviation": float(raw[name].mean()),
                "p_value": found[name].p_value() if found[name].available else None,
                "overlap": agreed.overlap,
                "divergence": agreed.divergence,
            }
        )
    chosen = verdict.tasks[0] if verdict.known else None
    return DetectReport(
        verdict="known" if verdict.known else "new",
        task=chosen,
        expert=manifest.task(chosen).expert if chosen else None,
        p_value=verdict.p_value,
        reason=verdict.reason,
        images=len(batch.images),
        tasks=tuple(rows),
        skipped=len(batch.skipped),
    )


def _pseudo(codes: torch.Tensor) -> torch.Tensor:
    """Codes [N] as class indices 0, 1, …"""
    indices: torch.Tensor = torch.unique(codes, return_inverse=True)[1]
    return indices
