"""Names that people type: checked, with a suggestion when they are close to one that exists."""

from __future__ import annotations

from collections.abc import Sequence
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


def check_name(name: str, key: str | None = None) -> None:
    """UsageProblem for what no task may be called; ``key``: the option that says it."""
    if not proper(name):
        expected = f"1 to {MAX_NAME} printable characters"
        raise UsageProblem("not a name for a task", key=key, found=ascii(name[:60]), expected=expected)


def new_task(wanted: str | None, number: int, taken: Sequence[str]) -> str:
    """The name of a new task: the wanted one, else task``number``, which may need a letter more.

    Raises UsageProblem for a name that is taken.
    """
    name = nfc(wanted or f"task{number}")
    while wanted is None and name in taken:
        name += "b"
    if name in map(nfc, taken):
        raise UsageProblem(
            "a task of that name exists", found=repr(name), hint="choose another --name, or prune that task first"
        )
    return name
