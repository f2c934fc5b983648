"""Progress on stderr."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from rich.console import Console

if TYPE_CHECKING:
    from clmoe_cli.continual.training import Epoch


def note(text: str) -> None:
    """A line for people, on stderr; work goes on where nobody reads it any more."""
    try:
        print(text, file=sys.stderr, flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


class Progress:
    """Progress on stderr: a bar on a terminal, one line an epoch elsewhere, nothing when quiet."""

    def __init__(self, quiet: bool) -> None:
        self.quiet = quiet
        self.bar: Any = None
        self.phase: tuple[str, Any] | None = None
        if not quiet and sys.stderr.isatty():
            from rich.progress import BarColumn, TextColumn, TimeElapsedColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("{task.description:<12}"), BarColumn(), TextColumn("{task.fields[state]}"))
            self.bar = Bar(*columns, TimeElapsedColumn(), console=Console(stderr=True))
            self.bar.start()

    def epoch(self, epoch: Epoch) -> None:
        """Shows one epoch."""
        state = f"loss {epoch.loss:.4f}  held-out {epoch.held_out.loss:.4f}, {100 * epoch.held_out.accuracy:.2f} %"
        if self.bar is None:
            if not self.quiet:
                note(f"{epoch.phase} {epoch.epoch}/{epoch.epochs}  {state}")
            return
        if self.phase is None or self.phase[0] != epoch.phase:
            self.phase = (epoch.phase, self.bar.add_task(epoch.phase, total=epoch.epochs, state=state))
        self.bar.update(self.phase[1], completed=epoch.epoch, total=epoch.epochs, state=state)

    def waiting(self, holder: str) -> None:
        """Says that another writer holds the store."""
        if not self.quiet:
            note(f"waiting for the store: {holder} is writing")

    def resuming(self, reached: str) -> None:
        """Says that an interrupted run is continued."""
        if not self.quiet:
            note(f"continuing after {reached}")

    def callbacks(self) -> dict[str, Any]:
        """What ``learn`` calls."""
        return {"on_epoch": self.epoch, "on_wait": self.waiting, "on_resume": self.resuming}


@contextmanager
def progress(quiet: bool) -> Iterator[Progress]:
    """A :class:`Progress` that is taken off the terminal at the end."""
    shown = Progress(quiet)
    try:
        yield shown
    finally:
        if shown.bar is not None:
            shown.bar.stop()
