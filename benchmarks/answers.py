"""What decides, and whether it says what it does: accuracy beside plainer tools, and reports beside answers.

    python benchmarks/answers.py --photos PHOTOS --mnist MNIST_ROOT --out bench-out/answers [--only wine iris]

Two tables. *Evidence*: every input by itself and without a task id, on seven data sets, by the class subspaces of
format 2 (:class:`Subspaces`), the gate alone, the default ``predict``, a linear discriminant, RanPAC (McDonnell et
al. 2023: random ReLU features and ridge regression), a joint linear head, a joint MLP and, of pixels, a joint
convolutional network. All of them learn from the same training files. Of pictures, the convolutional network reads the
pixels and the other tools read the gate's fixed features; of vectors they read the vectors. What has to be chosen is
chosen on a tenth of the training inputs; then all are learned from.
*Honesty*: the accuracy that ``learn`` reported against that of ``predict`` on test files, and ``predict --task``
against ``predict`` on the same images, on those data sets and eighteen small ones.

Each data set is a run of its own: its figures go to ``NAME-SEED.store.json`` and, of what does not change with this
project's code, ``NAME-SEED.joint.json``. ``--reuse`` keeps what is there. The tables are made of all that is there.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from datasets import EVERY, EVIDENCE, PHOTOGRAPHS, Absent, Data, Places
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.routing.features import features, is_image
from clmoe_cli.method.subnetwork.training import Schedule

Array = np.ndarray[Any, Any]
Figures = dict[str, Any]

COMPARED = {**EVIDENCE, **PHOTOGRAPHS}
"""Data sets on which plainer tools are run as well."""
GROUP = "photographs"
"""Stands for all that go through a backbone."""
SHRINKAGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
RIDGES = (1e-4, 1e-3, 1e-2, 0.1, 1.0)
"""In units of the mean variance of a feature, and of the mean of the Gram matrix's diagonal."""


@dataclass(frozen=True)
class Split:
    """Features [N, d] and classes [N] to train on, ``held`` [N]: the tenth that chooses; features of the test files."""

    x: Tensor
    y: Tensor
    held: Tensor
    test: Tensor
    classes: int
    seed: int

    def fitted(self) -> tuple[Tensor, Tensor]:
        """What is fitted while something is chosen."""
        return self.x[~self.held], self.y[~self.held]

    def chosen(self, answers: Callable[[Tensor, Tensor, Tensor, Any], Tensor], grid: Sequence[Any]) -> Any:
        """The value that answers most held-out inputs right; ``answers(x, y, asked, value)``: scores [n, C]."""
        x, y = self.fitted()
        return best(grid, [answers(x, y, self.x[self.held], value) for value in grid], self.y[self.held])


def best(grid: Sequence[Any], scores: Sequence[Tensor], y: Tensor) -> Any:
    """The value of the grid whose scores [n, C] have the most right answers."""
    right = [float((found.argmax(1) == y).double().mean()) for found in scores]
    return grid[right.index(max(right))]


@dataclass(frozen=True)
class Subspaces:
    """The gate of format 2, as a reference: each class is the mean of its images and their leading directions.

    ``means`` [C, d]; ``directions``: of each class [d, k], in half precision as they were stored.
    """

    means: Tensor
    directions: tuple[Tensor, ...]

    @staticmethod
    def fit(x: Tensor, y: Tensor, classes: int, rank: int = 128) -> Subspaces:
        """From features [N, d]: a quarter as many directions as images, at most ``rank`` and half the features."""
        means, directions = [], []
        for c in range(classes):
            own = x[y == c]
            mean = own.mean(dim=0)
            centred = (own - mean).double()
            n, d = centred.shape
            few = n < d
            gram = centred @ centred.T if few else centred.T @ centred
            vectors = torch.linalg.eigh(gram)[1].flip(1)[:, : min(rank, n // 4, d // 2)]
            found = F.normalize(centred.T @ vectors, dim=0) if few else vectors
            means.append(mean)
            directions.append(found.half())
        return Subspaces(torch.stack(means), tuple(directions))

    def distances(self, x: Tensor) -> Tensor:
        """Squared distances [N, C] of features [N, d] from the subspaces."""
        found = []
        for mean, directions in zip(self.means, self.directions, strict=True):
            centred = x - mean
            found.append(centred.square().sum(dim=1) - (centred @ directions.to(x.dtype)).square().sum(dim=1))
        return torch.stack(found, dim=1)


def of_vectors(x: Tensor) -> Tensor:
    """Features of plain vectors [N, D] as format 2 had them: 1,024 random ReLU features of unit length."""
    size = x.shape[1]
    directions = torch.randn((size + 1, 1024), generator=torch.Generator().manual_seed(0))
    known = F.normalize(F.pad(x, (0, 1), value=math.sqrt(size) / 4))
    return F.normalize((known @ directions).relu())


def before(split: Split, data: Data) -> Figures:
    """Subspaces, on the features that they had."""
    x, test = (split.x, split.test) if is_image(data.train[0].shape[1:]) else map(of_vectors, (split.x, split.test))
    return {"scores": -Subspaces.fit(x, split.y, split.classes).distances(test)}


def discriminant(split: Split, data: Data) -> Figures:
    """Linear discriminant with a shrunken covariance within classes (Friedman 1989, α = 0)."""
    rho = split.chosen(discriminated, SHRINKAGES)
    return {"scores": discriminated(split.x, split.y, split.test, rho), "chosen": {"shrinkage": rho}}


def discriminated(x: Tensor, y: Tensor, asked: Tensor, rho: float) -> Tensor:
    """Log-posteriors [n, C] of ``asked`` [n, d] up to what all classes share."""
    onehot = F.one_hot(y).to(x.dtype)
    counts = onehot.sum(dim=0)
    means = (onehot.T @ x) / counts[:, None]
    within = x - means[y]
    covariance = (within.T @ within).double() / len(x)
    covariance.diagonal().add_(rho * covariance.diagonal().mean())
    weights = torch.cholesky_solve(means.T.double(), torch.linalg.cholesky(covariance)).to(x.dtype)
    return asked @ weights - (means * weights.T).sum(dim=1) / 2 + counts.log()


def ranpac(split: Split, data: Data | None, size: int = 5_000) -> Figures:
    """Ridge regression on ``size`` random ReLU features, from their Gram matrix (McDonnell et al. 2023)."""
    rng = torch.Generator().manual_seed(split.seed)
    # With a backbone's features as many as its authors took.
    size = size if data is None or data.input is None or data.input.features is None else 10_000
    projection = torch.randn((split.x.shape[1], size), generator=rng)
    if len(split.y) < size:
        return _few(split, projection)
    x, y = split.fitted()
    fitted = sums(x, y, projection, split.classes)
    held = sums(split.x[split.held], split.y[split.held], projection, split.classes)
    asked = (split.x[split.held] @ projection).relu()
    ridge = best(RIDGES, [asked @ solved(*fitted, ridge) for ridge in RIDGES], split.y[split.held])
    gram, target = fitted[0].add_(held[0]), fitted[1].add_(held[1])
    weights = solved(gram, target, ridge)
    return {"scores": (split.test @ projection).relu() @ weights, "chosen": {"ridge": ridge, "features": size}}


def _few(split: Split, projection: Tensor) -> Figures:
    """The same of fewer images than random features: from the images' inner products."""

    def answers(x: Tensor, y: Tensor, asked: Tensor, ridge: float) -> Tensor:
        h = (x @ projection).relu().double()
        inner = h @ h.T
        # The mean of the large Gram matrix's diagonal, as in the other form.
        inner.diagonal().add_(ridge * float(inner.trace()) / projection.shape[1])
        weights = torch.linalg.solve(inner, F.one_hot(y, split.classes).double())
        return ((asked @ projection).relu().double() @ h.T) @ weights

    ridge = split.chosen(answers, RIDGES)
    found = answers(split.x, split.y, split.test, ridge)
    return {"scores": found, "chosen": {"ridge": ridge, "features": projection.shape[1]}}


def sums(x: Tensor, y: Tensor, projection: Tensor, classes: int) -> tuple[Tensor, Tensor]:
    """Gram matrix [m, m] of the random features of ``x`` [N, d], and their sums by class [m, C]."""
    size = projection.shape[1]
    gram, target = torch.zeros(size, size).double(), torch.zeros(size, classes).double()
    for rows in torch.arange(len(x)).split(2000):
        h = (x[rows] @ projection).relu()
        # Products in single precision, sums in double: the ridge is small beside the largest eigenvalue.
        gram += h.T @ h
        target += h.T @ F.one_hot(y[rows], classes).to(h.dtype)
    return gram, target


def solved(gram: Tensor, target: Tensor, ridge: float) -> Tensor:
    """Weights [m, C]; the ridge is in units of the mean of the diagonal."""
    regular = gram.clone()
    regular.diagonal().add_(ridge * gram.diagonal().mean())
    return torch.cholesky_solve(target, torch.linalg.cholesky(regular)).float()


def linear(split: Split, data: Data, epochs: int = 20) -> Figures:
    """A linear head on all classes at once."""
    return _trained(split, lambda d, c: nn.Linear(d, c), epochs, (0.3, 1.0, 3.0, 10.0))


def mlp(split: Split, data: Data, epochs: int = 20) -> Figures:
    """One hidden layer of 512 units on all classes at once."""

    def build(d: int, c: int) -> nn.Module:
        return nn.Sequential(nn.Dropout(0.2), nn.Linear(d, 512), nn.ReLU(), nn.Dropout(0.5), nn.Linear(512, c))

    return _trained(split, build, epochs, (0.3, 3.0))


def _trained(split: Split, build: Callable[[int, int], nn.Module], epochs: int, decays: Sequence[float]) -> Figures:
    """Trained on standardised columns; held-out inputs choose the decoupled weight decay, then all are trained on."""

    def answers(x: Tensor, y: Tensor, asked: Tensor, decay: float) -> Tensor:
        mean, spread = x.mean(dim=0), x.std(dim=0).clamp_min(1e-6)
        x = (x - mean) / spread
        # Fresh weights and dropout draw from the global generator.
        torch.manual_seed(split.seed)
        net = build(x.shape[1], split.classes)
        step = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=decay, fused=True)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(step, epochs)
        for _ in range(epochs):
            for rows in torch.randperm(len(x)).split(128):
                step.zero_grad()
                F.cross_entropy(net(x[rows]), y[rows]).backward()
                step.step()
            rate.step()
        net.eval()
        with torch.inference_mode():
            return net((asked - mean) / spread)

    decay = split.chosen(answers, decays)
    found = answers(split.x, split.y, split.test, decay)
    return {"scores": found, "chosen": {"weight_decay": decay, "epochs": epochs}}


def cnn(split: Split, data: Data, epochs: int = 15) -> Figures:
    """``cnn:32,64,128`` on the pixels of all classes at once, as ``joint.py`` trains it."""
    from joint import Images, joint

    y, asked = (torch.from_numpy(np.unique(labels, return_inverse=True)[1]) for labels in (data.train[1], data.test[1]))
    train, test = (Images(torch.from_numpy(part[0]), own) for part, own in ((data.train, y), (data.test, asked)))
    found = joint(train, test, "cnn:32,64,128", split.seed, Schedule(epochs=epochs))
    return {"scores": found["outputs"], "chosen": {"epochs": epochs}}


JOINT: dict[str, Callable[[Split, Data], Figures]] = {
    "before": before,
    "discriminant": discriminant,
    "ranpac": ranpac,
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
}
TITLES = {
    "before": "subspaces (format 2)",
    "gate": "gate",
    "fused": "fused",
    "given": "task given",
    "discriminant": "linear discriminant",
    "ranpac": "RanPAC",
    "linear": "joint linear head",
    "mlp": "joint MLP",
    "cnn": "joint CNN",
}


def split_of(data: Data, seed: int) -> Split:
    """Features of pictures, vectors as they are; every tenth input of each class, in a drawn order, is held out."""
    shape = data.train[0].shape[1:]

    def seen(x: Array) -> Tensor:
        flat = torch.from_numpy(x.reshape(len(x), -1)).float()
        if x.dtype == np.uint8:
            flat /= 255
        name = "scattering-colour-1" if shape[0] == 3 else "scattering-1"
        # Those of inference mode cannot be trained on.
        return features(flat, shape, name).clone() if is_image(shape) else flat

    classes, y = np.unique(data.train[1], return_inverse=True)
    held = np.zeros(len(y), dtype=bool)
    order = np.random.default_rng(seed).permutation(len(y))
    for c in range(len(classes)):
        held[order[y[order] == c][::10]] = True
    return Split(
        seen(data.train[0]),
        torch.from_numpy(y),
        torch.from_numpy(held),
        seen(data.test[0]),
        len(classes),
        seed,
    )


def jointly(data: Data, columns: Iterable[str], path: Path, seed: int, reuse: bool) -> None:
    """Figures that do not depend on this project's experts; ``path`` gains each as soon as it is there."""
    found = json.loads(path.read_text()) if path.exists() else {}
    wanted = [name for name in columns if not (reuse and name in found)]
    if len(data.train[0].shape) != 4 and "cnn" in wanted:
        wanted.remove("cnn")
    split = split_of(data, seed) if wanted else None
    truth = data.test[1]
    classes = np.unique(data.train[1])
    for name in wanted:
        assert split is not None
        started = time.perf_counter()
        figures = JOINT[name](split, data)
        right = classes[figures.pop("scores").argmax(1).numpy()] == truth
        found[name] = {**figures, "accuracy": float(right.mean()), "seconds": time.perf_counter() - started}
        path.write_text(json.dumps({"images": len(truth), **found}, indent=1))
        print(f"{path.stem} {name}: {found[name]}", file=sys.stderr, flush=True)


def learned(data: Data, seed: int, epochs: int, arch: str, scratch: Path) -> Figures:
    """One store, task after task with default options; then everything is asked of it.

    ``reported`` of a task: what ``learn`` said. Of the task's own test inputs, ``asked``, so many are answered right:
    ``predicted`` as soon as it is learned, ``end`` when every task is, ``given`` with ``--task`` at the end. ``gained``
    and ``lost``: right with ``--task`` alone, and without it alone.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store = str(Path(folder) / "store")
        options = LearnOptions(arch=arch, seed=seed, method=Options(schedule=Schedule(epochs=epochs)))
        rows: list[Figures] = []
        for number, classes in enumerate(data.tasks):
            started = time.perf_counter()
            report = learn(store, data.learned(number, seed), options)
            accuracy = report.to_json()["accuracy"]  # the same in all versions
            rows.append(
                {
                    "task": report.task,
                    "classes": classes,
                    "status": report.status,
                    "reported": accuracy["answer"] if "answer" in accuracy else accuracy["subnetwork"],
                    "held_out": accuracy["held_out"] or 0,
                    "warnings": warned(report),
                    "predicted": int(right(store, data, number).sum()),
                    "seconds": time.perf_counter() - started,
                }
            )
            print(f"  task {number + 1}: {rows[-1]}", file=sys.stderr, flush=True)
        for number, row in enumerate(rows):
            end, given = right(store, data, number), right(store, data, number, row["task"])
            row |= {"asked": len(end), "end": int(end.sum()), "given": int(given.sum())}
            row |= {"gained": int((given & ~end).sum()), "lost": int((end & ~given).sum())}
        mixed = data.asked()
        figures: Figures = {"tasks": rows, "images": len(mixed.images), "arch": arch, "epochs": epochs, "seed": seed}
        for router in ("gate", "fused"):
            figures[router] = predict(store, mixed, router=router).accuracy
    figures["noise"] = data.noise
    if data.table:
        plain = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000)).fit(*data.train)
        figures["logistic"] = float(plain.score(mixed.images, mixed.labels))
    return figures


def right(store: str, data: Data, number: int, task: str | None = None) -> Array:
    """Which of a task's own test images are answered right, [N] bool."""
    batch = data.asked(number)
    assert batch.labels is not None
    return np.asarray(predict(store, batch, task=task).label == batch.labels)


def warned(report: Any) -> list[str]:
    """Codes of what ``learn`` warned of; versions without codes warn of guessing alone."""
    if hasattr(report, "warnings"):
        return [w["code"] if isinstance(w, dict) else w.code for w in report.warnings]
    return ["guessing"] if report.guessing else []


def honest(figures: Figures) -> Figures:
    """A data set's row: pooled over its tasks, and the worst of them.

    ``z``: reported minus predicted as soon as a task is learned, in standard errors of their difference: binomial, with
    one share for both, smoothed by one right and one wrong answer. ``z_end``: reported minus predicted once every task
    is learned; the report could not know of later ones. ``below``: what ``--task`` loses against ``predict``, in
    standard errors.
    """
    told = [t for t in figures["tasks"] if t["held_out"] and t["reported"] is not None]
    pairs = [(t["reported"] * t["held_out"], t["held_out"], t["predicted"], t["asked"]) for t in told]
    ends = [(*pair[:2], t["end"], t["asked"]) for pair, t in zip(pairs, told, strict=True)]
    whole, last = ([sum(column) for column in zip(*parts, strict=True)] for parts in (pairs, ends))
    gained, lost, asked = (sum(t[key] for t in figures["tasks"]) for key in ("gained", "lost", "asked"))
    end = sum(t["end"] for t in figures["tasks"])
    return {
        "reported": whole[0] / whole[1] if told else None,
        "held_out": whole[1] if told else 0,
        "predicted": whole[2] / whole[3] if told else None,
        "asked": asked,
        "end": end / asked,
        "z": apart(*whole) if told else None,
        "z_end": apart(*last) if told else None,
        "tasks_apart": sum(abs(apart(*pair)) > 2 for pair in pairs),
        "tasks": len(figures["tasks"]),
        "given": sum(t["given"] for t in figures["tasks"]) / asked,
        "below": below(gained, lost, asked),
        "tasks_below": sum(below(t["gained"], t["lost"], t["asked"]) > 1 + 1e-9 for t in figures["tasks"]),
        "guessing": any("guess" in code for t in figures["tasks"] for code in t["warnings"]),
        "warnings": sorted({code for t in figures["tasks"] for code in t["warnings"]}),
        "logistic": figures.get("logistic"),
        "noise": figures["noise"],
    }


def apart(first: float, n: int, second: float, m: int) -> float:
    """Difference of the shares ``first / n`` and ``second / m`` in standard errors."""
    pooled = (first + second + 1) / (n + m + 2)
    return (first / n - second / m) / math.sqrt(pooled * (1 - pooled) * (1 / n + 1 / m))


def below(gained: int, lost: int, n: int) -> float:
    """How far ``--task`` is below ``predict``, in standard errors of the paired difference; 0 where it is not."""
    if lost <= gained:
        return 0.0
    mean = (gained - lost) / n
    return -mean / math.sqrt((gained + lost - n * mean**2) / (n - 1) / n)


def percent(value: float | None, digits: int = 1) -> str:
    return "" if value is None else f"{100 * value:.{digits}f}"


def signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.1f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def tables(out: Path, seed: int) -> tuple[Figures, str]:
    """Both tables from all that is in the folder, as figures and as Markdown."""
    evidence, honesty = {}, {}
    for name in EVERY:
        paths = [out / f"{name}-{seed}.{part}.json" for part in ("store", "joint")]
        store, joint = (json.loads(path.read_text()) if path.exists() else {} for path in paths)
        if store:
            honesty[name] = honest(store)
        if name in COMPARED and (store or joint):
            evidence[name] = {"images": (store or joint)["images"]}
            evidence[name] |= {key: joint[key]["accuracy"] for key in JOINT if key in joint}
            if store:
                given = honesty[name]["given"]
                evidence[name] |= {"gate": store["gate"], "fused": store["fused"], "given": given}
    first = [[n, str(row["images"]), *(percent(row.get(k), 2) for k in TITLES)] for n, row in evidence.items()]
    second = [
        [
            name + (" (labels are noise)" if row["noise"] else ""),
            f"{percent(row['reported'])} ({row['held_out']})",
            f"{percent(row['predicted'])} ({row['asked']})",
            signed(row["z"]),
            f"{row['tasks_apart']} of {row['tasks']}",
            percent(row["end"]),
            signed(row["z_end"]),
            percent(row["given"]),
            f"{row['below']:.1f}",
            f"{row['tasks_below']} of {row['tasks']}",
            ", ".join(row["warnings"]),
            percent(row["logistic"]),
        ]
        for name, row in honesty.items()
    ]
    titles = (
        "data",
        "`learn` reported (held out)",
        "`predict` then (asked)",
        "apart, standard errors",
        "tasks apart by more than 2",
        "`predict` at the end",
        "apart at the end",
        "`--task` at the end",
        "below, standard errors",
        "tasks below by more than 1",
        "warnings",
        "logistic regression",
    )
    text = markdown(["data", "test images", *TITLES.values()], first) + "\n\n" + markdown(titles, second) + "\n"
    return {"evidence": evidence, "honesty": honesty}, text


def run(name: str, options: argparse.Namespace, scratch: Path) -> None:
    """Measures what is wanted of one data set and not there yet."""
    out, seed = options.out, options.seed
    path = out / f"{name}-{seed}.store.json"
    joint = [c for c in options.columns if c in JOINT] if name in COMPARED else []
    store = "store" in options.columns and not (options.reuse and path.exists())
    data = EVERY[name](Places(options.photos, options.mnist, scratch, seed))
    if joint:
        # Joint training does not see the tasks: data sets that differ in them alone have the same figures.
        own = out / f"{name}-{seed}.joint.json"
        shared = out / f"{data.shared}-{seed}.joint.json" if data.shared else own
        jointly(data, joint, shared, seed, options.reuse)
        if shared.exists():
            own.write_text(shared.read_text())
    if store:
        print(name, file=sys.stderr, flush=True)
        path.write_text(json.dumps(learned(data, seed, options.epochs, options.arch, scratch), indent=1))


def main() -> None:
    columns = ("store", *JOINT)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-out/answers"))
    usual = [name for name in EVERY if name not in PHOTOGRAPHS]
    parser.add_argument("--only", nargs="+", choices=[*EVERY, GROUP], default=usual, metavar="NAME")
    parser.add_argument("--columns", nargs="+", choices=columns, default=columns, metavar="COLUMN")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=Schedule().epochs, help="of learn")
    parser.add_argument("--arch", default=LearnOptions().arch, help="of learn")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--reuse", action="store_true", help="keep the figures that are there")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in [one for given in options.only for one in (PHOTOGRAPHS if given == GROUP else (given,))]:
        try:
            with tempfile.TemporaryDirectory(dir=options.out) as scratch:
                run(name, options, Path(scratch))
        except Absent as absent:
            print(f"{name}: skipped, {absent}", file=sys.stderr, flush=True)
    found, text = tables(options.out, options.seed)
    (options.out / "answers.json").write_text(json.dumps(found, indent=1))
    (options.out / "answers.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
