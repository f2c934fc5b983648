"""From the manifest of an older format to this version's: pure functions of its fields, applied as it is read.

Nothing on disk is changed by reading. The next commit writes this version's manifest, and FORMAT before HEAD, so that
older versions refuse the store by name from then on.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from store_schema import layout

Fields = dict[str, Any]


def changes(history: Sequence[Fields]) -> list[Fields]:
    """Entries of a history that say what was frozen, as entries that say what is so since the one before.

    ``frozen`` and ``output_rows`` keep the experts whose counts changed; of one that is gone, ``frozen`` has none.
    """
    found, before, rows = [], dict[str, Any](), dict[str, Any]()
    for entry in history:
        frozen, output_rows = entry["frozen"], entry["output_rows"]
        changed = {expert: counts for expert, counts in frozen.items() if counts != before.get(expert)}
        gone: Fields = {expert: {} for expert in before if expert not in frozen}
        new_rows = {expert: count for expert, count in output_rows.items() if count != rows.get(expert)}
        found.append({**entry, "frozen": {**changed, **gone}, "output_rows": new_rows})
        before, rows = frozen, {expert: count for expert, count in output_rows.items() if expert in frozen}
    return found


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


def _changes(fields: Fields) -> Fields:
    """Format 5: entries of the history say what changed."""
    return {**fields, "history": changes(fields.get("history", ()))}


UPGRADES: Mapping[int, Callable[[Fields], Fields]] = {1: _inputs, 2: _answers, 3: _smaller, 4: _changes}
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
