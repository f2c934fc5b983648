"""Data and random numbers where a network trains, so that no step waits for memory elsewhere.

On a processor nothing moves. A graphics card holds the images, when they fit, and draws orders and dropout by a
generator of its own, whose seed is the next number of the one that was handed in: as exact to repeat, on that device.
"""

from __future__ import annotations

import torch
from torch import Tensor

from clmoe_cli.method.images import Images, Labelled, Rows
from clmoe_cli.runtime import limits

SHARE = limits.DEVICE_SHARE
ROOM = limits.FLOAT_BYTES
DRAWING = ("cuda",)
"""Kinds of devices that draw by themselves."""


def room(device: torch.device) -> int:
    """Bytes that images may take on an accelerator."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0] * SHARE)
    return ROOM


def placed(data: Labelled, device: str | torch.device) -> Labelled:
    """The same images and classes on the device; where a graphics card has no room for them, as they were.

    Images not yet read are read a part at a time.
    """
    device = torch.device(device)
    if device == data.y.device or not len(data):
        return data
    if device.type == "cpu":
        return Labelled(data.x.cpu() if isinstance(data.x, Tensor) else data.x, data.y.cpu())
    width = data.x.width if isinstance(data.x, Images) else data.x.shape[1]
    if 4 * len(data) * width > room(device):
        return data
    return Labelled(_there(data.x, width, device), data.y.to(device))


def _there(x: Rows, width: int, device: torch.device) -> Tensor:
    if not isinstance(x, Images):
        return x.to(device)
    found, done = torch.empty((len(x), width), device=device), 0
    for part in x.split(len(x)):
        found[done : done + len(part)].copy_(part)
        done += len(part)
    return found


def drawing(generator: torch.Generator, device: str | torch.device) -> torch.Generator:
    """What draws for training on that device: a generator there, or ``generator`` itself."""
    device = torch.device(device)
    if device.type not in DRAWING:
        return generator
    seed = int(torch.randint(1 << 62, (), generator=generator))
    return torch.Generator(device).manual_seed(seed)
