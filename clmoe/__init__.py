"""Continual learning of classifiers in a persistent store of experts: the public Python API.

    import clmoe

    store = clmoe.Store("experts")
    store.learn(X, y, name="birds")       # arrays, tensors, a DataFrame, a data set of torch, or paths
    store.predict(X_new).label

:class:`Store` is for people. Beneath it, each command is a function of a folder and a :class:`Batch`.

Importing it imports no torch. Each function returns a frozen report; ``report.to_json()`` is what ``--json`` prints.
Errors are subclasses of :class:`ClmoeError`.
"""

from __future__ import annotations

from importlib import import_module
from inspect import isfunction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from clmoe.store import Store
    from clmoe_cli import __version__
    from clmoe_cli.api.detect import detect
    from clmoe_cli.api.export import export
    from clmoe_cli.api.export_all import export_all
    from clmoe_cli.api.inspect import InspectReport, inspect
    from clmoe_cli.api.learn import learn
    from clmoe_cli.api.options import LearnOptions
    from clmoe_cli.api.planning import plan
    from clmoe_cli.api.predict import PredictReport, predict
    from clmoe_cli.api.prune import PruneOptions, prune, would_prune
    from clmoe_cli.api.reports import (
        Caution,
        DetectReport,
        ExportAllReport,
        ExportReport,
        LearnReport,
        RemovalReport,
        StreamReport,
    )
    from clmoe_cli.api.segment import learn_stream
    from clmoe_cli.api.tasks import TasksOptions, make_tasks
    from clmoe_cli.data.arrays import read_batch
    from clmoe_cli.data.batch import Batch
    from store_schema.errors import BadInput, ClmoeError, StoreDamaged, StoreLocked, StoreMissing, UsageProblem

_HOME = {
    "clmoe.store": ("Store",),
    "clmoe_cli": ("__version__",),
    "clmoe_cli.api.detect": ("detect",),
    "clmoe_cli.api.export": ("export",),
    "clmoe_cli.api.export_all": ("export_all",),
    "clmoe_cli.api.inspect": ("InspectReport", "inspect"),
    "clmoe_cli.api.learn": ("learn",),
    "clmoe_cli.api.options": ("LearnOptions",),
    "clmoe_cli.api.planning": ("plan",),
    "clmoe_cli.api.predict": ("PredictReport", "predict"),
    "clmoe_cli.api.prune": ("PruneOptions", "prune", "would_prune"),
    "clmoe_cli.api.reports": (
        "Caution", "DetectReport", "ExportAllReport", "ExportReport", "LearnReport", "RemovalReport", "StreamReport",
    ),
    "clmoe_cli.api.segment": ("learn_stream",),
    "clmoe_cli.api.tasks": ("TasksOptions", "make_tasks"),
    "clmoe_cli.data.arrays": ("read_batch",),
    "clmoe_cli.data.batch": ("Batch",),
    "store_schema.errors": ("BadInput", "ClmoeError", "StoreDamaged", "StoreLocked", "StoreMissing", "UsageProblem"),
}  # fmt: skip
_WHERE = {name: module for module, names in _HOME.items() for name in names}

__all__ = [
    "BadInput", "Batch", "Caution", "ClmoeError", "DetectReport", "ExportAllReport", "ExportReport", "InspectReport",
    "LearnOptions", "LearnReport", "PredictReport", "PruneOptions", "RemovalReport", "Store", "StoreDamaged",
    "StoreLocked", "StoreMissing", "StreamReport", "TasksOptions", "UsageProblem", "__version__", "detect", "export",
    "export_all", "inspect", "learn", "learn_stream", "make_tasks", "plan", "predict", "prune", "read_batch",
    "would_prune",
]  # fmt: skip


def __getattr__(name: str) -> Any:
    """A name of the API, imported when it is asked for; functions say what is wrong with a call in one line."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = getattr(import_module(_WHERE[name]), name)
    if isfunction(found):
        from clmoe.calls import checked

        return checked(name)(found)
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
