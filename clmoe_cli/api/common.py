"""What several use cases share: images as tensors, names with a suggestion, evidence of known tasks."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clmoe_cli.api.inputs import kind_text, known_columns, other_columns
from clmoe_cli.data import Batch
from clmoe_cli.data.npz import name_list, one_line
from clmoe_cli.method.images import Images, Rows
from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.scaling import Scaling, centring, standardising
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, counted, silent
from clmoe_cli.store_tensors import Loader
from store_schema import BadInput, ExpertRecord, Manifest

ONSET_IMAGES = 256
COUNTED = 0.01
"""Layers that hold less of an expert's weights do not count when its free capacity is judged."""
IN_MEMORY = limits.FLOAT_BYTES
NUMBERS = limits.LOOKED_AT_NUMBERS


def prepared(batch: Batch) -> Batch:
    """The same, its pixels scaled once for all steps that look at them, unless that would take much memory."""
    return batch.prepared() if batch.images.size * 4 <= IN_MEMORY else batch


def flat(batch: Batch, scaling: Scaling) -> Tensor:
    """Images as an expert or the gate reads them: [N, D] float32."""
    return scaling.apply(torch.from_numpy(batch.scaled().reshape(len(batch.images), -1)))


def rows(batch: Batch, scaling: Scaling) -> Rows:
    """The same, read when they are looked at where they would take much memory."""
    return flat(batch, scaling) if batch.images.size * 4 <= IN_MEMORY else unread(batch, scaling)


def unread(batch: Batch, scaling: Scaling) -> Images:
    """The same, read when they are looked at."""

    def read(index: Tensor) -> Tensor:
        return flat(part(batch, index), scaling)

    return Images(read, torch.arange(len(batch.images)), math.prod(batch.input_shape))


def new_scaling(batch: Batch, net: Network, scale: float) -> Scaling:
    """How an expert of that architecture reads its inputs that is made for a batch: vectors are standardised.

    ``scale``: the batch's :func:`input_scale`.
    """
    plain = Scaling(scale)
    if not isinstance(net, MLP):
        return plain
    found = standardising if len(batch.input_shape) == 1 else centring
    return found(rows(batch, plain), plain.factor)


def part(batch: Batch, index: Tensor) -> Batch:
    """The images (and labels) at these positions."""
    return batch.taken(index.numpy())


def experts_for(manifest: Manifest, batch: Batch) -> list[ExpertRecord]:
    """Experts that read this kind of input: its shape, after the same transform. BadInput when there are none."""
    found = [e for e in manifest.experts if reads(e, batch) and manifest.tasks_of(e.id)]
    if not found:
        known = sorted({kind_text(e.input_shape, e.input) for e in manifest.experts})
        raise BadInput(
            "no expert knows inputs of this shape",
            where=batch.source,
            found=kind_text(batch.input_shape, batch.input),
            expected=" or ".join(known) or "none: the store has no task",
            hint=_nearest(manifest, batch, known) + "learn a task of these first",
        )
    return found


def _nearest(manifest: Manifest, batch: Batch, known: Sequence[str]) -> str:
    """What makes the inputs what the store knows, where it knows tables as they are, or pictures."""
    tables = [len(e.input_shape) == 1 and e.input is None for e in manifest.experts]
    if len(batch.input_shape) == 1 and batch.input is None:
        columns = f"give the columns that were learned, in their order{_missing(manifest, batch)}, or "
        return columns if any(tables) else ""
    return "" if all(tables) else _other_colours(known, batch) + "or "


def _other_colours(known: Sequence[str], batch: Batch) -> str:
    """What makes the images what the store knows: their colours, where they differ in nothing else."""
    channels, *sides = batch.input_shape
    if len(sides) == 2 and channels in (1, 3) and kind_text((4 - channels, *sides), batch.input) in known:
        return "the pictures are grey: give them as RGB, " if channels == 1 else "give the pictures in grey, "
    return "reshape the images, "


def _missing(manifest: Manifest, batch: Batch) -> str:
    """Which columns the table that is most like this one had besides, and which it had not."""
    found = other_columns(known_columns(manifest.tasks), batch.columns or ())
    return f" (missing: {name_list(found[0])}; not learned: {name_list(found[1])})" if found else ""


def reads(record: ExpertRecord, batch: Batch) -> bool:
    """Whether the batch is of the kind of input that the expert reads."""
    return (record.input_shape, record.input) == (batch.input_shape, batch.input)


def input_scale(batch: Batch, on_step: OnStep = silent) -> float:
    """Scale of an expert's inputs, fixed when the expert is made: 1 for pixels in 0 to 1 and standardised vectors.

    Inputs whose root mean square is beyond 2 or below 0.05 are brought to 1, so that any unit of measure trains.
    The median image decides: a few broken ones must not shrink all others to nothing. Raises what
    :func:`check_numbers` raises.
    """
    every = torch.arange(len(batch.images)).split(max(1, NUMBERS // math.prod(batch.input_shape)))
    # A call for each part: a comprehension would hold one part while it reads the next.
    parts = counted(every, on_step, "scale", "parts")
    each = np.concatenate([_root_mean_squares(part(batch, index)) for index in parts])
    check_numbers(np.isfinite(each), batch)
    rms = float(np.median(each))
    return 1.0 if 0.05 <= rms <= 2.0 or rms == 0.0 else 1.0 / rms


def place(batch: Batch, index: int, feature: int | None = None) -> str:
    """Where a value is, as people find it: the file of several, the row and the column of a table, counted from 0."""
    files = batch.files if batch.files is not None and len(batch.files) == len(batch.images) else None
    row = f"{'image' if len(batch.input_shape) > 1 else 'row'} {index}" if files is None else files[index]
    if feature is None:
        return row
    if batch.columns is not None:
        return f"{row}{' from 0' if files is None else ''}, column {one_line(batch.columns[feature][:60])!r}"
    return f"{row}, feature {feature}{', both from 0' if files is None else ''}"


def check_numbers(finite: np.ndarray[Any, np.dtype[np.bool_]], batch: Batch) -> None:
    """BadInput for the first image [N] that holds NaN or Inf. Files are checked when they are read, arrays are not."""
    if not finite.all():
        raise BadInput(
            "not every value is a number",
            where=batch.source,
            key=place(batch, int(finite.argmin())),
            found="NaN or Inf",
            hint="drop or repair it",
        )


def _root_mean_squares(batch: Batch) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    """Of each image, [N]."""
    x = batch.scaled().reshape(len(batch.images), -1)
    means: np.ndarray[tuple[int], np.dtype[np.float64]] = np.square(x, dtype=np.float64).mean(axis=1)
    return np.sqrt(means)


def sample(n: int, limit: int, generator: torch.Generator) -> Tensor:
    """Positions of at most ``limit`` of n images, in random order without repetition."""
    return torch.randperm(n, generator=generator)[:limit]


def inputs_of(loader: Loader, experts: Sequence[str], batch: Batch) -> list[Rows]:
    """A batch as each of these experts reads it; held in memory once for those that read it alike."""
    batch, scalings = prepared(batch), {expert: loader.scaling(expert) for expert in experts}
    standardised: dict[str, Rows] = {e: unread(batch, s) for e, s in scalings.items() if s.standardised}
    plain = {s.factor: s for s in scalings.values() if not s.standardised}
    by_factor = {factor: rows(batch, s) for factor, s in plain.items()}
    return [standardised[e] if e in standardised else by_factor[scalings[e].factor] for e in experts]


def digest(outputs: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> str:
    """sha256 of the bytes of probe outputs."""
    return hashlib.sha256(np.ascontiguousarray(outputs).tobytes()).hexdigest()
