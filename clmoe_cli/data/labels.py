"""Labels of people (integers or strings) and the codes that the method works with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.runtime.words import nfc

Label = int | str


@dataclass(frozen=True)
class LabelEncoder:
    """Every label that occurs gets a code; text counts as the same where its NFC is, and 1 and "1" are two labels."""

    labels: tuple[Label, ...]

    @staticmethod
    def of(*groups: Iterable[Label]) -> LabelEncoder:
        """The labels of all groups, each once, in order of first appearance."""
        first: dict[tuple[type, Label], Label] = {}
        for group in groups:
            for label in group:
                first.setdefault(_key(label), label)
        return LabelEncoder(tuple(first.values()))

    def codes(self, labels: Sequence[Label]) -> list[int]:
        """Codes of labels that the book has."""
        return [self._index[_key(v)] for v in labels]

    @cached_property
    def _index(self) -> dict[tuple[type, Label], int]:
        """Label → code. Made once: every task of a store is asked for its codes."""
        return {_key(v): i for i, v in enumerate(self.labels)}

    def reading(self, labels: NDArray[np.generic]) -> tuple[LabelEncoder, NDArray[np.int64]]:
        """The book with the labels of people's data added that it lacks, and codes [N] of these.

        A label that it lacks in its own type is the one of the same text in the other: the name of a class folder says
        "1" where an npz says 1.
        """
        values, inverse = np.unique(labels, return_inverse=True)
        index = dict(self._index)
        texts = {str(label): code for (_, label), code in index.items()}
        every, codes = list(self.labels), []
        for label in map(plain, values):
            code = index.get(_key(label), texts.get(str(_key(label)[1]), len(every)))
            if code == len(every):
                every.append(label)
                index[_key(label)] = code
            codes.append(code)
        read: NDArray[np.int64] = np.array(codes, dtype=np.int64)[inverse.reshape(-1)]
        return LabelEncoder(tuple(every)), read

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


def clashes(known: Iterable[Label], new: Iterable[Label]) -> list[Label]:
    """Those of the ``new`` labels of which the other type's twin is known, and they themselves are not: 1 and "1"."""
    keys = {_key(label) for label in known}
    texts = {str(label) for _, label in keys}
    return [label for label in new if _key(label) not in keys and str(_key(label)[1]) in texts]


def _key(label: Label) -> tuple[type, Label]:
    return (str, nfc(label)) if isinstance(label, str) else (int, label)


def plain(value: np.generic) -> Label:
    """A numpy scalar as Python's own int or str."""
    found: Label = value.item()
    return found
