"""What people see of a store: bars in a terminal, pictures, and a page for a browser."""

from __future__ import annotations

import io
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from campaigns import some
from hypothesis import given
from hypothesis import strategies as st
from made_up import SMALL, made_up
from matplotlib.figure import Figure
from matplotlib.image import imread
from rich.cells import cell_len
from rich.console import Console

from clmoe_cli.api.contents import Bytes
from clmoe_cli.api.inspect import InspectReport, inspect
from clmoe_cli.api.reports import Accuracy
from clmoe_cli.report import html, panels, render
from clmoe_cli.report.cells import fitted
from clmoe_cli.report.html import report_page
from clmoe_cli.report.overview import cells, overview
from store_schema import Store, UsageProblem

FOUR = {f"features.{i}.weight": (12, 12) for i in range(4)}
TWENTY = {f"layer{i // 5}.{i % 5}.downsample.0.weight": (8, 9) for i in range(20)}
HOSTILE = {
    1: "<script>alert(1)</script>",
    2: '$\\frac{$ "><img src=x onerror="alert(2)"> &',
    3: "数字 ]]> --> ${title} \\$ _a",
    4: "turned \u202eround",
}
STORES: dict[str, dict[str, Any]] = {
    "one": {"experts": [1]},
    "six": {"experts": [6]},
    "thirty": {"experts": [30], "shapes": FOUR},
    "several": {"experts": [6, 10, 4, 1, 9]},
    "deep": {"experts": [4, 2], "shapes": TWENTY, "arch": "resnet18"},
    "hundred": {"experts": [5] * 20},
    "hostile": {"experts": [4], "names": HOSTILE, "measured": False},
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> dict[str, InspectReport]:
    root = tmp_path_factory.mktemp("shown")
    return {name: inspect(str(made_up(root / name, **options))) for name, options in STORES.items()}


def empty() -> InspectReport:
    return InspectReport(0, 3, "0" * 64, (), (), 0.0, (), (), Bytes({}, {}, {}, 0))


def test_single_shared_and_free_are_counted(tmp_path: Path) -> None:
    root = made_up(tmp_path / "store", [4, 1, 3])
    opened, report = Store.open(root), inspect(str(root))
    for expert in report.experts:
        for layer in expert.layers:
            masks = [opened.read_subnetwork(name).masks[layer.name] for name in expert.tasks]
            counted = {"single": 0, "shared": 0, "free": 0}
            for place in np.ndindex(*masks[0].shape):
                readers = sum(bool(mask[place]) for mask in masks)
                counted["free" if readers == 0 else "single" if readers == 1 else "shared"] += 1
            assert {"single": layer.single, "shared": layer.shared, "free": layer.free} == counted
            assert layer.frozen == counted["single"] + counted["shared"]
            assert (counted["shared"] > 0) == (len(masks) > 1)


@given(st.lists(st.integers(0, 10**9), min_size=3, max_size=3), st.integers(8, 200))
def test_a_bar_is_full_and_shows_all_there_is(counts: list[int], width: int) -> None:
    widths = cells(counts, width)
    total = sum(counts)
    assert sum(widths) == width
    if total:
        assert [w > 0 for w in widths] == [n > 0 for n in counts]
        assert all(abs(w - width * n / total) <= 2 for w, n in zip(widths, counts, strict=True))


def screen(report: InspectReport, width: int = 80, encoding: str = "utf-8", **options: Any) -> str:
    out = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="backslashreplace")
    console = Console(file=out, width=width, highlight=False, markup=False, emoji=False, **options)
    for part in overview(report):
        console.print(fitted(console, part))
    out.flush()
    return out.buffer.getvalue().decode(encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", some(list(STORES)[:-1], "several", "hundred"))
def test_a_screen_of_80_columns_is_enough(name: str, reports: dict[str, InspectReport]) -> None:
    report = reports[name]
    text = screen(report)
    lines = text.splitlines()
    assert max(map(cell_len, lines)) <= 80
    assert "…" not in text
    assert "\x1b" not in text
    for task in report.tasks:
        row = next(line for line in lines if line.split()[:1] == [task.name])
        assert f"{100 * task.accuracy.subnetwork:.2f} %" in row
        assert row.endswith(str(task.bytes))
    bars = [line for line in lines if "░" in line and "weights read by" not in line]
    layers = [layer for expert in report.experts for layer in expert.layers]
    assert len(bars) == len(layers)
    for bar, layer in zip(bars, layers, strict=True):
        assert bar.startswith(layer.name)
        assert f" {layer.frozen_percent:.2f} %" in bar
        widths = [bar.count(sign) for sign in "█▒░"]
        assert widths == cells([layer.shared, layer.single, layer.free], sum(widths))


def test_layers_have_columns_where_there_is_room(reports: dict[str, InspectReport]) -> None:
    assert screen(reports["six"]).splitlines()[1].split() == ["task", "classes", "accuracy", *SMALL, "bytes"]
    narrow = screen(reports["deep"]).splitlines()[1].split()
    assert narrow == ["task", "classes", "accuracy", "selected", "reused", "bytes"]
    assert screen(reports["deep"], width=1000).splitlines()[1].split()[3:-1] == list(TWENTY)
    task = reports["deep"].tasks[1]
    whole = sum(layer.parameters for layer in task.layers)
    shares = [100 * sum(getattr(layer, key) for layer in task.layers) / whole for key in ("selected", "reused")]
    assert " ".join(f"{share:.2f} %" for share in shares) in " ".join(screen(reports["deep"]).split())


def test_overlaps_are_as_large_as_there_is_room(reports: dict[str, InspectReport]) -> None:
    rows = [line.split() for line in screen(reports["six"]).splitlines()]
    kappa = reports["six"].overlap
    assert ["task1", *(f"{value:.2f}" for value in kappa[0] if value is not None)] in rows
    rows = [line.split() for line in screen(reports["several"]).splitlines()]
    hundredths = [f"{100 * value:.0f}" for value in reports["several"].overlap[7][6:16] if value is not None]
    assert ["2", "task8", *hundredths] in rows
    assert "overlap of 30 tasks: --plot FILE" in screen(reports["thirty"])
    assert "kappa" not in screen(reports["one"])


def test_plain_where_the_terminal_is(reports: dict[str, InspectReport], monkeypatch: pytest.MonkeyPatch) -> None:
    text = screen(reports["six"], encoding="ascii")
    assert re.search(r"hidden1\.weight .* #+=+\.+\n", text)
    assert "# several tasks  = one task  . none" in text
    monkeypatch.delenv("NO_COLOR", raising=False)
    coloured = screen(reports["six"], force_terminal=True, color_system="standard")
    assert "\x1b[36m█" in coloured
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[36m" not in screen(reports["six"], force_terminal=True, color_system="standard")
    assert max(map(cell_len, screen(reports["hostile"], width=50).splitlines())) <= 50


def drawn(draw: Any, report: InspectReport) -> Figure:
    figure = Figure(layout="constrained")
    draw(figure, report)
    return figure


def test_curves_are_the_history(reports: dict[str, InspectReport]) -> None:
    report = reports["several"]
    figure = drawn(panels.frozen, report)
    assert len([axis for axis in figure.axes if axis.axison]) == 5
    for axis, expert in zip(figure.axes, report.experts, strict=False):
        entries = [e for e in report.history if e.task in expert.tasks]
        assert [label.get_text() for label in axis.get_xticklabels()] == list(expert.tasks)
        for i, line in enumerate(axis.lines):
            wanted = [e.experts[expert.id].layers[i].frozen_percent for e in entries]
            assert list(line.get_ydata()) == wanted
    assert {text.get_text() for text in figure.legends[0].get_texts()} == set(SMALL)


def test_a_curve_has_the_commits_of_its_expert(reports: dict[str, InspectReport]) -> None:
    report = reports["several"]
    last = report.history[-1]
    changed = {**last.experts, "e1": report.history[2].experts["e1"]}
    later = (
        replace(last, action="prune", task="gone", experts=changed),
        replace(last, action="refine", task="task2", experts=changed),
        replace(last, action="prune", task=None, experts={}),
    )
    axis = drawn(panels.frozen, replace(report, history=(*report.history, *later))).axes[0]
    names = [label.get_text() for label in axis.get_xticklabels()]
    assert names == [*(f"task{i}" for i in range(1, 7)), "prune gone", "refine task2"]
    y = list(axis.lines[0].get_ydata())
    assert y[-1] == y[-2] == y[2]


def test_many_experts_layers_and_tasks_are_thinned_out(reports: dict[str, InspectReport]) -> None:
    figure = drawn(panels.frozen, reports["hundred"])
    assert len(figure.axes) == panels.EXPERTS
    assert figure.get_supxlabel() == "not drawn: 14 more experts with 70 tasks"
    figure = drawn(panels.frozen, reports["deep"])
    assert len(figure.axes[0].lines) == 20
    named = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(named) == panels.NAMED
    assert [named[0], named[-1]] == [next(iter(TWENTY)), list(TWENTY)[-1]]
    ticks = drawn(panels.accuracy, reports["hundred"]).axes[0].get_xticks()
    assert 20 <= len(ticks) <= 53
    bars = panels.bars(reports["deep"])
    assert len(bars) == 40
    wide = panels.bars(replace(reports["deep"], experts=reports["deep"].experts * 2))
    assert [bar.name for bar in wide] == ["e1", "e2", "e1", "e2"]
    for key in ("parameters", "shared", "single", "free"):
        assert getattr(wide[0], key) == sum(getattr(bar, key) for bar in bars[:20])


def test_accuracy_overlap_and_shares_are_the_reports(reports: dict[str, InspectReport]) -> None:
    report = reports["several"]
    points = drawn(panels.accuracy, report).axes[0].lines
    for line, key in zip(points, ("dense", "subnetwork"), strict=True):
        assert list(line.get_ydata()) == [100 * getattr(task.accuracy, key) for task in report.tasks]
    unmeasured = replace(report.tasks[3], accuracy=Accuracy())
    some = replace(report, tasks=(*report.tasks[:3], unmeasured, *report.tasks[4:]))
    assert 4 not in drawn(panels.accuracy, some).axes[0].lines[0].get_xdata()
    image = drawn(panels.overlap, report).axes[0].images[0].get_array()
    wanted = np.array(report.overlap, dtype=float)
    assert np.array_equal(np.ma.filled(image, np.nan), wanted, equal_nan=True)
    texts = {text.get_text() for text in drawn(panels.overlap, reports["six"]).axes[0].texts}
    assert {f"{value:.2f}" for row in reports["six"].overlap for value in row if value is not None} == texts
    axis = drawn(panels.shares, report).axes[0]
    layers = [layer for expert in report.experts for layer in expert.layers]
    for container, key in zip(axis.containers, ("shared", "single", "free"), strict=True):
        widths = [100 * getattr(layer, key) / layer.parameters for layer in layers]
        assert [bar.get_width() for bar in container] == pytest.approx(widths)


@pytest.mark.parametrize("name", some(STORES, "one", "several", "hundred"))
def test_pictures_name_the_tasks(name: str, reports: dict[str, InspectReport], tmp_path: Path) -> None:
    html.draw(reports[name], tmp_path / "plot.svg")
    texts = {e.text for e in ElementTree.parse(tmp_path / "plot.svg").iter() if e.tag.endswith("}text")}
    tasks = [panels._plain(task.name, 16) for task in reports[name].tasks]
    assert set(tasks) <= texts if len(tasks) <= 20 else tasks[0] in texts
    assert [path.name for path in tmp_path.iterdir()] == ["plot.svg"]


def test_pictures_open_and_are_the_same_each_time(reports: dict[str, InspectReport], tmp_path: Path) -> None:
    for suffix in (".png", ".svg", ".pdf", ".html"):
        for copy in ("a", "b"):
            html.draw(reports["hostile"], tmp_path / f"{copy}{suffix}")
        assert (tmp_path / f"a{suffix}").read_bytes() == (tmp_path / f"b{suffix}").read_bytes()
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[1] == 1800
    assert 0.02 < (pixels[..., :3] < 0.95).any(axis=2).mean() < 0.8
    assert (tmp_path / "a.pdf").read_bytes().startswith(b"%PDF")
    assert len(list(tmp_path.iterdir())) == 8


class Page(HTMLParser):
    """Checks that elements are closed in order, and keeps what a browser would see."""

    VOID = ("img", "meta", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] != ["style"]:
            self.texts.append(data)


def harmless(text: str) -> Page:
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert not {"script", "img", "iframe", "link", "object", "embed", "base", "form"} & set(page.seen)
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    links = [value for name, value in page.attributes if name in ("href", "src")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in links)
    assert not re.search(r"@import|url\((?!#)", text)
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))
    used = [value[1:] for value in links if value[0] == "#"] + re.findall(r"url\(#([^)]*)\)", text)
    assert set(used) <= set(ids)
    assert ("http-equiv", "Content-Security-Policy") in page.attributes
    return page


@pytest.mark.parametrize("name", some(STORES, "one", "several", "hundred"))
def test_the_page_holds_the_report(name: str, reports: dict[str, InspectReport]) -> None:
    report = reports[name]
    text = report_page(report).decode()
    page = harmless(text)
    shown = set(page.texts)
    assert {report.content_hash, f"{report.frozen_percent:.2f} %", *(e.id for e in report.experts)} <= shown
    for task in report.tasks:
        assert task.name.replace("\u202e", "\N{REPLACEMENT CHARACTER}") in shown
        layers = task.layers
        selected, whole = (sum(getattr(x, key) for x in layers) for key in ("selected", "parameters"))
        assert f"{100 * selected / whole:.2f} %" in shown
    assert page.seen.count("svg") == 4
    if name == "several":
        row = text[text.index("<td>task8</td>") :].split("</tr>")[0]
        state = report.history[7].experts["e2"].layers
        after = 100 * sum(x.frozen for x in state) / sum(x.parameters for x in state)
        assert f">{after:.2f} %<" in row
        assert f">{100 * report.tasks[7].accuracy.subnetwork:.2f} %<" in row
    assert "not verified" in text


def test_names_are_harmless_in_a_page(reports: dict[str, InspectReport], tmp_path: Path) -> None:
    text = report_page(replace(reports["hostile"], verified=True)).decode()
    assert "not verified" not in text
    assert text == report_page(replace(reports["hostile"], verified=True)).decode()
    assert "<script" not in text
    assert "<img" not in text
    assert "\u202e" not in text
    html.draw(reports["hostile"], tmp_path / "plot.html")
    page = harmless((tmp_path / "plot.html").read_text())
    assert "<script>alert(1…" in page.texts


def test_an_empty_store_can_be_shown(tmp_path: Path) -> None:
    assert screen(empty()) == "0 tasks, 0.00 % of shared weights frozen, 0 bytes, generation 0\n"
    harmless(report_page(empty()).decode())
    for suffix in (".png", ".html"):
        html.draw(empty(), tmp_path / f"plot{suffix}")
    no_states = replace(inspect(str(made_up(tmp_path / "s", [2]))), history=())
    harmless(report_page(no_states).decode())


def test_without_matplotlib_it_says_so_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    for plot, page in ((tmp_path / "x.png", None), (None, tmp_path / "x.html")):
        with pytest.raises(UsageProblem, match=r"pip install 'clmoe\[plot\]'"):
            render.check_pictures(plot, page)


REPORT = """
import sys
from clmoe_cli.cli.process import run
from clmoe_cli.cli.app import app
code = run(app, sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_inspect_writes_picture_and_page(tmp_path: Path) -> None:
    store = made_up(tmp_path / "secret place" / "store", [3, 2])
    (tmp_path / "page.html").write_text("old")
    args = ["inspect", "--store", store, "--plot", tmp_path / "plot.html", "--report", tmp_path / "page.html", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", REPORT, *args], capture_output=True, check=False, timeout=60, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == f"wrote {tmp_path / 'plot.html'}\nwrote {tmp_path / 'page.html'}\n"
    assert done.stdout.startswith('{"schema": "clmoe.inspect/1"')
    for name in ("plot.html", "page.html"):
        text = (tmp_path / name).read_text()
        assert "task5" in harmless(text).texts
        assert "secret place" not in text
    assert {p.name for p in tmp_path.iterdir()} == {"secret place", "plot.html", "page.html"}
