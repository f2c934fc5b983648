"""What an answer was chosen from: the classes that were compared, and the figures that they were compared by.

A decision falls on up to three levels, each within what the one before has left: experts (router ``paper``), tasks,
classes. Where the gate looks at images one by one, classes of all tasks are compared at once. The figures of the
levels are those that the decision itself was made from; the others say more about the same classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method.routing.decide import OPINION, Answered, BatchTask, Sources, Why
from clmoe_cli.method.routing.gaussians import GaussianGate
from clmoe_cli.method.routing.subspaces import Gate, Subspaces

LEVELS = ("expert_score", "task_score", "score")
"""What experts, tasks and classes are compared by, larger is likelier; NaN where nothing was compared."""
FIGURES = (
    *LEVELS, "distance", "own_distance", "log_likelihood", "opinion", "probability", "loss", "deviation", "p_value",
)  # fmt: skip
"""Of a class: the squared distance by its own statistics, in units of the answering class's mean distance and of its
own; its log-likelihood by the gate alone; the weight of its task's subnetwork beside the gate, and what that gives it.
Of that subnetwork: its pseudo-label loss in nats, and the whitened deviation in spreads of the task's own images. The
p-value."""
KEPT = 8
"""Candidates of an image."""


@dataclass(frozen=True)
class Said:
    """What one task's subnetwork says of n images.

    ``logs`` [n, C]: log-probabilities; ``deviation`` [n]: whitened, in spreads of the task's own; ``p_value`` [n]:
    of that deviation; all float64. ``distances`` [n, C]: the gate's, with ``usual`` [C], the mean distance of a
    class's own images; None where there is no gate, or where it has been asked already.
    """

    logs: Tensor
    deviation: Tensor
    p_value: Tensor
    distances: Tensor | None = None
    usual: Tensor | None = None


Asked = Callable[[int, Tensor], Said]
"""Asks the task at a position about the images at these rows [n]."""


@dataclass(frozen=True)
class Candidates(Why):
    """For each of N images at most ``KEPT`` classes: the answer, the others of its task, then those of other tasks.

    Where the gate compared all at once the others come in order of likelihood. ``task`` [N, K] positions of tasks, −1
    for no more candidates; ``code`` [N, K] label codes, −1 where nobody asked for the task's best class; ``figures``
    [N, K, F] float64 as in :data:`FIGURES`, NaN where not known.
    """

    task: Tensor
    code: Tensor
    figures: Tensor

    def figure(self, name: str) -> Tensor:
        """One of the figures, [N, K]."""
        return self.figures[:, :, FIGURES.index(name)]

    def rival(self) -> Tensor:
        """Column [N] of the best class of another task; where no other was compared, of the answer's next class."""
        other = (self.task != self.task[:, :1]) & (self.task >= 0)
        return torch.where(other.any(dim=1), other.int().argmax(dim=1), 1)

    def margins(self) -> tuple[Tensor, Tensor]:
        """How far each candidate stays behind the answer, and the level (0 to 2) at which it does, both [N, K]."""
        behind = (self.figures[:, :1, : len(LEVELS)] - self.figures[:, :, : len(LEVELS)]).nan_to_num(nan=0.0)
        level = (behind != 0).int().argmax(dim=2, keepdim=True)
        return behind.gather(2, level)[:, :, 0], level[:, :, 0]


def blank(task: Tensor, code: Tensor) -> Candidates:
    """Candidates with these tasks and codes [N, k], k ≤ ``KEPT``, and no figures yet."""
    fill = (0, KEPT - task.shape[1])
    figures = torch.full((len(task), KEPT, len(FIGURES)), math.nan, dtype=torch.float64)
    return Candidates(F.pad(task, fill, value=-1), F.pad(code, fill, value=-1), figures)


def ranked(scores: Tensor, best: Tensor, limit: int) -> Tensor:
    """Columns [N, k] of the ``limit`` largest scores [N, L], first of all ``best`` [N]."""
    first = scores.scatter(1, best[:, None], math.inf)
    return first.argsort(dim=1, descending=True, stable=True)[:, :limit]


def of_gate(
    gate: Gate | GaussianGate,
    codes: Tensor,
    statistics: Callable[[int], Subspaces],
    values: Tensor,
    chosen: Tensor,
    known: Mapping[str, Tensor],
) -> Candidates:
    """From what the gate compared: its classes ``chosen`` [N, k], the answer first, of which it has ``codes`` [S].

    ``values`` [N, d]: features of the images.

    ``known``: the raw ``distance`` [N, k], and others of the :data:`FIGURES`.
    """
    found, k = blank(gate.owner[chosen], codes[chosen]), chosen.shape[1]
    for name, figure in known.items():
        found.figure(name)[:, :k] = figure
    raw = known["distance"].double()
    usual = gate.scales.double()[chosen].clamp_min(torch.finfo(torch.float32).tiny)
    found.figure("distance")[:, :k] = raw / usual[:, :1]
    found.figure("own_distance")[:, :k] = raw / usual
    for one in chosen.unique().tolist():
        here = chosen == one
        own, rows = statistics(int(gate.owner[one])), here.nonzero()[:, 0]
        found.figure("p_value")[:, :k][here] = own.usual(values[rows], known["distance"][here], int(gate.position[one]))
    # The answer's is that of the prediction, which others of its task do not have.
    owner, position = gate.owner[chosen[:, 0]], gate.position[chosen[:, 0]]
    for task in owner.unique().tolist():
        rows = (owner == task).nonzero()[:, 0]
        found.figure("p_value")[rows, 0] = statistics(task).answered(values[rows], position[rows])
    return found


def with_opinions(found: Candidates, position: Tensor, rows: Tensor, asked: Asked) -> Candidates:
    """Adds what two subnetworks say of the images at ``rows`` [N]: that of the answer, and that of the rival.

    ``position`` [N, k]: which of its task's classes a candidate is.
    """
    at = F.pad(position, (0, KEPT - position.shape[1]))
    answering = found.task[:, 0]
    rival = found.task.gather(1, found.rival()[:, None])[:, 0]
    for tasks in (answering, rival.where(rival != answering, -1)):
        for task, here in grouped(tasks):
            said = asked(task, rows[here])
            own = found.task[here] == task
            values = {
                "probability": said.logs.exp().gather(1, at[here].where(own, 0)),
                "loss": -said.logs.max(dim=1, keepdim=True).values,
                "deviation": said.deviation[:, None],
            }
            for name, value in values.items():
                found.figure(name)[here] = value.where(own, found.figure(name)[here])
    return found


def grouped(tasks: Tensor) -> list[tuple[int, Tensor]]:
    """Each task of [N] and the rows where it stands; −1 stands for none."""
    return [(task, (tasks == task).nonzero()[:, 0]) for task in tasks[tasks >= 0].unique().tolist()]


def of_subnetworks(
    codes: Sequence[Tensor],
    levels: Mapping[str, Tensor],
    chosen: Tensor,
    answer: Tensor,
    rows: Tensor,
    asked: Asked,
) -> Candidates:
    """From evidence of whole subnetworks: T tasks with label ``codes`` [C] each, of which ``chosen`` [N] answered.

    ``levels``: ``expert_score`` and ``task_score`` [N, T], where those were compared; minus infinity for tasks that
    were left out before. ``answer`` [N]: codes. ``rows`` [N]: which images they are. Of the tasks behind the rival
    nobody asks for the best class.
    """
    every = len(codes)
    others = min(every - 1, KEPT - 2)
    width = KEPT - others
    order = torch.arange(every).expand(len(chosen), -1)
    for name in ("task_score", "expert_score"):  # the last sort counts most
        if name in levels:
            first = (order == chosen[:, None]).int().argmax(dim=1)
            order = order.gather(1, ranked(levels[name].gather(1, order), first, every))
    order = order[:, 1 : others + 1]
    found = blank(torch.cat([torch.full((len(chosen), width), -1), order], dim=1), torch.full((len(chosen), KEPT), -1))
    usual = torch.full((len(chosen),), math.nan, dtype=torch.float64)

    def put(task: int, here: Tensor, said: Said, classes: Tensor, start: int) -> None:
        """Classes [n, k] of a task, asked about the images ``here`` [n], into the columns from ``start`` on."""
        place = slice(start, start + classes.shape[1])
        found.task[here, place], found.code[here, place] = task, codes[task][classes]
        values = {"loss": -said.logs.max(dim=1).values, "deviation": said.deviation, "p_value": said.p_value}
        wide = {name: value[:, None].expand(classes.shape) for name, value in values.items()}
        wide["probability"] = said.logs.exp().gather(1, classes)
        if said.distances is not None and said.usual is not None:
            raw, own = said.distances.gather(1, classes), said.usual[classes]
            if start == 0:
                usual[here] = own[:, 0]
            wide |= {"distance": raw / usual[here][:, None], "own_distance": raw / own}
        for name, value in wide.items():
            found.figure(name)[here, place] = value

    for task, here in grouped(chosen):
        said = asked(task, rows[here])
        best = (codes[task] == answer[here][:, None]).int().argmax(dim=1)
        classes = ranked(said.logs, best, width)
        put(task, here, said, classes, 0)
        found.figure("score")[here, : classes.shape[1]] = said.logs.gather(1, classes)
    for task, here in grouped(order[:, 0]) if others else ():
        said = asked(task, rows[here])
        put(task, here, said, said.logs.argmax(dim=1, keepdim=True), width)
    for name, values in levels.items():
        compared = values.gather(1, found.task.clamp_min(0)).where(found.task >= 0, math.nan)
        found.figure(name)[:] = compared.where(compared.isfinite(), math.nan)
    return found


def of_decision(sources: Sources, answered: Answered, asked: Asked) -> Candidates:
    """The candidates of images that the gate has decided for, with what their subnetworks say."""
    gate, batch, values = sources.gate, answered.batch, answered.values
    chosen, likely, scores = answered.compared.chosen, answered.compared.likely, answered.scores
    columns = ranked(scores, answered.best, KEPT if batch is None else KEPT - len(batch.near) + 1)
    chosen = chosen.gather(1, columns)
    known = {"log_likelihood": likely.gather(1, columns), "score": scores.gather(1, columns)}
    known["distance"] = _distances(sources, values, chosen)
    if sources.opinion is not None:
        weights = torch.full((int(gate.owner.max()) + 1,), OPINION, dtype=torch.float64)
        if sources.weights is not None:
            weights = torch.tensor(sources.weights, dtype=torch.float64)
        known["opinion"] = weights[gate.owner[chosen]]
    if batch is not None:
        chosen, known = _beside(sources, batch, values, chosen, known)
    why = of_gate(gate, sources.codes, sources.statistics, values, chosen, known)
    return with_opinions(why, gate.position[chosen], answered.rows, asked)


def _beside(
    sources: Sources, batch: BatchTask, values: Tensor, chosen: Tensor, known: dict[str, Tensor]
) -> tuple[Tensor, dict[str, Tensor]]:
    """What was compared within a batch's task, [N, k], and beside it the nearest class of each other task."""
    score = dict(zip(batch.near, batch.evidence.tolist(), strict=True))
    known = known | {"task_score": torch.full_like(known["score"], score[batch.task])}
    for task in sorted(set(score) - {batch.task}, key=lambda task: -score[task]):
        compared = sources.gate.within(values, task, sources.statistics)
        at = compared.likely.argmax(dim=1, keepdim=True)
        classes = compared.chosen
        distance = _distances(sources, values, classes.gather(1, at))
        nothing = torch.full(distance.shape, math.nan, dtype=torch.float64)
        here = {"distance": distance, "task_score": torch.full_like(nothing, score[task])}
        chosen = torch.cat([chosen, classes.gather(1, at)], dim=1)
        known = {name: torch.cat([value, here.get(name, nothing)], dim=1) for name, value in known.items()}
    return chosen, known


def _distances(sources: Sources, values: Tensor, chosen: Tensor) -> Tensor:
    """Distances [N, k] of features [N, d] from classes ``chosen`` [N, k] by each class's own statistics."""
    found = torch.empty(chosen.shape, dtype=torch.float64)
    for one in chosen.unique().tolist():
        here, columns = (chosen == one).nonzero(as_tuple=True)
        own, of = sources.statistics(int(sources.gate.owner[one])), int(sources.gate.position[one])
        found[here, columns] = own.distances(values[here], of)
    return found
