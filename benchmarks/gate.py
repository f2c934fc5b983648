"""Every image by itself, with no task id: accuracy, batches, unknown images, calibration, other data, orders, pruning.

    python benchmarks/gate.py --root MNIST_ROOT --out bench-out/gate

Each case is a store of its own, learned task after task with default options; test images are for these figures
only. Beside it stand the gate alone, the other routers, the task given (by the mixture, and by the subnetwork alone),
and the same MLP trained on all classes at once. ``--reuse`` keeps the cases that are there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paper import PAIRS, dense_reference
from sklearn.datasets import load_digits
from torchvision.datasets import MNIST

from clmoe_cli.api import common, gating
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import PredictReport, predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.api.reports import plain
from clmoe_cli.api.tasks import TasksOptions, make_tasks
from clmoe_cli.data import Batch, read_batch
from store_schema import Store

Pairs = tuple[tuple[int, ...], ...]
Images = np.ndarray[Any, Any]

OTHERS = ("fisher", "loss", "gradient", "paper")
"""Routers beside ``fused`` and ``gate``."""

SPLIT: Pairs = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
ALPHA = 0.05


def mnist(root: str, train: bool, change: str = "") -> tuple[Images, Images]:
    """Images [N, 1, 28, 28] uint8 and digits [N], all of them changed in one way."""
    data = MNIST(root, train=train)
    images = data.data[:, None]
    if change == "inverted":
        images = 255 - images
    elif change == "rotated":
        images = images.rot90(1, (2, 3))
    elif change == "half":
        images = images // 2
    return np.ascontiguousarray(images.numpy()), data.targets.numpy()


def data_of(case: str, root: str, seed: int, out: Path) -> tuple[tuple[Images, Images], tuple[Images, Images], Pairs]:
    """Training part, test part and the tasks of a case."""
    if case == "mnist5k":
        folder = out / f"mnist5k-tasks-{seed}"
        make_tasks("mnist5k", str(folder), TasksOptions(classes=PAIRS, seed=seed))
        parts = [read_batch(str(folder / f"task{i}.npz"), labels="required") for i in range(1, len(PAIRS) + 1)]
        test = read_batch(str(folder / "mixed.test.npz"), labels="required")
        # Digits of two tasks are there twice: each task takes all images of its digits.
        images, labels = (np.concatenate([getattr(b, key) for b in parts]) for key in ("images", "labels"))
        _, once = np.unique(images.reshape(len(images), -1), axis=0, return_index=True)
        return (images[once], labels[once]), (test.images, np.asarray(test.labels)), PAIRS
    if case == "digits8":
        data = load_digits()
        order = np.random.default_rng(seed).permutation(len(data.target))
        images, labels, cut = data.data[order].astype(np.float32), data.target[order], len(order) // 5
        return (images[cut:], labels[cut:]), (images[:cut], labels[:cut]), SPLIT
    change = case if case in ("inverted", "rotated", "half") else ""
    pairs: Pairs = PAIRS
    if case == "split":
        order = np.random.default_rng(seed).permutation(len(SPLIT)) if seed else np.arange(len(SPLIT))
        pairs = tuple(SPLIT[i] for i in order)
    return mnist(root, True, change), mnist(root, False, change), pairs


def cut(images: Images, labels: Images, pair: tuple[int, ...], seed: int) -> Batch:
    """All images of a task's classes, in an order of their own."""
    own = np.random.default_rng((seed, *pair)).permutation(np.flatnonzero(np.isin(labels, pair)))
    return Batch(np.ascontiguousarray(images[own]), labels[own], "")


def auroc(known: Images, unknown: Images) -> float:
    """Probability that a known image has the larger p-value (ties count half)."""
    values = np.concatenate([known, unknown])
    _, ranks, counts = np.unique(values, return_inverse=True, return_counts=True)
    middle = np.cumsum(counts) - (counts - 1) / 2
    total = middle[ranks.reshape(-1)[: len(known)]].sum()
    return float((total - len(known) * (len(known) + 1) / 2) / (len(known) * len(unknown)))


def wrong_batches(store: str, test: tuple[Images, Images], pairs: Pairs, size: int) -> tuple[int, int]:
    """Single-task batches of test images answered by a task that does not know their labels, of how many."""
    wrong = total = 0
    for pair in pairs:
        batch = cut(*test, pair, 0)
        whole = len(batch.images) // size * size
        rows = torch.arange(whole)
        found = predict(store, common.part(batch, rows), route="batch", batch_size=size)
        classes = {f"task{i}": own for i, own in enumerate(pairs, 1)}
        assert batch.labels is not None
        for i in range(0, whole, size):
            wrong += not set(batch.labels[i : i + size].tolist()) <= set(classes[str(found.task[i])])
            total += 1
    return wrong, total


def rejected(found: PredictReport, labels: Images, pairs: Pairs) -> list[float]:
    """Share of the images of each task whose p-value is below ``ALPHA``."""
    return [float((found.p_value[np.isin(labels, pair)] < ALPHA).mean()) for pair in pairs]


def run(job: tuple[str, int], root: str, out: Path) -> dict[str, Any]:
    """Learns and measures one case; the result is written to ``CASE-SEED.json`` as well."""
    case, seed = job
    torch.set_num_threads(1)
    train, test, pairs = data_of(case, root, seed, out)
    place = str(out / f"{case}-{seed}")
    if Path(place).exists():
        raise SystemExit(f"{place} exists: remove it first, or use --reuse")
    spent = [0.0]
    calls = (gating.features_of_data, gating.measure, gating.updated)

    def timed(call: Any) -> Any:
        def inner(*args: Any) -> Any:
            started = time.perf_counter()
            done = call(*args)
            spent[0] += time.perf_counter() - started
            return done

        return inner

    gating.features_of_data, gating.measure, gating.updated = map(timed, calls)
    result: dict[str, Any] = {
        "case": case,
        "seed": seed,
        "pairs": pairs,
        "rejected": [],
        "seconds": [],
        "gate_spent": [],
    }
    for number, pair in enumerate(pairs, 1):
        spent[0] = 0.0
        report = learn(place, cut(*train, pair, seed), LearnOptions(seed=seed))
        result["seconds"].append(report.seconds)
        result["gate_spent"].append(spent[0])
        seen = np.isin(test[1], sum(pairs[:number], ()))
        everything = predict(place, Batch(test[0], None, ""))
        result["rejected"].append(rejected(everything, test[1], pairs[:number]))
        if number == 3:
            result["auroc_after_three"] = auroc(everything.p_value[seen], everything.p_value[~seen])
            result["unknown_rejected"] = float((everything.p_value[~seen] < ALPHA).mean())
        print(f"{case} {seed} task {number}: {report.status}, {report.seconds:.0f} s", file=sys.stderr, flush=True)
    gating.features_of_data, gating.measure, gating.updated = calls
    mixed = Batch(*test, "")
    for router in ("fused", "gate", *(OTHERS if seed == 0 else ())):
        started = time.perf_counter()
        found = predict(place, mixed, router=router)
        assert found.scores is not None
        result[router] = found.scores.accuracy
        result[f"{router}_seconds"] = time.perf_counter() - started
        result[f"{router}_ece"] = found.scores.calibration_error
        if router == "fused":
            result["confusion"] = plain(found.scores.confusion)
    for name, router in (("given", "fused"), ("subnetwork", "fisher")):
        each = [predict(place, cut(*test, pair, 0), router=router, task=f"task{i}") for i, pair in enumerate(pairs, 1)]
        result[name] = float(np.mean([answers.accuracy for answers in each]))
    result["batch32"] = wrong_batches(place, test, pairs, 32)
    opened = Store.open(place)
    result["gate_bytes_per_task"] = [
        sum(array.nbytes for array in opened.read_subnetwork(t.name).gate.values()) for t in opened.manifest.tasks
    ]
    result["solved_bytes"] = sum(g.solved.size for g in opened.manifest.gates)
    if case == "mnist5k":
        result["pruned_equals_never_saw"] = pruning(place, out, train, pairs, seed)
    (out / f"{case}-{seed}.json").write_text(json.dumps(result, indent=1))
    return result


def pruning(place: str, out: Path, train: tuple[Images, Images], pairs: Pairs, seed: int) -> bool:
    """Whether the gate without task 3 has the bytes of one that never saw it."""
    other = str(out / f"never-{seed}")
    for number, pair in enumerate(pairs, 1):
        if number != 3:
            learn(other, cut(*train, pair, seed), LearnOptions(seed=seed, name=f"task{number}"))
    prune(place, PruneOptions(task="task3"), lambda plan: True)
    refs = [Store.open(path).manifest.gates[0].solved.sha256 for path in (place, other)]
    return refs[0] == refs[1]


def joint(seed: int, root: str, out: Path) -> dict[str, Any]:
    """Test accuracy of the same MLP trained on all ten digits at once: converged, and trained on as subnetworks are."""
    torch.set_num_threads(1)
    train, test = mnist(root, True), mnist(root, False)
    every = tuple(range(10))
    found = dense_reference(cut(*train, every, seed), cut(*test, every, 0), "mlp:500,500", seed, 1)
    (out / f"joint-{seed}.json").write_text(json.dumps(found))
    print(f"joint {seed}: {found}", file=sys.stderr, flush=True)
    return {"case": "joint", "seed": seed, "accuracy": found}


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Means and spreads over the seeds of each case."""
    rows: dict[str, Any] = {}
    for case in dict.fromkeys(r["case"] for r in results):
        own = [r for r in results if r["case"] == case]
        if case == "joint":
            found = 100 * np.array([r["accuracy"] for r in own])
            rows[case] = {"converged": [found[:, 0].mean(), found[:, 0].std()], "annealed": found[:, 1].mean()}
            continue
        rows[case] = {"seeds": len(own)}
        for key in ("fused", "gate", "given", "subnetwork", *OTHERS):
            values = [100 * r[key] for r in own if key in r]
            if values:
                rows[case][key] = [float(np.mean(values)), float(np.std(values)), min(values), max(values)]
        rows[case]["ece"] = float(np.mean([r["fused_ece"] for r in own]))
        rows[case]["batch32_wrong"] = np.sum([r["batch32"] for r in own], axis=0).tolist()
        rows[case]["auroc_after_three"] = [r["auroc_after_three"] for r in own]
        rates = [rate for r in own for row in r["rejected"] for rate in row]
        rows[case]["rejected"] = [min(rates), float(np.mean(rates)), max(rates)]
        drift = [max(abs(row[i] - r["rejected"][i][i]) for row in r["rejected"][i:])
                 for r in own for i in range(len(r["pairs"]))]  # fmt: skip
        rows[case]["rejected_drift"] = max(drift)
        rows[case]["gate_share_of_learning"] = float(
            np.sum([r["gate_spent"] for r in own]) / np.sum([r["seconds"] for r in own])
        )
        rows[case]["gate_bytes_per_task"] = max(size for r in own for size in r["gate_bytes_per_task"])
        rows[case]["solved_bytes"] = max(r["solved_bytes"] for r in own)
        if "pruned_equals_never_saw" in own[0]:
            rows[case]["pruned_equals_never_saw"] = [r["pruned_equals_never_saw"] for r in own]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/gate"))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--reuse", action="store_true", help="keep the cases that are there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seeds)
    jobs = [("p6", s) for s in seeds] + [("digits8", s) for s in seeds] + [("mnist5k", s) for s in seeds]
    jobs += [(change, 0) for change in ("inverted", "rotated", "half")] + [("split", s) for s in seeds]
    done = [job for job in jobs if options.reuse and (options.out / f"{job[0]}-{job[1]}.json").exists()]
    results = [json.loads((options.out / f"{case}-{seed}.json").read_text()) for case, seed in done]
    with ProcessPoolExecutor(options.jobs) as processes:
        waiting = [job for job in jobs if job not in done]
        learned = processes.map(partial(run, root=options.root, out=options.out), waiting)
        together = []
        for seed in seeds:
            path = options.out / f"joint-{seed}.json"
            if options.reuse and path.exists():
                results.append({"case": "joint", "seed": seed, "accuracy": json.loads(path.read_text())})
            else:
                together.append(seed)
        joints = processes.map(partial(joint, root=options.root, out=options.out), together)
        results += [*learned, *joints]
    found = {"cases": summary(results)}
    (options.out / "gate.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
