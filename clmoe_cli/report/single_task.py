"""What people see of one task: when and from what it was learned, how right its held-out images were answered."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from clmoe_cli.api.contents import chosen
from clmoe_cli.report.cells import columns, headline, percent, sentences
from clmoe_cli.report.judging import CALIBRATION, calibration_rows, class_rows
from clmoe_cli.report.overview import some
from clmoe_cli.runtime.words import amount

if TYPE_CHECKING:
    from clmoe_cli.api.contents import Commit, Task
    from clmoe_cli.api.inspect import TaskReport
    from clmoe_cli.api.reports import LearnReport

SHOWN = 40
"""At most so many classes have a row in a terminal: those that were answered worst."""
NOT_KEPT = "not kept: the task was learned by a version that did not keep it"
PAST = {"refine": "refined", "rename": "renamed", "copy": "copied", "undo": "the store went back"}


def one_task(report: TaskReport) -> list[Any]:
    """A task by itself: its history, size, accuracy by class, confusion and calibration."""
    task, weights = report.task, chosen("", report.task.layers)
    named = f"{len(task.classes)}: " if len(task.classes) > 1 else ""
    said = {
        "learned": _done(report.history, task),
        "classes": f"{named}{some(task.classes, 12)}",
        "images": f"{task.images:,}, each {report.kind}",
        "held out": held_out(task),
        "size": f"{task.bytes:,} bytes; {weights.selected:,} of {weights.parameters:,} shared weights, of which other "
        f"tasks had {weights.reused:,} before; {count(task.owned_parameters, 'weight')} of its own",
    }
    parts: list[Any] = [headline(f"{task.name} in expert {task.expert}", f"  {report.arch}"), sentences(said)]
    head, rows = class_rows(task.per_class, task.confusion or ())
    if rows:
        table = columns(*(name.removeprefix("#") for name in head))
        table.columns[-1].justify = "left"
        for row in rows[:SHOWN]:
            table.add_row(*map(str, row))
        parts += ["", table]
        parts += [f"… {len(rows) - SHOWN} classes more, answered better: --json"] if len(rows) > SHOWN else []
    if task.calibration is None:
        return [*parts, f"confusion and calibration: {NOT_KEPT}"]
    if task.calibration:
        table = columns("", *(name.removeprefix("#") for name in CALIBRATION))
        for cells in calibration_rows(task.calibration):
            table.add_row("", *map(str, cells))
        parts += ["", "how often answers of some confidence were right:", table]
    return parts


def _done(history: Sequence[Commit], task: Task) -> str:
    """When a task came, from what, and what was done to it since."""
    texts = []
    for commit in history:
        images = "" if commit.images is None else f" with {count(commit.images, 'image')}"
        source = "" if commit.source is None else f" {'of' if images else 'from'} {commit.source}"
        verb = "" if commit.action == "learn" else f"{PAST[commit.action]} "
        if commit.action == "copy":
            texts += [day(task.learned_at)] if task.learned_at < (commit.at or "") else []
            images, source = "", f" from store {commit.source}" if commit.source else ""
        texts.append(f"{verb}{day(commit.at) or day(task.learned_at)}{images}{source}")
    return "; ".join(dict.fromkeys(texts)) or day(task.learned_at)


def count(number: int, what: str) -> str:
    """So many of something, as words."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def day(at: str | None) -> str:
    """A time as people read it, UTC, to the minute; nothing for none."""
    return "" if at is None else f"{at[:16].replace('T', ' ')} UTC"


def held_out(report: LearnReport | Task) -> str:
    """How right held-out images are, as ``predict`` answers, and what stands beside it."""
    found = report.accuracy
    if found.answer is None and not found.held_out:
        return "not measured: no image could be left out"
    if found.answer is None:
        shares = f"{percent(found.subnetwork)} of {amount(found.held_out, 'image')} right by the subnetwork alone"
        return f"{shares}, {percent(found.dense)} before pruning"
    shares = (
        f"task given {percent(found.within)}, subnetwork alone {percent(found.subnetwork)}, before pruning "
        f"{percent(found.dense)}, guessing {percent(found.guessing)}"
    )
    text = f"{percent(found.answer)} of {amount(found.held_out, 'image')} right as predict answers ({shares})"
    rows = [(row.accuracy, row.label, row.images) for row in report.per_class if row.accuracy is not None]
    worst = sorted(rows, key=lambda row: row[0])[:3]
    named = ", ".join(f"{label} {percent(share)} of {images}" for share, label, images in worst)
    if len(rows) < 3:
        return text
    return f"{text}; lowest: {named}"
