"""Arrays, tensors, tables and data sets that lie in memory, read with the checks of files. Imports no torch, no pandas.

What a value is, is told by what it can do: tensors are detached, DataFrames have columns, data sets give pairs.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from decimal import Decimal
from math import isnan
from typing import Any

import numpy as np

from clmoe_cli.data.batch import Array
from clmoe_cli.data.decoding import is_grey, pixels_of
from clmoe_cli.data.npz import Header, NpzReader, name_list, one_line
from clmoe_cli.data.spool import rows_of
from clmoe_cli.data.targets import LABEL_NAMES, plain_names
from store_schema.errors import BadInput, UsageProblem

IMAGES, LABELS, THE_INPUTS = "X", "y", "the inputs"
_NUMBERS = "iufb"


class ArrayReader(NpzReader):
    """Arrays under their names; they are taken as they are, without a copy.

    Everything else as of :class:`~clmoe_cli.data.npz.NpzReader`.
    """

    unlabelled = ("no labels", "give y")

    def __init__(self, arrays: Mapping[str, Array], where: str, columns: tuple[str, ...] | None = None) -> None:
        self.where, self._arrays, self.columns = where, dict(arrays), columns

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the arrays."""
        return tuple(self._arrays)

    @property
    def contents(self) -> str:
        """What was given, for people."""
        return name_list(self.names)

    def header(self, name: str) -> Header:
        """Shape and dtype."""
        array = self._arrays[name]
        return Header(array.shape, array.dtype, False, 0)

    def blocks(self, name: str) -> Iterator[Array]:
        """The array in consecutive parts ``[n, …]``."""
        array = self._arrays[name]
        step = rows_of(array.shape[1:], array.dtype.itemsize)
        for start in range(0, len(array), step):
            # Torch warns of an array that it may not write to, even where it only reads it.
            yield np.require(array[start : start + step], requirements="W")

    def read(self, name: str) -> Array:
        """The whole array."""
        return self._arrays[name]


def is_path(value: Any) -> bool:
    """Whether it names a file or a folder."""
    return isinstance(value, (str, os.PathLike))


def paths(value: Any) -> list[str] | None:
    """The paths that are given, one or a list of them; None for anything else.

    Raises UsageProblem for an empty list, and for a list that has both paths and something else.
    """
    if is_path(value):
        return [os.fspath(value)]
    if not isinstance(value, (list, tuple)):
        return None
    named = [is_path(each) for each in value]
    if value and not any(named):
        return None
    if not all(named) or not value:
        found = "nothing" if not value else f"a list that has {type(value[named.index(False)]).__name__} among paths"
        raise UsageProblem(
            "not a list of paths", found=found, expected="paths of pictures, files or folders, or arrays"
        )
    return [os.fspath(each) for each in value]


def arrays(x: Any, y: Any = None, widths: Collection[int] = (), needed: bool = False) -> ArrayReader:
    """Inputs and labels as arrays to read; ``y`` None for none, or, of a DataFrame, the name of its column.

    Without ``y`` the labels of a DataFrame are the column that has one of ``LABEL_NAMES``, as those of a CSV file are:
    if it is the only one, and unless a store that reads vectors of ``widths`` reads all columns and not one less.
    Where labels are ``needed`` several such columns are refused.

    ``x``: an array ``[N, …]``, a tensor, a DataFrame (its columns are the features), nested lists, a picture of Pillow
    or a list of such, or a map-style data set of torch, whose items are ``(x, y)`` or ``x``. Raises BadInput for what
    no array can be made of.
    """
    if is_frame(x):
        twice = [str(name) for name, times in Counter(x.columns).items() if times > 1]
        if twice:
            raise BadInput("several columns of one name", where=IMAGES, found=name_list(twice), hint="rename them")
        y = _own_labels(x, widths, needed) if y is None else y
    if is_frame(x) and isinstance(y, str):
        if y not in x.columns:
            found = name_list([str(c) for c in x.columns])
            raise BadInput("no such column", where=IMAGES, key=one_line(y), found=found, hint="y='NAME OF THE LABELS'")
        x, y = x[[name for name in x.columns if name != y]], x[y]
    if _is_set(x):
        x, own = _of_set(x)
        y = own if y is None else y
    if _is_picture(x):
        x = _stacked([x])
    elif isinstance(x, (list, tuple)) and any(map(_is_picture, x)):
        x = _stacked(list(x))
    values = {IMAGES: _frame(x) if is_frame(x) else _array(x, IMAGES)}
    if y is not None:
        values[LABELS] = _labels(y)
    return ArrayReader(values, THE_INPUTS, _column_names(x) if is_frame(x) else None)


def _column_names(frame: Any) -> tuple[str, ...] | None:
    """Names of the columns, as of a CSV file; None where some have none."""
    names = plain_names([name for name in frame.columns if isinstance(name, str)])
    return names if len(set(names)) == len(frame.columns) else None


def is_frame(value: Any) -> bool:
    """Whether it is a DataFrame."""
    return hasattr(value, "to_numpy") and hasattr(value, "columns")


def _own_labels(frame: Any, widths: Collection[int], needed: bool) -> str | None:
    """The name of the column that has the labels; None where no name says so. BadInput for several that are needed."""
    found = [name for name in frame.columns if isinstance(name, str) and name in LABEL_NAMES]
    if len(found) > 1 and needed:
        what, one = "several columns may be the labels", "one of them, which you name"
        raise BadInput(what, where=IMAGES, found=name_list(found), expected=one, hint=f"y={found[0]!r}")
    every = len(frame.columns)
    return found[0] if len(found) == 1 and not (every in widths and every - 1 not in widths) else None


def _is_picture(value: Any) -> bool:
    """Whether it is a picture of Pillow."""
    return hasattr(value, "getexif") and hasattr(value, "convert")


def _is_set(value: Any) -> bool:
    """Whether it is a data set of torch: it has items and a length, and is none of what becomes an array."""
    known = (np.ndarray, list, tuple, str, bytes, dict, type)
    return (
        hasattr(value, "__getitem__")
        and hasattr(value, "__len__")
        and not isinstance(value, known)
        and not hasattr(value, "__array__")
        and not hasattr(value, "to_numpy")
        and not hasattr(value, "toarray")
    )


def _of_set(value: Any) -> tuple[Any, Any]:
    """Inputs and, where items are pairs, labels of a data set; the items are read one by one."""
    if not len(value):
        raise BadInput("no images in the data set", where=IMAGES, found=type(value).__name__, expected="at least one")
    items = [value[i] for i in range(len(value))]
    if not isinstance(items[0], (tuple, list)):
        return _stacked(items), None
    if len(items[0]) < 2:
        return _stacked([item[0] for item in items]), None
    labels = [None if _is_missing(item[1]) else _array(item[1], LABELS) for item in items]
    if all(each is None or each.ndim == 0 for each in labels):
        return _stacked([item[0] for item in items]), [each if each is None else each[()] for each in labels]
    return _stacked([item[0] for item in items]), _array(labels, LABELS)


def _stacked(items: list[Any]) -> Array:
    """Items of one shape as one array; pictures are grey if all of them are, as those of a folder."""
    grey = all(is_grey(item) for item in items if _is_picture(item))
    found = [pixels_of(item, grey) if _is_picture(item) else _array(item, IMAGES) for item in items]
    shapes = sorted({each.shape for each in found})
    if len(shapes) > 1:
        shown = " and ".join(str(list(shape)) for shape in shapes[:3])
        hint = "resize the pictures, those of a data set in its transform"
        raise BadInput("the images have several shapes", where=IMAGES, found=shown, expected="one shape", hint=hint)
    return np.stack(found)


def _frame(frame: Any) -> Array:
    """The columns of a DataFrame as numbers [N, D]. BadInput naming those that are none."""
    odd = [str(name) for name, kind in zip(frame.columns, frame.dtypes, strict=True) if not _numeric(kind)]
    if odd:
        hint = "leave them out, encode them as numbers, or name the labels: y='COLUMN'"
        raise BadInput("columns that are no numbers", where=IMAGES, found=name_list(odd), expected="numbers", hint=hint)
    found: Array = frame.to_numpy()
    return found if found.dtype.kind in _NUMBERS else np.asarray(frame.to_numpy(dtype="float64", na_value=np.nan))


def _numeric(kind: Any) -> bool:
    return getattr(kind, "kind", "O") in _NUMBERS


def _array(value: Any, name: str) -> Array:
    """An array of a tensor, an array or nested lists."""
    if hasattr(value, "detach") and hasattr(value, "cpu"):
        try:
            value = value.detach().cpu()
            if str(value.layout) != "torch.strided":
                raise _sparse(value, name, "to_dense()")
            # bfloat16 has no counterpart in numpy.
            return np.asarray(value.float() if str(value.dtype) == "torch.bfloat16" else value.numpy())
        except (TypeError, RuntimeError) as error:
            what, wanted = "not a tensor that can be read", "a dense tensor of numbers"
            raise BadInput(what, where=name, found=one_line(error)[:120], expected=wanted) from error
    masked = sum(map(_masked, value)) if isinstance(value, (list, tuple)) else _masked(value)
    if masked:
        # An array shows what lies beneath.
        hint = "fill them in, or leave those inputs out"
        raise BadInput("values are masked", where=name, found=f"{masked}", expected="none", hint=hint)
    try:
        if isinstance(value, (list, tuple)) and any(hasattr(each, "detach") for each in value):
            value = [_array(each, name) for each in value]
        found = np.asarray(value)
    except (ValueError, TypeError, RuntimeError, OverflowError) as error:
        hint = "all rows must have one length"
        raise BadInput("not an array", where=name, found=one_line(error), expected="numbers", hint=hint) from error
    if found.dtype.kind == "O" and hasattr(value, "toarray"):
        raise _sparse(value, name, "toarray()")
    if found.dtype.kind == "O" and hasattr(value, "dataset"):
        raise BadInput("batches cannot be used", where=name, found=type(value).__name__, hint="give its .dataset")
    return found


def _sparse(value: Any, name: str, dense: str) -> BadInput:
    """What to raise for sparse values, and how they are written out."""
    hint = f"{name}.{dense}"
    return BadInput("a sparse matrix cannot be used", where=name, found=type(value).__name__, hint=hint)


def _masked(value: Any) -> int:
    """How many values of an array are masked; of anything else none."""
    plain = isinstance(value, np.ma.MaskedArray) and value.dtype.names is None
    return int(np.ma.getmaskarray(value).sum()) if plain else 0


def _missing(labels: Any) -> list[int]:
    """The rows of labels, an array or a list, that have none: masked, None, NaN, or what pandas has for it."""
    if not isinstance(labels, np.ndarray):
        inside = (any(map(_is_missing, row)) if isinstance(row, (list, tuple)) else _is_missing(row) for row in labels)
        return [i for i, none in enumerate(inside) if none]
    if not labels.ndim or not labels.size or labels.dtype.names is not None:
        return []
    none = np.ma.getmaskarray(labels).reshape(len(labels), -1).any(axis=1)
    values = np.asarray(labels).reshape(len(labels), -1)
    if labels.dtype.kind == "f":
        none |= np.isnan(values).any(axis=1)
    elif labels.dtype.kind in "Mm":
        none |= np.isnat(values).any(axis=1)
    elif labels.dtype.kind == "O":
        none |= np.array([any(map(_is_missing, row)) for row in values.tolist()])
    rows: list[int] = np.flatnonzero(none).tolist()
    return rows


def _is_missing(label: Any) -> bool:
    """Whether a label is none; of a tensor or an array without axes, what it holds."""
    if label is None or label is np.ma.masked or type(label).__name__ in ("NAType", "NaTType"):
        return True
    if isinstance(label, (np.datetime64, np.timedelta64)):
        return bool(np.isnat(label))
    if getattr(label, "ndim", None) == 0 and hasattr(label, "item"):
        label = label.item()
    return label.is_nan() if isinstance(label, Decimal) else isinstance(label, float) and isnan(label)


def _labels(value: Any) -> Array:
    """Labels as integers or text; objects that all are text, or all integers, become such."""
    if hasattr(value, "to_numpy"):
        value = value.to_numpy()
    # Beside text NaN becomes text: a list is looked at as it is.
    missing = _missing(value) if isinstance(value, (list, tuple, np.ma.MaskedArray)) else []
    found = np.empty(0) if missing else _array(value, LABELS)
    missing = missing or _missing(found)
    if missing:
        others = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise BadInput(
            "a label is missing",
            where=THE_INPUTS,
            key=LABELS,
            found=f"none in row {missing[0]} from 0{others}",
            expected="a label for each input",
            hint="leave out the inputs without a label",
        )
    if found.dtype.kind == "O":
        kinds = {type(each) for each in found.reshape(-1).tolist()}
        if kinds == {str}:
            return found.astype(np.str_)
        if kinds == {int}:
            beyond = next((each for each in found.reshape(-1).tolist() if not -(2**63) <= each < 2**63), None)
            if beyond is not None:
                shown = one_line(str(beyond))[:40]
                raise BadInput("a label is too big", where=THE_INPUTS, key=LABELS, found=shown, expected="64 bits")
            return found.astype(np.int64)
    return found
