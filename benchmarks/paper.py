"""The paper's figures and table, regenerated: P6 on all of MNIST, several seeds, beside six separate dense networks.

    python benchmarks/paper.py --root MNIST_ROOT --out bench-out/paper

Without MNIST under ``--root`` the 5,000 offline images are used, and the results say so. ``--reuse`` only draws and
summarises the seeds that are there. Test images are used for these figures only.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from figures import draw, tables
from torch import Tensor

from clmoe_cli.api import common
from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.reports import plain
from clmoe_cli.api.tasks import TasksOptions, make_tasks
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method import learn_task
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.gradient_scores import deviation, factors
from clmoe_cli.method.subnetwork.image_scores import ImageReference
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Annealing, Epoch, Run, Schedule, anneal, quality, train
from clmoe_cli.method.tasks.placement import Thresholds
from clmoe_cli.store_tensors import Loader, derived_seed, generator
from store_schema import BadInput, Store

PAIRS = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
COMPARED = 500
"""Test images of each task for Table 1."""
PAPER = {
    "accuracy with the task given, %": "> 75 to 80",
    "frozen per task, first two layers, %": "< 10",
    "single images without a task id": "not reported",
}


def labelled(batch: Batch) -> Labelled:
    """Images [N, D] and indices of their classes [N]."""
    assert batch.labels is not None
    return Labelled(
        common.flat(batch, Scaling()), torch.from_numpy(LabelEncoder.of(batch.classes()).encode(batch.labels))
    )


def dense_reference(train_set: Batch, test_set: Batch, arch: str, seed: int, number: int) -> tuple[float, float]:
    """Test accuracy of a network of its own for one task, with the split and the fresh weights of the store's.

    Trained until its held-out loss has converged; and trained on along the same rates as a subnetwork's rounds and its
    consolidation are.
    """
    rng = generator(derived_seed(seed, number, "train"))
    net, classes = parse_arch(arch, train_set.input_shape), len(train_set.classes())
    parts = learn_task.split(labelled(train_set), rng)
    fresh = net.initial_shared(rng) | net.initial_owned(classes, rng)
    start = net.ordered(fresh)
    every = masks.ones_like({name: fresh[name] for name in net.shared_shapes()})
    asked, tolerance = labelled(test_set), Tolerance()
    run = Run(net, parts.training, parts.tuning, Schedule(), rng)
    found, _ = train(run, start, every)
    converged = quality(net, found, asked).accuracy
    for epochs in (*[tolerance.epochs] * 4, tolerance.final_epochs):
        found, _ = anneal(run, found, every, Annealing("dense", epochs, tolerance.lr))
    return converged, quality(net, found, asked).accuracy


def table_one(loader: Loader, tests: list[Batch]) -> dict[str, list[list[list[float]]]]:
    """Mean squared score deviation [task whose scores][task of the images][layer], and relative to ``‖M∘S‖²``.

    ``unit``: mean divergence from S̃, each image's gradient scaled to unit length (of shared weights only);
    ``unit_batch``: divergence of the mean of these gradients, which is what router ``paper`` compares.
    Paper, Table 1, which has one row of it. Pseudo-labels: nobody knows the labels when predicting.
    """
    raw, relative, unit, unit_batch = [], [], [], []
    for record in loader.manifest.tasks:
        task = loader.task(record.name)
        reference = task.reference()
        norms = [float(s.square().sum()) for s in reference.scores.values()]
        row = [
            deviation(task.net, task.params, factors(task.net, task.params, labelled(b).x[:COMPARED]), reference)
            for b in tests
        ]
        raw.append([[float(value.mean()) for value in found.values()] for found in row])
        relative.append([[v / n for v, n in zip(found, norms, strict=True)] for found in raw[-1]])
        by_image = ImageReference.of(task.mask, task.image_scores)
        each = [by_image.gradients(task.net, task.params, labelled(b).x[:COMPARED]) for b in tests]
        unit.append([[float(v.mean()) for v in by_image.divergences(found).values()] for found in each])
        means = [{name: value.mean(dim=0, keepdim=True) for name, value in found.items()} for found in each]
        unit_batch.append([[float(v) for v in by_image.divergences(found).values()] for found in means])
    return {"raw": raw, "relative": relative, "unit": unit, "unit_batch": unit_batch}


def nearest(table: list[list[list[float]]]) -> dict[str, list[float]]:
    """How often the diagonal of Table 1 is the least, by layer: a share of tasks, judged in both directions.

    ``scores``: of all tasks' images those of the task itself deviate least from its scores. ``images``: of all tasks'
    scores an image's own task's deviate least from it, which is what the paper asks.
    """
    values = np.array(table)
    own = np.arange(len(values))[:, None]
    return {
        "scores": (values.argmin(axis=1) == own).mean(axis=0).tolist(),
        "images": (values.argmin(axis=0) == own).mean(axis=0).tolist(),
    }


def run_seed(job: tuple[Path, int, LearnOptions, bool, bool]) -> dict[str, Any]:
    """P6 with one seed; the result is written to ``seedN.json`` as well."""
    out, seed, options, blind, dense = job
    torch.set_num_threads(1)
    data, place = out / "tasks", out / f"store{seed}"
    if place.exists():
        raise SystemExit(f"{place} exists: remove it first, or use --reuse")
    numbers = range(1, len(PAIRS) + 1)
    trains = [read_batch(str(data / f"task{i}.npz"), labels="required") for i in numbers]
    tests = [read_batch(str(data / f"task{i}.test.npz"), labels="required") for i in numbers]
    losses: list[list[dict[str, Any]]] = []
    first: list[Tensor] = []
    accuracy, identical, reports = [], True, []
    for number, batch in enumerate(trains, 1):
        epochs: list[dict[str, Any]] = []

        def note(epoch: Epoch, epochs: list[dict[str, Any]] = epochs) -> None:
            epochs.append(
                {
                    "phase": epoch.phase,
                    "loss": epoch.loss,
                    "held_out": epoch.held_out.loss,
                    "right": epoch.held_out.accuracy,
                }
            )

        if blind and number > 1:
            # No task is constructive then, so that nothing is read, in the same expert all the same.
            options = replace(options, expert="e1", thresholds=Thresholds(least=2.0))
        report = learn(str(place), batch, options, on_epoch=note)
        reports.append(report.to_json())
        losses.append(epochs)
        loader = Loader(Store.open(str(place)))
        for i in range(number):
            task = loader.task(f"task{i + 1}")
            now = logits(task.net, task.params, labelled(tests[i]).x)
            if i == len(first):
                first.append(now)
            identical &= torch.equal(first[i], now)
        accuracy.append([predict(str(place), tests[i], task=f"task{i + 1}").accuracy for i in range(number)])
        print(f"seed {seed} task {number}: {accuracy[-1]} {report.seconds:.0f} s", file=sys.stderr, flush=True)
    references = [dense_reference(trains[i - 1], tests[i - 1], options.arch, seed, i) for i in numbers if dense]
    shown = inspect(str(place))
    homes = {r["expert"] for r in reports}
    result = {
        "seed": seed,
        "one_expert": len(homes) == 1,
        "accuracy": accuracy,
        "final": accuracy[-1],
        "mean": float(np.mean([a for a in accuracy[-1] if a is not None])),
        "bit_identical": identical,
        "dense": [converged for converged, _ in references],
        "dense_annealed": [annealed for _, annealed in references],
        "losses": losses,
        "layers": [layer["name"] for layer in reports[0]["layers"]] + ["output rows"],
        "frozen": [
            [layer.frozen_percent for layer in entry.experts["e1"].layers]
            + [entry.experts["e1"].output_rows.frozen_percent]
            for entry in shown.history
        ],
        "table1": table_one(Loader(Store.open(str(place))), tests),
        "table1_layers": [layer["name"].removesuffix(".weight") for layer in reports[0]["layers"]] + ["output"],
        "selected_percent": [[100 * x["selected"] / x["parameters"] for x in r["layers"]] for r in reports],
        "reused_percent": [[100 * x["reused"] / x["parameters"] for x in r["layers"]] for r in reports],
        "seconds": [r["seconds"] for r in reports],
        "candidates": [r["candidates"] for r in reports],
        "bytes": plain(shown.bytes),
    }
    (out / f"seed{seed}.json").write_text(json.dumps(result, indent=1))
    return result


def summarise(results: list[dict[str, Any]], source: str) -> dict[str, Any]:
    """What the paper claims, and what was measured: mean and spread over the seeds."""
    final = 100 * np.array([r["final"] for r in results], dtype=float)
    frozen = np.array([r["frozen"][-1] for r in results])
    summary: dict[str, Any] = {
        "source": source,
        "seeds": [r["seed"] for r in results],
        "paper_claims": PAPER,
        "accuracy_by_task": {"mean": final.mean(axis=0).tolist(), "std": final.std(axis=0).tolist()},
        "accuracy_mean_by_seed": final.mean(axis=1).tolist(),
        "accuracy_mean": [float(final.mean()), float(final.mean(axis=1).std())],
        "accuracy_least_task": float(final.min()),
        "all_in_one_expert": [r["one_expert"] for r in results],
        "frozen_after_all_six": {"mean": frozen.mean(axis=0).tolist(), "max": frozen.max(axis=0).tolist()},
        "table1_own_is_nearest": {kind: [nearest(r["table1"][kind]) for r in results] for kind in results[0]["table1"]},
        "outputs_bit_identical": [r["bit_identical"] for r in results],
        "learn_seconds": float(np.mean([r["seconds"] for r in results])),
    }
    if all(r["dense"] for r in results):
        dense = 100 * np.array([r["dense"] for r in results])
        gap = dense.mean(axis=1) - final.mean(axis=1)
        summary["dense_by_task"] = dense.mean(axis=0).tolist()
        summary["dense_mean"] = [float(dense.mean()), float(dense.mean(axis=1).std())]
        summary["points_below_dense"] = {"by_seed": gap.tolist(), "mean": float(gap.mean()), "std": float(gap.std())}
        annealed = 100 * np.array([r["dense_annealed"] for r in results])
        summary["dense_annealed_mean"] = [float(annealed.mean()), float(annealed.mean(axis=1).std())]
    return summary


def prepare(root: str, out: Path, quick: bool) -> str:
    """Writes the task files; the name of the data set that was at hand."""
    classes = [tuple(pair) for pair in PAIRS]
    if not quick:
        try:
            make_tasks("mnist", out / "tasks", TasksOptions(classes=classes, root=root))
            return "mnist"
        except BadInput as error:
            print(f"note: no MNIST there ({error}): the 5,000 offline images stand in", file=sys.stderr)
    make_tasks("mnist5k", out / "tasks", TasksOptions(classes=classes))
    return "mnist5k"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", default="../shared/mnist")
    parser.add_argument("--out", type=Path, default=Path("bench-out/paper"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--arch", default="mlp:500,500")
    parser.add_argument("--floor", type=float, help="always prune to this density, for the curve of accuracy")
    parser.add_argument("--blind", action="store_true", help="read nothing of earlier tasks, for the ablation")
    parser.add_argument("--no-dense", action="store_true", help="without the separate dense networks")
    parser.add_argument("--quick", action="store_true", help="offline images, one seed, a small network")
    parser.add_argument("--reuse", action="store_true", help="only summarise the seeds that are there")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    started = time.monotonic()
    arch = "mlp:64,64" if options.quick else options.arch
    seeds = options.seeds[:1] if options.quick else options.seeds
    if options.reuse:
        source = (
            json.loads((options.out / "summary.json").read_text())["source"]
            if (options.out / "summary.json").exists()
            else "mnist"
        )
        results = [
            json.loads((options.out / f"seed{s}.json").read_text())
            for s in seeds
            if (options.out / f"seed{s}.json").exists()
        ]
    else:
        source = prepare(options.root, options.out, options.quick)
        method = learn_task.Options()
        if options.floor is not None:
            method = learn_task.Options(
                tolerance=Tolerance(max_drop=1.0, starts=(max(0.2, options.floor),), floor=options.floor)
            )
        jobs = []
        for seed in seeds:
            told = LearnOptions(arch=arch, seed=seed, method=method)
            jobs.append((options.out, seed, told, options.blind, not options.no_dense))
        with ProcessPoolExecutor(options.jobs) as processes:
            results = list(processes.map(run_seed, jobs))
    summary = summarise(results, source)
    summary["seconds"] = time.monotonic() - started
    (options.out / "summary.json").write_text(json.dumps(summary, indent=1))
    tables(results, options.out)
    draw(results, options.out)
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
