"""Decisions: from the shortlist to task, label, confidence and p-value."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from method.test_gate import clouds, fit, solved
from torch import Tensor

from clmoe_cli.method.routing import decide
from clmoe_cli.method.routing.decide import Decision, Sources, decide_images, decide_within, task_of_batch
from clmoe_cli.method.routing.subspaces import Subspaces

CLASSES = 12


@pytest.fixture(scope="module")
def tasks() -> list[Subspaces]:
    x, y = clouds(CLASSES, 2400, 0)
    return [fit(x[y // 2 == t], y[y // 2 == t] % 2, 2) for t in range(CLASSES // 2)]


@pytest.fixture
def sources(tasks: list[Subspaces]) -> Sources:
    return Sources(solved(tasks), torch.arange(CLASSES), lambda task: tasks[task], None)


def decide_batch(sources: Sources, values: Tensor, at: Tensor) -> Decision:
    """All images are one task's."""
    return decide_within(sources, task_of_batch(sources, values), values, at)


def rows(values: Tensor) -> Tensor:
    return torch.arange(len(values))


def test_the_gate_alone_is_right_and_sure(sources: Sources) -> None:
    new, truth = clouds(CLASSES, 600, 1)
    found = decide_images(sources, new, rows(new))
    assert float((found.code == truth).double().mean()) > 0.99
    assert torch.equal(found.task, found.code // 2)
    assert float(found.confidence.mean()) > 0.95
    assert bool((found.confidence <= 1).all())
    assert 0.02 < float((found.p_value < 0.05).double().mean()) < 0.09


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.1])
def test_answers_are_as_sure_as_they_are_right_whatever_the_background(noise: float) -> None:
    """Noise in all directions makes every distance large, and tells nothing."""
    rng = torch.Generator().manual_seed(3)

    def busy(n: int, seed: int) -> tuple[Tensor, Tensor]:
        values, y = clouds(CLASSES, n, seed)
        return values / 2 + noise * torch.randn(values.shape, generator=rng), y

    x, y = busy(6000, 0)
    tasks = [fit(x[y // 2 == t], y[y // 2 == t] % 2, 2, 32) for t in range(CLASSES // 2)]
    new, truth = busy(2400, 1)
    both = Sources(solved(tasks), torch.arange(CLASSES), lambda task: tasks[task], None)
    found = decide_images(both, new, rows(new))
    right = float((found.code == truth).double().mean())
    assert right > 0.5
    assert abs(float(found.confidence.mean()) - right) < 0.04


def test_a_label_of_two_tasks_counts_once(sources: Sources, tasks: list[Subspaces]) -> None:
    # Task 5 is task 0 again: twice the same classes must not halve anybody's confidence.
    twice = [*tasks[:5], tasks[0]]
    codes = torch.cat([torch.arange(10), torch.tensor([0, 1])])
    both = Sources(solved(twice), codes, lambda task: twice[task], None)
    new, truth = clouds(CLASSES, 600, 1)
    new, truth = new[truth < 10], truth[truth < 10]
    once = Sources(solved(tasks[:5]), torch.arange(10), lambda task: tasks[task], None)
    found, wanted = decide_images(both, new, rows(new)), decide_images(once, new, rows(new))
    assert torch.equal(found.code, wanted.code)
    near = (found.confidence - wanted.confidence).abs()
    assert float(near.mean()) < 0.01


def test_a_subnetwork_speaks_within_its_task_only(sources: Sources) -> None:
    new, truth = clouds(CLASSES, 600, 1)
    asked: list[int] = []

    def contrary(task: int, at: Tensor) -> Tensor:
        """Certain of the other class."""
        asked.extend(at.tolist())
        said = torch.full((len(at), 2), -1e-6, dtype=torch.float64)
        return said.scatter(1, (truth[at] % 2)[:, None], -5000.0)

    compared = sources.gate.compare(new, sources.statistics)
    chosen, scores = compared.chosen, compared.likely
    owner, position = sources.gate.owner[chosen], sources.gate.position[chosen]
    mixed = decide._pooled(scores, owner, position, rows(new), contrary, None)
    for task in range(CLASSES // 2):
        own = owner == task
        before = scores.masked_fill(~own, -torch.inf).logsumexp(dim=1)
        after = mixed.masked_fill(~own, -torch.inf).logsumexp(dim=1)
        torch.testing.assert_close(after, before)
    # Where both classes of the likeliest task are on the shortlist, the oracle of the linear pool, image by image.
    for n in range(0, 600, 37):
        best = int(owner[n, scores[n].argmax()])
        own = (owner[n] == best).nonzero()[:, 0]
        if len(own) < 2:
            continue
        gate = scores[n, own].softmax(dim=0)
        said = (position[n, own] != truth[n] % 2).double()
        wanted = (1 - decide.OPINION) * gate + decide.OPINION * said
        torch.testing.assert_close(mixed[n, own].softmax(dim=0), wanted, rtol=1e-5, atol=1e-6)
    # Unlikely tasks are not asked: far fewer than six opinions on each image.
    assert set(asked) == set(range(600))
    assert len(asked) < 3 * len(new)


def test_batches_of_one_task(sources: Sources) -> None:
    new, truth = clouds(CLASSES, 1200, 7)
    for t in range(CLASSES // 2):
        batch, labels = new[truth // 2 == t].clone(), truth[truth // 2 == t]
        batch[:3] *= 40
        found = decide_batch(sources, batch, rows(batch))
        assert found.task.unique().tolist() == [t]
        assert float((found.code[3:] == labels[3:]).double().mean()) > 0.99
        assert float(found.confidence[3:].mean()) > 0.99


def test_a_few_far_images_do_not_outvote_a_batch(sources: Sources) -> None:
    new, truth = clouds(CLASSES, 1200, 8)
    for t in range(CLASSES // 2):
        other = (t + 1) % (CLASSES // 2)
        batch = new[truth // 2 == t].clone()
        # Far from every class, and much farther from this task's than from another's.
        batch[:3] = 60 * sources.gate.means[2 * other]
        assert decide_batch(sources, batch, rows(batch)).task.unique().tolist() == [t]


def test_a_batch_is_as_sure_of_its_task_as_the_evidence(sources: Sources) -> None:
    gate = sources.gate
    # On the way from one task's class to another's there is a point that might be either's.
    near, far = gate.means[0], gate.means[2]
    ends = [decide_batch(sources, one[None], torch.tensor([0])) for one in (near, far)]
    assert [int(end.task) for end in ends] == [0, 1]
    assert all(float(end.confidence) > 0.99 for end in ends)
    for _ in range(20):
        between = (near + far) / 2
        found = decide_batch(sources, between[None], torch.tensor([0]))
        near, far = (between, far) if int(found.task) == 0 else (near, between)
    assert 0.4 < float(found.confidence) < 0.6
    # One image is a batch as well: nearly as sure as by itself, where more classes are compared.
    new, _ = clouds(CLASSES, 200, 9)
    each = torch.stack([decide_batch(sources, one[None], torch.tensor([0])).confidence[0] for one in new])
    alone = decide_images(sources, new, rows(new)).confidence
    torch.testing.assert_close(each, alone, rtol=0, atol=0.02)


def test_only_the_shortlist_is_read(sources: Sources, tasks: list[Subspaces], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decide, "TASKS", 2)
    read: set[int] = set()

    def statistics(task: int) -> Subspaces:
        read.add(task)
        return tasks[task]

    new, truth = clouds(CLASSES, 600, 1)
    decide_batch(replace(sources, statistics=statistics), new[truth < 2], rows(new[truth < 2]))
    assert 0 in read
    assert len(read) == 2


def test_decisions_are_joined_in_order(sources: Sources) -> None:
    new, _ = clouds(CLASSES, 90, 1)
    parts = [decide_images(sources, part, rows(part)) for part in new.split(40)]
    whole, joined = decide_images(sources, new, rows(new)), Decision.joined(parts)
    assert torch.equal(whole.code, joined.code)
    assert torch.equal(whole.task, joined.task)
    torch.testing.assert_close(whole.confidence, joined.confidence, rtol=1e-3, atol=1e-4)
