"""Known or new? (paper, "Onset"; the table of method section 5).

Inputs are compared without labels; labels, when there are any, decide the rest. Labels and predictions are
integer codes; a code that no task has stands for an unseen class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from clmoe_cli.method.routing.calibration import MINIMUM, batch_p_value

AGREEMENT = 0.5
"""Share of images that a task must predict as labelled for the data to count as that task's."""
CERTAIN = 0.9
"""The same for a task that has no p-values."""
JUDGED = 0.5
"""Share of images that must have a p-value for a task to have one of the batch."""
NAMED = 8
"""Classes named in a reason at most."""


@dataclass(frozen=True)
class Evidence:
    """What one known task says of a batch.

    ``p`` [N] (NaN: not available), ``predicted`` codes [N], the task's codes, how many images calibrated it (0 where
    there are no p-values). ``whole``: p-value of the batch where the evidence is of batches; single images say little
    then, and a batch counts as one task's. ``won`` [N]: which images the gate answers with this task, None where it was
    not asked.
    """

    p: Tensor
    predicted: Tensor
    classes: frozenset[int]
    calibration: int
    whole: float | None = None
    won: Tensor | None = None

    @property
    def available(self) -> bool:
        """Whether the task has p-values."""
        return float((~self.p.isnan()).double().mean()) >= JUDGED

    @property
    def share(self) -> float:
        """Share of the images that the gate answers with this task; 0 where it was not asked."""
        return 0.0 if self.won is None else float(self.won.double().mean())

    def p_value(self) -> float:
        """p-value of the batch."""
        if self.whole is not None:
            return self.whole
        return batch_p_value(self.p[~self.p.isnan()], self.calibration)


@dataclass(frozen=True)
class Verdict:
    """``known`` (with the names of the task or tasks), ``new``, or ``undecided`` for want of p-values.

    ``p_value``: of the best fit; ``reason``: one sentence. ``conflict``: the task that its images fit and its labels
    contradict.
    """

    verdict: Literal["known", "new", "undecided"]
    tasks: tuple[str, ...]
    p_value: float | None
    reason: str
    conflict: str | None = None

    @property
    def known(self) -> bool:
        """Whether the batch is of known tasks."""
        return self.verdict == "known"


def decide(
    tasks: Mapping[str, Evidence], labels: Tensor | None, alpha: float, called: Callable[[int], object] = str
) -> Verdict:
    """Decides for a batch; ``labels`` are codes [N] or None; ``alpha`` is the rate of false alarms.

    ``called``: what people call the class with a code.
    """
    if not tasks:
        return Verdict("new", (), None, "no task is known yet")
    batch = {name: e.p_value() for name, e in tasks.items() if e.available}
    best = max(batch.values(), default=None)
    seen = None if labels is None else frozenset(labels.unique().tolist())
    known = frozenset[int]().union(*(e.classes for e in tasks.values()))
    # Of several that fit, the one that answers most of the images comes first, as predict would have it.
    fitting = sorted((name for name in batch if batch[name] >= alpha), key=lambda n: (-tasks[n].share, -batch[n]))
    if seen is not None and not seen <= known:
        looks = _without_labels(tasks, batch, fitting, best, alpha)
        # The same images under other names: said here, and by ``learn`` once it has seen what they are taken for.
        though = f"; yet {looks.reason}" if looks.known else ""
        return Verdict("new", (), best, unseen([called(code) for code in sorted(seen - known)]) + though)
    if labels is None or seen is None:
        return _without_labels(tasks, batch, fitting, best, alpha)
    # A task without p-values cannot say whether images fit: its predictions must.
    fitting += [name for name, e in tasks.items() if not e.available and _agrees(e, labels) >= CERTAIN]
    whole = [name for name in fitting if seen <= tasks[name].classes]
    for name in whole:
        share = _agrees(tasks[name], labels)
        if share >= AGREEMENT:
            why = f"and {_percent(share)} of its labels agree"
            if name not in batch:
                why = f"which predicts {_percent(share)} of its labels ({_percent(CERTAIN)} are needed)"
            return Verdict("known", (name,), batch.get(name), f"{looks_like(name, batch, alpha)}, {why}")
    if whole:
        name = whole[0]
        agree = f"{_percent(_agrees(tasks[name], labels))} agree, {_percent(AGREEMENT)} are needed"
        why = f"{looks_like(name, batch, alpha)}, but its labels conflict with {name}: {agree}"
        return Verdict("new", (), batch.get(name), why, name)
    return _several(tasks, labels, batch, alpha)


def unseen(classes: Sequence[object]) -> str:
    """The reason for what is new by its classes."""
    return f"it has classes that no known task near it has: {listed(classes)}"


def listed(classes: Sequence[object]) -> str:
    """The first of them by name."""
    more = f" and {len(classes) - NAMED} more" if len(classes) > NAMED else ""
    return ", ".join(str(c) for c in classes[:NAMED]) + more


def looks_like(name: str, batch: Mapping[str, float], alpha: float) -> str:
    """What the images say for a task, by its p-value if it has one."""
    if name not in batch:
        return f"no p-value for want of images, but it looks like {name}"
    return f"it looks like {name} (p = {batch[name]:.2g}, not below alpha = {alpha:g})"


def _without_labels(
    tasks: Mapping[str, Evidence],
    batch: Mapping[str, float],
    fitting: list[str],
    best: float | None,
    alpha: float,
) -> Verdict:
    if fitting:
        return Verdict("known", (fitting[0],), best, looks_like(fitting[0], batch, alpha))
    able = [name for name in tasks if name in batch]
    unable = [name for name in tasks if name not in batch]
    if not able:
        return Verdict(
            "undecided", (), None, f"no known task near it has the {MINIMUM} images a class that p-values need"
        )
    every = torch.stack([tasks[name].p for name in able])
    judged = ~every.isnan().any(dim=0)
    enough = float(judged.double().mean()) >= JUDGED
    single = all(tasks[name].whole is None for name in able)
    if len(able) > 1 and enough and single:
        p, chosen = (found[judged] for found in _answering([tasks[name] for name in able], every))
        mixed = batch_p_value(p, min(tasks[name].calibration for name in able))
        if mixed >= alpha:
            names = tuple(able[i] for i in chosen.unique().tolist())
            by = f"p = {mixed:.2g}, not below alpha = {alpha:g}"
            return Verdict("known", names, mixed, f"each image fits one of the tasks {', '.join(names)} ({by})")
    name = max(able, key=lambda task: batch[task])
    nearest = f"nearest {name}, p = {batch[name]:.2g}, below alpha = {alpha:g}"
    if unable or not enough:
        who = ", ".join(unable) or "they"
        why = (
            f"its images deviate from {', '.join(able[:NAMED])} ({nearest}), but {who} could not judge (too few images)"
        )
        return Verdict("undecided", (), best, why)
    return Verdict("new", (), best, f"its images deviate from every known task ({nearest})")


def _answering(tasks: Sequence[Evidence], every: Tensor) -> tuple[Tensor, Tensor]:
    """The p-value [N] of each image by the task that answers it, and which that is [N], of p-values [T, N].

    Where none of these tasks does, it is the one with the largest: so it is said to be usual sooner than it is.
    """
    largest, at = every.max(dim=0)
    asked = [e.won for e in tasks if e.won is not None]
    if len(asked) < len(tasks):
        return largest, at
    won = torch.stack(asked)
    answering = won.long().argmax(dim=0)
    own = every.gather(0, answering[None])[0]
    return own.where(won.any(dim=0), largest), answering.where(won.any(dim=0), at)


def _several(tasks: Mapping[str, Evidence], labels: Tensor, batch: Mapping[str, float], alpha: float) -> Verdict:
    able, best = [name for name, e in tasks.items() if e.available], max(batch.values(), default=None)
    if not able:
        name = max(tasks, key=lambda task: _agrees(tasks[task], labels))
        agreed = _agrees(tasks[name], labels)
        lacks = f"{_percent(CERTAIN)} are needed" if agreed < CERTAIN else "but has not all of its classes"
        why = f"none has images enough for a p-value; {name} predicts {_percent(agreed)} of its labels, {lacks}"
        return Verdict("undecided", (), best, f"no known task fits: {why}")
    codes = [torch.tensor(sorted(tasks[name].classes)) for name in able]
    belongs = torch.stack([torch.isin(labels, c) for c in codes])
    p = torch.stack([tasks[name].p for name in able])
    says = belongs & ~p.isnan()
    p, chosen = p.where(says, torch.tensor(0.0, dtype=torch.float64)).max(dim=0)
    judged, fewest = says.any(dim=0), min(tasks[name].calibration for name in able)
    enough = float(judged.double().mean()) >= JUDGED
    mixed = batch_p_value(p[judged], fewest) if enough and bool(belongs.any(dim=0).all()) else 0.0
    predicted = torch.stack([tasks[name].predicted for name in able]).gather(0, chosen[None])[0]
    share = float((predicted == labels).double().mean())
    if mixed >= alpha and share >= AGREEMENT:
        names = tuple(able[i] for i in chosen.unique().tolist())
        why = f"p = {mixed:.2g}, not below alpha = {alpha:g}; {_percent(share)} of its labels agree"
        why = f"each image and its label fit one of the tasks {', '.join(names)} ({why})"
        return Verdict("known", names, mixed, why)
    seen = frozenset(labels.unique().tolist())
    unable = [name for name, e in tasks.items() if name not in able and seen & e.classes]
    if unable or not enough:
        who = f"{', '.join(unable)}, which know{'s' * (len(unable) == 1)} some of its labels," if unable else "they"
        why = f"its images and labels fit none of {', '.join(able[:NAMED])}, but {who} could not judge (too few images)"
        return Verdict("undecided", (), best, why)
    if mixed >= alpha:
        agree = f"{_percent(share)} of its labels agree"
        why = f"{agree} with the tasks that its images fit, {_percent(AGREEMENT)} are needed"
    else:
        why = f"p = {mixed:.2g} with the tasks that know the labels, below alpha = {alpha:g}"
    return Verdict("new", (), best, f"its images and labels together fit no known task ({why})")


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _agrees(evidence: Evidence, labels: Tensor) -> float:
    return float((evidence.predicted == labels).double().mean())
