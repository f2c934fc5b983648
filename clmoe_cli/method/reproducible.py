"""The same answer whatever surrounds an image (docs/method.md).

A sum of float32 products has other last bits with another number of images in the call, another place among them,
another number of threads. p-values are steps, and ties are common: an image may be one that calibrated its task. What
decides is therefore computed here, at learning and at answering alike, by one rule:

- products and sums in float64, then rounded to float32 (:func:`settled`), so that what is equal up to rounding is
  equal, and what was stored of an image is met exactly by the same image;
- convolutions, which in float64 would take three to five times as long, in float32 and in blocks of a fixed number of
  images, the last one filled up (:func:`in_blocks`): kernels see the same shapes, and sum each image by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor

from clmoe_cli.method.images import Rows
from clmoe_cli.method.networks.base import Network, Params, device_of

T = TypeVar("T")


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums within the block are taken by one thread, so that their last bits are the same however many there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def settled(values: Tensor) -> Tensor:
    """The same values rounded to float32, on the CPU; float64, so that what follows is computed in it."""
    return values.cpu().float().double()


def at_least(values: Tensor, asked: Tensor) -> Tensor:
    """How many of the rising ``values`` [n] are as large as each of ``asked`` [N], up to rounding; [N] float64."""
    return len(values) - torch.searchsorted(values.float().contiguous(), asked.float().contiguous()).double()


def in_blocks(x: Tensor, size: int, of: Callable[[Tensor], tuple[Tensor, ...]]) -> tuple[Tensor, ...]:
    """What ``of`` makes of images [N, …], N ≥ 1: tensors [N, …], from calls with exactly ``size`` images each."""
    found = []
    for part in x.split(size):
        missing = size - len(part)
        whole = torch.cat([part, part.new_zeros((missing, *part.shape[1:]))]) if missing else part
        found.append(tuple(value[: len(part)] for value in of(whole)))
    return tuple(torch.cat(values) for values in zip(*found, strict=True))


def exact(net: Network, params: Mapping[str, Tensor]) -> Params:
    """The parameters in the precision in which a pass decides; where there is no float64 (``mps``) as they are."""
    if net.block is not None or device_of(params).type == "mps":
        return dict(params)
    return {name: value.double() for name, value in params.items()}


def read(net: Network, params: Mapping[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [N, C] and hidden activations [N, d] of images [N, D], settled, without gradients.

    ``params``: as :func:`exact` has them.
    """
    like = next(iter(params.values()))

    def of(part: Tensor) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            done = net.trace(params, part.to(like))
        return settled(done.logits), settled(done.hidden(net.reading))

    logits, hidden = of(x) if net.block is None else in_blocks(x, net.block, of)
    return logits, hidden


def logits(net: Network, params: Mapping[str, Tensor], x: Rows) -> Tensor:
    """Settled logits [N, C] float64 on the CPU without gradients, in chunks of images so that memory stays bounded."""
    values = exact(net, params)
    return torch.cat([read(net, values, part)[0] for part in x.split(net.chunk)])
