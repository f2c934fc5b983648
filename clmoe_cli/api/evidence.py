"""What the known tasks say of a batch when onset asks: which of them are asked, and their p-values, image by image.

``gate`` judges by the p-values that ``predict --reject`` uses, so that the two cannot contradict each other: how usual
an image is for the task, and of a mixed batch for the task that answers it. ``fisher`` and ``gradient`` judge by how a
task's subnetwork deviates; ``gradient`` takes a batch as one task's, since gradients of single images tell tasks apart
badly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from clmoe_cli.api import common, gating
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import LabelEncoder
from clmoe_cli.method.reproducible import logits
from clmoe_cli.method.routing.calibration import MINIMUM, batch_p_value
from clmoe_cli.method.routing.features import features
from clmoe_cli.method.routing.paper import Subnetwork, deviations
from clmoe_cli.method.routing.subspaces import Subspaces
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork.image_scores import SIZES, ImageReference, divergence_p_value
from clmoe_cli.method.tasks.novelty import Evidence
from clmoe_cli.method.tasks.shortlist import LIMIT, shortlist, voted
from clmoe_cli.runtime.events import OnStep, counted, silent
from clmoe_cli.store_tensors import Loader

GATE = "gate"


def shortlisted(loader: Loader, batch: Batch) -> list[str]:
    """The tasks that read this kind of input and that a batch is worth comparing with, in the order of learning.

    The solved gate says which, as it does in ``predict``; it takes no notice of brightness. Stores without one have
    sketches (:mod:`clmoe_cli.method.tasks.shortlist`).
    """
    manifest = loader.manifest
    records = manifest.tasks_of_shape(batch.input_shape, batch.input)
    names = [t.name for t in records]
    if len(names) <= LIMIT:
        return names
    if manifest.gate(batch.input_shape, batch.input) is not None:
        gate = loader.gate(batch.input_shape, batch.input)
        chosen = gate.shortlist(_seen(loader, batch))[1]
        return [names[i] for i in voted(gate.owner[chosen], len(names), LIMIT)]
    # Sketches are means: dividing by the expert's factor brings them to the batch's own units.
    sketches = [torch.tensor(t.sketch) / loader.scaling(t.expert).factor for t in records]
    plain = common.rows(batch, Scaling())
    return [names[i] for i in shortlist(sketches, [plain] * len(sketches), LIMIT)]


def onset_evidence(
    loader: Loader, names: Sequence[str], batch: Batch, book: LabelEncoder, kind: str, on_step: OnStep = silent
) -> tuple[dict[str, Evidence], dict[str, Tensor]]:
    """Evidence of each named task on all images of a batch, and its raw deviations [N].

    ``kind``: one of :data:`clmoe_cli.runtime.choices.EVIDENCE`. The raw deviation of ``gate`` is the distance from
    the task's nearest class. Raises StoreIncompatible for ``gate`` in a store whose gate this version cannot read.
    """
    if kind == GATE:
        gating.check(loader.manifest, batch, "choose another --evidence, as fisher")
        values, gate = _seen(loader, batch), loader.gate(batch.input_shape, batch.input)
        order = [t.name for t in loader.manifest.tasks_of_shape(batch.input_shape, batch.input)]

        def statistics(task: int) -> Subspaces:
            return loader.statistics(order[task])

        compared = gate.compare(values, statistics)
        answering = gate.owner[compared.chosen.gather(1, compared.likely.argmax(dim=1, keepdim=True))[:, 0]]
    found: dict[str, Evidence] = {}
    raw: dict[str, Tensor] = {}
    for name in counted(names, on_step, "onset", "tasks"):
        codes = torch.tensor(book.codes(loader.manifest.task(name).classes))
        if kind == GATE:
            at = gate.within(values, order.index(name), statistics).likely.argmax(dim=1)
            won = answering == order.index(name)
            found[name], raw[name] = _of_gate(loader, name, values, codes, at, won)
        else:
            found[name], raw[name] = _of_subnetwork(loader, name, batch, codes, kind)
    return found, raw


def _seen(loader: Loader, batch: Batch) -> Tensor:
    """The gate's features [N, d] of all images of a batch."""
    record = loader.manifest.gate(batch.input_shape, batch.input)
    assert record is not None
    x = common.flat(batch, Scaling(record.input_scale))
    return features(x, batch.input_shape, record.features, eye=loader.eye(record))


def _of_gate(
    loader: Loader, name: str, values: Tensor, codes: Tensor, at: Tensor, won: Tensor
) -> tuple[Evidence, Tensor]:
    """``at`` [N]: the task's class that the gate answers for each image; ``won`` [N]: whether it answers the task."""
    own = loader.statistics(name)
    distances = own.all_distances(values)
    able = own.counts >= MINIMUM
    calibration = int(own.counts[able].min()) if bool(able.any()) else 0
    p = own.answered(values, at, distances)
    return Evidence(p, codes[at], frozenset(codes.tolist()), calibration, won=won), distances.min(dim=1).values


def _of_subnetwork(loader: Loader, name: str, batch: Batch, codes: Tensor, kind: str) -> tuple[Evidence, Tensor]:
    task = loader.task(name)
    x = common.flat(batch, loader.scaling(task.expert))
    raw = deviations(task, x, [kind])[kind]
    predicted = codes[logits(task.net, task.params, x).argmax(dim=1)]
    calibration = task.calibration[kind]
    p = calibration.p_values(raw)
    whole = _of_gradients(task, x, p) if kind == "gradient" and calibration.available else None
    return Evidence(p, predicted, frozenset(codes.tolist()), len(calibration.values), whole), raw


def _of_gradients(task: Subnetwork, x: Tensor, p: Tensor) -> float:
    """p-value of a batch as one of the task's, from its images' deviations and from the divergence of its S̃.

    The smaller of the two counts, doubled since there are two (Bonferroni). Fewer than 8 images, and tasks of older
    versions, have only the first.
    """
    by_image = batch_p_value(p, len(task.calibration["gradient"].values))
    if len(x) < min(SIZES) or not len(task.drawn):
        return by_image
    reference = ImageReference.of(task.mask, task.image_scores)
    apart = divergence_p_value(reference.of_batch(task.net, task.params, x), len(x), task.drawn)
    return min(1.0, 2 * min(by_image, apart))
