"""What people see of a store in a terminal: its experts' tasks, bars of what is frozen, overlaps; at any width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.text import Text

from clmoe_cli.api.contents import chosen
from clmoe_cli.report.cells import Fitting, columns, headline, percent
from clmoe_cli.runtime.words import amount

if TYPE_CHECKING:
    from clmoe_cli.api.contents import Shares, Task, Unfinished
    from clmoe_cli.api.inspect import InspectReport

PARTS = (("several tasks", "█", "#", "cyan"), ("one task", "▒", "=", "blue"), ("none", "░", ".", "dim"))
"""Who reads a part of a layer, its sign, its sign where there is only ASCII, its colour: shared, single, free."""
BAR = (8, 40)
"""Least and greatest width of a bar."""


class Bar:
    """What of a layer is shared, one task's, and free, as wide as there is room."""

    def __init__(self, counts: Sequence[int]) -> None:
        self.counts = counts

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(*BAR).clamp(max_width=options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        widths = cells(self.counts, min(options.max_width, BAR[1]))
        signs = [ascii_sign if options.ascii_only else sign for _, sign, ascii_sign, _ in PARTS]
        pieces = zip(widths, signs, PARTS, strict=True)
        yield Text.assemble(*((sign * width, part[-1]) for width, sign, part in pieces))


class Legend:
    """What the signs of bars mean."""

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        parts = [(f"{ascii_sign if options.ascii_only else sign} {name}  ", colour)
                 for name, sign, ascii_sign, colour in PARTS]  # fmt: skip
        text = Text.assemble("weights read by: ", *parts)
        text.rstrip()
        yield text


def cells(counts: Sequence[int], width: int) -> list[int]:
    """Shares of a bar of ``width`` cells, rounded; what there is at all gets a cell, and the greatest gives it."""
    total = sum(counts) or 1
    found = [max(1, round(width * n / total)) if n else 0 for n in counts]
    found[found.index(max(found))] += width - sum(found)
    return found


BY_CONSTRUCTION = "Stored masks overlap by construction: later tasks read earlier ones whole. Measured before learning:"


def overview(report: InspectReport) -> list[Any]:
    """Of each expert its tasks, bars of its layers, and overlaps; then the store in one line."""
    parts: list[Any] = []
    position = {task.name: i for i, task in enumerate(report.tasks)}
    for expert in report.experts:
        own = [task for task in report.tasks if task.expert == expert.id]
        rows = f"{expert.output_rows.rows} output rows{'' if expert.eyes == 'none' else f', eyes {expert.eyes}'}"
        parts += [
            headline(f"expert {expert.id}", f"  {expert.arch}, images {expert.kind}, {rows}"),
            Fitting(_tasks(own, each_layer=True), _tasks(own, each_layer=False)),
            _bars(expert.layers),
        ]
        if len(own) > 1:
            index = [position[task.name] for task in own]
            names = [task.name for task in own]
            parts.append(
                _overlap("overlap (kappa)", names, [[report.overlap[i][j] or 0.0 for j in index] for i in index])
            )
            found = measured(own)
            if any(value is not None for row in found for value in row):
                parts += [BY_CONSTRUCTION, _overlap("measured", names, found)]
        parts.append("")
    if report.experts:
        parts.append(Legend())
    checked = ", every file and output verified" if report.verified else ""
    counted = amount(len(report.tasks), "task")
    parts.append(
        f"{counted}, {report.frozen_percent:.2f} % of shared weights frozen, "
        f"{report.bytes.total} bytes, generation {report.generation}{checked}"
    )
    return [*parts, *unfinished(report.unfinished)]


def unfinished(found: Sequence[Unfinished]) -> list[str]:
    """A line for each learn that has not committed."""
    goes_on = {True: "the same command goes on from there", False: "the store has changed: nothing goes on from there"}
    return [
        f"unfinished: learn of {each.task}, reached {each.reached}, {each.bytes} bytes; {goes_on[each.resumable]}"
        for each in found
    ]


def _tasks(tasks: Sequence[Task], *, each_layer: bool) -> Any:
    """A row for each task: what it selected of every layer, or of all of them together."""
    layers = [layer.name for layer in tasks[0].layers] if tasks and each_layer else ["selected", "reused"]
    table = columns("task", "classes", "accuracy", *layers, "bytes")
    for task in tasks:
        if each_layer:
            shares = [layer.percent for layer in task.layers]
        else:
            every = chosen("", task.layers)
            shares = [100 * count / (every.parameters or 1) for count in (every.selected, every.reused)]
        table.add_row(
            task.name,
            some(task.classes),
            percent(task.accuracy.shown),
            *(f"{share:.2f} %" for share in shares),
            str(task.bytes),
        )
    return table


def _bars(layers: Sequence[Shares]) -> Any:
    table = columns("layer", "weights", "frozen", "shared", "")
    table.columns[-1].justify = "left"
    for layer in layers:
        shared = 100 * layer.shared / layer.parameters
        bar = Bar([layer.shared, layer.single, layer.free])
        table.add_row(layer.name, str(layer.parameters), f"{layer.frozen_percent:.2f} %", f"{shared:.2f} %", bar)
    return table


def measured(tasks: Sequence[Task]) -> list[list[float | None]]:
    """Overlap of each task's images with each other task before it was learned, None where it was not measured."""
    found = [{m.task: m.overlap for m in task.measured or ()} for task in tasks]
    return [[row.get(task.name) for task in tasks] for row in found]


def _overlap(title: str, names: Sequence[str], matrix: Sequence[Sequence[float | None]]) -> Any:
    """The matrix with names; where there is no room, numbered and in hundredths; else where to find it."""
    table = columns(title, *names)
    small = columns("kappa × 100", *(str(i) for i in range(1, len(names) + 1)))
    small.padding = (0, 1, 0, 0)
    for i, (name, row) in enumerate(zip(names, matrix, strict=True), 1):
        table.add_row(name, *("" if value is None else f"{value:.2f}" for value in row))
        small.add_row(f"{i} {cut(name, 16)}", *("" if value is None else f"{100 * value:.0f}" for value in row))
    return Fitting(table, small, f"overlap of {len(names)} tasks: --plot FILE, --report FILE or --json")


def some(labels: Sequence[int | str], shown: int = 4) -> str:
    """The first labels of a task, and how many there are if not all are shown."""
    text = ", ".join(cut(str(label), 16) for label in labels[:shown])
    return text if len(labels) <= shown else f"{text}, … ({len(labels)})"


def cut(text: str, length: int) -> str:
    """At most ``length`` characters, the last an ellipsis where some were left out."""
    return text if len(text) <= length else f"{text[: length - 1]}…"
