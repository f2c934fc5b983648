"""Where settings come from besides flags: ``clmoe.toml`` and ``CLMOE_*`` variables, and what in them means nothing.

Typer reads variables and defaults by itself. pydantic-settings would declare every option a second time, and importing
it takes longer than ``--help`` may.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from clmoe_cli.backbone.places import FOLDER
from clmoe_cli.report.progress import note
from store_schema.errors import UsageProblem

CONFIG = "clmoe.toml"
PREFIX = "CLMOE_"
DEBUG = "CLMOE_DEBUG"
PATHS = ("store", "weights", "features-weights")
"""Settings that are paths."""


class Command(TyperCommand):
    """A command whose help is asked for by its flag, never by a variable.

    Where an option may be given several times, its variable has a line for each: names have spaces.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            if getattr(param, "multiple", False):
                vars(param)["split_envvar_value"] = str.splitlines

    def get_help_option(self, ctx: Any) -> Any:
        """The option ``--help``."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.allow_from_autoenv = False
        return option


def from_file(group: Any) -> dict[str, Any]:
    """``clmoe.toml`` as defaults: top-level keys for every command of the group that has them, a table per command.

    It is looked for in this folder and those above it; the nearest counts. Its paths start from its own folder. Raises
    UsageProblem for a file that is no TOML or has a key that no command knows.
    """
    path = _nearest()
    if path is None:
        return {}
    where = str(path)
    try:
        found = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageProblem("not a valid TOML file", where=where, found=str(error)) from error
    result: dict[str, Any] = {}
    names = {command: {p.name for p in sub.params} for command, sub in group.commands.items()}
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    common = {key: value for key, value in found.items() if key not in tables}
    every = set().union(*names.values())
    for key in common:
        if _parameter(key) not in every:
            hint = _closest(key, (*map(_setting, every), *names)) or "settings are named like the options"
            raise UsageProblem("unknown setting", where=where, key=key, hint=hint)
    for table, values in tables.items():
        if table not in names:
            expected = f"one of {', '.join(names)}"
            raise UsageProblem("unknown table", where=where, key=table, expected=expected, hint=_closest(table, names))
        for key in values:
            if _parameter(key) not in names[table]:
                near = _closest(key, map(_setting, names[table]))
                raise UsageProblem("unknown setting", where=where, key=f"{table}.{key}", hint=near)
    for command, sub in group.commands.items():
        known = {p.name: getattr(p, "multiple", False) for p in sub.params}
        merged = {_parameter(k): _from(path.parent, k, v) for k, v in {**common, **tables.get(command, {})}.items()}
        # Of an option that may be given several times, one value is a list of one.
        result[command] = {k: [v] if known[k] and isinstance(v, str) else v for k, v in merged.items() if k in known}
    return result


def _nearest() -> Path | None:
    """``clmoe.toml`` of this folder, or of the nearest above it; the name alone where it lies here."""
    here = Path(CONFIG)
    if here.is_file():
        return here
    try:
        above = Path.cwd().parents
    except FileNotFoundError:  # the folder was deleted
        return None
    return next((folder / CONFIG for folder in above if (folder / CONFIG).is_file()), None)


def _from(folder: Path, key: str, value: Any) -> Any:
    """A setting that is a path, as one from the folder of the file that has it; others as they are."""
    if not isinstance(value, str) or folder == Path() or "://" in value:
        return value
    path = key in PATHS or (key == "features" and value.endswith(".onnx"))
    return str(folder / value) if path and value else value


def for_command(context: typer.Context, store: str) -> None:
    """Takes a ``--store`` before the command as if it stood behind it: beyond variables and settings.

    Raises UsageProblem for a command that has no store.
    """
    name = context.invoked_subcommand or ""
    command = getattr(context.command, "commands", {}).get(name)
    if command is not None and "store" not in {param.name for param in command.params}:
        raise UsageProblem(f"{name} has no store", found="--store", hint="leave it out")
    os.environ[f"{PREFIX}STORE"] = store


def warn_of_variables(context: typer.Context, quiet: bool) -> bool:
    """A line on stderr for each ``CLMOE_*`` variable that no command reads, also where it is ``quiet``.

    The callback of ``--quiet``, which every command has: by then it is known whatever said it.
    """
    if not context.resilient_parsing:
        known = _variables(context.find_root().command)
        for name in sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known):
            hint = _closest(name.removeprefix(PREFIX), [other.removeprefix(PREFIX) for other in known], PREFIX)
            note(f"warning: nothing reads the variable {ascii(name)[1:-1]}{f'; {hint}' if hint else ''}")
    return quiet


def _variables(group: Any) -> set[str]:
    """The names of all variables that some command reads."""
    own = {(command, param) for command, sub in group.commands.items() for param in sub.params}
    explicit = {param.envvar for _, param in own if isinstance(param.envvar, str)}
    options = {(command, param.name) for command, param in own if param.param_type_name == "option"}
    return {DEBUG, FOLDER, *explicit, *(f"{PREFIX}{command}_{name}".upper() for command, name in options)}


def _closest(name: str, known: Iterable[str], prefix: str = "") -> str | None:
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.75)
    return f"did you mean {prefix}{close[0]}?" if close else None


def _parameter(key: str) -> str:
    name = key.replace("-", "_")
    return f"{name}_" if name in ("json", "format") else name


def _setting(parameter: str) -> str:
    return parameter.rstrip("_").replace("_", "-")
