"""Joint training, to compare with: the same convolutional network on all classes at once, as plain PyTorch.

    python benchmarks/joint.py --train FOLDER --test FOLDER [--arch cnn:32,64,128] [--side 32]

Optimizer, held-out share, dropout and falls of the learning rate are those of ``clmoe_cli.method.subnetwork.training``;
then, as a subnetwork's consolidation is, it is trained on along a falling cosine.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.datasets import ImageFolder

from clmoe_cli.method.networks import modules
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import BATCHES, Schedule

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Images:
    """``x`` uint8 [N, C, H, W], ``y`` classes [N] int64."""

    x: Tensor
    y: Tensor

    def take(self, index: Tensor) -> Images:
        return Images(self.x[index], self.y[index])

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        for index in order.split(size):
            yield (self.x[index].float() / 255).to(memory_format=torch.channels_last), self.y[index]


def network(arch: str, shape: Sequence[int], classes: int, drop: tuple[float, float]) -> nn.Module:
    """``mlp:100,100``, or the project's own network of that name, for images [C, H, W]; dropout as while learning.

    Of networks with batch normalisation only what the classifier reads: what is dropped before a normalisation
    shifts its statistics between training and use (Li et al. 2019). With input dropout of 0.2 ``cnn:32,64,128`` had a
    held-out loss of 1.9 nats after 12 epochs on a harder draft of the colour pictures, without it 0.8.
    """
    kind, _, text = arch.partition(":")
    if kind != "mlp":
        net = modules.build(arch, (shape[0], shape[1], shape[2]), classes)
        net, output = net.to_empty(device="cpu"), modules.head_of(net)
        for layer, module in modules.layers_of(net).items():
            if isinstance(module, nn.BatchNorm2d):
                module.reset_parameters()
                continue
            assert isinstance(module.weight, Tensor)
            bound = math.sqrt((1.0 if layer == output else 6.0) / module.weight[0].numel())
            nn.init.uniform_(module.weight, -bound, bound)
            if isinstance(module.bias, Tensor):
                nn.init.zeros_(module.bias)
        parent, _, name = output.rpartition(".")
        head = net.get_submodule(parent)
        setattr(head, name, nn.Sequential(nn.Dropout(drop[1]), head.get_submodule(name)))
        return net.to(memory_format=torch.channels_last)
    size = int(np.prod(shape))
    layers: list[nn.Module] = [nn.Dropout(drop[0]), nn.Flatten()]
    for width in (int(width) for width in text.split(",")):
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(drop[1])]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes))


def answers(net: nn.Module, data: Images) -> Tensor:
    """Logits [N, C]."""
    net.eval()
    with torch.inference_mode():
        return torch.cat([net(x) for x, _ in data.batches(torch.arange(len(data.y)), 500)])


def _epoch(net: nn.Module, data: Images, step: torch.optim.Optimizer, size: int, rng: torch.Generator) -> None:
    net.train()
    passes = max(1, math.ceil(BATCHES * min(size, len(data.y)) / len(data.y)))
    order = torch.cat([torch.randperm(len(data.y), generator=rng) for _ in range(passes)])
    for x, y in data.batches(order, size):
        # A last batch of one image has no statistics.
        if len(y) > 1:
            loss = nn.functional.cross_entropy(net(x), y)
            step.zero_grad()
            loss.backward()
            step.step()


def joint(train: Images, test: Images, arch: str, seed: int, schedule: Schedule | None = None) -> dict[str, Any]:
    """Test accuracy: ``converged`` and ``annealed``; the annealed network's logits, ``outputs`` [N, C]; ``seconds``."""
    schedule, tolerance, started = schedule or Schedule(), Tolerance(), time.monotonic()
    # Fresh weights and dropout draw from the global generator.
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    net = network(arch, train.x.shape[1:], int(train.y.max()) + 1, schedule.dropout)
    order = torch.randperm(len(train.y), generator=rng)
    held, training = train.take(order[: len(order) // 20]), train.take(order[len(order) // 20 :])
    mark, lr, bad, falls = float("inf"), schedule.lr, 0, 0
    best, reached = {k: v.clone() for k, v in net.state_dict().items()}, float("inf")
    step = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    for epoch in range(schedule.epochs):
        _epoch(net, training, step, schedule.batch_size, rng)
        loss = float(nn.functional.cross_entropy(answers(net, held), held.y))
        if loss < reached:
            reached, best = loss, {k: v.clone() for k, v in net.state_dict().items()}
        mark, bad = (loss, 0) if loss < mark - schedule.min_delta else (mark, bad + 1)
        print(f"joint epoch {epoch + 1}: held-out loss {loss:.4f}", file=sys.stderr, flush=True)
        if bad > schedule.patience:
            if falls == schedule.decays:
                break
            falls, bad, lr = falls + 1, 0, lr * schedule.decay
            net.load_state_dict(best)
            step = torch.optim.Adam(net.parameters(), lr=lr, fused=True)
    net.load_state_dict(best)
    converged = float((answers(net, test).argmax(1) == test.y).double().mean())
    epochs = min(tolerance.final_epochs, schedule.epochs)
    step = torch.optim.Adam(net.parameters(), lr=schedule.lr, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(step, epochs)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = schedule.annealing_dropout[0]
    for _ in range(epochs):
        _epoch(net, training, step, schedule.batch_size, rng)
        rate.step()
    outputs = answers(net, test)
    annealed = float((outputs.argmax(1) == test.y).double().mean())
    seconds = time.monotonic() - started
    return {"converged": converged, "annealed": annealed, "outputs": outputs, "seconds": seconds}


def reference(
    train: Images, test: Images, tasks: Sequence[Sequence[int]], arch: str, seed: int, epochs: int
) -> dict[str, Any]:
    """Joint training: accuracy over all classes after annealing, the same by task, and among a task's classes."""
    found = joint(train, test, arch, seed, Schedule(epochs=epochs))
    outputs = found.pop("outputs")
    right = outputs.argmax(1) == test.y
    by_task, given = [], []
    for classes in tasks:
        own = torch.tensor(classes)
        here = torch.isin(test.y, own)
        by_task.append(float(right[here].double().mean()))
        given.append(float((own[outputs[here][:, own].argmax(1)] == test.y[here]).double().mean()))
    return {**found, "accuracy": found["annealed"], "by_task": by_task, "given": given}


def load(folders: Sequence[Path], names: Sequence[str], side: int | None = None) -> Images:
    """Pictures of ``ImageFolder`` trees, with the classes numbered as in ``names``."""
    found: list[tuple[Array, int]] = []
    for folder in folders:
        tree = ImageFolder(str(folder))
        for path, index in tree.samples:
            with Image.open(path) as opened:
                picture = opened.convert("RGB")
            if side and picture.size != (side, side):
                picture = picture.resize((side, side), Image.Resampling.BILINEAR)
            found.append((np.asarray(picture), names.index(tree.classes[index])))
    x = torch.from_numpy(np.stack([image for image, _ in found])).permute(0, 3, 1, 2).contiguous()
    return Images(x, torch.tensor([label for _, label in found]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--test", type=Path, nargs="+", required=True)
    parser.add_argument("--arch", default="cnn:32,64,128")
    parser.add_argument("--side", type=int)
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    names = sorted({entry.name for folder in options.train for entry in folder.iterdir() if entry.is_dir()})
    train, test = (load(folders, names, options.side) for folders in (options.train, options.test))
    found = joint(train, test, options.arch, options.seed, Schedule(epochs=options.epochs))
    table = torch.zeros(len(names), len(names), dtype=torch.long)
    table.index_put_((test.y, found.pop("outputs").argmax(1)), torch.tensor(1), accumulate=True)
    print(json.dumps({**found, "classes": names, "confusion": table.tolist()}))


if __name__ == "__main__":
    main()
