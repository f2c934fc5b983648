"""Labels of an npz, checked: they end up in the manifest and on terminals."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from functools import partial

import numpy as np

from clmoe_cli.data.batch import Array, LabelUse
from clmoe_cli.data.npz import NpzReader
from clmoe_cli.runtime import limits
from store_schema.errors import BadInput
from store_schema.layout import MAX_NAME

LABEL_KEYS = ("y", "Y", "labels", "targets")
LABEL_NAMES = (*LABEL_KEYS, "label", "target", "class")
"""Names of a column that is taken for the labels when nobody says which one is."""

_MOST_BYTES = limits.LABELS_BYTES
_LABEL_HINTS = {"f": "y.astype(int)", "b": "y.astype(int)", "O": "y.astype(str) or y.astype(int)"}


def plain_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of columns as a store keeps them: one line each, printable, NFC."""
    lines = (" ".join(unicodedata.normalize("NFC", name).split()) for name in names)
    return tuple("".join(c if c.isprintable() else "?" for c in line) for line in lines)


def read_labels(reader: NpzReader, count: int, use: LabelUse) -> Array | None:
    """Labels ``[count]`` as int64 or unicode, or None where the file has none and they are optional.

    Text comes out in NFC. Raises BadInput for everything else.
    """
    key = next((key for key in LABEL_KEYS if key in reader.names), None)
    if key is None:
        if use == "optional":
            return None
        wanted, found = "one of " + ", ".join(LABEL_KEYS), reader.contents
        what, hint = reader.unlabelled
        raise BadInput(what, where=reader.where, found=found, expected=wanted, hint=hint)
    fail = partial(BadInput, where=reader.where, key=key)
    header = reader.header(key)
    dtype, shape = header.dtype, list(header.shape)
    if dtype.kind not in "iuUS":
        hint, wanted = _LABEL_HINTS.get(dtype.kind, "y.astype(str)"), "integers or strings"
        raise fail("labels of this type cannot be used", found=str(dtype), expected=wanted, hint=hint)
    if shape != [count]:
        hint = "one label for each image"
        if len(shape) == 2 and shape[0] == count:
            hint = "y.ravel()" if shape[1] == 1 else "y.argmax(1) if they are one-hot"
        raise fail("labels do not match the images", found=str(shape), expected=str([count]), hint=hint)
    if dtype.itemsize == 0:
        raise fail("a label is empty", expected="a name without control characters")
    if header.nbytes > _MOST_BYTES:
        found, wanted = f"{header.nbytes} bytes", f"at most {_MOST_BYTES} bytes"
        raise fail("the labels are too big", found=found, expected=wanted)
    labels = reader.read(key)
    if dtype.kind in "iu":
        if dtype.kind == "u" and int(labels.max()) > np.iinfo(np.int64).max:
            raise fail("a label is too big", found=str(labels.max()), expected="at most 2**63 - 1")
        if dtype.kind == "i" and dtype.itemsize >= 4 and int(labels.min()) == np.iinfo(dtype).min:
            found = f"{labels.min()} in row {labels.argmin()} from 0, which NaN becomes as an integer"
            raise fail("a label is missing", found=found, hint="leave out the inputs without a label")
        return labels.astype(np.int64)
    try:
        native = labels.astype(dtype.newbyteorder("="))
        if dtype.kind == "U" and native.view(np.uint32).max() > sys.maxunicode:
            raise ValueError("beyond Unicode")
        texts = np.char.decode(native, "utf-8") if dtype.kind == "S" else native
        names, which = np.unique(texts, return_inverse=True)
    except (UnicodeDecodeError, ValueError):
        hint = "store the labels as unicode: y.astype(str)"
        raise fail("a label is not text", expected="unicode, or bytes in UTF-8", hint=hint) from None
    composed = [unicodedata.normalize("NFC", name) for name in names.tolist()]
    check_names(composed, reader.where, key)
    return np.asarray(texts) if composed == names.tolist() else np.array(composed, np.str_)[which.reshape(-1)]


def _steers(char: str) -> bool:
    """Whether a character moves what a terminal writes: a control, the end of a line, a change of direction."""
    turns = unicodedata.bidirectional(char) in ("LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI")
    return turns or unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")


def check_names(names: Sequence[str], where: str, key: str | None) -> None:
    """BadInput for a name of a class that is empty, too long for the store, or has control characters."""
    for name in names:
        if not name.strip() or any(map(_steers, name)):
            what = "a label is empty" if not name.strip() else "a label has control characters"
            wanted = "a name without control characters"
            shown, hint = ascii(name[:60]), "rename the class"
            raise BadInput(what, where=where, key=key, found=shown, expected=wanted, hint=hint)
        if len(name) > MAX_NAME:
            found, wanted = f"{len(name)} characters: {name[:20]!a} …", f"at most {MAX_NAME} characters"
            raise BadInput("a label is too long", where=where, key=key, found=found, expected=wanted, hint="shorten it")
