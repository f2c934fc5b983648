"""What a shell is offered for the value of an option: fixed words, or the names that a store has. Imports no torch.

Nothing here speaks or fails: a store that is missing or damaged completes to nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from store_schema import Manifest

# Shells paste what they are offered into the command line as it is, and zsh evaluates it first. A name from somebody
# else's store must be nothing but a word there.
_PLAIN = re.compile(r"[\w.+@%/][\w.+@%,/-]*")


def among(words: Sequence[str]) -> Callable[[], list[str]]:
    """Completes to fixed words."""
    return lambda: list(words)


def task_names(context: typer.Context) -> list[str]:
    """Completes to the tasks of the store that the command line, the environment or clmoe.toml names."""
    return _named(context, lambda manifest: [task.name for task in manifest.tasks])


def copied_names(context: typer.Context) -> list[str]:
    """Completes to the tasks of the store that is copied from."""
    return _named(context, lambda manifest: [task.name for task in manifest.tasks], "source")


def expert_names(context: typer.Context) -> list[str]:
    """Completes to the experts of that store."""
    return _named(context, lambda manifest: [expert.id for expert in manifest.experts])


def homes(context: typer.Context) -> list[str]:
    """Completes to where ``learn`` can put a task: the experts of that store, or a new one."""
    return [*expert_names(context), "new"]


def sources() -> list[str]:
    """Completes to the data sets that ``tasks`` can cut."""
    from clmoe_cli.api.known_sets import SOURCES

    return list(SOURCES)


def schemas() -> list[str]:
    """Completes to what ``schema`` knows."""
    from clmoe_cli.api.schemas import names

    return names()


def _named(context: typer.Context, names: Callable[[Manifest], list[str]], store: str = "store") -> list[str]:
    from store_schema import ClmoeError, Store

    try:
        found = names(Store.open(context.params[store]).manifest)
    except (ClmoeError, OSError, KeyError, TypeError, ValueError):  # a store, or a --store, that cannot be read
        return []
    return [name for name in found if _PLAIN.fullmatch(name)]
