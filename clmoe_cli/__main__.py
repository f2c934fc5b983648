"""``python -m clmoe_cli`` is ``clmoe``."""

from clmoe_cli.cli.app import main

main()
