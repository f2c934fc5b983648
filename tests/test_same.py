"""Label, task, known and p-value of an image are the same whatever surrounds it: other images, processes, threads.

The images of the tasks themselves are asked about, of which some calibrated the task: their p-values are ties, and so
are those of the pictures that are there twice. Two tasks have the same pictures under other labels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from campaigns import some
from pictures import bars
from pictures import sparse_vectors as vectors
from pictures import tinted_bars as colour

from clmoe_cli.api import common
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import EVERY, PredictReport, predict
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import KINDS as DEVIATIONS
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.routing.paper import deviations
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.store_tensors import Loader
from store_schema import Store

DECIDED = ("label", "task", "expert", "known", "p_value")
IMAGES = 300
REJECT = 0.2


def pixels(classes: list[int], n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    x, y = bars(classes, n, seed)
    return x[:, None], y


@dataclass(frozen=True)
class Case:
    store: str
    batch: Batch


KINDS = {
    "pixels": (pixels, "mlp:37,21"),
    "convolutions": (pixels, "cnn:5,7"),
    "colour": (colour, "mlp:24"),
    "vectors": (vectors, "mlp:37,21"),
}


@pytest.fixture(scope="module", params=some(KINDS, "pixels", "vectors"))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    make, arch = KINDS[request.param]
    root = tmp_path_factory.mktemp(request.param) / "store"
    asked = []
    for number, (classes, seed, more) in enumerate([([0, 4], 0, 0), ([2, 7, 9], 1, 0), ([0, 4], 0, 20)]):
        x, y = make(classes, 300, seed)
        expert = "new" if number == 1 else None
        options = LearnOptions(arch=arch, method=Options(Schedule(epochs=2)), name=f"t{number}", expert=expert)
        learn(str(root), Batch(x, y + more, ""), options)
        asked.append(x[: 120 if number == 1 else 60])
    strange = make([3, 6, 8], 30, 9)[0]
    x = np.concatenate([*asked, strange, asked[1][:30]])
    x = x[np.random.default_rng(5).permutation(len(x))]
    assert len(x) == IMAGES
    return Case(str(root), Batch(x, None, ""))


@contextmanager
def threads(n: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(n)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def ask(case: Case, index: np.ndarray, router: str) -> PredictReport:
    return predict(case.store, case.batch.taken(index), router=router, reject=REJECT)


def asked_in(case: Case, parts: list[np.ndarray], router: str) -> dict[str, np.ndarray]:
    """The columns of all images in their order, asked part by part."""
    found = [ask(case, index, router).arrays() for index in parts]
    order = np.argsort(np.concatenate(parts), kind="stable")
    return {key: np.concatenate([each[key] for each in found])[order] for key in (*DECIDED, "confidence")}


def ways() -> dict[str, list[np.ndarray]]:
    every = np.arange(IMAGES)
    return {
        "reversed": [every[::-1]],
        "mixed": [np.random.default_rng(3).permutation(IMAGES)],
        "sevens": [every[i : i + 7] for i in range(0, 21, 7)] + [every[21:]],
        "one by one": [every[i : i + 1] for i in range(5)] + [every[5:]],
        "two parts": [every[:151], every[151:]],
    }


@pytest.mark.parametrize("router", some(EVERY, "fused"))
def test_answers_are_the_same_whatever_surrounds_an_image(case: Case, router: str) -> None:
    whole = asked_in(case, [np.arange(IMAGES)], router)
    assert len(np.unique(whole["p_value"])) > 10
    assert 0 < (~whole["known"]).sum() < IMAGES
    for name, parts in ways().items():
        found = asked_in(case, parts, router)
        for key in DECIDED:
            np.testing.assert_array_equal(found[key], whole[key], err_msg=f"{name} {key}")
        np.testing.assert_allclose(found["confidence"], whole["confidence"], rtol=1e-5, err_msg=name)
    with threads(2):
        found = asked_in(case, [np.arange(IMAGES)[::-1]], router)
    for key in DECIDED:
        np.testing.assert_array_equal(found[key], whole[key], err_msg=f"two threads {key}")


def test_images_that_calibrated_a_task_are_met_exactly(case: Case) -> None:
    """Asked one by one and reversed, a calibration image deviates by the very number that is stored of it."""
    loader = Loader(Store.open(case.store))
    task = loader.task("t0")
    make = vectors if len(case.batch.images.shape) == 2 else colour if case.batch.images.shape[1] == 3 else pixels
    x, y = make([0, 4], 300, 0)
    own = common.flat(Batch(x, y, ""), loader.scaling(task.expert))
    for kind in DEVIATIONS:
        stored = task.calibration[kind].values
        whole = deviations(task, own, [kind])[kind]
        held = torch.isin(whole, stored).nonzero()[:, 0]
        assert len(held) >= len(stored.unique()) >= 20
        turned = deviations(task, own.flip(0), [kind])[kind].flip(0)
        alone = torch.cat([deviations(task, own[i : i + 1], [kind])[kind] for i in held[:20]])
        assert torch.equal(turned, whole)
        assert torch.equal(alone, whole[held[:20]])
