"""Labels of people (integers or strings) and the codes that the method works with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Label = int | str


@dataclass(frozen=True)
class Codebook:
    """Every label that occurs gets a code; the integer 1 and the string "1" are different labels."""

    labels: tuple[Label, ...]

    @staticmethod
    def of(*groups: Iterable[Label]) -> Codebook:
        """The labels of all groups, each once, in order of first appearance."""
        return Codebook(tuple(v for _, v in dict.fromkeys((type(v), v) for group in groups for v in group)))

    def codes(self, labels: Sequence[Label]) -> list[int]:
        """Codes of labels that the book has."""
        index = {(type(v), v): i for i, v in enumerate(self.labels)}
        return [index[type(v), v] for v in labels]

    def encode(self, labels: NDArray[np.generic]) -> NDArray[np.int64]:
        """Codes [N] of an array of labels, without a loop over images."""
        values, inverse = np.unique(labels, return_inverse=True)
        codes = np.array(self.codes([plain(v) for v in values]), dtype=np.int64)
        encoded: NDArray[np.int64] = codes[inverse.reshape(-1)]
        return encoded

    def decode(self, codes: NDArray[np.int64]) -> NDArray[np.generic]:
        """Labels [N]: int64 where all labels of the book are integers, else strings."""
        if all(isinstance(v, int) for v in self.labels):
            return np.array(self.labels, dtype=np.int64)[codes]
        return np.array([str(v) for v in self.labels], dtype=np.str_)[codes]


def plain(value: np.generic) -> Label:
    """A numpy scalar as Python's own int or str."""
    found: Label = value.item()
    return found
