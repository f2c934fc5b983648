"""Progress in a notebook: one bar in the cell's output, which goes when the work is done."""

from __future__ import annotations

import html
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from clmoe_cli.report.progress import Item, Progress, duration, watched


def in_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    if "IPython" not in sys.modules:
        return False
    from IPython import get_ipython

    return type(get_ipython()).__name__ == "ZMQInteractiveShell"


class _InCell(Progress):
    """Draws with HTML of the browser's own, so that no widgets are needed."""

    def __init__(self) -> None:
        super().__init__(quiet=False, terminal=True)

    def _draw(self, item: Item, now: float) -> None:
        from IPython.display import display

        share = "" if not item.total else f' value="{item.done}" max="{item.total}"'
        left = item.left(now) or duration(now - item.began)
        text = html.escape(" ".join(part for part in (item.head, item.text, left) if part))
        shown = _html(f"<progress{share}></progress> {text}")
        if self._bar is None:
            self._bar, self._shown = display(shown, display_id=True), True  # type: ignore[no-untyped-call]
        else:
            self._bar.update(shown)

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.update(_html(""))
            self._bar = None

    def _note(self, text: str) -> None:
        """Lines are for terminals."""

    def _end_phase(self) -> None:
        """What a phase has reached is in the report."""
        for item in [item for item in self._running.values() if item.phase]:
            self._end(item.name)


def _html(text: str) -> Any:
    from IPython.display import HTML

    return HTML(text)  # type: ignore[no-untyped-call]


@contextmanager
def notebook_progress() -> Iterator[Progress]:
    """A bar in the cell's output while the block runs."""
    with watched(_InCell()) as shown:
        yield shown
