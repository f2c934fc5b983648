"""Whether pictures of a task stay what they are when they are mirrored from left to right.

Cats do; an arrow, a traffic sign with one, or a 2 among 5s do not. Half of the training pictures tell the classes apart
by the gate's fixed features, with ridge regression on the classes' indicators (Hoerl & Kennard 1970), and answer for
the other half, as it is and mirrored. Pictures may be mirrored where that costs at most a twentieth of the right
answers and what chance explains, and where the answers are right clearly more often than guesses. Of training pictures,
CIFAR-10's tasks lose 0 to 2 %, those of CIFAR-100 1 to 9 %, those of traffic signs 12
to 75 %.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from clmoe_cli.method.images import Labelled
from clmoe_cli.method.routing.features import features, is_image

PICTURES = 1000
"""Pictures that are looked at, evenly spaced: features cost about a millisecond each."""
LEAST = 32
"""Of fewer nothing can be told."""
LOST = 1 / 20
"""The share of right answers that mirroring may cost."""
RIDGE = 0.1
"""Added to the inner products of features, which have about unit length."""


def mirrored(x: Tensor, shape: tuple[int, int, int]) -> Tensor:
    """Pictures [N, D] of that shape [C, H, W], left and right exchanged."""
    return x.reshape(-1, *shape).flip(3).reshape(x.shape)


def may_mirror(data: Labelled, shape: tuple[int, int, int]) -> bool:
    """Whether labelled pictures [N, D] of that shape may be mirrored. The same answer every time it is asked."""
    some = data.subsample(PICTURES)
    if len(some) < LEAST or not is_image(shape):
        return False
    some = Labelled(some.x[:].cpu(), some.y.cpu())
    order = some.y.argsort(stable=True)
    known, asked = some.take(order[0::2]), some.take(order[1::2])
    x = asked.x[:]
    fitted, straight, turned = (features(pictures, shape) for pictures in (known.x[:], x, mirrored(x, shape)))
    right = [_answers(fitted, known.y, found) == asked.y for found in (straight, turned)]
    straight_right, lost = right[0].double(), right[0].double() - right[1].double()
    guess = float(torch.bincount(asked.y).max()) / len(asked)
    spread = math.sqrt(guess * (1 - guess) / len(asked))
    share, error = float(straight_right.mean()), float(lost.std(correction=0)) / math.sqrt(len(asked))
    return share > guess + 2 * spread and float(lost.mean()) <= LOST * share + 2 * error


def _answers(fitted: Tensor, y: Tensor, asked: Tensor) -> Tensor:
    """Classes [n] of features ``asked`` [n, d], by ridge regression on ``fitted`` [m, d] of classes ``y`` [m]."""
    fitted, asked = fitted.double(), asked.double()
    mean = fitted.mean(dim=0)
    fitted, asked = fitted - mean, asked - mean
    targets = F.one_hot(y).double()
    level = targets.mean(dim=0)
    inner = fitted @ fitted.T + RIDGE * torch.eye(len(fitted), dtype=torch.float64)
    weights: Tensor = fitted.T @ torch.linalg.solve(inner, targets - level)
    return (level + asked @ weights).argmax(dim=1)
