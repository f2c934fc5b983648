"""The gate's part in ``learn`` and ``predict``: statistics of a new task, the solved gate of a shape, decisions."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from clmoe_cli.api import common, ranges
from clmoe_cli.api.inputs import kind_text
from clmoe_cli.api.measuring import DataFeatures, Kind, Measured, measured, measured_subspaces
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label, LabelEncoder
from clmoe_cli.method.learn_task import Learned
from clmoe_cli.method.routing.decide import (
    OPINION,
    Decision,
    Explain,
    Sources,
    decide_given,
    decide_images,
    decide_within,
    task_of_batch,
)
from clmoe_cli.method.routing.eye import Eye
from clmoe_cli.method.routing.features import (
    AnyEye,
    features,
    is_image,
    kind,
    known,
    new_eye,
    seen_by_eyes,
    with_eye,
)
from clmoe_cli.method.routing.gaussians import Gaussians, alone, one_unit, solve
from clmoe_cli.method.routing.network_eye import NetworkEye
from clmoe_cli.method.routing.subspaces import COARSE, Subspaces
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, begun, silent, whole
from clmoe_cli.store_tensors import Loader, eye_arrays, gate_arrays, network, network_eye_arrays, solved_arrays
from store_schema import (
    ExpertRecord,
    GateRecord,
    Manifest,
    SolvedGate,
    Store,
    StoreIncompatible,
    TaskRecord,
    UsageProblem,
    Writer,
    coarse_form,
    encode_base,
    encode_eye,
    encode_gate,
    encode_gaussians,
    encode_network_eye,
    rows_of,
)

CHUNK = limits.DECIDED_IMAGES
EMBEDDING = 128
"""Columns from which vectors may be an embedding; of tables, square roots are not better (docs/method.md)."""
PIXELS = limits.DECIDED_PIXELS


def check(manifest: Manifest, batch: Batch, hint: str) -> None:
    """StoreIncompatible where tasks of this kind of input have no gate, or one of other features than here."""
    shape, through = batch.input_shape, batch.input
    record = manifest.gate(shape, through)
    missing = record is None and manifest.tasks_of_shape(shape, through)
    if missing or (record is not None and not known(record.features, shape)):
        raise StoreIncompatible(
            "the store has no gate that this version can read",
            key=kind_text(shape, through),
            found=record.features if record else "none",
            expected=features_of(None, batch),
            hint=hint,
        )


def features_of(manifest: Manifest | None, batch: Batch) -> str:
    """Name of the gate's features for this kind of input: what its tasks have, else this version's."""
    record = None if manifest is None else manifest.gate(batch.input_shape, batch.input)
    if record is not None:
        return record.features
    backbone = batch.input is not None and batch.input.features is not None
    wide = not is_image(batch.input_shape) and math.prod(batch.input_shape) >= EMBEDDING
    return kind(batch.input_shape, backbone, root=(backbone or wide) and _amounts(batch))


def _amounts(batch: Batch) -> bool:
    """Whether vectors hold amounts of one unit: nothing below zero, and columns that vary about as much."""
    total, squares, n = torch.zeros(()), torch.zeros(()), len(batch.images)
    for rows in torch.arange(n).split(max(1, common.NUMBERS // math.prod(batch.input_shape))):
        x = torch.from_numpy(common.part(batch, rows).scaled()).flatten(1).double()
        if float(x.min()) < 0:
            return False
        total, squares = total + x.sum(dim=0), squares + x.square().sum(dim=0)
    return one_unit((squares / n - (total / n).square()).clamp_min(0).sqrt())


def check_eyes(manifest: Manifest, batch: Batch, wanted: str | None, arch: str, pretrained: bool) -> None:
    """UsageProblem where ``--eyes`` says other than what this kind of input was begun with, or cannot be had.

    ``arch``: of the expert that a first task begins; ``pretrained``: whether that starts from pretrained weights.
    """
    record = manifest.gate(batch.input_shape, batch.input)
    if wanted is None:
        return
    if record is not None:
        has = record.eyes
        if has != wanted:
            raise UsageProblem(
                "this kind of input was begun with other eyes",
                key="--eyes",
                found=wanted,
                expected=has,
                hint="leave --eyes out, or begin another --store",
            )
        return
    seen = {"none": True, "first": seen_by_eyes(batch.input_shape)}.get(wanted, is_image(batch.input_shape))
    if not seen or (wanted != "none" and _through_backbone(batch)):
        vectors = len(batch.input_shape) == 1 and batch.input is None
        found = f"vectors of {batch.input_shape[0]} numbers" if vectors else kind_text(batch.input_shape, batch.input)
        raise UsageProblem("eyes look at pictures", key="--eyes", found=found, hint="leave --eyes out")
    if wanted == "subnetwork" and arch.startswith("mlp:"):
        raise UsageProblem(
            "an eye that is a subnetwork has convolutions", key="--eyes", found=f"{wanted} with --arch {arch}",
            expected="an --arch of convolutions, as resnet9 or lite0", hint="--eyes first goes with any",
        )  # fmt: skip
    if wanted == "pretrained" and not pretrained:
        raise UsageProblem(
            "no pretrained weights to look with", key="--eyes", found=f"{wanted} with --arch {arch}",
            expected="--arch lite0, or --weights FILE", hint="--eyes first goes without",
        )  # fmt: skip
    if wanted == "subnetwork" and len(batch.classes()) < 2:
        raise UsageProblem(
            "a first task of one class trains no subnetwork", key="--eyes", found=wanted,
            expected="two classes at least in the first task", hint="--eyes first goes without",
        )  # fmt: skip


def _through_backbone(batch: Batch) -> bool:
    return batch.input is not None and batch.input.features is not None


def eye_of(batch: Batch, scale: float, rng: torch.Generator, on_step: OnStep = silent) -> Eye:
    """An eye made from the images of the first task of their kind."""
    with whole(on_step, "eye"):
        return new_eye(common.rows(batch, Scaling(scale)), batch.input_shape, rng)


def network_eye_of(record: ExpertRecord, learned: Learned) -> NetworkEye:
    """An eye that is the subnetwork of the first task of its kind, which was just learned."""
    task = learned.subnetwork
    base = {name: value.cpu() for name, value in task.net.base.items()}
    return NetworkEye.of(record.arch, network(record, base), task.params)


def kind_of(manifest: Manifest, batch: Batch, without: int, scale: float, eye: AnyEye | None = None) -> Kind:
    """The batch's kind of input, with the tasks that read it but the one of number ``without``.

    ``scale``: what inputs of this kind are multiplied by, and ``eye``, what looks at them: fixed by the first task of
    the kind.
    """
    others = [t.name for t in manifest.tasks_of_shape(batch.input_shape, batch.input) if t.number != without]
    record = manifest.gate(batch.input_shape, batch.input)
    name = features_of(manifest, batch)
    name = with_eye(name, eye) if record is None else name
    return Kind(name, scale, tuple(others), record is not None and record.rule is None, eye)


def features_of_data(batch: Batch, kind: Kind, classes: tuple[Label, ...], on_step: OnStep = silent) -> DataFeatures:
    """The gate's features of the images that a task was learned from, whose classes are these."""
    return DataFeatures.of(batch, kind, classes, on_step)


def measure(loader: Loader, data: DataFeatures, learned: Learned, on_step: OnStep = silent) -> Measured:
    """What the gate measures of a task that was just learned from ``data``, by its kind's rule."""
    if data.kind.subspaces:
        return measured_subspaces(data, on_step)
    return measured(loader, data, learned, on_step)


def updated(
    locked: Writer, loader: Loader, batch: Batch, kind: Kind, number: int, statistics: Subspaces
) -> tuple[GateRecord, ...]:
    """The manifest's gates with the classes of task ``number`` put in (or in place of those that it had)."""
    manifest, shape, through = locked.manifest, batch.input_shape, batch.input
    name = kind.features
    if isinstance(statistics, Gaussians):
        tasks = [t for t in manifest.tasks_of_shape(shape, through) if t.number != number]
        every = {t.number: t.name for t in tasks}
        parts = [statistics if n == number else loader.gaussians(every[n]) for n in sorted({*every, number})]
        data = encode_gaussians(solved_arrays(solve(parts)), name)
    else:
        data = encode_gate(_with_subspaces(locked, batch, number, statistics), name)
    old = manifest.gate(shape, through)
    eye, base = (None, None) if old is None else (old.eye, old.eye_base)
    if old is None and isinstance(kind.eye, NetworkEye):
        below = {name: value.numpy(force=True) for name, value in kind.eye.net.base.items()}
        base = locked.put(encode_base(below), "safetensors") if below else None
        on = None if base is None else base.sha256
        eye = locked.put(encode_network_eye(network_eye_arrays(kind.eye, on)), "safetensors")
    elif old is None and isinstance(kind.eye, Eye):
        eye = locked.put(encode_eye(eye_arrays(kind.eye)), "safetensors")
    record = GateRecord(
        input_shape=shape,
        input_scale=kind.scale,
        features=name,
        solved=locked.put(data, "safetensors"),
        input=through,
        rule="gaussians" if isinstance(statistics, Gaussians) else None,
        eye=eye,
        eye_base=base,
    )
    record = record.model_copy(update=ranges.widened(old, batch))
    return (*(g for g in manifest.gates if (g.input_shape, g.input) != (shape, through)), record)


def _with_subspaces(locked: Writer, batch: Batch, number: int, statistics: Subspaces) -> SolvedGate:
    """The solved gate of subspaces with those of task ``number`` in their place."""
    manifest, shape, through = locked.manifest, batch.input_shape, batch.input
    arrays = gate_arrays(statistics)
    solved = coarse_form(arrays["means"], arrays["directions"], arrays["quantiles"], COARSE)
    old = locked.store.read_gate(shape, through) if manifest.generation else None
    if isinstance(old, SolvedGate):
        tasks = manifest.tasks_of_shape(shape, through)
        counts = [len(t.classes) for t in tasks]
        before = old.taken(rows_of(counts, [t.number < number for t in tasks]))
        after = old.taken(rows_of(counts, [t.number > number for t in tasks]))
        solved = before.joined(solved).joined(after)
    return solved


def without(locked: Writer, record: GateRecord, names: Collection[str]) -> GateRecord | None:
    """A gate without the classes of the named tasks: as if it had never seen them; None when none is left."""
    tasks = locked.manifest.tasks_of_shape(record.input_shape, record.input)
    kept = [t.name not in names for t in tasks]
    if all(kept):
        return record
    if not any(kept):
        return None
    if record.rule is None:
        solved = locked.store.read_gate(record.input_shape, record.input)
        assert isinstance(solved, SolvedGate)
        data = encode_gate(solved.taken(rows_of([len(t.classes) for t in tasks], kept)), record.features)
    else:
        loader = Loader(locked.store)
        parts = [loader.gaussians(t.name) for t, stays in zip(tasks, kept, strict=True) if stays]
        data = encode_gaussians(solved_arrays(solve(parts)), record.features)
    return record.model_copy(update={"solved": locked.put(data, "safetensors")})


def joined(locked: Writer, source: Store, record: GateRecord, names: Collection[str]) -> GateRecord:
    """A gate with the classes of the named tasks of another store put in, whose gate of that kind is ``record``.

    Where the store has no gate of the kind, it is as if ``source`` had never seen its other tasks.
    """
    shape, through = record.input_shape, record.input
    here, own = locked.manifest.gate(shape, through), locked.manifest.tasks_of_shape(shape, through)
    tasks = source.manifest.tasks_of_shape(shape, through)
    kept = [t.name in names for t in tasks]
    if record.rule is None:
        solved = source.read_gate(shape, through)
        assert isinstance(solved, SolvedGate)
        solved = solved.taken(rows_of([len(t.classes) for t in tasks], kept))
        before = locked.store.read_gate(shape, through) if own else None
        data = encode_gate(before.joined(solved) if isinstance(before, SolvedGate) else solved, record.features)
    elif all(kept) and not own:
        data = source.read_object(record.solved)
    else:
        loaders = Loader(locked.store), Loader(source)
        parts = [loaders[0].gaussians(t.name) for t in own]
        parts += [loaders[1].gaussians(t.name) for t, comes in zip(tasks, kept, strict=True) if comes]
        data = encode_gaussians(solved_arrays(solve(parts)), record.features)
    eyes = {
        key: None if ref is None else locked.put(source.read_object(ref), "safetensors")
        for key, ref in (("eye", record.eye), ("eye_base", record.eye_base))
    }
    update = {"solved": locked.put(data, "safetensors"), **eyes} | ranges.united(here, record)
    return record.model_copy(update=update)


@dataclass(frozen=True)
class Route:
    """Whose images are asked about: each by itself (the default), ``batches`` of so many consecutive ones of one task,
    or all of the ``only`` task that is named."""

    batches: int | None = None
    only: bool = False


def decide(
    loader: Loader,
    batch: Batch,
    names: list[str],
    book: LabelEncoder,
    router: str,
    route: Route,
    on_step: OnStep = silent,
    explain: Explain | None = None,
    top: int = 0,
) -> Iterator[Decision]:
    """Decides for every image of a batch by the ``gate`` alone or ``fused`` with the subnetworks, some at a time.

    ``names``: the tasks with images of this kind, in the order of learning. ``explain``: with it the decision says what
    it was made from. ``top``: so many of the most likely labels are named. Raises StoreIncompatible for a store without
    a gate, or one of other features.
    """
    manifest = loader.manifest
    check(manifest, batch, "choose another --router, as fisher")
    record = manifest.gate(batch.input_shape, batch.input)
    assert record is not None
    scale, name, eye = Scaling(record.input_scale), record.features, loader.eye(record)
    solved = alone(loader.gaussians(names[0])) if route.only else loader.gate(batch.input_shape, batch.input)
    chunk = _Chunk(batch)
    codes = torch.tensor([code for name in names for code in book.codes(manifest.task(name).classes)])

    def opinion(task: int, rows: torch.Tensor) -> torch.Tensor:
        x = common.flat(chunk.take(rows), loader.scaling(manifest.task(names[task]).expert))
        return loader.answering(names[task])[1].logits(x).log_softmax(dim=1)

    weights = [opinion_of(manifest.task(name)) for name in names]
    sources = Sources(
        solved,
        codes,
        lambda task: loader.answering(names[task])[0],
        opinion if router == "fused" else None,
        explain,
        weights,
        top,
    )

    def seen(rows: torch.Tensor) -> torch.Tensor:
        return features(common.flat(chunk.load(rows), scale), batch.input_shape, name, eye=eye)

    everything = torch.arange(len(batch.images))
    to = begun(on_step, "deciding", len(everything), "images")
    size = max(1, min(CHUNK, PIXELS // math.prod(batch.input_shape)))
    if route.batches is None:
        by_itself = decide_given if route.only else decide_images
        for rows in everything.split(size):
            yield by_itself(sources, seen(rows), rows)
            to(int(rows[-1]) + 1)
        return
    for together in everything.split(route.batches):
        some = together[torch.linspace(0, len(together) - 1, min(len(together), size)).round().long()]
        values = seen(some)
        task = task_of_batch(sources, values)
        for rows in together.split(size):
            here = values if len(some) == len(together) else seen(rows)
            yield decide_within(sources, task, here, rows)
            to(int(rows[-1]) + 1)


class _Chunk:
    """The images that are decided at a time: their pixels are scaled once, for the gate and for the subnetworks."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.first, self.part = batch, 0, batch

    def load(self, rows: torch.Tensor) -> Batch:
        """The images at these ascending positions [n] of the batch."""
        self.first, self.part = int(rows[0]), common.prepared(common.part(self.batch, rows))
        return self.part

    def take(self, rows: torch.Tensor) -> Batch:
        """Some of them, by their positions in the batch; what was loaded last is consecutive."""
        return common.part(self.part, rows - self.first)


def opinion_of(task: TaskRecord) -> float:
    """The weight of a task's subnetwork beside the gate; tasks of formats 1 and 2 have none of their own."""
    return OPINION if task.opinion is None else task.opinion
