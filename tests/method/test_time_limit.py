"""A time limit ends phases early, at a clock that a test moves; what comes out is a whole task all the same."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import random_params
from launching import together
from pictures import ramps

from clmoe_cli.method import learn_task
from clmoe_cli.method.learn_task import Identity, Options, Setting, Shared
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork import masks, training
from clmoe_cli.method.subnetwork.time_limit import LEAST, REST, UNTIL, TimeLimit
from clmoe_cli.method.subnetwork.training import Annealing, Cost, Epoch, Part, Run, Schedule, anneal, train
from clmoe_cli.method.subnetwork.training_state import Journal

NET = MLP(12, (16, 10))


class Clock:
    """Seconds that pass with every step."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def everything() -> masks.Masks:
    return {name: torch.ones(shape, dtype=torch.bool) for name, shape in NET.shared_shapes().items()}


def limited(seconds: float, monkeypatch: pytest.MonkeyPatch, step: float = 1.0) -> TimeLimit:
    """A limit by a clock on which each step of training takes so many seconds, and nothing else any."""
    clock = Clock()
    real = training.run_steps

    def steps(run: Run, moving: object, drop: object, after: object, on_part: object, part: Part) -> object:
        def told(done: int, images: int) -> None:
            clock.now += step
            on_part(done, images)  # type: ignore[operator]

        return real(run, moving, drop, after, told, part)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "run_steps", steps)
    monkeypatch.setattr(training, "step_seconds", lambda run, params, trainable: step)
    limit = TimeLimit(seconds, clock)
    limit.open()
    return limit


def run(limit: TimeLimit, rng: torch.Generator, told: list[Epoch], images: int = 64) -> Run:
    data = ramps(images, rng)
    journal = Journal(limit=limit)
    return Run(NET, data, data, Schedule(epochs=12, batch_size=16), rng, journal, told.append)


def test_training_stops_within_an_epoch(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    limit, told = limited(125.0, monkeypatch), list[Epoch]()
    found, reached = train(run(limit, rng, told), random_params(NET, 2, rng, torch.float32), everything())
    assert limit.clock() == UNTIL["train"] * 125.0 == 50.0
    assert [epoch.epoch for epoch in told] == [1, 2]  # of 32 steps each
    assert limit.cut == ["train"]
    assert reached.loss <= told[0].held_out.loss
    assert all(value.isfinite().all() for value in found.values())


@pytest.mark.parametrize(("seconds", "steps"), [(100.0, 85), (30.0, 25), (1.0, LEAST), (0.0, LEAST)])
def test_a_falling_rate_falls_to_the_end(
    seconds: float, steps: int, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit, told, rates = limited(seconds, monkeypatch), list[Epoch](), list[float]()
    own = run(limit, rng, told)
    made: list[torch.optim.Optimizer] = []

    def make(lr: float) -> training.MakeOptimizer:
        return lambda values: made.append(torch.optim.SGD(values, lr=lr)) or made[-1]  # type: ignore[func-returns-value]

    object.__setattr__(own, "on_epoch", lambda epoch: (told.append(epoch), rates.append(made[0].param_groups[0]["lr"])))
    anneal(own, random_params(NET, 2, rng, torch.float32), everything(), Annealing("end", 12, 0.1), optimizer=make)
    assert limit.clock() == steps
    assert rates[-1] == pytest.approx(0.0, abs=1e-12)
    assert len(told) == told[-1].epochs == math.ceil(steps / own.steps)
    assert limit.cut == ["end"]


def test_time_enough_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for seconds in (math.inf, 1e9):
        rng = torch.Generator().manual_seed(3)
        limit = limited(seconds, monkeypatch)
        params = random_params(NET, 2, rng, torch.float32)
        own = run(limit, rng, [])
        trained = train(own, params, everything())[0]
        found.append(anneal(own, trained, everything(), Annealing("end", 3, 0.01))[0])
        assert limit.cut == []
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


def test_earlier_runs_count_and_what_they_cut_is_known() -> None:
    clock = Clock()
    first = TimeLimit(60.0, clock)
    clock.now = 45.0
    first.end("train")
    first.end("prune")
    noted = {**first.noted(), "1/result/x": torch.zeros(1)}
    clock.now = 1000.0
    second = TimeLimit(60.0, clock)
    assert Journal(noted, limit=second).limit.cut == ["train", "prune"]
    clock.now += 5.0
    assert second.spent() == 50.0
    second.open()
    assert second.left("consolidate") == pytest.approx(10.0 * REST)
    clock.now += 10.0
    assert second.over("consolidate")


def test_what_follows_training_is_kept_back() -> None:
    limit = TimeLimit(100.0, Clock())
    limit.open()
    limit.reserve = 80.0
    assert limit.left("train") == limit.left("consolidate") == 20.0


def test_a_plan_is_kept_by_the_run_that_goes_on(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps that were planned are those of the first run, so that its falling rate goes on falling."""
    kept: list[dict[str, torch.Tensor]] = []
    params, data = random_params(NET, 2, rng, torch.float32), ramps(64, rng)
    how, schedule = Annealing("end", 12, 0.01), Schedule(batch_size=16)

    def trained(kept_before: dict[str, torch.Tensor], limit: TimeLimit) -> dict[str, torch.Tensor]:
        journal = Journal(kept_before, lambda state, reached: kept.append({k: v.clone() for k, v in state.items()}))
        journal.limit = limit
        own = Run(NET, data, data, schedule, torch.Generator().manual_seed(1), journal)
        return anneal(own, params, everything(), how)[0]

    whole = trained({}, limited(100.0, monkeypatch))
    again = trained(kept[0], TimeLimit())
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_processes_end_by_the_clock_of_the_first(tmp_path: Path) -> None:
    """The second's clock has not moved at all; both end after the same step, with the same parameters."""

    class Ticking(Clock):
        def __init__(self, tick: float) -> None:
            super().__init__()
            self.tick = tick

        def __call__(self) -> float:
            self.now += self.tick
            return self.now

    def act(rank: int) -> dict[str, torch.Tensor]:
        rng, told = torch.Generator().manual_seed(1), list[Epoch]()
        limit = TimeLimit(100.0, Ticking(1.0 if rank == 0 else 0.0))
        limit.open()
        params = random_params(NET, 2, rng, torch.float32)
        found, _ = train(run(limit, rng, told), params, everything())
        assert limit.cut == ["train"]
        return {**found, "epochs": torch.tensor(len(told)), "generator": rng.get_state()}

    first, second = together(2, act, tmp_path / "found")
    assert 0 < first["epochs"] < 12
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_a_whole_task_in_no_time(rng: torch.Generator) -> None:
    """Every phase has its least number of steps; masks, scores and calibration are there."""
    zeros = {name: torch.zeros(shape) for name, shape in NET.shared_shapes().items()}
    shared = Shared(zeros, masks.zeros_like(zeros), masks.zeros_like(zeros))
    told: list[Epoch] = []
    costs: list[Cost] = []
    journal = Journal(limit=TimeLimit(1e-9))
    setting = Setting(Options(), torch.Generator().manual_seed(0), told.append, journal, on_cost=costs.append)
    learned = learn_task.learn_task(Identity("task1", "e1", 2), NET, shared, ramps(400, rng), setting)
    assert [epoch.phase for epoch in told] == ["train", "prune", "consolidate"]
    assert journal.limit.cut == ["train", "prune", "consolidate"]
    assert learned.subnetwork.calibration.keys() == set(learn_task.KINDS)
    assert masks.count(learned.subnetwork.mask) > 0
    assert learned.held_out == 50
    (cost,) = costs
    assert (cost.steps, cost.limit, cost.total) == (33, 0.0, 0.0)
    assert cost.epochs > Schedule().epochs
