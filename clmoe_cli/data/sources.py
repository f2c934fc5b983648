"""Opening an npz by path or from a pipe."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from clmoe_cli.continual.steps import OnStep, Step, silent
from clmoe_cli.data.npz import NpzReader, one_line, read_problem
from clmoe_cli.data.spool import pipe
from store_schema.errors import BadInput, UsageProblem

MAX_STREAM_BYTES = 64 << 30
"""The most bytes taken from a pipe; they go to disk."""


@contextlib.contextmanager
def open_npz(source: str, on_step: OnStep = silent) -> Iterator[NpzReader]:
    """Open an npz by path, or ``-`` for stdin; of a pipe at most MAX_STREAM_BYTES are taken."""
    where = "stdin" if source == "-" else one_line(source)

    def to(taken: int, ended: bool) -> None:
        on_step(Step(f"receiving {where}", taken >> 20, taken >> 20 if ended else None, "MiB"))

    try:
        if source == "-":
            if sys.stdin.isatty():
                raise UsageProblem(
                    "nothing is piped in",
                    where=where,
                    hint="name a file, or feed one: clmoe predict --batch - < file.npz",
                )
            with pipe(sys.stdin.buffer, MAX_STREAM_BYTES, where, to) as held:
                yield NpzReader(held, where)
            return
        mode = Path(source).stat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode)):
            raise BadInput("not a regular file", where=where, expected="an npz file or a folder of pictures")
        with Path(source).open("rb") as file:
            if stat.S_ISREG(mode):
                yield NpzReader(file, where)
                return
            with pipe(file, MAX_STREAM_BYTES, where, to) as held:
                yield NpzReader(held, where)
    except OSError as error:
        raise read_problem(error, where) from error
