"""Which task does an image belong to, when nobody says (paper, "Predict"; method section 6).

Most routers turn images, as each task reads them (T tensors [N, D]), into evidence [N, T], larger is likelier;
each is a function of its own, named in :data:`ROUTERS`. ``gate`` and ``fused`` look at a shortlist instead
(:mod:`clmoe_cli.method.routing.decide`). None ever sees a label.

===========  ==========================================  =====================================  ==============
router       evidence                                    stored per task                        cost per image
===========  ==========================================  =====================================  ==============
``fused``    ``gate``; within a task its subnetwork too  as ``gate``                            ``gate``, 1 to 2 passes
``gate``     distance from the classes' subspaces in     mean and 128 directions of d features  features, 8·d a class,
             fixed features (:mod:`.gate`)               a class                                8 classes in full
``loss``     least loss with the pseudo-label            nothing                                one forward
``gradient`` deviation from the gradient scores          scores on the mask                     about 4 passes
``fisher``   Mahalanobis distance, inputs and hidden     class means, 32 and 128 directions     1 pass + 160·d
``paper``    expert by least loss over the batch, then   scores on the mask                     about 4 passes
             task by mask overlap and score deviation
===========  ==========================================  =====================================  ==============
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from clmoe_cli.method import reproducible
from clmoe_cli.method.images import Rows, taken
from clmoe_cli.method.networks.base import Network, Params, logits
from clmoe_cli.method.routing.calibration import Calibration
from clmoe_cli.method.routing.mahalanobis import Whitening
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.gradient_scores import (
    Reference,
    factors,
    gradient_scores,
    normalised,
    relative_deviation,
)
from clmoe_cli.method.subnetwork.image_scores import DRAWS, divergence, image_scores
from clmoe_cli.method.subnetwork.pruning import threshold_at
from clmoe_cli.runtime import limits

DEFAULT_ROUTER = "fused"
GATED = ("fused", "gate")
CHUNK = limits.DEVIATING_IMAGES


@dataclass(frozen=True)
class Subnetwork:
    """A learned task, ready to run: its parameters (zero outside the mask) and the statistics stored with it.

    ``image_scores`` S̃ and ``drawn``, what batches of its own images diverge from it
    (:mod:`clmoe_cli.method.subnetwork.image_scores`), are empty for tasks of older versions.
    """

    name: str
    expert: str
    net: Network
    params: Params
    mask: masks.Masks
    scores: Params
    whitening: Whitening
    calibration: Mapping[str, Calibration]
    image_scores: Params = field(default_factory=dict)
    drawn: Tensor = field(default_factory=lambda: torch.zeros(0, DRAWS))

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.params["output.bias"])

    def reference(self) -> Reference:
        """The stored scores in the form that deviations are taken from."""
        return Reference.of(self.net, self.mask, self.scores)


def deviations(task: Subnetwork, x: Rows, kinds: Sequence[str]) -> dict[str, Tensor]:
    """Raw deviations [N] of the named kinds, settled: ``loss`` (pseudo-label, nats), ``gradient``, ``fisher``."""
    parts: dict[str, list[Tensor]] = {kind: [] for kind in kinds}
    net, params = task.net, reproducible.exact(task.net, task.params)
    reference = task.reference() if "gradient" in parts else None

    def gradient(part: Tensor) -> tuple[Tensor]:
        assert reference is not None
        return (relative_deviation(net, params, factors(net, params, part), reference),)

    for part in x.split(min(CHUNK, net.chunk)):
        if {"loss", "fisher"} & set(kinds):
            found, hidden = reproducible.read(net, params, part)
        if "loss" in parts:
            parts["loss"].append(-found.log_softmax(dim=1).max(dim=1).values)
        if "fisher" in parts:
            parts["fisher"].append(task.whitening.deviation(net.inputs(part), hidden))
        if "gradient" in parts:
            (own,) = gradient(part) if net.block is None else reproducible.in_blocks(part, net.block, gradient)
            parts["gradient"].append(own)
    # Where a network is sure of every training image its scores vanish, and others deviate beyond any number.
    largest = torch.finfo(torch.float32).max
    return {kind: reproducible.settled(torch.cat(found).clamp(max=largest)) for kind, found in parts.items()}


def by_loss(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batch: bool) -> Tensor:
    """Minus the least pseudo-label loss, [N, T]."""
    return torch.stack([-deviations(task, x, ["loss"])["loss"] for task, x in zip(tasks, inputs, strict=True)], dim=1)


def by_gradient(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batch: bool) -> Tensor:
    """Minus the gradient-score deviation in units of the task's own spread, [N, T]."""
    return _standardised(tasks, inputs, "gradient")


def by_fisher(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batch: bool) -> Tensor:
    """Minus the whitened deviation of the hidden activations in units of the task's own spread, [N, T]."""
    return _standardised(tasks, inputs, "fisher")


def by_paper(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batch: bool) -> Tensor:
    """The paper's two stages, [N, T]; tasks outside the chosen expert get minus infinity.

    The expert is that of the task whose calibrated loss is least. Within it a batch decides by the divergence of its S̃
    from each task's; where one of the tasks has none (older versions), the mask of the batch's own scores is compared
    with each task's mask. A single image decides by score deviation alone: one image's gradients give no usable mask.
    """
    home, best = _experts(tasks, inputs, batch)
    inside = home[None, :] == best.argmax(dim=1)[:, None]
    if batch:
        here = [i for i, chosen in enumerate(inside[0].tolist()) if chosen]
        fit = _by_image if all(tasks[i].image_scores for i in here) else _fit
        evidence = torch.zeros(len(tasks), dtype=torch.float64)
        evidence[here] = torch.tensor([fit(tasks[i], inputs[i]) for i in here], dtype=torch.float64)
        evidence = evidence.expand_as(inside)
    else:
        evidence = by_gradient(tasks, inputs, batch)
    return evidence.where(inside, torch.tensor(float("-inf"), dtype=torch.float64))


def by_expert(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batch: bool) -> Tensor:
    """The first of the paper's stages, [N, T]: minus the least calibrated pseudo-label loss in each task's expert."""
    home, best = _experts(tasks, inputs, batch)
    return best[:, home]


def _experts(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batch: bool) -> tuple[Tensor, Tensor]:
    """Position of each task's expert [T]; minus the least loss in each of E experts, of a batch its mean, [N, E].

    Losses are in units of each task's own spread: one task's images are harder than another's.
    """
    losses = _standardised(tasks, inputs, "loss")
    if batch:
        losses = losses.mean(dim=0, keepdim=True).expand_as(losses)
    experts = sorted({task.expert for task in tasks})
    home = torch.tensor([experts.index(task.expert) for task in tasks])
    return home, torch.stack([losses[:, home == e].max(dim=1).values for e in range(len(experts))], dim=1)


def _by_image(task: Subnetwork, x: Rows) -> float:
    """Minus the divergence of a batch's S̃ from the task's, each computed in the task's subnetwork."""
    found = image_scores(task.net, task.params, x, alone=True)
    return -divergence({name: value.cpu() for name, value in found.items()}, task.image_scores, task.mask)


def _fit(task: Subnetwork, x: Rows) -> float:
    """Mask overlap minus score divergence of a batch with one task."""
    pseudo = logits(task.net, task.params, x).argmax(dim=1)
    scores = {
        name: value.cpu() for name, value in gradient_scores(task.net, task.params, x, pseudo, alone=True).items()
    }
    shared = normalised(task.net, scores)
    size = sum(mask.numel() for mask in task.mask.values())
    threshold = threshold_at(shared, max(1, masks.count(task.mask)) / size)
    found = {name: value >= threshold for name, value in shared.items()}
    overlap = masks.agreement(found, task.mask).overlap
    apart = masks.divergence(scores, task.scores, task.mask)
    return overlap - apart


def _standardised(tasks: Sequence[Subnetwork], inputs: Sequence[Rows], kind: str) -> Tensor:
    columns = [
        -task.calibration[kind].standardised(deviations(task, x, [kind])[kind])
        for task, x in zip(tasks, inputs, strict=True)
    ]
    return torch.stack(columns, dim=1)


Router = Callable[[Sequence[Subnetwork], Sequence[Rows], bool], Tensor]

ROUTERS: dict[str, Router] = {
    "loss": by_loss,
    "gradient": by_gradient,
    "fisher": by_fisher,
    "paper": by_paper,
}


def weigh(router: Router, tasks: Sequence[Subnetwork], inputs: Sequence[Rows], batches: int | None) -> Tensor:
    """Evidence [N, T] by one of :data:`ROUTERS`, the largest decides; its softmax is the posterior over tasks.

    ``batches``: how many consecutive images belong to one task, their evidence is averaged; None: each image
    by itself.
    """
    found = []
    for rows in torch.arange(len(inputs[0])).split(batches or CHUNK):
        evidence = router(tasks, [taken(x, rows) for x in inputs], batches is not None)
        if batches is not None:
            evidence = evidence.mean(dim=0, keepdim=True).expand_as(evidence)
        found.append(evidence)
    return torch.cat(found)
