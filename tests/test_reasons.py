"""Why new or known, and why this expert: one sentence in the reports of ``learn`` and ``detect``, and on the screen."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from test_growth import ALL_CONSTRUCTIVE, spots

from clmoe_cli.api.detect import detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.reports import LearnReport
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.report.tables import tables

OPTIONS = LearnOptions(arch="mlp:8", method=Options(Schedule(epochs=3)), thresholds=ALL_CONSTRUCTIVE)


def told(store: str, batch: Batch, **options: object) -> LearnReport:
    return learn(store, batch, dataclasses.replace(OPTIONS, **options))


def joined(*parts: Batch) -> Batch:
    assert all(part.labels is not None for part in parts)
    labels = np.concatenate([part.labels for part in parts if part.labels is not None])
    return Batch(np.concatenate([part.images for part in parts]), labels, "joined")


@pytest.fixture
def store(tmp_path: Path) -> str:
    root = str(tmp_path / "store")
    first = told(root, spots([5, 9], 0, 600, 0))
    assert first.onset.reason == "no task with inputs of this shape is known yet"
    assert first.reason == "a new expert, since none yet reads inputs of this shape"
    return root


def test_why_this_expert(store: str) -> None:
    report = told(store, spots([30, 40], 2, 200, 1))
    assert report.onset.reason == "it has classes that no known task near it has: 2, 3"
    free = 100 - max(layer.frozen_percent for layer in told(store, spots([5, 9], 0, 200, 3)).layers)
    (candidate,) = report.candidates
    start = f"into expert e1, since it overlaps with task1 more than by chance ({candidate.overlap:.2f} against "
    assert report.reason.startswith(f"{start}{candidate.chance_overlap:.2f}; at least -")
    # What was free before it came.
    layer, share = report.reason.rpartition(" and layer ")[2].removesuffix(" % free").split(" has ")
    assert layer == "hidden1.weight"
    assert free < float(share) < 100
    assert told(store, spots([50, 60], 4, 200, 1), arch="mlp:9").reason == (
        "a new expert, since none yet has architecture mlp:9 and this start (--arch mlp:8 goes on in e1)"
    )
    assert told(store, spots([11, 12], 6, 200, 1), expert="e2", arch="mlp:9").reason == "into expert e2, as asked"
    assert told(store, spots([13, 14], 8, 200, 1), expert="new").reason == "a new expert, as asked"


def test_why_known(store: str) -> None:
    more = spots([5, 9], 0, 800, 7)
    report = told(store, more)
    assert report.status == "known"
    p = f"p = {report.onset.p_value:.2g}, not below alpha = 0.01"
    assert report.onset.reason == f"it looks like task1 ({p}), and 100 % of its labels agree"
    assert report.reason == "nothing was changed, since its task is known (--if-known says otherwise)"
    found = detect(store, more)
    assert found.reason.startswith("it looks like task1 (p = ")
    assert found.reason.endswith(", not below alpha = 0.01)")
    refined = told(store, more, if_known="refine")
    assert refined.reason == "refined in place, in expert e1"


def test_why_new(store: str) -> None:
    known = spots([5, 9], 0, 600, 7)
    strange = spots([30, 40], 0, 200, 1)
    found = detect(store, strange)
    nearest = f"nearest task1, p = {found.p_value:.2g}, below alpha = 0.01"
    assert found.reason == f"its images deviate from every known task ({nearest})"
    renamed = detect(store, spots([5, 9], 6, 200, 7), use_labels=True).reason
    assert renamed.startswith("it has classes that no known task near it has: 6, 7; yet it looks like task1 (p = ")
    assert known.labels is not None
    swapped = Batch(known.images, 1 - known.labels, "")
    assert detect(store, swapped, use_labels=True).reason.endswith(
        ", but its labels conflict with task1: 0 % agree, 50 % are needed"
    )
    # A class too rare for the sample that is looked at.
    rare = Batch(known.images, np.where(np.arange(600) == 3, 9, known.labels), "")
    assert told(store, joined(rare, known, known)).onset.reason == "it has classes that no known task near it has: 9"


def test_a_class_of_another_task_is_named(store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    told(store, spots([30, 40], 2, 600, 1))
    known = spots([5, 9], 0, 600, 7)
    assert known.labels is not None
    # Looked at are the first images alone, which are all of the first task.
    monkeypatch.setattr("clmoe_cli.api.common.sample", lambda n, limit, rng: torch.arange(n)[:limit])
    late = Batch(known.images, np.where(np.arange(600) == 500, 3, known.labels), "")
    report = told(store, late)
    assert report.onset.reason == "it has classes that are not of task1, which its images fit: 3"


def test_sentences_on_the_screen(store: str) -> None:
    report = told(store, spots([30, 40], 2, 200, 1))
    for shown, starts in (
        (report, ["new:      it has", "placed:   into expert e1, since"]),
        (detect(store, spots([50, 60], 4, 200, 1)), ["why: its images deviate from every known task"]),
    ):
        screen = Console(width=80, record=True)
        for part in tables(shown):
            screen.print(part)
        lines = screen.export_text().splitlines()
        assert max(map(len, lines)) <= 80
        for start in starts:
            (at,) = [i for i, line in enumerate(lines) if line.startswith(start)]
            # What does not fit goes on below the sentence's own beginning.
            assert lines[at + 1].startswith((" " * (start.index(": ") + 2), "placed", "layer"))
