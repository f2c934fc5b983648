"""``schema``: what ``--json`` prints, as JSON Schema (draft 2020-12), made from the reports. Imports no torch.

What is required here stays; keys that are not may come. Another report: a line in ``_models``, then
``python tests/golden/schemas.py`` writes down what is published.
"""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, create_model
from pydantic.json_schema import GenerateJsonSchema

from clmoe_cli.api import shapes
from clmoe_cli.api.inspect import InspectReport
from clmoe_cli.api.reports import DetectReport, ExportReport, LearnReport, Report, Segment, StreamReport
from clmoe_cli.api.reports import RemovalReport as PruneReport
from clmoe_cli.api.tasks import TasksReport
from clmoe_cli.runtime.words import one_of

DIALECT = "https://json-schema.org/draft/2020-12/schema"


def schema(name: str | None = None) -> dict[str, Any]:
    """The schema of a command's JSON, of ``prediction`` or of ``error``; without a name all of them, by name.

    Raises UsageProblem for an unknown name.
    """
    models = _models()
    if name is None:
        return {each: _published(each, model) for each, model in models.items()}
    return _published(name, models[one_of("schema", name, list(models))])


def names() -> list[str]:
    """What :func:`schema` knows."""
    return list(_models())


def _models() -> dict[str, Any]:
    status = Literal["learned", "known", "refined"]
    candidates = list[shapes.Candidate]
    learn = _of(
        LearnReport,
        status=status,
        accuracy=shapes.Accuracy,
        per_class=list[shapes.ClassAccuracy],
        onset=shapes.Onset,
        candidates=candidates,
    )
    segment = create_model("SegmentReport", __base__=learn, __doc__=Segment.__doc__, start=(int, ...), stop=(int, ...))
    return {
        "learn": learn | _of(StreamReport, segments=list[segment]),  # type: ignore[valid-type]
        "detect": _of(DetectReport, verdict=Literal["known", "new", "undecided"], tasks=list[shapes.Compared]),
        "predict": shapes.Predictions | shapes.Written,
        "inspect": _of(
            InspectReport,
            experts=list[shapes.Expert],
            tasks=list[shapes.Task],
            history=list[shapes.Commit],
            bytes=shapes.Bytes,
            repaired=shapes.Repaired | None,
        ),
        "export": _of(ExportReport, answers=Literal["mixture", "subnetwork"], accuracy=shapes.Accuracy),
        "prune": _of(PruneReport),
        "tasks": _of(TasksReport, files=list[shapes.File]),
        "prediction": shapes.Prediction,
        "error": shapes.Error,
    }


def _of(report: type[Report], **nested: Any) -> Any:
    """A model of what a report prints: its fields, some of which say what is ``nested`` in them; all are required."""
    hints = get_type_hints(report)
    fields: dict[str, Any] = {f.name: (nested.get(f.name, hints[f.name]), ...) for f in dataclasses.fields(report)}
    fields = {"schema_": (Literal[report.schema], Field(alias="schema")), **fields}
    return create_model(report.__name__, __doc__=inspect.cleandoc(report.__doc__ or ""), **fields)


class _Plain(GenerateJsonSchema):
    """Without what repeats the names of keys, and without defaults: what is left out has none."""

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def default_schema(self, schema: Any) -> Any:
        return self.generate_inner(schema["schema"])


def _published(name: str, model: Any) -> dict[str, Any]:
    found = TypeAdapter(model).json_schema(mode="serialization", schema_generator=_Plain)
    return {"$schema": DIALECT, "title": f"clmoe {name}", **{k: v for k, v in found.items() if k != "title"}}
