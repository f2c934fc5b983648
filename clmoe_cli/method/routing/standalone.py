"""The gate within one task as a module of fixed matrices, and its mixture with the task's subnetwork.

Within a task only the differences between its classes count, so that what they share is left out. Of the Gaussian gate
(:mod:`clmoe_cli.method.routing.gaussians`) remains, for the features x of an image and class c,

    sharpness × log-density + log-prior  =  a_cᵀx + b_c + ‖P_cᵀx − q_c‖².

``a`` and ``b`` are the linear discriminant with the prior; ``P`` [d, K] are the class's own directions through the
inverse of B, turned to be orthogonal. One product [d, C (1 + K)] gives all of them, and the inverse of B itself is not
needed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from clmoe_cli.method.routing.features import MOST_COLUMNS, ROOT, VECTOR, AnyEye, calculated, columns, projection
from clmoe_cli.method.routing.gaussians import GaussianGate, Gaussians, own_directions


def closed_form(gate: GaussianGate, task: int, own: Gaussians) -> tuple[Tensor, Tensor]:
    """What a task's C classes are told apart by: a matrix [d, C + C·K] and offsets [C + C·K], float64.

    They apply to features less the gate's ``centre``. The first C columns are linear; of the others, K for each class,
    the squares count. Where the gate is linear there are no others. ``own``: the statistics of the task at position
    ``task`` of the gate.
    """
    solved = gate.solved
    alpha, sharpness = solved.choice.tolist()
    rows = (gate.owner == task).nonzero()[:, 0]
    spread, weights = solved.spread.double(), solved.weights[rows].double()
    means = (solved.means[rows].double() - solved.centre.double()) / spread
    wide = own_directions(own, solved.spread)
    k = wide.shape[2]
    gamma, turn = torch.linalg.eigh(solved.grams[rows, :k, :k].double())
    kept = 1 - alpha
    both = kept + alpha * gamma.clamp_min(0)
    linear = sharpness / kept * weights
    constant = -0.5 * sharpness * ((weights * means).sum(dim=1) / kept + (both / kept).log().sum(dim=1))
    constant = constant + own.priors
    matrix, offset = (linear / spread).T, constant
    if alpha > 0:
        turned = wide @ turn * (0.5 * sharpness * alpha / kept / both).sqrt()[:, None, :]
        reach = solved.reach.double()
        through = (turned - reach @ (reach.T @ turned)) / spread[:, None]
        aside = -torch.einsum("cd,cdk->ck", weights, turned)
        matrix = torch.cat([matrix, through.permute(1, 0, 2).flatten(1)], dim=1)
        offset = torch.cat([offset, aside.flatten()])
    return matrix, offset


@dataclass(frozen=True)
class Reading:
    """How the gate reads inputs: their shape, what they are multiplied by, the name of the features, and their eye."""

    input_shape: tuple[int, ...]
    scale: float
    features: str
    eye: AnyEye | None = None


class Within(nn.Module):
    """Log-posteriors [N, C] float64 of a task's classes by the gate, from inputs [N, *shape].

    Sums are in float64. Constants are kept in float32, but for those of projected vectors, which are not centred before
    they are multiplied.
    """

    def __init__(self, gate: GaussianGate, task: int, own: Gaussians, reading: Reading) -> None:
        super().__init__()
        self.reading, self.classes = reading, len(own.means)
        matrix, offset = closed_form(gate, task, own)
        size = math.prod(reading.input_shape)
        self.projected = reading.features in (VECTOR, ROOT) and size > MOST_COLUMNS
        if self.projected:
            # The product of both matrices is the smaller one; what it applies to is not centred.
            offset = offset - gate.solved.centre.double() @ matrix
            matrix = projection(size) @ matrix
        self.register_buffer("matrix", matrix if self.projected else matrix.float())
        self.register_buffer("offset", offset)
        self.register_buffer("centre", gate.solved.centre[: 0 if self.projected else None])

    matrix: Tensor
    offset: Tensor
    centre: Tensor

    def forward(self, inputs: Tensor) -> Tensor:
        """Of inputs [N, *shape]."""
        x = inputs if self.reading.scale == 1.0 else inputs * self.reading.scale
        if self.projected:
            values = columns(x, self.reading.features)
        else:
            values = calculated(x, self.reading.features, self.reading.eye).to(x.dtype).double() - self.centre.double()
        found = values @ self.matrix.double() + self.offset
        scores = found[:, : self.classes]
        if found.shape[1] > self.classes:
            scores = scores + found[:, self.classes :].unflatten(1, (self.classes, -1)).square().sum(dim=2)
        return scores.log_softmax(dim=1)


class Mixture(nn.Module):
    """Log-probabilities [N, C] and probabilities [N, C], float32, of a task's classes as ``predict --task`` has them.

    ``weight``: of the subnetwork beside the gate, from 0 to below 1. At 0 there is no subnetwork.
    """

    def __init__(self, gate: Within, subnetwork: nn.Module | None, weight: float) -> None:
        super().__init__()
        self.gate, self.subnetwork, self.weight = gate, subnetwork, weight

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images [N, *input_shape]."""
        logs = self.gate(images)
        if self.subnetwork is not None:
            said = self.subnetwork(images)[0].double().log_softmax(dim=1)
            gate, said = logs + math.log1p(-self.weight), said + math.log(self.weight)
            # As fusion.mixed does; ONNX has no logaddexp, and its exporter's is infinite where both are small.
            logs = torch.maximum(gate, said) + (-(gate - said).abs()).exp().log1p()
        return logs.float(), logs.exp().float()
