"""Several sources as one batch: pictures that are named one by one, folders, files, patterns of names."""

from __future__ import annotations

import glob
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clmoe_cli.data.batch import Array, Batch
from clmoe_cli.data.listing import PICTURES
from clmoe_cli.data.npz import name_list
from clmoe_cli.data.spool import Spool, blocks, rows_of
from store_schema.errors import BadInput, UsageProblem

_PATTERN = ("*", "?", "[")


def grouped(sources: Sequence[str]) -> list[str | tuple[str, ...]]:
    """The sources in their order, patterns written out, pictures that follow each other as one tuple of paths.

    Raises UsageProblem for none, and for a pipe among others; BadInput for a pattern that fits nothing.
    """
    found: list[str | tuple[str, ...]] = []
    for source in (name for given in sources for name in _written_out(given)):
        # What has the name of a picture and is no folder is one, or refused as one.
        if Path(source).suffix.lower() not in PICTURES or Path(source).is_dir() or not Path(source).exists():
            found.append(source)
        elif found and isinstance(found[-1], tuple):
            found[-1] = (*found[-1], source)
        else:
            found.append((source,))
    if not found:
        raise UsageProblem("no data given", expected="pictures, folders, npz, npy or CSV files, or - for stdin")
    if "-" in found and len(found) > 1:
        raise UsageProblem("stdin is read by itself", found=name_list(sources), hint="leave out - or the others")
    return found


def _written_out(source: str) -> list[str]:
    """The names that a pattern fits, sorted; what is no pattern, or is there, as it is."""
    if source == "-" or not any(sign in source for sign in _PATTERN) or Path(source).exists():
        return [source]
    names = sorted(glob.glob(source, recursive=True))  # noqa: PTH207 - names stay as they were given
    if not names:
        raise BadInput("no file has such a name", where=source, hint="check the pattern")
    return names


def joined(batches: Sequence[Batch]) -> Batch:
    """Batches of one kind of input as one.

    Each row has a name in ``files``: of a picture its path, of others ``source[row]``. Labels are kept where all have
    them, all integers or all text; a warning says where they are not. Raises BadInput for different kinds, DiskProblem.
    """
    first = batches[0]
    if len(batches) == 1:
        return first
    other = next((b for b in batches if (b.input_shape, b.input) != (first.input_shape, first.input)), None)
    if other is not None:
        found = f"{_kind(other)} beside {_kind(first)}"
        alike = "" if 1 in (len(first.input_shape), len(other.input_shape)) else ", or let --image-size make them alike"
        hint = f"ask about one kind at a time{alike}"
        raise BadInput("inputs of different kinds", where=other.source, found=found, hint=hint)
    source = f"{first.source} and {len(batches) - 1} more"
    labels = [b.labels for b in batches if b.labels is not None]
    whole = len(labels) == len(batches) and len({y.dtype.kind for y in labels}) == 1
    dropped = f"{source}: some have no labels, or labels of another type, so that none are looked at"
    return Batch(
        images=_images(batches, source),
        labels=np.concatenate(labels) if whole else None,
        source=source,
        input=first.input,
        files=tuple(name for b in batches for name in _names(b)),
        skipped=tuple(name for b in batches for name in b.skipped),
        warnings=(dropped,) if labels and not whole else (),
        columns=first.columns if len({b.columns for b in batches}) == 1 else None,
    )


def _kind(batch: Batch) -> str:
    """What one image of a batch is: its shape, and what it went through."""
    through = batch.input.features if batch.input else None
    return f"{list(batch.input_shape)}{f' (features of {through.arch})' if through else ''}"


def _images(batches: Sequence[Batch], source: str) -> Array:
    """All images, [N, …]; bytes beside floats as shares of one."""
    alike = len({b.images.dtype for b in batches}) == 1
    dtype = batches[0].images.dtype if alike else np.dtype(np.float32)
    n, shape = sum(len(b.images) for b in batches), batches[0].input_shape
    with Spool((n, *shape), dtype, source) as spool:
        for b in batches:
            for _, part in blocks(b.images, rows_of(shape, dtype.itemsize)):
                spool.append(part if part.dtype == dtype else part.astype(np.float32) / np.float32(255))
        return spool.finish()


def _names(batch: Batch) -> Sequence[str]:
    if batch.files is None:
        return [f"{batch.source}[{row}]" for row in range(len(batch.images))]
    if not Path(batch.source).is_dir():
        return batch.files
    return [str(Path(batch.source) / name) for name in batch.files]
