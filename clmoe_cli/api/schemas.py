"""``schema``: what ``--json`` prints, as JSON Schema (draft 2020-12), made from the reports. Imports no torch.

What is required here stays; keys that are not may come. Another report: a line in ``_REPORTS``, then
``python tests/golden/schemas.py`` writes down what is published.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

from pydantic import TypeAdapter
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from clmoe_cli.api.contents import Rows
from clmoe_cli.api.copying import CopyReport
from clmoe_cli.api.generations import LogReport, RenameReport, UndoReport
from clmoe_cli.api.inspect import InspectReport, TaskReport
from clmoe_cli.api.predictions import Considered, Prediction, Predictions, Written
from clmoe_cli.api.reports import (
    DetectReport,
    ErrorReport,
    ExportAllReport,
    ExportReport,
    Failure,
    Json,
    LearnReport,
    RemovalReport,
    Report,
    StreamReport,
)
from clmoe_cli.api.tasks import TasksReport
from clmoe_cli.runtime.words import one_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"
_REPORTS: dict[str, Any] = {
    "learn": LearnReport | StreamReport,
    "detect": DetectReport,
    "predict": Predictions | Written,
    "inspect": InspectReport | TaskReport,
    "export": ExportReport | ExportAllReport,
    "prune": RemovalReport,
    "log": LogReport,
    "undo": UndoReport,
    "checkout": UndoReport,
    "rename": RenameReport,
    "copy": CopyReport,
    "tasks": TasksReport,
    "prediction": Prediction,
    "error": ErrorReport,
}
_LAST: dict[type, tuple[str, ...]] = {
    Rows: ("rows",),
    Prediction: ("file", "runner_up_task", "runner_up_label", "margin", "reason", "top", "truth", "explanation"),
    Predictions: ("decided_by", "warnings", "predictions"),
    Written: ("decided_by", "warnings", "output"),
    Failure: ("kind", "where", "key", "found", "expected", "hint"),
}
"""Fields that are published after the others; what is printed has the order of the dataclass."""
_UNPUBLISHED: dict[type, tuple[str, ...]] = {Considered: ("opinion",)}
"""Fields that are printed, and that nobody may rely on."""


def schema(name: str | None = None) -> dict[str, Json]:
    """The schema of a command's JSON, of ``prediction`` or of ``error``; without a name all of them, by name.

    Raises UsageProblem for an unknown name.
    """
    if name is None:
        return {each: _published(each) for each in _REPORTS}
    return _published(one_of("schema", name, list(_REPORTS)))


def names() -> list[str]:
    """What :func:`schema` knows."""
    return list(_REPORTS)


class _Plain(GenerateJsonSchema):
    """Dataclasses as they are printed, with their docstrings; without what repeats the names of keys, and defaults."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def dataclass_schema(self, schema: core_schema.DataclassSchema) -> JsonSchemaValue:
        kind = schema["cls"]
        found = super().dataclass_schema(schema)
        optional = {each.name for each in dataclasses.fields(kind) if each.metadata.get("optional")}
        own = {key: value for key, value in found["properties"].items() if key not in _UNPUBLISHED.get(kind, ())}
        own |= {key: _without_null(own[key]) for key in optional}
        own |= {key: own.pop(key) for key in _LAST.get(kind, ())}
        if issubclass(kind, Report):
            own = {"schema": {"const": kind.schema, "type": "string"}} | own
        required = [key for key in own if key not in optional]
        return found | {"properties": own, "required": required, "description": inspect.cleandoc(kind.__doc__ or "")}


def _without_null(value: JsonSchemaValue) -> JsonSchemaValue:
    """What a key has to have where it is printed at all."""
    kept = [each for each in value.get("anyOf", [value]) if each != {"type": "null"}]
    return kept[0] if len(kept) == 1 else {"anyOf": kept}


def _published(name: str) -> dict[str, Json]:
    found = TypeAdapter(_REPORTS[name]).json_schema(mode="serialization", schema_generator=_Plain)
    return {"$schema": DIALECT, "title": f"clmoe {name}", **{k: v for k, v in found.items() if k != "title"}}
