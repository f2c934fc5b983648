"""``predict``: labels for images of any learned task, without a task id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from clmoe_cli.commands import common
from clmoe_cli.commands.names import one_of
from clmoe_cli.commands.reports import Report
from clmoe_cli.continual.experts import logits
from clmoe_cli.continual.routing import DEFAULT_ROUTER, ROUTERS, Subnetwork, deviations, route
from clmoe_cli.data import Batch
from clmoe_cli.labels import Codebook, Label
from clmoe_cli.state import Loader
from store_schema import BadInput, Store, UsageProblem, read_consistently

ROUTES = ("image", "batch")


@dataclass(frozen=True)
class PredictReport(Report):
    """One row per image, in the order of the file.

    ``label`` [N] (int64, or strings), ``task`` and ``expert`` [N] names, ``confidence`` [N] in 0 to 1, ``known``
    [N] bool (the image is not rejected), ``p_value`` [N] (NaN: not available). ``accuracy``: share of right labels
    when the file has labels; ``accuracy_by_task`` the same by the task that answered.
    """

    schema: ClassVar[str] = "clmoe.predict/1"
    label: NDArray[np.generic]
    labels: tuple[Label, ...]
    task: NDArray[np.str_]
    expert: NDArray[np.str_]
    confidence: NDArray[np.float64]
    known: NDArray[np.bool_]
    p_value: NDArray[np.float64]
    router: str | None
    route: str
    accuracy: float | None
    accuracy_by_task: dict[str, float]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """The columns of an ``.npz`` output."""
        return {k: getattr(self, k) for k in ("label", "task", "expert", "confidence", "known", "p_value")}

    def rows(self) -> list[dict[str, Any]]:
        """One plain object per image."""
        columns = (
            self.labels,
            self.task.tolist(),
            self.expert.tolist(),
            self.confidence.tolist(),
            self.known.tolist(),
            [None if np.isnan(p) else p for p in self.p_value.tolist()],
        )
        keys = ("label", "task", "expert", "confidence", "known", "p_value")
        return [{"index": i, **dict(zip(keys, row, strict=True))} for i, row in enumerate(zip(*columns, strict=True))]

    def to_json(self) -> dict[str, Any]:
        """The contract's object."""
        return {
            "schema": self.schema,
            "router": self.router,
            "route": self.route,
            "predictions": self.rows(),
            "accuracy": self.accuracy,
            "accuracy_by_task": self.accuracy_by_task,
        }


def predict(
    store: str,
    batch: Batch,
    *,
    router: str = DEFAULT_ROUTER,
    route: str = "image",
    task: str | None = None,
    reject: float | None = None,
) -> PredictReport:
    """Predicts every image of a batch; the store is only read.

    ``route``: ``image`` (each by itself) or ``batch`` (all images are one task's). ``task``: no routing, answer
    among that task's classes. ``reject``: images whose p-value is below it are marked unknown.

    Raises UsageProblem for unknown names, BadInput for images that no expert (or not the given task) can
    read, and the store's errors.
    """
    one_of("router", router, list(ROUTERS))
    one_of("value of --route", route, ROUTES)
    if reject is not None and not 0.0 <= reject <= 1.0:
        raise UsageProblem("--reject is a rate", found=str(reject), expected="a number from 0 to 1")
    return read_consistently(store, lambda opened: _predict(opened, batch, router, route, task, reject))


def _predict(
    opened: Store, batch: Batch, router: str, mode: str, only: str | None, reject: float | None
) -> PredictReport:
    loader, manifest = Loader(opened), opened.manifest
    if only is not None:
        one_of("task", only, [t.name for t in manifest.tasks])
        record = manifest.expert(manifest.task(only).expert)
        if record.input_shape != batch.input_shape:
            raise BadInput(
                "the task's expert reads images of another shape",
                where=batch.source,
                key=only,
                found=common.shape_text(batch.input_shape),
                expected=common.shape_text(record.input_shape),
            )
        names = [only]
    else:
        experts = common.experts_for(manifest, batch)
        names = [t.name for e in experts for t in manifest.tasks_of(e.id)]
    tasks = loader.tasks(names)
    scales = {t.name: manifest.expert(t.expert).input_scale for t in tasks}
    scaled = {scale: common.flat(batch, scale) for scale in set(scales.values())}
    inputs = {name: scaled[scales[name]] for name in names}
    n = len(batch.images)
    if only is not None:
        chosen, posterior = torch.zeros(n, dtype=torch.long), torch.ones(n, 1, dtype=torch.float64)
    else:
        together = mode == "batch"
        evidence = ROUTERS[router](tasks, [inputs[name] for name in names], together)
        chosen, posterior = route(evidence, together)
    book = Codebook.of(*(manifest.task(name).classes for name in names))
    codes, confidence, p_value = _answers(tasks, inputs, chosen, posterior, book, loader)
    label = book.decode(codes.numpy())
    return PredictReport(
        label=label,
        labels=tuple(book.labels[i] for i in codes.tolist()),
        task=np.array(names, dtype=np.str_)[chosen.numpy()],
        expert=np.array([t.expert for t in tasks], dtype=np.str_)[chosen.numpy()],
        confidence=confidence.numpy(),
        known=np.ones(n, dtype=bool) if reject is None else ~(p_value.numpy() < reject),
        p_value=p_value.numpy(),
        router=None if only else router,
        route="task" if only else mode,
        **_accuracy(batch, book, codes, chosen, names),
    )


def _answers(
    tasks: list[Subnetwork],
    inputs: dict[str, Tensor],
    chosen: Tensor,
    posterior: Tensor,
    book: Codebook,
    loader: Loader,
) -> tuple[Tensor, Tensor, Tensor]:
    """Label codes, confidence and p-value [N]: each image is answered by the task that it was routed to."""
    codes = torch.zeros(len(chosen), dtype=torch.long)
    confidence = torch.zeros(len(chosen), dtype=torch.float64)
    p_value = torch.zeros(len(chosen), dtype=torch.float64)
    for i in chosen.unique().tolist():
        task, where = tasks[i], (chosen == i).nonzero()[:, 0]
        x = inputs[task.name][where]
        best = logits(task.params, x).double().softmax(dim=1).max(dim=1)
        own = torch.tensor(book.codes(loader.manifest.task(task.name).classes))
        codes[where] = own[best.indices]
        confidence[where] = best.values * posterior[where, i]
        p_value[where] = task.calibration["fisher"].p_values(deviations(task, x, ["fisher"])["fisher"])
    return codes, confidence, p_value


def _accuracy(batch: Batch, book: Codebook, codes: Tensor, chosen: Tensor, names: list[str]) -> dict[str, Any]:
    if batch.labels is None:
        return {"accuracy": None, "accuracy_by_task": {}}
    every = Codebook.of(book.labels, batch.classes())
    right = torch.from_numpy(every.encode(batch.labels)) == codes
    by_task = {names[i]: float(right[chosen == i].double().mean()) for i in chosen.unique().tolist()}
    return {"accuracy": float(right.double().mean()), "accuracy_by_task": by_task}
