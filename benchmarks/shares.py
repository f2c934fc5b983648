"""Classes of very different sizes: whether their shares should count, by held-out training inputs.

    OMP_NUM_THREADS=1 python benchmarks/shares.py --photos PHOTOS --mnist MNIST_ROOT

Each data set is learned by the gate alone: with classes as equally likely, by their shares, and as the gate chooses for
each task (:func:`clmoe_cli.method.routing.gaussians.fit`). Where ``long`` stands, classes are thinned out first, the
last of them to a thirtieth. A fifth of what is left, 6,000 inputs at most, is asked. Test files are not read.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from datasets import EVERY, Array, Data, Places

from clmoe_cli.method.routing import features, gaussians

SETS = (
    ("imbalanced", False), ("cancer", False), ("imbalanced-digits", False), ("digits8", True), ("cifar10-lite0", True),
    ("cifar100-lite0", True), ("gtsrb", True), ("gtsrb", False),
)  # fmt: skip
POWERS = {"equal": (0.0,), "shares": (1.0,), "chosen": gaussians.POWERS}
LEAST, THINNEST, MOST = 8, 0.03, 6000
"""Inputs of a class, at least; share that is left of the most thinned one; inputs of a data set, at most."""


def held_out(data: Data, long: bool, rng: np.random.Generator) -> tuple[Array, Array]:
    """Positions of the inputs that are learned, and of those that are asked."""
    labels, parts = data.train[1], []
    classes = rng.permutation(np.unique(labels))
    for share, c in zip(THINNEST ** np.linspace(0, 1, len(classes)), classes, strict=True):
        own = rng.permutation(np.flatnonzero(labels == c))
        parts.append(own[: max(LEAST, int(len(own) * share))] if long else own)
    every = rng.permutation(np.concatenate(parts))[:MOST]
    cut = len(every) * 4 // 5
    return every[:cut], every[cut:]


def answered(data: Data, learned: Array, asked: Array, powers: tuple[float, ...]) -> Array:
    """Which of the ``asked`` inputs the gate answers right, each by itself."""
    x, labels = data.train
    scale, shape = 255 if x.dtype == np.uint8 else 1, x.shape[1:]
    values = features.features(torch.from_numpy(x.astype(np.float32) / scale).flatten(1), shape, features.kind(shape))
    tasks, codes = [], []
    with mock.patch.object(gaussians, "POWERS", powers):
        for group in data.tasks:
            own = learned[np.isin(labels[learned], group)]
            classes, y = np.unique(labels[own], return_inverse=True)
            none = torch.zeros(len(classes), values.shape[1], dtype=torch.float64)
            tasks.append(gaussians.fit(values[own], torch.from_numpy(y), len(classes), len(shape) > 1, none))
            codes.append(classes)
    gate = gaussians.GaussianGate.of(gaussians.solve(tasks), [len(c) for c in codes])
    found = gate.compare(values[asked], tasks.__getitem__)
    best = found.chosen.gather(1, found.likely.argmax(dim=1, keepdim=True))[:, 0]
    return np.asarray(np.concatenate(codes)[best.numpy()] == labels[asked])


def main() -> None:
    """Prints one row a data set and seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[10, 11, 12])
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| data | seed | asked | " + " | ".join(f"{name}, mean of classes" for name in POWERS) + " |")
    print("| --- " * (3 + len(POWERS)) + "|")
    with tempfile.TemporaryDirectory() as scratch:
        for (name, long), seed in ((each, seed) for each in SETS for seed in args.seeds):
            data = EVERY[name](Places(args.photos, args.mnist, Path(scratch), seed))
            learned, asked = held_out(data, long, np.random.default_rng((seed, 99)))
            cells = []
            for powers in POWERS.values():
                right, truth = answered(data, learned, asked, powers), data.train[1][asked]
                each = np.mean([right[truth == c].mean() for c in np.unique(truth)])
                cells.append(f"{100 * right.mean():.1f}, {100 * each:.1f}")
            long_name = f"{name}, long" if long else name
            print(f"| {long_name} | {seed} | {len(asked)} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
