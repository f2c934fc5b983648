"""The gate within one task as fixed matrices: it answers as the gate does, whatever the inputs and their features."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from clmoe_cli.method.routing import features as feature_module
from clmoe_cli.method.routing import standalone
from clmoe_cli.method.routing.decide import mixed
from clmoe_cli.method.routing.features import features, kind
from clmoe_cli.method.routing.gaussians import GaussianGate, Gaussians, fit, solve
from clmoe_cli.method.routing.standalone import Mixture, Reading, Within

KINDS = {
    "table": ((9,), None, 1.0),
    "unit": ((30,), "unit-1", 1.0),
    "long": ((90,), None, 0.5),
    "amounts": ((30,), "vector-root-1", 1.0),
    "long amounts": ((90,), "vector-root-1", 0.5),
    "tiny": ((2, 4, 5), None, 2.0),
}


def inputs(shape: tuple[int, ...], y: Tensor, seed: int) -> Tensor:
    """Inputs [N, *shape] of class y [N]; as vectors they have columns of very different units."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randn((10, *shape), generator=torch.Generator().manual_seed(9))
    found = 0.5 * kinds[y] + torch.randn((len(y), *shape), generator=draw)
    return found * torch.logspace(-3, 3, shape[0]) + 20 if shape == (9,) else found


def task(shape: tuple[int, ...], name: str, scale: float, classes: list[int], seed: int) -> Gaussians:
    y = torch.arange(24 * len(classes)) % len(classes)
    values = features((inputs(shape, torch.tensor(classes)[y], seed) * scale).flatten(1), shape, name)
    return fit(
        values, y, len(classes), name not in ("vector-1", "vector-root-1"), torch.zeros(len(classes), values.shape[1])
    )


@pytest.fixture
def _few_columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Vectors of more than 60 columns are projected."""
    for module in (feature_module, standalone):
        monkeypatch.setattr(module, "MOST_COLUMNS", 60)
    feature_module.projection.cache_clear()
    yield
    feature_module.projection.cache_clear()


@pytest.mark.usefixtures("_few_columns")
@pytest.mark.parametrize("which", KINDS)
def test_the_module_answers_as_the_gate_within_each_task(which: str) -> None:
    shape, name, scale = KINDS[which]
    name = name or kind(shape)
    learned = enumerate([[1, 2, 3], [4], [5, 6]])
    tasks = [task(shape, name, scale, classes, seed) for seed, classes in learned]
    tasks[0] = replace(tasks[0], priors=torch.tensor([0.5, -1.5, 0.25], dtype=torch.float64))
    solved = solve(tasks)
    # Whatever held-out images have chosen: linear, as here, nearly each class's own, and sharper than ever.
    for choice in (solved.choice.tolist(), [0.0, 0.25], [0.1, 0.125], [0.9, 1.0]):
        gate = GaussianGate.of(replace(solved, choice=torch.tensor(choice, dtype=torch.float64)), [3, 1, 2])
        x = inputs(shape, torch.arange(24) % 10, 7)
        x = torch.cat([x, 100 * x[:4], torch.zeros_like(x[:1])])
        values = features((x * scale).flatten(1), shape, name)
        for position, own in enumerate(tasks):
            likely = gate.within(values, position, lambda task: tasks[task]).likely
            found, told = Within(gate, position, own, Reading(shape, scale, name))(x), likely.log_softmax(dim=1)
            # The gate rounds log-densities to float32, and they grow with the distance.
            near = 1e-4 * (1 + told.abs()) + 2e-7 * likely.abs().amax(dim=1, keepdim=True)
            assert bool(((found - told).abs() <= near).all())


class Said(torch.nn.Module):
    """What a subnetwork says: logits of its own."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        logits = images.flatten(1)[:, :3] * torch.tensor([1.0, -1.0, 300.0])
        return logits, logits.softmax(dim=1)


def test_the_mixture_is_that_of_fusion_and_finite_where_both_are_sure_of_another_class() -> None:
    gate = GaussianGate.of(solve([task((9,), "vector-1", 1.0, [1, 2, 3], 1)]), [3])
    within = Within(gate, 0, task((9,), "vector-1", 1.0, [1, 2, 3], 1), Reading((9,), 1.0, "vector-1"))
    x = inputs((9,), torch.arange(24) % 3, 2)
    x[3:6] *= 1e4
    for weight in (0.0, 0.025, 0.5, 0.975):
        logs, probabilities = Mixture(within, Said() if weight else None, weight)(x)
        told = mixed(within(x), Said()(x)[0].double().log_softmax(dim=1), weight)
        assert logs.dtype == probabilities.dtype == torch.float32
        assert bool(logs.isfinite().all())
        assert float(logs.min()) < -1e3
        torch.testing.assert_close(logs, told.float())
        torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(24))
        assert math.isclose(float((logs.double().exp() - probabilities.double()).abs().max()), 0.0, abs_tol=1e-6)
