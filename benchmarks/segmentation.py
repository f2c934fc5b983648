"""Boundaries in a stream of MNIST tasks: found from labels and images, and from the images alone.

    python benchmarks/segmentation.py --root MNIST_ROOT --out bench-out --seeds 5 [--learn [images]]

The stream: P6's six digit pairs in an order drawn from the seed (task 2 not last), then task 2 with fresh images, task
2 inverted, rotated by 90 degrees, inverted and rotated. Prints one JSON object. Training images 0 to 49,999 only.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.datasets import MNIST

from clmoe_cli.method.tasks.stream import boundaries

PAIRS = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
AGAIN = ("task 2 again", "task 2 inverted", "task 2 rotated", "task 2 inverted and rotated")
NEAR = 64


def stream(x: Tensor, y: Tensor, seed: int, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images [10 size, 28, 28] uint8, labels [10 size], what each segment is; task 2 again shares no image."""
    rng = torch.Generator().manual_seed(seed)
    order = torch.randperm(6, generator=rng).tolist()
    while order[-1] == 1:
        order = torch.randperm(6, generator=rng).tolist()
    free = torch.ones(len(y), dtype=torch.bool)
    images, labels = [], []
    for part, task in enumerate([*order, 1, 1, 1, 1]):
        # 2,000 images of each segment are not there three times more: the transformed ones may repeat images.
        allowed = torch.isin(y, torch.tensor(PAIRS[task])) & (free | (part > 6))
        pool = allowed.nonzero()[:, 0]
        chosen = pool[torch.randperm(len(pool), generator=rng)[:size]]
        free[chosen] = False
        shown = 255 - x[chosen] if part in (7, 9) else x[chosen]
        images.append(shown.rot90(1, (1, 2)) if part in (8, 9) else shown)
        labels.append(y[chosen])
    return torch.cat(images), torch.cat(labels), [*(f"task {task + 1}" for task in order), *AGAIN]


def judged(found: list[int], size: int, segments: int) -> dict[str, Any]:
    """Error of the nearest boundary found for each true one, in images; missed beyond 64; false ones."""
    true = np.arange(1, segments) * size
    distance = np.array(found, dtype=np.int64)[None, :] - true[:, None]
    if not found:
        return {"errors": [None] * len(true), "missed": len(true), "false": []}
    nearest = distance[np.arange(len(true)), np.abs(distance).argmin(axis=1)]
    near = np.abs(nearest) <= NEAR
    # A boundary is false when it is far from every true one, or a second one at the same.
    hits = {int(true[i] + nearest[i]) for i in np.flatnonzero(near)}
    return {
        "errors": nearest.tolist(),
        "missed": int((~near).sum()),
        "false": [b for b in found if b not in hits],
    }


def learned(out: Path, seed: int, kind: str, x: Tensor, y: Tensor) -> list[dict[str, Any]]:
    """What ``learn --segment`` says of each segment, in a process of its own and a fresh store."""
    store, data = out / f"segments-{kind}-seed{seed}", out / f"stream-seed{seed}.npz"
    if store.exists():
        raise SystemExit(f"{store} exists: remove it first")
    np.savez(data, x=x.numpy(), y=y.numpy())
    flags = ["--data", str(data), "--segment", "--boundaries", kind, "--seed", str(seed), "--json", "-q"]
    command = [sys.executable, "-m", "clmoe_cli", "learn", "--store", str(store), *flags]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=dict(os.environ))
    if done.returncode:
        raise SystemExit(f"learn --segment: exit {done.returncode}: {done.stderr}")
    wanted = ("start", "stop", "status", "task", "expert", "classes", "seconds")
    parts = json.loads(done.stdout)["segments"]
    return [{k: p[k] for k in wanted} | {"accuracy": p["accuracy"]["subnetwork"]} for p in parts]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--size", type=int, default=2000, help="images of a segment")
    parser.add_argument("--learn", nargs="?", const="labels", choices=["labels", "images"])
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = MNIST(options.root, train=True)
    rows = []
    for seed in range(options.first, options.first + options.seeds):
        x, y, names = stream(data.data[:50000], data.targets[:50000], seed, options.size)
        row: dict[str, Any] = {"seed": seed, "segments": names}
        for kind in ("labels", "images"):
            started = time.monotonic()
            labels = y if kind == "labels" else None
            found = boundaries(x.flatten(1), labels, torch.Generator().manual_seed(seed))
            row[kind] = judged(found, options.size, len(names)) | {"seconds": round(time.monotonic() - started, 2)}
        if options.learn:
            parts = learned(options.out, seed, options.learn, x, y)
            row["learned"] = parts
            again = [p for p in parts if abs(p["start"] - 6 * options.size) <= NEAR]
            row["return_known"] = [p["status"] for p in again] == ["known"]
        print(json.dumps(row), file=sys.stderr)
        rows.append(row)
    summary = {
        kind: {
            "boundaries": sum(len(r[kind]["errors"]) for r in rows),
            "missed": sum(r[kind]["missed"] for r in rows),
            "false": sum(len(r[kind]["false"]) for r in rows),
            "largest_error": max((abs(e) for r in rows for e in r[kind]["errors"] if e is not None), default=None),
        }
        for kind in ("labels", "images")
    }
    print(json.dumps({"size": options.size, "summary": summary, "seeds": rows}, indent=1))


if __name__ == "__main__":
    main()
