"""Progress on stderr: one bar on a terminal, lines elsewhere, nothing when quiet.

Whatever runs for less than a second is not shown. Callbacks only note how far things are; a thread of its own shows it
some times a second, so that computing is not held up and what cannot be counted is seen to be alive.
"""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console

from clmoe_cli.runtime.distributed.processes import leading
from clmoe_cli.runtime.words import amount

if TYPE_CHECKING:
    from clmoe_cli.api.reports import Caution
    from clmoe_cli.api.session import Callbacks
    from clmoe_cli.method.subnetwork.training import Cost, Epoch
    from clmoe_cli.runtime.events import Step

SOON = 1.0
"""Seconds after which something is worth a mention."""
PAUSE = 10.0
"""Seconds between two lines about the same, where there is no terminal."""
BEAT = 0.25
PAYS = 1.1
"""Steps of several processes that take so many times those of one are not worth it; less may be chance."""
EARLY = ("train",)
"""Phases that may end before all of their epochs are through."""


def note(text: str) -> None:
    """A line for people, on stderr; of several processes the first alone says it."""
    if leading():
        write_line(text)


def write_line(text: str) -> None:
    """The same from whatever process; work goes on where nobody reads it any more."""
    try:
        # At once: an interruption between the text and its end would glue the next line to it.
        sys.stderr.write(f"{text}\n")
        sys.stderr.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def duration(seconds: float) -> str:
    """Some time for people, in few characters."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


RATED = "pictures"
"""What is counted by the second as well: decoding and backbones take long, and the rate tells which pays."""
RATED_AFTER = 1.0


@dataclass
class Item:
    """A step or a phase of training under way: at ``at`` it had ``done`` of ``total``, having ``began`` with ``first``.

    ``head`` and ``text`` stand before and behind the bar, ``line`` where there is no bar. A phase counts epochs.
    """

    name: str
    began: float
    first: float
    phase: bool
    done: float = 0.0
    total: float | None = None
    at: float = 0.0
    head: str = ""
    text: str = ""
    line: str = ""
    reached: str = ""

    def left(self, now: float, until: float = math.inf) -> str:
        """How long it will take, if that can be told and is a second at least; training ends by the time ``until``."""
        if self.total is None or self.done <= self.first:
            return ""
        seconds = (self.total - self.done) * (self.at - self.began) / (self.done - self.first) - (now - self.at)
        seconds = min(seconds, until - now) if self.phase else seconds
        how = "at most" if self.phase and self.name in EARLY else "about"
        return f"{how} {duration(seconds)}" if seconds >= SOON else ""


def _rate(item: Item) -> str:
    """``, 160 a second``, once that can be told."""
    seconds = item.at - item.began
    if seconds < RATED_AFTER or item.done <= item.first:
        return ""
    rate = (item.done - item.first) / seconds
    return f", {rate:.0f} a second" if rate >= 10 else f", {rate:.1f} a second"


class Progress:
    """Shows steps and epochs as they are told; :meth:`tick` is called now and then while they run.

    ``terminal``: whether there is one that can show a bar. ``clock``: seconds, from any origin.
    """

    def __init__(self, quiet: bool, terminal: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self.quiet, self.terminal, self.clock = quiet, terminal, clock
        self._until = math.inf
        self._warned: set[str] = set()
        self._lock = threading.RLock()
        self._running: dict[str, Item] = {}  # the latest last
        self._said: dict[str, float] = {}
        self._shown = False
        self._bar: Any = None

    def step(self, step: Step) -> None:
        """Notes how far a step is."""
        if self.quiet:
            return
        with self._lock:
            if step.epoch is not None:
                epoch, epochs = step.epoch
                share = step.done / step.total if step.total else 0.0
                item = self._phase(step.name, epoch - 1 + share, epochs, epoch)
                parts = f"{step.done}/{step.total} {step.unit}"
                item.text = item.reached or parts
                item.line = f"{step.name}, epoch {epoch}: {parts}"
                return
            self._end_phase()
            if step.total is not None and step.done >= step.total:
                self._end(step.name)
                return
            now = self.clock()
            known = self._running.pop(step.name, None)
            if known is None or step.done == 0:
                known = Item(step.name, now, step.done, phase=False)
            self._running[step.name] = known
            known.head, known.done, known.total, known.at = step.name, step.done, step.total, now
            known.line = f"{step.name} …"
            if step.unit:
                of = "" if step.total is None else f"/{step.total}"
                known.text = f"{step.done}{of} {step.unit}{_rate(known) if step.unit == RATED else ''}"
                known.line = f"{step.name}: {known.text}"
            else:
                known.total = None

    def epoch(self, epoch: Epoch) -> None:
        """Shows one epoch: a line, or on a terminal only the last of each phase."""
        if self.quiet:
            return
        with self._lock:
            item = self._phase(epoch.phase, epoch.epoch, epoch.epochs, epoch.epoch)
            quality = epoch.held_out
            judged = f"{epoch.judged_by} {quality.loss:.4f}, {100 * quality.accuracy:.2f} %"
            item.reached = f"loss {epoch.loss:.4f}  {judged}"
            item.text, item.line = item.reached, f"{item.head}  {item.reached}"
            self._said[item.name] = item.at
            if not self.terminal:
                left = item.left(item.at, self._until)
                note(f"{item.line}, {left} left" if left else item.line)
            if epoch.epoch == epoch.epochs:
                self._end_phase()

    def _phase(self, name: str, done: float, epochs: int, epoch: int) -> Item:
        """The phase that is under way, once so many of its epochs are through; a new one where these are fewer."""
        now, item = self.clock(), self._running.get(name)
        if item is None or not item.phase or done < item.done:
            self._end_phase()
            # The first that is heard of an epoch may be its end.
            item = Item(name, now, done, phase=True)
        self._running = {**{k: v for k, v in self._running.items() if k != name}, name: item}
        item.head, item.done, item.total, item.at = f"{name} {epoch}/{epochs}", done, epochs, now
        return item

    def _end_phase(self) -> None:
        """What the phase has reached stays on the terminal."""
        for item in [item for item in self._running.values() if item.phase]:
            if self.terminal and item.reached:
                line = f"{item.line}  ({duration(item.at - item.began)})"
                if self._bar is None:
                    note(line)
                else:
                    self._bar.console.print(line, markup=False, soft_wrap=True)
            self._end(item.name)

    def _end(self, name: str) -> None:
        self._running.pop(name, None)
        if not self._running:
            self._clear()

    def tick(self) -> None:
        """Shows what has been running for long enough."""
        with self._lock:
            if not self._running:
                return
            now, item = self.clock(), next(reversed(self._running.values()))
            if self.terminal:
                if self._shown or now - item.began >= SOON:
                    self._draw(item, now)
                return
            # Epochs have lines of their own.
            due = item.began + SOON
            if now >= max(due, self._said.get(item.name, -PAUSE) + PAUSE):
                self._said[item.name] = now
                left = item.left(now, self._until)
                note(f"{item.line}, {left} left" if left else item.line)

    def _draw(self, item: Item, now: float) -> None:
        if self._bar is None:
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            fields = ("{task.description}", "{task.fields[text]}", "{task.fields[left]}")
            head, text, left = (TextColumn(field, markup=False) for field in fields)
            screen = Console(stderr=True, highlight=False)
            self._bar = Bar(
                head, BarColumn(None), text, left, console=screen, auto_refresh=False, transient=True, expand=True,
                redirect_stdout=False,
            )  # fmt: skip
            self._bar.start()
            self._shown = True
        for task in self._bar.task_ids:
            self._bar.remove_task(task)
        left_or_passed = item.left(now, self._until) or duration(now - item.began)
        self._bar.add_task(item.head, total=item.total, completed=item.done, text=item.text, left=left_or_passed)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def close(self) -> None:
        """Takes the bar off the terminal."""
        with self._lock:
            self._end_phase()
            self._running.clear()
            self._clear()

    def waiting(self, holder: str) -> None:
        """Says that another writer holds the store."""
        self._note(f"waiting for the store: {holder} is writing")

    def changed(self) -> None:
        """Another process has changed the store since a removal was planned."""
        self._note("the store has changed meanwhile: planned again")

    def resuming(self, reached: str) -> None:
        """Says that an interrupted run is continued."""
        self._note(f"continuing after {reached}")

    def segment(self, number: int, count: int, start: int, stop: int) -> None:
        """Says which segment of a stream is learned next."""
        self._note(f"segment {number} of {count}: images {start} to {stop - 1}")

    def warning(self, caution: Caution) -> None:
        """Says what looks wrong, however quiet the command is asked to be."""
        with self._lock:
            if caution.text not in self._warned:
                note(f"warning: {caution.text}")
            self._warned.add(caution.text)

    def _note(self, text: str) -> None:
        if not self.quiet:
            with self._lock:
                note(text)

    def cost(self, cost: Cost) -> None:
        """Says what training will take, before it begins."""
        self._until = self.clock() + cost.limit
        if cost.total >= SOON:
            epochs = f"{amount(cost.epochs, 'epoch')} of {amount(cost.steps, 'step')}"
            limit = f"; the time limit leaves {duration(cost.limit)}" if math.isfinite(cost.limit) else ""
            self._note(f"training: at most about {duration(cost.total)} ({epochs}{limit})")
        if cost.seconds > PAYS * cost.alone:
            threads = f"OMP_NUM_THREADS={cost.threads}"
            alone, together = f"{1e3 * cost.alone:.3g} ms", f"{1e3 * cost.seconds:.3g} ms"
            text = f"a step takes {together}, in one process with {threads} {alone}"
            self._note(f"several processes do not pay here: {text}")

    def callbacks(self) -> Callbacks:
        """What ``learn`` calls."""
        return {
            "on_epoch": self.epoch,
            "on_wait": self.waiting,
            "on_resume": self.resuming,
            "on_step": self.step,
            "on_warning": self.warning,
            "on_cost": self.cost,
        }


def progress(quiet: bool) -> AbstractContextManager[Progress]:
    """A :class:`Progress` that is shown while the block runs, and taken off the terminal however that ends."""
    return watched(Progress(quiet or not leading(), terminal=_has_bars()))


@contextmanager
def watched(shown: Progress) -> Iterator[Progress]:
    """The same of any progress: a thread of its own shows it now and then."""
    ended = threading.Event()

    def watch() -> None:
        # A stream that fails is the command's to notice.
        with suppress(OSError, ValueError):
            while not ended.wait(BEAT):
                shown.tick()

    watcher = threading.Thread(target=watch, name="progress", daemon=True)
    if not shown.quiet:
        watcher.start()
    try:
        yield shown
    finally:
        ended.set()
        if not shown.quiet:
            watcher.join()
        shown.close()


def _has_bars() -> bool:
    """Whether stderr is a terminal that can move its cursor."""
    if not sys.stderr.isatty():
        return False
    screen = Console(stderr=True)
    return screen.is_terminal and not screen.is_dumb_terminal
