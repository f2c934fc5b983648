"""A subnetwork as an ordinary module: torch's or torchvision's own, with zeros where the task uses nothing.

A network is described by plain values from which anyone can build it again:

=============================================  ==================================================================
``{"layers": [[name, kind, options], …]}``     an ``nn.Sequential`` of these, each ``getattr(nn, kind)(**options)``
``{"torchvision": name, "options": options}``  ``torchvision.models.get_model(name, **options)``
``{"clmoe": arch, "shape": …, …}``             :func:`clmoe_cli.method.networks.modules.build`, for these ``classes``
=============================================  ==================================================================

Names of parameters are those of the module's ``state_dict``. An expert that standardises its inputs begins with two
normalisations of fixed statistics, ``centred`` and ``standardised``, and the bound. torchvision's networks take three
channels: ``"colour": True`` says that grey images have to be repeated to three.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from clmoe_cli.method.networks import modules
from clmoe_cli.method.networks.base import Network, Params
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.scaling import BOUND, Scaling

Described = dict[str, Any]

_OPTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv2d: ("in_channels", "out_channels", "kernel_size", "padding"),
    nn.BatchNorm2d: ("num_features",),
    nn.MaxPool2d: ("kernel_size",),
    nn.AdaptiveAvgPool2d: ("output_size",),
    nn.Linear: ("in_features", "out_features"),
}


STANDARDISING = ("centred", "standardised")


def described(net: Network, classes: int, scaling: Scaling) -> Described:
    """The description of an expert's network with that many classes; it reads images [N, *input_shape]."""
    if isinstance(net, MLP):
        layers: list[list[Any]] = [["flat", "Flatten", {}]]
        if scaling.standardised:
            options = {"num_features": net.input_size, "eps": 0.0}
            layers += [[name, "BatchNorm1d", options] for name in STANDARDISING]
            layers.append(["bounded", "Hardtanh", {"min_val": -BOUND, "max_val": BOUND}])
        sizes = (net.input_size, *net.hidden, classes)
        for i, name in enumerate(net.layers):
            layers += [[f"relu{i}", "ReLU", {}]] if i else []
            layers.append([name, "Linear", {"in_features": sizes[i], "out_features": sizes[i + 1]}])
        return {"layers": layers}
    assert isinstance(net, ConvNet)
    if net.arch.startswith("cnn:"):
        found = [_layer(name, module) for name, module in net.module.named_children()]
        found[-1][2]["out_features"] = classes
        return {"layers": found}
    if net.own:
        return {"clmoe": net.arch, "shape": list(net.input_shape), "classes": classes, "factor": scaling.factor}
    wanted = {**modules.PLAIN.get(net.arch, {}), "num_classes": classes}
    return {"torchvision": net.arch, "options": wanted, "colour": net.input_shape[0] == 1}


def _layer(name: str, module: nn.Module) -> list[Any]:
    kind = next((k for k in _OPTIONS if isinstance(module, k)), type(module))
    options = {key: getattr(module, key) for key in _OPTIONS.get(kind, ())}
    return [name, kind.__name__, options | ({"bias": False} if kind is nn.Conv2d and module.bias is None else {})]


def state(net: Network, params: Mapping[str, Tensor], scaling: Scaling) -> Params:
    """The ``state_dict`` of that module: a subnetwork's parameters under the module's names.

    ``scaling``: how the expert reads its inputs. Its factor is in the first layer's weights, whose bits are others
    where it is not 1; where inputs are standardised, or the description has a ``factor``, it is there, and no bit
    changes. Counters of batches, which nothing reads, are zero.
    """
    scale = 1.0 if scaling.standardised or (isinstance(net, ConvNet) and net.own) else scaling.factor
    names = net.names if isinstance(net, ConvNet) else {name: name for name in net.layers}
    first = f"{net.layers[0]}.weight"
    found = _standardising(scaling, params[first])
    for key, value in params.items():
        layer, _, kind = key.rpartition(".")
        found[f"{names[layer]}.{kind}"] = value * scale if key == first and scale != 1.0 else value
        if kind == "running_var":
            found[f"{names[layer]}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return found


def _standardising(scaling: Scaling, like: Tensor) -> Params:
    """Parameters of the layers that do what :meth:`Scaling.apply` does without the bound: `x f − c`, then `x / s`."""
    if scaling.centre is None or scaling.spread is None:
        return {}
    ones, zeros = torch.ones_like(scaling.centre).to(like), torch.zeros_like(scaling.centre).to(like)
    own = ((ones * scaling.factor, -scaling.centre.to(like)), (1.0 / scaling.spread.to(like), zeros))
    found: Params = {}
    for name, (weight, bias) in zip(STANDARDISING, own, strict=True):
        found |= {f"{name}.weight": weight, f"{name}.bias": bias}
        found |= {f"{name}.running_mean": zeros.clone(), f"{name}.running_var": ones.clone()}
        found[f"{name}.num_batches_tracked"] = torch.zeros((), dtype=torch.long)
    return found


def named(net: Network, keys: Sequence[str]) -> list[str]:
    """The module's names of a network's parameters."""
    names = net.names if isinstance(net, ConvNet) else {name: name for name in net.layers}
    return [f"{names[layer]}.{kind}" for layer, _, kind in (key.rpartition(".") for key in keys)]


def module(network: Described, values: Mapping[str, Tensor]) -> nn.Module:
    """The module of a description with these parameters, in eval mode. RuntimeError when they are not its own."""
    if "layers" in network:
        with modules.EmptyOnMeta():
            net: nn.Module = nn.Sequential(
                OrderedDict((name, getattr(nn, kind)(**options)) for name, kind, options in network["layers"])
            )
    elif "clmoe" in network:
        net = modules.build(network["clmoe"], tuple(network["shape"]), network["classes"])
        vars(net)["factor"] = network["factor"]
    else:
        net = modules.torchvision_net(network["torchvision"], num_classes=network["options"]["num_classes"])
    given = OrderedDict(values)
    # MNASNet takes what does not say its version for that of an old one.
    given._metadata = net.state_dict()._metadata  # type: ignore[attr-defined]
    net.load_state_dict(given, strict=True, assign=True)
    return net.train(False)


class Answers(nn.Module):
    """Logits [N, C] and probabilities [N, C] of a module; ``colour``: grey images are repeated to three channels."""

    def __init__(self, net: nn.Module, colour: bool) -> None:
        super().__init__()
        self.net, self.colour = net, colour

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Of images [N, *input_shape]."""
        logits = self.net(images.expand(-1, 3, -1, -1) if self.colour else images)
        return logits, logits.softmax(dim=1)
