"""The gate's features: the same as the slow reference, and blind to what they should be blind to."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from oracle import subspaces
from pictures import bars

from clmoe_cli.method.routing.features import CHUNK, features, is_image, kind, width


def of(x: np.ndarray, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    shape = (1, *x.shape[1:])
    return features(torch.from_numpy(x).to(dtype).flatten(1) / 255, shape)


@pytest.mark.parametrize("shape", [(16, 16), (13, 18), (12, 29)])
def test_scattering_equals_the_slow_reference(shape: tuple[int, int]) -> None:
    x = np.random.default_rng(0).random((2, *shape))
    found = features(torch.from_numpy(x).flatten(1), (1, *shape))
    wanted = np.stack([subspaces.scattering(one) for one in x])
    assert found.shape == (2, width((1, *shape)))
    torch.testing.assert_close(found, torch.from_numpy(wanted), rtol=1e-9, atol=1e-10)
    single = features(torch.from_numpy(x).float().flatten(1), (1, *shape))
    torch.testing.assert_close(single.double(), found, rtol=1e-3, atol=1e-4)


def test_colours_are_features_of_each_channel() -> None:
    x = torch.rand((3, 2, 14, 14), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = features(x.flatten(1), (2, 14, 14))
    assert found.shape == (3, width((2, 14, 14)))
    assert not torch.allclose(found, features(x.flip(1).flatten(1), (2, 14, 14)))


def test_colour_pictures_are_told_by_edges_of_opponent_channels_and_by_their_colours() -> None:
    x = torch.rand((3, 3, 14, 14), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = features(x.flatten(1), (3, 14, 14), "scattering-colour-1")
    assert found.shape == (3, width((3, 14, 14), "scattering-colour-1"))
    red, green, blue = x.unbind(1)
    opponents = torch.stack([(red + green + blue) / 3, (red - green) / 2, blue / 2 - (red + green) / 4], dim=1)
    for n in range(3):
        channels = list(opponents[n].numpy())
        means = subspaces.window_means(channels)
        wanted = np.concatenate([subspaces.scattering(*channels), 0.7 * means / np.sqrt((means**2).sum())])
        torch.testing.assert_close(found[n], torch.from_numpy(wanted), rtol=1e-9, atol=1e-10)
    # The same edges in other colours.
    plain = torch.zeros((2, 3, 16, 16), dtype=torch.float64)
    plain[0, 0], plain[1, 1] = 0.8, 0.8
    red_one, green_one = features(plain.flatten(1), (3, 16, 16))
    assert float((red_one - green_one).norm()) > 0.5


def test_opponents_fine_shapes_are_in_a_quarter_of_the_windows() -> None:
    x = torch.rand((3, 3 * 14 * 14), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    old, new = features(x, (3, 14, 14), "scattering-colour-1"), features(x, (3, 14, 14))
    assert new.shape == (3, width((3, 14, 14))) == (3, 2640)
    first, second = 3 * 18 * 16, 72 * 16
    torch.testing.assert_close(new[:, : first + second], old[:, : first + second])
    torch.testing.assert_close(new[:, -48:], old[:, -48:])
    window = old[:, first + second : first + 3 * second].reshape(3, 144, 4, 4)
    wanted = torch.empty(3, 144, 2, 2, dtype=torch.float64)
    for row in range(2):
        for column in range(2):
            block = window[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            wanted[:, :, row, column] = block.sum(dim=(2, 3)) / 2
    torch.testing.assert_close(new[:, first + second : -48], wanted.flatten(1))


def test_vectors_are_their_columns_and_long_ones_keep_distances() -> None:
    x = torch.randn((5, 7), generator=torch.Generator().manual_seed(1))
    assert torch.equal(features(x, (7,)), x)
    long = torch.randn((20, 4000), generator=torch.Generator().manual_seed(2))
    found = features(long, (4000,))
    assert found.shape == (20, width((4000,))) == (20, 2048)
    ratio = torch.pdist(found) / torch.pdist(long)
    assert 0.9 < float(ratio.min()) <= float(ratio.max()) < 1.1


def test_brightness_contrast_and_inversion_change_nothing() -> None:
    x = bars([0, 3], 6, 0)[0].astype(np.float64)
    plain = of(x)
    for changed in (x + 40, x / 2, 255 - x, 100 - x / 3):
        torch.testing.assert_close(of(changed), plain, rtol=1e-7, atol=1e-8)
    assert float((of(x.transpose(0, 2, 1)) - plain).norm()) > 0.1


def test_each_image_by_itself() -> None:
    x = bars([1, 7], CHUNK + 30, 1)[0]
    whole = of(x)
    assert torch.equal(whole[CHUNK - 5 :], of(x[CHUNK - 5 :]))
    assert torch.equal(whole, of(x[::-1].copy()).flip(0))
    single = of(x, torch.float32)
    assert torch.equal(single[:9], torch.cat([of(x[i : i + 1], torch.float32) for i in range(9)]))
    assert whole.isfinite().all()
    # Both layers have unit length.
    torch.testing.assert_close(whole.square().sum(dim=1), torch.full((len(x),), 2.0, dtype=torch.float64))


def test_nothing_in_an_image_gives_no_features() -> None:
    assert of(np.full((2, 16, 16), 77.0)).abs().max() < 1e-4


def test_large_images_are_shrunk_and_small_ones_are_vectors() -> None:
    assert [is_image(shape) for shape in ((1, 12, 12), (3, 200, 100), (1, 11, 90), (64,))] == [True, True, False, False]
    assert [kind(shape) for shape in ((1, 28, 28), (3, 28, 28), (784,))] == [
        "scattering-1",
        "scattering-colour-2",
        "vector-1",
    ]
    x = torch.rand((2, 3 * 90 * 60), generator=torch.Generator().manual_seed(0))
    assert features(x, (3, 90, 60)).shape == (2, width((3, 90, 60))) == (2, width((3, 16, 16)))


def test_amounts_are_read_by_their_roots() -> None:
    x = torch.tensor([[0.0, 4.0, 9.0, 0.25], [-16.0, 1.0, 0.0, 2.0]], dtype=torch.float64)
    assert kind((4,), root=True) == "vector-root-1"
    wanted = torch.tensor([[0.0, 2.0, 3.0, 0.5], [-4.0, 1.0, 0.0, 2.0**0.5]], dtype=torch.float64)
    torch.testing.assert_close(features(x, (4,), "vector-root-1"), wanted, rtol=0, atol=1e-12)
    wide = torch.rand((3, 5000), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    assert torch.equal(features(wide, (5000,), "vector-root-1"), features(wide.sqrt(), (5000,), "vector-1"))


def test_vectors_keep_angles_and_lengths() -> None:
    rng = torch.Generator().manual_seed(1)
    x = torch.randn((4000, 6), generator=rng, dtype=torch.float64)
    found = features(x, (6,), "relu-1")
    assert found.shape == (4000, width((6,), "relu-1"))
    # Products of ReLU features tend to the arc-cosine kernel of degree 1 (Cho & Saul 2009).
    known = torch.nn.functional.normalize(torch.nn.functional.pad(x, (0, 1), value=6**0.5 / 4))
    cosine = (known[:50] @ known[50:100].T).clamp(-1, 1)
    angle = cosine.acos()
    kernel = (angle.sin() + (torch.pi - angle) * cosine) / torch.pi
    assert float((found[:50] @ found[50:100].T - kernel).abs().max()) < 0.15
    assert float((features(3 * x, (6,), "relu-1") - found).norm(dim=1).mean()) > 0.05


def test_what_a_backbone_saw_keeps_its_angles() -> None:
    assert kind((512,), backbone=True) == "unit-1"
    x = torch.rand((CHUNK + 3, 20), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    found = features(x, (20,), "unit-1")
    assert found.shape == (len(x), width((20,), "unit-1"))
    torch.testing.assert_close(found, x / x.square().sum(dim=1, keepdim=True).sqrt())
    assert features(torch.zeros(2, 20), (20,), "unit-1").isfinite().all()
