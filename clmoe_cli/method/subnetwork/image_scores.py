"""Scores of gradients that are scaled to unit length image by image (paper, section 3.2; method section 3).

In the mean of plain gradients the few images that the network is unsure of outweigh all others. Scaled to unit length
in every layer, each image counts the same:

    S̃ = mean_n |δₙ||aₙ|ᵀ / (‖δₙ‖ ‖aₙ‖)

Of a dense layer that is one matrix product for all images. Of a convolution the gradients of a few images are in memory
at a time. S̃ is kept of the shared weights, on the task's mask. Layers are compared by their divergence,
``‖S̃ − S̃′‖ / (‖S̃‖ + ‖S̃′‖)``, and count the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.images import Rows
from clmoe_cli.method.networks.base import Dense, Network, Params, device_of
from clmoe_cli.method.subnetwork.gradient_scores import Factors, image_gradients
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.events import OnDone

CHUNK = limits.SCORED_IMAGES
TINY = 1e-30
"""A gradient shorter than this has no direction and counts as zero."""
SIZES = (8, 16, 32, 64)
"""Batch sizes whose divergences are calibrated. A larger batch is judged as one of the largest size."""
DRAWS = 999
"""Batches drawn of each size: the least p-value is a thousandth, which counts twice."""
DRAWN = 512
"""Held-out images that they are drawn from, at most."""
ENTRIES = limits.GATHERED_ENTRIES
MARGIN = 0.1
"""Tolerated excess of a batch's divergence: the same task by other hands is no new one."""


def directions(net: Network, params: Mapping[str, Tensor], x: Tensor, targets: Tensor | None = None) -> Factors:
    """One forward and one backward pass; Δ of the outputs has unit length image by image, other layers' follow from it.

    ``x`` [N, D]; ``targets`` [N] are class indices, without them each image's pseudo-label. The length of an image's
    gradient cancels in S̃, so it is taken out before the backward pass: the loss of a certain image is too small for
    float32, its direction is not.
    """
    device = device_of(params)
    with torch.enable_grad():
        done = net.trace(params, x.to(device))
        logits = done.logits.detach()
        own = (logits.argmax(dim=1) if targets is None else targets.to(device))[:, None]
        others = logits.scatter(1, own, -math.inf)
        # Softmax minus one-hot, up to a factor that is never zero.
        delta = (others - others.max(dim=1, keepdim=True).values).exp()
        delta = delta.scatter(1, own, -delta.sum(dim=1, keepdim=True))
        delta = F.normalize(delta, eps=TINY)
        deltas = torch.autograd.grad(done.logits, list(done.outputs.values()), grad_outputs=delta)
    inputs = {layer: a.detach() for layer, a in done.inputs.items()}
    return Factors(dict(zip(done.outputs, deltas, strict=True)), inputs, logits)


def image_scores(
    net: Network,
    params: Mapping[str, Tensor],
    x: Rows,
    targets: Tensor | None = None,
    *,
    alone: bool = False,
    on_done: OnDone = lambda done: None,
) -> Params:
    """S̃ of every shared weight, a tensor of its shape.

    ``targets`` [N] are class indices, without them pseudo-labels. Several processes
    (:mod:`clmoe_cli.runtime.distributed.collectives`) must have the same images, and share them, unless
    each is ``alone``.
    """
    team = collectives.Team.of(alone)
    sums = {name: torch.zeros_like(params[name]) for name in net.shared_shapes()}
    starts, size = team.starts(len(x), min(CHUNK, net.chunk))
    for start in starts:
        on_done(start)
        here = slice(start, start + size)
        found = directions(net, params, x[here], None if targets is None else targets[here])
        for name, total in sums.items():
            layer = name.rpartition(".")[0]
            if isinstance(net.kinds[layer], Dense):
                total += _unit(found.delta[layer]).T @ _unit(found.inputs[layer])
                continue
            for _, gradients in image_gradients(net, params, layer, found.delta[layer], found.inputs[layer]):
                total += _unit(gradients[name].flatten(1)).sum(dim=0).reshape(total.shape)
    team.summed(sums.values())
    on_done(len(x))
    return {name: total.div_(len(x)) for name, total in sums.items()}


def divergence(found: Mapping[str, Tensor], scores: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> float:
    """Divergence of a batch's S̃ (``found``) from a task's ``scores`` on its ``mask``: mean over the layers, 0 to 1."""
    parts = [_divergences(found[name][selected][None], scores[name][selected]) for name, selected in mask.items()]
    return float(torch.cat(parts).mean())


@dataclass(frozen=True)
class ImageReference:
    """A task's S̃ where its mask selects: by weight flat ``places`` [m] and ``scores`` [m]; m at most ``ENTRIES``."""

    places: Mapping[str, Tensor]
    scores: Mapping[str, Tensor]

    @staticmethod
    def of(mask: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> ImageReference:
        """From a mask and S̃, tensors of the weights' shapes; weights of which nothing is selected are left out."""
        places = {name: selected.flatten().nonzero()[:, 0] for name, selected in mask.items()}
        places = {name: _thinned(where) for name, where in places.items() if len(where)}
        return ImageReference(places, {name: scores[name].flatten()[where] for name, where in places.items()})

    def gradients(self, net: Network, params: Mapping[str, Tensor], x: Rows) -> dict[str, Tensor]:
        """Absolute gradients of images [N, D] of unit length (in their layer) at the places, [N, m] on the CPU."""
        parts = [self._gradients(net, params, part) for part in x.split(min(DRAWN, net.chunk))]
        return {name: torch.cat([part[name] for part in parts]) for name in self.places}

    def _gradients(self, net: Network, params: Mapping[str, Tensor], x: Tensor) -> dict[str, Tensor]:
        found, result = directions(net, params, x), {}
        for name, where in self.places.items():
            layer = name.rpartition(".")[0]
            delta, inputs = found.delta[layer], found.inputs[layer]
            if isinstance(net.kinds[layer], Dense):
                row, column = where // inputs.shape[1], where % inputs.shape[1]
                result[name] = _unit(delta).cpu()[:, row] * _unit(inputs).cpu()[:, column]
                continue
            each = image_gradients(net, params, layer, delta, inputs)
            result[name] = torch.cat([_unit(g[name].flatten(1)).cpu()[:, where] for _, g in each])
        return result

    def divergences(self, found: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Divergence of each of N unit gradients, or means of them, at the places: by weight [N] float64."""
        return {name: _divergences(found[name], scores) for name, scores in self.scores.items()}

    def of_batch(self, net: Network, params: Mapping[str, Tensor], x: Rows) -> float:
        """Divergence of the mean over a batch's images [N, D], mean over the layers (of which there must be one)."""
        mean: dict[str, Tensor] = {}
        for part in x.split(min(DRAWN, net.chunk)):
            for name, value in self._gradients(net, params, part).items():
                mean[name] = mean.get(name, 0.0) + value.double().sum(dim=0, keepdim=True) / len(x)
        return float(torch.cat(list(self.divergences(mean).values())).mean())


def batch_calibration(
    net: Network, params: Mapping[str, Tensor], x: Rows, reference: ImageReference, generator: torch.Generator
) -> Tensor:
    """Divergences of batches drawn from a task's held-out images ``x`` [N, D]: [sizes, ``DRAWS``], ascending.

    Sizes are those of ``SIZES`` that are at most half of the images, since batches that share most images say little.
    ``‖mean − S̃‖`` follows from the images' inner products, so no batch is computed from its images.
    """
    count = min(len(x), DRAWN)
    sizes = [size for size in SIZES if 2 * size <= count]
    if not sizes or not reference.places:
        return torch.zeros(0, DRAWS)
    x = x[torch.linspace(0, len(x) - 1, count).round().long()]
    rank = torch.rand(len(sizes) * DRAWS, len(x), generator=generator).argsort(dim=1).argsort(dim=1)
    size = torch.tensor(sizes).repeat_interleave(DRAWS)[:, None]
    weights = (rank < size).to(params[next(iter(reference.places))].dtype) / size
    parts = []
    for name, gradients in reference.gradients(net, params, x).items():
        scores = reference.scores[name]
        square = ((weights @ (gradients @ gradients.T)) * weights).sum(dim=1).double()
        cross = (weights @ (gradients @ scores)).double()
        own = scores.square().sum().double()
        parts.append(_relative(square, cross, own))
    return torch.stack(parts).mean(dim=0).reshape(len(sizes), DRAWS).sort(dim=1).values.float()


def divergence_p_value(found: float, images: int, calibration: Tensor) -> float:
    """p-value of a batch of at least ``min(SIZES)`` images whose divergence is ``found``.

    ``calibration``: as :func:`batch_calibration` returns it, of at least one size. The batch is compared with drawn
    ones of its own size or the next smaller one that there is, which diverge more, and with a margin.
    """
    size = sum(size <= images for size in SIZES[: len(calibration)])
    drawn = calibration[size - 1].double() * (1 + MARGIN)
    return (int((drawn >= found).sum()) + 1) / (len(drawn) + 1)


def _divergences(found: Tensor, scores: Tensor) -> Tensor:
    """Of rows [N, m] from scores [m], [N] float64: the difference itself, nothing cancels."""
    found, scores = found.double(), scores.double()
    size = found.norm(dim=1) + scores.norm()
    return torch.where(size > 0, (found - scores).norm(dim=1) / size.clamp_min(TINY), 1.0)


def _relative(square: Tensor, cross: Tensor, own: Tensor) -> Tensor:
    """The same from ``‖a‖²`` [N], ``a·s`` [N] and ``‖s‖²``."""
    size = square.clamp_min(0.0).sqrt() + own.sqrt()
    apart = (square - 2 * cross + own).clamp_min(0.0).sqrt()
    return torch.where(size > 0, apart / size.clamp_min(TINY), 1.0)


def _thinned(places: Tensor) -> Tensor:
    if len(places) <= ENTRIES:
        return places
    return places[torch.linspace(0, len(places) - 1, ENTRIES, dtype=torch.float64).round().long()]


def _unit(rows: Tensor) -> Tensor:
    """Absolute values of rows [N, d], each of unit length (or zero)."""
    return F.normalize(rows.abs(), eps=TINY)
