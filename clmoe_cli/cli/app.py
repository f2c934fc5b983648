"""The command line: its commands, a version, an exit code."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from clmoe_cli.cli.copy import copy
from clmoe_cli.cli.detect import detect
from clmoe_cli.cli.export import export
from clmoe_cli.cli.inspect import inspect
from clmoe_cli.cli.learn import learn
from clmoe_cli.cli.log import log
from clmoe_cli.cli.predict import predict
from clmoe_cli.cli.prune import prune
from clmoe_cli.cli.rename import rename
from clmoe_cli.cli.schema import schema
from clmoe_cli.cli.settings import PREFIX, Command, for_command
from clmoe_cli.cli.tasks import tasks
from clmoe_cli.cli.undo import checkout, undo
from clmoe_cli.runtime.distributed.processes import has_a_part, leave

app = typer.Typer(
    name="clmoe",
    help="Continual learning: each task lives as a frozen subnetwork in a store that keeps it.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(context: typer.Context, value: bool) -> None:
    if value and not context.resilient_parsing:
        from clmoe_cli import __version__

        typer.echo(f"clmoe {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    store: Annotated[
        str | None, typer.Option("--store", help="Folder of the store, for the command that follows.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print one JSON object, of the command that follows.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Continual learning: each task lives as a frozen subnetwork in a store that keeps it."""
    if store is not None:
        for_command(context, "store", store)
    if json_:
        for_command(context, "json", "1")
    if not has_a_part(context.invoked_subcommand):
        raise typer.Exit


for command in (learn, detect, predict, inspect, export, prune, log, undo, checkout, rename, copy, tasks, schema):
    # Variables are for the options of commands: CLMOE_VERSION=1 must not turn every command into --version.
    variables = {"auto_envvar_prefix": f"{PREFIX}{command.__name__.upper()}"}
    app.command(cls=Command, context_settings=variables)(command)


def main(args: list[str] | None = None, *, stopped: bool = False) -> None:
    """Runs the command line and exits with the contract's code; ``stopped``: it was interrupted before it began."""
    from clmoe_cli.cli.process import run, usable_streams

    # Before torch is imported: threads that spin for long while they wait make training ten times slower when
    # another process has one of the cores. Results are the same to the bit.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    # Looking for plugins of pydantic reads the metadata of every package that is installed; records have none.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    usable_streams()
    leave(run(app, sys.argv[1:] if args is None else args, stopped=stopped))
