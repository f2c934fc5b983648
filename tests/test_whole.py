"""All that answers as one module: the same answers as the steps of ``decide`` give, whatever the gate has chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from clmoe_cli.method.routing import features as feature_module
from clmoe_cli.method.routing import whole
from clmoe_cli.method.routing.decide import Sources, decide_images
from clmoe_cli.method.routing.features import features, kind
from clmoe_cli.method.routing.gaussians import GaussianGate, Gaussians, fit, solve
from clmoe_cli.method.routing.standalone import Reading
from clmoe_cli.method.routing.whole import Parts, Whole

TASKS = ([0, 1, 2], [3], [4, 5], [6, 7, 8, 9], [1, 3])
"""Twelve classes, more than the shortlist holds; the last task knows labels of two others."""
KINDS = {
    "table": ((9,), None, 1.0),
    "unit": ((30,), "unit-1", 1.0),
    "long": ((90,), None, 0.5),
    "amounts": ((30,), "vector-root-1", 1.0),
}


def inputs(shape: tuple[int, ...], y: Tensor, seed: int) -> Tensor:
    """Inputs [N, *shape] of class y [N]; of the table the columns have very different units."""
    draw = torch.Generator().manual_seed(seed)
    kinds = torch.randn((10, *shape), generator=torch.Generator().manual_seed(9))
    found = 0.6 * kinds[y] + torch.randn((len(y), *shape), generator=draw)
    return found * torch.logspace(-3, 3, shape[0]) + 20 if shape == (9,) else found


def learned(which: str, images: int) -> list[Gaussians]:
    shape, name, scale = KINDS[which]
    name = name or kind(shape)
    found = []
    for seed, classes in enumerate(TASKS):
        y = torch.arange(images * len(classes)) % len(classes)
        values = features((inputs(shape, torch.tensor(classes)[y], seed) * scale).flatten(1), shape, name)
        none = torch.zeros(len(classes), values.shape[1])
        found.append(fit(values, y, len(classes), name not in ("vector-1", "vector-root-1"), none))
    found[3] = replace(found[3], priors=torch.tensor([0.5, -1.5, 0.25, 0.0], dtype=torch.float64))
    return found


class Said(nn.Module):
    """Log-probabilities of a subnetwork of so many classes."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classes = classes

    def forward(self, inputs: Tensor) -> Tensor:
        weights = torch.tensor([1.0, -1.0, 30.0, 0.3])[: self.classes]
        return (inputs.flatten(1)[:, : self.classes] * weights).double().log_softmax(dim=1)


@pytest.fixture
def _few_columns(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Vectors of more than 60 columns are projected."""
    for module in (feature_module, whole):
        monkeypatch.setattr(module, "MOST_COLUMNS", 60)
    feature_module.projection.cache_clear()
    yield
    feature_module.projection.cache_clear()


def compare(which: str, gate: GaussianGate, tasks: Sequence[Gaussians], weights: Sequence[float]) -> Tensor:
    """Compares the module with ``decide_images``, and returns the p-values."""
    shape, name, scale = KINDS[which]
    reading = Reading(shape, scale, name or kind(shape))
    codes = torch.tensor([label for classes in TASKS for label in classes])
    said = [Said(len(classes)) for classes in TASKS]
    x = inputs(shape, torch.arange(60) % 10, 77)
    x = torch.cat([x, 30 * x[:4], torch.zeros_like(x[:1])])
    values = features((x * scale).flatten(1), shape, reading.features)
    sources = Sources(gate, codes, lambda task: tasks[task], lambda task, rows: said[task](x[rows]), None, weights)
    told = decide_images(sources, values, torch.arange(len(x)))
    networks = [one if weight else None for one, weight in zip(said, weights, strict=True)]
    net = Whole(Parts(gate, tasks, codes, weights, networks, reading, None))
    with torch.inference_mode():
        label, task, confidence, p_value, probabilities = net(x)
        alone = net(x[3:4])
    assert torch.equal(label, told.code)
    assert torch.equal(task, told.task)
    torch.testing.assert_close(confidence.double(), told.confidence, rtol=0, atol=1e-5)
    torch.testing.assert_close(p_value, told.p_value, rtol=1e-12, atol=1e-12, equal_nan=True)
    torch.testing.assert_close(probabilities.gather(1, label[:, None])[:, 0], confidence)
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(len(x)))
    assert [int(alone[0]), int(alone[1])] == [int(label[3]), int(task[3])]
    assert len(label.unique()) > 4
    return p_value


@pytest.mark.usefixtures("_few_columns")
@pytest.mark.parametrize("which", KINDS)
def test_the_module_answers_as_the_steps_do(which: str) -> None:
    tasks = learned(which, 36)
    solved = solve(tasks)
    # Whatever held-out images have chosen: linear, as here, nearly each class's own, and sharper than ever.
    choices = [solved.choice.tolist(), [0.0, 0.25], [0.1, 0.125], [0.9, 1.0]]
    weights = [[0.0] * 5, [0.4, 0.0, 0.2, 0.0, 1.0], [0.3] * 5, [0.0, 0.0, 0.0, 0.9, 0.0]]
    for choice, own in zip(choices, weights, strict=True):
        gate = GaussianGate.of(
            replace(solved, choice=torch.tensor(choice, dtype=torch.float64)), [len(classes) for classes in TASKS]
        )
        assert bool(compare(which, gate, tasks, own).isfinite().all())


@pytest.mark.parametrize("which", ["table", "unit"])
def test_p_values_of_few_images_and_of_statistics_of_before(which: str) -> None:
    few, before = learned(which, 24), learned(which, 36)
    none = torch.zeros(0, dtype=torch.float64)
    sizes = [len(classes) for classes in TASKS]
    mixed = [few[0], replace(before[1], best=none), before[2], few[3], replace(before[4], near=torch.zeros(2, 0))]
    p_value = compare(which, GaussianGate.of(solve(mixed), sizes), mixed, [0.2] * 5)
    assert 0 < int(p_value.isnan().sum()) < len(p_value)
    old = [replace(task, best=none) for task in before]
    assert bool(compare(which, GaussianGate.of(solve(old), sizes), old, [0.0] * 5).isfinite().all())


def test_numbers_below_are_counted_as_by_a_search() -> None:
    draw = torch.Generator().manual_seed(3)
    rows = [torch.rand(n, generator=draw).mul(20).round().sort().values for n in (1, 5, 24, 25, 1001)]
    squares = whole._rising(rows)
    asked = torch.cat([torch.arange(-1.0, 23), torch.tensor([4.5, float("inf")])])
    for row, values in enumerate(rows):
        which = torch.full((len(asked),), row)
        for equal in (False, True):
            told = torch.searchsorted(values, asked, right=equal)
            found = whole._below(squares, which, asked, equal).clamp(max=len(values))
            assert torch.equal(found.long(), told)


def test_of_equal_classes_of_one_label_the_first_counts() -> None:
    scores = torch.tensor([[2.0, 2.0, 1.0, 2.0], [1.0, 3.0, 2.0, 0.0]])
    codes = torch.tensor([[5, 5, 5, 6], [5, 5, 6, 6]])
    assert whole._beaten(scores, codes).tolist() == [[False, True, True, False], [True, False, False, True]]
