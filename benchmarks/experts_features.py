"""Learned features beside the gate's fixed ones: what the first task's images add to telling all tasks apart.

    python benchmarks/experts_features.py --photos PHOTOS --mnist MNIST --only cifar100 --eyes none patches turns

An eye is made from the images of the first task alone and then never changes; its features are
appended to the fixed ones, and every task has its statistics in that joint space. A fifth of the training images is
held out and asked, each by itself, without a task id; ``--test`` learns from all of them and asks the test images, for
final figures only. Gate, statistics and what they choose are the project's own.

``patches``: what ``learn --eyes first`` makes; no label is used. ``net``: a small residual network trained on the first
task's classes; ``turns``: the same with the images in four turns as classes of
their own (Tack et al., CSI, 2020; Kim et al., CLOM, 2022). Their features are averages of two layers.

``adapted``: what ``learn --eyes subnetwork --arch lite0`` makes of pictures of ``--image-size`` pixels; ``pretrained``:
the same network before it has learned, so that the difference is what the first task adds.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import EVERY, Data, Places
from scratch import resized
from torch import Tensor, nn

from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.starting import Start
from clmoe_cli.data import Batch
from clmoe_cli.method import learn_task, privacy
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.routing import gaussians
from clmoe_cli.method.routing.eye import SCALE
from clmoe_cli.method.routing.features import features, new_eye
from clmoe_cli.method.routing.network_eye import EARLY, LAST, NetworkEye
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule

EYES = ("none", "patches", "net", "turns", "patches+turns", "pretrained", "adapted")
NAMES = {"cifar10": "cifar10", "cifar100": "cifar100", "gtsrb": "gtsrb", "mnist": "split-mnist"}
WINDOWS = 2
"""Windows along each side over which maps are averaged."""
WIDTH = 24
"""Maps of the network's first layer; the last has four times as many."""
BATCH = 64
RATE = 0.15
ASKED = 200
"""Images that an eye looks at together."""

OWN = {"pretrained": math.hypot(EARLY, LAST), "adapted": math.hypot(EARLY, LAST)}
"""Lengths of eyes that are not ``SCALE``."""

Look = Callable[[Tensor], Tensor]
"""Features [N, d] of images [N, C, H, W]."""


@dataclass(frozen=True)
class Case:
    """Images [N, C, H, W] from 0 to 1 with class ``y`` [N]; ``held`` [N]: those that are asked and not learned;
    ``tasks``: the classes of each."""

    x: Tensor
    y: Tensor
    held: Tensor
    tasks: tuple[tuple[int, ...], ...]

    @staticmethod
    def of(data: Data, most: int, test: bool) -> Case:
        learned = data.train if test or not most else (data.train[0][:most], data.train[1][:most])
        parts = [learned, data.test] if test else [learned]
        labels = np.concatenate([part[1] for part in parts])
        names, codes = np.unique(labels, return_inverse=True)
        y, x = torch.from_numpy(codes), torch.from_numpy(np.concatenate([part[0] for part in parts]))
        held = torch.arange(len(y)) >= len(learned[1]) if test else gaussians.folds(y, count=5) == 0
        at = {name: code for code, name in enumerate(names.tolist())}
        tasks = tuple(tuple(at[name] for name in task) for task in data.tasks)
        return Case(x.float() / 255, y, held, tasks)

    def first(self) -> tuple[Tensor, Tensor]:
        """What the first task learns from: images, and their classes among its own."""
        own = torch.isin(self.y, torch.tensor(self.tasks[0])) & ~self.held
        return self.x[own], torch.searchsorted(torch.tensor(self.tasks[0]), self.y[own])


def statistics(case: Case, values: Tensor) -> list[gaussians.Gaussians]:
    """The gate's statistics of each task, from features [N, d]."""
    found = []
    for classes in case.tasks:
        own = torch.isin(case.y, torch.tensor(classes)) & ~case.held
        seen, y = values[own], torch.searchsorted(torch.tensor(classes), case.y[own])
        noise = privacy.noise(seen, y, len(classes), privacy.drawing(seen))
        found.append(gaussians.fit(seen, y, len(classes), True, noise))
    return found


def measured(case: Case, values: Tensor) -> dict[str, Any]:
    """Share of the held-out images [N, d] that the gate answers right, and what it has chosen."""
    started = time.perf_counter()
    fits = statistics(case, values)
    gate = gaussians.GaussianGate.of(gaussians.solve(fits), [len(task) for task in case.tasks])
    compared = gate.compare(values[case.held], lambda task: fits[task])
    classes = torch.tensor([c for task in case.tasks for c in task])
    answers = classes[compared.chosen.gather(1, compared.likely.argmax(dim=1, keepdim=True))[:, 0]]
    right = float((answers == case.y[case.held]).double().mean())
    seconds = time.perf_counter() - started
    return {"right": right, "asked": int(case.held.sum()), "d": values.shape[1], "seconds": seconds}


def patches(x: Tensor, seed: int) -> Look:
    """The eye of ``learn --eyes first``, of unit length, from images [N, C, H, W]."""
    eye = new_eye(x.flatten(1), x.shape[1:], torch.Generator().manual_seed(seed))
    return lambda images: (eye.look(images) / SCALE).float()


def subnetwork(x: Tensor, y: Tensor, options: argparse.Namespace, learned: bool) -> Look:
    """The eye of ``learn --eyes subnetwork --arch lite0``, of unit length, from images [N, C, H, W] with class y [N].

    Not ``learned``: as the task begins.
    """
    side, arch = options.image_size, "lite0"
    large = _enlarged(x, side)
    shape = tuple(large.shape[1:])
    start = Start.of(LearnOptions(arch=arch), Batch(large[:1].numpy(), np.zeros(1, dtype=int), ""))
    assert start.params is not None
    net = parse_arch(arch, shape, {name: start.params[name] for name in parse_arch(arch, shape).shared_shapes()})
    params = net.initial_shared(torch.Generator()) | start.params
    params |= {name: torch.zeros(size) for name, size in net.shared_shapes().items()}
    if learned:
        how = learn_task.Options(Schedule(epochs=options.adapting), Tolerance(floor=options.floor))
        zeros = {name: params[name] for name in net.shared_shapes()}
        none = masks.zeros_like(zeros)
        task = learn_task.Identity("first", "e1", int(y.max()) + 1)
        rng = torch.Generator().manual_seed(options.seed)
        setting = learn_task.Setting(how, rng, start=start.beside(net), input_shape=shape)
        data = Labelled(large.flatten(1), y)
        params = learn_task.learn_task(task, net, learn_task.Shared(zeros, none, none), data, setting).subnetwork.params
    eye = NetworkEye.of(arch, net, params)
    return lambda images: (eye.look(_enlarged(images, side)) / OWN["adapted"]).float()


def _enlarged(x: Tensor, side: int) -> Tensor:
    return torch.from_numpy(resized(((x * 255).round().byte().numpy(), None), side)[0]).float() / 255


def _layer(before: int, after: int, stride: int = 1) -> nn.Module:
    parts = nn.Conv2d(before, after, 3, stride, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()
    return nn.Sequential(*parts)


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = x + self.inner(x)
        return found


class _Network(nn.Module):
    """About 0.26 million weights: maps of the size of the image, of half and of a quarter of it."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        w = WIDTH
        self.early = nn.Sequential(_layer(channels, w), _layer(w, 2 * w, 2), _Residual(2 * w))
        self.late = nn.Sequential(_layer(2 * w, 4 * w, 2), _Residual(4 * w))
        self.head = nn.Linear(4 * w, classes)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.late(self.early(x)).mean(dim=(2, 3)))
        return found


def trained(x: Tensor, y: Tensor, epochs: int, turns: bool, mirrored: bool, seed: int) -> Look:
    """An eye that is a network trained on images [N, C, H, W] with class y [N]."""
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    mean, deviation = x.mean(dim=(0, 2, 3), keepdim=True), x.std(dim=(0, 2, 3), keepdim=True) + 1e-3
    ways = 4 if turns else 1
    net = _Network(x.shape[1], ways * (int(y.max()) + 1)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = epochs * (len(x) // BATCH)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps + 1, pct_start=0.2)
    for _ in range(epochs):
        for rows in torch.randperm(len(x), generator=rng)[: len(x) // BATCH * BATCH].split(BATCH):
            images = (_shifted(x[rows], mirrored, rng) - mean) / deviation
            images = torch.cat([images.rot90(way, (2, 3)) for way in range(ways)])
            target = torch.cat([ways * y[rows] + way for way in range(ways)])
            loss = F.cross_entropy(net(images.to(memory_format=torch.channels_last)), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            rate.step()
    net.eval()

    def look(images: Tensor) -> Tensor:
        early = net.early(((images - mean) / deviation).to(memory_format=torch.channels_last))
        layers = early, net.late(early)
        pooled = [F.adaptive_avg_pool2d(layer, WINDOWS).flatten(1).clamp_min(0).sqrt() for layer in reversed(layers)]
        return torch.cat([F.normalize(part) for part in pooled], dim=1)

    return look


def _shifted(x: Tensor, mirrored: bool, rng: torch.Generator) -> Tensor:
    if mirrored:
        x = x.flip(3).where((torch.rand(len(x), generator=rng) < 0.5)[:, None, None, None], x)
    down, right = torch.randint(9, (2,), generator=rng).tolist()
    return F.pad(x, (4, 4, 4, 4))[:, :, down : down + x.shape[2], right : right + x.shape[3]]


def looked(eye: Look, x: Tensor) -> Tensor:
    """Features [N, d] of images, some at a time."""
    with torch.inference_mode():
        return torch.cat([eye(part) for part in x.split(ASKED)])


def run(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Every eye on one data set."""
    case = Case.of(EVERY[NAMES[name]](Places(options.photos, options.mnist, Path())), options.most, options.test)
    fixed = features(case.x.flatten(1), tuple(case.x.shape[1:]))
    x, y = case.first()
    mirrored = name.startswith("cifar")
    makers: dict[str, Callable[[], Look]] = {
        "patches": lambda: patches(x, options.seed),
        "net": lambda: trained(x, y, options.epochs, False, mirrored, options.seed),
        "turns": lambda: trained(x, y, options.epochs, True, mirrored, options.seed),
        "pretrained": lambda: subnetwork(x, y, options, False),
        "adapted": lambda: subnetwork(x, y, options, True),
    }
    seen: dict[str, Tensor] = {}
    found: dict[str, Any] = {}
    for eye in options.eyes:
        started = time.perf_counter()
        parts = [part for part in eye.split("+") if part != "none"]
        for part in parts:
            if part not in seen:
                seen[part] = looked(makers[part](), case.x)
        made = time.perf_counter() - started
        scales = (options.scales or [OWN.get(eye, SCALE)]) if parts else [1.0]
        for scale in scales:
            values = torch.cat([fixed, *(scale * seen[part] for part in parts)], dim=1)
            found[f"{eye} {scale:g}"] = measured(case, values) | {"eye_seconds": made}
            print(name, eye, f"{scale:g}", found[f"{eye} {scale:g}"], flush=True)
    return found


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-out/experts_features"))
    parser.add_argument("--only", nargs="+", choices=list(NAMES), default=list(NAMES))
    parser.add_argument("--eyes", nargs="+", choices=EYES, default=list(EYES))
    parser.add_argument("--scales", nargs="+", type=float, help="lengths of the eye's part [default: the eye's own]")
    parser.add_argument("--image-size", type=int, default=96, help="of lite0's pictures")
    parser.add_argument("--adapting", type=int, default=Schedule().epochs, help="epochs of a phase of lite0, at most")
    parser.add_argument("--floor", type=float, default=Tolerance().floor, help="density at which pruning lite0 ends")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--most", type=int, default=0, help="training images; 0 for all")
    parser.add_argument("--test", action="store_true", help="learn from all training images, ask the test images")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.only:
        found = run(name, options)
        path = options.out / f"{name}-{options.seed}{'-test' if options.test else ''}.json"
        before = json.loads(path.read_text()) if path.exists() else {}
        path.write_text(json.dumps(before | found, indent=1))


if __name__ == "__main__":
    main()
