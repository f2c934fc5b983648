"""What a caller does with a store, one module a command: typed, frozen reports; no terminal, no Typer.

``clmoe_cli.api.learn.learn`` does what ``clmoe learn`` does. :mod:`clmoe` exports all of it.
"""
