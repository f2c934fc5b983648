"""Names that people type: checked, with a suggestion when they are close to one that exists."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import chain, count
from pathlib import Path

from clmoe_cli.runtime.words import nfc
from store_schema import UsageProblem
from store_schema.layout import MAX_NAME


def check_output(path: Path, suffixes: Sequence[str]) -> None:
    """Raises UsageProblem for a suffix that means nothing, a folder, or a file in a folder that is not there."""
    if path.suffix not in suffixes:
        raise UsageProblem(
            "unknown output format", where=str(path), found=path.suffix or "no suffix", expected=", ".join(suffixes)
        )
    if path.is_dir():
        raise UsageProblem("the output is a folder", where=str(path), expected="the name of a file")
    if not path.parent.is_dir():
        raise UsageProblem("no such folder", where=str(path.parent), hint="make it first")


def proper(name: str) -> bool:
    """Whether a task may be called so."""
    return bool(name.strip()) and name.isprintable() and len(name) <= MAX_NAME


def check_name(name: object, key: str | None = None) -> None:
    """UsageProblem for what no new task may be called; ``key``: the option that says it.

    A command would take what begins with a hyphen for an option; tasks that are called so from before keep their names.
    """
    if not isinstance(name, str) or not proper(name) or name.startswith("-"):  # the Python API may be given anything
        expected = f"1 to {MAX_NAME} printable characters, and no hyphen first"
        raise UsageProblem("not a name for a task", key=key, found=ascii(name)[:62], expected=expected)


_GENERIC = """all archive array batch data dataset examples features file files images img inputs known labels more new
out output pictures photos points samples set stdin stream table test tmp train training val valid validation x"""
GENERIC = frozenset(_GENERIC.split())
"""Names of files that say nothing of what is in them."""


def suggested(source: str) -> str | None:
    """What a task is called after the file or folder that it is learned from; None where that says nothing.

    The name without suffixes, where it has a word of two letters that is not generic: neither ``train.npz`` nor
    ``3.npz`` nor ``f1`` nor ``data.csv`` names a task. Arrays and pipes have no name.
    """
    path = Path(source)
    if source in ("", "-") or not path.exists():
        return None
    name = path.resolve().name if path.is_dir() else path.name.partition(".")[0]
    words = re.split(r"[\W\d_]+", name.casefold())
    # A number after it makes task a name, as in task2.npz.
    telling = name.casefold() != "task" and any(
        (len(word) > 1 or word > "\x7f") and word not in GENERIC for word in words
    )
    return nfc(name) if telling and proper(name) and len(name) <= LONGEST and re.match(r"\w", name) else None


LONGEST = 60
"""Characters of a name that a file gives."""


def new_task(wanted: str | None, number: int, taken: Sequence[str], source: str | None = None) -> str:
    """The name of a new task: the wanted one, else its ``source``'s, else task``number``, which may need a letter more.

    A source's name that is taken gets a number: birds-2. Raises UsageProblem for a wanted name that is taken.
    """
    after = None if wanted is not None or source is None else suggested(source)
    if after is not None:
        every = set(map(nfc, taken))
        return next(name for name in chain([after], (f"{after}-{i}" for i in count(2))) if name not in every)
    name = nfc(wanted or f"task{number}")
    while wanted is None and name in taken:
        name += "b"
    if name in map(nfc, taken):
        raise UsageProblem(
            "a task of that name exists", found=repr(name), hint="choose another name, or prune that task first"
        )
    return name
