"""Data-parallel training: every process goes through the same steps, and computes a share of each batch.

The rule of this module: what decides anything is the same in all processes. Gradients, scores and the statistics of
normalisations are sums over all of them (``torch.distributed``, whose process group is the only state), random numbers
are drawn for the whole batch everywhere, and figures that decide are those of process 0. A single process
passes through unchanged, to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


@dataclass(frozen=True)
class Share:
    """Which ``rows`` of a batch of ``whole`` images this process computes."""

    whole: int
    rows: slice

    @staticmethod
    def of(whole: int) -> Share:
        """An even, contiguous share."""
        n, i = world(), rank()
        return Share(whole, slice(whole * i // n, whole * (i + 1) // n))

    def random(self, shape: Sequence[int], generator: torch.Generator) -> Tensor:
        """Uniform numbers for own rows, ``shape`` [n, …], out of those that are drawn for the whole batch."""
        return torch.rand((self.whole, *shape[1:]), generator=generator)[self.rows]


class Lost(Exception):
    """Another process has ended."""


@contextmanager
def _reaching() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # which is all that torch says of a closed connection
        raise Lost(" ".join(str(error).split())) from error


def meet() -> None:
    """Waits until every process is here."""
    summed([torch.zeros(1)])  # not a barrier: that would choose a device


def summed(tensors: Iterable[Tensor | None]) -> None:
    """Adds each tensor up over all processes, in place and in one message."""
    found = [tensor for tensor in tensors if tensor is not None]
    if world() == 1 or not found:
        return
    flat = torch.cat([tensor.reshape(-1) for tensor in found])
    with _reaching():
        dist.all_reduce(flat)
    for tensor, part in zip(found, flat.split([tensor.numel() for tensor in found]), strict=True):
        tensor.copy_(part.view_as(tensor))


def agreed(tensor: Tensor) -> Tensor:
    """Process 0's values: rounding differs between machines, and decisions must not."""
    if world() > 1:
        with _reaching():
            dist.broadcast(tensor, 0)
    return tensor


def gathered(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, in their order; ``sizes``: how many each of them has."""
    if world() == 1:
        return tensor
    parts = [torch.empty((max(sizes), *tensor.shape[1:]), dtype=tensor.dtype) for _ in sizes]
    padded = torch.cat([tensor, tensor.new_zeros((max(sizes) - len(tensor), *tensor.shape[1:]))])
    with _reaching():
        dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Summed(torch.autograd.Function):
    """The sum over all processes, and of what they say of it on the way back."""

    @staticmethod
    def forward(context: Any, own: Tensor) -> Tensor:
        total = own.clone()
        summed([total])
        return total

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].clone()
        summed([total])
        return total


def normalise_together(module: nn.Module) -> None:
    """Makes the batch norms of a module, while training, use the statistics of the whole batch.

    Each process must come to them with its own images of that batch; none at all is fine. (torch's own SyncBatchNorm
    does so on graphics processors only.)
    """
    for norm in module.modules():
        if world() > 1 and isinstance(norm, nn.BatchNorm2d):
            vars(norm)["forward"] = _global_norm(norm)


def _global_norm(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    total: Callable[[Tensor], Tensor] = _Summed.apply

    def forward(x: Tensor) -> Tensor:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        assert norm.momentum is not None
        if not norm.training:
            return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
        # In whole precision, as torch's own: sums of thousands of halves would not be even their counts.
        half, x = x.dtype, x.to(mean.dtype)
        # The mean first, then the squares around it: sums of squares alone would cancel.
        sums = x.sum(dim=(0, 2, 3))
        found = total(torch.cat([sums, sums.new_full((1,), x.numel() // x.shape[1])]))
        count = found[-1].detach()
        own = found[:-1] / count
        centred = x - own[:, None, None]
        spread = total(centred.square().sum(dim=(0, 2, 3))) / count
        with torch.no_grad():
            mean.lerp_(own.to(mean.dtype), norm.momentum)
            variance.lerp_((spread * count / (count - 1).clamp_min(1)).to(variance.dtype), norm.momentum)
        scale = norm.weight * (spread + norm.eps).rsqrt()
        result: Tensor = centred * scale[:, None, None] + norm.bias[:, None, None]
        return result.to(half)

    return forward
