"""``predict --explain``: asks what was not needed to decide, and tells of each image why this answer, not another."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import get_args

import numpy as np
import torch
from numpy.typing import NDArray

from clmoe_cli.api import common, gating
from clmoe_cli.api.predictions import Considered, Level, Prediction
from clmoe_cli.api.reasons import Case, in_words, sentence
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label, LabelEncoder
from clmoe_cli.method.explain import FIGURES, Asked, Candidates, Said, of_decision, of_subnetworks
from clmoe_cli.method.images import Rows, taken
from clmoe_cli.method.reproducible import logits
from clmoe_cli.method.routing import paper
from clmoe_cli.method.routing.decide import Decision, Explain
from clmoe_cli.method.routing.features import features, known
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.runtime import limits
from clmoe_cli.store_tensors import Loader

CHUNK = limits.EXPLAINED_IMAGES


@dataclass(frozen=True)
class Explanation:
    """Why N images were answered as they were.

    ``runner_up_task``, ``runner_up_label`` [N]: the best class of another task; where no other was compared, the next
    class of the same; ``runner_up_labels``: as Python values. ``margin`` [N] ≥ 0: how far that stays behind, in units
    of the evidence. ``reason``: N sentences. ``decided_by``: the figures that decided; the others are context.
    ``case``: how it was decided. ``why``: the :meth:`candidates` as arrays, with ``names`` and ``homes`` of the tasks
    and of their experts.
    """

    runner_up_task: NDArray[np.str_]
    runner_up_label: NDArray[np.generic]
    runner_up_labels: tuple[Label, ...]
    margin: NDArray[np.float64]
    reason: tuple[str, ...]
    decided_by: tuple[str, ...]
    case: Case
    why: Candidates
    names: list[str]
    homes: list[str]
    book: LabelEncoder

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Columns for tables, all [N]."""
        return {
            "runner_up_task": self.runner_up_task,
            "runner_up_label": self.runner_up_label,
            "margin": self.margin,
            "reason": np.array(self.reason, dtype=np.str_),
        }

    def added_to(self, rows: Sequence[Prediction], candidates: bool = True) -> list[Prediction]:
        """Predictions of the images with what explains them; their :meth:`candidates` only if they are wanted."""
        every: Iterable[tuple[Considered, ...] | None] = self.candidates() if candidates else [None] * len(rows)
        columns = (self.runner_up_task.tolist(), self.runner_up_labels, self.margin.tolist(), self.reason, every)
        return [
            replace(row, runner_up_task=task, runner_up_label=label, margin=margin, reason=reason, explanation=compared)
            for row, task, label, margin, reason, compared in zip(rows, *columns, strict=True)
        ]

    def in_words(self, rows: Sequence[int], confidence: Sequence[float]) -> list[str]:
        """The reasons without figures for the images at these positions, with the confidence in each of them."""
        at = torch.tensor(rows, dtype=torch.long)
        some = replace(self, why=Candidates(self.why.task[at], self.why.code[at], self.why.figures[at]))
        pairs = zip(some.candidates(), confidence, strict=True)
        return [in_words(self.case, found, sure) for found, sure in pairs]

    def candidates(self) -> Iterator[tuple[Considered, ...]]:
        """Of each image what it was compared with, the answer first; some images at a time are turned into such."""
        labels, levels = (*self.book.labels, None), (*get_args(Level), None)  # −1 finds the last
        margins, by = self.why.margins()
        by[:, 0] = -1
        values = (self.why.task, self.why.code, margins, by, self.why.figures)
        for part in zip(*(value.split(CHUNK) for value in values), strict=True):
            for image in zip(*(value.tolist() for value in part), strict=True):
                yield tuple(
                    Considered(
                        task=self.names[task],
                        expert=self.homes[task],
                        label=labels[code],
                        margin=margin,
                        by=levels[level],
                        **{name: None if f != f else f for name, f in zip(FIGURES, figures, strict=True)},
                    )
                    for task, code, margin, level, figures in zip(*image, strict=True)
                    if task >= 0
                )


def explained(
    decision: Decision, case: Case, names: list[str], homes: list[str], book: LabelEncoder
) -> Explanation | None:
    """The explanation of a decision that came with its candidates, None for others.

    ``names`` and ``homes``: of the tasks, and of their experts, by position.
    """
    why = decision.why
    if not isinstance(why, Candidates):
        return None
    rival = why.rival()[:, None]
    codes = why.code.gather(1, rival)[:, 0].numpy()
    explanation = Explanation(
        runner_up_task=np.array(names, dtype=np.str_)[why.task.gather(1, rival)[:, 0].numpy()],
        runner_up_label=book.decode(codes),
        runner_up_labels=tuple(book.labels[code] for code in codes.tolist()),
        margin=why.margins()[0].gather(1, rival)[:, 0].numpy(),
        reason=(),
        decided_by=case.decided_by,
        case=case,
        why=why,
        names=names,
        homes=homes,
        book=book,
    )
    return replace(explanation, reason=tuple(sentence(case, image) for image in explanation.candidates()))


def asked(loader: Loader, batch: Batch, names: Sequence[str], inputs: Sequence[Rows] | None = None) -> Asked:
    """What asks the named tasks' subnetworks about images of a batch.

    ``inputs``: the batch as each task reads it; then the gate is asked as well, if the store has one that this version
    reads. Without, few images must be asked about at a time.
    """
    manifest = loader.manifest
    record = manifest.gate(batch.input_shape, batch.input)
    seen = None
    if inputs is not None and record is not None and known(record.features, batch.input_shape):
        seen = common.rows(batch, Scaling(record.input_scale))
        for name in names:  # all that is needed is read before the first answer is out
            loader.answering(name)

    def ask(position: int, rows: torch.Tensor) -> Said:
        task = loader.task(names[position])
        if inputs is None:
            x: Rows = common.flat(common.part(batch, rows), loader.scaling(task.expert))
        else:
            x = taken(inputs[position], rows)
        logs = logits(task.net, task.params, x).log_softmax(dim=1)
        raw, own = paper.deviations(task, x, ["fisher"])["fisher"], task.calibration["fisher"]
        said = Said(logs, own.standardised(raw), own.p_values(raw))
        if seen is None or record is None:
            return said
        spaces, distances = loader.answering(task.name)[0], []
        for some in rows.split(gating.CHUNK):
            values = features(taken(seen, some), batch.input_shape, record.features, eye=loader.eye(record))
            distances.append(torch.stack([spaces.distances(values, c) for c in range(logs.shape[1])], dim=1))
        usual = spaces.scale.double().clamp_min(torch.finfo(torch.float32).tiny)
        return Said(logs, said.deviation, said.p_value, torch.cat(distances).double(), usual)

    return ask


def of_gate(loader: Loader, batch: Batch, names: Sequence[str]) -> Explain:
    """What explains the gate's decisions about images of a batch."""
    return partial(of_decision, asked=asked(loader, batch, names))


@dataclass(frozen=True)
class OfSubnetworks:
    """What explains decisions by evidence of whole subnetworks about images of one batch.

    ``names``: the tasks that could answer; ``router``: whose evidence decides, None within the only task; ``together``:
    how many consecutive images are of one task, None for one; ``inputs``: the images as each task reads them;
    ``asked``: what asks a task's subnetwork about some of them.
    """

    loader: Loader
    names: Sequence[str]
    book: LabelEncoder
    router: str | None
    together: int | None
    inputs: Sequence[Rows]
    asked: Asked

    def candidates(self, decision: Decision, evidence: torch.Tensor, rows: torch.Tensor) -> Candidates:
        """The candidates of a decision by ``evidence`` [n, T] about the images ``rows`` [n]; of batches the whole."""
        levels = {} if self.router is None else {"task_score": evidence}
        if self.router == "paper":
            some = [taken(x, rows) for x in self.inputs]
            levels["expert_score"] = paper.weigh(paper.by_expert, self.loader.tasks(self.names), some, self.together)
        codes = [torch.tensor(self.book.codes(self.loader.manifest.task(name).classes)) for name in self.names]
        return of_subnetworks(codes, levels, decision.task, decision.code, rows, self.asked)
