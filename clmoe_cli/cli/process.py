"""From a command to an exit code: errors as one line (or JSON), interruption, pipes that nobody reads."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import typer

from clmoe_cli.cli.settings import DEBUG, from_file
from clmoe_cli.report.progress import write_line
from clmoe_cli.runtime.distributed.processes import speaks
from store_schema.errors import ClmoeError, DiskProblem

INTERRUPTED = 130
NAME = "clmoe"
COMPLETE = "_CLMOE_COMPLETE"
"""The variable by which a shell asks what could come next."""
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What a stream fails with that cannot be written."""
TRUE = ("1", "true", "t", "yes", "y", "on")


def usable_streams() -> None:
    """Streams that are closed become the null device; what stdout's encoding lacks is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Open as long as the process is: a stream is nobody's to close.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Whoever reads stdout may be gone before all is printed: what follows inside is left out, and that is no error."""
    try:
        yield
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Typer and rich make an exit of it. Nothing may be flushed at our own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def run(app: typer.Typer, args: list[str], *, stopped: bool = False) -> int:
    """Runs the app, unless it was ``stopped`` already; every error becomes one line on stderr and its exit code."""
    if os.environ.get(COMPLETE):
        return _complete(app)
    as_json = "--json" in args or os.environ.get("CLMOE_JSON", "").strip().lower() in TRUE
    try:
        if stopped:
            raise KeyboardInterrupt
        command = typer.main.get_command(app)  # built once: calling the app builds it again
        settings = from_file(command)
        if "CLMOE_JSON" not in os.environ:
            named = next((arg for arg in args if arg in settings), "")
            as_json |= settings.get(named, {}).get("json_") is True
        code = 0
        with reader_may_leave():
            code = command(args or ["--help"], prog_name=NAME, standalone_mode=False, default_map=settings)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ClmoeError as error:
        _trace()
        return _fail(str(error), error.exit_code, as_json, error)
    except OSError as error:
        _trace()
        where, hint = error.filename, None
        if where is None and error.errno in NO_ROOM:  # the store names its files
            where, hint = "standard output or error", "what the command had done stays: clmoe log"
        problem = DiskProblem(error.strerror or str(error), where=where, hint=hint)
        return _fail(str(problem), problem.exit_code, as_json, problem)
    except Exception as error:
        # Typer's own usage errors carry their exit code and message; everything else is our bug.
        message = getattr(error, "format_message", None)
        _trace()
        if message is not None:
            return _fail(_line(message()), int(getattr(error, "exit_code", 2)), as_json)
        text = f"bug in clmoe: {type(error).__name__}: {error} (set CLMOE_DEBUG=1 for the traceback and report it)"
        return _fail(_line(text), 1, as_json)
    if code == INTERRUPTED:  # Typer makes this code, silently, of a KeyboardInterrupt
        return _fail("interrupted; the store is as it was before this command", INTERRUPTED, as_json)
    return code if isinstance(code, int) else 0


def _complete(app: typer.Typer) -> int:
    """Answers a shell that completes a command line; whatever is wrong is for the command to say, not for this."""
    with suppress(Exception):
        command, settings = typer.main.get_command(app), {}
        with suppress(ClmoeError, OSError):
            settings = from_file(command)
        command([], prog_name=NAME, standalone_mode=False, default_map=settings)
    return 0


def _fail(what: str, code: int, as_json: bool, error: ClmoeError | None = None) -> int:
    if not speaks():
        return code  # another process says so
    with suppress(OSError):  # where stderr has no room either, the code alone is left
        if as_json:
            from clmoe_cli.api.reports import ErrorReport, Failure, failure_of

            failure = Failure(what=what, exit_code=code) if error is None else failure_of(error)
            write_line(json.dumps(ErrorReport(failure).to_json()))
        else:
            write_line(f"clmoe: {what}")
    return code


def _line(text: str) -> str:
    return " ".join(text.split())


def _trace() -> None:
    if os.environ.get(DEBUG) == "1":
        traceback.print_exc()
