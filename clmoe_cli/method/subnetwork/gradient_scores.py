"""Gradient scores and deviations without a loop over images (paper, "Score"; method section 3).

Δ is the gradient of the *summed* loss with respect to a layer's outputs. For a dense layer Δ is [N, out] and Ā [N, in
+ 1] the layer's input with a trailing 1, so that the bias is one more column of the weight: the gradient of image n is
the outer product ``δₙ āₙᵀ``, and closed forms follow. For a convolution the sum over positions stands inside the
absolute value: the input is unfolded and the images' gradients are made in one batched product, so many images at a
time that memory stays bounded. A normalisation's gradients are sums over the positions of each channel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.images import Rows
from clmoe_cli.method.networks.base import STATISTICS, Convolution, Dense, Network, Normalisation, Params, device_of
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.distributed import collectives
from clmoe_cli.runtime.events import OnDone

CHUNK = limits.SCORED_IMAGES
BUDGET = limits.GRADIENT_NUMBERS


@dataclass(frozen=True)
class Factors:
    """Per layer: ``delta`` Δ and ``inputs``, what the layer reads ([N, in] of dense ones); ``logits``."""

    delta: dict[str, Tensor]
    inputs: dict[str, Tensor]
    logits: Tensor


def factors(net: Network, params: Mapping[str, Tensor], x: Tensor, targets: Tensor | None = None) -> Factors:
    """One forward and one backward pass.

    ``x`` [N, D]; ``targets`` [N] are class indices; without them each image's pseudo-label is the class
    of its largest logit, as when nobody knows the label.
    """
    device = device_of(params)
    with torch.enable_grad():
        done = net.trace(params, x.to(next(iter(params.values()))))
        labels = done.logits.detach().argmax(dim=1) if targets is None else targets.to(device)
        loss = F.cross_entropy(done.logits, labels, reduction="sum")
        deltas = torch.autograd.grad(loss, list(done.outputs.values()))
    inputs = {layer: a.detach() for layer, a in done.inputs.items()}
    return Factors(dict(zip(done.outputs, deltas, strict=True)), inputs, done.logits.detach())


def gradient_scores(
    net: Network,
    params: Mapping[str, Tensor],
    x: Rows,
    targets: Tensor,
    alone: bool = False,
    on_done: OnDone = lambda done: None,
) -> Params:
    """Mean absolute gradient of single images, ``mean_n |∂ℓₙ/∂W̄|``; of dense layers ``|Δ|ᵀ|Ā| / N``.

    Returns for every parameter that has a gradient a tensor of its shape. One matrix product per dense layer. Several
    processes (:mod:`clmoe_cli.runtime.distributed.collectives`) must have the same images, and share them, unless
    each is ``alone``.
    """
    team = collectives.Team.of(alone)
    sums: Params = {}
    starts, size = team.starts(len(x), min(CHUNK, net.chunk))
    for start in starts:
        on_done(start)
        here = slice(start, start + size)
        found = factors(net, params, x[here], targets[here])
        for layer, delta in found.delta.items():
            for name, value in _summed(net, params, layer, delta, found.inputs[layer]).items():
                sums[name] = sums[name].add_(value) if name in sums else value
    for name, value in params.items():
        if name not in sums and not name.endswith(STATISTICS):
            sums[name] = torch.zeros_like(value)  # of several processes, this one has no image
    sums = {name: sums[name] for name in params if name in sums}
    team.summed(sums.values())
    on_done(len(x))
    return {name: total.div_(len(x)) for name, total in sums.items()}


def _summed(net: Network, params: Mapping[str, Tensor], layer: str, delta: Tensor, inputs: Tensor) -> Params:
    """Sums over images of the absolute gradients of a layer's parameters."""
    if isinstance(net.kinds[layer], Dense):
        absolute = delta.abs()
        return {f"{layer}.weight": absolute.T @ inputs.abs(), f"{layer}.bias": absolute.sum(dim=0)}
    sums: Params = {}
    for _, gradients in image_gradients(net, params, layer, delta, inputs):
        for name, value in gradients.items():
            total = value.abs_().sum(dim=0)
            sums[name] = sums[name] + total if name in sums else total
    return sums


def image_gradients(
    net: Network, params: Mapping[str, Tensor], layer: str, delta: Tensor, inputs: Tensor
) -> Iterator[tuple[slice, Params]]:
    """The gradients of single images of a convolution or normalisation, [n, *shape of the parameter] each.

    A few images at a time, with the slice that they are: what is in memory is bounded by ``BUDGET``.
    """
    kind = net.kinds[layer]
    weight = params[f"{layer}.weight"]
    bias = f"{layer}.bias"
    positions = math.prod(delta.shape[2:])
    width = weight.numel() // len(weight) * positions * getattr(kind, "groups", 1)
    step = max(1, BUDGET // (weight.numel() + width))
    for start in range(0, len(delta), step):
        here = slice(start, start + step)
        d, a = delta[here], inputs[here]
        if isinstance(kind, Normalisation):
            mean, variance = (params[f"{layer}.{name}"][:, None, None] for name in ("running_mean", "running_var"))
            yield (
                here,
                {
                    f"{layer}.weight": (d * (a - mean) * (variance + kind.eps).rsqrt()).sum(dim=(2, 3)),
                    bias: d.sum(dim=(2, 3)),
                },
            )
            continue
        assert isinstance(kind, Convolution)
        columns = F.unfold(a, weight.shape[2:], kind.dilation, kind.padding, kind.stride)
        grouped = columns.reshape(len(d), kind.groups, -1, positions)
        by_group = d.reshape(len(d), kind.groups, -1, positions)
        found = {f"{layer}.weight": (by_group @ grouped.transpose(2, 3)).reshape(-1, *weight.shape)}
        yield here, found | ({bias: d.sum(dim=(2, 3))} if bias in params else {})


def normalised(net: Network, scores: Mapping[str, Tensor]) -> Params:
    """Scores of the shared weights in units of their layer's mean, so that one threshold serves all.

    Kernels near the pixels are few and do much: in convolutional networks a layer counts by the sum over the product
    of its sides, which makes the small ones denser (an Erdős-Rényi kernel: Evci et al. 2020, section 3). A layer whose
    scores are all zero stays zero.
    """
    tiny = torch.finfo(torch.float32).tiny
    found = {name: scores[name] / scores[name].mean().clamp_min(tiny) for name in net.shared_shapes()}
    if not any(isinstance(kind, Convolution) for kind in net.kinds.values()):
        return found
    return {name: value * (sum(value.shape) / value.numel()) for name, value in found.items()}


Halved = tuple[Params, dict[str, float]]


DIGITS = 6
"""Binary digits of a stored score: within 1.6 %, far nearer than another draw of images brings it."""


def halved(scores: Mapping[str, Tensor]) -> Halved:
    """Scores as stored: float16 in units of each parameter's largest score, and those units.

    They are rounded to ``DIGITS``; none that half precision tells from zero becomes zero.
    """
    scale = {name: max(float(value.max()), 1e-30) for name, value in scores.items()}
    return {name: _rounded((value / scale[name]).half()) for name, value in scores.items()}, scale


def _rounded(half: Tensor) -> Tensor:
    part, exponent = torch.frexp(half.float())
    return torch.ldexp((part * 2**DIGITS).round() / 2**DIGITS, exponent).half()


def restored(half: Mapping[str, Tensor], scale: Mapping[str, float]) -> Params:
    """The inverse of :func:`halved`, float32."""
    return {name: value.float() * scale[name] for name, value in half.items()}


@dataclass(frozen=True)
class Reference:
    """A task's stored scores, ready to be compared with, float64.

    ``mask`` M and ``scores`` M∘S: of dense layers by layer, [out, in + 1] with the bias in the last column; of other
    layers by parameter, of its shape. Owned parameters count as selected.
    """

    mask: Params
    scores: Params

    @staticmethod
    def of(net: Network, masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> Reference:
        """From masks of the shared weights and scores of all parameters."""
        full: Params = {}
        selected: Params = {}
        for name, value in scores.items():
            layer, _, kind = name.rpartition(".")
            mask = masks[name].double() if name in masks else torch.ones_like(value, dtype=torch.float64)
            if not isinstance(net.kinds[layer], Dense):
                full[name], selected[name] = mask, mask * value.double()
            elif kind == "weight":
                s = torch.cat([value, scores[f"{layer}.bias"][:, None]], dim=1).double()
                full[layer] = F.pad(mask, (0, 1), value=1.0)
                selected[layer] = full[layer] * s
        return Reference(full, selected)

    def size(self, layer: str) -> float:
        """``‖M∘S‖²`` over a layer's parameters."""
        own = [value for name, value in self.scores.items() if layer in (name, name.rpartition(".")[0])]
        return float(sum(value.square().sum() for value in own))


def deviation(net: Network, params: Mapping[str, Tensor], found: Factors, reference: Reference) -> dict[str, Tensor]:
    """Squared deviation of each image's gradient from a task's scores, on the task's mask, per layer [N] float64.

    Dense: ``‖M∘(|δₙ||āₙ|ᵀ − S)‖² = (δₙ²)ᵀ M (āₙ²) − 2 |δₙ|ᵀ (M∘S) |āₙ| + ‖M∘S‖²``: two products for all images.
    Accumulated in float64 because the terms cancel where a gradient is close to S; never negative. Other layers: the
    difference itself, for a few images at a time.
    """
    result = {}
    for layer, delta in found.delta.items():
        if not isinstance(net.kinds[layer], Dense):
            result[layer] = _differences(net, params, layer, found, reference)
            continue
        mask, scores = reference.mask[layer], reference.scores[layer]
        d, inputs = delta.cpu().double().abs(), F.pad(found.inputs[layer].cpu().double().abs(), (0, 1), value=1.0)
        square = ((d.square() @ mask) * inputs.square()).sum(dim=1)
        cross = ((d @ scores) * inputs).sum(dim=1)
        result[layer] = (square - 2 * cross + scores.square().sum()).clamp_min(0.0)
    return result


def _differences(
    net: Network, params: Mapping[str, Tensor], layer: str, found: Factors, reference: Reference
) -> Tensor:
    """``‖M∘(|gₙ| − S)‖²`` over a layer's parameters, [N] float64."""
    total = torch.zeros(len(found.logits), dtype=torch.float64)
    for here, gradients in image_gradients(net, params, layer, found.delta[layer], found.inputs[layer]):
        for name, value in gradients.items():
            # M∘|g| − M∘S is zero outside the mask; single images leave nothing to cancel.
            kept = value.abs_() * reference.mask[name].to(value) - reference.scores[name].to(value)
            total[here] += kept.flatten(1).square().sum(dim=1).cpu().double()
    return total


def relative_deviation(net: Network, params: Mapping[str, Tensor], found: Factors, reference: Reference) -> Tensor:
    """One number per image [N]: the layers' deviations, each in units of ``‖M∘S‖²``, averaged."""
    tiny = torch.finfo(torch.float64).tiny
    parts = [
        value / max(reference.size(layer), tiny) for layer, value in deviation(net, params, found, reference).items()
    ]
    return torch.stack(parts).mean(dim=0)
