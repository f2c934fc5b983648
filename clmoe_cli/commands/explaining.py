"""``predict --explain``: asks what was not needed to decide, and tells of each image why this answer, not another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from clmoe_cli.commands import common, gating
from clmoe_cli.commands.reasons import Candidate, Case, sentence
from clmoe_cli.continual import routing
from clmoe_cli.continual.candidates import FIGURES, LEVELS, Asked, Candidates, Said, of_subnetworks
from clmoe_cli.continual.experts import logits
from clmoe_cli.continual.features import features
from clmoe_cli.continual.fusion import Decision
from clmoe_cli.continual.images import Rows, taken
from clmoe_cli.data import Batch
from clmoe_cli.labels import Codebook, Label
from clmoe_cli.state import Loader

COLUMNS = ("runner_up_task", "runner_up_label", "margin", "reason")


@dataclass(frozen=True)
class Explanation:
    """Why N images were answered as they were.

    ``candidates``: of each image plain objects, the answer first, with ``task``, ``expert``, ``label`` (None: nobody
    asked), ``margin`` (how far it stays behind the answer), ``by`` (the figure that puts it there; None for the answer)
    and the figures of :data:`~clmoe_cli.continual.candidates.FIGURES` (None: not known). ``runner_up_task``,
    ``runner_up_label`` [N]: the best class of another task; where no other was compared, the next class of the same.
    ``margin`` [N] ≥ 0: how far that stays behind, in units of the evidence. ``reason`` [N]: one sentence.
    ``decided_by``: the figures that decided; the others are context.
    """

    candidates: tuple[tuple[Candidate, ...], ...]
    runner_up_task: NDArray[np.str_]
    runner_up_label: NDArray[np.generic]
    runner_up_labels: tuple[Label, ...]
    margin: NDArray[np.float64]
    reason: NDArray[np.str_]
    decided_by: tuple[str, ...]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Columns for tables, all [N]."""
        return {name: getattr(self, name) for name in COLUMNS}

    def rows(self) -> list[dict[str, Any]]:
        """What is added to the plain object of each image."""
        columns = (self.runner_up_task.tolist(), self.runner_up_labels, self.margin.tolist(), self.reason.tolist())
        keys = (*COLUMNS, "explanation")
        return [dict(zip(keys, row, strict=True)) for row in zip(*columns, map(list, self.candidates), strict=True)]


def explained(found: Decision, case: Case, names: list[str], homes: list[str], book: Codebook) -> Explanation | None:
    """The explanation of a decision that came with its candidates, None for others.

    ``names`` and ``homes``: of the tasks, and of their experts, by position.
    """
    why = found.why
    if why is None:
        return None
    rival = why.rival()[:, None]
    rival_code = why.code.gather(1, rival)[:, 0].tolist()
    candidates = _plain(why, names, homes, book)
    return Explanation(
        candidates=candidates,
        runner_up_task=np.array(names, dtype=np.str_)[why.task.gather(1, rival)[:, 0].numpy()],
        runner_up_label=book.decode(np.array(rival_code)),
        runner_up_labels=tuple(book.labels[code] for code in rival_code),
        margin=why.margins()[0].gather(1, rival)[:, 0].numpy(),
        reason=np.array([sentence(case, image) for image in candidates], dtype=np.str_),
        decided_by=case.decided_by,
    )


def _plain(why: Candidates, names: list[str], homes: list[str], book: Codebook) -> tuple[tuple[Candidate, ...], ...]:
    labels, levels = (*book.labels, None), (*LEVELS, None)  # the code −1 finds the last
    margins, by = why.margins()
    by[:, 0] = -1
    figures = [[[None if v != v else v for v in c] for c in image] for image in why.figures.tolist()]
    every = zip(why.task.tolist(), why.code.tolist(), margins.tolist(), by.tolist(), figures, strict=True)
    return tuple(
        tuple(
            {"task": names[task], "expert": homes[task], "label": labels[code], "margin": margin, "by": levels[level]}
            | dict(zip(FIGURES, values, strict=True))
            for task, code, margin, level, values in zip(*image, strict=True)
            if task >= 0
        )
        for image in every
    )


def asked(loader: Loader, batch: Batch, names: Sequence[str], inputs: Sequence[Rows] | None = None) -> Asked:
    """What asks the named tasks' subnetworks about images of a batch.

    ``inputs``: the batch as each task reads it; then the gate is asked as well, if the store has one that this version
    reads. Without, few images must be asked about at a time.
    """
    manifest = loader.manifest
    record = manifest.gate(batch.input_shape, batch.input)
    seen = None
    if inputs is not None and record is not None and record.features == gating.features_of(batch):
        seen = common.rows(batch, record.input_scale)

    def ask(position: int, rows: torch.Tensor) -> Said:
        task = loader.task(names[position])
        if inputs is None:
            x: Rows = common.flat(common.part(batch, rows), manifest.expert(task.expert).input_scale)
        else:
            x = taken(inputs[position], rows)
        logs = logits(task.net, task.params, x).double().log_softmax(dim=1)
        raw, own = routing.deviations(task, x, ["fisher"])["fisher"], task.calibration["fisher"]
        said = Said(logs, own.standardised(raw), own.p_values(raw))
        if seen is None or record is None:
            return said
        spaces, distances = loader.answering(task.name)[0], []
        for some in rows.split(gating.CHUNK):
            values = features(taken(seen, some), batch.input_shape, record.features)
            distances.append(torch.stack([spaces.distances(values, c) for c in range(logs.shape[1])], dim=1))
        usual = spaces.scale.double().clamp_min(torch.finfo(torch.float32).tiny)
        return Said(logs, said.deviation, said.p_value, torch.cat(distances).double(), usual)

    return ask


def of_evidence(
    loader: Loader,
    batch: Batch,
    names: Sequence[str],
    book: Codebook,
    inputs: Sequence[Rows],
    router: str | None,
    together: int | None,
    evidence: torch.Tensor,
    found: Decision,
) -> Candidates:
    """The candidates of a decision by ``evidence`` [N, T] of a router, or (None) within the only task."""
    levels = {} if router is None else {"task_score": evidence}
    if router == "paper":
        levels["expert_score"] = routing.weigh(routing.by_expert, loader.tasks(names), inputs, together)
    codes = [torch.tensor(book.codes(loader.manifest.task(name).classes)) for name in names]
    rows = torch.arange(len(found.code))
    return of_subnetworks(codes, levels, found.task, found.code, rows, asked(loader, batch, names, inputs))
