"""Data-parallel training: every process goes through the same steps, and computes a share of each batch.

The rule of this module: what decides anything is the same in all processes. Gradients, scores and the statistics of
normalisations are sums over all of them (``torch.distributed``, whose process group is the only state, but within
:func:`apart`), random numbers are drawn for the whole batch everywhere, and figures that decide are those of process 0.
A single process passes through unchanged, to the bit.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

_apart = False


def world() -> int:
    """How many processes work together."""
    return dist.get_world_size() if not _apart and dist.is_available() and dist.is_initialized() else 1


@contextmanager
def apart() -> Iterator[None]:
    """Within the block this process computes as if it were alone; what the others do is none of its business."""
    global _apart
    _apart = True
    try:
        yield
    finally:
        _apart = False


def several() -> bool:
    """Whether there are others to work with."""
    return world() > 1


def rank() -> int:
    """Which of them this is, from 0."""
    return dist.get_rank() if world() > 1 else 0


def leads() -> bool:
    """Whether this is the process that writes: the only one, or process 0."""
    return rank() == 0


@dataclass(frozen=True)
class Team:
    """``size`` processes that go through the same images and add up what they find; this one is at ``place``."""

    size: int
    place: int

    @staticmethod
    def of(alone: bool) -> Team:
        """All of a run, or this process by itself (``alone``)."""
        return Team(1, 0) if alone else Team(world(), rank())

    def starts(self, images: int, most: int) -> tuple[range, int]:
        """Where this one's parts of so many images start, and the length of a part: at most ``most``, and so that each
        process has one."""
        length = min(most, -(-images // self.size))
        return range(0, images, length)[self.place :: self.size], length

    def summed(self, tensors: Iterable[Tensor]) -> None:
        """Adds each tensor up over the team, in place."""
        if self.size > 1:
            summed(tensors)


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
        return torch.rand((self.whole, *shape[1:]), generator=generator, device=generator.device)[self.rows]


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


def alike(text: bytes) -> bool:
    """Whether all processes say the same; the answer is the same in all of them."""
    mine = torch.tensor([list(hashlib.sha256(text).digest())])
    return bool((gathered(mine, [1] * world()) == mine).all())


def gathered(tensor: Tensor, sizes: Sequence[int]) -> Tensor:
    """The rows of all processes, in their order; ``sizes``: how many each of them has."""
    if world() == 1:
        return tensor
    parts = [tensor.new_empty((max(sizes), *tensor.shape[1:])) for _ in sizes]
    padded = torch.cat([tensor, tensor.new_zeros((max(sizes) - len(tensor), *tensor.shape[1:]))])
    with _reaching():
        dist.all_gather(parts, padded)
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Normalised(torch.autograd.Function):
    """Batch normalisation by the statistics of all processes' images, one message each way.

    Means and variances are brought together as Chan, Golub & LeVeque (1979) do, so that nothing cancels; the way back
    needs two sums over all images (Ioffe & Szegedy 2015), the rest is the processor's own kernels.
    """

    @staticmethod
    def forward(
        context: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x [n, C, H, W], n ≥ 0 → normalised, mean [C], variance [C], how many numbers of a channel there are."""
        own = x.new_tensor([x.numel() // x.shape[1]])
        middle, spread = torch.batch_norm_update_stats(x, None, None, 0.0) if len(x) else x.new_zeros(2, x.shape[1])
        found = gathered(torch.cat([middle, spread, own])[None], [1] * world())
        middles, spreads, counts = found.split([x.shape[1], x.shape[1], 1], dim=1)
        count = counts.sum()
        mean = (counts * middles).sum(dim=0) / count
        variance = (counts * (spreads + (middles - mean).square())).sum(dim=0) / count
        context.save_for_backward(x, weight, mean, variance, count)
        context.eps = eps
        context.mark_non_differentiable(mean, variance, count)
        result = F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps) if len(x) else x.clone()
        return result, mean, variance, count

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x, weight, mean, variance, count = context.saved_tensors
        # As if mean and variance were constants; then what they depend on.
        result, scale, shift = gradients[0], torch.zeros_like(weight), torch.zeros_like(weight)
        if len(x):  # the kernel divides by the size
            result, scale, shift = torch.ops.aten.native_batch_norm_backward(
                gradients[0], x, weight, mean, variance, None, None, False, context.eps, [True, True, True]
            )
        total_scale, total_shift = scale.clone(), shift.clone()
        summed([total_scale, total_shift])
        steep = (variance + context.eps).rsqrt()
        slope = weight * steep.square() * total_scale / count
        level = weight * steep * total_shift / count - slope * mean
        return result - torch.addcmul(level[:, None, None], x, slope[:, None, None]), scale, shift, None


def normalise_together(module: nn.Module) -> None:
    """Makes the batch norms of a module, while training, use the statistics of the whole batch.

    Each process must come to them with its own images of that batch; none at all is fine. (torch's own SyncBatchNorm
    does so on graphics processors only.)
    """
    for norm in module.modules():
        if world() > 1 and isinstance(norm, nn.BatchNorm2d):
            vars(norm)["forward"] = _global_norm(norm)


def _global_norm(norm: nn.BatchNorm2d) -> Callable[[Tensor], Tensor]:
    normalised: Callable[..., tuple[Tensor, Tensor, Tensor, Tensor]] = _Normalised.apply

    def forward(x: Tensor) -> Tensor:
        mean, variance = norm.running_mean, norm.running_var
        assert mean is not None
        assert variance is not None
        assert norm.momentum is not None
        if not norm.training:
            return F.batch_norm(x, mean, variance, norm.weight, norm.bias, False, 0.0, norm.eps)
        # In whole precision, as torch's own: sums of thousands of halves would not be even their counts.
        half, x = x.dtype, x.to(mean.dtype)
        result, middle, spread, count = normalised(x, norm.weight, norm.bias, norm.eps)
        with torch.no_grad():
            mean.lerp_(middle, norm.momentum)
            variance.lerp_(spread * count / (count - 1).clamp_min(1), norm.momentum)
        return result.to(half)

    return forward
