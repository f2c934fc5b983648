"""Gradient scores and deviations in closed form (paper, "Score"; method section 3).

Δ [N, out] is the gradient of the *summed* loss with respect to a layer's outputs, Ā [N, in + 1] the
layer's input with a trailing 1, so that the bias is one more column of the weight. The gradient of
image n is the outer product ``δₙ āₙᵀ``; what follows needs no loop over images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.continual.experts import Params, forward


@dataclass(frozen=True)
class Factors:
    """Per layer: ``delta`` Δ [N, out] and ``inputs`` Ā [N, in + 1]; plus ``logits`` [N, C]."""

    delta: dict[str, Tensor]
    inputs: dict[str, Tensor]
    logits: Tensor


def factors(params: Mapping[str, Tensor], x: Tensor, targets: Tensor | None = None) -> Factors:
    """One forward and one backward pass.

    ``x`` [N, D]; ``targets`` [N] are class indices; without them each image's pseudo-label is the class
    of its largest logit, as when nobody knows the label.
    """
    with torch.enable_grad():
        # The outputs need a gradient although no parameter does: the first bias carries it there.
        first = next(name for name in params if name.endswith(".bias"))
        tracked = {**params, first: params[first].detach().requires_grad_(True)}
        done = forward(tracked, x)
        labels = done.logits.detach().argmax(dim=1) if targets is None else targets
        loss = F.cross_entropy(done.logits, labels, reduction="sum")
        deltas = torch.autograd.grad(loss, list(done.outputs.values()))
    inputs = {layer: F.pad(a.detach(), (0, 1), value=1.0) for layer, a in done.inputs.items()}
    return Factors(dict(zip(done.outputs, deltas, strict=True)), inputs, done.logits.detach())


def gradient_scores(params: Mapping[str, Tensor], x: Tensor, targets: Tensor, chunk: int = 2048) -> Params:
    """Mean absolute gradient of single images, ``mean_n |∂ℓₙ/∂W̄| = |Δ|ᵀ|Ā| / N``.

    Returns for every parameter of ``params`` a tensor of its shape. One matrix product per layer.
    """
    sums: dict[str, Tensor] = {}
    for part, labels in zip(x.split(chunk), targets.split(chunk), strict=True):
        found = factors(params, part, labels)
        for layer, delta in found.delta.items():
            product = delta.abs().T @ found.inputs[layer].abs()
            sums[layer] = sums[layer] + product if layer in sums else product
    result: Params = {}
    for layer, total in sums.items():
        result[f"{layer}.weight"] = total[:, :-1] / len(x)
        result[f"{layer}.bias"] = total[:, -1] / len(x)
    return {name: result[name] for name in params}


def normalised(scores: Mapping[str, Tensor], shared: Mapping[str, Tensor]) -> Params:
    """Scores of the ``shared`` weights in units of their layer's mean, so that one threshold serves all.

    A layer whose scores are all zero stays zero.
    """
    return {name: scores[name] / scores[name].mean().clamp_min(torch.finfo(scores[name].dtype).tiny) for name in shared}


def halved(scores: Mapping[str, Tensor]) -> tuple[Params, dict[str, float]]:
    """Scores as stored: float16 in units of each parameter's largest score, and those units."""
    scale = {name: max(float(value.max()), 1e-30) for name, value in scores.items()}
    return {name: (value / scale[name]).half() for name, value in scores.items()}, scale


def restored(half: Mapping[str, Tensor], scale: Mapping[str, float]) -> Params:
    """The inverse of :func:`halved`, float32."""
    return {name: value.float() * scale[name] for name, value in half.items()}


@dataclass(frozen=True)
class Reference:
    """A task's stored scores, ready to be compared with: per layer ``mask`` M and ``scores`` M∘S, [out, in + 1]."""

    mask: dict[str, Tensor]
    scores: dict[str, Tensor]

    @staticmethod
    def of(masks: Mapping[str, Tensor], scores: Mapping[str, Tensor]) -> Reference:
        """From masks of the shared weights and scores of all parameters; owned ones count as selected."""
        full: dict[str, Tensor] = {}
        selected: dict[str, Tensor] = {}
        for name in scores:
            layer, _, kind = name.rpartition(".")
            if kind != "weight":
                continue
            s = torch.cat([scores[name], scores[f"{layer}.bias"][:, None]], dim=1).double()
            weight_mask = masks[name] if name in masks else torch.ones_like(scores[name], dtype=torch.bool)
            full[layer] = F.pad(weight_mask.double(), (0, 1), value=1.0)
            selected[layer] = full[layer] * s
        return Reference(full, selected)


def deviation(found: Factors, reference: Reference) -> dict[str, Tensor]:
    """Squared deviation of each image's gradient from a task's scores, on the task's mask, per layer [N].

    ``‖M∘(|δₙ||āₙ|ᵀ − S)‖² = (δₙ²)ᵀ M (āₙ²) − 2 |δₙ|ᵀ (M∘S) |āₙ| + ‖M∘S‖²``: two products for all images.
    Accumulated in float64 because the terms cancel where a gradient is close to S; never negative.
    """
    result = {}
    for layer, mask in reference.mask.items():
        delta = found.delta[layer].double().abs()
        inputs = found.inputs[layer].double().abs()
        scores = reference.scores[layer]
        square = ((delta.square() @ mask) * inputs.square()).sum(dim=1)
        cross = ((delta @ scores) * inputs).sum(dim=1)
        result[layer] = (square - 2 * cross + scores.square().sum()).clamp_min(0.0)
    return result


def relative_deviation(found: Factors, reference: Reference) -> Tensor:
    """One number per image [N]: the layers' deviations, each in units of ``‖M∘S‖²``, averaged."""
    parts = [
        value / reference.scores[layer].square().sum().clamp_min(torch.finfo(torch.float64).tiny)
        for layer, value in deviation(found, reference).items()
    ]
    return torch.stack(parts).mean(dim=0)
