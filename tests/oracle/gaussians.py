"""The slow, obvious reference of the gate of Gaussians: whole covariance matrices in float64, loops over all."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

ALPHAS = (0.0, 0.02, 0.05, 0.1, 0.2, 0.5, 0.9)
KAPPAS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0)
SHARPNESSES = tuple(2.0 ** (-k / 2) for k in range(21))


def double(value: Any) -> Array:
    return np.asarray(value, dtype=np.float64)


def own(task: Any, c: int) -> Array:
    """The covariance of class ``c`` of a task's statistics, as far as its directions tell, [d, d]."""
    units = np.diag(double(task.units))
    found = np.zeros_like(units)
    for k in range(task.directions.shape[2]):
        direction = units @ double(task.directions[c, :, k])
        found += float(task.variances[c, k]) * np.outer(direction, direction)
    return found


def within(task: Any) -> Array:
    """The covariance within a task's classes, [d, d]."""
    units = np.diag(double(task.units))
    return units @ shared(task.shared, task.shared_variances, task.shared_rest) @ units


def shared(directions: Any, variances: Any, rest: Any) -> Array:
    found = np.diag(double(rest))
    for r in range(directions.shape[1]):
        found += float(variances[r]) * np.outer(double(directions[:, r]), double(directions[:, r]))
    return found


def regular(covariance: Array, choice: int, images: float, means: Array) -> Array:
    """B: ``covariance`` and its ridge, the even one or that by column; ``choice``: position in the grid.

    What does not vary has the variance that float32 cannot tell of the class means.
    """
    d, kappa = len(covariance), KAPPAS[choice % len(KAPPAS)]
    least = 1e-12 * (means**2).mean(axis=0)
    mean = max(np.trace(covariance) / d, least.mean())
    if choice < len(KAPPAS):
        ridge = np.eye(d) * mean
    else:
        ridge = np.diag([v + e if v + e > 0 else mean for v, e in zip(np.diag(covariance), least, strict=True)])
    return covariance + kappa * d / images * ridge


def log_density(x: Array, mean: Array, covariance: Array) -> float:
    sign, log_determinant = np.linalg.slogdet(covariance)
    assert sign > 0
    return float(-0.5 * (x - mean) @ np.linalg.solve(covariance, x - mean) - 0.5 * log_determinant)


def apart(means: Array, b: Array) -> float:
    """Summed squared distances of class means from their middle where B is the identity."""
    away = means - means.mean(axis=0)
    return sum(float(one @ np.linalg.solve(b, one)) for one in away)


def scores(tasks: list[Any], values: Any, choice: tuple[int, float, float]) -> Array:
    """Log-posteriors [N, S], up to what the classes of an image share, for a choice of ridge, α and sharpness."""
    images = sum(float(t.counts.sum()) for t in tasks)
    means = np.concatenate([double(t.means) for t in tasks])
    b = regular(sum(within(t) * float(t.counts.sum()) / images for t in tasks), choice[0], images, means)
    told = [t for t in tasks if float(t.apart[choice[0]]) > 0]
    here = sum(apart(double(t.means), b) for t in told)
    ratio = sum(float(t.apart[choice[0]]) for t in told) / here if here > 0 else 1.0
    columns = []
    for task in tasks:
        for c in range(len(task.means)):
            covariance = (1 - choice[1]) * b + choice[1] * own(task, c)
            mean = double(task.means[c])
            prior = float(task.priors[c])
            columns.append([choice[2] * ratio * log_density(x, mean, covariance) + prior for x in double(values)])
    return np.array(columns).T


def log_shares(counts: Any) -> list[float]:
    """Logarithms of the shares of classes with these counts, in mean shares."""
    return [math.log(float(n) / (sum(map(float, counts)) / len(counts))) for n in counts]


def tally(
    part: Any,
    units: Any,
    values: Any,
    labels: Any,
    known: list[int],
    choice: tuple[int, float, float],
    power: float = 0.0,
) -> float:
    """Summed log-probability of the labels of left-out images, four nats at most lost, for one choice.

    ``part``: the fit without them. ``power``: of the classes' shares of the fit's images that they count by.
    """
    shares = dict(zip(known, log_shares([part.counts[c] for c in known]), strict=True))
    scale = np.diag(double(units))
    b = regular(scale @ shared(*part.shared) @ scale, choice[0], float(part.counts.sum()), double(part.means)[known])

    class Fit:
        directions, variances = part.directions, part.variances

    Fit.units = units  # type: ignore[attr-defined]
    total = 0.0
    for x, label in zip(double(values), labels, strict=True):
        logs = {}
        for c in known:
            covariance = (1 - choice[1]) * b + choice[1] * own(Fit, c)
            logs[c] = choice[2] * log_density(x, double(part.means[c]), covariance) + power * shares[c]
        most = max(logs.values())
        total += max(logs[int(label)] - most - math.log(sum(math.exp(value - most) for value in logs.values())), -4.0)
    return total


def trusted(alpha: float) -> float:
    """The α that is used: up to .1 the likeliest one, beyond that half of it."""
    return alpha if alpha <= 0.1 else alpha / 2


def chosen(tallies: Any) -> tuple[int, int, int]:
    """Positions of the likeliest choice by tallies and prior: α .2, κ .5, sharpness 1/8 cost nothing."""
    best, where = -math.inf, (0, 0, 0)
    for p in range(2 * len(KAPPAS)):
        for a, alpha in enumerate(ALPHAS):
            for s, sharpness in enumerate(SHARPNESSES):
                cost = 2 * math.log2(max(alpha, 0.01) / 0.2) ** 2
                cost += math.log2(KAPPAS[p % len(KAPPAS)] / 0.5) ** 2 + 0.1 * math.log2(sharpness * 8) ** 2
                if float(tallies[p, a, s]) - cost > best:
                    best, where = float(tallies[p, a, s]) - cost, (p, a, s)
    return where


def distance(x: Any, mean: Any, directions: Any, variances: Any, units: Any, variance: float) -> float:
    """Squared distance of one image: in full outside the class's directions, less inside where the class varies."""
    left = (double(x) - double(mean)) / double(units)
    total, inside = float(left @ left), 0.0
    ridge = 0.03 * variance
    for k in range(directions.shape[1]):
        along = float(left @ double(directions[:, k]))
        total -= along**2
        inside += along**2 * ridge / (float(variances[k]) + ridge)
    return max(total, 0.0) + inside


def halved(values: Array, chosen: list[int]) -> list[int]:
    """The ``chosen`` rows of values [n, d] in the order that halving along the widest direction gives, to groups of 10.

    The direction is what four steps of a power iteration from the farthest row give.
    """
    if len(chosen) <= 10:
        return chosen
    rows = values[chosen] - values[chosen].mean(axis=0)
    way = rows[int((rows**2).sum(axis=1).argmax())]
    way = way / max(float(np.linalg.norm(way)), 1e-12)
    for _ in range(4):
        way = rows.T @ (rows @ way)
        way = way / max(float(np.linalg.norm(way)), 1e-12)
    order = [chosen[i] for i in np.argsort(rows @ way, kind="stable")]
    middle = -(-len(order) // 2)
    return halved(values, order[:middle]) + halved(values, order[middle:])
