"""What reading hands on: checked images and labels, and what the images went through."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np

from clmoe_cli.data.extraction import Extractor
from clmoe_cli.data.spool import taken
from clmoe_cli.runtime import limits
from store_schema.errors import BadInput, UsageProblem
from store_schema.records import InputRecord

Array: TypeAlias = np.ndarray[Any, Any]
LabelUse: TypeAlias = Literal["required", "optional", "ignored"]

MAX_BYTES = limits.IMAGES_BYTES


@dataclass(frozen=True)
class Raw:
    """One image of a source as it is stored, before anything is done to it.

    ``shape``: ``(D,)`` or ``(C, H, W)``; of a folder that of its first readable picture, whose size need not be the
    others'. None where there is none. ``axes``: of an array with three axes its own shape, where no labels say that the
    first of them counts images; None for all others.
    """

    folder: bool
    shape: tuple[int, ...] | None
    axes: tuple[int, ...] | None = None


class Unread(Protocol):
    """A source that was looked at: what its images are is known, and none of them is read."""

    @property
    def raw(self) -> Raw:
        """One of its images, as it is stored."""

    def read(self, input: InputRecord | None, extractor: Extractor | None = None) -> Batch:
        """All of it, once, after what the images go through; of pictures the features, where ``extractor`` makes them.

        Raises what :func:`clmoe_cli.data.read_batch` does.
        """


@dataclass(frozen=True, eq=False)
class Batch:
    """Checked images and labels; made of arrays by hand, what can be seen without reading them all is checked.

    ``images``: C-contiguous uint8 (0 to 255) or float32 (as stored), ``[N, D]`` or ``[N, C, H, W]``, N ≥ 1; large ones
    lie on disk (:mod:`clmoe_cli.data.spool`). ``labels``: int64 or unicode ``[N]``, or None. ``source``: as given by
    the user. ``input``: what the images went through, None for nothing; its ``features`` are taken where images are
    ``[N, D]`` (:mod:`clmoe_cli.data.extraction`).
    ``files``: of a folder the path of each picture in it, N; ``skipped``: pictures that were left out as broken.
    ``warnings``: lines for people on what is not taken as it might be meant; ``notes``: on how it is read.
    ``others``: folders with the parts of a split that this batch is the part to learn of. ``shares``: uint8 images as
    :meth:`scaled` makes them, where that was done once for all that follows. ``flaw``: why it can be asked about, but
    not learned. ``columns``: of a table the names of its features, D, in their order.

    Raises BadInput for arrays of another type or shape. Values that are no numbers are found by who reads them.
    """

    images: Array
    labels: Array | None
    source: str
    input: InputRecord | None = None
    files: tuple[str, ...] | None = None
    skipped: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    shares: Array | None = None
    flaw: BadInput | None = None
    columns: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        x, y, fail = self.images, self.labels, partial(BadInput, where=self.source)
        if not isinstance(x, np.ndarray) or x.dtype not in (np.uint8, np.float32):
            found = str(x.dtype) if isinstance(x, np.ndarray) else type(x).__name__
            raise fail("not images", found=found, expected="an array of uint8 or float32", hint="x.astype('float32')")
        if x.ndim not in (2, 4) or 0 in x.shape:
            raise fail("not a shape of images", found=str(list(x.shape)), expected="[N, D] or [N, C, H, W], not empty")
        if y is None:
            return
        if not isinstance(y, np.ndarray) or (y.dtype != np.int64 and y.dtype.kind != "U"):
            found = str(y.dtype) if isinstance(y, np.ndarray) else type(y).__name__
            raise fail("not labels", found=found, expected="an array of int64 or of text")
        if y.shape != (len(x),):
            raise fail("labels do not match the images", found=str(list(y.shape)), expected=str([len(x)]))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image: ``(D,)`` or ``(C, H, W)``, with C = 1 for grey."""
        return tuple(self.images.shape[1:])

    def classes(self) -> tuple[int | str, ...]:
        """The different labels, sorted, as Python values; empty without labels."""
        return () if self.labels is None else tuple(np.unique(self.labels).tolist())

    def scaled(self) -> Array:
        """Images as float32 ``[N, *input_shape]``: uint8 divided by 255; float ones themselves, no copy."""
        if self.shares is not None:
            return self.shares
        if self.images.dtype == np.uint8:
            return self.images.astype(np.float32) / np.float32(255)
        return self.images

    def prepared(self) -> Batch:
        """The same with its pixels scaled: whatever is taken of it later takes from these. All are in memory."""
        return replace(self, shares=self.scaled()) if self.images.dtype == np.uint8 else self

    def taken(self, chosen: Array | slice) -> Batch:
        """The images (and labels) at these positions ``[n]``; ``files`` and ``skipped`` stay with the whole."""
        labels = None if self.labels is None else self.labels[chosen]
        images = self.images[chosen] if isinstance(chosen, slice) else taken(self.images, chosen)
        shares = None if self.shares is None else self.shares[chosen]
        return Batch(images, labels, self.source, self.input, shares=shares, flaw=self.flaw, columns=self.columns)


def check_batch(given: object) -> None:
    """UsageProblem for what is no batch, as an array or a path."""
    if not isinstance(given, Batch):
        hint = "clmoe.read_batch(path, labels='optional'), or of arrays clmoe.Batch(x, y, 'where it is from')"
        raise UsageProblem("not a batch of images", found=type(given).__name__, expected="a clmoe.Batch", hint=hint)
