"""Candidates of many tasks and of many classes: which are kept, in which order, and how far each stays behind."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from method.test_gate import clouds, fit, solved
from torch import Tensor

from clmoe_cli.method.explain import KEPT, Candidates, Said, of_decision, of_subnetworks
from clmoe_cli.method.routing.decide import Decision, Sources, decide_images, decide_within, task_of_batch

N = 40


def said(classes: int, seed: int) -> Said:
    rng = torch.Generator().manual_seed(seed)
    logs = torch.randn((N, classes), generator=rng, dtype=torch.float64).log_softmax(dim=1)
    return Said(logs, torch.randn(N, generator=rng).double(), torch.rand(N, generator=rng).double())


def told(classes: list[int], calls: list[tuple[int, list[int]]] | None = None):
    every = [said(c, t) for t, c in enumerate(classes)]

    def ask(task: int, rows: Tensor) -> Said:
        if calls is not None:
            calls.append((task, rows.tolist()))
        own = every[task]
        return Said(own.logs[rows], own.deviation[rows], own.p_value[rows])

    return every, ask


def answers(every: list[Said], codes: list[Tensor], chosen: Tensor) -> Tensor:
    return torch.stack([codes[t][every[t].logs[n].argmax()] for n, t in enumerate(chosen.tolist())])


@pytest.mark.parametrize("classes", [[2] * 11, [12] * 11, [12, 2], [12], [2]])
@pytest.mark.parametrize("two_stages", [False, True])
def test_evidence_of_subnetworks(classes: list[int], two_stages: bool) -> None:
    rng = torch.Generator().manual_seed(9)
    tasks, calls = len(classes), []
    every, ask = told(classes, calls)
    codes = [torch.arange(c) + 100 * t for t, c in enumerate(classes)]
    levels = {"task_score": torch.randn((N, tasks), generator=rng, dtype=torch.float64)}
    home = torch.arange(tasks) % 3
    if two_stages:
        first = torch.randn((N, 3), generator=rng, dtype=torch.float64)[:, home]
        inside = first == first.max(dim=1, keepdim=True).values
        levels = {"task_score": levels["task_score"].masked_fill(~inside, -math.inf), "expert_score": first}
    chosen = levels["task_score"].argmax(dim=1)
    answer = answers(every, codes, chosen)
    found = of_subnetworks(codes, levels, chosen, answer, torch.arange(N), ask)
    rival, (margins, _) = found.rival(), found.margins()
    for n in range(N):
        t = int(chosen[n])
        here = [k for k in range(KEPT) if int(found.task[n, k]) == t]
        order = every[t].logs[n].argsort(descending=True).tolist()
        # The task's own classes, as likely as its subnetwork has them; as many as leave room for six others.
        assert found.code[n, here].tolist() == [int(codes[t][c]) for c in order[: KEPT - min(tasks - 1, 6)]]
        others = [k for k in range(KEPT) if int(found.task[n, k]) not in (t, -1)]
        keys = [
            tuple(float(levels[name][n, o]) for name in ("expert_score", "task_score") if name in levels)
            for o in range(tasks)
        ]
        wanted = sorted((o for o in range(tasks) if o != t), key=lambda o: keys[o], reverse=True)[:6]
        assert found.task[n, others].tolist() == wanted
        assert bool((margins[n, here + others] >= 0).all())
        assert float(margins[n, 0]) == 0
        assert int(rival[n]) == (others[0] if others else 1)
        for k in others[1:]:
            assert int(found.code[n, k]) == -1
        if others:
            assert int(found.code[n, others[0]]) == int(codes[wanted[0]][every[wanted[0]].logs[n].argmax()])
            behind = next(a - b for a, b in zip(keys[t], keys[wanted[0]], strict=True) if a != b)
            assert float(margins[n, others[0]]) == pytest.approx(behind)
    # Nobody is asked but who answers and who comes next: each image twice, or once where there is nobody else.
    assert sum(len(rows) for _, rows in calls) == N * (2 if tasks > 1 else 1)
    assert found.figure("task_score")[found.task < 0].isnan().all()


@pytest.fixture(scope="module")
def many() -> Sources:
    """A task of twelve classes, and five of two."""
    x, y = clouds(22, 2200, 0)
    sizes = [12, 2, 2, 2, 2, 2]
    starts = [sum(sizes[:t]) for t in range(6)]
    tasks = [
        fit(x[(y >= a) & (y < a + c)], y[(y >= a) & (y < a + c)] - a, c) for a, c in zip(starts, sizes, strict=True)
    ]
    _, ask = told(sizes)
    explain = partial(of_decision, asked=ask)
    return Sources(solved(tasks), torch.arange(22), lambda task: tasks[task], None, explain)


def why(found: Decision) -> Candidates:
    assert isinstance(found.why, Candidates)
    return found.why


def test_many_classes_leave_room_for_other_tasks(many: Sources) -> None:
    values, y = clouds(22, 440, 5)
    values = values[y < 12][:N]
    rows = torch.arange(N)
    found = decide_within(many, task_of_batch(many, values), values, rows)
    own = why(found)
    # Five tasks are compared: four classes of the batch's own, and the nearest of each of the others.
    assert (own.task == 0).sum(dim=1).tolist() == [4] * N
    assert (own.task > 0).sum(dim=1).tolist() == [4] * N
    assert torch.equal(own.code[:, 0], found.code)
    margins, levels = own.margins()
    assert bool((margins >= 0).all())
    assert (levels[:, 1:] == torch.tensor([2, 2, 2, 1, 1, 1, 1])).all()
    single = replace(many, gate=solved([many.statistics(0)]))
    alone = decide_images(single, values, rows)
    assert torch.equal(why(alone).code[:, 0], alone.code)
    # Where no other task is on the shortlist, the next class of the same is what comes next.
    assert why(alone).rival().tolist() == [1] * N
    assert (why(alone).task == 0).all()
    assert bool((why(alone).margins()[0][:, 1:] > 0).all())


def test_parts_are_joined_with_their_candidates(many: Sources) -> None:
    values, _ = clouds(22, 44, 6)
    parts = [decide_images(many, part, torch.arange(len(part))) for part in values[:N].split(15)]
    joined = Decision.joined(parts)
    assert torch.equal(why(joined).code, torch.cat([why(part).code for part in parts]))
    assert why(joined).figures.shape == (N, *why(parts[0]).figures.shape[1:])
