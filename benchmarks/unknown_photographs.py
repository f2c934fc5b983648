"""Unknown photographs: p-values of classes that no task knows, rejections as tasks arrive, and onset in batches of 32.

    python benchmarks/unknown_photographs.py --photos PHOTOS --out bench-out/unknown [--seeds 0 1]

CIFAR-100 in ten tasks through ``lite0``, its test pictures asked. After every task each learned task's own pictures are
asked with ``--reject .05``: the share that is rejected should be 5 %. After five tasks the other five are unknown: the
AUROC of the p-value tells them from known pictures (0.5: not at all, 1: always). Batches of 32 of one task, known or
new, are judged as ``detect`` judges them, at a rate of false alarms of 1 %.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import PHOTOGRAPHS, Data, Places
from onset import auroc, verdicts
from sklearn.metrics import roc_auc_score

from clmoe_cli.api.evidence import onset_evidence
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.tasks.novelty import Evidence
from clmoe_cli.store_tensors import Loader
from store_schema import Store

SIZE, ALPHA, REJECT = 32, 0.01, 0.05


def judged(store: str, data: Data, evidence_kind: str, rng: np.random.Generator) -> dict[str, float]:
    """Recall of new batches, false alarms and AUROC over batches of each task's pictures."""
    loader = Loader(Store.open(store))
    tasks = loader.manifest.tasks
    book = LabelEncoder.of(*(t.classes for t in tasks))
    new: dict[bool, list[bool]] = {True: [], False: []}
    far: dict[bool, list[float]] = {True: [], False: []}
    for number in range(len(data.tasks)):
        asked = data.asked(number)
        order = rng.permutation(len(asked.images))
        batch = Batch(np.ascontiguousarray(asked.images[order]), None, "", asked.input)
        found: dict[str, Evidence] = onset_evidence(loader, [t.name for t in tasks], batch, book, evidence_kind)[0]
        said, distance = verdicts(found, SIZE, ALPHA)
        new[number >= len(tasks)] += said
        far[number >= len(tasks)] += distance
    return {
        "recall": float(np.mean(new[True])),
        "false_alarms": float(np.mean(new[False])),
        "auroc": auroc(far[False], far[True]),
        "batches": len(new[True]) + len(new[False]),
    }


def measured(data: Data, seed: int, store: str) -> dict[str, Any]:
    """All figures of one store."""
    rejected: list[list[float]] = []
    found: dict[str, Any] = {}
    half = len(data.tasks) // 2
    for number in range(len(data.tasks)):
        learn(store, data.learned(number, seed), LearnOptions(seed=seed))
        whole = [predict(store, data.asked(i), reject=REJECT) for i in range(number + 1)]
        rejected.append([float(1 - report.known.mean()) for report in whole])
        print(
            f"  {number + 1} tasks: rejected {[round(100 * r, 1) for r in rejected[-1]]} %", file=sys.stderr, flush=True
        )
        if number + 1 == half:
            unknown = [predict(store, data.asked(i), reject=REJECT) for i in range(half, len(data.tasks))]
            p = [np.concatenate([report.p_value for report in part]) for part in (whole, unknown)]
            found["auroc"] = float(roc_auc_score(np.repeat([1, 0], [len(p[0]), len(p[1])]), np.concatenate(p)))
            found["unknown_rejected"] = float(np.mean(np.concatenate([~report.known for report in unknown])))
            found["onset"] = {
                kind: judged(store, data, kind, np.random.default_rng(seed)) for kind in ("gate", "fisher", "gradient")
            }
            print(f"  {found}", file=sys.stderr, flush=True)
    return {**found, "rejected": rejected}


def table(found: list[dict[str, Any]]) -> str:
    """Means and extremes over seeds, in Markdown."""
    every = [100 * share for figures in found for row in figures["rejected"] for share in row]
    gone = [100 * figures["unknown_rejected"] for figures in found]
    lines = [
        "| figure | mean | worst seed |",
        "| --- | --- | --- |",
        f"| AUROC of the p-value, unknown half | {np.mean([f['auroc'] for f in found]):.3f} "
        f"| {min(f['auroc'] for f in found):.3f} |",
        f"| unknown pictures that `--reject .05` rejects, % | {np.mean(gone):.1f} | {min(gone):.1f} |",
        f"| a task's own pictures that it rejects, % | {np.mean(every):.1f} | {min(every):.1f} to {max(every):.1f} |",
    ]
    for kind in found[0]["onset"]:
        rows = [f["onset"][kind] for f in found]
        for key, worst in (("recall", min), ("false_alarms", max), ("auroc", min)):
            values = [row[key] for row in rows]
            lines.append(f"| onset by {kind}, batches of {SIZE}: {key} | {np.mean(values):.3f} | {worst(values):.3f} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    found = []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as folder:
            data = PHOTOGRAPHS["cifar100-photos"](Places(args.photos, None, Path(folder), seed))
            found.append(measured(data, seed, str(Path(folder) / "store")))
        (args.out / f"seed{seed}.json").write_text(json.dumps(found[-1], indent=1))
    print(table(found))


if __name__ == "__main__":
    main()
