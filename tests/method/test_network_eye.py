"""A subnetwork as an eye sees what the slow reference sees, each image by itself, and never its own answers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import Params
from clmoe_cli.method.routing.features import COLOURED, features, known, width, with_eye
from clmoe_cli.method.routing.network_eye import EARLY, HEAD, LAST, NetworkEye

SHAPE = (3, 16, 16)


def params(arch: str, seed: int = 0, classes: int = 3) -> Params:
    """Random parameters of a network, with statistics as if it had been trained."""
    rng = torch.Generator().manual_seed(seed)
    net = parse_arch(arch, SHAPE)
    found = net.initial_shared(rng) | net.initial_owned(classes, rng)
    for name, value in found.items():
        if name.endswith("running_var"):
            found[name] = 0.5 + torch.rand(value.shape, generator=rng)
        elif name.endswith(("running_mean", "bias")):
            found[name] = 0.3 * torch.randn(value.shape, generator=rng)
    return found


def eye(arch: str = "cnn:4,6", seed: int = 0, classes: int = 3) -> NetworkEye:
    return NetworkEye.of(arch, parse_arch(arch, SHAPE), params(arch, seed, classes))


def drawn(n: int, seed: int = 0) -> torch.Tensor:
    return torch.rand((n, *SHAPE), generator=torch.Generator().manual_seed(seed))


def test_it_sees_what_the_slow_reference_sees() -> None:
    """Two layers of 3×3 with pooling between, norms and ReLU, means over a grid of 2×2; float64, place by place."""
    values = {name: value.double().numpy() for name, value in params("cnn:4,6").items()}
    for image in drawn(2):
        maps = image.double().numpy()
        early = maps
        for layer in ("1", "2"):
            early = maps
            maps = pooled(convolved(maps, values[f"conv{layer}.weight"]))
            scale = values[f"norm{layer}.weight"] / np.sqrt(values[f"norm{layer}.running_var"] + 1e-5)
            maps = (maps - values[f"norm{layer}.running_mean"][:, None, None]) * scale[:, None, None]
            maps = np.maximum(maps + values[f"norm{layer}.bias"][:, None, None], 0)
        cells = [maps[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].mean() for c in range(6) for i in (0, 1) for j in (0, 1)]
        means = [early[c].mean() for c in range(4)]
        wanted = [part for length, read in ((LAST, cells), (EARLY, means)) for part in of_length(length, read)]
        found = eye().look(image[None])
        torch.testing.assert_close(found, torch.tensor([wanted], dtype=torch.float64), rtol=1e-4, atol=1e-6)


def of_length(length: float, read: list[float]) -> list[float]:
    """Roots of numbers that are not negative, scaled."""
    size = math.sqrt(sum(read))
    return [length * math.sqrt(one) / size for one in read]


def convolved(maps: np.ndarray, kernels: np.ndarray) -> np.ndarray:
    """3×3 with a border of zeros, one product of numbers at a time."""
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    found = np.zeros((len(kernels), *maps.shape[1:]))
    for o in range(len(kernels)):
        for i in range(maps.shape[1]):
            for j in range(maps.shape[2]):
                found[o, i, j] = (kernels[o] * padded[:, i : i + 3, j : j + 3]).sum()
    return found


def pooled(maps: np.ndarray) -> np.ndarray:
    """The largest of each two by two places."""
    channels, rows, columns = maps.shape
    found = np.zeros((channels, rows // 2, columns // 2))
    for c, i, j in np.ndindex(found.shape):
        found[c, i, j] = maps[c, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max()
    return found


def test_a_base_is_added_to_what_a_subnetwork_adds() -> None:
    arch, whole, x = "resnet9:4", params("resnet9:4"), drawn(3)
    added = {name: torch.zeros(shape) for name, shape in parse_arch(arch, SHAPE).shared_shapes().items()}
    below = {name: whole[name] for name in added}
    alone = NetworkEye.of(arch, parse_arch(arch, SHAPE, below), {**whole, **added})
    assert torch.equal(alone.look(x), eye(arch).look(x))
    doubled = NetworkEye.of(arch, parse_arch(arch, SHAPE, below), {**whole, **below})
    twice = NetworkEye.of(arch, parse_arch(arch, SHAPE), {**whole, **{name: 2 * v for name, v in below.items()}})
    assert torch.equal(doubled.look(x), twice.look(x))
    assert not torch.equal(doubled.look(x), alone.look(x))


def test_output_rows_are_neither_kept_nor_seen() -> None:
    found, x = eye(classes=3), drawn(3)
    assert not set(HEAD) & set(found.params)
    other = params("cnn:4,6")
    other["output.weight"] = -7 * other["output.weight"]
    assert torch.equal(NetworkEye.of("cnn:4,6", found.net, other).look(x), found.look(x))


@pytest.mark.parametrize("arch", ["cnn:4,6", "resnet9:4", "resnet18"])
def test_each_image_by_itself(arch: str) -> None:
    look, x = eye(arch), drawn(70)
    name = with_eye(COLOURED, look)
    whole = features(x.flatten(1), SHAPE, name, eye=look)
    assert whole.shape == (70, width(SHAPE, name, look))
    fixed = width(SHAPE, COLOURED)
    assert torch.equal(whole[:, :fixed], features(x.flatten(1), SHAPE, COLOURED))
    lengths = whole[:, fixed:].double().norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, math.hypot(EARLY, LAST)), rtol=1e-5, atol=0)
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        single = torch.cat([features(x[i : i + 1].flatten(1), SHAPE, name, eye=look) for i in (0, 33, 69)])
        assert torch.equal(single, whole[[0, 33, 69]])
    torch.set_num_threads(before)
    assert known(name, SHAPE)
    assert not known(name, (40,))
    assert not known(name, (3, 8, 8))
