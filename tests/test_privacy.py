"""No input is stored: images cannot be read back from what is kept of few."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from campaigns import some
from numpy.typing import NDArray
from reading_back import guesses, likeness
from small_store import OPTIONS

from clmoe_cli.api.learn import learn
from clmoe_cli.api.predict import predict
from clmoe_cli.data import Batch
from clmoe_cli.method import privacy
from clmoe_cli.method.routing.features import features, width
from store_schema import Store

SIDE = 14
WIDTH = SIDE**2
FEW = [(1, 1), (1, 9), (7, 7), (8, 8), (1,) * 10, (2,) * 10]
MANY = [(16, 16), (30, 30), (5,) * 10]
LITTLE, SOME = 0.5, 0.8
"""What is read back of an image, at most: where few images are, and where a task has directions. Of 196 numbers that
are drawn at random, the best of a thousand guesses reaches 0.25."""


def made(counts: tuple[int, ...], vectors: bool, seed: int = 0) -> tuple[Batch, NDArray[np.float64]]:
    """So many images of each class, and their classes' typical images [N, D].

    What sets an image apart is sparse, so that mixtures come apart easily.
    """
    rng = np.random.default_rng(seed)
    typical = rng.uniform(0.2, 0.8, (len(counts), WIDTH))
    y = np.repeat(np.arange(len(counts)), counts)
    own = np.zeros((len(y), WIDTH))
    for row in own:
        row[rng.choice(WIDTH, WIDTH // 8, replace=False)] = rng.choice([-0.2, 0.2], WIDTH // 8)
    x = (typical[y] + own).astype(np.float32)
    if vectors:  # not all above zero: the gate reads the columns as they are
        return Batch(x - np.float32(0.5), y, "made"), typical[y] - 0.5
    return Batch(x.reshape(-1, 1, SIDE, SIDE), y, "made"), typical[y]


def read_back(root: Path, counts: tuple[int, ...], vectors: bool) -> dict[str, float]:
    """How like the images of the smallest classes the likeliest guesses are, by what they come from."""
    batch, typical = made(counts, vectors)
    learn(str(root), batch, OPTIONS)
    some = slice(0, 60)
    images = batch.images.reshape(len(typical), WIDTH)[some].astype(np.float64)
    return {name: float(likeness(images, typical[some], rows).max()) for name, rows in guesses(root, WIDTH).items()}


def unprotected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(privacy, "LEAST", 0)
    monkeypatch.setattr(privacy, "IMAGES_EACH", 1)


@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "pictures"])
@pytest.mark.parametrize("counts", some([*FEW, *MANY], *FEW[:2], MANY[-1]), ids=str)
def test_images_are_not_read_back(tmp_path: Path, counts: tuple[int, ...], vectors: bool) -> None:
    found = read_back(tmp_path / "store", counts, vectors)
    assert max(found.values()) < (LITTLE if counts in FEW else SOME), found


@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "pictures"])
@pytest.mark.parametrize(
    ("counts", "source"), [((1, 9), "statistics/inputs.means"), ((30, 30), "independent components")]
)
def test_without_protection_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...], source: str, vectors: bool
) -> None:
    unprotected(monkeypatch)
    assert read_back(tmp_path / "store", counts, vectors)[source] > SOME + 0.05


@pytest.mark.campaign
def test_a_held_out_image_is_not_the_difference_of_two_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = (8, 800)  # of the small class one image is held out
    assert read_back(tmp_path / "with", counts, True)["difference of means"] < LITTLE
    unprotected(monkeypatch)
    assert read_back(tmp_path / "without", counts, True)["difference of means"] > 0.99


@pytest.mark.parametrize("counts", [(1, 1), (1, 9), (2,) * 10, (7, 7)], ids=str)
def test_features_of_pictures_are_not_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int, ...]
) -> None:
    """Of a stored image no more is read than the mean of ``LEAST`` images tells, beside what new images of its class
    have in common with it."""
    both, typical = made(tuple(2 * n for n in counts), vectors=False)
    place = np.concatenate([np.arange(2 * n) for n in counts])
    learned = place < np.repeat(counts, 2 * np.asarray(counts))
    batch = Batch(both.images[learned], both.labels[learned], "made")
    shape = (1, SIDE, SIDE)
    own = features(torch.from_numpy(both.images.reshape(-1, WIDTH)), shape).double().numpy()
    known = features(torch.from_numpy(typical.astype(np.float32)), shape).double().numpy()

    def reached(root: Path) -> tuple[float, float]:
        learn(str(root), batch, OPTIONS)
        found = guesses(root, width(shape))["gate/means"]
        of_each = likeness(own, known, found)
        return float(of_each[learned].max()), float(of_each[~learned].max())

    stored, new = reached(tmp_path / "with")
    assert stored < (new**2 + (1 - new**2) / privacy.LEAST) ** 0.5 + 0.1
    unprotected(monkeypatch)
    if min(counts) == 1 and len(set(counts)) > 1:
        assert reached(tmp_path / "without")[0] > 0.99


@pytest.mark.parametrize("vectors", [True, False], ids=["vectors", "pictures"])
def test_few_images_are_still_answered_and_said_to_be_few(tmp_path: Path, vectors: bool) -> None:
    batch, _ = made((2, 30), vectors)
    told = [w.text for w in learn(str(tmp_path / "store"), batch, OPTIONS).warnings if w.code == "privacy"]
    assert len(told) == 1
    assert "fewer than 8 images of 0 (2)" in told[0]
    asked, _ = made((2, 30), vectors, seed=0)
    right = np.asarray(predict(str(tmp_path / "store"), Batch(asked.images, None, "asked")).label) == asked.labels
    assert right.mean() > 0.9
    enough, _ = made((8, 8), vectors, seed=1)
    report = learn(str(tmp_path / "other"), enough, OPTIONS)
    assert not [w for w in report.warnings if w.code == "privacy"]


def test_the_same_learn_ends_with_the_same_bits(tmp_path: Path) -> None:
    batch, _ = made((1, 9), True)
    for name in ("a", "b"):
        learn(str(tmp_path / name), batch, OPTIONS)
    first, second = (Store.open(tmp_path / name).manifest for name in ("a", "b"))
    assert first.content_hash() == second.content_hash()


def test_noise_hangs_on_every_image_and_on_nothing_that_is_stored() -> None:
    x = torch.rand((5, 3), generator=torch.Generator().manual_seed(1))
    other = x.clone()
    other[3, 1] += 1e-6
    first = privacy.drawing(x)(4, 6)
    assert torch.equal(first, privacy.drawing(x.clone())(4, 6))
    assert float((first - privacy.drawing(other)(4, 6)).abs().max()) > 0.1


def test_noise_has_the_size_that_is_stated() -> None:
    n = torch.arange(1, 13)
    k, size = n.double(), privacy.share(n)
    correlation = (1 / k) / (1 / k + size).sqrt()
    assert torch.allclose(correlation[: privacy.LEAST], torch.tensor(privacy.LEAST**-0.5, dtype=torch.float64))
    assert bool((size[privacy.LEAST - 1 :] == 0).all())


def test_means_have_the_noise_that_is_stated() -> None:
    """Of 8 classes of two images, and of 8 of a hundred, each of as much variance within in every column."""
    rng = torch.Generator().manual_seed(0)
    y = torch.repeat_interleave(torch.arange(16), torch.tensor([2] * 8 + [100] * 8))
    values = 10 * torch.randn((16, 300), generator=rng)[y] + 3 * torch.randn((len(y), 300), generator=rng)
    draw = privacy.drawing(values)
    few, many = privacy.noise(values, y, 16, draw), privacy.one_more(values, y, 16, draw)
    assert not few[8:].any()
    assert not many[:8].any()
    for found, share in ((few[:8], (privacy.LEAST - 2) / 2**2), (many[8:], (privacy.LEAST - 1) / 100**2)):
        assert float(found.square().mean()) == pytest.approx(share * 3**2, rel=0.2)


def test_small_classes_have_a_mean_together_or_that_of_the_others() -> None:
    assert privacy.groups(torch.tensor([9, 3, 4])).tolist() == [0, -1, -1]
    assert privacy.groups(torch.tensor([9, 3, 5, 0])).tolist() == [0, 4, 4, 3]
    values = torch.arange(12.0)[:, None].expand(12, 2).double()
    y = torch.tensor([0] * 9 + [1] * 3)
    means, centred, freedom = privacy.grouped(values, y, 2)
    assert means[:, 0].tolist() == [4.0, 4.0]
    assert (len(centred), freedom) == (9, 8)
