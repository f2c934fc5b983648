"""An eye that is a network: the first task's subnetwork, frozen, or a pretrained one, looks at every task's images.

First-session adaptation (Panos et al., "First Session Adaptation", 2023; McDonnell et al., "RanPAC", 2023): what the
first task teaches a network serves all later ones as features, and never changes again. What an earlier layer sees
helps to tell classes apart that the first task did not have. A pretrained network that experts start from looks as it
is, whatever was learned first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method.networks.base import Network, Params

EARLY, LAST = 0.7, 0.35
"""Lengths of the eye's two parts beside the fixed features, whose two parts have unit length."""
HEAD = ("output.weight", "output.bias")


@dataclass(frozen=True, eq=False)
class NetworkEye:
    """``net``: of the architecture ``arch``; ``params``: a subnetwork's, all but the output's, on its base if any.

    ``adapted``: whether a task has learned them.
    """

    arch: str
    net: Network
    params: Params
    adapted: bool = True

    @staticmethod
    def of(arch: str, net: Network, params: Mapping[str, Tensor]) -> NetworkEye:
        """A learned subnetwork as an eye; all is on the CPU."""
        return NetworkEye(arch, net, {name: value for name, value in params.items() if name not in HEAD})

    @staticmethod
    def pretrained(arch: str, net: Network, own: Mapping[str, Tensor]) -> NetworkEye:
        """The pretrained network that ``net`` stands on, with its own parameters, as an eye; all is on the CPU."""
        nothing = {name: torch.zeros(shape) for name, shape in net.shared_shapes().items()}
        return replace(NetworkEye.of(arch, net, nothing | {**own}), adapted=False)

    @cached_property
    def width(self) -> int:
        """Number of features."""
        return self.look(torch.zeros(1, self.net.input_size)).shape[1]

    def look(self, x: Tensor) -> Tensor:
        """Features [N, width] float64 of images [N, C, H, W] in the units of the first task's expert.

        First what the output reads, of length ``LAST``. Then, of length ``EARLY``, the means over their places of the
        last maps that a layer reads and that have more places than the smallest ones; there may be none. Of both the
        roots, with their signs. The last bits hang on N and on nothing else.
        """
        like = next(iter(self.params.values()))
        with torch.no_grad():
            done = self.net.trace(self._whole, x.flatten(1).to(like))
        reads = [done.inputs[name] for name in self.net.reading if done.inputs[name].ndim == 4]
        fewest = min((maps.shape[2:].numel() for maps in done.outputs.values() if maps.ndim == 4), default=0)
        early = [maps.double().mean(dim=(2, 3)) for maps in reads if maps.shape[2:].numel() > fewest][-1:]
        parts = [LAST * _rooted(done.inputs["output"].double()), *(EARLY * _rooted(maps) for maps in early)]
        return torch.cat(parts, dim=1)

    @cached_property
    def _whole(self) -> Params:
        """The parameters with an output of one class, which is not looked at."""
        head = self.net.initial_owned(1, torch.Generator())
        return self.net.ordered(self.params | {name: torch.zeros_like(head[name]) for name in HEAD})


def _rooted(values: Tensor) -> Tensor:
    return F.normalize(values.abs().sqrt() * values.sign())
