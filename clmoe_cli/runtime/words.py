"""Words that people type, compared whatever way their letters are composed."""

from __future__ import annotations

import difflib
import unicodedata
from collections.abc import Sequence
from numbers import Real
from typing import Any

from store_schema import UsageProblem


def nfc(name: str) -> str:
    """The one spelling of text whose letters can be written in several ways."""
    return unicodedata.normalize("NFC", name)


def amount(number: int, one: str, many: str | None = None) -> str:
    """So many of something, as words; ``many``: its plural, where that is not ``one`` with an s."""
    return f"{number} {one if number == 1 else many or one + 's'}"


def check_rate(name: str, value: Any) -> None:
    """UsageProblem for a value that is no share."""
    if not isinstance(value, Real) or not 0.0 <= float(value) <= 1.0:  # the Python API may be given anything
        raise UsageProblem(f"{name} is a rate", found=str(value), expected="a number from 0 to 1")


def one_of(kind: str, value: str, choices: Sequence[str]) -> str:
    """The choice that ``value`` is, however its letters are composed; a UsageProblem with a suggestion otherwise."""
    if value in choices:
        return value
    value = str(value)  # the Python API may be given anything
    same = [choice for choice in choices if nfc(choice) == nfc(value)]
    if same:
        return same[0]
    close = difflib.get_close_matches(value, choices, n=1)
    shown = ", ".join(choices[:12]) + (", …" if len(choices) > 12 else "")
    raise UsageProblem(
        f"unknown {kind}",
        found=repr(value),
        expected=f"one of {shown}" if choices else "none: there is none yet",
        hint=f"did you mean {close[0]!r}?" if close else None,
    )
