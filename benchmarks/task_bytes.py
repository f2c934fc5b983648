"""Bytes of a store's tasks by part, in a table.

    python benchmarks/task_bytes.py STORE [STORE …]

Bytes of each group as it lies in the file; *rest*: what HDF5 needs to describe it. Below, what masks would take at
their entropy, were every weight selected by the same chance. The objects themselves are read, so that stores of any
format are compared.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from typing import Any

import h5py
import numpy as np

from store_schema import Store, layout

PARTS = ("masks", "scores", "image_scores", "calibration", "statistics", "gate", "rest")


def parts(data: bytes) -> Counter[str]:
    """Bytes of each part of a task's object."""
    found: Counter[str] = Counter(rest=len(data))

    def count(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            stored = item.id.get_storage_size()
            found.update({name.split("/")[0]: stored, "rest": -stored})

    with h5py.File(io.BytesIO(data), "r") as file:
        file.visititems(count)
    found["rest"] += found.pop("probe_outputs", 0)
    return found


def entropy(store: Store, task: str) -> float:
    """Bytes of a task's masks at their entropy."""
    total = 0.0
    for mask in store.read_subnetwork(task, ("masks",)).masks.values():
        share = np.clip(mask.mean(), 1e-12, 1 - 1e-12)
        total -= mask.size / 8 * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stores", nargs="+", metavar="STORE")
    print(f"| store, task | bytes | {' | '.join(PARTS)} | entropy of the masks |")
    print("| --- " * (len(PARTS) + 3) + "|")
    for place in parser.parse_args().stores:
        store = Store.open(place)
        for task in store.manifest.tasks:
            found = parts(layout.object_path(store.root, task.subnetwork.sha256, task.subnetwork.suffix).read_bytes())
            cells = [task.subnetwork.size, *(found[part] for part in PARTS), round(entropy(store, task.name))]
            print(f"| {store.root.name}, {task.name} | {' | '.join(f'{cell:,}' for cell in cells)} |")


if __name__ == "__main__":
    main()
