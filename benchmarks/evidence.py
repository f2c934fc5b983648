"""Onset without labels by every evidence beside each other: recall of unseen digits, and false alarms.

    python benchmarks/evidence.py --root MNIST_ROOT --stores STORE… --out bench-out/evidence

``STORE``: finished P6 stores, as ``benchmarks/paper.py`` leaves them, asked about test images. The first k tasks of a
finished store are the store as it was after k tasks.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write_rows
from onset import PAIRS, test_images
from torch import Tensor

from clmoe_cli.api.evidence import onset_evidence
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.tasks.novelty import decide
from clmoe_cli.runtime.choices import EVIDENCE
from clmoe_cli.store_tensors import Loader
from store_schema import Store

SIZES = (8, 32, 128)
KNOWN = (1, 3, 5)
MOST = 30
"""Batches taken of each pool."""


def called_new(loader: Loader, images: Tensor, size: int, tasks: int, kind: str, alpha: float) -> list[bool]:
    """For each batch of ``size`` images whether it is new to a store of the first ``tasks`` tasks."""
    names = [t.name for t in loader.manifest.tasks][:tasks]
    book = LabelEncoder.of(*(t.classes for t in loader.manifest.tasks))
    new = []
    for part in images[: len(images) // size * size].split(size)[:MOST]:
        batch = Batch(np.ascontiguousarray(part.numpy()), None, "")
        found, _ = onset_evidence(loader, names, batch, book, kind)
        new.append(decide(found, None, alpha).verdict == "new")
    return new


def measure(store: str, images: Tensor, digits: Tensor, alpha: float, kinds: list[str]) -> list[dict[str, Any]]:
    """One row for each evidence, number of tasks and batch size."""
    loader = Loader(Store.open(store))
    rows = []
    for kind in kinds:
        for k in KNOWN:
            unseen = images[~torch.isin(digits, torch.tensor(sum(PAIRS[:k], ())))]
            for size in SIZES:
                pools = [images[torch.isin(digits, torch.tensor(pair))] for pair in PAIRS[:k]]
                alarms = [new for pool in pools for new in called_new(loader, pool, size, k, kind, alpha)]
                recall = called_new(loader, unseen, size, k, kind, alpha)
                row = {"store": store, "evidence": kind, "tasks": k, "batch": size}
                row |= {"false_alarms": float(np.mean(alarms)), "recall_unseen": float(np.mean(recall))}
                row |= {"known_batches": len(alarms), "unseen_batches": len(recall)}
                rows.append(row)
                print(json.dumps(row), flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--stores", nargs="+", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/evidence"))
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--evidence", nargs="+", default=list(EVIDENCE), choices=EVIDENCE)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    images, digits = test_images(options.root)
    rows = [row for store in options.stores for row in measure(store, images, digits, options.alpha, options.evidence)]
    write_rows(options.out / "evidence.csv", rows)


if __name__ == "__main__":
    main()
