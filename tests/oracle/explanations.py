"""The slow, obvious reference of what explains an answer: image by image in float64, from the store's arrays."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from oracle import gaussians
from torch import Tensor

from clmoe_cli.method.routing.features import features
from clmoe_cli.method.routing.gaussians import Gaussians
from clmoe_cli.method.routing.paper import Subnetwork
from clmoe_cli.method.routing.subspaces import Subspaces


def distances(value: Tensor, tasks: Sequence[Gaussians]) -> tuple[list[list[float]], list[list[float]]]:
    """Of the features [d] of one image: squared distance of each task's classes by their own statistics, and their
    usual one."""
    apart = []
    for t in tasks:
        variance = (float(t.shared_variances.double().sum()) + float(t.shared_rest.double().sum())) / len(t.units)
        own = zip(t.means, t.directions, t.variances, strict=True)
        apart.append([gaussians.distance(value, *one, t.units, variance) for one in own])
    return apart, [[float(q.double().mean()) for q in t.quantiles] for t in tasks]


def p_value(distance: float, s: Subspaces, c: int) -> float:
    """Share of a class's own images that lie at least as far away."""
    farther = sum(q >= distance for q in s.quantiles[c].tolist()) / s.quantiles.shape[1]
    count = float(s.counts[c])
    return (farther * count + 1) / (count + 1)


def probabilities(task: Subnetwork, x: Tensor) -> list[float]:
    """Of each class of a task for one image [D]."""
    params = {name: value.double() for name, value in task.params.items()}
    logits = task.net.logits(params, x.double()[None])[0].tolist()
    total = sum(math.exp(v) for v in logits)
    return [math.exp(v) / total for v in logits]


def deviation(task: Subnetwork, x: Tensor) -> float:
    """The whitened deviation of one image [D] in spreads of the task's own held-out images."""
    params = {name: value.double() for name, value in task.params.items()}
    hidden = [x.double()]
    for layer in task.net.reading:
        before = next(n for n in task.net.layers if task.net.layers.index(n) == task.net.layers.index(layer) - 1)
        z = params[f"{before}.weight"] @ hidden[-1] + params[f"{before}.bias"]
        hidden.append(z.clamp_min(0))
    units = []
    for name, value in (("inputs", x.double()), ("hidden", torch.cat(hidden[1:]))):
        g = task.whitening.blocks[name]
        apart = math.inf
        for centred in value - g.means.double():
            inside = centred @ g.directions.double()
            # Rounded directions: what is left outside must not become negative.
            outside = max(0.0, float(centred @ centred - inside @ inside)) / float(g.rest)
            apart = min(apart, float((inside**2 / g.variances.double()).sum() + outside) / len(value))
        mean, spread = task.whitening.standard[name].tolist()
        units.append((math.log(max(apart, 1e-12)) - mean) / spread)
    return standardised(task, "fisher", max(units))


def standardised(task: Subnetwork, kind: str, logarithm: float) -> float:
    """The logarithm of a deviation in spreads of those of the task's own held-out images."""
    own = [math.log(max(v, 1e-12)) for v in task.calibration[kind].values.tolist()]
    mean = sum(own) / len(own)
    spread = math.sqrt(sum((v - mean) ** 2 for v in own) / len(own))
    return (logarithm - mean) / max(spread, 1e-3)


def seen(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Features [d] of one image [D]."""
    return features(x.double()[None], shape)[0]
