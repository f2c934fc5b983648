"""An eye that is a network: the first task's subnetwork, frozen, which then looks at the images of every task.

First-session adaptation (Panos et al., "First Session Adaptation", 2023; McDonnell et al., "RanPAC", 2023): what the
first task teaches a network serves all later ones as features, and never changes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor

from clmoe_cli.method.networks.base import Network, Params

SCALE = 1.0
"""Length of the eye's part beside the fixed features, whose two parts have unit length."""
HEAD = ("output.weight", "output.bias")


@dataclass(frozen=True, eq=False)
class NetworkEye:
    """``net``: of the architecture ``arch``; ``params``: a subnetwork's, all but the output's, on its base if any."""

    arch: str
    net: Network
    params: Params

    @staticmethod
    def of(arch: str, net: Network, params: Mapping[str, Tensor]) -> NetworkEye:
        """A learned subnetwork [on the CPU] as an eye."""
        return NetworkEye(arch, net, {name: value for name, value in params.items() if name not in HEAD})

    @cached_property
    def width(self) -> int:
        """Number of features."""
        return len(self._whole["output.weight"][0])

    def look(self, x: Tensor) -> Tensor:
        """Features [N, width] float64 of images [N, C, H, W] in the units of the first task's expert, of length
        ``SCALE``: roots of what the output reads, whose sign is kept. The last bits hang on N and on nothing else."""
        like = next(iter(self.params.values()))
        with torch.no_grad():
            read = self.net.trace(self._whole, x.flatten(1).to(like)).inputs["output"].double()
        return SCALE * F.normalize(read.abs().sqrt() * read.sign())

    @cached_property
    def _whole(self) -> Params:
        """The parameters with an output of one class, which is not looked at."""
        head = self.net.initial_owned(1, torch.Generator())
        return self.net.ordered(self.params | {name: torch.zeros_like(head[name]) for name in HEAD})
