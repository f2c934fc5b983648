"""Whether a batch is what the store's tasks were learned from: the range of its values, and the columns of a table.

The same pictures come as bytes, as shares of one, as floats up to 255, divided by 255 twice, or as −1 to 1. The gate
takes no notice of contrast, so that nothing fails; subnetworks answer at random. The range is kept with the gate of
each kind of input, and what is off by more than brightness explains is said.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray

from clmoe_cli.api import common
from clmoe_cli.api.inputs import Expected, other_columns
from clmoe_cli.api.reports import Caution
from clmoe_cli.data import Batch
from clmoe_cli.data.npz import name_list
from store_schema import ClmoeError, GateRecord

IMAGES = 2048
"""Images looked at; of more, so many are taken evenly."""
ASIDE = 0.01
"""Share of images at either end that do not make the range: a few odd ones are no measure."""
FACTOR = 16.0
"""Beyond so many times the range it is another unit: half of the way, in logarithms, to the 255 of bytes."""
FACTOR_OF_ROWS = 3.0
"""The same for rows of numbers, which are not darker or brighter than others."""
BELOW = 0.1
"""What has a least value below minus this part of its largest one is centred, not shares of one."""


def widened(old: GateRecord | None, batch: Batch) -> dict[str, tuple[float, float] | None]:
    """The fields of a gate's record that say which range its tasks have, with a batch put in.

    Least and largest of all tasks, in whatever order they come. A record of an older format has no range and keeps
    none: what its tasks were learned from is not known.
    """
    if old is not None and old.input_range is None:
        return {"input_range": None, "input_lowest": None}
    largest, lowest = _of_images(batch)
    fields = {"input_range": _ends(largest[largest > 0]), "input_lowest": _ends(lowest)}
    return {name: _over(None if old is None else getattr(old, name), ends) for name, ends in fields.items()}


def united(old: GateRecord | None, other: GateRecord) -> dict[str, tuple[float, float] | None]:
    """The same fields with the tasks of another gate put in."""
    fields = {name: getattr(other, name) for name in ("input_range", "input_lowest")}
    if old is None:
        return fields
    known = old.input_range is not None and other.input_range is not None
    return {name: _over(getattr(old, name), ends) if known else None for name, ends in fields.items()}


def _over(before: tuple[float, float] | None, ends: tuple[float, float]) -> tuple[float, float]:
    return ends if before is None else (min(before[0], ends[0]), max(before[1], ends[1]))


def cautions(expected: Expected, batch: Batch) -> tuple[Caution, ...]:
    """Warnings for a batch whose values are in another unit than those of the store's tasks (code ``range``).

    Another (code ``columns``) is for a table that has most columns of one that was learned, and not all of them.
    """
    return *_of_columns(expected, batch), *_of_values(expected, batch)


def _of_values(expected: Expected, batch: Batch) -> tuple[Caution, ...]:
    kind = expected.kind_of(batch)
    if kind is None or kind.values is None:
        return ()
    largest, lowest = _of_images(batch)
    rows = len(batch.input_shape) < 3
    # Black pictures are as dark as can be, and in any unit.
    counted = np.ones(len(largest), bool) if rows else largest > 0
    if not counted.any():
        return ()
    typical, below = float(np.median(largest[counted])), float(np.median(lowest[counted]))
    (least, most), factor = kind.values.largest, FACTOR_OF_ROWS if rows else FACTOR
    if most > 0 and not least / factor <= typical <= most * factor:
        return (
            _caution(
                batch,
                f"values up to {typical:.3g}",
                f"a largest value of {_between(least, most)}",
                _hint(typical, most, rows),
            ),
        )
    what = "rows" if rows else "pictures"
    if below < -BELOW * typical and kind.values.lowest[0] >= 0:
        hint = f"the store's {what} are not centred: undo it, or use another --store"
        return (_caution(batch, f"values below 0, to {below:.3g}", "none below 0", hint),)
    if below >= 0 and kind.values.lowest[1] < -BELOW * most:
        hint = f"the store's {what} are centred: centre these as they were, or use another --store"
        return (_caution(batch, "no values below 0", f"values down to {kind.values.lowest[0]:.3g}", hint),)
    return ()


def _of_columns(expected: Expected, batch: Batch) -> tuple[Caution, ...]:
    given = batch.columns or ()
    found = () if given in expected.columns else other_columns(expected.columns, given)
    if not found or 2 * (len(given) - len(found[1])) <= len(given) + len(found[0]):
        return ()
    hint = "a table of other columns is another kind of input: what is known of the one says nothing of the other"
    if expected.kind_of(batch) is not None:
        hint = "columns are read by their places, whatever their names, as those of a table that has as many"
    named = zip(("without", "with"), found, strict=True)
    text = ClmoeError(
        "the columns are not those of the table that was learned",
        where=batch.source,
        found="; ".join(f"{what} {name_list(names)}" for what, names in named if names),
        hint=hint,
    )
    return (Caution("columns", str(text)),)


def _of_images(batch: Batch) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest magnitude and least value of each of some images, both [n], in the units that experts read."""
    index = torch.linspace(0, len(batch.images) - 1, min(IMAGES, len(batch.images))).round().long()
    parts = []
    for part in index.split(max(1, common.NUMBERS // math.prod(batch.input_shape))):
        x = common.part(batch, part).scaled().reshape(len(part), -1)
        parts.append((np.abs(x).max(axis=1), x.min(axis=1)))
    largest, lowest = (np.concatenate(each).astype(np.float64) for each in zip(*parts, strict=True))
    return largest, lowest


def _ends(values: NDArray[np.float64]) -> tuple[float, float]:
    """The range of values [n] without the odd ones at its ends; of none, 0 to 0."""
    if not len(values):
        return 0.0, 0.0
    low, high = np.quantile(values, [ASIDE, 1 - ASIDE], method="nearest")
    return float(low), float(high)


def _between(least: float, most: float) -> str:
    low, high = f"{least:.3g}", f"{most:.3g}"
    return f"{high}, as in the store" if low == high else f"{low} to {high}, as in the store"


def _hint(typical: float, most: float, rows: bool) -> str:
    ratio = typical / most
    if rows and ratio:
        return "give the features in the unit of those that were learned; other data may have any"
    if ratio == 0:
        return "every number is 0: look at what wrote the file"
    if 255 / FACTOR < ratio < 255 * FACTOR:
        return "divide by 255, or give bytes (uint8), which are divided as they are read"
    if 255 / FACTOR < 1 / ratio < 255 * FACTOR:
        return "divided by 255 twice? multiply by 255; bytes (uint8) are divided as they are read"
    return "what is compared with the store's tasks needs their unit; data of another kind may have any"


def _caution(batch: Batch, found: str, expected: str, hint: str) -> Caution:
    text = ClmoeError(
        "the range of values is not the store's", where=batch.source, found=found, expected=expected, hint=hint
    )
    return Caution("range", str(text))
