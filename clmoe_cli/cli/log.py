"""``clmoe log``: its flags."""

from __future__ import annotations

from clmoe_cli.cli import flags


def log(
    store: flags.StoreOption = flags.DEFAULT_STORE,
    json_: flags.JsonOption = False,
    quiet: flags.QuietOption = False,
    verbose: flags.VerboseOption = False,
) -> None:
    """List what was done to the store, and where it can go back."""
    from clmoe_cli.api.generations import log as call
    from clmoe_cli.report import render

    render.show(call(store), json_)
