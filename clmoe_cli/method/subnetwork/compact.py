"""A subnetwork without what it does not use: fewer inputs and hidden units, the same function.

A task selects a few percent of an expert's weights, so that most of a dense product multiplies zeros. What no later
layer reads is left out, and a unit that reads nothing is a constant, which goes into the next layer's biases. Answers
and training steps are the same up to the order of summation; what is certified bit for bit is computed from the whole
network.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

import torch
from torch import Tensor

from clmoe_cli.method import reproducible
from clmoe_cli.method.images import Images, Labelled
from clmoe_cli.method.networks.base import Network, Params
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork.augmentation import Augment
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores
from clmoe_cli.runtime.events import OnDone


@dataclass(frozen=True)
class Compact:
    """A network and its parameters, and where these are in the whole.

    ``inputs``: positions of the numbers of an image that it reads, None for all. ``places``: of each parameter the
    positions of its rows and, for a weight, columns; ``added``: to biases, by units that are constants. Both are empty
    where it is the whole network.
    """

    net: Network
    params: Params
    inputs: Tensor | None = None
    places: dict[str, tuple[Tensor, ...]] = field(default_factory=dict)
    added: Params = field(default_factory=dict)

    def logits(self, x: Tensor) -> Tensor:
        """Logits [N, C] float64 of images [N, D], the same whatever other images there are."""
        return reproducible.logits(self.net, self.params, x if self.inputs is None else x.index_select(1, self.inputs))

    def images(self, data: Labelled) -> Labelled:
        """The same images [N, D], of each the d numbers that are read, [N, d]; images not yet read remain so."""
        if (inputs := self.inputs) is None:
            return data
        if isinstance(data.x, Images):
            read = data.x.read
            return Labelled(Images(lambda rows: read(rows)[:, inputs], data.x.rows, len(inputs)), data.y)
        return Labelled(data.x[:, inputs], data.y)

    def after(self, augment: Augment) -> Augment:
        """What makes of whole images [n, D] changed copies of the numbers that are read, [n, d]."""
        if (inputs := self.inputs) is None:
            return augment
        return lambda x, own, generator: augment(x, own, generator).index_select(1, inputs.to(x.device))

    def of(self, values: Mapping[str, Tensor]) -> Params:
        """The part [o, i] of whole weights or masks [out, in], or [o] of biases [out], that is here."""
        return {name: _part(value, self.places.get(name, ())) for name, value in values.items()}

    def put(self, found: Mapping[str, Tensor], whole: Mapping[str, Tensor]) -> Params:
        """The whole parameters with those found here in their places; the others stay as they are, to the bit."""
        if not self.places:
            return dict(found)
        result = {name: value.clone() for name, value in whole.items()}
        for name, value in found.items():
            index = torch.meshgrid(*self.places[name], indexing="ij")
            result[name][index] = value - self.added[name] if name in self.added else value
        return result


def compacted(
    net: Network, params: Mapping[str, Tensor], living: Mapping[str, Tensor] | None = None, folded: bool = True
) -> Compact:
    """The compact form of a perceptron; any other network is left as it is.

    ``living``: masks of shared weights that may be other than zero, all of a task's own being so; by default those that
    are. ``folded``: whether units that are constants go into biases; else they stay, and so do their gradients.
    """
    if not isinstance(net, MLP):
        return Compact(net, dict(params))
    alive = [_alive(f"{name}.weight", params, living) for name in net.layers]
    biases = {f"{name}.bias": params[f"{name}.bias"].cpu().double() for name in net.layers}
    added: Params = {}
    for (name, after), (own, reading) in zip(pairwise(net.layers), pairwise(alive), strict=True):
        constant = ~own.any(dim=1) & folded
        weights = params[f"{after}.weight"].cpu()[:, constant].double()
        added[f"{after}.bias"] = weights @ biases[f"{name}.bias"][constant].relu()
        biases[f"{after}.bias"] = biases[f"{after}.bias"] + added[f"{after}.bias"]
        reading[:, constant] = False
    # From the last layer backwards: a unit that nothing reads needs no inputs.
    rows = torch.arange(len(alive[-1]))
    places: dict[str, tuple[Tensor, ...]] = {}
    for name, own in zip(reversed(net.layers), reversed(alive), strict=True):
        columns = own[rows].any(dim=0).nonzero()[:, 0]
        places[f"{name}.weight"], places[f"{name}.bias"] = (rows, columns), (rows,)
        rows = columns
    like = params["output.weight"]
    here = {name: tuple(axis.to(like.device) for axis in places[name]) for name in params}
    biases, added = ({name: value.to(like) for name, value in some.items()} for some in (biases, added))
    small = MLP(len(rows), tuple(len(places[f"{name}.bias"][0]) for name in net.layers[:-1]))
    values = {name: _part(biases.get(name, value), here[name]) for name, value in params.items()}
    return Compact(small, values, rows, here, {name: _part(value, here[name]) for name, value in added.items()})


def inside(net: Network, params: Mapping[str, Tensor], trainable: Mapping[str, Tensor]) -> Compact:
    """What a step inside a mask computes with: shared weights that are ``trainable`` or other than zero.

    Units that read nothing keep what they add while the others train; the biases that they add to are trained.
    """
    return _whole_if_empty(compacted(net, params, _living(params, trainable)), net, params)


def scores_inside(
    net: Network, params: Params, mask: Mapping[str, Tensor], data: Labelled, on_done: OnDone = lambda done: None
) -> Params:
    """:func:`gradient_scores` inside a mask, at the cost of what the mask leaves.

    Outside it shared weights are zero, and some of their scores are left out: zero in place of what they are.
    """
    small = _whole_if_empty(compacted(net, params, _living(params, mask), folded=False), net, params)
    here = small.images(data)
    found = gradient_scores(small.net, small.params, here.x, here.y, on_done=on_done)
    return small.put(found, {name: torch.zeros_like(value) for name, value in params.items()})


def _living(params: Mapping[str, Tensor], mask: Mapping[str, Tensor]) -> Params:
    return {name: own | (params[name] != 0) for name, own in mask.items()}


def _whole_if_empty(small: Compact, net: Network, params: Mapping[str, Tensor]) -> Compact:
    empty = any(value.numel() == 0 for value in small.params.values())
    return Compact(net, dict(params)) if empty else small


def _alive(name: str, params: Mapping[str, Tensor], living: Mapping[str, Tensor] | None) -> Tensor:
    if living is None:
        return (params[name] != 0).cpu()
    return living[name].cpu().clone() if name in living else torch.ones(params[name].shape, dtype=torch.bool)


def _part(value: Tensor, places: tuple[Tensor, ...]) -> Tensor:
    for axis, index in enumerate(places):
        value = value.index_select(axis, index)
    return value.contiguous()
