"""Where settings come from besides flags: ``clmoe.toml`` and ``CLMOE_*`` variables, and what in them means nothing.

Typer reads variables and defaults by itself. pydantic-settings would declare every option a second time, and importing
it takes longer than ``--help`` may.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from clmoe_cli.backbone.places import FOLDER
from clmoe_cli.report.progress import note
from store_schema.errors import ClmoeError, UsageProblem

CONFIG = "clmoe.toml"
PREFIX = "CLMOE_"
DEBUG = "CLMOE_DEBUG"
PATHS = ("store", "weights", "features-weights")
"""Settings that are paths."""
BEFORE = "clmoe.before"
"""Where a context keeps the variables that options before the command have set."""


class Command(TyperCommand):
    """A command whose help is asked for by its flag, never by a variable, and whose errors say what set a value.

    Where an option may be given several times, its variable has a line for each: names have spaces.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        for param in self.params:
            if getattr(param, "multiple", False):
                vars(param)["split_envvar_value"] = str.splitlines
            if param.param_type_name == "option" and param.envvar is None and param.name not in _spellings(param)[1:]:
                vars(param).update(envvar=f"{PREFIX}{self.name}_{_spellings(param)[1]}".upper(), show_envvar=False)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """What is left of the arguments; an error names the variable or the file that a value came from."""
        with _attributed(ctx):
            return super().parse_args(ctx, args)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command; of errors the same."""
        with _attributed(ctx):
            return super().invoke(ctx)

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
    names = {command: _keys(sub) for command, sub in group.commands.items()}
    tables = {key: value for key, value in found.items() if isinstance(value, dict)}
    common = {key: value for key, value in found.items() if key not in tables}
    every = set().union(*names.values())
    for key in common:
        if _spelled(key) not in every:
            hint = _closest(key, (*map(_setting, every), *names)) or "settings are named like the options"
            raise UsageProblem("unknown setting", where=where, key=key, hint=hint)
    for table, values in tables.items():
        if table not in names:
            expected = f"one of {', '.join(names)}"
            raise UsageProblem("unknown table", where=where, key=table, expected=expected, hint=_closest(table, names))
        for key in values:
            if _spelled(key) not in names[table]:
                near = _closest(key, map(_setting, names[table]))
                raise UsageProblem("unknown setting", where=where, key=f"{table}.{key}", hint=near)
    for command, sub in group.commands.items():
        known = {p.name: getattr(p, "multiple", False) or p.nargs == -1 for p in sub.params}
        own, both = names[command], {**common, **tables.get(command, {})}
        merged = {own[_spelled(k)]: _from(path.parent, k, v) for k, v in both.items() if _spelled(k) in own}
        for param in sub.params:
            # A number would be read as its digits, and a store of that name be made.
            value, text = merged.get(param.name, ""), param.type_descriptor.annotation in (str, Path)
            if text and not isinstance(value, (str, list)):
                key = next(key for key in both if own.get(_spelled(key)) == param.name)
                key = f"{command}.{key}" if key in tables.get(command, {}) else key
                raise UsageProblem("not a text", where=where, key=key, found=str(value), hint="put quotes round it")
        # Of an option that may be given several times, one value is a list of one.
        result[command] = {k: [v] if known[k] and isinstance(v, str) else v for k, v in merged.items()}
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


@contextmanager
def _attributed(ctx: Any) -> Iterator[None]:
    """Adds to an error which variable, or which key of ``clmoe.toml``, set the values that it is about."""
    try:
        yield
    except ClmoeError as error:
        params = [param for param in ctx.command.params if _about(error, param, ctx)]
        sources = [source for param in params if (source := _source(ctx, param)) is not None]
        error.hint = "; ".join([*([error.hint] if error.hint else ()), *sources]) or None
        raise
    except Exception as error:
        param: Any = getattr(error, "param", None)  # that of Typer's own errors
        source = _source(ctx, param) if param is not None else None
        if type(error).__name__ in ("UsageError", "MissingParameter") and hasattr(error, "format_message"):
            # Too many arguments, or too few.
            taken = [p.metavar or p.name.upper() for p in ctx.command.params if p.param_type_name == "argument"]
            expected = " ".join([ctx.command_path, *taken])
            raise UsageProblem(error.format_message().rstrip("."), expected=expected) from error
        if param is not None and (refused := _refused(error)) is not None:
            found, expected = refused
            raise UsageProblem(
                f"not a value of {param.opts[0]}", found=found, expected=expected, hint=source
            ) from error
        if source is not None:
            # Typer names a variable here whether or not it was the one that spoke.
            vars(error).update(param_hint=param.opts, message=f"{vars(error)['message']}; {source}")
        raise


def _refused(error: Exception) -> tuple[str, str] | None:
    """What a value is and what it should be, of a value that pydantic refused for Typer; None of other errors."""
    details = getattr(error.__cause__, "errors", None)
    if details is None:
        return None
    first = details(include_url=False)[0]
    expected = re.sub(r"^Input should be |, unable to .*$", "", first["msg"])
    return repr(first["input"]), f"a number {expected}" if expected.startswith(("greater", "less")) else expected


def _source(ctx: Any, param: Any) -> str | None:
    """``--epochs is set by the variable CLMOE_LEARN_EPOCHS``; None where the command line or nothing set it."""
    source = getattr(ctx.get_parameter_source(param.name), "name", "")
    flag = param.opts[0] if param.param_type_name == "option" else _setting(param.name)
    if source == "ENVIRONMENT":
        names = (param.envvar, f"{ctx.auto_envvar_prefix}_{param.name}".upper())
        name = next(name for name in names if name and os.environ.get(name))
        return None if name in ctx.meta.get(BEFORE, ()) else f"{flag} is set by the variable {name}"
    path = _nearest()
    if source != "DEFAULT_MAP" or path is None:
        return None
    found = tomllib.loads(path.read_text(encoding="utf-8"))
    own = _keys(ctx.command)
    keys = {own.get(_spelled(key)): key for key in found}
    keys |= {own[_spelled(key)]: f"{ctx.info_name}.{key}" for key in found.get(ctx.info_name, {})}
    return f"{flag} is set by {path} [{keys[param.name]}]"


def _about(error: ClmoeError, param: Any, ctx: Any) -> bool:
    """Whether an error is about the value of an option: it names the option, or has the value in one of its fields."""
    if any(re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", str(error)) for flag in param.opts):
        return True
    value = ctx.params.get(param.name)
    values = {str(one) for one in (value if isinstance(value, (list, tuple)) else [value])}
    if isinstance(value, (int, float)):  # numbers are met by chance
        return param.name.replace("_", " ") in error.what and error.found in values
    fields = {error.where, error.found, *re.findall(r"'([^']*)'", f"{error.what} {error.found}")}
    return bool((values | {str(Path(one)) for one in values}) & fields)


def for_command(context: typer.Context, option: str, value: str) -> None:
    """Takes an option before the command as if it stood behind it: beyond variables and settings.

    Raises UsageProblem for a command that has no such option.
    """
    name = context.invoked_subcommand or ""
    command = getattr(context.command, "commands", {}).get(name)
    if command is not None and f"--{option}" not in {flag for param in command.params for flag in param.opts}:
        raise UsageProblem(f"{name} has no {option}", found=f"--{option}", hint="leave it out")
    variable = f"{PREFIX}{option.upper()}"
    os.environ[variable] = value
    context.meta.setdefault(BEFORE, set()).add(variable)


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


def _keys(command: Any) -> dict[str, str]:
    """How settings of a command are spelled, and the parameters that they set."""
    return {spelling: param.name for param in command.params for spelling in _spellings(param)}


def _spellings(param: Any) -> list[str]:
    """The name of a parameter, then its long flags, in the spelling of :func:`_spelled`."""
    return [param.name, *(_spelled(flag[2:]) for flag in param.opts if flag.startswith("--"))]


def _spelled(key: str) -> str:
    return key.replace("-", "_")


def _setting(parameter: str) -> str:
    return parameter.rstrip("_").replace("_", "-")
