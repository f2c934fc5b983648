"""Photographs from their pixels, by a network that knows nothing yet: task given and no id, beside joint training.

    python benchmarks/scratch.py --photos PHOTOS --data cifar10 --tasks 5 --out bench-out/scratch

Columns, each a run of its own whose figures go to ``COLUMN.json``: *joint* trains the same network, with the same
epochs, schedule and augmentation, on all classes at once; *store* learns the tasks one after another in one expert. A
column that is there is not run again, and a store that was interrupted goes on with the task that it was at. The table
has accuracy among a task's classes (task given) and among all classes (no id), what a task takes of the shared weights,
and the share of each layer that is frozen at the end.

Test images serve for the figures; ``--held-out`` answers a sixth of the training images instead, which are then left
out, for choosing. ``--arch lite0 --image-size 96`` are subnetworks of a pretrained network.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Data, Places, few, pictures
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.starting import Start
from clmoe_cli.data import Batch
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.learn_task import Options, Setting, Split
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.training import Epoch, Schedule, train
from clmoe_cli.runtime.choices import EYES
from store_schema import StoreMissing

SIXTH = 6
TUNING = 20
"""One image in so many decides nothing here, but is left out of joint training as ``learn`` leaves it out."""


def prepared(options: argparse.Namespace, scratch: Path) -> Data:
    """The data set; its test images are a part of the training images where those are held out."""
    data = pictures(options.data, options.tasks, options.images)(Places(options.photos, None, scratch, options.seed))
    if options.held_out:
        x, y = data.train
        kept = few((np.arange(len(y)), y), len(y) - len(y) // SIXTH, options.seed)[0]
        asked = np.setdiff1d(np.arange(len(y)), kept)
        data = replace(data, train=(x[kept], y[kept]), test=(x[asked], y[asked]))
    return replace(data, train=resized(data.train, options.image_size), test=resized(data.test, options.image_size))


def resized(part: tuple[Any, Any], side: int | None) -> tuple[Any, Any]:
    """Pictures of that side, by bilinear weights."""
    x, y = part
    if side is None or x.shape[2:] == (side, side):
        return part
    found = [
        F.interpolate(torch.from_numpy(some).float(), size=(side, side), mode="bilinear", antialias=True)
        .round()
        .clamp(0, 255)
        .byte()
        .numpy()
        for some in np.array_split(x, max(1, len(x) // 500))
    ]
    return np.concatenate(found), y


def told(epoch: Epoch) -> None:
    print(
        f"{epoch.phase} {epoch.epoch}/{epoch.epochs}: loss {epoch.loss:.3f}, held out {epoch.held_out.loss:.3f},"
        f" {100 * epoch.held_out.accuracy:.1f} %",
        file=sys.stderr,
        flush=True,
    )


def chosen(options: argparse.Namespace, epochs: int) -> LearnOptions:
    schedule = Schedule(epochs=epochs)
    return LearnOptions(
        arch=options.arch, seed=options.seed, eyes=options.eyes, method=Options(schedule, augment=options.augment)
    )


def joint(data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """One network on all classes; task given: the likeliest of the task's own."""
    names = [label for task in data.tasks for label in task]
    place = {label: number for number, label in enumerate(names)}

    def labelled(part: tuple[Any, Any]) -> Labelled:
        x = torch.from_numpy(part[0]).flatten(1).float() / 255
        return Labelled(x, torch.tensor([place[label] for label in part[1].tolist()]))

    rng = torch.Generator().manual_seed(options.seed)
    everything, asked = labelled(data.train), labelled(data.test)
    order = torch.randperm(len(everything), generator=rng)
    few_, rest = order[: len(order) // TUNING], order[len(order) // TUNING :]
    learned = chosen(options, options.joint_epochs or options.epochs)
    net = parse_arch(options.arch, data.train[0].shape[1:])
    start = Start.of(learned, Batch(data.train[0][:1], data.train[1][:1], ""))
    setting = Setting(learned.method, rng, told, start=start.params, input_shape=data.train[0].shape[1:])
    parts = Split(everything.take(rest), everything.take(few_), everything.take(order[:0]), order[:0])
    params = setting.begun(net.initial_shared(rng)) | setting.begun(net.initial_owned(len(names), rng))
    free = masks.ones_like({name: params[name] for name in net.shared_shapes()})
    found, _ = train(setting.run(net, parts), net.ordered(params), free)
    out = logits(net, found, asked.x)
    return {"no_id": float((out.argmax(1) == asked.y).double().mean()), **given(out, asked.y, data)}


def given(out: Tensor, y: Tensor, data: Data) -> dict[str, Any]:
    """Accuracy among each task's own classes, and over all images."""
    right, shares, first = 0, [], 0
    for task in data.tasks:
        own = (y >= first) & (y < first + len(task))
        hits = out[own][:, first : first + len(task)].argmax(1) + first == y[own]
        shares.append(float(hits.double().mean()))
        right, first = right + int(hits.sum()), first + len(task)
    return {"given": right / len(y), "by_task": shares}


def store(data: Data, options: argparse.Namespace) -> dict[str, Any]:
    """The tasks one after another, all in one expert."""
    where, how, seconds = str(options.out / "store"), chosen(options, options.epochs), []
    try:
        known = len(inspect(where).tasks)
    except StoreMissing:
        known = 0
    for number in range(known, len(data.tasks)):
        started, home = time.monotonic(), "e1" if number else None
        report = learn(where, data.learned(number, options.seed), replace(how, expert=home), on_epoch=told)
        seconds.append(time.monotonic() - started)
        print(f"task {number + 1}: {report.accuracy}", file=sys.stderr, flush=True)
    right, shares, images = 0, [], 0
    tasks = inspect(where).tasks
    for number, task in enumerate(tasks):
        asked = data.asked(number)
        share = predict(where, asked, task=task.name).accuracy
        assert share is not None
        alone = predict(where, asked, task=task.name, router="loss").accuracy
        shares.append((share, alone))
        right, images = right + share * len(asked.images), images + len(asked.images)
    report = predict(where, data.asked())
    (expert,) = inspect(where).experts
    weights = sum(layer.parameters for layer in expert.layers)
    return {
        "no_id": report.accuracy,
        "given": right / images,
        "by_task": [share for share, _ in shares],
        "subnetwork": [alone for _, alone in shares],
        "taken": [sum(x.selected - x.reused for x in task.layers) / weights for task in tasks],
        "owned": tasks[0].owned_parameters,
        "frozen": {layer.name: layer.frozen_percent for layer in expert.layers},
        "seconds": seconds,
    }


def table(found: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """What the columns have, as text."""
    how = f"--arch {options.arch}, {options.epochs} epochs a phase ({options.joint_epochs or options.epochs} of joint)"
    lines = [f"{options.data}, {options.tasks} tasks, {how}", ""]
    lines += ["| | task given | no id | by task |", "| --- | --- | --- | --- |"]
    for column, row in found.items():
        by_task = ", ".join(f"{100 * share:.1f}" for share in row["by_task"])
        lines.append(f"| {column} | {100 * row['given']:.1f} | {100 * row['no_id']:.1f} | {by_task} |")
    if "store" in found:
        row = found["store"]
        lines += ["", "subnetworks alone: " + ", ".join(f"{100 * share:.1f}" for share in row["subnetwork"])]
        lines += ["taken by a task, %: " + ", ".join(f"{100 * share:.2f}" for share in row["taken"])]
        lines += ["frozen, %: " + ", ".join(f"{name} {share:.1f}" for name, share in row["frozen"].items())]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path, required=True)
    parser.add_argument("--data", choices=("cifar10", "cifar100", "gtsrb"), default="cifar10")
    parser.add_argument("--tasks", type=int, default=5)
    parser.add_argument("--images", type=int, default=0, help="training images, 0 for all")
    parser.add_argument("--arch", default="resnet9")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--augment", choices=("none", "light", "strong"))
    parser.add_argument("--eyes", choices=EYES, help="of the gate")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--joint-epochs", type=int, help="epochs of joint training [default: --epochs]")
    parser.add_argument("--columns", nargs="+", choices=("joint", "store"), default=("joint", "store"))
    parser.add_argument("--held-out", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("bench-out/scratch"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for column in options.columns:
            path = options.out / f"{column}.json"
            if not path.exists():
                started = time.monotonic()
                row = {"joint": joint, "store": store}[column](prepared(options, Path(scratch)), options)
                row["wall_seconds"] = time.monotonic() - started
                path.write_text(json.dumps(row, indent=1))
            found[column] = json.loads(path.read_text())
    text = table(found, options)
    (options.out / "scratch.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
