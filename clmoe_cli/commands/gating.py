"""The gate's part in ``learn`` and ``predict``: statistics of a new task, the solved gate of a shape, decisions."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from clmoe_cli.commands import common, ranges
from clmoe_cli.commands.inputs import kind_text
from clmoe_cli.continual import gate
from clmoe_cli.continual.candidates import Asked
from clmoe_cli.continual.features import features, kind, width
from clmoe_cli.continual.fusion import Decision, Sources, decide_images, decide_within, task_of_batch
from clmoe_cli.continual.gate import COARSE, Subspaces
from clmoe_cli.continual.images import taken
from clmoe_cli.continual.steps import OnStep, after, begun, silent
from clmoe_cli.data import Batch
from clmoe_cli.labels import Codebook, Label
from clmoe_cli.state import Loader, gate_arrays
from store_schema import GateRecord, Manifest, StoreIncompatible, Writer, coarse_form, encode_gate, rows_of

MOST = 20_000
"""Images of a class that its statistics rest on; of more, so many are taken evenly."""
NUMBERS = 1 << 25
"""Features of a class that are in memory."""
CHUNK = 2000
"""Images decided at a time, so that memory stays bounded; of a larger batch, so many decide on its task."""
PIXELS = 1 << 25
"""Numbers of the images decided at a time."""


def check(manifest: Manifest, batch: Batch, hint: str) -> None:
    """StoreIncompatible where tasks of this kind of input have no gate, or one of other features than here."""
    shape, through = batch.input_shape, batch.input
    record = manifest.gate(shape, through)
    missing = record is None and manifest.tasks_of_shape(shape, through)
    if missing or (record is not None and record.features != features_of(batch)):
        raise StoreIncompatible(
            "the store has no gate that this version can read",
            key=kind_text(shape, through),
            found=record.features if record else "none",
            expected=features_of(batch),
            hint=hint,
        )


def features_of(batch: Batch) -> str:
    """Name of the gate's features for this kind of input."""
    return kind(batch.input_shape, batch.input is not None and batch.input.features is not None)


def statistics(manifest: Manifest, batch: Batch, classes: tuple[Label, ...], on_step: OnStep = silent) -> Subspaces:
    """The gate's statistics of a task that is being learned, from all its images (at most ``MOST`` of a class).

    The features of one class at a time are in memory, at most ``NUMBERS`` of them.
    """
    assert batch.labels is not None
    y = torch.from_numpy(Codebook.of(classes).encode(batch.labels))
    x, name, parts = common.rows(batch, _scale(manifest, batch, on_step)), features_of(batch), []
    most = min(MOST, NUMBERS // width(batch.input_shape, name))
    counts = torch.bincount(y, minlength=len(classes)).clamp(max=most).tolist()
    to = begun(on_step, "gate", sum(counts), "images")
    for c in range(len(classes)):
        rows = (y == c).nonzero()[:, 0]
        rows = rows[torch.linspace(0, len(rows) - 1, counts[c]).round().long()]
        # One image short: a class is done when its subspace is.
        seen = after(to, sum(counts[:c]) - 1)
        parts.append(gate.fit(features(taken(x, rows), batch.input_shape, name, seen)))
    to(sum(counts))
    return Subspaces.joined(parts)


def updated(
    locked: Writer, batch: Batch, number: int, found: Subspaces, on_step: OnStep = silent
) -> tuple[GateRecord, ...]:
    """The manifest's gates with the classes of task ``number`` put in (or in place of those that it had)."""
    manifest, shape, through = locked.manifest, batch.input_shape, batch.input
    arrays = gate_arrays(found)
    own = coarse_form(arrays["means"], arrays["directions"], arrays["quantiles"], COARSE)
    old = locked.store.read_gate(shape, through) if manifest.generation else None
    if old is not None:
        tasks = manifest.tasks_of_shape(shape, through)
        counts = [len(t.classes) for t in tasks]
        before = old.taken(rows_of(counts, [t.number < number for t in tasks]))
        after = old.taken(rows_of(counts, [t.number > number for t in tasks]))
        own = before.joined(own).joined(after)
    name = features_of(batch)
    record = GateRecord(
        input_shape=shape,
        input_scale=_scale(manifest, batch, on_step),
        features=name,
        solved=locked.put(encode_gate(own, name), "safetensors"),
        input=through,
        **ranges.widened(manifest.gate(shape, through), batch),
    )
    return (*(g for g in manifest.gates if (g.input_shape, g.input) != (shape, through)), record)


def decide(
    loader: Loader,
    batch: Batch,
    names: list[str],
    book: Codebook,
    router: str,
    batches: int | None,
    on_step: OnStep = silent,
    asked: Asked | None = None,
) -> Iterator[Decision]:
    """Decides for every image of a batch by the ``gate`` alone or ``fused`` with the subnetworks, some at a time.

    ``names``: the tasks with images of this kind, in the order of learning. ``batches``: how many consecutive
    images belong to one task; None: each image is decided by itself. ``asked``: with it the decision says what it was
    made from. Raises StoreIncompatible for a store without a gate, or one of other features.
    """
    manifest = loader.manifest
    check(manifest, batch, "choose another --router, as fisher")
    scale, name = _scale(manifest, batch), features_of(batch)
    solved = loader.gate(batch.input_shape, batch.input)
    codes = torch.tensor([code for name in names for code in book.codes(manifest.task(name).classes)])

    def opinion(task: int, rows: torch.Tensor) -> torch.Tensor:
        x = common.flat(common.part(batch, rows), manifest.expert(manifest.task(names[task]).expert).input_scale)
        return loader.answering(names[task])[1].logits(x).double().log_softmax(dim=1)

    sources = Sources(
        solved, codes, lambda task: loader.answering(names[task])[0], opinion if router == "fused" else None, asked
    )

    def seen(rows: torch.Tensor) -> torch.Tensor:
        return features(common.flat(common.part(batch, rows), scale), batch.input_shape, name)

    everything = torch.arange(len(batch.images))
    to = begun(on_step, "deciding", len(everything), "images")
    chunk = max(1, min(CHUNK, PIXELS // math.prod(batch.input_shape)))
    if batches is None:
        for rows in everything.split(chunk):
            yield decide_images(sources, seen(rows), rows)
            to(int(rows[-1]) + 1)
        return
    for together in everything.split(batches):
        some = together[torch.linspace(0, len(together) - 1, min(len(together), chunk)).round().long()]
        values = seen(some)
        found = task_of_batch(sources, values)
        for rows in together.split(chunk):
            own = values if len(some) == len(together) else seen(rows)
            yield decide_within(sources, found, own, rows)
            to(int(rows[-1]) + 1)


def _scale(manifest: Manifest, batch: Batch, on_step: OnStep = silent) -> float:
    """What inputs of this kind are multiplied by: fixed by the first task of the kind."""
    record = manifest.gate(batch.input_shape, batch.input)
    return record.input_scale if record else common.input_scale(batch, on_step)
