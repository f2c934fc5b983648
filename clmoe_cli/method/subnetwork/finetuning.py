"""Training inside a mask, on the compact form of what it leaves: a step costs what the subnetwork costs.

Paper, "Freeze"; method section 4. What a mask leaves out is zero and does not move, so that nothing is lost by not
multiplying with it; frozen entries come back as they went in, to the bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from torch import Tensor

from clmoe_cli.method.networks.base import Params
from clmoe_cli.method.subnetwork.compact import inside
from clmoe_cli.method.subnetwork.training import Annealing, Quality, Run, anneal


def finetune(
    run: Run, params: Mapping[str, Tensor], trainable: Mapping[str, Tensor], how: Annealing
) -> tuple[Params, Quality]:
    """Trains like :func:`clmoe_cli.method.subnetwork.training.anneal`.

    ``params``: of the whole network, weights [out, in] that are zero outside the mask; ``trainable``: masks of the same
    shapes, the entries that may move; images [N, D] as the whole network reads them. The result is the whole network's:
    a task's own parameters and the trainable weights, in their places; all other bits are as they were.
    """
    small = inside(run.net, params, trainable)
    inner = replace(run, net=small.net, training=small.images(run.training), tuning=small.images(run.tuning))
    if run.augment is not None:  # pictures are changed as a whole
        inner = replace(inner, training=run.training, augment=small.after(run.augment))
    found, reached = anneal(inner, small.params, small.of(trainable), how)
    return small.put(found, params), reached
