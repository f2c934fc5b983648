"""Calls of the Python API with arguments that do not exist: one line with a suggestion, as the commands say it."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar, get_type_hints

from clmoe_cli.runtime.words import one_of
from store_schema import UsageProblem

P = ParamSpec("P")
T = TypeVar("T")


def checked(name: str, more: type | None = None) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorates what people call ``name``: other arguments than it has are a UsageProblem, and no TypeError.

    ``more``: the typed dictionary of the options that it hands on.
    """

    def decorated(method: Callable[P, T]) -> Callable[P, T]:
        taken = signature(method)
        parameters = [p for p in taken.parameters.values() if p.name != "self"]
        own = [p for p in parameters if p.kind is not p.VAR_KEYWORD]
        handed_on = list(get_type_hints(more)) if more is not None else []
        options = [*(p.name for p in own), *handed_on]

        @wraps(method)
        def called(*args: P.args, **given: P.kwargs) -> T:
            for option in given:
                one_of(f"option of {name}", option, options)
            try:
                taken.bind(*args, **given)
            except TypeError as error:
                shown = f"{name}({', '.join([*map(_shown, own), *(f'{each}=…' for each in handed_on)])})"
                raise UsageProblem(f"not a call of {name}", found=str(error), expected=shown) from None
            return method(*args, **given)

        return called

    return decorated


def _shown(parameter: Any) -> str:
    """``X``, ``y=…``: an argument, with whether it may be left out."""
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}=…"
