"""Changed copies of the pictures of a batch, drawn anew in every step, so that a network does not learn them by heart.

``light`` moves each picture by up to an eighth of its sides; what is then missing at a border is mirrored from inside.
``strong`` moves it, cuts out a part of three quarters to all of each side and stretches it to the whole, changes
brightness and contrast, and empties a square whose side is a quarter of the picture's (DeVries & Taylor 2017). Both
mirror every second picture from left to right where ``mirrors`` says that classes stay what they are
(:mod:`clmoe_cli.method.routing.mirrors`).

The functions of ``torchvision.transforms.v2`` change all pictures of a batch alike, and its classes draw from the
global generator; here each picture has numbers of its own out of the generator of the training, and all are changed at
once, where the batch is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.runtime.distributed.collectives import Share

Augment = Callable[[Tensor, Share, torch.Generator], Tensor]
"""Changed copies of the images [n, D] that are a process's own of a batch, by numbers out of the generator."""
NONE, LIGHT, STRONG = NAMES = ("none", "light", "strong")
SHIFT = 1 / 8
"""The most that a picture moves, as a share of its side."""
ZOOM = 0.75
"""The smallest part that is cut out, as a share of the side."""
JITTER = 0.2
"""Brightness and contrast change by a factor of at most 1 ± this."""
HOLE = 1 / 4
DRAWS = 10
"""Numbers drawn for each picture: place (2), mirrored or not, size and place of the part (3), brightness, contrast, and
the middle of the hole (2)."""


def default(net: Network, input_shape: Sequence[int]) -> str:
    """The name of the augmentation that suits: for colour pictures that convolutions read, and for nothing else."""
    return LIGHT if not isinstance(net, MLP) and len(input_shape) == 3 and input_shape[0] == 3 else NONE


@dataclass(frozen=True)
class Augmentation:
    """How pictures of ``shape`` [C, H, W] are changed; ``strong`` or only lightly, and whether ``mirrors`` may be."""

    shape: tuple[int, int, int]
    strong: bool = False
    mirrors: bool = False

    @property
    def text(self) -> str:
        """As it is recorded with a task."""
        return (STRONG if self.strong else LIGHT) + (", mirrored" if self.mirrors else "")

    def __call__(self, x: Tensor, own: Share, generator: torch.Generator) -> Tensor:
        """Changed copies of the pictures [n, D] that are a process's ``own`` of a batch, on the same device."""
        drawn = own.random((len(x), DRAWS), generator).to(x.device)
        return self.changed(x, drawn)

    def changed(self, x: Tensor, drawn: Tensor) -> Tensor:
        """Changed copies of pictures [n, D], by numbers ``drawn`` [n, DRAWS] from 0 to 1."""
        pictures = x.reshape(-1, *self.shape)
        moved = _moved(pictures, drawn, self.mirrors)
        if self.strong:
            moved = _emptied(_jittered(_zoomed(moved, drawn), drawn), drawn)
        return moved.reshape(x.shape)


def _moved(x: Tensor, drawn: Tensor, mirrors: bool) -> Tensor:
    """Each picture moved by whole pixels, and mirrored where its third number is below a half: [n, C, H, W]."""
    height, width = x.shape[2:]
    rows, columns = _places(height, drawn[:, 0]), _places(width, drawn[:, 1])
    if mirrors:
        columns = torch.where(drawn[:, 2:3] < 0.5, columns.flip(1), columns)
    each = torch.arange(len(x), device=x.device)[:, None, None]
    return x[each, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)


def _places(side: int, drawn: Tensor) -> Tensor:
    """Where the pixels along a side come from, [n, side]: moved by up to ``SHIFT`` of it, back from behind a border."""
    most = int(side * SHIFT)
    by = (drawn * (2 * most + 1)).floor().long() - most
    places = (torch.arange(side, device=drawn.device) + by[:, None]).abs()
    return (side - 1) - ((side - 1) - places).abs()


def _zoomed(x: Tensor, drawn: Tensor) -> Tensor:
    """A part of each picture, stretched to the whole with bilinear weights; which lies anywhere inside."""
    part = ZOOM + (1 - ZOOM) * drawn[:, 3]
    middle = (2 * torch.stack([drawn[:, 5], drawn[:, 4]], dim=1) - 1) * (1 - part)[:, None]
    eye = torch.eye(2, device=x.device)
    theta = torch.cat([part[:, None, None] * eye, middle[:, :, None]], dim=2)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    found: Tensor = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    return found


def _jittered(x: Tensor, drawn: Tensor) -> Tensor:
    """Contrast about each picture's mean, then brightness, by factors of their own."""
    bright, contrast = (1 + JITTER * (2 * drawn[:, 6:8] - 1)).to(x.dtype).T[:, :, None, None, None]
    mean = x.mean(dim=(1, 2, 3), keepdim=True)
    found: Tensor = (mean + (x - mean) * contrast) * bright
    return found


def _emptied(x: Tensor, drawn: Tensor) -> Tensor:
    """A square of each picture set to the picture's mean; its middle may be anywhere in the picture."""
    height, width = x.shape[2:]
    middle = drawn[:, 8:10]
    inside = [
        (torch.arange(side, device=x.device) - (at * side).floor()[:, None]).abs() <= HOLE * side / 2
        for side, at in zip((height, width), middle.T, strict=True)
    ]
    hole = inside[0][:, None, :, None] & inside[1][:, None, None, :]
    return torch.where(hole, x.mean(dim=(1, 2, 3), keepdim=True), x)
