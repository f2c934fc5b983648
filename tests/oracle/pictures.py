"""Augmentation and ``resnet9`` the slow way: picture by picture, pixel by pixel, with plain torch.nn, in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def bent(place: int, side: int) -> int:
    """A place along a side, back from behind the borders as in a mirror."""
    place = abs(place)
    return 2 * (side - 1) - place if place >= side else place


def light(picture: Tensor, drawn: list[float], mirrors: bool) -> Tensor:
    """One picture [C, H, W] moved, and mirrored if the third number says so."""
    channels, height, width = picture.shape
    down, across = (
        math.floor(number * (2 * (side // 8) + 1)) - side // 8
        for number, side in zip(drawn[:2], (height, width), strict=True)
    )
    found = torch.empty_like(picture)
    for c in range(channels):
        for i in range(height):
            for j in range(width):
                at = width - 1 - j if mirrors and drawn[2] < 0.5 else j
                found[c, i, j] = picture[c, bent(i + down, height), bent(at + across, width)]
    return found


def strong(picture: Tensor, drawn: list[float], mirrors: bool) -> Tensor:
    """The same with a part of it stretched, contrast and brightness changed, and a hole."""
    moved = light(picture, drawn, mirrors)
    channels, height, width = picture.shape
    part = 0.75 + 0.25 * drawn[3]
    found = torch.empty_like(moved)
    for i in range(height):
        for j in range(width):
            # Middles of pixels, from -1 to 1.
            y = part * ((2 * i + 1) / height - 1) + (2 * drawn[4] - 1) * (1 - part)
            x = part * ((2 * j + 1) / width - 1) + (2 * drawn[5] - 1) * (1 - part)
            row, column = ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2
            row, column = min(max(row, 0), height - 1), min(max(column, 0), width - 1)
            top, left = math.floor(row), math.floor(column)
            for c in range(channels):
                total = 0.0
                for a, wa in ((top, 1 - row + top), (min(top + 1, height - 1), row - top)):
                    for b, wb in ((left, 1 - column + left), (min(left + 1, width - 1), column - left)):
                        total += wa * wb * float(moved[c, a, b])
                found[c, i, j] = total
    bright, contrast = 1 + 0.2 * (2 * drawn[6] - 1), 1 + 0.2 * (2 * drawn[7] - 1)
    mean = found.mean()
    found = (mean + (found - mean) * contrast) * bright
    mean = found.mean()
    for i in range(height):
        for j in range(width):
            if (
                abs(i - math.floor(drawn[8] * height)) <= height / 8
                and abs(j - math.floor(drawn[9] * width)) <= width / 8
            ):
                found[:, i, j] = mean
    return found


def resnet9(params: dict[str, Tensor], x: Tensor) -> Tensor:
    """Logits of pictures [N, C, H, W] by running statistics; ``params`` by the network's own names."""

    def step(name: str, x: Tensor, stride: int) -> Tensor:
        conv = nn.functional.conv2d(x, params[f"{name}.conv.weight"], stride=stride, padding=1)
        mean, variance = (params[f"{name}.norm.running_{kind}"][:, None, None] for kind in ("mean", "var"))
        scale, shift = (params[f"{name}.norm.{kind}"][:, None, None] for kind in ("weight", "bias"))
        return ((conv - mean) / (variance + 1e-3).sqrt() * scale + shift).clamp_min(0)

    x = step("stem", x, 1)
    x = step("down1", x, 2)
    x = x + step("same1.second", step("same1.first", x, 1), 1)
    x = step("down3", step("down2", x, 2), 2)
    x = x + step("same3.second", step("same3.first", x, 1), 1)
    return x.mean(dim=(2, 3)) @ params["output.weight"].T + params["output.bias"]
