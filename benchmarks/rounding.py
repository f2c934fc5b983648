"""What rounding and leaving out directions of the gate's statistics costs: accuracy and bytes.

    python benchmarks/rounding.py --photos PHOTOS --mnist MNIST_ROOT --out bench-out/rounding [--only cifar10]

Training images alone. A fifth of each class is held out in turn; the rest is learned by the gate, task after task: in
half precision, which chooses α, κ and sharpness, and in every other form. All tasks together answer the held-out images
one by one. In a cell: accuracy; minus the log of the probability that the gate gives to the label, at most 13.8, in the
mean; bytes of a task's own and shared directions as the store keeps them, the mean over tasks.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import EVERY, Data, Places, few
from torch import Tensor

from clmoe_cli.api import gating
from clmoe_cli.data import Batch
from clmoe_cli.method.routing import gaussians
from clmoe_cli.method.routing.features import ROOT, VECTOR, features
from clmoe_cli.method.routing.gaussians import GaussianGate, Gaussians
from clmoe_cli.method.routing.rounding import rounded
from store_schema import directions
from store_schema.deflated import deflated

IMAGES = {"p6": 15_000, "cifar10": 6_000, "gtsrb": 6_165, "cifar10-lite0": 8_000, "cifar100-lite0": 10_000}
"""The data sets, and how many training images of each are looked at."""
LEAST = 1e-6

Round = Callable[[Tensor, Tensor, float], Tensor]
"""Of directions [d, K], their variances [K] and the variance beside them."""


@dataclass(frozen=True)
class Form:
    """How directions are rounded, and what part of a class's own and of the shared ones is kept."""

    round: Round
    own: float = 1.0
    shared: float = 1.0


def half(vectors: Tensor, variances: Tensor, rest: float) -> Tensor:
    return vectors.half()


def bits(count: int) -> Round:
    """So many bits for each number, in steps of the power of two that the largest of its direction fits."""

    def rounding(vectors: Tensor, variances: Tensor, rest: float) -> Tensor:
        exact = vectors.double()
        largest = exact.abs().amax(dim=0).clamp_min(1e-12)
        step = torch.exp2((largest / (2 ** (count - 1) - 0.5)).log2().ceil())
        return ((exact / step).round() * step + 0.0).half()

    return rounding


FORMS = {
    "half precision": Form(half),
    "8 bits": Form(bits(8)),
    "6 bits": Form(bits(6)),
    "by variance (as it is)": Form(rounded),
    "half of the shared": Form(half, shared=0.5),
    "half of a class's": Form(half, own=0.5),
}


def formed(task: Gaussians, form: Form, x: Tensor, y: Tensor) -> Gaussians:
    """The statistics of a task in this form, from its features [n, d] with class y [n]."""
    gaussians.rounded = form.round
    part = gaussians.fit_part(x, y, len(task.means), task.units)
    found, variances, rest = part.shared
    most, own = math.ceil(form.shared * found.shape[1]), math.ceil(form.own * part.directions.shape[2])
    # What shared directions no longer hold is beside them.
    left = (found[:, most:].float().square() * variances[most:]).sum(dim=1)
    shared = found[:, :most], variances[:most], rest + left
    few = replace(part, directions=part.directions[:, :, :own], variances=part.variances[:, :own], shared=shared)
    return gaussians.without(task, few)


def size(value: Tensor) -> int:
    """Bytes of directions in the store."""
    return len(deflated(directions.smaller(value.numpy())))


def answered(tasks: list[Gaussians], codes: Tensor, x: Tensor, y: Tensor) -> tuple[int, float]:
    """How many features [n, d] with label y [n] are answered right, and the nats of all; ``codes`` [S]: labels."""
    gate = GaussianGate.of(gaussians.solve(tasks), [len(t.means) for t in tasks])
    right, nats = 0, 0.0
    for rows in torch.arange(len(x)).split(1000):
        found = gate.compare(x[rows], lambda task: tasks[task])
        likely = torch.zeros(len(rows), int(codes.max()) + 1, dtype=torch.float64)
        likely.scatter_add_(1, codes[found.chosen], found.likely.softmax(dim=1))
        right += int((likely.argmax(dim=1) == y[rows]).sum())
        nats -= float(likely.gather(1, y[rows, None]).clamp_min(LEAST).log().sum())
    return right, nats


def measured(name: str, data: Data, count: int, folds: int) -> dict[str, Any]:
    """For each form: accuracy, nats, bytes of own and of shared directions."""
    x, labels = few(data.train, count, 0)
    kind = gating.features_of(None, Batch(x, labels, "", data.input))
    flat = torch.from_numpy(x.reshape(len(x), -1)).float() / (255 if x.dtype == np.uint8 else 1)
    values = features(flat, x.shape[1:], kind)
    classes, y = np.unique(labels, return_inverse=True)
    codes = torch.from_numpy(np.searchsorted(classes, [c for task in data.tasks for c in task]))
    known = np.isin(y, codes)
    sums = {form: [0.0, 0.0, 0, 0] for form in FORMS}
    asked = 0
    for fold in range(folds):
        held = np.zeros(len(y), dtype=bool)
        for c in range(len(classes)):
            held[np.flatnonzero(y == c)[fold::5]] = True
        parts: dict[str, list[Gaussians]] = {form: [] for form in FORMS}
        for task in data.tasks:
            here = torch.from_numpy(np.flatnonzero(np.isin(labels, task) & ~held))
            own = torch.from_numpy(np.searchsorted(np.sort(task), labels[here]))
            none = torch.zeros(len(task), values.shape[1], dtype=torch.float64)
            gaussians.rounded = half
            whole = gaussians.fit(values[here], own, len(task), kind not in (VECTOR, ROOT), none)
            for form, fits in parts.items():
                fits.append(formed(whole, FORMS[form], values[here], own))
        rows = torch.from_numpy(np.flatnonzero(held & known))
        asked += len(rows)
        for form, found in sums.items():
            right, nats = answered(parts[form], codes, values[rows], torch.from_numpy(y)[rows])
            found[0] += right
            found[1] += nats
            if fold == 0:
                for at, key in ((2, "directions"), (3, "shared")):
                    found[at] = sum(size(getattr(part, key)) for part in parts[form]) // len(data.tasks)
        told = {form: [round(v[0] / asked, 4), *v[2:]] for form, v in sums.items()}
        print(name, fold, asked, told, file=sys.stderr, flush=True)
    return {
        "features": [kind, values.shape[1]],
        "asked": asked,
        "forms": {f: [100 * v[0] / asked, v[1] / asked, *v[2:]] for f, v in sums.items()},
    }


def table(found: dict[str, Any]) -> str:
    """Markdown: a row for each data set, a column for each form."""
    lines = [f"| data (asked) | {' | '.join(FORMS)} |", "| --- " * (len(FORMS) + 1) + "|"]
    for name, row in found.items():
        cells = [
            f"{accuracy:.2f} %, {nats:.4f}, {math.ceil(own / 1000)} + {math.ceil(shared / 1000)} kB"
            for accuracy, nats, own, shared in (row["forms"][form] for form in FORMS)
        ]
        lines.append(f"| {name} ({row['asked']:,}) | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--mnist", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/rounding"))
    parser.add_argument("--only", nargs="+", choices=IMAGES, default=list(IMAGES), metavar="NAME")
    parser.add_argument("--folds", type=int, default=4, help="of five")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in options.only:
        data = EVERY[name](Places(options.photos, options.mnist, options.out))
        found[name] = measured(name, data, IMAGES[name], options.folds)
        (options.out / "rounding.json").write_text(json.dumps(found, indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
