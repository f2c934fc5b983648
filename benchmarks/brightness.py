"""Darker and brighter digits: does what ``detect`` says agree with what ``predict --reject`` says?

    python benchmarks/brightness.py --root MNIST_ROOT --out bench-out/brightness

Learns digits 0 to 5 as three tasks and asks about 200 images of them and 200 of digits 6 to 9, all held-out training
images, at each brightness; values beyond white are cut off, as a camera does. ``detect`` judges all images of a row at
once, ``--reject`` each by itself, so that the share of rejected images is what must fit the verdict.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torchvision.datasets import MNIST

from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.runtime.choices import EVIDENCE

FACTORS = (0.0, 0.1, 0.3, 0.5, 0.7, 1.0, 1.3, 1.5, 2.0)
TASKS = ((0, 1), (2, 3), (4, 5))
UNLEARNED = (6, 7, 8, 9)
ASKED = 200
ALPHA = 0.05


def brighter(images: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Images [N, …] with all values times ``factor``, cut off at 255."""
    return np.clip(np.rint(images.astype(np.float64) * factor), 0, 255).astype(np.uint8)


def of_digits(images: NDArray[np.uint8], digits: NDArray[np.int64], wanted: tuple[int, ...]) -> Batch:
    """The images of some digits, labelled."""
    own = np.isin(digits, wanted)
    return Batch(np.ascontiguousarray(images[own]), digits[own], f"digits {wanted}")


def row(store: str, what: str, batch: Batch, factor: float) -> dict[str, Any]:
    """What is said of a batch at one brightness."""
    asked = Batch(brighter(batch.images, factor), None, what)
    found = predict(store, asked, reject=ALPHA)
    right = float((found.label == batch.labels).mean())
    verdicts = {kind: detect(store, asked, evidence=kind) for kind in EVIDENCE}
    said = {kind: each.verdict for kind, each in verdicts.items()}
    rejected = float((~found.known).mean())
    return {"digits": what, "factor": factor, "rejected": rejected, "right": right, **said,
            "warnings": [caution.code for caution in found.warnings]}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/brightness"))
    parser.add_argument("--images", type=int, default=4000, help="Images learned of each task.")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = MNIST(options.root, train=True)
    order = np.random.default_rng(options.seed).permutation(len(data.data))
    images, digits = data.data.numpy()[order, None], data.targets.numpy()[order]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        store = f"{folder}/store"
        method = Options(Schedule(epochs=options.epochs))
        for task in TASKS:
            batch = of_digits(images, digits, task).taken(slice(options.images))
            learn(store, batch, LearnOptions(seed=options.seed, arch="mlp:200,200", method=method))
        held = {"learned": tuple(sum(TASKS, ())), "unlearned": UNLEARNED}
        for what, wanted in held.items():
            # The last images: none of a task's reaches so far back.
            asked = of_digits(images, digits, wanted).taken(slice(-ASKED, None))
            rows += [row(store, what, asked, factor) for factor in FACTORS]
    (options.out / "brightness.json").write_text(json.dumps(rows, indent=1))
    print("| digits | brightness | `detect` | `predict --reject 0.05` rejects | labels right | `fisher` | `gradient` |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for r in rows:
        right = f"{100 * r['right']:.1f} %" if r["digits"] == "learned" else "–"
        cells = (r["digits"], f"{r['factor']:g}", r["gate"], f"{100 * r['rejected']:.1f} %", right, r["fisher"])
        print("| " + " | ".join((*cells, r["gradient"])) + " |")


if __name__ == "__main__":
    main()
