"""Features in place of pictures, made while these are read: neither memory nor disk ever holds all the pictures."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from clmoe_cli.data.spool import Array, Spool, rows_of
from store_schema.errors import ClmoeError


class Extractor(Protocol):
    """What makes features of pictures: a backbone (:mod:`clmoe_cli.backbone.session`)."""

    @property
    def name(self) -> str:
        """Its name for people."""

    @property
    def width(self) -> int:
        """Features of one picture."""

    def vectors(self, pictures: Array) -> Array:
        """Features [n, width] float32 of pictures [n, C, H, W]. Raises BadInput for pixels that it cannot read."""


class FeatureSpool:
    """A :class:`~clmoe_cli.data.spool.Spool` to which pictures are appended, and which holds their features."""

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype[np.generic], where: str, extractor: Extractor) -> None:
        """``shape``: of the most pictures that there will be, [N, C, H, W]; ``where``: what is read, for errors."""
        self._spool = Spool((shape[0], extractor.width), np.dtype(np.float32), where)
        self._extractor, self._where = extractor, where
        # Enough for the network's own blocks and for few questions of what is kept.
        self._waiting = np.empty((min(shape[0], rows_of(shape[1:], dtype.itemsize)), *shape[1:]), dtype)
        self._held = 0

    @property
    def rows(self) -> int:
        """Pictures so far."""
        return self._spool.rows + self._held

    def __enter__(self) -> FeatureSpool:
        self._spool.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._spool.__exit__(*error)

    def append(self, pictures: Array) -> None:
        """Adds pictures [k, C, H, W]."""
        while len(pictures):
            part = pictures[: len(self._waiting) - self._held]
            self._waiting[self._held : self._held + len(part)] = part
            self._held += len(part)
            pictures = pictures[len(part) :]
            if self._held == len(self._waiting):
                self._extract()

    def finish(self) -> Array:
        """Features [rows, width] float32."""
        self._extract()
        return self._spool.finish()

    def _extract(self) -> None:
        if self._held:
            try:
                self._spool.append(self._extractor.vectors(self._waiting[: self._held]))
            except ClmoeError as error:
                error.where = error.where or self._where
                raise
        self._held = 0


def collecting(
    shape: tuple[int, ...], dtype: np.dtype[np.generic], where: str, extractor: Extractor | None
) -> Spool | FeatureSpool:
    """What images [N, …] that are read are appended to: they themselves are kept, or their features."""
    return Spool(shape, dtype, where) if extractor is None else FeatureSpool(shape, dtype, where, extractor)
