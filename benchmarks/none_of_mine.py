"""Whether an expert that may say "none of mine" helps to find an image's task; on held-out training images alone.

    python benchmarks/none_of_mine.py --photos PHOTOS --out bench-out/none-of-mine [--only cifar100 flowers]

Photographs through the frozen backbone ``lite0``. A seeded fifth of the training pictures of each class is held out and
asked, every image by itself and without a task id; the other four fifths are learned, task after task. Test files are
never read. Sets of few pictures are asked in five turns, so that each picture is held out once.

Each task trains a dense perceptron on its own features with one answer more, "none of mine", for features drawn from
the Gaussians of tasks that are known already: a class's mean, the shared covariance and the class's own directions, as
the gate stores them. No image is kept. The perceptron's word is added to the gate's log-posteriors of the task's
classes, times a weight that the *other* data sets choose. Columns of the table:

- gate: the Gaussians alone;
- fused: within a task, a perceptron without the extra answer is mixed in, by a weight that the task's images earn;
- earlier: fused, and weight × log(1 − p(none of mine)) of each task against those before it; the first has none before;
- chain: fused, and weight × the task's log-probability when the last task is asked first and, if it says none of mine,
  the one before it, and so on to the first: earlier tasks have no advantage;
- level: the same, but the perceptron's own classes are drawn from their Gaussians as well. Else it learns to tell
  images from draws, and calls every image its own;
- every: fused, and weight × log(1 − p(none of mine)) of perceptrons that know all the other tasks' Gaussians, later
  ones too. It is no method, since experts would have to be trained again with every new task and every pruned one,
  but it bounds what the others could gain.

Beside each gain over fused stands the standard error of the paired difference. The columns "best" have the weight that
is best on the same images, an upper bound.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Absent, Places, groups, packed
from torch import Tensor, nn

from clmoe_cli.api.measuring import opinion_weight
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import read_batch
from clmoe_cli.method.routing import decide, gaussians
from clmoe_cli.method.routing.gaussians import Covariance, GaussianGate, Gaussians
from clmoe_cli.method.routing.standalone import closed_form

TASKS = {"cifar100": 10, "cifar10": 5, "gtsrb": 8, "flowers": 2}
FOLDS = 5
FEW = 1000
"""Fewer images than so many are asked in ``FOLDS`` turns."""
HIDDEN = 500
EPOCHS = 12
BATCH = 128
WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.5, 2.0)
WORDS = ("earlier", "chain", "level", "every")


def training(name: str, places: Places, kept: Path) -> tuple[Tensor, Tensor]:
    """Features [N, d], square roots as the gate takes them, and classes [N] of the training pictures of a data set.

    ``kept``: a file that has them from the last time, or gains them.
    """
    if not kept.exists():
        backbone = BackboneSession("lite0", experts="mlp:500,500")
        record = backbone.record(None, None)
        source: Path = places.photo("flowers") / "train" if name == "flowers" else places.scratch / f"{name}.npz"
        if name != "flowers":
            x, y = packed(places.photo(f"{name}.train.packed.npz"))
            np.savez(source, x=x, y=y)
        batch = read_batch(source, labels="required", input=record, extractor=backbone)
        assert batch.labels is not None
        np.savez(kept, x=np.asarray(batch.images), y=np.unique(batch.labels, return_inverse=True)[1])
        if name != "flowers":
            source.unlink()
    with np.load(kept) as file:
        return torch.from_numpy(file["x"].astype(np.float32)).sqrt(), torch.from_numpy(file["y"])


def held_out(y: Tensor, seed: int, turn: int) -> Tensor:
    """A fifth of the images of each class y [N], [N] bool; the turns from 0 to 4 have all of them."""
    held = torch.zeros(len(y), dtype=torch.bool)
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(y)))
    for c in range(int(y.max()) + 1):
        held[order[y[order] == c][turn::FOLDS]] = True
    return held


def statistics(x: Tensor, y: Tensor, classes: int) -> Gaussians:
    """What the gate stores of a task with features [n, d] and classes y [n] from 0 on; all of 8 images or more."""
    return gaussians.fit(x, y, classes, False, torch.zeros(()))


def solved(tasks: Sequence[Gaussians]) -> GaussianGate:
    """The gate of these tasks."""
    return GaussianGate.of(gaussians.solve(tasks), [len(task.means) for task in tasks])


def asked(gate: GaussianGate, tasks: Sequence[Gaussians], x: Tensor) -> Tensor:
    """Log-posteriors [N, S] float64 of all classes for features [N, d]."""
    found = []
    for position, task in enumerate(tasks):
        matrix, offset = closed_form(gate, position, task)
        values = ((x - gate.solved.centre) @ matrix.float()).double() + offset
        scores, classes = values[:, : len(task.means)], len(task.means)
        if values.shape[1] > classes:
            scores = scores + values[:, classes:].unflatten(1, (classes, -1)).square().sum(dim=2)
        found.append(scores)
    return torch.cat(found, dim=1).log_softmax(dim=1)


@dataclass(frozen=True)
class Drawn:
    """Draws features from the Gaussians of known tasks with S classes.

    ``means`` [S, d]; ``own`` [S, d, K]: a class's own directions times their deviations; ``wide`` [d, m] and ``rest``
    [d]: those of the covariance that all classes share, and deviations of what it leaves; ``alpha``: the own part.
    """

    means: Tensor
    own: Tensor
    wide: Tensor
    rest: Tensor
    alpha: float

    @staticmethod
    def of(tasks: Sequence[Gaussians]) -> Drawn:
        """With α and the ridge as the gate of these tasks chooses them."""
        choice = gaussians.choose(torch.stack([task.tallies for task in tasks]).sum(dim=0))
        shared = Covariance.summed([task.covariance() for task in tasks])
        wide, rest = shared.wide, shared.rest
        if wide.shape[1] > len(wide):
            values, vectors = torch.linalg.eigh(wide @ wide.T)
            wide = vectors * values.clamp_min(0).sqrt()
        kappa = gaussians.KAPPAS[choice.ridge % len(gaussians.KAPPAS)]
        diagonal = wide.square().sum(dim=1) + rest
        rest = rest + kappa * len(rest) / shared.images * diagonal.mean()
        widest = max(task.directions.shape[2] for task in tasks)
        one = torch.ones(len(rest))
        own = [gaussians.own_directions(task, one).float() for task in tasks]
        return Drawn(
            torch.cat([task.means for task in tasks]),
            torch.cat([F.pad(part, (0, widest - part.shape[2])) for part in own]),
            wide.float(),
            rest.sqrt().float(),
            choice.alpha,
        )

    def __call__(self, count: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """So many features [count, d] and their classes [count], of all classes alike.

        None is below zero, as none of an image is.
        """
        c = torch.randint(len(self.means), (count,), generator=rng)
        shared, inside, noise = (
            torch.randn((count, size), generator=rng)
            for size in (self.wide.shape[1], self.own.shape[2], len(self.rest))
        )
        both = shared @ self.wide.T + noise * self.rest
        found = self.means[c] + (1 - self.alpha) ** 0.5 * both
        for one in c.unique().tolist():
            found[c == one] += self.alpha**0.5 * inside[c == one] @ self.own[one].T
        return found.clamp_min(0), c


def trained(
    x: Tensor, y: Tensor, classes: int, seed: int, others: Drawn | None = None, own: Drawn | None = None
) -> Callable[[Tensor], Tensor]:
    """A dense perceptron of a task's features [n, d] and classes y [n]; of ``others`` as many are drawn each time.

    It gives log-probabilities [N, C], or [N, C + 1] with "none of mine" last. ``own``: draws take the images' place.
    """
    torch.manual_seed(seed)
    rng = torch.Generator().manual_seed(seed)
    mean, spread = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
    net = nn.Sequential(
        nn.Linear(x.shape[1], HIDDEN), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(HIDDEN, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, classes + (others is not None)),
    )  # fmt: skip
    step = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.3, fused=True)
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(step, EPOCHS)
    scaled = (x - mean) / spread
    for _ in range(EPOCHS):
        inputs, targets = scaled, y
        if own is not None:
            drawn, targets = own(len(x), rng)
            inputs = (drawn - mean) / spread
        if others is not None:
            inputs = torch.cat([inputs, (others(len(x), rng)[0] - mean) / spread])
            targets = torch.cat([targets, torch.full((len(x),), classes)])
        for rows in torch.randperm(len(inputs)).split(BATCH):
            step.zero_grad()
            F.cross_entropy(net(inputs[rows]), targets[rows]).backward()
            step.step()
        rate.step()
    net.eval()

    def answers(values: Tensor) -> Tensor:
        with torch.inference_mode():
            found: Tensor = net((values - mean) / spread).double().log_softmax(dim=1)
        return found.clone()

    return answers


def mixed_within(by_gate: Tensor, owner: Tensor, said: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The gate's log-posteriors [N, S] with each task's opinion [N, C] mixed in by its weight within the task."""
    found = []
    for task, (opinion, weight) in enumerate(zip(said, weights, strict=True)):
        own = by_gate[:, owner == task]
        whole = own.logsumexp(dim=1, keepdim=True)
        found.append(decide.mixed(own - whole, opinion, weight) + whole)
    return torch.cat(found, dim=1)


def mine(logs: Tensor, own: int, known: int) -> tuple[Tensor, Tensor]:
    """log p(mine) and log p(none of mine), [N] each, of log-probabilities [N, C + 1] with "none of mine" last.

    Training had as many drawn features as images; asked is among all classes alike: ``own`` and ``known`` ones.
    """
    odds = logs[:, :-1].logsumexp(dim=1) - logs[:, -1] + np.log(own / known)
    return F.logsigmoid(odds), F.logsigmoid(-odds)


def chained(words: Sequence[tuple[Tensor, Tensor]]) -> list[Tensor]:
    """Log-probabilities [N] of each task when the last is asked first; ``words`` of the second task on."""
    left = torch.zeros_like(words[0][0])
    found = []
    for yes, no in reversed(words):
        found.append(left + yes)
        left = left + no
    return [left, *reversed(found)]


@dataclass(frozen=True)
class Answers:
    """Of N held-out images with classes y [N]: log-posteriors [N, S] by ``gate`` and ``fused``; ``words`` [N, S] each,
    to be added by weight."""

    y: Tensor
    gate: Tensor
    fused: Tensor
    words: dict[str, Tensor]

    @staticmethod
    def joined(parts: Sequence[Answers]) -> Answers:
        """Those of several turns."""
        words = {name: torch.cat([part.words[name] for part in parts]) for name in parts[0].words}
        y, gate, fused = (torch.cat([getattr(part, name) for part in parts]) for name in ("y", "gate", "fused"))
        return Answers(y, gate, fused, words)

    def right(self, word: str | None, weight: float = 0.0) -> Tensor:
        """Which images are answered right, [N] float64."""
        scores = self.fused if word is None else self.fused + weight * self.words[word]
        return (scores.argmax(dim=1) == self.y).double()


def answered(x: Tensor, y: Tensor, tasks: Sequence[Sequence[int]], held: Tensor, seed: int) -> Answers:
    """Learns the images that are not ``held`` [N] and asks those that are; classes y [N] from 0 on, task after task."""
    learned = []
    for own in tasks:
        here = ~held & torch.isin(y, torch.tensor(own))
        learned.append((x[here], y[here] - own[0], len(own)))
    stored = [statistics(*part) for part in learned]
    gate = solved(stored)
    by_gate = asked(gate, stored, x[held])
    said, weights = [], []
    words: dict[str, list[Tensor]] = {name: [] for name in WORDS}
    pairs: dict[str, list[tuple[Tensor, Tensor]]] = {"chain": [], "level": []}
    for task, (own_x, own_y, classes) in enumerate(learned):
        # What a task's opinion weighs is told by a tenth of its images that are left out of a fit, as learn does.
        out = torch.zeros(len(own_y), dtype=torch.bool)
        out[torch.from_numpy(np.random.default_rng((seed, task)).permutation(len(own_y)))[: len(own_y) // 10]] = True
        part = gaussians.fit_part(own_x[~out], own_y[~out], classes, stored[task].units)
        without = gaussians.without(stored[task], part)
        alone = asked(gaussians.alone(without), [without], own_x[out])
        part_x, part_y = own_x[~out], own_y[~out]
        expert = trained(part_x, part_y, classes, seed)
        weights.append(opinion_weight(alone, expert(own_x[out]), own_y[out]))
        said.append(expert(x[held]))
        others = stored[:task] + stored[task + 1 :]
        logs = trained(part_x, part_y, classes, seed, Drawn.of(others))(x[held])
        words["every"].append(mine(logs, classes, sum(len(t.means) for t in others))[0])
        if not task:
            words["earlier"].append(torch.zeros(int(held.sum()), dtype=torch.float64))
            continue
        known, drawn = Drawn.of(stored[:task]), Drawn.of([stored[task]])
        for word, place in (("chain", None), ("level", drawn)):
            logs = trained(part_x, part_y, classes, seed, known, place)(x[held])
            pairs[word].append(mine(logs, classes, len(known.means)))
            if word == "chain":
                words["earlier"].append(logs[:, :-1].logsumexp(dim=1))
    words |= {word: chained(own) for word, own in pairs.items()}
    spread = {name: torch.stack(parts, dim=1)[:, gate.owner] for name, parts in words.items()}
    return Answers(y[held], by_gate, mixed_within(by_gate, gate.owner, said, weights), spread)


def best_weight(found: Sequence[Answers], word: str) -> float:
    """The weight that gains most over fused, on average of these data sets; the smallest of equals."""
    gains = [sum(float((a.right(word, w) - a.right(None)).mean()) for a in found) for w in WEIGHTS]
    return WEIGHTS[gains.index(max(gains))]


def table(found: dict[str, Answers]) -> str:
    """All figures in Markdown."""
    titles = ["data", "asked", "gate", "fused", *(f"{word}{end}" for word in WORDS for end in ("", ", best"))]
    lines = [titles, ["---"] * len(titles)]
    for name, own in found.items():
        fused = own.right(None)
        gate = (own.gate.argmax(dim=1) == own.y).double().mean()
        line = [name, str(len(own.y)), f"{100 * float(gate):.2f}", f"{100 * float(fused.mean()):.2f}"]
        others = [one for other, one in found.items() if other != name]
        for word in WORDS:
            for weight in (best_weight(others or [own], word), best_weight([own], word)):
                right = own.right(word, weight)
                gain = 100 * (right - fused)
                error = float(gain.std()) / len(gain) ** 0.5
                line.append(f"{100 * float(right.mean()):.2f} ({float(gain.mean()):+.2f} ± {error:.2f}, w {weight:g})")
        lines.append(line)
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-out/none-of-mine"))
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), metavar="NAME")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {}
    for name in options.only:
        started = time.perf_counter()
        places = Places(options.photos, None, options.out, options.seed)
        try:
            x, y = training(name, places, options.out / f"{name}.features.npz")
        except Absent as absent:
            print(f"{name}: skipped, {absent}", file=sys.stderr, flush=True)
            continue
        tasks = groups(y.numpy(), TASKS[name])
        turns = range(FOLDS if len(y) < FEW else 1)
        parts = [answered(x, y, tasks, held_out(y, options.seed, turn), options.seed) for turn in turns]
        found[name] = Answers.joined(parts)
        print(f"{name}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    text = table(found)
    (options.out / "none-of-mine.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
