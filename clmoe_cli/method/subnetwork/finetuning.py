"""Training inside a mask, on the compact form of what it leaves: a step costs what the subnetwork costs.

Paper, "Freeze"; method section 4. What a mask leaves out is zero and does not move, so that nothing is lost by not
multiplying with it; frozen entries come back as they went in, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.networks.base import Network, Params
from clmoe_cli.method.subnetwork.compact import inside
from clmoe_cli.method.subnetwork.training import Quality, Schedule, anneal


def consolidate(
    net: Network,
    params: Mapping[str, Tensor],
    trainable: Mapping[str, Tensor],
    data: Labelled,
    held_out: Labelled,
    schedule: Schedule,
    generator: torch.Generator,
    **how: Any,
) -> tuple[Params, Quality]:
    """Trains like :func:`clmoe_cli.method.subnetwork.training.anneal`, whose other arguments are ``how``.

    ``params``: of the whole network, weights [out, in] that are zero outside the mask; ``trainable``: masks of the same
    shapes, the entries that may move; images [N, D] as the whole network reads them. The result is the whole network's:
    a task's own parameters and the trainable weights, in their places; all other bits are as they were.
    """
    small = inside(net, params, trainable)
    found, reached = anneal(
        small.net,
        small.params,
        small.of(trainable),
        small.images(data),
        small.images(held_out),
        schedule,
        generator,
        **how,
    )
    return small.put(found, params), reached
