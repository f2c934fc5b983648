"""Steps that may take long, and how whoever waits is told of them: a callback is passed down, as for epochs."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True)
class Step:
    """How far a step has come: ``done`` of ``total``, counted in ``unit``; it begins with 0 and ends with ``total``.

    ``total``: None while nobody knows. ``unit``: empty for what cannot be counted, which is done at once. ``epoch``:
    1-based, of at most so many, where this is the way through one epoch of the training phase ``name``.
    """

    name: str
    done: int
    total: int | None
    unit: str = ""
    epoch: tuple[int, int] | None = None


OnStep = Callable[[Step], None]
OnDone = Callable[[int], None]
"""Is told how much is done, by functions that do not know what for."""


def silent(step: Step) -> None:
    """Tells nobody."""


def begun(on_step: OnStep, name: str, total: int | None, unit: str) -> OnDone:
    """Says that a step begins; what comes back is to be told how much of it is done."""

    def to(done: int) -> None:
        on_step(Step(name, done, total, unit))

    to(0)
    return to


def after(to: OnDone, before: int) -> OnDone:
    """The same, for a part of the step, ahead of which so much is done."""
    return lambda done: to(before + done)


def counted(items: Sequence[T], on_step: OnStep, name: str, unit: str) -> Iterator[T]:
    """The items, each of which is done when the next is asked for."""
    to = begun(on_step, name, len(items), unit)
    for done, item in enumerate(items, start=1):
        yield item
        to(done)


@contextmanager
def whole(on_step: OnStep, name: str) -> Iterator[None]:
    """A step that cannot be counted: the block."""
    on_step(Step(name, 0, 1))
    yield
    on_step(Step(name, 1, 1))


def within(on_step: OnStep, phase: str, epoch: int, epochs: int) -> Callable[[int, int], None]:
    """What is to be told how many images of how many of this epoch are done."""
    return lambda done, total: on_step(Step(phase, done, total, "images", (epoch, epochs)))
