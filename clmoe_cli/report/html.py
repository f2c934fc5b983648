"""Reports → pages for a browser: one file without scripts, that asks nothing of any other file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from clmoe_cli.api.contents import chosen, together
from clmoe_cli.data.npz import replacing
from clmoe_cli.report.cells import percent
from clmoe_cli.report.judging import Judged, Rows
from clmoe_cli.report.overview import BY_CONSTRUCTION, measured, some
from clmoe_cli.report.plots import drawings, picture

if TYPE_CHECKING:
    from clmoe_cli.api.contents import Frozen
    from clmoe_cli.api.inspect import InspectReport
    from clmoe_cli.report.thumbnails import TaskPictures

ABOUT_TASKS = """Percentages are of the expert's shared weights: what the task reads, what of that earlier tasks had
frozen, and what was frozen in all after the task. Accuracies are those of images held out while learning: without
pruning (dense), and with the task's subnetwork, whose outputs stay bit-identical after that."""
ABOUT_HELD_OUT = """Each task's images were held out while it was learned, and answered as predict answered then:
without a task id, among the tasks that the store knew. Tasks that came later may have changed some answers; clmoe
predict with a labelled file tells what is so now. Tasks that were learned before wrong answers were kept are missing
below."""
WORDS = {
    "task": "what one learn learned: some classes and their examples",
    "expert": "a network whose weights several tasks share",
    "shared weights": "the weights of an expert that tasks choose from; a task also owns some, such as its output rows",
    "selected": "weights that a task reads",
    "reused": "those of them that an earlier task had frozen before",
    "frozen": "read by a task: no later training changes them by a bit",
    "free": "read by no task yet: room for later ones",
    "subnetwork": "the weights of an expert that a task selected, with what it owns besides",
    "dense": "the expert with all its weights in use, before a task's subnetwork was chosen from them",
    "held out": "images given to learn and not trained on, by which it was judged",
    "confidence": "how sure an answer is, from 0 to 100 %; calibrated if answers of 90 % are right nine times in ten",
    "confusion": "which label was answered for which",
    "overlap (kappa)": "how much two tasks select the same weights: 1 is the same, 0 chance, below 0 less than chance",
    "generation": "the number of a state of the store; each commit makes the next",
    "content": "one hash of all that was learned: two stores with the same hash hold the same",
}
MATRIX = 60
"""Overlaps are also given in numbers for at most so many tasks."""


def draw(report: InspectReport, path: Path) -> None:
    """All panels in one picture (.png, .svg, .pdf, or a page .html). Raises DiskProblem when writing fails."""
    whole = picture_page(picture(report, "svg")) if path.suffix == ".html" else picture(report, path.suffix[1:])
    with replacing(path) as file:
        file.write(whole)


def picture_page(svg: bytes) -> bytes:
    """A page with one picture (an SVG of matplotlib's)."""
    return page(
        "page.html.j2", "Pictures of a clmoe store", report=None, thumbnails=None, picture=Markup(inline(svg, "all"))
    )


def report_page(report: InspectReport, thumbnails: Sequence[TaskPictures] | None = None) -> bytes:
    """All that ``inspect`` knows of a store: figures, experts, tasks, pictures, overlaps, history. No path is in it.

    With ``thumbnails`` it shows them, by task and class.
    """
    return page(
        "page.html.j2",
        f"clmoe store, generation {report.generation}",
        report=report,
        checked="every file and every task's outputs verified"
        if report.verified
        else "not verified when this was written",
        cards=_cards(report),
        experts=_experts(report),
        tasks=_tasks(report),
        about_tasks=ABOUT_TASKS,
        pictures=[
            {"title": title, "svg": Markup(inline(svg, f"p{i}"))} for i, (title, svg) in enumerate(drawings(report))
        ],
        layers=_layers(report),
        overlaps=_overlaps(report),
        by_construction=BY_CONSTRUCTION,
        history=_history(report),
        thumbnails=thumbnails,
        some=some,
        about_held_out=ABOUT_HELD_OUT,
        judged=_judged(report),
        words=WORDS,
    )


def inline(svg: bytes, prefix: str) -> str:
    """An SVG as an element of a page: without namespaces and rules that would hold for the page, ids its own."""
    root = ElementTree.fromstring(svg)
    for element in list(root.iter()):
        for child in [c for c in element if c.tag.endswith("}style")]:
            element.remove(child)
        element.tag = element.tag.rpartition("}")[2]
        found = [(name.rpartition("}")[2], value) for name, value in element.attrib.items()]
        element.attrib.clear()
        for name, value in found:
            if name == "id":
                element.attrib[name] = f"{prefix}-{value}"
            elif name == "href" and value.startswith("#"):
                element.attrib[name] = f"#{prefix}-{value[1:]}"
            else:
                element.attrib[name] = value.replace("url(#", f"url(#{prefix}-")
    # On a narrow screen the picture is scrolled rather than made too small to be read.
    width = float(root.attrib["width"].removesuffix("pt"))
    root.attrib.update(role="img", style=f"min-width: {width / 18:.0f}rem; max-width: {width / 10:.0f}rem")
    return ElementTree.tostring(root, encoding="unicode")


def page(template: str, title: str, **values: object) -> bytes:
    """A template with these values; whatever is not Markup is escaped."""
    templates = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return templates.get_template(template).render(title=title, **values).encode()


def _printable(value: object) -> object:
    """Names are data: no signs that turn the text around them."""
    if isinstance(value, Markup):
        return value
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in str(value))


def _cards(report: InspectReport) -> dict[str, object]:
    accuracies = [t.accuracy.shown for t in report.tasks if t.accuracy.shown is not None]
    mean = percent(sum(accuracies) / len(accuracies)) if accuracies else "–"
    classes = {(type(c).__name__, c) for t in report.tasks for c in t.classes}
    return {
        "tasks": len(report.tasks),
        "experts": len(report.experts),
        "classes": len(classes),
        "shared weights frozen": f"{report.frozen_percent:.2f} %",
        "held-out accuracy, mean": mean,
        "held-out accuracy, least": percent(min(accuracies)) if accuracies else "–",
        "bytes": _bytes(report.bytes.total),
    }


def _experts(report: InspectReport) -> Rows:
    head = ("expert", "architecture", "images", "#tasks", "#layers", "#weights", "#read by one task", "#by several",
            "#free", "#output rows", "#bytes")  # fmt: skip
    rows: list[Sequence[object]] = []
    for e in report.experts:
        total = together(e.id, e.layers)
        shares = [_share(part, total.parameters) for part in (total.single, total.shared, total.free)]
        size = _bytes(report.bytes.experts.get(e.id, 0))
        rows.append(
            (e.id, e.arch, e.kind, len(e.tasks), len(e.layers), f"{total.parameters:,}", *shares,
             e.output_rows.rows, size)
        )  # fmt: skip
    return head, rows


def _tasks(report: InspectReport) -> Rows:
    head = ("task", "expert", "classes", "#images", "#dense", "#subnetwork", "#selected", "#reused", "#frozen after",
            "#bytes", "#learned (UTC)")  # fmt: skip
    after = {(h.task, e): s.layers for h in report.history if h.action == "learn"
             for e, s in h.experts.items()}  # fmt: skip
    rows: list[Sequence[object]] = []
    for t in report.tasks:
        total = chosen(t.name, t.layers)
        frozen = after.get((t.name, t.expert))
        rows.append(
            (t.name, t.expert, some(t.classes, 12), f"{t.images:,}", percent(t.accuracy.dense),
             percent(t.accuracy.subnetwork), _share(total.selected, total.parameters),
             _share(total.reused, total.parameters), _frozen(frozen) if frozen else "–", _bytes(t.bytes),
             t.learned_at[:16].replace("T", " "))
        )  # fmt: skip
    return head, rows


def _layers(report: InspectReport) -> Rows:
    head = ("expert", "layer", "#weights", "#read by one task", "#by several", "#free", "#frozen")
    return (
        head,
        [
            (e.id, x.name, *(f"{count:,}" for count in (x.parameters, x.single, x.shared, x.free)),
             f"{x.frozen_percent:.2f} %")
            for e in report.experts
            for x in e.layers
        ],
    )  # fmt: skip


def _overlaps(report: InspectReport) -> list[Rows]:
    """The overlaps of stored masks, and those measured before learning; nothing where there are too many."""
    names = [task.name for task in report.tasks]
    if len(names) > MATRIX:
        return []
    head = ("task", *(f"#{name}" for name in names))
    return [
        (head, [(name, *(_hundredths(v) for v in row)) for name, row in zip(names, matrix, strict=True)])
        for matrix in (report.overlap, measured(report.tasks))
    ]


def _hundredths(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _judged(report: InspectReport) -> Judged:
    """Of the held-out images of all tasks; of which tasks nothing was kept they are missing."""
    kept = [task for task in report.tasks if task.confusion is not None]
    per_class = [own for task in kept or report.tasks for own in task.per_class]
    if not kept:
        return Judged.of(per_class, None, None)
    wrong = [one for task in kept for one in task.confusion or ()]
    return Judged.of(per_class, wrong, [one for task in kept for one in task.calibration or ()])


def _history(report: InspectReport) -> Rows:
    head = ("#generation", "when (UTC)", "action", "task", "#images", "from", "frozen after it, by expert")
    return (
        head,
        [
            (h.generation, (h.at or "not kept")[:16].replace("T", " "), h.action, h.task or "",
             "" if h.images is None else f"{h.images:,}", h.source or "",
             ", ".join(f"{e} {_frozen(s.layers)}" for e, s in h.experts.items()))
            for h in report.history
        ],
    )  # fmt: skip


def _frozen(layers: Sequence[Frozen]) -> str:
    return _share(sum(x.frozen for x in layers), sum(x.parameters for x in layers))


def _share(part: int, whole: int) -> str:
    return percent(part / whole if whole else 0.0)


def _bytes(count: int) -> str:
    return f"{count / 1e6:,.1f} MB" if count >= 1e6 else f"{count / 1e3:,.1f} kB"
