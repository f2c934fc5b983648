from __future__ import annotations

import pytest
import torch
from pictures import family

from clmoe_cli.method import privacy
from clmoe_cli.method.tasks.shortlist import LIMIT, WIDTH, project, shortlist, sketch


def test_sketches_are_means_of_projected_images(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "LEAST", 1)  # no noise: it has tests of its own
    data = family(torch.rand((2, 40), generator=rng), 30, rng)
    found = sketch(data, 3)
    assert found.shape == (3, WIDTH)
    for c in range(2):
        slow = sum(project(data.x[i : i + 1])[0].double() for i in range(30) if data.y[i] == c) / 15
        torch.testing.assert_close(found[c].double(), slow, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[2], torch.zeros(WIDTH))


def test_few_tasks_are_all_compared(rng: torch.Generator) -> None:
    sketches = [torch.rand((2, WIDTH), generator=rng) for _ in range(LIMIT)]
    assert shortlist(sketches, [torch.rand((5, 30), generator=rng)] * LIMIT) == list(range(LIMIT))


@pytest.mark.parametrize("seed", range(5))
def test_the_task_of_a_batch_is_on_the_shortlist_among_many(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    centres = [torch.rand((2, 100), generator=rng) for _ in range(60)]
    sketches = [sketch(family(c, 200, rng), 2) for c in centres]
    for wanted in (0, 31, 59):
        found = shortlist(sketches, [family(centres[wanted], 64, rng).x] * 60)
        assert wanted in found
        assert len(found) == LIMIT
        assert found == sorted(found)


def test_a_mixed_batch_shortlists_each_of_its_tasks() -> None:
    rng = torch.Generator().manual_seed(0)
    centres = [torch.rand((2, 100), generator=rng) for _ in range(40)]
    sketches = [sketch(family(c, 200, rng), 2) for c in centres]
    mixed = torch.cat([family(centres[i], 16, rng).x for i in range(0, 40, 5)])
    assert set(range(0, 40, 5)) <= set(shortlist(sketches, [mixed] * 40))
