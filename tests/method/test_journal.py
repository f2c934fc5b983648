from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from campaigns import some
from torch import Tensor

from clmoe_cli.method.networks.base import Params
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork.training import Annealing, Labelled, Quality, Run, Schedule, anneal, train
from clmoe_cli.method.subnetwork.training_state import Journal

EPOCHS = 12
FROZEN = "hidden1.weight"
Trained = Callable[[Journal | None], tuple[Params, Annealing, Quality, Run, Tensor]]


def training(kind: str) -> tuple[Trained, Params, Mapping[str, Tensor]]:
    """A run of training from the same start, whatever its journal; its start and what may move."""
    rng = torch.Generator().manual_seed(0)
    net = MLP(20, (8, 8))
    both = net.initial_shared(rng) | net.initial_owned(2, rng)
    params = net.ordered(both)
    x = torch.randn(300, 20, generator=rng)
    data = Labelled(x, (x[:, 0] + 0.3 * torch.randn(300, generator=rng) > 0).long())
    free = {name: torch.rand(value.shape, generator=rng) < 0.5 for name, value in net.initial_shared(rng).items()}
    function: Any = train if kind == "train" else anneal
    more = () if kind == "train" else (Annealing("prune", EPOCHS, 3e-3),)

    def run(journal: Journal | None) -> tuple[Params, Annealing, Quality, Run, Tensor]:
        own = torch.Generator().manual_seed(1)
        schedule = Schedule(epochs=EPOCHS, patience=0, min_delta=0.02)
        found, reached = function(Run(net, data, data, schedule, own, journal or Journal()), params, free, *more)
        return found, reached, own.get_state()

    return run, params, free


@pytest.mark.parametrize("kind", some(("train", "anneal"), "train"))
def test_training_that_is_cut_off_anywhere_goes_on_to_the_same_bits(kind: str) -> None:
    run, params, free = training(kind)
    kept: list[tuple[dict[str, Tensor], str]] = []
    whole = run(Journal(save=lambda state, reached: kept.append(({k: v.clone() for k, v in state.items()}, reached))))
    assert all(torch.equal(whole[0][name], run(None)[0][name]) for name in params)
    assert kept[-1][1].startswith("phase")
    assert len(kept) > 3
    for state, _ in kept:
        # As they come back from a file: in another order.
        found, reached, generator = run(Journal(dict(sorted(state.items(), reverse=True))))
        assert list(found) == list(params)
        assert all(torch.equal(found[name], whole[0][name]) for name in params)
        assert (reached, generator.tolist()) == (whole[1], whole[2].tolist())
        assert torch.equal(found[FROZEN][~free[FROZEN]], params[FROZEN][~free[FROZEN]])


def test_a_finished_phase_is_not_trained_again_and_the_next_one_is() -> None:
    run, params, _ = training("anneal")
    journal = Journal()
    first = run(journal)
    again = Journal(journal.kept)
    seen: list[str] = []
    again.save = lambda state, reached: seen.append(reached)
    found = run(again)[0]
    assert all(torch.equal(found[name], first[0][name]) for name in params)
    assert seen == []
    run(again)
    assert len(seen) == EPOCHS + 1
