"""Learning holds a few images as floats at a time, and the same task comes of it."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from pictures import halves as batch

from clmoe_cli.api import common, measuring
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.data import Batch
from clmoe_cli.method import images
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.routing import mahalanobis
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule

SHAPE = (1, 24, 24)
QUICK = LearnOptions(arch="mlp:4", method=Options(Schedule(epochs=1), Tolerance(floor=0.5, epochs=1, final_epochs=1)))


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if this were many images."""
    for module, name, value in (
        (common, "IN_MEMORY", 0), (common, "NUMBERS", 1 << 16), (images, "NUMBERS", 1 << 16),
        (mahalanobis, "MOST", 1 << 17), (measuring, "MOST", 30),
    ):  # fmt: skip
        monkeypatch.setattr(module, name, value)


def peak_of_learning(store: Path, n: int) -> int:
    """The most bytes that arrays of numpy took; every image that becomes a float passes through one."""
    data = batch(n, SHAPE)
    tracemalloc.start()
    try:
        learn(str(store), data, QUICK)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.campaign
@pytest.mark.usefixtures("few")
def test_learning_takes_no_copy_of_all_images_as_floats(tmp_path: Path) -> None:
    peak_of_learning(tmp_path / "first", 200)
    less, more = (peak_of_learning(tmp_path / str(n), n) for n in (4000, 10_000))
    floats = 6000 * int(np.prod(SHAPE)) * 4
    assert more - less < floats / 4


@pytest.mark.parametrize("factor", [1, 40])
def test_the_input_scale_does_not_depend_on_how_many_are_read_at_a_time(
    factor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = batch(300, (3, 8, 8))
    x = data.scaled() * np.float32(factor)
    data = Batch(x, data.labels, "here")
    whole = common.input_scale(data)
    root = np.median([np.sqrt(np.mean(image.astype(np.float64) ** 2)) for image in x.reshape(300, -1)])
    assert whole == pytest.approx(1.0 if factor == 1 else 1 / root, rel=1e-12)
    for numbers in (1, 193, 5000):
        monkeypatch.setattr(common, "NUMBERS", numbers)
        assert common.input_scale(data) == whole
