"""Which known tasks a batch is compared with, so that a store with 100 tasks decides as fast as one with ten.

The solved gate's nearest classes vote (:func:`voted`); the gate takes no notice of brightness. In a store without a
gate a task is known by the means of its classes under a fixed random projection to ``WIDTH`` numbers, which keeps
distances (Johnson & Lindenstrauss 1984) and is small enough for the manifest: no task's own file is read. The
shortlist only says what is worth a comparison; it decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from clmoe_cli.method import privacy
from clmoe_cli.method.images import Labelled, Rows
from clmoe_cli.runtime import limits

WIDTH = 64
LIMIT = 10
"""Tasks compared at most."""
CHUNK = limits.PASS_IMAGES


def project(x: Rows) -> Tensor:
    """Images [N, D] under the projection that all stores share, [N, WIDTH]."""
    size = x[:1].shape[1]
    directions = torch.randn((size, WIDTH), generator=torch.Generator().manual_seed(0))
    return torch.cat([part @ directions / math.sqrt(WIDTH) for part in x.split(CHUNK)])


def sketch(data: Labelled, classes: int) -> Tensor:
    """Means of the classes of projected images, [C, WIDTH], with the noise that is on their means elsewhere.

    The numbers that are drawn are the same, so that the noise is the projection of the other.
    """
    values = project(data.x).double()
    means = privacy.grouped(values, data.y, classes)[0]
    return (means + privacy.one_more(values, data.y, classes, privacy.drawing(data.x))).float()


def voted(tasks: Tensor, count: int, limit: int = LIMIT) -> list[int]:
    """Positions of at most ``limit`` of ``count`` tasks, in their order, by what the gate's shortlist holds.

    ``tasks`` [N, L]: whose classes are nearest to each image, the nearest first. An image gives its nearest class one
    vote, each next one half as much, so that all tasks of a mixed batch are heard.
    """
    weight = 0.5 ** torch.arange(tasks.shape[1], dtype=torch.float64)
    votes = torch.zeros(count, dtype=torch.float64).index_add_(0, tasks.flatten(), weight.repeat(len(tasks)))
    return sorted(votes.topk(min(limit, count)).indices.tolist())


def shortlist(sketches: Sequence[Tensor], inputs: Sequence[Rows], limit: int = LIMIT) -> list[int]:
    """Positions of at most ``limit`` tasks, in their given order.

    ``sketches``: each task's [C, WIDTH]; ``inputs``: the same images [N, D] as each task's expert reads them, one
    object for tasks that read them alike. Tasks to which most images are nearest come first (a batch
    may hold several tasks), then those with the least mean distance.
    """
    if len(sketches) <= limit:
        return list(range(len(sketches)))
    nearest = torch.full((len(inputs[0]), len(sketches)), math.inf)
    for x in {id(x): x for x in inputs}.values():
        alike = [i for i, other in enumerate(inputs) if other is x]
        owner = torch.tensor(alike).repeat_interleave(torch.tensor([len(sketches[i]) for i in alike]))
        distances = torch.cdist(project(x), torch.cat([sketches[i] for i in alike]))
        nearest.scatter_reduce_(1, owner.expand_as(distances), distances, "amin")
    votes = torch.bincount(nearest.argmin(dim=1), minlength=len(sketches))
    mean = nearest.mean(dim=0)
    # Votes are whole numbers: the mean distance, scaled below one, only breaks their ties.
    ranking = votes - mean / mean.max().clamp_min(1e-12) / 2
    return sorted(ranking.topk(limit).indices.tolist())
