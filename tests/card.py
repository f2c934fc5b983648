"""An accelerator that is not there: a processor's tensors that go about as if they lay on another device.

What real ones refuse is refused here: operations on tensors of two devices, arrays of what is not in memory and, as
on ``mps``, float64 and adaptive pooling into uneven windows. Everything else has the processor's bits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

DEVICE = torch.device("mps")
# Whatever the device is: moving, and choosing by an index in memory.
MOVING = (Tensor.to, Tensor.copy_, Tensor.__getitem__)


class OnCard(Tensor):
    """A tensor of the card."""


class Card(TorchFunctionMode):
    """While active, ``.to("mps")`` works; ``seen`` is how many tensors went to the card."""

    seen = 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(tensor, OnCard) for tensor in tensors)
        with torch._C.DisableTorchFunctionSubclass():
            if func == Tensor.device.__get__:
                return DEVICE if here else func(*args)
            if func is Tensor.numpy and here:
                raise TypeError("can't convert mps device type tensor to numpy")
            if here and func not in MOVING:
                strange = [t for t in tensors if not isinstance(t, OnCard) and t.ndim > 0 and not t.is_meta]
                if strange:
                    raise RuntimeError(f"{func.__name__}: tensors on two devices, {[tuple(t.shape) for t in tensors]}")
            if func is Tensor.__getitem__ and not isinstance(args[0], OnCard) and here:
                raise RuntimeError("indices should be on the same device as the indexed tensor (cpu)")
            if func is F.adaptive_avg_pool2d and here:
                _check_windows(*args, **kwargs)
            args, kwargs, there = _destination(func, args, kwargs, here)
            result = func(*args, **kwargs)
        return self._wrapped(result) if there else _plain(result)

    def _wrapped(self, result: Any) -> Any:
        def wrap(tensor: Tensor) -> Tensor:
            if tensor.dtype == torch.float64:
                raise TypeError("MPS has no float64")
            Card.seen += 1
            return tensor if isinstance(tensor, OnCard) else tensor.as_subclass(OnCard)

        with torch._C.DisableTorchFunctionSubclass():
            return tree_map_only(Tensor, wrap, result)


def _plain(result: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return tree_map_only(OnCard, lambda tensor: tensor.as_subclass(Tensor), result)


def _destination(
    func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], here: bool
) -> tuple[tuple[Any, ...], dict[str, Any], bool]:
    """The arguments without the card in them, and whether the result lies there."""
    if func is Tensor.cpu:
        return args, kwargs, False
    if func is Tensor.copy_:
        return args, kwargs, isinstance(args[0], OnCard)
    if func is Tensor.to and len(args) > 1 and isinstance(args[1], Tensor):
        return (args[0], args[1].dtype, *args[2:]), kwargs, isinstance(args[1], OnCard)
    there = here
    moved = []
    for value in args:
        device = torch.device(value) if func is Tensor.to and isinstance(value, str) else value
        if isinstance(device, torch.device):
            there, value = device == DEVICE, torch.device("cpu") if device == DEVICE else device
        moved.append(value)
    if kwargs.get("device") is not None:
        there = torch.device(kwargs["device"]) == DEVICE
        kwargs["device"] = "cpu" if there else kwargs["device"]
    return tuple(moved), kwargs, there


def _check_windows(x: Tensor, size: Any) -> None:
    sizes = size if isinstance(size, tuple | list) else (size, size)
    if any(side % windows for side, windows in zip(x.shape[2:], sizes, strict=True)):
        raise RuntimeError("Adaptive pool MPS: input sizes must be divisible by output sizes")
