"""What a picture goes through before an expert reads it: torchvision's transforms, chosen by an :class:`InputRecord`.

Layout: ``[n, C, H, W]`` uint8 or float32, the same out as in. Pictures of a folder and images of an npz go through the
same kernels, so that one expert reads both. torch is imported at the first use.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np

from clmoe_cli.runtime import limits
from store_schema.records import InputRecord

Array: TypeAlias = np.ndarray[Any, Any]

MOST = limits.RESIZED_VALUES
_AT_ONCE = limits.TRANSFORMED_VALUES


def resolved(record: InputRecord, channels: int) -> InputRecord:
    """The record with its channels said, where the images themselves decide (1 or 3; others stay as they are)."""
    if record.channels is not None or channels not in (1, 3):
        return record
    return record.model_copy(update={"channels": channels})


def shape_after(shape: tuple[int, ...], record: InputRecord | None) -> tuple[int, ...]:
    """Shape of one image ``(C, H, W)`` after its transform. Raises ValueError for what cannot go through it."""
    if record is None or (record.image_size is None and record.channels is None):
        return shape
    if len(shape) != 3:
        raise ValueError("vectors cannot be resized or made grey or coloured")
    channels, height, width = shape
    if record.image_size is not None:
        if record.image_size**2 * max(height, width) > MOST * min(height, width):
            raise ValueError("too long and narrow to be resized")
        height = width = record.image_size
    return record.channels or channels, height, width


def transformed(images: Array, record: InputRecord | None) -> Iterator[Array]:
    """The images ``[n, C, H, W]`` after their transform, a part at a time, so that memory stays bounded.

    Raises ValueError for what cannot go through it.
    """
    shape = images.shape[1:]
    after = shape_after(shape, record)
    if record is None or len(shape) != 3 or (record.image_size is None and after[0] == shape[0]):
        yield images
        return
    import torch

    size, (channels, height, width) = record.image_size, shape
    between = 0 if size is None else size * size * max(height, width) // min(height, width) + 1
    step = max(1, _AT_ONCE // (max(after[0], channels) * max(height * width, between)))
    change = _composed(size, record.channels)
    for start in range(0, len(images), step):
        x = torch.from_numpy(images[start : start + step])
        # A fourth channel is opacity: dropped, as torchvision's own loader of folders does.
        yield np.ascontiguousarray(change(x[:, :3] if record.channels and channels == 4 else x).numpy())


@lru_cache(maxsize=16)
def _composed(size: int | None, channels: int | None) -> Callable[[Any], Any]:
    from torchvision.transforms import v2

    steps: list[Any] = [] if size is None else [v2.Resize(size, antialias=True), v2.CenterCrop(size)]
    if channels is not None:
        steps.append(v2.Grayscale() if channels == 1 else v2.RGB())
    composed: Callable[[Any], Any] = v2.Compose(steps)
    return composed
