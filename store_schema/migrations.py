"""From the manifest of an older format to this version's: pure functions of its fields, applied as it is read.

Nothing on disk is changed by reading. The next commit writes this version's manifest, and FORMAT before HEAD, so that
older versions refuse the store by name from then on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from store_schema import layout

Fields = dict[str, Any]


def _inputs(fields: Fields) -> Fields:
    """Format 2: experts and gates say what images go through, and experts what their weights start from."""
    experts = [{**expert, "input": None, "pretrained": None} for expert in fields.get("experts", ())]
    return {**fields, "experts": experts, "gates": [{**gate, "input": None} for gate in fields.get("gates", ())]}


def _answers(fields: Fields) -> Fields:
    """Format 3: only fields that may be missing were added."""
    return fields


def _smaller(fields: Fields) -> Fields:
    """Format 4: tasks' objects are smaller, and gates may have an eye."""
    return fields


UPGRADES: Mapping[int, Callable[[Fields], Fields]] = {1: _inputs, 2: _answers, 3: _smaller}
"""Format → what makes the next format's fields of its fields. Format 1 is the first."""


def upgraded(data: bytes) -> bytes:
    """A manifest's bytes as this version's format has them; others are left for the validation to refuse.

    Raises ValueError or RecursionError for what is no JSON, and ValueError for fields that are not the older format's.
    """
    fields = json.loads(data)
    number = fields.get("format") if isinstance(fields, dict) else None
    if type(number) is not int or number >= layout.FORMAT_VERSION:
        return data
    for older in range(number, layout.FORMAT_VERSION):
        try:
            fields = {**UPGRADES[older](fields), "format": older + 1}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not the fields of format {older}: {error!r}") from error
    return json.dumps(fields).encode()
