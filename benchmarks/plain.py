"""One dense network in plain PyTorch, as one would train it without clmoe: what a ``learn`` is compared with.

    python benchmarks/plain.py TASK.npz --until HELD_OUT_LOSS

784-500-500-C with dropout, Adam, batches of 128, 5 % held out (or the images that ``--rows`` names); the learning rate
falls as in ``learn``. Ends once the held-out loss is reached, at the latest when the learning rate has fallen as often
as there. Prints JSON.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

WIDTHS = (500, 500)
BATCH, RATE, FALL, FALLS, PATIENCE, LEAST = 128, 1e-3, 0.2, 2, 2, 5e-4
"""As in clmoe_cli.method.subnetwork.training.Schedule, which is not imported: this is a program of its own."""


def network(size: int, classes: int) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Dropout(0.2)]
    for width in WIDTHS:
        layers += [nn.Linear(size, width), nn.ReLU(), nn.Dropout(0.3)]
        size = width
    return nn.Sequential(*layers, nn.Linear(size, classes))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("data")
    parser.add_argument("--until", type=float, default=0.0)
    parser.add_argument("--rows", help="an .npz with the positions of images: training and held")
    parser.add_argument("--epochs", type=int, default=40)
    options = parser.parse_args()
    with np.load(options.data) as file:
        labels, y = np.unique(file["y"], return_inverse=True)
        x = torch.from_numpy(file["x"].reshape(len(y), -1).astype(np.float32) / 255)
    rng = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    order, target = torch.randperm(len(x), generator=rng), torch.from_numpy(y)
    held, training = order[: len(order) // 20], order[len(order) // 20 :]
    if options.rows:
        with np.load(options.rows) as file:
            held, training = torch.from_numpy(file["held"]), torch.from_numpy(file["training"])
    net = network(x.shape[1], len(labels))
    best, mark, rate, bad, falls, epoch = float("inf"), float("inf"), RATE, 0, 0, 0
    kept = {name: value.clone() for name, value in net.state_dict().items()}
    step = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    for epoch in range(1, options.epochs + 1):
        net.train()
        for index in training[torch.randperm(len(training), generator=rng)].split(BATCH):
            step.zero_grad()
            F.cross_entropy(net(x[index]), target[index]).backward()
            step.step()
        net.eval()
        with torch.inference_mode():
            loss = float(F.cross_entropy(net(x[held]), target[held]))
        print(f"epoch {epoch}: held-out {loss:.5f}", file=sys.stderr, flush=True)
        if loss < best:
            best, kept = loss, {name: value.clone() for name, value in net.state_dict().items()}
        mark, bad = (loss, 0) if loss < mark - LEAST else (mark, bad + 1)
        if best <= options.until or (bad > PATIENCE and falls == FALLS):
            break
        if bad > PATIENCE:
            falls, bad, rate = falls + 1, 0, rate * FALL
            net.load_state_dict(kept)
            step = torch.optim.Adam(net.parameters(), lr=rate, fused=True)
    print(json.dumps({"held_out_loss": best, "reached": best <= options.until, "epochs": epoch}))


if __name__ == "__main__":
    main()
