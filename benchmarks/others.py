"""Other methods on the work of P6: Avalanche's replay and PackNet, and HAT, each by its public package.

    python benchmarks/others.py --mnist MNIST_ROOT --photos DIR --methods replay packnet --out bench-out/others
    python benchmarks/others.py --mnist MNIST_ROOT --photos DIR --methods hat --out bench-out/others

The packages are no dependencies of clmoe: they are installed in environments of their own, and imported when a method
is run. Avalanche (0.6.0, Python 3.11):

    python3.11 -m venv others-venv && others-venv/bin/pip install torch torchvision avalanche-lib

``hat-cl`` 0.1.1 is for Python 3.9 and 3.10 and torch 1, and does not name all that it imports:

    python3.10 -m venv hat-venv && hat-venv/bin/pip install hat-cl scipy pandas "numpy<2"

Work: all of MNIST as five tasks (Split-MNIST) and as the six of P6, whose digits 5 and 2 are in two tasks each, and
EfficientNet-Lite0 vectors of CIFAR-10 (``cifar10-lite0.train.npz``, ``….test.npz``) as five tasks. A perceptron with
two hidden layers of 500, batches of 128, Adam, the tasks one after another, each seen once. Columns of vectors are
standardised by the first task's.

- ``replay``: ``avalanche.training.Replay`` with a memory of 200 and of 2,000 images, ``Naive`` (fine-tuning) with
  none. One output for each class, all known from the start; the figure is the share of all test images whose class is
  right, no task given. "Given" is the same network's best among the classes of the task.
- ``packnet``: ``avalanche.training.PackNet``; every task keeps an equal share of the weights, half of the epochs are
  after pruning. The task is given, the answer the best among its classes. Mean over tasks.
- ``hat``: ``hat.modules.HATLinear`` twice and a head for each task, the masks' scale rising to 100 in every epoch, and
  the penalty of their size at 0.75, as in the paper of HAT. The task is given. Mean over tasks.

Forgetting: a task's accuracy on its own test images just after it was learned less that after the last one, mean over
all tasks but the last; with no task given for ``replay``, with the task given for the masks.

The learning rate (two or three) and the epochs of replay (two or three) are chosen by the figure on a tenth of the
training images, held out, for every memory and data; P6 takes the choice of Split-MNIST, fine-tuning that of the
smaller memory.
Epochs are few (at most 4 for a task of MNIST, 10 of the vectors), so that all takes minutes on one thread. The final
networks learn from all training images, with every seed of ``--seeds``. Test images are for the final figures only.
Prints a table and writes one JSON file for each method.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import import_module, metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

Json = dict[str, Any]
Part = tuple[Tensor, Tensor]
"""Inputs [N, columns] float32 and classes [N] int64."""
Tasks = tuple[tuple[int, ...], ...]

SPLIT: Tasks = ((0, 1), (2, 3), (4, 5), (6, 7), (8, 9))
P6: Tasks = ((1, 5), (2, 6), (3, 7), (4, 8), (5, 9), (0, 2))
WIDTH, BATCH, CLASSES = 500, 128, 10
HELD_OUT = 0.1
CHOICE_SEED = 1000
MEMORIES = (200, 2000)


@dataclass(frozen=True)
class Work:
    """``epochs`` and ``rates``: those to choose from, by method. ``like``: whose choice of settings is taken."""

    name: str
    train: Part
    test: Part
    tasks: Tasks
    epochs: dict[str, tuple[int, ...]]
    rates: dict[str, tuple[float, ...]]
    like: str | None = None

    def split(self) -> Work:
        """The training images alone: nine tenths to learn from, a tenth to ask."""
        order = torch.randperm(len(self.train[1]), generator=torch.Generator().manual_seed(CHOICE_SEED))
        asked, learned = order.tensor_split([round(HELD_OUT * len(order))])
        x, y = self.train
        return Work(self.name, (x[learned], y[learned]), (x[asked], y[asked]), self.tasks, self.epochs, self.rates)


def of_classes(part: Part, classes: Sequence[int]) -> Part:
    own = torch.isin(part[1], torch.tensor(classes))
    return part[0][own], part[1][own]


def mnist(root: str) -> list[Work]:
    data = import_module("torchvision.datasets").MNIST
    parts = [data(root, train=learned) for learned in (True, False)]
    train, test = ((part.data.flatten(1).float() / 255, part.targets) for part in parts)
    epochs = {"replay": (1, 3), "packnet": (4,), "hat": (3,)}
    rates = {"replay": (1e-3, 3e-4), "packnet": (1e-3, 3e-4), "hat": (1e-2, 1e-3)}
    return [
        Work("Split-MNIST", train, test, SPLIT, epochs, rates),
        Work("P6", train, test, P6, epochs, rates, like="Split-MNIST"),
    ]


def photos(folder: Path) -> Work:
    parts = []
    for name in ("train", "test"):
        with np.load(folder / f"cifar10-lite0.{name}.npz") as found:
            _, classes = np.unique(found["y"], return_inverse=True)
            parts.append((torch.from_numpy(found["x"].astype(np.float32)), torch.from_numpy(classes).long()))
    first = of_classes(parts[0], SPLIT[0])[0]
    mean, deviation = first.mean(0), first.std(0) + 1e-3 * first.std()
    train, test = (((x - mean) / deviation, y) for x, y in parts)
    epochs = {"replay": (1, 3, 10), "packnet": (8,), "hat": (8,)}
    rates = {"replay": (1e-3, 3e-4, 1e-4), "packnet": (1e-3, 3e-4), "hat": (1e-2, 1e-3)}
    return Work("CIFAR-10 Lite0", train, test, SPLIT, epochs, rates)


class Avalanche(ABC):
    """What replay and PackNet have in common: the stream of tasks, and a strategy that learns it."""

    task_given = False

    def __init__(self, work: Work, setting: Json) -> None:
        self.tasks = work.tasks
        self.net, self.strategy = self.build(work.train[0].shape[1], setting)
        scenarios = import_module("avalanche.benchmarks.scenarios")
        parts = [self.dataset(of_classes(work.train, classes), task) for task, classes in enumerate(work.tasks)]
        scenario = scenarios.with_classes_timeline(scenarios.benchmark_from_datasets(train=parts))
        self.stream = list(scenarios.with_task_labels(scenario).train_stream)

    def dataset(self, part: Part, task: int) -> Any:
        """Their data set of a task, with its number where the method takes it."""
        data, attribute = (import_module(f"avalanche.benchmarks.utils.{m}") for m in ("data", "data_attribute"))
        labels, number = part[1].tolist(), [task if self.task_given else 0] * len(part[1])
        attributes = [
            attribute.DataAttribute(labels, "targets"),
            attribute.DataAttribute(number, "targets_task_labels", use_in_getitem=True),
        ]
        return data.AvalancheDataset([torch.utils.data.TensorDataset(*part)], data_attributes=attributes)

    def common(self, net: nn.Module, setting: Json) -> Json:
        return {
            "model": net,
            "optimizer": torch.optim.Adam(net.parameters(), lr=setting["lr"]),
            "criterion": nn.CrossEntropyLoss(),
            "train_mb_size": BATCH,
            "train_epochs": setting["epochs"],
            "evaluator": import_module("avalanche.training.plugins").EvaluationPlugin(),
        }

    @abstractmethod
    def build(self, columns: int, setting: Json) -> tuple[nn.Module, Any]:
        """The network for so many columns, and the strategy that trains it."""

    def learn(self, task: int) -> None:
        self.strategy.train(self.stream[task])

    def outputs(self, x: Tensor, task: int) -> Tensor:
        """Logits [N, classes]; ``task`` is used by methods that need it."""
        self.net.eval()
        with torch.no_grad():
            return self.net(x)

    def answers(self, x: Tensor, task: int) -> Tensor:
        """The best class among those of ``task``."""
        classes = torch.tensor(self.tasks[task])
        return classes[self.outputs(x, task)[:, classes].argmax(1)]


class Replay(Avalanche):
    """``setting``: ``memory``, ``lr``, ``epochs``."""

    def build(self, columns: int, setting: Json) -> tuple[nn.Module, Any]:
        training, models = import_module("avalanche.training"), import_module("avalanche.models")
        net = models.SimpleMLP(CLASSES, columns, hidden_size=WIDTH, hidden_layers=2, drop_rate=0)
        common = self.common(net, setting)
        if setting["memory"]:
            return net, training.Replay(mem_size=setting["memory"], **common)
        return net, training.Naive(**common)

    @staticmethod
    def grid(rates: Sequence[float], epochs: Sequence[int], memory: int) -> list[Json]:
        return [{"memory": memory, "lr": lr, "epochs": e} for lr, e in itertools.product(rates, epochs)]


class PackNet(Avalanche):
    """``setting``: ``lr``, ``epochs``, half of them after pruning."""

    task_given = True

    def build(self, columns: int, setting: Json) -> tuple[nn.Module, Any]:
        packnet = import_module("avalanche.models.packnet")
        strategy = import_module("avalanche.training.supervised.strategy_wrappers").PackNet
        net = packnet.packnet_simple_mlp(CLASSES, columns, hidden_size=WIDTH, hidden_layers=2, drop_rate=0)
        left = len(self.tasks)
        return net, strategy(
            post_prune_epochs=setting["epochs"] // 2,
            prune_proportion=[1 - 1 / (left - task) for task in range(left)],
            **self.common(net, setting),
        )

    def outputs(self, x: Tensor, task: int) -> Tensor:
        self.net.eval()
        with torch.no_grad():
            return self.net(x, torch.full((len(x),), task))

    @staticmethod
    def grid(rates: Sequence[float], epochs: Sequence[int], memory: int) -> list[Json]:
        return [{"lr": lr, "epochs": e} for lr, e in itertools.product(rates, epochs)]


class Hat:
    """``setting``: ``lr``, ``epochs``, ``penalty`` (the weight of the share of free units that the masks take)."""

    task_given = True

    def __init__(self, work: Work, setting: Json) -> None:
        self.tasks, self.setting = work.tasks, setting
        self.parts = [of_classes(work.train, classes) for classes in work.tasks]
        hat = import_module("hat")
        linear = import_module("hat.modules").HATLinear
        config = hat.HATConfig(num_tasks=len(work.tasks))
        self.payload, self.utils = hat.HATPayload, import_module("hat.utils")
        self.body = nn.ModuleList([linear(work.train[0].shape[1], WIDTH, config), linear(WIDTH, WIDTH, config)])
        self.heads = nn.ModuleList([nn.Linear(WIDTH, len(classes)) for classes in work.tasks])

    def forward(self, x: Tensor, task: int, scale: float | None) -> Tensor:
        found = self.payload(x, task_id=task, mask_scale=scale)
        for layer in self.body:
            found = layer(found).forward_by(nn.ReLU())
        return self.heads[task](found.data)

    def learn(self, task: int) -> None:
        x, y = self.parts[task]
        own = torch.searchsorted(torch.tensor(self.tasks[task]), y)
        parameters = [*self.body.parameters(), *self.heads[task].parameters()]
        optimizer = torch.optim.Adam([p for p in parameters if p.requires_grad], lr=self.setting["lr"])
        self.body.train()
        for _ in range(self.setting["epochs"]):
            batches = torch.randperm(len(y)).split(BATCH)
            for step, index in enumerate(batches):
                scale = self.utils.get_hat_mask_scale("linear", progress=step / max(1, len(batches) - 1))
                optimizer.zero_grad(set_to_none=True)
                loss = cross_entropy(self.forward(x[index], task, scale), own[index])
                used = self.utils.get_hat_reg_term(self.body, "uniform", task_id=task, mask_scale=scale)
                (loss + self.setting["penalty"] * used).backward()
                optimizer.step()

    def outputs(self, x: Tensor, task: int) -> Tensor:
        self.body.eval()
        with torch.no_grad():
            return self.forward(x, task, None)

    def answers(self, x: Tensor, task: int) -> Tensor:
        return torch.tensor(self.tasks[task])[self.outputs(x, task).argmax(1)]

    @staticmethod
    def grid(rates: Sequence[float], epochs: Sequence[int], memory: int) -> list[Json]:
        return [{"lr": lr, "penalty": 0.75, "epochs": e} for lr, e in itertools.product(rates, epochs)]


METHODS: dict[str, Any] = {"replay": Replay, "packnet": PackNet, "hat": Hat}
PACKAGES = {"replay": "avalanche-lib", "packnet": "avalanche-lib", "hat": "hat-cl"}


@dataclass
class Outcome:
    """``given`` and ``alone``: accuracy by task after every task, with the task given and with none.

    ``largest_change``: of any logit of a task's test images, from just after it was learned to the end.
    """

    setting: Json
    seed: int
    accuracy: float = 0.0
    forgetting: float = 0.0
    given: list[list[float]] = field(default_factory=list)
    alone: list[list[float]] = field(default_factory=list)
    largest_change: float = 0.0
    seconds: float = 0.0


def share(right: Tensor) -> float:
    return float(right.double().mean())


def run(method: str, work: Work, setting: Json, seed: int) -> Outcome:
    """Learns the tasks one after another, and after each of them asks for all that are learned."""
    started = time.monotonic()
    torch.manual_seed(seed)
    learner = METHODS[method](work, setting)
    found = Outcome(setting, seed)
    tests = [of_classes(work.test, classes) for classes in work.tasks]
    first: list[Tensor] = []
    for task in range(len(tests)):
        learner.learn(task)
        now = [learner.outputs(x, i) for i, (x, _) in enumerate(tests[: task + 1])]
        first.append(now[-1].clone())
        found.given.append([share(learner.answers(x, i) == y) for i, (x, y) in enumerate(tests[: task + 1])])
        if not learner.task_given:
            found.alone.append([share(z.argmax(1) == y) for z, (_, y) in zip(now, tests[: task + 1], strict=True)])
    found.largest_change = max(float((a - b).abs().max()) for a, b in zip(first, now, strict=True))
    rows = found.given if learner.task_given else found.alone
    found.forgetting = float(np.mean([rows[i][i] - rows[-1][i] for i in range(len(rows) - 1)]))
    if learner.task_given:
        found.accuracy = float(np.mean(rows[-1]))
    else:
        found.accuracy = share(learner.outputs(work.test[0], 0).argmax(1) == work.test[1])
    found.seconds = time.monotonic() - started
    print(
        f"{work.name}, {method}, {setting}, seed {seed}: {100 * found.accuracy:.2f} %, forgetting"
        f" {100 * found.forgetting:.2f}, given {100 * np.mean(found.given[-1]):.2f}, {found.seconds:.0f} s",
        file=sys.stderr,
        flush=True,
    )
    return found


def choose(method: str, work: Work, memory: int) -> tuple[Json, list[Json]]:
    """The setting of the highest figure on held-out training images, and what each setting had there."""
    part, grid = work.split(), METHODS[method].grid(work.rates[method], work.epochs[method], memory)
    tried = [run(method, part, setting, CHOICE_SEED) for setting in grid]
    best = max(tried, key=lambda outcome: outcome.accuracy)
    return best.setting, [{"setting": t.setting, "held_out": t.accuracy, "seconds": t.seconds} for t in tried]


def measure(method: str, works: Sequence[Work], seeds: Sequence[int]) -> Json:
    """Final figures of ``method`` on every work; choices first."""
    chosen: dict[tuple[str, int], Json] = {}
    rows: list[Json] = []
    choices: list[Json] = []
    for work in works:
        for memory in MEMORIES if method == "replay" else (0,):
            key = (work.like or work.name, memory)
            if key not in chosen:
                chosen[key], tried = choose(method, work, memory)
                choices.append({"work": work.name, "memory": memory, "tried": tried})
        for memory in (0, *MEMORIES) if method == "replay" else (0,):
            setting = chosen[(work.like or work.name, memory or (MEMORIES[0] if method == "replay" else 0))]
            if method == "replay":
                setting = {**setting, "memory": memory}
            outcomes = [run(method, work, setting, seed) for seed in seeds]
            rows.append({"work": work.name, "memory": memory, "outcomes": [vars(found) for found in outcomes]})
    return {"method": method, "rows": rows, "choices": choices}


def summary(results: Sequence[Json]) -> str:
    """Markdown: a row for each method and memory; figures of every seed."""

    def each(outcomes: Sequence[Json], value: str) -> str:
        return ", ".join(f"{100 * found[value]:.2f}" for found in outcomes)

    names = list(dict.fromkeys(row["work"] for result in results for row in result["rows"]))
    header = ["method", "images kept", "task id", *(f"{name}{what}" for name in names for what in ("", ": forgetting"))]
    lines = [header, ["---"] * len(header)]
    for result in results:
        for memory in sorted({row["memory"] for row in result["rows"]}):
            found = {row["work"]: row["outcomes"] for row in result["rows"] if row["memory"] == memory}
            needs = "needed" if METHODS[result["method"]].task_given else "none"
            cells = (each(found[name], value) for name in names for value in ("accuracy", "forgetting"))
            lines.append([result["method"], f"{memory:,}", needs, *cells])
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", help="root of torchvision's MNIST")
    parser.add_argument("--photos", type=Path, help="folder of cifar10-lite0.train.npz and cifar10-lite0.test.npz")
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=["replay", "packnet"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--out", type=Path, default=Path("bench-out/others"))
    options = parser.parse_args()
    if options.mnist is None and options.photos is None:
        parser.error("--mnist, --photos or both")
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    works = [*(mnist(options.mnist) if options.mnist else ()), *([photos(options.photos)] if options.photos else ())]
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for method in options.methods:
        started = time.monotonic()
        result = measure(method, works, options.seeds)
        result["seconds"] = time.monotonic() - started
        result["versions"] = {
            "python": sys.version.split()[0],
            **{name: metadata.version(name) for name in ("torch", "torchvision", "numpy", PACKAGES[method])},
        }
        (options.out / f"others-{method}.json").write_text(json.dumps(result, indent=1))
        results.append(result)
    print(summary(results))
    for result in results:
        print(f"{result['method']}: {result['seconds']:.0f} s, {result['versions']}")


if __name__ == "__main__":
    main()
