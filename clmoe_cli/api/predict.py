"""``predict``: labels for images of any learned task, without a task id."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from clmoe_cli.api import common, explaining, gating, ranges
from clmoe_cli.api.checks import check_values
from clmoe_cli.api.inputs import Expected, kind_text
from clmoe_cli.api.opened import Opened
from clmoe_cli.api.predictions import Likely, Predicted, Prediction, Predictions, Route, Written
from clmoe_cli.api.reasons import Case
from clmoe_cli.api.reports import Caution, Json, Report
from clmoe_cli.api.scoring import Scores, score
from clmoe_cli.backbone.session import check_backbone
from clmoe_cli.data import Batch
from clmoe_cli.data.batch import check_batch
from clmoe_cli.data.labels import Label, LabelEncoder
from clmoe_cli.method.images import taken
from clmoe_cli.method.reproducible import logits
from clmoe_cli.method.routing import paper
from clmoe_cli.method.routing.decide import Decision, most_likely
from clmoe_cli.method.routing.paper import DEFAULT_ROUTER, GATED, ROUTERS
from clmoe_cli.runtime.choices import ROUTES
from clmoe_cli.runtime.distributed.stores import in_shares
from clmoe_cli.runtime.events import OnStep, begun, counted, silent
from clmoe_cli.runtime.words import check_rate, one_of
from clmoe_cli.store_tensors import Loader
from store_schema import BadInput, GateRecord, Manifest, UsageProblem

UNSURE = 0.8
"""An answer of less confidence is unsure: where confidence is calibrated, one in five of the best of them is wrong."""
EVERY = (*GATED, *ROUTERS)


@dataclass(frozen=True)
class PredictReport(Report):
    """One row per image, in the order of the file.

    ``label`` [N] (int64, or strings), ``task`` and ``expert`` [N] names, ``confidence`` [N] in 0 to 1, ``known``
    [N] bool (the image is not rejected), ``p_value`` [N] (NaN: not available). ``scores``: when the file has labels.
    ``file`` [N]: of a folder, the picture's path in it. ``skipped``: broken pictures without a row. ``first``: index of
    the first row, of a part of the file. ``explained``: why, where it was asked for. ``warnings``: what looks
    wrong with the file as a whole. ``reject``: the p-value below which images are marked unknown; None where none is:
    then all are known, and nobody has asked. ``truth``: the labels of the file, as they are in it, and ``right`` [N]
    whether they were answered. ``top_label`` and ``top_confidence`` [N, K]: where they were asked for, the most likely
    labels, the answer first; where fewer were compared the confidence is NaN, and the label says nothing. ``shown``:
    positions of the rows that are printed and written, None for all.
    """

    schema: ClassVar[str] = Predicted.schema
    label: NDArray[np.generic]
    labels: tuple[Label, ...]
    task: NDArray[np.str_]
    expert: NDArray[np.str_]
    confidence: NDArray[np.float64]
    known: NDArray[np.bool_]
    p_value: NDArray[np.float64]
    router: str | None
    route: Route
    scores: Scores | None
    file: NDArray[np.str_] | None = None
    skipped: int = 0
    first: int = 0
    explained: explaining.Explanation | None = None
    warnings: tuple[Caution, ...] = ()
    reject: float | None = None
    truth: tuple[Label, ...] | None = None
    right: NDArray[np.bool_] | None = None
    top_label: NDArray[np.generic] | None = None
    top_confidence: NDArray[np.float64] | None = None
    shown: NDArray[np.int64] | None = None

    def only(self, which: str | None) -> PredictReport:
        """The report of which just the ``wrong``, ``unsure`` or ``unknown`` rows are printed and written; None: all."""
        return self if which is None else replace(self, shown=self.rows_of(which))

    def rows_of(self, which: str) -> NDArray[np.int64]:
        """Positions of the rows that are ``wrong``, ``unsure`` or ``unknown``; none are wrong without labels."""
        if which == "wrong":
            return np.flatnonzero([] if self.right is None else ~self.right)
        return np.flatnonzero(self.confidence < UNSURE if which == "unsure" else ~self.known)

    def in_words(self, rows: Sequence[int]) -> list[str] | None:
        """Why the images at these positions were answered so, without figures; None where that was not asked for."""
        return None if self.explained is None else self.explained.in_words(rows, self.confidence[list(rows)].tolist())

    @property
    def count(self) -> int:
        """How many rows are printed and written."""
        return len(self.labels) if self.shown is None else len(self.shown)

    @property
    def accuracy(self) -> float | None:
        """Share of right labels, when the file has labels."""
        return None if self.scores is None else self.scores.accuracy

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The columns of an ``.npz`` output."""
        columns: dict[str, NDArray[np.generic]] = {} if self.file is None else {"file": self.file}
        columns |= {"label": self.label, "task": self.task, "expert": self.expert, "confidence": self.confidence}
        columns |= {"known": self.known, "p_value": self.p_value}
        columns |= {} if self.explained is None else self.explained.arrays()
        if self.top_label is not None and self.top_confidence is not None:
            columns |= {"top_label": self.top_label, "top_confidence": self.top_confidence}
        if self.shown is None:
            return columns
        columns = {"index": np.arange(self.first, self.first + len(self.labels)), **columns}
        return {name: value[self.shown] for name, value in columns.items()}

    def rows(self, candidates: bool = True) -> list[Prediction]:
        """One object per image that is shown; of what is explained the ``candidates`` only if they are wanted."""
        columns = zip(
            [None] * len(self.labels) if self.file is None else self.file.tolist(),
            self.labels,
            self.task.tolist(),
            self.expert.tolist(),
            self.confidence.tolist(),
            [None] * len(self.labels) if self.reject is None else self.known.tolist(),
            [None if np.isnan(p) else p for p in self.p_value.tolist()],
            strict=True,
        )
        rows = [
            Prediction(
                index=i,
                file=file,
                label=label,
                task=task,
                expert=expert,
                confidence=confidence,
                known=known,
                p_value=p_value,
            )
            for i, (file, label, task, expert, confidence, known, p_value) in enumerate(columns, start=self.first)
        ]
        rows = rows if self.explained is None else self.explained.added_to(rows, candidates)
        if self.top_label is not None and self.top_confidence is not None:
            pairs = zip(self.top_label.tolist(), self.top_confidence.tolist(), strict=True)
            tops = [tuple(Likely(b, c) for b, c in zip(*pair, strict=True) if c == c) for pair in pairs]
            rows = [replace(row, top=top) for row, top in zip(rows, tops, strict=True)]
        if self.shown is None:
            return rows
        truth = self.truth or [None] * len(rows)
        return [replace(rows[i], truth=truth[i]) for i in self.shown.tolist()]

    def printed(self) -> Predictions:
        """What ``--json`` prints."""
        return Predictions(**vars(self._over_all()), predictions=tuple(self.rows()))

    def written(self, output: str) -> Written:
        """What ``--json`` prints where the predictions are in the file ``output``."""
        return Written(**vars(self._over_all()), output=output)

    def _over_all(self) -> Predicted:
        scores = self.scores
        return Predicted(
            router=self.router,
            route=self.route,
            rejected=int((~self.known).sum()),
            skipped=self.skipped,
            warnings=self.warnings,
            decided_by=None if self.explained is None else self.explained.decided_by,
            accuracy=None if scores is None else scores.accuracy,
            accuracy_by_task=None if scores is None else scores.accuracy_by_task,
            confusion=None if scores is None else scores.confusion,
            calibration_error=None if scores is None else scores.calibration_error,
            per_class=None if scores is None else scores.per_class,
            confusion_of_labels=None if scores is None else scores.wrong,
            calibration=None if scores is None else scores.calibration,
        )

    def to_json(self) -> dict[str, Json]:
        """The contract's object."""
        return self.printed().to_json()


def predict(
    store: str | Opened,
    batch: Batch,
    *,
    router: str = DEFAULT_ROUTER,
    route: str = "image",
    batch_size: int | None = None,
    task: str | None = None,
    reject: float | None = None,
    device: str = "cpu",
    on_part: Callable[[PredictReport], None] | None = None,
    on_step: OnStep = silent,
    explain: bool = False,
    top: int | None = None,
) -> PredictReport:
    """Predicts every image of a batch; the store is only read.

    ``route``: ``image`` (each by itself) or ``batch`` (all images are one task's, or every ``batch_size``
    consecutive ones). ``task``: no routing, answer
    among that task's classes. ``reject``: images whose p-value is below it are marked unknown. ``on_part`` is told the
    rows of the next images, without scores, as soon as they are decided; each row once, all of one state of the store.
    ``explain``: the report says of each image why; the answers stay the same. ``top``: it has so many of the most
    likely labels; of other routers than ``fused`` and ``gate`` they are those of the task that answers.

    Raises UsageProblem for unknown names, BadInput for images that no expert (or not the given task) can
    read, and the store's errors.
    """
    check_batch(batch)
    one_of("router", router, list(EVERY))
    one_of("value of --route", route, ROUTES)
    if reject is not None:
        check_rate("--reject", reject)
    if batch_size is not None and (route != "batch" or not isinstance(batch_size, int) or batch_size < 1):
        raise UsageProblem(
            "--batch-size says how many consecutive images belong to one task",
            found=f"{batch_size} with --route {route}",
            expected="1 or more, with --route batch",
        )
    if top is not None and (not isinstance(top, int) or top < 1):
        raise UsageProblem("--top is a number of labels", key="--top", found=str(top), expected="1 or more")
    together = None if route == "image" else min(batch_size or len(batch.images), len(batch.images))
    asked = _Asked(router, together, task, reject, explain, on_part, on_step, top or 0)
    return Opened.existing(store).read(lambda snapshot: _predict(Loader(snapshot, device), batch, asked))


def check_only(which: str | None, reject: float | None, labelled: bool) -> None:
    """Refuses rows that cannot be told: BadInput for ``wrong`` without labels, UsageProblem for ``unknown`` without a
    rate of rejection."""
    if which == "wrong" and not labelled:
        raise BadInput("no labels tell what is wrong", key="--only", found="wrong", expected="data with labels")
    if which == "unknown" and reject is None:
        raise UsageProblem("nothing is unknown without --reject", key="--only", found=which, hint="add --reject 0.05")


@dataclass(frozen=True)
class _Asked:
    """What :func:`predict` is asked for; ``together``: how many consecutive images are of one task, None for one."""

    router: str
    together: int | None
    only: str | None
    reject: float | None
    explain: bool
    on_part: Callable[[PredictReport], None] | None
    on_step: OnStep
    top: int

    def gated(self, kind: GateRecord | None) -> bool:
        """Whether the gate of a kind of input answers.

        What is asked of one task is answered by the same model; stores of formats 1 and 2 have the subnetwork answer.
        """
        return self.router in GATED and (self.only is None or (kind is not None and kind.rule is not None))


def _predict(loader: Loader, batch: Batch, asked: _Asked) -> PredictReport:
    names = _candidates(loader.manifest, batch, asked.only)
    kind = loader.manifest.gate(batch.input_shape, batch.input)
    gated = asked.gated(kind)
    book = LabelEncoder.of(*(loader.manifest.task(name).classes for name in names))
    homes = [loader.manifest.task(name).expert for name in names]
    check_values([loader.manifest.expert(home) for home in set(homes)], batch, asked.on_step)

    def decide(rows: slice) -> Iterator[Decision]:
        share = batch.taken(rows)
        if gated:
            # Read before the first row is out: a commit that sweeps one of these files later must not start it all
            # again.
            for name in names if asked.on_part is not None else ():
                loader.answering(name)
                if asked.explain:
                    loader.task(name)
            why = explaining.of_gate(loader, share, names) if asked.explain else None
            route = gating.Route(only=True) if asked.only else gating.Route(asked.together)
            top = min(asked.top, len(book.labels))
            return gating.decide(loader, share, names, book, asked.router, route, asked.on_step, why, top)
        return _routed(loader, share, names, book, asked)

    densities = kind is not None and kind.rule is not None
    by = asked.router if gated or asked.only is None else "task"
    case = Case(
        by, asked.together is not None and not asked.only, asked.reject, densities, given=asked.only is not None
    )

    every, read = (book, None) if batch.labels is None else book.reading(batch.labels)

    def report_of(found: Decision, first: int = 0) -> PredictReport:
        codes, p_value = found.code.numpy(), found.p_value.numpy()
        rows = slice(first, first + len(codes))
        files = None if batch.files is None else np.array(batch.files[rows], dtype=np.str_)
        return PredictReport(
            label=book.decode(codes),
            labels=tuple(book.labels[i] for i in codes.tolist()),
            task=np.array(names, dtype=np.str_)[found.task.numpy()],
            expert=np.array(homes, dtype=np.str_)[found.task.numpy()],
            confidence=found.confidence.numpy(),
            known=np.ones(len(codes), dtype=bool) if asked.reject is None else ~(p_value < asked.reject),
            p_value=p_value,
            router=None if asked.only else asked.router,
            route="task" if asked.only else "image" if asked.together is None else "batch",
            scores=None,
            file=files,
            skipped=len(batch.skipped),
            first=first,
            explained=explaining.explained(found, case, names, homes, book),
            reject=asked.reject,
            truth=None if read is None else tuple(every.labels[code] for code in read[rows].tolist()),
            right=None if read is None else read[rows] == codes,
            **_top(found, book),
        )

    parts, done = [], 0
    for part in in_shares(len(batch.images), asked.together or 1, decide, Decision.joined):
        if asked.on_part is not None:
            asked.on_part(report_of(part, done))
        parts.append(part)
        done += len(part.code)
    decision = Decision.joined(parts)
    expected = Expected.of(loader.manifest)
    expected = expected if asked.only is None else expected.by(loader.manifest, asked.only)
    report = replace(report_of(decision), warnings=ranges.cautions(expected, batch))
    if batch.labels is None:
        return report
    classes = {name: loader.manifest.task(name).classes for name in names}
    codes = decision.code.numpy()
    return replace(report, scores=score(batch.labels, codes, book, report.task, report.confidence, classes))


def _top(found: Decision, book: LabelEncoder) -> dict[str, Any]:
    """The fields of a report with the most likely labels of a decision that names them."""
    if found.best is None or found.likely is None:
        return {}
    codes, likely = found.best.numpy(), found.likely.numpy()
    # What is missing has a label that means nothing, since an array has no gaps.
    return {"top_label": book.decode(np.maximum(codes, 0)), "top_confidence": np.where(codes < 0, np.nan, likely)}


def _candidates(manifest: Manifest, batch: Batch, only: str | None) -> list[str]:
    """Names of the tasks that could answer; BadInput when none (or not the given one) reads such images."""
    check_backbone(Expected.of(manifest).backbone, batch)
    if only is None:
        common.experts_for(manifest, batch)
        return [t.name for t in manifest.tasks_of_shape(batch.input_shape, batch.input)]
    only = one_of("task", only, [t.name for t in manifest.tasks])
    record = manifest.expert(manifest.task(only).expert)
    if not common.reads(record, batch):
        raise BadInput(
            "the task's expert reads images of another shape",
            where=batch.source,
            key=only,
            found=kind_text(batch.input_shape, batch.input),
            expected=kind_text(record.input_shape, record.input),
        )
    return [only]


def _routed(loader: Loader, batch: Batch, names: list[str], book: LabelEncoder, asked: _Asked) -> Iterator[Decision]:
    """Decides by evidence of whole subnetworks, some images at a time; with one task given that one answers."""
    on_step, together = asked.on_step, asked.together
    router = None if asked.only else asked.router
    tasks = [loader.task(name) for name in counted(names, on_step, "reading the store", "tasks")]
    inputs = common.inputs_of(loader, [task.expert for task in tasks], batch)
    to = begun(on_step, "routing" if router else "answering", len(batch.images), "images")
    explainer = None
    if asked.explain:
        ask = explaining.asked(loader, batch, names, inputs)
        explainer = explaining.OfSubnetworks(loader, names, book, router, together, inputs, ask)
    for rows in torch.arange(len(batch.images)).split((together if router else None) or paper.CHUNK):
        x = [taken(every, rows) for every in inputs]
        evidence = torch.zeros(len(rows), 1, dtype=torch.float64)
        if router is not None:
            evidence = paper.weigh(ROUTERS[router], tasks, x, together)
        chosen, posterior = evidence.argmax(dim=1), evidence.softmax(dim=1)
        codes = torch.zeros(len(rows), dtype=torch.long)
        confidence = torch.zeros(len(rows), dtype=torch.float64)
        p_value = torch.zeros(len(rows), dtype=torch.float64)
        count = min(asked.top, len(book.labels))
        top = (torch.full((len(rows), count), -1), torch.zeros(len(rows), count, dtype=torch.float64))
        for i in chosen.unique().tolist():
            task, where = tasks[i], (chosen == i).nonzero()[:, 0]
            some = taken(x[i], where)
            shares = logits(task.net, task.params, some).softmax(dim=1)
            best = shares.max(dim=1)
            classes = torch.tensor(book.codes(loader.manifest.task(task.name).classes))
            codes[where] = classes[best.indices]
            confidence[where] = best.values * posterior[where, i]
            own = most_likely(shares * posterior[where, i, None], classes.expand(len(where), -1), count)
            top[0][where], top[1][where] = own[0], own[1].double()
            deviation = paper.deviations(task, some, ["fisher"])["fisher"]
            p_value[where] = task.calibration["fisher"].p_values(deviation)
        decision = Decision(chosen, codes, confidence, p_value, None, *(top if count else (None, None)))
        if explainer is not None:
            decision = replace(decision, why=explainer.candidates(decision, evidence, rows))
        yield decision
        to(int(rows[-1]) + 1)
