"""Speed beside what one would use instead: one run, by turns, as ratios.

    python benchmarks/speed.py --root MNIST_ROOT --out bench-out/speed [--part kernels predict start learn bytes]

``kernels``: scores and a step (kernels.py). ``learn``: P6, six ``learn`` processes, beside six plain PyTorch processes
(plain.py) that train one dense network each, on the same images, to the loss of the same held-out images that the
``learn`` reached before pruning. ``predict``: 10,000 images and six tasks, then those of the store of growth.py
(``--grown``). ``start``: commands beside the imports that they need. ``bytes``: a task on disk. Draws ``learn.png``.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import six
from kernels import SIZES, plain, scores, step
from matplotlib.figure import Figure
from p6 import PAIRS, clmoe
from sequence import table, write
from task_bytes import entropy, parts
from turns import Ratio, by_turns, product_rate, ratio, seconds

from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.method.routing.features import features
from store_schema import Store, layout

COMMANDS = {
    "--help": ["--help"],
    "--version": ["--version"],
    "completion": [],
    "inspect": ["inspect"],
}
IMPORTS = {"inspect": "import typer, rich.console, h5py, numpy", "predict": "import torch"}


def predicting(store: Path, mixed: Batch, grown: Path, turns: int) -> dict[str, Any]:
    """10,000 images by the default router: the features, what is beyond them, and a plain forward pass.

    ``grown``: a store of many tasks, for as many images.
    """
    x, net = torch.from_numpy(mixed.scaled().reshape(len(mixed.images), -1)), plain(SIZES, 10)

    def forward() -> None:
        with torch.inference_mode():
            torch.cat([net(part) for part in x.split(4096)])

    runs = {
        "whole": lambda: predict(str(store), mixed),
        "grown": lambda: predict(str(grown), mixed),
        "features": lambda: features(x, mixed.input_shape),
        "forward": forward,
    }
    times = by_turns(runs, turns)
    times["beyond"] = [a - b for a, b in zip(times["whole"], times["features"], strict=True)]
    return {
        "features to a forward pass": ratio(times, "features", "forward"),
        "beyond the features to a forward pass": ratio(times, "beyond", "forward"),
        f"{len(Store.open(grown).manifest.tasks)} tasks to {len(Store.open(store).manifest.tasks)}": ratio(
            times, "grown", "whole"
        ),
        "seconds": {name: seconds(times, name) for name in times},
    }


def starting(store: Path, one: Path, turns: int) -> dict[str, Any]:
    """Whole processes; ``predict`` on one image has half a second for itself. Bytecode is kept, as pip does."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "check": False}
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}

    def process(*command: str, **environment: str) -> Any:
        return lambda: subprocess.run([*command], env={**kept, **environment}, **quiet)

    script = str(Path(sys.executable).with_name("clmoe"))
    runs = {name: process(script, *args, CLMOE_STORE=str(store)) for name, args in COMMANDS.items()}
    runs["completion"] = process(
        script, _CLMOE_COMPLETE="complete_bash", COMP_WORDS="clmoe ins", COMP_CWORD="1", CLMOE_STORE=str(store)
    )
    runs["predict"] = process(script, "predict", "--batch", str(one), "--store", str(store))
    runs["light"], runs["heavy"] = (process(sys.executable, "-c", IMPORTS[k]) for k in ("inspect", "predict"))
    # What typer itself takes to run a command with one option.
    mini = "import typer, rich.console, h5py, numpy\ndef f(store: str = ''): pass\ntyper.run(f)"
    runs["a bare typer command"] = process(sys.executable, "-c", mini, "--store", "x")
    times = by_turns(runs, turns)
    found: dict[str, Any] = {
        f"{name} to the imports": ratio(times, name, "light") for name in (*COMMANDS, "a bare typer command")
    }
    times["predict less 0.5 s"] = [took - 0.5 for took in times["predict"]]
    found["predict, less 0.5 s, to importing torch"] = ratio(times, "predict less 0.5 s", "heavy")
    return found | {"seconds": {name: seconds(times, name) for name in times}}


def on_disk(store: Path) -> dict[str, Any]:
    """Bytes of each task by part, masks at their entropy, and a dense copy of the network."""
    opened = Store.open(store)
    rows = []
    for task in opened.manifest.tasks:
        path = layout.object_path(opened.root, task.subnetwork.sha256, task.subnetwork.suffix)
        dense = 4 * (sum(layer.parameters for layer in task.layers) + task.owned_parameters)
        rows.append(
            {
                "task": task.name, "object": task.subnetwork.size, **parts(path.read_bytes()),
                "masks, entropy": round(entropy(opened, task.name)), "dense copy": dense,
            }
        )  # fmt: skip
    shared = sum(e.weights.size for e in opened.manifest.experts if e.weights)
    return {
        "rows": rows,
        "expert": shared,
        "a task, with its share of the expert": shared / len(rows) + rows[0]["object"],
    }


def draw(found: dict[str, Any], path: Path) -> None:
    """Where the time of six ``learn`` goes, beside six plain processes."""
    figure = Figure(figsize=(7, 2.4), layout="constrained")
    axis, left = figure.subplots(), 0.0
    for stage, took in found["stages"].items():
        axis.barh("six learn", took, left=left, label=stage)
        left += took
    axis.barh("six plain, to the same loss", found["sums"]["plain"], color="grey")
    axis.barh("six plain, converged", found["sums"]["plain converged"], color="lightgrey")
    axis.set_xlabel("seconds")
    figure.legend(
        *axis.get_legend_handles_labels(), loc="outside lower center", frameon=False, fontsize="small", ncols=3
    )
    axis.invert_yaxis()
    figure.savefig(path, dpi=120)


def plain_values(value: Any) -> Any:
    """For JSON."""
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return {key: plain_values(item) for key, item in value.items()} if isinstance(value, dict) else value


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", required=True)
    parser.add_argument("--out", type=Path, default=Path("bench-out/speed"))
    parser.add_argument("--part", nargs="+", default=["kernels", "learn", "predict", "start", "bytes"])
    parser.add_argument("--grown", type=Path, default=Path("bench-out/growth/store"))
    parser.add_argument("--turns", type=int, default=15)
    options = parser.parse_args()
    out, result = options.out, {}
    out.mkdir(parents=True, exist_ok=True)
    data, store = out / "tasks", out / "six"
    if not data.exists():
        flags = [flag for pair in PAIRS for flag in ("--classes", pair)]
        clmoe("tasks", "mnist", str(data), "--root", options.root, *flags, store=store)
    mixed = read_batch(str(data / "mixed.test.npz"), labels="optional")
    result["threads"], result["product, operations a second"] = torch.get_num_threads(), product_rate()
    if "kernels" in options.part:
        result |= {
            "scores": scores(options.turns),
            "step": step(options.turns),
            "step, half frozen": step(options.turns, 0.5),
        }
    if "learn" in options.part:
        if store.exists():
            raise SystemExit(f"{store} exists: remove it first")
        result["learn"] = six(data, store)
        draw(result["learn"], out / "learn.png")
    if "predict" in options.part:
        result["predict"] = predicting(store, mixed, options.grown, options.turns)
    if "start" in options.part:
        one = out / "one.npz"
        np.savez(one, x=mixed.images[:1])
        result["start"] = starting(store, one, options.turns)
    if "bytes" in options.part:
        result["bytes"] = on_disk(store)
    rows = [
        [part, name, str(value)]
        for part, values in result.items()
        if isinstance(values, dict)
        for name, value in values.items()
        if isinstance(value, Ratio)
    ]
    if "learn" in result:
        rows += [["learn", key, f"{result['learn'][key]:.2f}"] for key in result["learn"] if key.startswith("ratio")]
    write(out, "speed", plain_values(result), table(("", "ratio", "median (quartiles)"), rows))


if __name__ == "__main__":
    main()
