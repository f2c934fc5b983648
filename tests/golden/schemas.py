"""Writes down what ``clmoe schema`` publishes: ``python tests/golden/schemas.py``, after a report was changed or added.

Look at the difference before it is committed: keys may be added, and none may go, be renamed or mean something else.
"""

from __future__ import annotations

import json
from pathlib import Path

from clmoe_cli.api.schemas import names, schema

FOLDER = Path(__file__).parent / "schemas"

if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name in names():
        (FOLDER / f"{name}.json").write_text(json.dumps(schema(name), indent=2) + "\n")
