"""The use cases behind the command line, one module a verb: Typer-free, importable, each returns a frozen report.

``from clmoe_cli.commands.learn import learn`` does what ``clmoe learn`` does.
"""
