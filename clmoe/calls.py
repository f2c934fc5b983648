"""Calls of the Python API with arguments that do not exist: one line with a suggestion, as the commands say it."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import wraps
from inspect import signature
from numbers import Integral, Real
from typing import Any, ParamSpec, TypeVar

import numpy as np

from clmoe_cli.data.npz import one_line
from clmoe_cli.runtime.words import one_of
from store_schema import UsageProblem

KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    "None": (type(None), "None"),
    "bool": ((bool, np.bool_), "True or False"),
    "int": (Integral, "a whole number"),
    "float": (Real, "a number"),
    "str": ((str, os.PathLike), "text"),
}
"""What an annotation of an option says, and what it is for people. Numbers of numpy are numbers."""

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
        handed_on = {} if more is None else {k: hint.__forward_arg__ for k, hint in more.__annotations__.items()}
        options = [*(p.name for p in own), *handed_on]
        kinds = {p.name: p.annotation for p in own} | handed_on

        @wraps(method)
        def called(*args: P.args, **given: P.kwargs) -> T:
            for option in given:
                one_of(f"option of {name}", option, options)
            try:
                arguments = taken.bind(*args, **given).arguments
            except TypeError as error:
                shown = f"{name}({', '.join([*map(_shown, own), *(f'{each}=…' for each in handed_on)])})"
                raise UsageProblem(f"not a call of {name}", found=str(error), expected=shown) from None
            plain: Any = {k: _plain(k, value, kinds.get(k, "Any")) for k, value in (arguments | given).items()}
            return method(*args, **{option: plain[option] for option in given})

        return called

    return decorated


def _shown(parameter: Any) -> str:
    """``X``, ``y=…``: an argument, with whether it may be left out."""
    return parameter.name if parameter.default is parameter.empty else f"{parameter.name}=…"


def _plain(option: str, value: Any, annotation: Any) -> Any:
    """A value of the kind that the annotation of its option says, where that is a simple one; numbers of numpy become
    Python's. UsageProblem for another.
    """
    wanted = str(annotation).split(" | ")
    if not set(wanted) <= set(KINDS):
        return value
    if not any(_is(value, kind) for kind in wanted):
        expected = " or ".join(KINDS[kind][1] for kind in wanted)
        raise UsageProblem(f"not a value of {option}", found=one_line(repr(value))[:60], expected=expected)
    return value.item() if isinstance(value, np.generic) else value


def _is(value: Any, kind: str) -> bool:
    """Whether a value is of a kind; True and False are numbers to Python alone."""
    return isinstance(value, KINDS[kind][0]) and (kind == "bool" or not isinstance(value, bool))
