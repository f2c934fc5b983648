"""Reports → pages for a browser: one file without scripts, that asks nothing of any other file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING
from xml.etree import ElementTree

from clmoe_cli.api.contents import chosen, together
from clmoe_cli.data.npz import replacing
from clmoe_cli.report.cells import percent
from clmoe_cli.report.overview import BY_CONSTRUCTION, measured, some
from clmoe_cli.report.plots import drawings, picture

if TYPE_CHECKING:
    from clmoe_cli.api.contents import Frozen
    from clmoe_cli.api.inspect import InspectReport

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<title>$title</title>
<style>
body { margin: 0 auto; max-width: 72rem; padding: 1rem 1.25rem 3rem; background: #fff; color: #1c2733;
  font: 0.95rem/1.5 system-ui, sans-serif; }
h1 { margin: 0.5rem 0 0; font-size: 1.7rem; }
h2 { margin: 2.2rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid #d8dee6; font-size: 1.2rem; }
p { margin: 0.3rem 0; max-width: 46rem; }
code { overflow-wrap: anywhere; }
dl.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); gap: 0.7rem; margin: 1.2rem 0; }
dl.cards div { padding: 0.6rem 0.8rem; background: #f2f6fa; border-radius: 0.4rem; }
dl.cards dt { color: #55606e; font-size: 0.8rem; }
dl.cards dd { margin: 0; font-size: 1.35rem; font-weight: 600; }
.wide { overflow-x: auto; }
table { width: max-content; border-collapse: collapse; font-size: 0.88rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.28rem 0.7rem; border-bottom: 1px solid #e6ebf0; text-align: left; vertical-align: top; }
th { color: #55606e; font-weight: 600; white-space: nowrap; }
td { max-width: 22rem; overflow-wrap: break-word; }
.n { text-align: right; white-space: nowrap; }
figure { margin: 1.2rem 0 0; }
figcaption { font-weight: 600; }
figure svg { display: block; width: 100%; height: auto; }
svg * { stroke-linejoin: round; stroke-linecap: butt; }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); gap: 0 1.5rem; }
details { margin-top: 1rem; }
summary { cursor: pointer; font-weight: 600; }
.note { color: #55606e; }
</style>
</head>
<body>
$body
</body>
</html>
""")
ABOUT_TASKS = """Percentages are of the expert's shared weights: what the task reads, what of that earlier tasks had
frozen, and what was frozen in all after the task. Accuracies are those of images held out while learning: without
pruning (dense), and with the task's subnetwork, whose outputs stay bit-identical after that."""
MATRIX = 60
"""Overlaps are also given in numbers for at most so many tasks."""


def draw(report: InspectReport, path: Path) -> None:
    """All panels in one picture (.png, .svg, .pdf, or a page .html). Raises DiskProblem when writing fails."""
    whole = picture_page(picture(report, "svg")) if path.suffix == ".html" else picture(report, path.suffix[1:])
    with replacing(path) as file:
        file.write(whole)


def picture_page(svg: bytes) -> bytes:
    """A page with one picture (an SVG of matplotlib's)."""
    return _page("Pictures of a clmoe store", f'<figure class="wide">{inline(svg, "all")}</figure>')


def report_page(report: InspectReport) -> bytes:
    """All that ``inspect`` knows of a store: figures, experts, tasks, pictures, overlaps, history. No path is in it."""
    pictures = [_figure(title, svg, f"p{i}") for i, (title, svg) in enumerate(drawings(report))]
    checked = (
        "every file and every task's outputs verified" if report.verified else "not verified when this was written"
    )
    parts = [
        "<header><h1>clmoe store</h1>",
        f'<p class="note">generation {report.generation}, {checked}<br>'
        f"content <code>{escape(report.content_hash)}</code>, seed {report.seed}</p></header>",
        _cards(report),
        "<h2>Experts</h2>",
        _experts(report),
        "<h2>Tasks</h2>",
        _tasks(report),
        f'<p class="note">{ABOUT_TASKS}</p>',
        "<h2>Pictures</h2>",
        *pictures[:2],
        f'<div class="two">{pictures[3]}{pictures[2]}</div>',
        "<h2>Numbers</h2>",
        _details("Weights of each layer", _layers(report)),
        _details("Overlap (kappa) of every two tasks", _overlaps(report)),
        _details("History", _history(report)),
    ]
    return _page(f"clmoe store, generation {report.generation}", "\n".join(parts))


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


def _page(title: str, body: str) -> bytes:
    return PAGE.substitute(title=escape(title), body=body).encode()


def _figure(title: str, svg: bytes, prefix: str) -> str:
    return f'<figure><figcaption>{escape(title)}</figcaption><div class="wide">{inline(svg, prefix)}</div></figure>'


def _details(title: str, body: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{body}</details>"


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Cells are escaped here. Columns whose name begins with # hold numbers."""
    ways = [' class="n"' if name.startswith("#") else "" for name in head]
    names = "".join(f"<th{way}>{_text(name.removeprefix('#'))}</th>" for name, way in zip(head, ways, strict=True))
    lines = [
        "<tr>" + "".join(f"<td{way}>{_text(cell)}</td>" for cell, way in zip(row, ways, strict=True)) + "</tr>"
        for row in rows
    ]
    body = "\n".join(lines)
    return f'<div class="wide"><table><thead><tr>{names}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def _text(value: object) -> str:
    """Names are data: neither markup nor signs that turn the text around them."""
    return escape("".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in str(value)))


def _cards(report: InspectReport) -> str:
    accuracies = [t.accuracy.subnetwork for t in report.tasks if t.accuracy.subnetwork is not None]
    mean = percent(sum(accuracies) / len(accuracies)) if accuracies else "–"
    classes = {(type(c).__name__, c) for t in report.tasks for c in t.classes}
    cards = {
        "tasks": len(report.tasks),
        "experts": len(report.experts),
        "classes": len(classes),
        "shared weights frozen": f"{report.frozen_percent:.2f} %",
        "held-out accuracy, mean": mean,
        "held-out accuracy, least": percent(min(accuracies)) if accuracies else "–",
        "bytes": _bytes(report.bytes.total),
    }
    return '<dl class="cards">' + "".join(f"<div><dt>{k}</dt><dd>{v}</dd></div>" for k, v in cards.items()) + "</dl>"


def _experts(report: InspectReport) -> str:
    head = ("expert", "architecture", "images", "#tasks", "#layers", "#weights", "#read by one task", "#by several",
            "#free", "#output rows", "#bytes")  # fmt: skip
    rows = []
    for e in report.experts:
        total = together(e.id, e.layers)
        shares = [_share(part, total.parameters) for part in (total.single, total.shared, total.free)]
        size = _bytes(report.bytes.experts.get(e.id, 0))
        rows.append(
            (e.id, e.arch, e.kind, len(e.tasks), len(e.layers), f"{total.parameters:,}", *shares,
             e.output_rows.rows, size)
        )  # fmt: skip
    return _table(head, rows)


def _tasks(report: InspectReport) -> str:
    head = ("task", "expert", "classes", "#images", "#dense", "#subnetwork", "#selected", "#reused", "#frozen after",
            "#bytes", "#learned (UTC)")  # fmt: skip
    after = {(h.task, e): s.layers for h in report.history if h.action == "learn"
             for e, s in h.experts.items()}  # fmt: skip
    rows = []
    for t in report.tasks:
        total = chosen(t.name, t.layers)
        frozen = after.get((t.name, t.expert))
        rows.append(
            (t.name, t.expert, some(t.classes, 12), f"{t.images:,}", percent(t.accuracy.dense),
             percent(t.accuracy.subnetwork), _share(total.selected, total.parameters),
             _share(total.reused, total.parameters), _frozen(frozen) if frozen else "–", _bytes(t.bytes),
             t.learned_at[:16].replace("T", " "))
        )  # fmt: skip
    return _table(head, rows)


def _layers(report: InspectReport) -> str:
    head = ("expert", "layer", "#weights", "#read by one task", "#by several", "#free", "#frozen")
    return _table(
        head,
        [
            (e.id, x.name, *(f"{count:,}" for count in (x.parameters, x.single, x.shared, x.free)),
             f"{x.frozen_percent:.2f} %")
            for e in report.experts
            for x in e.layers
        ],
    )  # fmt: skip


def _overlaps(report: InspectReport) -> str:
    names = [task.name for task in report.tasks]
    if len(names) > MATRIX:
        return '<p class="note">Too many for a table: clmoe inspect --json has them.</p>'
    head = ("task", *(f"#{name}" for name in names))
    tables = [
        _table(head, [(name, *(_hundredths(v) for v in row)) for name, row in zip(names, matrix, strict=True)])
        for matrix in (report.overlap, measured(report.tasks))
    ]
    return f'{tables[0]}<p class="note">{BY_CONSTRUCTION}</p>{tables[1]}'


def _hundredths(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _history(report: InspectReport) -> str:
    head = ("#generation", "action", "task", "frozen after it, by expert")
    return _table(
        head,
        [
            (h.generation, h.action, h.task or "",
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
