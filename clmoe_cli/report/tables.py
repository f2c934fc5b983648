"""What people see of a report: headlines and tables for a terminal."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from rich.table import Table

from clmoe_cli.api.copying import CopyReport
from clmoe_cli.api.generations import LogReport, RenameReport, UndoReport
from clmoe_cli.api.inspect import InspectReport, TaskReport
from clmoe_cli.api.reports import DetectReport, ExportAllReport, ExportReport, LearnReport, RemovalReport, StreamReport
from clmoe_cli.api.tasks import TasksReport
from clmoe_cli.report.cells import Fitting, columns, headline, percent, sentences
from clmoe_cli.report.overview import overview, some, unfinished
from clmoe_cli.report.single_task import day, held_out, one_task
from clmoe_cli.runtime.words import amount

if TYPE_CHECKING:
    from clmoe_cli.api.predictions import Prediction
    from clmoe_cli.api.scoring import Scores

OVERLAP_SHOWN = 12
LABELS = 12
"""Of more classes so many are named, and counted; --json has them all."""


def reasons_table(
    first: str, rows: Sequence[Prediction], words: Sequence[str], then: Sequence[str] | None = None
) -> Table:
    """Why each image was answered so, in words; long sentences go on in the next line.

    ``then``: the next best. What an image is has a column where it is known and asked for.
    """
    truth = ("is",) if any(row.truth is not None for row in rows) else ()
    table = columns(first, *truth, "sure", "why", *(() if then is None else ("then",)))
    table.columns[2 + len(truth)].justify = "left"
    for row, why, *more in zip(rows, words, *(() if then is None else (then,)), strict=True):
        is_so = (str(row.truth),) if truth else ()
        table.add_row(row.file or str(row.index), *is_so, f"{row.confidence:.3f}", why, *more)
    return table


def score_tables(scores: Scores) -> list[Any]:
    """Accuracy of each task, and which tasks answered the images of which (for at most ``OVERLAP_SHOWN`` tasks).

    Nothing where no task has one of the labels.
    """
    if not scores.accuracy_by_task:
        return []
    table = columns("task", "accuracy")
    for name, accuracy in scores.accuracy_by_task.items():
        table.add_row(name, percent(accuracy))
    names = sorted({name for row in scores.confusion for name in row.answered}, key=_number)
    if not names or max(len(names), len(scores.confusion)) > OVERLAP_SHOWN:
        return [table]
    confusion, listed = columns("label known to", "images", *names), columns("label known to", "images", "tasks")
    for row in scores.confusion:
        about = ", ".join(row.tasks) or "no task", str(row.images)
        confusion.add_row(*about, *(str(row.answered.get(name, 0)) for name in names))
        listed.add_row(*about, ", ".join(f"{name} {row.answered[name]}" for name in names if row.answered.get(name)))
    return [table, "answered by", Fitting(confusion, listed)]


def _number(name: str) -> tuple[str, int]:
    digits = name[len(name.rstrip("0123456789")) :]
    return name[: len(name) - len(digits)], int(digits or 0)


@singledispatch
def tables(report: Any) -> list[Any]:
    """What people see of a report."""
    raise TypeError(type(report).__name__)


@tables.register
def _(report: InspectReport) -> list[Any]:
    return overview(report)


@tables.register
def _(report: TaskReport) -> list[Any]:
    return one_task(report)


@tables.register
def _(report: LogReport) -> list[Any]:
    table = columns("generation", "what", "task", "images", "from", "when", "can go back")
    for done in report.commits:
        whence = f"was {done.source}" if done.action == "rename" else done.source or ""
        here = "now" if done.generation == report.generation else "yes" if done.there else ""
        cells = (done.task or "", "" if done.images is None else str(done.images), whence, day(done.at), here)
        table.add_row(str(done.generation), done.action, *cells)
    return [*([table] if report.commits else ["nothing was committed yet"]), *unfinished(report.unfinished)]


@tables.register
def _(report: UndoReport) -> list[Any]:
    gone, back = ", ".join(report.removed), ", ".join(report.returned)
    what = "back to" if report.applied else "nothing was changed; it would go back to"
    lines = [f"{what} generation {report.restored}, as generation {report.generation}"]
    lines += [f"gone:  {gone}"] if gone else []
    return lines + ([f"back:  {back}"] if back else [])


@tables.register
def _(report: RenameReport) -> list[Any]:
    return [f"{report.old} is now {report.new}"]


@tables.register
def _(report: CopyReport) -> list[Any]:
    table = columns("task", "expert", "was", "in expert")
    for task in report.tasks:
        table.add_row(task.task, task.expert, task.old_task, task.old_expert)
    store = "a new store" if report.new_store else f"generation {report.generation}"
    count = amount(len(report.tasks), "task")
    return [f"copied {count} into {store}" if report.applied else f"would copy {count} into {store}", table]


@tables.register
def _(report: TasksReport) -> list[Any]:
    table = columns("file", "task", "classes", "images")
    for file in report.files:
        table.add_row(file.path, file.task, some(file.classes, LABELS), str(file.images))
    return ["nothing was written; this would be:", table] if report.dry_run else [table]


@tables.register
def _(report: LearnReport) -> list[Any]:
    if report.dry_run:
        return _plan_tables(report)
    head = {
        "learned": f"learned {report.task} in {'new ' if report.new_expert else ''}expert {report.expert}",
        "known": f"known: this is {report.task}; nothing was changed",
        "refined": f"refined {report.task} in expert {report.expert}",
    }[report.status]
    table = columns("layer", "weights", "selected", "reused", "frozen now")
    for layer in report.layers:
        table.add_row(
            layer.name, str(layer.parameters), str(layer.selected), str(layer.reused), f"{layer.frozen_percent:.2f} %"
        )
    said = {
        "classes": some(report.classes, LABELS),
        "held out": held_out(report),
        report.onset.verdict: report.onset.reason,
        "placed": report.reason,
    }
    lines = [headline(head, f"  ({report.seconds:.1f} s)"), sentences(said)]
    return [*lines, table]


def _plan_tables(report: LearnReport) -> list[Any]:
    head = {
        "learned": f"would learn {report.task} in {'new ' if report.new_expert else ''}expert {report.expert}",
        "known": f"known: this is {report.task}; nothing would be changed",
        "refined": f"would refine {report.task} in expert {report.expert}",
    }[report.status]
    lines = [
        headline(head, f": classes {some(report.classes, LABELS)}"),
        sentences({report.onset.verdict: report.onset.reason, "placed": report.reason}),
    ]
    if report.plan is None:
        return lines
    table = columns("layer", "weights", "read of other tasks", "free")
    for layer in report.plan:
        table.add_row(layer.name, str(layer.parameters), str(layer.read), str(layer.free))
    return [*lines, table]


@tables.register
def _(report: StreamReport) -> list[Any]:
    table = columns("images", "status", "task", "expert", "classes", "accuracy", "seconds")
    guessed = False
    for part in report.segments:
        # Where a segment before it would be learned, only training tells into which expert it goes.
        guess, guessed = part.dry_run and guessed, guessed or part.status == "learned"
        table.add_row(
            f"{part.start} to {part.stop - 1}",
            part.status,
            part.task,
            "not known yet" if guess and part.status == "learned" else part.expert,
            some(part.classes, LABELS),
            percent(part.accuracy.shown),
            f"{part.seconds:.1f}",
        )
    new = sum(part.status == "learned" for part in report.segments)
    if any(part.dry_run for part in report.segments):
        rest = f": {new} would be learned as new; nothing was changed"
    else:
        rest = f": {new} learned as new"
    return [headline(amount(len(report.segments), "segment"), rest), table]


@tables.register
def _(report: DetectReport) -> list[Any]:
    name = f" {report.task}" if report.task else ""
    p = "not available" if report.p_value is None else f"{report.p_value:.3g}"
    table = columns("task", "expert", "deviation", "p-value", "overlap", "divergence")
    for row in report.tasks:
        own = "–" if row.p_value is None else f"{row.p_value:.3g}"
        table.add_row(row.task, row.expert, f"{row.deviation:.4g}", own, f"{row.overlap:.3f}", f"{row.divergence:.3f}")
    said = [headline(f"{report.verdict}{name}", f"  p = {p}"), sentences({"why": report.reason})]
    return [*said, table] if report.tasks else said


@tables.register
def _(report: RemovalReport) -> list[Any]:
    verb = "removed" if report.applied else "would remove"
    if report.unfinished:
        freed = f": {report.freed_bytes} bytes freed" if report.applied else ""
        return [headline(f"{verb} what the unfinished learn of {', '.join(report.unfinished)} had reached", freed)]
    older = ("all older generations",) if report.gc else ()
    names = ", ".join((*report.removed, *report.removed_experts, *older)) or "nothing"
    keeps = report.applied and not report.gc and bool(report.removed)
    return [
        headline(
            f"{verb} {names}",
            f": {report.freed_parameters} weights freed, {report.frozen_percent:.2f} % frozen"
            + (f", {report.freed_bytes} bytes freed" if report.applied else "")
            + ("; clmoe prune --gc --yes frees files that only older generations need" if keeps else ""),
        )
    ]


@tables.register
def _(report: ExportReport) -> list[Any]:
    what = "images" if report.features is None else f"features of {report.features['arch']}, which is not in the file,"
    size = f"{report.parameters} parameters, {report.nonzero} of them not 0, {report.bytes} bytes"
    return [
        headline(f"exported {report.task} to {report.output}", f": {size}"),
        f"reads {what} {list(report.input_shape)}; answers classes {some(report.classes, LABELS)}",
        f"answers as {_answering(report)}",
        f"read back and run by {report.checked_with}: logits differ by at most {report.deviation:.3g}",
    ]


@tables.register
def _(report: ExportAllReport) -> list[Any]:
    what = "" if report.features is None else f", through {report.features['arch']}, which is in the file"
    speed = f"{report.milliseconds:.2f} ms an image, {report.batch_milliseconds:.2f} ms each of {report.batch} together"
    return [
        headline(
            f"exported {amount(len(report.tasks), 'task')} to {report.output}",
            f": {report.parameters} parameters, {report.bytes} bytes",
        ),
        f"reads images {list(report.input_shape)}{what}; answers classes {some(report.classes, LABELS)}",
        "answers as predict does: label, task, confidence, p-value",
        f"read back and run by {report.checked_with}: confidences differ by at most {report.deviation:.3g}; {speed}",
    ]


def _answering(report: ExportReport) -> str:
    """Whose answers an exported model gives."""
    if len(report.classes) == 1:
        return "predict --task does: its one class, whatever it reads"
    if report.answers == "subnetwork":
        return "predict --task does: the subnetwork" if report.opinion in (None, 1.0) else "the subnetwork alone"
    return "predict --task does: the gate" + (
        f", and the subnetwork with weight {report.opinion:.2f}" if report.opinion else ""
    )
