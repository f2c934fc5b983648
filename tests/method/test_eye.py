"""An eye sees what the slow reference sees, each image by itself, and no filter rests on few images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import eyes

from clmoe_cli.method import privacy
from clmoe_cli.method.routing import eye
from clmoe_cli.method.routing.features import (
    COLOURED,
    EYED,
    features,
    known,
    new_eye,
    seen_by_eyes,
    shrunk,
    width,
    with_eye,
)


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few patches, so that the tests are quick."""
    monkeypatch.setattr(eye, "PATCHES", 3000)
    monkeypatch.setattr(eye, "FILTERS", 20)
    monkeypatch.setattr(eye, "WIDTH", 2 * 20 * eye.GRID**2)


def drawn(n: int, *shape: int, seed: int = 0) -> torch.Tensor:
    """Smooth images [n, *shape] from 0 to 1."""
    noise = torch.rand((n, *shape), generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.avg_pool2d(noise, 3, stride=1, padding=1)


def made(x: torch.Tensor, seed: int = 0) -> eye.Eye:
    return eye.fit(x, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(1, 13, 16), (3, 12, 15)])
def test_it_sees_what_the_slow_reference_sees(shape: tuple[int, ...]) -> None:
    x = drawn(30, *shape)
    found = made(x)
    filters, offsets = found.filters.double().numpy(), found.offsets.double().numpy()
    wanted = [eyes.seen(one, filters, offsets, found.level, eye.FLAT, eye.SCALE) for one in x[:2].double().numpy()]
    assert np.stack(wanted).any()
    # A filter's mean is zero but for float32's rounding.
    torch.testing.assert_close(found.look(x[:2].double()), torch.from_numpy(np.stack(wanted)), rtol=1e-4, atol=1e-5)


def test_whitened_patches_vary_alike_in_every_direction() -> None:
    _, patches = eye.drawn(drawn(30, 1, 12, 12), torch.Generator().manual_seed(0))
    even = eye.even(patches)
    centred = even - even.mean(dim=0)
    wanted = eyes.whitening(centred.numpy(), eye.FAINT)
    torch.testing.assert_close(eye.whitening(centred), torch.from_numpy(wanted), rtol=1e-8, atol=1e-8)


def test_groups_are_those_of_the_slow_reference() -> None:
    patches = torch.randn((400, 6), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    groups, middles = eye.grouped(patches, torch.Generator().manual_seed(2))
    first = torch.randperm(400, generator=torch.Generator().manual_seed(2))[:20]
    wanted, means = eyes.grouped(patches.numpy(), patches[first].numpy(), eye.ROUNDS)
    assert groups.tolist() == wanted
    torch.testing.assert_close(middles, torch.from_numpy(means), rtol=1e-9, atol=1e-9)


def test_no_filter_rests_on_few_images() -> None:
    x = drawn(40, 1, 12, 12)
    assert bool(made(x).filters.flatten(1).any(dim=1).all())
    few = drawn(privacy.LEAST - 1, 1, 12, 12)
    assert not bool(made(few).filters.any())
    # One strange image alone gives no filter: all others are much like those without it.
    strange = x.clone()
    strange[0] = (torch.arange(12)[:, None] + torch.arange(12)) % 2
    board = eye.even(strange[0, :, :6, :6].reshape(1, -1).double())
    found = made(strange)
    alike = torch.nn.functional.cosine_similarity(found.filters.flatten(1).double(), board).abs()
    assert float(alike.max()) < 0.9


def test_brightness_and_contrast_of_a_patch_change_little() -> None:
    x = drawn(40, 3, 16, 16).double()
    found = made(x.float())
    torch.testing.assert_close(found.look(0.25 + 0.5 * x), found.look(x), rtol=0, atol=5e-3)


def test_the_same_generator_makes_the_same_eye_and_another_another() -> None:
    x = drawn(40, 1, 14, 14)
    assert torch.equal(made(x).filters, made(x).filters)
    assert not torch.equal(made(x).filters, made(x, 1).filters)


def test_each_image_by_itself() -> None:
    x = drawn(70, 3, 16, 16)
    shape = (3, 16, 16)
    look = new_eye(x.flatten(1), shape, torch.Generator().manual_seed(0))
    name = with_eye(COLOURED, look)
    whole = features(x.flatten(1), shape, name, eye=look)
    assert whole.shape == (70, width(shape, name, look))
    fixed = width(shape, COLOURED)
    assert torch.equal(whole[:, :fixed], features(x.flatten(1), shape, COLOURED))
    before = torch.get_num_threads()
    for threads in (1, 2):
        torch.set_num_threads(threads)
        single = torch.cat([features(x[i : i + 1].flatten(1), shape, name, eye=look) for i in (0, 33, 69)])
        assert torch.equal(single, whole[[0, 33, 69]])
    torch.set_num_threads(before)


def test_large_pictures_are_shrunk_and_narrow_ones_cannot_be_seen() -> None:
    x = drawn(20, 3, 64, 48)
    look = new_eye(x.flatten(1), (3, 64, 48), torch.Generator().manual_seed(0))
    assert shrunk(x).shape == (20, 3, 32, 24)
    seen = features(x.flatten(1), (3, 64, 48), with_eye(COLOURED, look), eye=look)[:, -eye.WIDTH :]
    torch.testing.assert_close(seen, look.look(shrunk(x)).float(), rtol=1e-4, atol=1e-5)
    assert seen_by_eyes((3, 64, 48))
    assert not seen_by_eyes((3, 12, 300))
    assert not seen_by_eyes((40,))
    assert not known("vector-1" + EYED, (40,))
