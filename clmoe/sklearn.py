"""A classifier of scikit-learn that learns class after class: ``clmoe.sklearn.ContinualClassifier``."""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import warnings
import weakref
import zipfile
from pathlib import Path
from typing import Any, Self

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from clmoe.store import Store
from store_schema.errors import BadInput, ClmoeError, UsageProblem

Array = np.ndarray[Any, Any]
STORE = "store"
"""Its folder within one of its own."""


class _Folder:
    """A folder that goes with this object, without a word: its owner may be one of many that a search has tried."""

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="clmoe-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class ContinualClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]
    """Learns tasks one after the other, keeps no data, and forgets nothing.

    ``fit`` starts anew; ``partial_fit`` adds what is new as a task of its own and refines a task with more of what is
    known, where that is enough. So a task is what one call brings: give whole classes, not mini-batches.

    Parameters: ``store``, a folder (None: one of its own, which goes with the estimator, and into its pickle);
    ``arch``, ``features``, ``epochs``, ``max_drop`` and ``device`` as the flags of ``clmoe learn``;
    ``random_state``, the seed of a new store. Attributes: ``classes_`` [C], sorted; ``n_features_in_``; ``store_``, the
    :class:`clmoe.Store`.
    """

    def __init__(
        self,
        store: str | os.PathLike[str] | None = None,
        *,
        arch: str = "mlp:500,500",
        features: str | None = None,
        epochs: int = 40,
        max_drop: float = 0.3,
        device: str = "auto",
        random_state: Any = 0,
    ) -> None:
        self.store, self.arch, self.features, self.epochs = store, arch, features, epochs
        self.max_drop, self.device, self.random_state = max_drop, device, random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Learns inputs ``X`` [N, D] with labels ``y`` [N] as the first task.

        Raises ValueError for data that cannot be learned, and for a folder that holds tasks already.
        """
        if self.store is not None and Store(self.store).tasks:
            hint = "partial_fit goes on with them"
            raise ValueError(str(UsageProblem("the store has tasks", where=str(self.store), hint=hint)))
        if hasattr(self, "classes_"):
            del self.classes_
        return self._learned(X, y, reset=True)

    def partial_fit(self, X: Any, y: Any, classes: Any = None) -> Self:
        """Learns more: as the next task what is new, and into its task what is known.

        ``classes`` is accepted, as elsewhere in scikit-learn, and not needed. Raises ValueError.
        """
        return self._learned(X, y, reset=not hasattr(self, "classes_"))

    def predict(self, X: Any) -> Array:
        """Labels [N] of inputs ``X`` [N, D], without a task id. Raises NotFittedError and ValueError."""
        check_is_fitted(self)
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def predict_proba(self, X: Any) -> Array:
        """Probabilities [N, C] of ``classes_``; those beyond the eight likeliest of an input are 0."""
        check_is_fitted(self)
        X = validate_data(self, X, reset=False, dtype=np.float32)
        explained = self._called(lambda: self.store_.predict(X, explain=True, device=self.device).explained)
        behind, _ = explained.why.margins()
        known = explained.why.task >= 0
        share = np.where(known.numpy(), np.exp(-behind.numpy()), 0.0)
        place = {label: at for at, label in enumerate(self._coded(self.classes_).tolist())}
        column = np.array([place[label] for label in explained.book.labels])
        found = np.zeros((len(X), len(self.classes_)))
        rows = np.arange(len(X))[:, None]
        # A class that several tasks know counts once, by the likelier.
        np.maximum.at(found, (rows, column[explained.why.code.numpy() * known.numpy()]), share)
        return np.asarray(found / found.sum(axis=1, keepdims=True))

    def _learned(self, X: Any, y: Any, *, reset: bool) -> Self:
        X, y = validate_data(self, X, y, reset=reset, dtype=np.float32)
        check_classification_targets(y)
        known = getattr(self, "classes_", np.unique(y)[:0])
        if len(known) and _are_text(known) != _are_text(y):
            raise ValueError("labels are all numbers or all text: those learned and those given are not of one kind")
        classes = np.unique(np.concatenate([known, y])) if len(known) else np.unique(y)
        if len(known) and not _kept_as_they_are(classes) and len(classes) > len(known):
            raise ValueError("labels that are neither integers nor text are all given to the first call")
        self.classes_ = classes
        if reset:
            self._kept = _Folder() if self.store is None else None
            self.store_ = Store(self._kept.path / STORE if self._kept else str(self.store))
        self._called(lambda: self._taken(X, self._coded(y)))
        return self

    def _taken(self, X: Array, y: Array) -> None:
        first = not self.store_.tasks
        seed = int(check_random_state(self.random_state).randint(2**31 - 1)) if first else None
        how: dict[str, Any] = {"arch": self.arch, "epochs": self.epochs, "max_drop": self.max_drop, "seed": seed}
        try:
            self.store_.learn(X, y, features=self.features, device=self.device, if_known="refine", **how)
        except BadInput as error:
            if "to refine with" not in error.what:
                raise
            warnings.warn(f"left as it was: {error}", stacklevel=4)

    def _coded(self, labels: Array) -> Array:
        """Labels as a store has them: integers and text themselves, of others the place among ``classes_``."""
        if _kept_as_they_are(labels):
            return labels.astype(np.str_) if labels.dtype.kind == "O" else labels
        return np.searchsorted(self.classes_, labels)

    def _called(self, use: Any) -> Any:
        try:
            return use()
        except ClmoeError as error:
            raise ValueError(str(error)) from error

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())
        if state.get("_kept") is not None:
            packed = io.BytesIO()
            root = Path(self.store_.path)
            with zipfile.ZipFile(packed, "w") as archive:
                for path in sorted(path for path in root.rglob("*") if path.is_file()):
                    archive.write(path, Path(STORE) / path.relative_to(root))
            state["_kept"] = packed.getvalue()
            del state["store_"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        packed = vars(self).get("_kept")
        if isinstance(packed, bytes):
            self._kept = _Folder()
            with zipfile.ZipFile(io.BytesIO(packed)) as archive:
                archive.extractall(self._kept.path)
            self.store_ = Store(self._kept.path / STORE)


def _kept_as_they_are(labels: Array) -> bool:
    """Whether a store has these labels themselves: integers and text, which pandas has as objects."""
    return labels.dtype.kind in "iu" or _are_text(labels)


def _are_text(labels: Array) -> bool:
    return labels.dtype.kind == "U" or (labels.dtype.kind == "O" and all(isinstance(one, str) for one in labels))
