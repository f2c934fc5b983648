"""What a new user meets on the screen: widths, pipes, long lists, a plan that is said once, words for tables."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import shells
import small_store as small

from clmoe_cli.api.generations import rename
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.planning import plan
from clmoe_cli.api.segment import learn_stream
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.report.cells import columns, console, put
from clmoe_cli.report.tables import tables
from store_schema import BadInput

LONG = "a task whose name is so long that no screen of eighty columns has room for it beside all the others"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small.build(tmp_path / "s", 2)


def said(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[str, str]:
    assert run(app, [*map(str, args)]) == 0
    found = capsys.readouterr()
    return found.out, found.err


@pytest.mark.parametrize("width", ["0", "1", "19"])
def test_a_width_that_is_none_is_not_taken(
    width: str, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", width)
    shown = said(capsys, "inspect", "--store", root)[0]
    assert "task1" in shown
    assert "generation" in re.sub(r"\s", "", shown)


def test_nothing_is_cut_in_a_pipe(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    rename(str(root), "task1", LONG)
    for command in (["inspect"], ["inspect", LONG], ["log"]):
        shown = said(capsys, *command, "--store", root)[0]
        assert LONG in shown
        assert "…" not in shown
    table = columns(*(f"column {i}" for i in range(60)))
    table.add_row(*("x" * 30 for _ in range(60)))
    put(console(), table)
    assert capsys.readouterr().out.splitlines()[1].split() == ["x" * 30] * 60


@pytest.mark.parametrize("width", [30, 40, 60, 80])
@pytest.mark.parametrize(
    "command", [["log"], ["detect", "1.npz"], ["predict", "2.npz", "--top", "2"], ["inspect"], ["inspect", "task2"]]
)
def test_nothing_is_cut_on_a_narrow_screen(
    command: list[str], width: int, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shells.folder(tmp_path))
    monkeypatch.delenv("COLUMNS", raising=False)
    free = said(capsys, *command, "--store", "store")[0]
    monkeypatch.setenv("COLUMNS", str(width))
    narrow = said(capsys, *command, "--store", "store")[0]
    assert max(map(len, narrow.splitlines())) <= width
    assert "…" not in re.sub(r"… \d+ more", "", narrow)
    if command == ["inspect", "task2"]:  # nothing was answered wrong
        free = free.replace("wrong ones answered as", "")
    # Zeros stand in the matrix of who answered whose, which has no room; the layers of a task are summed up.
    words = [word for word in free.split() if word != "0" and "hidden" not in word and not set(word) <= set("█▒░")]
    if command == ["inspect"]:
        words = [word for word in words if not re.fullmatch(r"[\d.]+", word)]
    assert [word for word in words if word not in narrow] == []


def test_a_name_is_whole_where_there_is_no_room_for_a_table(
    root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rename(str(root), "task1", "x" * 50)
    for width in ("40", "80"):
        monkeypatch.setenv("COLUMNS", width)
        for command in ("log", "inspect"):
            assert said(capsys, command, "--store", root)[0].count("x") >= 50


def test_many_labels_fill_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    x, y = np.random.default_rng(0).random((600, 4), np.float32), np.arange(600) % 200
    report = plan(str(tmp_path / "s"), Batch(x, y, "many.npz"), LearnOptions(arch="mlp:4"))
    assert len(report.to_json()["classes"]) == 200  # type: ignore[arg-type]
    for part in tables(replace(report, dry_run=False)):
        put(console(), part)
    lines = capsys.readouterr().out.splitlines()
    assert next(line for line in lines if line.startswith("classes:")).rstrip().endswith("11, … (200)")


def test_a_plan_is_said_once(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, err = said(capsys, "prune", "task1", "--store", root)
    assert (out + err).count("remove task1") == 1
    assert (out + err).count("weights") == 1
    assert err == "nothing was changed: add --yes to act\n"
    assert said(capsys, "prune", "--gc", "--dry-run", "--store", root)[0].startswith(
        "would remove all older generations"
    )
    out, _ = said(capsys, "prune", "task1", "--yes", "--store", root)
    assert re.search(r"\d+ bytes freed; clmoe prune --gc --yes frees", " ".join(out.split()))


def test_a_stream_is_planned_as_it_is_learned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = small.batch(1, 600), small.batch(2, 300)
    assert first.labels is not None
    assert second.labels is not None
    halves = (slice(0, 300), slice(300, 600))
    stream = Batch(
        np.concatenate([first.images[halves[0]], second.images, first.images[halves[1]]]),
        np.concatenate([first.labels[halves[0]], second.labels, first.labels[halves[1]]]),
        "stream",
    )
    planned = learn_stream(str(tmp_path / "s"), stream, small.OPTIONS, dry_run=True)
    real = learn_stream(str(tmp_path / "s"), stream, small.OPTIONS)
    told = [(part.start, part.stop, part.status, part.task, part.classes) for part in planned.segments]
    assert told == [(part.start, part.stop, part.status, part.task, part.classes) for part in real.segments]
    assert [part.status for part in real.segments] == ["learned", "learned", "known"]
    for each in tables(planned):
        put(console(), each)
    assert "not known yet" in capsys.readouterr().out


def test_rows_of_tables_have_features(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.array([[1.0, 2.0], [np.nan, 1.0]], np.float32), y=np.arange(2))
    with pytest.raises(BadInput, match=r"not every feature is a number.*in row 1.*repair the row"):
        read_batch(str(tmp_path / "x.npz"), labels="optional")
    np.savez(tmp_path / "x.npz", x=np.zeros((0, 2), np.float32))
    with pytest.raises(BadInput, match="at least one row and one feature"):
        read_batch(str(tmp_path / "x.npz"), labels="optional")
