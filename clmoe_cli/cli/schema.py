"""``clmoe schema``: its argument."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from clmoe_cli.cli.completion import schemas


def schema(
    command: Annotated[
        str | None,
        typer.Argument(
            autocompletion=schemas, help="A command, prediction (a line of NDJSON), or error [default: all]."
        ),
    ] = None,
) -> None:
    """Print the JSON Schema of what --json prints."""
    from clmoe_cli.api.schemas import schema as call

    print(json.dumps(call(command), indent=2))
