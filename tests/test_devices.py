"""The same store and the same answers from a card as from a processor."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from card import Card
from pictures import batch as sized

from clmoe_cli.api.certify import TOLERANCE, certify_outputs
from clmoe_cli.api.detect import EVIDENCE, detect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import EVERY, predict
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.store_tensors import Loader
from store_schema import Store

batch = partial(sized, side=14)


def test_a_card_refuses_what_real_ones_do() -> None:
    with Card():
        there = torch.ones(3, 3).to("mps")
        assert there.device.type == "mps"
        assert (there + 1).device.type == (there * torch.tensor(2.0)).device.type == "mps"
        assert there.cpu().device.type == there[torch.tensor([0])].cpu().device.type == "cpu"
        for wrong in (
            lambda: there + torch.ones(3, 3),
            lambda: torch.where(torch.ones(3, 3) > 0, torch.ones(3, 3), there),
            lambda: torch.ones(3)[there[0].long()],
            lambda: there.double(),
            lambda: there.numpy(),
            lambda: torch.nn.functional.adaptive_avg_pool2d(there[None, None], 2),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()


def state(root: str) -> dict[str, torch.Tensor]:
    """Every weight of every expert, every mask, and every array of the gate's statistics."""
    loader = Loader(Store.open(root))
    found = {}
    for name in (task.name for task in loader.manifest.tasks):
        task = loader.task(name)
        for of, parts in (("weights", task.params), ("mask", task.mask), ("gate", vars(loader.gaussians(name)))):
            found |= {f"{name} {of} {key}": value.cpu() for key, value in parts.items()}
    return found


@pytest.mark.parametrize("arch", [pytest.param("cnn:4,6", marks=pytest.mark.campaign), "mlp:8,8"])
def test_learning_refining_and_answering_on_a_card(arch: str, tmp_path: Path) -> None:
    """What is learned is the same to the bit; what is compared with a stored number is rounded otherwise where there is
    no float64."""
    found = []
    for device in ("cpu", "mps"):
        root = str(tmp_path / device)
        options = LearnOptions(arch=arch, method=Options(Schedule(epochs=1), Tolerance(floor=0.05), device=device))
        with Card() if device == "mps" else nullcontext():
            before = Card.seen
            for number, classes in enumerate(([0, 4], [2, 7])):
                learn(root, batch(classes, 120, number), replace(options, expert="e1" if number else None))
            states = [state(root)]
            # With fewer images than before inside the mask, with more the mask is chosen anew.
            for n in (120, 260):
                refined = learn(root, batch([0, 4], n, n), replace(options, if_known="refine"))
                assert refined.status == "refined"
                states.append(state(root))
            asked = batch([0, 4, 2, 7], 60, 9)
            answers = [predict(root, asked, router=router, device=device) for router in EVERY]
            answers += [predict(root, asked, router=router, route="batch", device=device) for router in EVERY]
            answers.append(predict(root, asked, task="task2", device=device))
            seen = [detect(root, batch([0, 4], 60, 8), evidence=kind, device=device) for kind in EVIDENCE]
            assert (Card.seen > before) == (device == "mps")
        found.append((states, [a.arrays() for a in answers], seen))
    for here, there in zip(found[0][0], found[1][0], strict=True):
        assert here.keys() == there.keys()
        assert [name for name in here if not torch.equal(here[name], there[name])] == []
    assert [seen.verdict for seen in found[0][2]] == [seen.verdict for seen in found[1][2]]
    for router, here, there in zip((*EVERY, *EVERY, "task"), found[0][1], found[1][1], strict=True):
        assert here.keys() == there.keys()
        # A whitened deviation in units of a narrow spread makes much of a small difference.
        rtol = 1e-3 if router == "fisher" else 1e-4
        step = 0.033  # of a p-value: a class has about thirty held-out images, and one of them may change sides
        for key, value in here.items():
            if value.dtype.kind == "f":
                np.testing.assert_allclose(value, there[key], rtol=rtol, atol=step if key == "p_value" else 1e-5)
            else:
                assert np.array_equal(value, there[key]), key


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a graphics card")
@pytest.mark.parametrize("arch", ["cnn:4,6", "mlp:8,8"])
def test_a_real_card_agrees_with_the_processor(arch: str, tmp_path: Path) -> None:
    """What was learned on the card has the same outputs here to the tolerance that the README names."""
    root, asked = str(tmp_path / "store"), batch([0, 4], 60, 9)
    learn(root, batch([0, 4], 240, 0), LearnOptions(arch=arch, method=Options(Schedule(epochs=2), device="cuda")))
    certify_outputs(Store.open(root))
    here, there = (predict(root, asked, device=device) for device in ("cpu", "cuda"))
    assert np.array_equal(here.label, there.label)
    np.testing.assert_allclose(here.confidence, there.confidence, rtol=0, atol=TOLERANCE)
