"""The names of architectures, as ``mlp:500,500``, and the networks that they mean."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from clmoe_cli.method.networks.base import MAX_WEIGHTS, MAX_WIDTH, Network
from clmoe_cli.method.networks.mlp import MLP


def parse_arch(text: str, input_shape: Sequence[int], base: Mapping[str, Tensor] | None = None) -> Network:
    """``mlp:500,500`` → :class:`MLP`; ``cnn:32,64`` or a network of torchvision → a convolutional one.

    ``base``: pretrained shared weights that a convolutional one stands on. Raises ValueError with one line that says
    what was expected.
    """
    shape = tuple(input_shape)
    kind, _, sizes = text.partition(":")
    if kind != "mlp":
        from clmoe_cli.method.networks.convnet import ConvNet

        return ConvNet(text, shape, base)
    try:
        hidden = tuple(int(size) for size in sizes.split(","))
    except ValueError:
        hidden = ()
    if not hidden or any(not 1 <= size <= MAX_WIDTH for size in hidden):
        raise ValueError(f"unknown architecture {text!r}; expected mlp:WIDTH[,WIDTH…], as mlp:500,500")
    net = MLP(math.prod(shape), hidden)
    weights = sum(math.prod(sides) for sides in net.shared_shapes().values())
    if weights > MAX_WEIGHTS:
        raise ValueError(f"architecture {text!r} has {weights} weights; expected one with at most {MAX_WEIGHTS}")
    return net
