"""From a command to an exit code: configuration file, errors as one line (or JSON), interruption."""

from __future__ import annotations

import io
import json
import os
import sys
import tomllib
import traceback
from pathlib import Path
from typing import Any

import typer

from clmoe_cli.distributed import speaks
from store_schema.errors import ClmoeError, DiskProblem, UsageProblem

CONFIG = "clmoe.toml"
INTERRUPTED = 130
TRUE = ("1", "true", "t", "yes", "y", "on")


def usable_streams() -> None:
    """Streams that are closed become the null device; what stdout's encoding lacks is escaped."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            # Open as long as the process is: a stream is nobody's to close.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def run(app: typer.Typer, args: list[str]) -> int:
    """Runs the app; every error becomes one line on stderr and its exit code."""
    as_json = "--json" in args or os.environ.get("CLMOE_JSON", "").strip().lower() in TRUE
    try:
        settings = _configured(app)
        if "CLMOE_JSON" not in os.environ:
            as_json |= settings.get(args[0] if args else "", {}).get("json_") is True
        code = app(args, standalone_mode=False, default_map=settings)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit) as error:
        if isinstance(error, SystemExit) and not isinstance(error.__context__, BrokenPipeError):
            raise
        # Whoever read our output has gone (Typer makes an exit of it); nothing may be flushed at our own.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except ClmoeError as error:
        _trace()
        return _fail(error.as_dict(), error.exit_code, as_json, str(error))
    except OSError as error:
        _trace()
        problem = DiskProblem(error.strerror or str(error), where=error.filename)
        return _fail(problem.as_dict(), problem.exit_code, as_json, str(problem))
    except Exception as error:
        # Typer's own usage errors carry their exit code and message; everything else is our bug.
        message = getattr(error, "format_message", None)
        _trace()
        if message is not None:
            return _fail({"what": _line(message())}, int(getattr(error, "exit_code", 2)), as_json)
        text = f"bug in clmoe: {type(error).__name__}: {error} (set CLMOE_DEBUG=1 for the traceback and report it)"
        return _fail({"what": _line(text)}, 1, as_json)
    if code == INTERRUPTED:  # Typer makes this code, silently, of a KeyboardInterrupt
        return _fail({"what": "interrupted; the store is as it was before this command"}, INTERRUPTED, as_json)
    return code if isinstance(code, int) else 0


def _configured(app: typer.Typer) -> dict[str, Any]:
    """``clmoe.toml`` as defaults: top-level keys for every command that has them, a table per command.

    Raises UsageProblem for a file that is no TOML or has a key that no command knows.
    """
    path = Path(CONFIG)
    if not path.is_file():
        return {}
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageProblem("not a valid TOML file", where=CONFIG, found=str(error)) from error
    group: Any = typer.main.get_command(app)
    result: dict[str, Any] = {}
    names = {command: {p.name for p in sub.params} for command, sub in group.commands.items()}
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    common = {key: value for key, value in found.items() if key not in tables}
    for key in common:
        if not any(_parameter(key) in known for known in names.values()):
            raise UsageProblem("unknown setting", where=CONFIG, key=key, hint="settings are named like the options")
    for table, values in tables.items():
        if table not in names:
            raise UsageProblem("unknown table", where=CONFIG, key=table, expected=f"one of {', '.join(names)}")
        for key in values:
            if _parameter(key) not in names[table]:
                raise UsageProblem("unknown setting", where=CONFIG, key=f"{table}.{key}")
    for command, known in names.items():
        merged = {**common, **tables.get(command, {})}
        result[command] = {_parameter(k): v for k, v in merged.items() if _parameter(k) in known}
    return result


def _parameter(key: str) -> str:
    name = key.replace("-", "_")
    return f"{name}_" if name in ("json", "format") else name


def _fail(fields: dict[str, Any], code: int, as_json: bool, line: str | None = None) -> int:
    if not speaks():
        return code  # another process says so
    if as_json:
        print(json.dumps({"schema": "clmoe.error/1", "error": {**fields, "exit_code": code}}), file=sys.stderr)
    else:
        print(f"clmoe: {line or fields['what']}", file=sys.stderr)
    return code


def _line(text: str) -> str:
    return " ".join(text.split())


def _trace() -> None:
    if os.environ.get("CLMOE_DEBUG") == "1":
        traceback.print_exc()
