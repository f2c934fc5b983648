"""Onset without labels: recall of new batches, false alarms and AUROC over tasks and batch sizes.

    python benchmarks/onset.py --root MNIST_ROOT --stores STORE… --out bench-out/onset
    python benchmarks/onset.py --root MNIST_ROOT --learn 5000 --seeds 0 1 --out bench-out/onset

``STORE``: finished P6 stores, as ``benchmarks/paper.py`` leaves them, asked about test images. With ``--learn`` small
stores are learned from so many training images of each pair, and asked about other training images. A task and its
calibration do not change when later tasks arrive, so the first k tasks of a finished store are the store as it was
after k tasks.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import write_rows
from matplotlib.figure import Figure
from torch import Tensor
from torchvision.datasets import MNIST

from clmoe_cli.api.evidence import onset_evidence
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.method.tasks.novelty import Evidence, decide
from clmoe_cli.store_tensors import Loader
from store_schema import Store

PAIRS = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
SIZES = (1, 8, 32, 128)
MOST = 300
"""Batches taken of each pair or pool of digits; only single images and batches of eight have more."""
CHANGES = ("rotated", "inverted", "permuted")


def test_images(root: str) -> tuple[Tensor, Tensor]:
    """Test images [N, 1, 28, 28] uint8 and digits [N] in an order of their own."""
    data = MNIST(root, train=False)
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(0))
    return data.data[order][:, None], data.targets[order]


def learned(root: str, seed: int, each: int, store: str) -> tuple[Tensor, Tensor]:
    """Learns a small P6 store from ``each`` training images of every pair; the other images, as :func:`test_images`."""
    data = MNIST(root, train=True)
    order = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(seed))
    images, digits = data.data[order][:, None], data.targets[order]
    rest = torch.ones(len(digits), dtype=torch.bool)
    options = LearnOptions(seed=seed, arch="mlp:100,100", method=Options(Schedule(epochs=8)))
    for pair in PAIRS:
        own = torch.isin(digits, torch.tensor(pair)).nonzero()[:each, 0]
        learn(store, Batch(images[own].numpy(), digits[own].numpy(), f"{pair}"), options)
        rest[own] = False
    return images[rest], digits[rest]


def changed(images: Tensor, how: str) -> Tensor:
    """The images rotated by 90 degrees, inverted, or with permuted pixels."""
    if how == "rotated":
        return images.rot90(1, (2, 3))
    if how == "inverted":
        return 255 - images
    order = torch.randperm(784, generator=torch.Generator().manual_seed(1))
    return images.reshape(len(images), -1)[:, order].reshape(images.shape)


def evidence(loader: Loader, images: Tensor, evidence_kind: str) -> dict[str, Evidence]:
    """What each task of the store says of the images."""
    batch = Batch(np.ascontiguousarray(images.numpy()), None, "")
    names = [t.name for t in loader.manifest.tasks]
    book = LabelEncoder.of(*(t.classes for t in loader.manifest.tasks))
    return onset_evidence(loader, names, batch, book, evidence_kind)[0]


def verdicts(found: dict[str, Evidence], size: int, alpha: float) -> tuple[list[bool], list[float]]:
    """For each batch of ``size`` images: whether it is new, and how far it is from the nearest task (for the AUROC)."""
    count = min(len(next(iter(found.values())).p) // size, MOST)
    new, far = [], []
    for i in range(count):
        cut = slice(i * size, (i + 1) * size)
        part = {
            name: replace(e, p=e.p[cut], predicted=e.predicted[cut], won=None if e.won is None else e.won[cut])
            for name, e in found.items()
        }
        new.append(decide(part, None, alpha).verdict == "new")
        far.append(min(float(-e.p.log().mean()) for e in part.values()))
    return new, far


def judged(pools: list[dict[str, Evidence]], size: int, alpha: float) -> tuple[list[bool], list[float]]:
    """:func:`verdicts` of several pools one after another."""
    parts = [verdicts(pool, size, alpha) for pool in pools]
    return [v for new, _ in parts for v in new], [v for _, far in parts for v in far]


def auroc(known: list[float], new: list[float]) -> float:
    """Probability that a new batch lies farther away than a known one (ties count half)."""
    a, b = np.array(known)[None, :], np.array(new)[:, None]
    return float((b > a).mean() + 0.5 * (b == a).mean())


def measure(store: str, images: Tensor, digits: Tensor, alpha: float, kind: str) -> list[dict[str, Any]]:
    """One row for each number of tasks and batch size."""
    loader = Loader(Store.open(store))
    names = [t.name for t in loader.manifest.tasks]
    pools = {f"pair{i}": images[torch.isin(digits, torch.tensor(pair))] for i, pair in enumerate(PAIRS)}
    pools |= {f"{how}{i}": changed(pools[f"pair{i}"], how) for how in CHANGES for i in range(len(PAIRS))}
    for k in range(1, len(PAIRS)):
        seen = torch.tensor(sorted(set(sum(PAIRS[:k], ()))))
        pools[f"unseen{k}"] = images[~torch.isin(digits, seen)]
    found = {name: evidence(loader, pool, kind) for name, pool in pools.items()}
    rows = []
    for k in range(1, len(PAIRS) + 1):
        known = {key: {name: e[name] for name in names[:k]} for key, e in found.items()}
        for size in SIZES:
            alarms, near = judged([known[f"pair{i}"] for i in range(k)], size, alpha)
            row: dict[str, Any] = {"store": store, "tasks": k, "batch": size, "false_alarms": float(np.mean(alarms))}
            for what in ("unseen", *CHANGES):
                keys = [f"{what}{i}" for i in range(k)] if what in CHANGES else [f"unseen{k}"] * (k < len(PAIRS))
                if keys:
                    new, far = judged([known[key] for key in keys], size, alpha)
                    row |= {f"recall_{what}": float(np.mean(new)), f"auroc_{what}": auroc(near, far)}
            rows.append(row)
    return rows


def summarise(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean and spread over the stores for each number of tasks and batch size."""
    result = []
    for k in range(1, len(PAIRS) + 1):
        for size in SIZES:
            same = [row for row in rows if row["tasks"] == k and row["batch"] == size]
            keys = [key for key in same[0] if key not in ("store", "tasks", "batch")]
            mean = {key: float(np.mean([row[key] for row in same])) for key in keys}
            worst = {
                f"worst_{key}": float((max if key == "false_alarms" else min)(row[key] for row in same)) for key in keys
            }
            result.append({"tasks": k, "batch": size, **mean, **worst})
    return result


def draw(summary: list[dict[str, Any]], path: Path) -> None:
    """Recall, false alarms and AUROC of batches of 32 against the number of tasks."""
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = [row for row in summary if row["batch"] == 32]
    for what in ("unseen", *CHANGES):
        some = [row for row in rows if f"recall_{what}" in row]
        left.plot([r["tasks"] for r in some], [100 * r[f"recall_{what}"] for r in some], marker="o", label=what)
        right.plot([r["tasks"] for r in some], [r[f"auroc_{what}"] for r in some], marker="o", label=what)
    left.plot([r["tasks"] for r in rows], [100 * r["false_alarms"] for r in rows], "k--", label="false alarms")
    left.set(xlabel="tasks learned", ylabel="%", title="recall of new, batches of 32")
    right.set(xlabel="tasks learned", title="AUROC", ylim=(0.9, 1.005))
    left.legend(frameon=False)
    figure.savefig(path, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--stores", nargs="+", default=[])
    parser.add_argument("--learn", type=int, help="Learn small stores from so many images of each pair.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--out", type=Path, default=Path("bench-out/onset"))
    parser.add_argument("--alpha", type=float, default=0.01)
    parser.add_argument("--evidence", default="gate")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stores = [(store, *test_images(options.root)) for store in options.stores]
    for seed in options.seeds if options.learn else ():
        store = str(options.out / f"store{seed}")
        stores.append((store, *learned(options.root, seed, options.learn, store)))
    rows = [row for asked in stores for row in measure(*asked, options.alpha, options.evidence)]
    summary = summarise(rows)
    (options.out / "onset.json").write_text(json.dumps({"summary": summary, "rows": rows}, indent=1))
    write_rows(options.out / "onset.csv", rows)
    draw(summary, options.out / "onset.png")
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
