"""Ordinary modules compute what experts do, and are described so that anyone can build them."""

from __future__ import annotations

import json

import pytest
import torch
from campaigns import some
from conftest import random_params
from torch import nn
from torchvision import models

from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.scaling import BOUND, Scaling
from clmoe_cli.method.subnetwork import plain

SIDES = {
    "alexnet": 64, "densenet121": 32, "efficientnet_b0": 32, "googlenet": 32, "inception_v3": 75, "mnasnet0_5": 32,
    "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_y_400mf": 32, "resnet50": 32, "shufflenet_v2_x0_5": 32,
}  # fmt: skip
NETS: dict[str, tuple[int, ...]] = {
    "mlp:5": (2, 3, 4), "mlp:6,5,4": (11,), "cnn:4,6": (1, 9, 7), "cnn:3": (2, 3, 2), "cnn:4,5,6,7": (3, 30, 30),
    "resnet9:2": (3, 16, 18), "lite0": (1, 33, 32),
    "resnet18": (1, 32, 32), **{name: (3, side, side) for name, side in SIDES.items()},
}  # fmt: skip


@pytest.mark.parametrize("arch", some(NETS, *list(NETS)[:8], "googlenet", "mnasnet0_5", "mobilenet_v3_small"))
def test_plain_modules_compute_what_experts_do(arch: str, rng: torch.Generator) -> None:
    shape, scale = NETS[arch], 0.37
    net = parse_arch(arch, shape)
    params = random_params(net, 3, rng)  # float64: some of these networks make 1e-4 of float32's rounding
    scaling = Scaling(scale)
    values = plain.state(net, params, scaling)
    description = json.loads(json.dumps(plain.described(net, 3, scaling)))
    found = plain.Answers(plain.module(description, values), description.get("colour", False))
    x = torch.rand((3, *shape), generator=rng, dtype=torch.float64)
    with torch.no_grad():
        answers, probabilities = found(x)
    wanted = logits(net, params, scale * x.flatten(1))
    torch.testing.assert_close(answers, wanted, rtol=0, atol=1e-10 * max(1.0, float(wanted.abs().max())))
    torch.testing.assert_close(probabilities.sum(dim=1), torch.ones(3, dtype=torch.float64))
    assert float((answers[0] - answers[1]).abs().max()) > 0
    shared = plain.named(net, list(net.shared_shapes()))
    assert set(shared) < set(values)
    if "torchvision" in description:
        theirs = models.get_model(arch, **description["options"])
        assert list(theirs.state_dict()) == list(values)
        assert not any(type(m).__module__.startswith("clmoe") for m in found.net.modules())
    head = net.names["output"] if isinstance(net, ConvNet) else "output"
    assert [name for name, module in found.net.named_modules() if isinstance(module, nn.Linear)][-1] == head


def test_parameters_of_another_network_are_refused(rng: torch.Generator) -> None:
    net = parse_arch("mlp:5", (4,))
    values = plain.state(net, random_params(net, 3, rng, torch.float32), Scaling())
    plain.module(plain.described(net, 3, Scaling()), values)
    with pytest.raises(RuntimeError):
        plain.module(plain.described(net, 2, Scaling()), values)
    with pytest.raises(RuntimeError):
        plain.module(plain.described(net, 3, Scaling()), {k: v for k, v in values.items() if k != "output.bias"})


def test_a_module_standardises_as_the_expert_does(rng: torch.Generator) -> None:
    net = parse_arch("mlp:6,5", (4,))
    params = random_params(net, 3, rng)
    scaling = Scaling(0.5, torch.tensor([0.0, -3.0, 1e4, 2.5]), torch.tensor([1.0, 2.0**-9, 2.0**11, 0.25]))
    description = json.loads(json.dumps(plain.described(net, 3, scaling)))
    found = plain.module(description, plain.state(net, params, scaling))
    x = scaling.undone(3 * BOUND * (torch.rand((50, 4), generator=rng) - 0.5)).double()
    read = scaling.apply(x)
    assert bool((read.abs() == BOUND).any())
    with torch.no_grad():
        torch.testing.assert_close(found(x), logits(net, params, read), rtol=0, atol=1e-9)
