"""Why an image was answered so, as one sentence: first what decided, then what else is known (``context``)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from clmoe_cli.api.predictions import Considered

GATE = ("fused", "gate")
DECISIVE = {
    "fused": ("score", "log_likelihood", "probability"),
    "gate": ("score", "log_likelihood"),
    "loss": ("task_score", "score", "probability"),
    "gradient": ("task_score", "score", "probability"),
    "fisher": ("task_score", "score", "probability"),
    "paper": ("expert_score", "task_score", "score", "probability"),
    "task": ("score", "probability"),
}


@dataclass(frozen=True)
class Case:
    """How it was decided: the router (``task``: a subnetwork alone), whether for whole batches, and below which p-value
    unknown.

    ``densities``: the gate compares Gaussians, so that distances are no more than context; else it compares distances.
    ``given``: the task was, and no other was compared.
    """

    router: str
    batch: bool
    reject: float | None
    densities: bool = False
    given: bool = False

    @property
    def decided_by(self) -> tuple[str, ...]:
        """Names of the figures that decided."""
        whole = ("task_score",) if self.batch and self.router in GATE else ()
        own = DECISIVE[self.router]
        if self.router in GATE and not self.densities:
            own = (*own[:2], "distance", *own[2:])
        return (*whole, *own, *(() if self.reject is None else ("p_value",)))


def sentence(case: Case, found: Sequence[Considered]) -> str:
    """The reason for the first of an image's candidates.

    Each has ``margin``, how far it stays behind the first, and ``by``, the figure that puts it there.
    """
    answer = found[0]
    mate = next((c for c in found[1:] if c.task == answer.task), None)
    other = next((c for c in found[1:] if c.task != answer.task), None)
    head = f"{answer.label} by {answer.task} ({answer.expert})"
    p_value, end = answer.p_value, ""
    p = "no p-value (too few images)" if p_value is None else f"p = {p_value:.3g}"
    if case.reject is not None and p_value is not None:
        if p_value < case.reject:
            head = f"unknown, since {p} is below {case.reject:g}; at best {head}"
        else:
            end = f"; known, since {p} is not below {case.reject:g}"
        p = ""
    if case.router not in GATE:
        why, beside = _routed(case, found, mate, other), _measured(answer, other)
    else:
        # A class of the same task is worth a word where it comes next.
        mate = mate if case.batch or (mate is not None and found[1] is mate) else None
        opinion = mate if case.router == "fused" and answer.opinion else None
        why, beside = _gated(case, answer, mate, other, opinion), _said(answer, other, opinion is not None)
        if case.densities:
            beside = f"{_near(answer)}{_apart(other)}; {beside}"
    context = "; ".join(part for part in (beside, p) if part)
    return f"{head}: {why}{end}" + (f" [context: {context}]" if context else "")


SURELY, PROBABLY, CLOSE = 0.99, 0.8, 0.6
"""Least confidence of answers that are sure, that are likely, and that no other is nearly as likely as."""
USUAL, RARE = 0.05, 0.005
"""Least p-value of inputs that are ordinary for their class, and of those that are unusual."""


def in_words(case: Case, found: Sequence[Considered], confidence: float) -> str:
    """The reason for the first of an image's candidates without figures: how sure, what comes next, how usual it is.

    ``confidence``: in the answer, 0 to 1.
    """
    answer = found[0]
    mate = next((c for c in found[1:] if c.task == answer.task and c.label is not None), None)
    rival = found[1] if len(found) > 1 and found[1].label is not None else mate
    unknown = case.reject is not None and answer.p_value is not None and answer.p_value < case.reject
    sure = "surely" if confidence >= SURELY else "probably" if confidence >= PROBABLY else "perhaps"
    head = f"{'unknown; if anything' if unknown else sure} {answer.label} of {answer.task}"
    parts = ["asked of that task alone"] if case.given else []
    if case.batch:
        parts.append("the images that it came with are of that task")
    if rival is None:
        parts.append("nothing else was near enough to compare")
    elif confidence >= SURELY:
        parts.append("nothing else comes near")
    else:
        who = f"{rival.label} of {'the same task' if rival.task == answer.task else rival.task}"
        parts.append(f"{who} {'comes next' if confidence >= CLOSE else 'is nearly as likely'}")
    if case.router in GATE and case.densities and mate is not None:
        likelier = _known(mate.log_likelihood) > _known(answer.log_likelihood)
        if likelier:
            parts.append(f"it looks more like {mate.label}, and the task's network decided otherwise")
    return f"{head}: {'; '.join([*parts, _usual(answer)])}"


def _usual(answer: Considered) -> str:
    """How usual an image is for the class that it is answered as."""
    p_value, label = answer.p_value, answer.label
    if p_value is None:
        return f"too few of {label} were learned to tell how usual it is"
    if p_value >= USUAL:
        return f"it is usual for {label}"
    return f"it is unusual for {label}" if p_value >= RARE else f"it is unlike nearly all of {label} that was learned"


def _gated(
    case: Case, answer: Considered, mate: Considered | None, other: Considered | None, opinion: Considered | None
) -> str:
    """The gate: against a class of the same task, of which the subnetwork may have an ``opinion``, and another's."""
    parts = [*([] if case.densities else [_near(answer)]), *([_class(case, answer, mate)] if mate else [])]
    if opinion:
        gives = f"{answer.probability:.3f} and {opinion.probability:.3f}"
        parts.append(f"its subnetwork, with {answer.opinion:.2g} of the say, gives {gives}")
    if case.given:
        return "; ".join(parts) or "the only class of the task"
    if not case.batch:
        return "; ".join([*parts, _class(case, answer, other) if other else "no other task is near"])
    behind = f"{other.task} {_figure(other.margin)} nats behind" if other else "the only task"
    return "; ".join([f"its batch is {answer.task}'s, {behind}", *parts])


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _known(figure: float | None) -> float:
    """A figure that decided, and so is known."""
    assert figure is not None
    return figure


def _near(answer: Considered) -> str:
    return f"at {answer.distance:.2f} of its usual distance"


def _apart(other: Considered | None) -> str:
    return "" if other is None else f", {other.label} of {other.task} at {other.distance:.2f} of it"


def _class(case: Case, answer: Considered, other: Considered) -> str:
    """How far another class is behind; of distances, in the same unit."""
    who = f"{other.label} of {'the same task' if other.task == answer.task else other.task}"
    behind = f"{_figure(other.margin)} nats behind"
    if case.densities:
        if _known(other.log_likelihood) > _known(answer.log_likelihood):
            return f"{who} is likelier for the gate, but {behind} with the subnetworks' opinion"
        return f"{who} {behind}"
    if _known(other.log_likelihood) > _known(answer.log_likelihood):
        return f"{who} is nearer, at {other.distance:.2f} of it, but {behind} with the subnetworks' opinion"
    return f"{who} at {other.distance:.2f} of it, {behind}"


def _said(answer: Considered, other: Considered | None, had_a_say: bool) -> str:
    """What the subnetworks say, where it did not count."""
    pair = [c for c in (answer, other) if c is not None]
    sure = " and ".join(f"{c.task} {c.probability:.3f}" for c in (pair[1:] if had_a_say else pair))
    deviation = " and ".join(f"{c.deviation:+.1f}" for c in pair)
    return (f"subnetwork of {sure} sure, " if sure else "") + f"deviation {deviation} spreads"


def _routed(case: Case, found: Sequence[Considered], mate: Considered | None, other: Considered | None) -> str:
    """Evidence of whole subnetworks: expert, task, class."""
    parts, answer = [], found[0]
    if case.router == "paper":
        parts.append(_expert(case, found))
    if case.router != "task":
        parts.append(_task(case, answer, other))
    sure = f"its subnetwork gives {answer.label} {answer.probability:.3f}"
    return "; ".join([*parts, sure + (f", {mate.label} {mate.probability:.3f}" if mate else "")])


def _expert(case: Case, found: Sequence[Considered]) -> str:
    """The first of the paper's stages."""
    own = found[0].expert
    other = next((c for c in found if c.expert != own), None)
    mean = "mean loss over its batch" if case.batch else "loss"
    beside = f" ({other.expert} {-_known(other.expert_score):+.2f})" if other else ""
    return f"{own} has the least {mean}, {-_known(found[0].expert_score):+.2f} spreads{beside}"


def _task(case: Case, answer: Considered, other: Considered | None) -> str:
    """Which task, and by what."""
    task = answer.task
    if other is None:
        return f"{task} is the only task"
    if other.task_score is None:
        return f"{task} is the only task in {answer.expert}"
    value, rival = _known(answer.task_score), other.task_score
    if case.router == "loss":
        mean = "mean loss over its batch" if case.batch else "loss"
        return f"{task} has the least {mean}, {-value:.3g} nats ({other.task} {-rival:.3g})"
    if case.router == "paper" and case.batch:
        return f"its batch's scores agree best with {task}'s, {value:.3g} ({other.task} {rival:.3g})"
    what = {
        ("fisher", False): "deviates",
        ("fisher", True): "its batch deviates",
        ("gradient", True): "its batch's gradients deviate",
    }.get((case.router, case.batch), "its gradients deviate")
    return f"{what} least from {task}, {-value:+.2f} spreads ({other.task} {-rival:+.2f})"


def _measured(answer: Considered, other: Considered | None) -> str:
    """The gate's distances, where another router decided."""
    if answer.distance is None:
        return ""
    return f"for the gate {_near(answer)}{_apart(other)}"
