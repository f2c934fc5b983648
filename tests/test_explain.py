"""``predict --explain``: what decided is what is said and equals slow references; answers stay the same to the bit."""

from __future__ import annotations

import csv
import io
import json
import math
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from campaigns import some
from launching import together
from oracle import explanations as oracle
from oracle import gaussians as slow
from pictures import batch as batch_of
from torch import Tensor
from trained import OPTIONS, PAIRS, bars_store, once

from clmoe_cli.api.explaining import Explanation
from clmoe_cli.api.learn import learn
from clmoe_cli.api.predict import EVERY, PredictReport, predict
from clmoe_cli.api.predictions import Considered
from clmoe_cli.api.reasons import Case, in_words, sentence
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.method.explain import FIGURES, KEPT
from clmoe_cli.method.routing import gaussians
from clmoe_cli.method.routing.decide import NEGLIGIBLE
from clmoe_cli.method.routing.subspaces import BOUND
from clmoe_cli.store_tensors import Loader
from store_schema import Store, writer

TASKS = PAIRS | {"task4": (4, 0)}
"""Class 0 is of two tasks; ``task4`` has an expert of its own."""
SHAPE = (1, 16, 16)
WEIGHT = 0.25
"""Of a subnetwork beside the gate."""
ROUTES = [("image", None), pytest.param("batch", None, marks=pytest.mark.campaign), ("batch", 7)]
ANSWERS = ("label", "task", "expert", "confidence", "known", "p_value")


@pytest.fixture(scope="module")
def store() -> str:
    def make(root: Path) -> None:
        shutil.copytree(bars_store("task1", "task2", "task3"), root)
        learn(str(root), batch_of(TASKS["task4"], 500, 1), replace(OPTIONS, name="task4", expert="new"))

    return str(once("explain", make))


@pytest.fixture(scope="module")
def mixed() -> Batch:
    """Images of all classes, and of two that nobody has learned."""
    return batch_of((0, 3, 6, 9, 1, 8, 4, 2, 5), 60, 2)


@pytest.fixture(scope="module")
def loader(store: str) -> Loader:
    return Loader(Store.open(store))


def explanation(report: PredictReport) -> Explanation:
    assert report.explained is not None
    return report.explained


@pytest.mark.parametrize(("route", "size"), ROUTES)
@pytest.mark.parametrize("router", some(EVERY, "fused"))
def test_what_is_said_decided_and_changed_nothing(
    store: str, mixed: Batch, router: str, route: str, size: int | None
) -> None:
    plain = predict(store, mixed, router=router, route=route, batch_size=size)
    report = predict(store, mixed, router=router, route=route, batch_size=size, explain=True)
    assert plain.explained is None
    for key in ANSWERS:
        assert getattr(plain, key).tobytes() == getattr(report, key).tobytes()
    found = explanation(report)
    for i, candidates in enumerate(found.candidates()):
        answer = candidates[0]
        assert (answer.task, answer.label, answer.expert) == (
            report.task[i],
            report.labels[i],
            report.expert[i],
        )
        assert answer.p_value == report.p_value[i]
        assert (answer.margin, answer.by) == (0.0, None)
        assert all(c.task != answer.task or c.label != answer.label for c in candidates[1:])
        for other in candidates[1:]:
            assert other.margin >= 0
            assert other.by in found.decided_by
            assert other.margin == getattr(answer, other.by) - getattr(other, other.by)
        rival = next(c for c in candidates if c.task != answer.task)
        assert found.runner_up_task[i] == rival.task
        assert found.runner_up_labels[i] == rival.label == found.runner_up_label[i]
        assert found.margin[i] == rival.margin
        assert found.reason[i].startswith(f"{answer.label} by {answer.task} ({answer.expert}): ")
        assert None not in [
            getattr(c, k) for c in (answer, rival) for k in ("distance", "probability", "loss", "deviation")
        ]
    if route == "image":
        assert len(set(found.runner_up_task.tolist())) > 1


def likelihoods(loader: Loader, x: Tensor, names: list[str]) -> list[list[list[float]]]:
    """Log-likelihoods of images [N, D] by the slow reference of the gate of these tasks: image, task, class."""
    tasks = [loader.gaussians(n) for n in names]
    chosen = gaussians.choose(torch.stack([t.tallies for t in tasks]).sum(dim=0))
    values = torch.stack([oracle.seen(one, SHAPE) for one in x])
    found = slow.scores(tasks, values, (chosen.ridge, chosen.alpha, chosen.sharpness))
    return found.reshape(len(x), len(names), 2).tolist()


ROWS = [1, 43]


@pytest.fixture(scope="module")
def asked(loader: Loader, mixed: Batch) -> tuple[Tensor, list[list[list[float]]]]:
    """The images ``ROWS`` of ``mixed`` [2, D], and their log-likelihoods by the slow reference."""
    x = torch.from_numpy(mixed.scaled().reshape(60, -1))[ROWS]
    return x, likelihoods(loader, x, list(TASKS))


def by_hand(loader: Loader, x: Tensor, likely: list[list[float]], fused: bool) -> dict[tuple[str, int], dict[str, Any]]:
    """All that is said of the classes of one image [D] in float64; a class is (task, position)."""
    names = list(TASKS)
    spaces, tasks = [loader.gaussians(n) for n in names], [loader.task(n) for n in names]
    apart, usual = oracle.distances(oracle.seen(x, SHAPE), spaces)
    said = [oracle.probabilities(t, x) for t in tasks]
    total = float(np.logaddexp.reduce([v for own in likely for v in own]))
    found = {}
    for t, name in enumerate(names):
        whole = float(np.logaddexp(*likely[t]))
        for c in range(2):
            score = likely[t][c]
            if fused and whole - total > math.log(NEGLIGIBLE):
                score = whole + math.log((1 - WEIGHT) * math.exp(score - whole) + WEIGHT * said[t][c])
            found[name, c] = {
                "raw": apart[t][c],
                "own_distance": apart[t][c] / usual[t][c],
                "log_likelihood": likely[t][c],
                "score": score,
                "probability": said[t][c],
                "loss": -math.log(max(said[t])),
                "deviation": oracle.deviation(tasks[t], x),
                "p_value": oracle.p_value(apart[t][c], spaces[t], c),
                "usual": usual[t][c],
            }
    return found


@pytest.mark.parametrize("router", ["fused", "gate"])
def test_figures_of_the_gate_equal_the_slow_reference(
    store: str,
    mixed: Batch,
    loader: Loader,
    asked: tuple[Tensor, list[list[list[float]]]],
    router: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The gate parts these bars so well that no subnetwork has earned a say: each is given one.
    monkeypatch.setattr("clmoe_cli.api.gating.opinion_of", lambda task: WEIGHT)
    found = explanation(predict(store, mixed, router=router, explain=True))
    every = list(found.candidates())
    for i, one_image, likely in zip(ROWS, *asked, strict=True):
        wanted = by_hand(loader, one_image, likely, router == "fused")
        candidates = every[i]
        assert len(candidates) == KEPT
        answer = candidates[0]
        best = wanted[answer.task, position(loader, answer)]
        for c in candidates:
            one = wanted[c.task, position(loader, c)]
            assert c.distance == pytest.approx(one["raw"] / best["usual"], rel=1e-3)
            assert c.own_distance == pytest.approx(one["own_distance"], rel=1e-3)
            for key in ("log_likelihood", "score"):
                # What all classes of an image share is left out.
                assert getattr(c, key) - getattr(answer, key) == pytest.approx(
                    one[key] - best[key], rel=1e-3, abs=1e-3
                ), key
            assert c.p_value == pytest.approx(one["p_value"], abs=5e-3)
            assert c.opinion == (WEIGHT if router == "fused" else None)
            told = c.task in (answer.task, found.runner_up_task[i])
            for key in ("probability", "loss", "deviation"):
                value = getattr(c, key)
                assert (value is not None) == told
                assert value is None or value == pytest.approx(one[key], rel=2e-3, abs=1e-4), key
            assert (c.task_score, c.expert_score) == (None, None)
        assert [c.score for c in candidates[1:]] == sorted((c.score for c in candidates[1:]), reverse=True)


def position(loader: Loader, candidate: Considered) -> int:
    """Position of a candidate's class in its task."""
    return loader.manifest.task(candidate.task).classes.index(candidate.label)


def test_figures_of_other_routers_equal_the_slow_reference(store: str, mixed: Batch, loader: Loader) -> None:
    x = torch.from_numpy(mixed.scaled().reshape(60, -1))
    said = {n: [oracle.probabilities(loader.task(n), one) for one in x] for n in TASKS}
    losses = {n: np.array([-math.log(max(p)) for p in own]) for n, own in said.items()}
    calibrated = {
        n: np.array([oracle.standardised(loader.task(n), "loss", math.log(max(v, 1e-12))) for v in own])
        for n, own in losses.items()
    }
    deviations = {n: np.array([oracle.deviation(loader.task(n), one) for one in x]) for n in TASKS}
    experts = {n: loader.manifest.task(n).expert for n in TASKS}
    for size in (None, 20):
        route = "image" if size is None else "batch"
        for router in ("loss", "fisher", "paper", "gradient"):
            found = explanation(predict(store, mixed, router=router, route=route, batch_size=size, explain=True))
            candidates = list(found.candidates())
            evidence = {"loss": losses, "fisher": deviations}.get(router)
            for i in range(0, 60, 7):
                part = slice(i, i + 1) if size is None else slice(i // size * size, i // size * size + size)
                answer, names = candidates[i][0], {c.task for c in candidates[i]}
                assert names == set(TASKS)
                for c in candidates[i]:
                    if evidence is not None:
                        assert c.task_score == pytest.approx(-evidence[c.task][part].mean(), rel=2e-3, abs=1e-4)
                    if router == "paper":
                        own = [calibrated[n][part].mean() for n in TASKS if experts[n] == c.expert]
                        assert c.expert_score == pytest.approx(-min(own), rel=2e-3, abs=2e-2)
                        assert (c.task_score is None) == (c.expert != answer.expert)
                    if c.label is not None:
                        probability = said[c.task][i][position(loader, c)]
                        assert c.probability == pytest.approx(probability, rel=2e-3, abs=1e-5)
                        assert c.loss == pytest.approx(losses[c.task][i], rel=2e-3, abs=1e-5)
                        assert c.deviation == pytest.approx(deviations[c.task][i], rel=2e-3, abs=1e-3)
                    else:
                        assert c.task not in (answer.task, found.runner_up_task[i])


@pytest.mark.campaign
def test_a_batch_is_explained_by_the_evidence_of_all_its_images(store: str, loader: Loader) -> None:
    batch = batch_of(TASKS["task2"], 2, 4)
    report = predict(store, batch, route="batch", explain=True)
    totals = dict.fromkeys(TASKS, 0.0)
    for likely in likelihoods(loader, torch.from_numpy(batch.scaled().reshape(2, -1)), list(TASKS)):
        whole = {name: float(np.logaddexp(*own)) for name, own in zip(TASKS, likely, strict=True)}
        for name, value in whole.items():
            totals[name] += max(value - max(whole.values()), -BOUND)
    found = explanation(report)
    for candidates in found.candidates():
        for c in candidates:
            assert c.task_score == pytest.approx(totals[c.task], rel=1e-3, abs=1e-6)
            assert (c.score is not None) == (c.task == "task2")
        assert [c.task for c in candidates[:2]] == ["task2", "task2"]
        order = [c.task_score for c in candidates[2:]]
        assert order == sorted(order, reverse=True)
        assert {c.task for c in candidates} == set(TASKS)
    assert set(found.margin.tolist()) == {found.margin[0]}
    assert "its batch is task2's, " in found.reason[0]


def test_a_task_that_was_asked_for(store: str, loader: Loader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clmoe_cli.api.gating.opinion_of", lambda task: WEIGHT)
    batch = batch_of(TASKS["task3"], 30, 4)
    plain, report = (predict(store, batch, task="task3", explain=e) for e in (False, True))
    found = explanation(report)
    assert np.array_equal(plain.confidence, report.confidence)
    assert set(found.runner_up_task.tolist()) == {"task3"}
    assert found.decided_by == ("score", "log_likelihood", "probability")
    x = torch.from_numpy(batch.scaled().reshape(30, -1))
    alone = likelihoods(loader, x[:1], ["task3"])
    for i, (answer, other) in enumerate(found.candidates()):
        assert (answer.label, other.label) == (report.labels[i], found.runner_up_labels[i])
        assert answer.probability + other.probability == pytest.approx(1)
        assert report.confidence[i] == pytest.approx(1 / (1 + math.exp(other.score - answer.score)))
        assert found.margin[i] == answer.score - other.score
        assert (answer.task_score, answer.expert_score) == (None, None)
        if i < len(alone):
            mine, theirs = (alone[i][0][position(loader, c)] for c in (answer, other))
            by_gate = 1 / (1 + math.exp(theirs - mine))
            mixture = (1 - WEIGHT) * by_gate + WEIGHT * answer.probability
            assert report.confidence[i] == pytest.approx(mixture, abs=1e-5)
    assert "no other task" not in found.reason[0]
    assert f"with {WEIGHT:g} of the say, gives " in found.reason[0]


def test_a_subnetwork_that_was_asked_for(store: str) -> None:
    """Another router than the gate's leaves the answer to the subnetwork alone."""
    batch = batch_of(TASKS["task3"], 30, 4)
    report = predict(store, batch, task="task3", router="fisher", explain=True)
    found = explanation(report)
    assert found.decided_by == ("score", "probability")
    for i, (answer, other) in enumerate(found.candidates()):
        assert answer.probability == pytest.approx(report.confidence[i])
        assert found.margin[i] == pytest.approx(math.log(answer.probability / other.probability))
    assert f"its subnetwork gives {report.labels[0]} {report.confidence[0]:.3f}, " in found.reason[0]


def test_unknown_images_say_so(store: str, mixed: Batch) -> None:
    for router in ("fused", "fisher"):
        report = predict(store, mixed, reject=0.1, router=router, explain=True)
        found = explanation(report)
        assert not report.known.all()
        assert report.known.any()
        assert "p_value" in found.decided_by
        for known, p, reason in zip(report.known, report.p_value, found.reason, strict=True):
            unknown = f"unknown, since p = {p:.3g} is below 0.1; at best "
            assert reason.startswith(unknown) != known
            assert (f"known, since p = {p:.3g} is not below 0.1" in reason) == known


def test_without_a_gate_the_other_routers_still_explain(store: str, mixed: Batch, tmp_path: Path) -> None:
    own = shutil.copytree(store, tmp_path / "own")
    with writer(str(own)) as locked:
        locked.commit(locked.manifest.model_copy(update={"gates": ()}))
    found = explanation(predict(str(own), mixed, router="fisher", explain=True))
    assert all(c.distance is None for image in found.candidates() for c in image)
    assert "gate" not in found.reason[0]
    assert "deviates least from" in found.reason[0]


@pytest.mark.campaign
def test_several_processes_explain_what_one_does(store: str, mixed: Batch, tmp_path: Path) -> None:
    options: list[dict[str, Any]] = [{}, {"route": "batch", "batch_size": 7}, {"router": "paper"}]
    expected = [explanation(predict(store, mixed, explain=True, **told)) for told in options]

    def act(rank: int) -> dict[str, Tensor]:
        for told, wanted in zip(options, expected, strict=True):
            found = explanation(predict(store, mixed, explain=True, **told))
            assert np.array_equal(found.runner_up_task, wanted.runner_up_task)
            # A difference of scores up to hundreds of nats, in float32.
            np.testing.assert_allclose(found.margin, wanted.margin, rtol=1e-3, atol=5e-3)
            assert [len(c) for c in found.candidates()] == [len(c) for c in wanted.candidates()]
        return {}

    together(2, act, tmp_path / "found")


Call = Callable[..., str]


@pytest.fixture
def call(
    store: str, mixed: Batch, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Call:
    np.savez(tmp_path / "mixed.npz", x=mixed.images[:, 0])
    monkeypatch.setenv("CLMOE_STORE", store)
    monkeypatch.setenv("COLUMNS", "80")

    def invoke(*args: object) -> str:
        assert run(app, ["predict", "--batch", str(tmp_path / "mixed.npz"), "-q", *map(str, args)]) == 0
        return capsys.readouterr().out

    return invoke


def test_outputs(call: Call, tmp_path: Path) -> None:
    printed = json.loads(call("--explain", "--json"))
    rows = printed["predictions"]
    added = {"runner_up_task", "runner_up_label", "margin", "reason", "explanation"}
    plain = json.loads(call("--json"))
    assert printed["decided_by"] == ["score", "log_likelihood", "probability"]
    assert "decided_by" not in plain
    assert [{k: v for k, v in row.items() if k not in added} for row in rows] == plain["predictions"]
    assert all(added <= set(row) for row in rows)
    keys = {"task", "expert", "label", "margin", "by", *FIGURES}
    assert all(set(c) == keys for row in rows for c in row["explanation"])
    for suffix in ("npz", "csv", "json", "ndjson"):
        call("--explain", "--output", tmp_path / f"out.{suffix}")
    assert json.loads((tmp_path / "out.json").read_text())["predictions"] == rows
    assert [json.loads(line) for line in (tmp_path / "out.ndjson").read_text().splitlines()] == rows
    table = list(csv.DictReader(io.StringIO((tmp_path / "out.csv").read_text())))
    flat = ("runner_up_task", "runner_up_label", "margin", "reason")
    assert list(table[0]) == ["index", *ANSWERS, *flat]
    assert [[r[k] for k in flat] for r in table] == [[str(row[k]) for k in flat] for row in rows]
    arrays = np.load(tmp_path / "out.npz")
    assert list(arrays) == [*ANSWERS, *flat, "reject"]
    for key in flat:
        assert arrays[key].tolist() == [row[key] for row in rows]
    call("--output", tmp_path / "plain.npz")
    assert list(np.load(tmp_path / "plain.npz")) == [*ANSWERS, "reject"]


def test_the_screen_says_one_sentence_an_image(call: Call) -> None:
    shown = call("--explain")
    lines = shown.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[0].split() == ["image", "sure", "why"]
    first = [line for line in lines if line[:1].isdigit()]
    assert [line.split()[0] for line in first] == [str(i) for i in range(20)]
    assert all(" of task" in line for line in first)
    assert not any(word in shown for word in ("nats", "spreads", "p = ", "deviation"))
    assert "40 more" in lines[-1]
    assert "sure" not in call()


def one(task: str, label: int | None = 1, **figures: float | None) -> Considered:
    """A candidate."""
    expert = {"task9": "e2"}.get(task, "e1")
    base = {"probability": 0.25, "loss": 0.5, "deviation": 1.0, "p_value": 0.5, "distance": 1.5, "log_likelihood": -3.0}
    return Considered(**{"task": task, "expert": expert, "label": label, "margin": 2.0, "by": "score"} | base | figures)


FIRST = one("task1", 5, distance=1.0, log_likelihood=-2.0, opinion=0.1, probability=0.75, deviation=-0.5, margin=0.0)
SURE = "subnetwork of task1 0.750 and task2 0.250 sure, deviation -0.5 and +1.0 spreads; p = 0.5"
NEAR = "for the gate at 1.00 of its usual distance"


@pytest.mark.parametrize(
    ("case", "confidence", "answer", "others", "words"),
    [
        (Case("fused", False, None, True), 0.999, {}, [one("task2", 1)],
         "surely 5 of task1: nothing else comes near; it is usual for 5"),
        (Case("fused", False, None, True), 0.9, {"p_value": 0.02}, [one("task1", 8), one("task2", 1)],
         "probably 5 of task1: 8 of the same task comes next; it is unusual for 5"),
        (Case("gate", False, None, True), 0.5, {"p_value": None}, [one("task2", 1)],
         "perhaps 5 of task1: 1 of task2 is nearly as likely; too few of 5 were learned to tell how usual it is"),
        (Case("fused", False, 0.05, True), 0.9, {"p_value": 0.001}, [one("task2", 1)],
         "unknown; if anything 5 of task1: 1 of task2 comes next; it is unlike nearly all of 5 that was learned"),
        (Case("fused", False, None, True), 0.55, {}, [one("task1", 8, log_likelihood=-1.0)],
         "perhaps 5 of task1: 8 of the same task is nearly as likely; it looks more like 8, and the task's network "
         "decided otherwise; it is usual for 5"),
        (Case("fisher", True, None), 0.9, {}, [one("task2", None), one("task1", 8)],
         "probably 5 of task1: the images that it came with are of that task; 8 of the same task comes next; it is "
         "usual for 5"),
        (Case("task", False, None, given=True), 1.0, {}, [],
         "surely 5 of task1: asked of that task alone; nothing else was near enough to compare; it is usual for 5"),
    ],
)  # fmt: skip
def test_words(case: Case, confidence: float, answer: dict[str, Any], others: list[Considered], words: str) -> None:
    assert in_words(case, (replace(FIRST, **answer), *others), confidence) == words


@pytest.mark.parametrize(
    ("case", "answer", "others", "reason"),
    [
        (Case("fused", False, None), FIRST, [one("task2", 9)],
         f"at 1.00 of its usual distance; 9 of task2 at 1.50 of it, 2 nats behind [context: {SURE}]"),
        (Case("gate", False, None), FIRST, [one("task1", 6), one("task2", 9, margin=1234.5)],
         "at 1.00 of its usual distance; 6 of the same task at 1.50 of it, 2 nats behind; 9 of task2 at 1.50 of it, "
         f"1,234 nats behind [context: {SURE}]"),
        (Case("fused", False, None), FIRST,
         [one("task1", 6, distance=0.9, log_likelihood=-1.5, margin=0.125), one("task2", 9)],
         "at 1.00 of its usual distance; 6 of the same task is nearer, at 0.90 of it, but 0.125 nats behind with the "
         "subnetworks' opinion; its subnetwork, with 0.1 of the say, gives 0.750 and 0.250; 9 of task2 at 1.50 of it, "
         "2 nats behind [context: subnetwork of task2 0.250 sure, deviation -0.5 and +1.0 spreads; p = 0.5]"),
        (Case("fused", False, None), FIRST, [one("task1", 6)],
         "at 1.00 of its usual distance; 6 of the same task at 1.50 of it, 2 nats behind; its subnetwork, with 0.1 of "
         "the say, gives 0.750 and 0.250; no other task is near [context: deviation -0.5 spreads; p = 0.5]"),
        (Case("gate", False, 0.1), one("task1", 5, p_value=None), [one("task2", 9)],
         "at 1.50 of its usual distance; 9 of task2 at 1.50 of it, 2 nats behind [context: subnetwork of task1 0.250 "
         "and task2 0.250 sure, deviation +1.0 and +1.0 spreads; no p-value (too few images)]"),
        (Case("gate", True, None), FIRST, [one("task1", 6)],
         "its batch is task1's, the only task; at 1.00 of its usual distance; 6 of the same task at 1.50 of it, 2 nats "
         "behind [context: subnetwork of task1 0.750 sure, deviation -0.5 spreads; p = 0.5]"),
        (Case("loss", False, None), replace(FIRST, task_score=-0.5),
         [one("task1", 6), one("task2", 9, task_score=-1.5)],
         "task1 has the least loss, 0.5 nats (task2 1.5); its subnetwork gives 5 0.750, 6 0.250 "
         f"[context: {NEAR}, 9 of task2 at 1.50 of it; p = 0.5]"),
        (Case("loss", True, None), replace(FIRST, task_score=-0.5), [one("task1", 6)],
         f"task1 is the only task; its subnetwork gives 5 0.750, 6 0.250 [context: {NEAR}; p = 0.5]"),
        (Case("gradient", True, None), replace(FIRST, task_score=-0.5), [one("task2", 9, task_score=-1.5)],
         "its batch's gradients deviate least from task1, +0.50 spreads (task2 +1.50); its subnetwork gives 5 0.750 "
         f"[context: {NEAR}, 9 of task2 at 1.50 of it; p = 0.5]"),
        (Case("paper", False, None), replace(FIRST, task_score=0.5, expert_score=-0.1),
         [one("task2", 9, task_score=-1.5, expert_score=-0.1), one("task9", None, expert_score=-0.75)],
         "e1 has the least loss, +0.10 spreads (e2 +0.75); its gradients deviate least from task1, -0.50 spreads "
         f"(task2 +1.50); its subnetwork gives 5 0.750 [context: {NEAR}, 9 of task2 at 1.50 of it; p = 0.5]"),
        (Case("paper", True, None), replace(FIRST, task_score=0.5, expert_score=-0.1),
         [one("task9", 9, expert_score=-0.75)],
         "e1 has the least mean loss over its batch, +0.10 spreads (e2 +0.75); task1 is the only task in e1; its "
         f"subnetwork gives 5 0.750 [context: {NEAR}, 9 of task9 at 1.50 of it; p = 0.5]"),
        (Case("paper", True, None), replace(FIRST, task_score=0.5, expert_score=-0.1),
         [one("task2", 9, task_score=-0.25, expert_score=-0.1)],
         "e1 has the least mean loss over its batch, +0.10 spreads; its batch's scores agree best with task1's, "
         f"0.5 (task2 -0.25); its subnetwork gives 5 0.750 [context: {NEAR}, 9 of task2 at 1.50 of it; p = 0.5]"),
        (Case("fused", False, None, densities=True), FIRST, [one("task2", 9)],
         "9 of task2 2 nats behind [context: at 1.00 of its usual distance, 9 of task2 at 1.50 of it; " f"{SURE}]"),
        (Case("fused", False, None, densities=True), FIRST,
         [one("task1", 6, log_likelihood=-1.5, margin=0.125), one("task2", 9)],
         "6 of the same task is likelier for the gate, but 0.125 nats behind with the subnetworks' opinion; its "
         "subnetwork, with 0.1 of the say, gives 0.750 and 0.250; 9 of task2 2 nats behind [context: at 1.00 of its "
         "usual distance, 9 of task2 at 1.50 of it; subnetwork of task2 0.250 sure, deviation -0.5 and +1.0 spreads; "
         "p = 0.5]"),
        (Case("fused", False, None, densities=True, given=True), replace(FIRST, opinion=0.0), [one("task1", 6)],
         "6 of the same task 2 nats behind [context: at 1.00 of its usual distance; subnetwork of task1 0.750 sure, "
         "deviation -0.5 spreads; p = 0.5]"),
        (Case("task", False, None), replace(FIRST, distance=None), [one("task1", 6)],
         "its subnetwork gives 5 0.750, 6 0.250 [context: p = 0.5]"),
    ],
)  # fmt: skip
def test_sentences(case: Case, answer: Considered, others: list[Considered], reason: str) -> None:
    assert sentence(case, (answer, *others)) == f"5 by task1 (e1): {reason}"
