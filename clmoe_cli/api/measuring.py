"""What ``learn`` measures of a task with the gate: its statistics, the weight of its subnetwork, and how right it is.

Held-out images are answered as ``predict`` answers, by a gate whose statistics of this task leave them out. So what is
reported is what will happen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from clmoe_cli.api import common
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label, LabelEncoder
from clmoe_cli.method import privacy
from clmoe_cli.method.images import Rows, taken
from clmoe_cli.method.learn_task import Learned
from clmoe_cli.method.routing import decide, gaussians, subspaces
from clmoe_cli.method.routing.features import ROOT, VECTOR, AnyEye, features, width
from clmoe_cli.method.routing.gaussians import GaussianGate, Gaussians
from clmoe_cli.method.routing.subspaces import Subspaces
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnDone, OnStep, after, begun, silent, whole
from clmoe_cli.store_tensors import Loader

MOST = 20_000
"""Images of a class that its statistics rest on; of more, so many are taken evenly."""
NUMBERS = limits.FEATURE_NUMBERS
FEW = 64
"""Images of a class, on average, that tell how large noise is to be."""
WEIGHTS = 41
"""Weights of a subnetwork that are tried, evenly from 0 to 1."""
EARNED = 2.0
"""Nats by which held-out images have to prefer a weight to none, about what 5 % of chance differences reach."""


@dataclass(frozen=True)
class Confusion:
    """Held-out ``images`` of the class ``label`` of a new task, of which ``taken`` are answered as ``other`` of the
    known task ``task``."""

    label: Label
    images: int
    other: Label
    task: str
    taken: int


@dataclass(frozen=True)
class Measured:
    """The gate's statistics of a task, and what held-out images tell of its answers.

    ``opinion``: weight of the subnetwork beside the gate within the task. ``answer``: share of held-out images that are
    answered right among all known tasks; ``within``: with the task given. ``per_class``: of ``answer``, images and
    share for each class. ``held_out``: how many images that is. ``guessing``: the share of the largest class among all
    images of the task. None where there are no held-out images. ``confused``: of each class the class of another task
    for which most of its held-out images are taken, if any are. ``wrong``: position of a class, the label that its
    images were answered as, and how many were. ``confidence`` and ``right`` [held_out]: of each held-out image.
    """

    statistics: Subspaces
    guessing: float
    opinion: float | None = None
    answer: float | None = None
    within: float | None = None
    per_class: tuple[tuple[int, float | None], ...] | None = None
    held_out: int = 0
    confused: tuple[Confusion, ...] = ()
    wrong: tuple[tuple[int, Label, int], ...] = ()
    confidence: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    right: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))


@dataclass(frozen=True)
class Kind:
    """A kind of input as the gate sees it: the name of its features, their scale, and the tasks that read it.

    ``subspaces``: whether its gate is one of formats 1 and 2, which goes on with subspaces. ``eye``: what looks at
    images beside the fixed features, None for nothing.
    """

    features: str
    scale: float
    names: tuple[str, ...]
    subspaces: bool = False
    eye: AnyEye | None = None

    @property
    def even(self) -> bool:
        """Whether all features have one unit."""
        return self.features not in (VECTOR, ROOT)


@dataclass(frozen=True, eq=False)
class DataFeatures:
    """A task's images as the gate sees them.

    ``x``: all of them [N, D], in units of the kind's scale, with class ``y`` [N] among ``classes``; ``values``: the
    features [n, d] of those at ``rows`` [n], on which statistics rest. Subspaces look at one class at a time: they have
    no ``rows`` here.
    """

    shape: tuple[int, ...]
    kind: Kind
    classes: tuple[Label, ...]
    x: Rows
    y: Tensor
    rows: Tensor
    values: Tensor

    @staticmethod
    def of(batch: Batch, kind: Kind, classes: tuple[Label, ...], on_step: OnStep = silent) -> DataFeatures:
        """Computes the features of a labelled batch: of all images, or of each class of so many as memory has room
        for."""
        assert batch.labels is not None
        y = torch.from_numpy(LabelEncoder.of(classes).encode(batch.labels))
        x, shape, rows, values = common.rows(batch, Scaling(kind.scale)), batch.input_shape, y[:0], torch.zeros(0, 0)
        if not kind.subspaces:
            rows = _some(y, NUMBERS // width(shape, kind.features, kind.eye))
            seen = begun(on_step, "features", len(rows), "images")
            values = features(taken(x, rows), shape, kind.features, seen, kind.eye)
        return DataFeatures(shape, kind, classes, x, y, rows, values)

    def at(self, rows: Tensor, on_done: OnDone = lambda done: None) -> Tensor:
        """The features [m, d] of images at these positions [m] among all."""
        return features(taken(self.x, rows), self.shape, self.kind.features, on_done, self.kind.eye)


def measured_subspaces(data: DataFeatures, on_step: OnStep = silent) -> Measured:
    """The statistics of a kind of input of formats 1 and 2, which goes on with subspaces.

    The features of one class at a time are in memory.
    """
    y, classes = data.y, len(data.classes)
    most = min(MOST, NUMBERS // width(data.shape, data.kind.features, data.kind.eye))
    counts = torch.bincount(y, minlength=classes).clamp(max=most).tolist()
    to, parts = begun(on_step, "gate", sum(counts), "images"), []
    for c in range(classes):
        rows = (y == c).nonzero()[:, 0]
        rows = rows[torch.linspace(0, len(rows) - 1, counts[c]).round().long()]
        # One image short: a class is done when its subspace is.
        parts.append(subspaces.fit(data.at(rows, after(to, sum(counts[:c]) - 1))))
    to(sum(counts))
    joined = Subspaces.joined(parts)
    return Measured(replace(joined, means=(joined.means.double() + _noise(data)).float()), _largest(y))


def _noise(data: DataFeatures) -> Tensor:
    """What is added to the means of classes of few images, [C, d] float64, from a few features of each class."""
    counts = torch.bincount(data.y)
    if int(counts.min()) >= privacy.LEAST:
        return torch.zeros(())
    rows = _some(data.y, FEW * len(counts))
    values = data.at(rows)
    return privacy.noise(values, data.y[rows], len(counts), privacy.drawing(values))


def measured(loader: Loader, data: DataFeatures, learned: Learned, on_step: OnStep = silent) -> Measured:
    """Measures a task that was just learned from ``data``; ``data.kind.names``: the other tasks of its kind."""
    y, rows, values, kind, classes = data.y, data.rows, data.values, data.kind, data.classes
    with whole(on_step, "gate"):
        held = torch.isin(rows, learned.held)
        noise = privacy.noise(values, y[rows], len(classes), privacy.drawing(values))
        own = gaussians.fit(values, y[rows], len(classes), kind.even, noise)
    with whole(on_step, "held-out answers"):
        others = [loader.gaussians(name) for name in kind.names]
        asked = _Asked(loader, kind.names, others, classes, noise)
        if not len(learned.held):
            return asked.by_folds(own, values, y[rows])
        part = gaussians.fit_part(values[~held], y[rows][~held], len(classes), own.units).noisy(noise)
        answers = asked.answers(gaussians.without(own, part), data.at(learned.held), y[learned.held], learned.said)
        return replace(answers, statistics=own, guessing=_largest(y))


@dataclass(frozen=True)
class _Asked:
    """A new task among the other tasks of its kind; ``noise`` [C, d]: what is on the means of its classes."""

    loader: Loader
    names: Sequence[str]
    others: Sequence[Gaussians]
    classes: tuple[Label, ...]
    noise: Tensor

    def answers(self, own: Gaussians, values: Tensor, y: Tensor, said: Tensor | None) -> Measured:
        """What features [n, d] of held-out images with class y [n] tell; ``said`` [n, C]: log-probabilities of the
        task's subnetwork for them, None where it has seen them."""
        every: list[Gaussians] = [*self.others, own]
        solved = GaussianGate.of(gaussians.solve(every), [len(t.means) for t in every])
        mine = len(self.others)

        def statistics(task: int) -> Subspaces:
            return every[task]

        # With the task given its own statistics answer, so that later tasks change nothing.
        by_gate = gaussians.alone(own).within(values, 0, lambda task: own).likely.log_softmax(dim=1)
        weight = 0.0 if said is None else opinion_weight(by_gate, said, y)
        within = by_gate if said is None else decide.mixed(by_gate, said, weight)
        records = [self.loader.manifest.task(name) for name in self.names]
        book = LabelEncoder.of(*(t.classes for t in records), self.classes)
        codes = torch.tensor([code for t in records for code in book.codes(t.classes)] + book.codes(self.classes))
        # Other tasks' subnetworks only part their own classes; whether the label is right depends on this task's alone.
        opinion = None if said is None else lambda task, rows: self._said(task, rows, said, every)
        weights = [0.0] * mine + [weight]
        sources = decide.Sources(solved, codes, statistics, opinion, weights=weights)
        found = decide.decide_images(sources, values, torch.arange(len(values)))
        right = found.code == torch.tensor(book.codes(self.classes))[y]
        counts = torch.bincount(y, minlength=len(self.classes))
        hits = torch.bincount(y[right], minlength=len(self.classes))
        each = tuple((int(n), int(k) / int(n) if n else None) for n, k in zip(counts, hits, strict=True))
        lost = (~right).nonzero()[:, 0]
        taken_for = torch.stack([y[lost], found.task[lost], found.code[lost]], dim=1)
        rows, times = taken_for.unique(dim=0, return_counts=True)
        pairs = list(zip(rows.tolist(), times.tolist(), strict=True))
        confused = _most(
            Confusion(self.classes[c], int(counts[c]), book.labels[code], self.names[task], n)
            for (c, task, code), n in pairs
            if task < mine
        )
        return Measured(
            own,
            0.0,
            weight,
            float(right.double().mean()),
            float((within.argmax(dim=1) == y).double().mean()),
            each,
            len(y),
            confused,
            _summed((c, book.labels[code], n) for (c, _, code), n in pairs),
            found.confidence,
            right,
        )

    def by_folds(self, own: Gaussians, values: Tensor, y: Tensor) -> Measured:
        """The same where so few images were all trained on: each is answered by a fit that leaves it out.

        The subnetwork has seen them all, so that the gate answers alone.
        """
        fold = gaussians.folds(y)
        parts = []
        for i in range(subspaces.FOLDS):
            out = fold == i
            seen = torch.bincount(y[~out], minlength=len(self.classes)) > 0
            out &= seen[y]
            if bool(out.any()):
                rest = ~(fold == i)
                part = gaussians.fit_part(values[rest], y[rest], len(self.classes), own.units).noisy(self.noise)
                parts.append(self.answers(gaussians.without(own, part), values[out], y[out], None))
        if not parts:
            return Measured(own, _largest(y), opinion=0.0)
        sizes = [part.held_out for part in parts]

        def mean(name: str) -> float:
            return float(sum(getattr(p, name) * n for p, n in zip(parts, sizes, strict=True)) / sum(sizes))

        each = []
        for c in range(len(self.classes)):
            own_parts = [p.per_class[c] for p in parts if p.per_class is not None]
            images = sum(n for n, _ in own_parts)
            hits = sum(n * share for n, share in own_parts if share is not None)
            each.append((images, hits / images if images else None))
        held = dict(zip(self.classes, (images for images, _ in each), strict=True))
        together = Counter[tuple[Label, Label, str]]()
        for one in (one for part in parts for one in part.confused):
            together[one.label, one.other, one.task] += one.taken
        confused = _most(Confusion(label, held[label], other, task, n) for (label, other, task), n in together.items())
        return Measured(
            own,
            _largest(y),
            0.0,
            mean("answer"),
            mean("within"),
            tuple(each),
            sum(sizes),
            confused,
            _summed(one for part in parts for one in part.wrong),
            torch.cat([part.confidence for part in parts]),
            torch.cat([part.right for part in parts]),
        )

    @staticmethod
    def _said(task: int, rows: Tensor, said: Tensor, every: Sequence[Gaussians]) -> Tensor:
        if task < len(every) - 1:
            return torch.zeros(len(rows), len(every[task].means), dtype=torch.float64).log_softmax(dim=1)
        return said[rows]


def _most(found: Iterable[Confusion]) -> tuple[Confusion, ...]:
    """Of each class the one that takes most of its images."""
    most: dict[Label, Confusion] = {}
    for one in found:
        if one.label not in most or one.taken > most[one.label].taken:
            most[one.label] = one
    return tuple(most.values())


def _summed(wrong: Iterable[tuple[int, Label, int]]) -> tuple[tuple[int, Label, int], ...]:
    """Wrong answers with one row for each class and label, the most frequent first."""
    together = Counter[tuple[int, type, Label]]()
    for position, label, images in wrong:
        together[position, type(label), label] += images
    rows = [(position, label, images) for (position, _, label), images in together.items()]
    return tuple(sorted(rows, key=lambda row: (-row[2], row[0], str(row[1]))))


def opinion_weight(by_gate: Tensor, said: Tensor, y: Tensor) -> float:
    """The likeliest weight of a subnetwork, from log-probabilities [n, C] by the gate and by it, and the labels [n].

    The prior falls evenly with the weight (a Beta distribution). Unless the images prefer it to the gate alone by
    ``EARNED`` nats the weight is 0: where both are as good the gate answers, which no draw of training moves.
    """
    weights = torch.linspace(0, 1, WEIGHTS, dtype=torch.float64)[:-1]
    own, other = (logs.gather(1, y[:, None]) for logs in (by_gate, said))
    both = torch.logaddexp(own + (-weights).log1p(), other + weights.log())
    likely = both.sum(dim=0) + (-weights).log1p()
    best = int(likely.argmax())
    return float(weights[best]) if float(likely[best] - likely[0]) > EARNED else 0.0


def _largest(y: Tensor) -> float:
    """Share of the largest class: what guessing gives."""
    return float(torch.bincount(y).max()) / len(y)


def _some(y: Tensor, most: int) -> Tensor:
    """Rows whose features are looked at: all, or evenly of each class so many that they fit in memory; ascending."""
    counts = torch.bincount(y)
    kept = counts.clamp(max=MOST)
    if int(kept.sum()) > most:
        kept = (kept.double() * most / int(kept.sum())).long().clamp_min(1).minimum(kept)
    parts = []
    for c in counts.nonzero()[:, 0].tolist():
        rows = (y == c).nonzero()[:, 0]
        parts.append(rows[torch.linspace(0, len(rows) - 1, int(kept[c])).round().long()])
    return torch.cat(parts).sort().values
