"""Known or new? (paper, "Onset"; the table of method section 5).

Inputs are compared without labels; labels, when there are any, decide the rest. Labels and predictions are
integer codes; a code that no task has stands for an unseen class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from clmoe_cli.continual.calibration import batch_p_value

AGREEMENT = 0.5
"""Share of images that a task must predict as labelled for the data to count as that task's."""


UNSEEN = "it has classes that no known task has"


@dataclass(frozen=True)
class Evidence:
    """What one known task says of a batch.

    ``p`` [N] (NaN: not available), ``predicted`` codes [N], the task's codes, how many images calibrated it.
    """

    p: Tensor
    predicted: Tensor
    classes: frozenset[int]
    calibration: int

    @property
    def available(self) -> bool:
        """Whether the task has p-values."""
        return not bool(self.p.isnan().any())

    def p_value(self) -> float:
        """p-value of the batch."""
        return batch_p_value(self.p, self.calibration)


@dataclass(frozen=True)
class Verdict:
    """``known`` (with the names of the task or tasks) or ``new``; ``p_value`` of the best fit; one sentence."""

    known: bool
    tasks: tuple[str, ...]
    p_value: float | None
    reason: str


def decide(tasks: Mapping[str, Evidence], labels: Tensor | None, alpha: float) -> Verdict:
    """Decides for a batch; ``labels`` are codes [N] or None; ``alpha`` is the rate of false alarms."""
    if not tasks:
        return Verdict(False, (), None, "no task is known yet")
    batch = {name: e.p_value() for name, e in tasks.items() if e.available}
    best = max(batch.values(), default=None)
    seen = None if labels is None else frozenset(labels.unique().tolist())
    if seen is not None and not seen <= frozenset().union(*(e.classes for e in tasks.values())):
        return Verdict(False, (), best, UNSEEN)
    fitting = sorted((name for name in batch if batch[name] >= alpha), key=lambda name: -batch[name])
    if labels is None or seen is None:
        return _without_labels(tasks, batch, fitting, best, alpha)
    # A task without p-values cannot say whether images fit: its predictions must.
    fitting += [name for name, e in tasks.items() if not e.available and _agrees(e, labels) >= 0.9]
    whole = [name for name in fitting if seen <= tasks[name].classes]
    for name in whole:
        if _agrees(tasks[name], labels) >= AGREEMENT:
            return Verdict(True, (name,), batch.get(name), f"its images and labels fit task {name}")
    if whole:
        return Verdict(
            False, (), batch.get(whole[0]), f"its labels conflict with task {whole[0]}, whose images it fits"
        )
    return _several(tasks, labels, best, alpha)


def _without_labels(
    tasks: Mapping[str, Evidence],
    batch: Mapping[str, float],
    fitting: list[str],
    best: float | None,
    alpha: float,
) -> Verdict:
    if fitting:
        return Verdict(True, (fitting[0],), best, f"its images deviate no more than those of task {fitting[0]}")
    able = [name for name in tasks if name in batch]
    if not able:
        return Verdict(False, (), None, "no known task has enough held-out images for p-values")
    if len(able) > 1:
        p, chosen = torch.stack([tasks[name].p for name in able]).max(dim=0)
        mixed = batch_p_value(p, min(tasks[name].calibration for name in able))
        if mixed >= alpha:
            names = tuple(able[i] for i in chosen.unique().tolist())
            return Verdict(True, names, mixed, f"each image fits one of the tasks {', '.join(names)}")
    unable = [name for name in tasks if name not in batch]
    but = f"; task {', '.join(unable)} could not judge (too few held-out images)" if unable else ""
    return Verdict(False, (), best, f"its images deviate from every known task{but}")


def _several(tasks: Mapping[str, Evidence], labels: Tensor, best: float | None, alpha: float) -> Verdict:
    able = [name for name, e in tasks.items() if e.available]
    if not able:
        return Verdict(False, (), best, "no known task fits")
    codes = [torch.tensor(sorted(tasks[name].classes)) for name in able]
    belongs = torch.stack([torch.isin(labels, c) for c in codes])
    p = torch.stack([tasks[name].p for name in able]).where(belongs, torch.tensor(0.0, dtype=torch.float64))
    p, chosen = p.max(dim=0)
    predicted = torch.stack([tasks[name].predicted for name in able]).gather(0, chosen[None])[0]
    fewest = min(tasks[name].calibration for name in able)
    mixed = batch_p_value(p, fewest) if bool((p > 0).all()) else 0.0
    if mixed >= alpha and float((predicted == labels).double().mean()) >= AGREEMENT:
        names = tuple(able[i] for i in chosen.unique().tolist())
        return Verdict(True, names, mixed, f"each image and its label fit one of the tasks {', '.join(names)}")
    return Verdict(False, (), best, "its images and labels together fit no known task")


def _agrees(evidence: Evidence, labels: Tensor) -> float:
    return float((evidence.predicted == labels).double().mean())
