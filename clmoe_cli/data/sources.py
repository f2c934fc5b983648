"""Opening a file by path or from a pipe, and telling an npz, an npy and a table apart."""

from __future__ import annotations

import contextlib
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Literal

from clmoe_cli.data import npy
from clmoe_cli.data.npz import one_line, read_problem
from clmoe_cli.data.spool import pipe
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.events import OnStep, Step, silent
from store_schema.errors import BadInput, UsageProblem

MAX_STREAM_BYTES = limits.STREAM_BYTES
TABLES = (".csv", ".tsv", ".txt", ".data")
UNREAD_TABLES = (".xlsx", ".xls", ".xlsm", ".ods", ".parquet", ".feather", ".arff")
_ZIP = b"PK"
_LOOKED_AT = limits.FILE_HEAD_BYTES


def check_source(source: str) -> None:
    """BadInput for a path where nothing can be read, UsageProblem for none; nothing is read, no pipe is opened."""
    if not source:
        raise UsageProblem("no data given", expected="an npz, npy or CSV file, a folder of pictures, or - for stdin")
    if source == "-":
        return
    where = one_line(source)
    if "\0" in source:
        raise BadInput("not a path", where=where, hint="check the path")
    try:
        mode = Path(source).stat().st_mode
        if stat.S_ISREG(mode):
            Path(source).open("rb").close()
    except OSError as error:
        raise read_problem(error, where) from error
    if not (stat.S_ISREG(mode) or stat.S_ISFIFO(mode) or stat.S_ISDIR(mode)):
        raise BadInput("not a regular file", where=where, expected="an npz, npy or CSV file, or a folder of pictures")
    if stat.S_ISREG(mode) and Path(source).suffix.lower() in UNREAD_TABLES:
        raise BadInput("tables of this format are not read", where=where, expected="CSV", hint="save the table as .csv")


@contextlib.contextmanager
def open_source(source: str, on_step: OnStep = silent) -> Iterator[tuple[IO[bytes], str]]:
    """A seekable file at its start and its name in errors, or ``-`` for stdin; of a pipe MAX_STREAM_BYTES at most."""
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
                yield held, where
            return
        with Path(source).open("rb") as file:
            if file.seekable():
                yield file, where
                return
            with pipe(file, MAX_STREAM_BYTES, where, to) as held:
                yield held, where
    except OSError as error:
        raise read_problem(error, where) from error


def kind_of(file: IO[bytes], source: str, as_table: bool) -> Literal["npz", "npy", "table"]:
    """What a file is, by its first bytes, and for text by its suffix; the file is at its start again.

    ``as_table``: whether it was said that it is a table. Text from a pipe is a table.
    """
    head = file.read(_LOOKED_AT)
    file.seek(0)
    if head.startswith(_ZIP):
        return "npz"
    if head.startswith(npy.MAGIC):
        return "npy"
    piped = source == "-" and bool(head) and b"\0" not in head and b"\n" in head
    return "table" if as_table or piped or source.lower().endswith(TABLES) else "npz"
