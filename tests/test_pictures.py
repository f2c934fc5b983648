"""Folders of people's own pictures: any size, mode and orientation; broken ones are named, counted, or left out."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as F

from clmoe_cli.data import Raw, look, pictures, read_batch, spool, transforms
from store_schema import BadInput, DiskProblem, InputRecord

SMALL = InputRecord(image_size=8)
ORIENTATION = 0x0112


def pixels(height: int, width: int, channels: int = 3, seed: int = 0) -> np.ndarray:
    """Smooth noise [H, W, C]."""
    noise = np.random.default_rng(seed).integers(0, 256, (3, 4, channels), dtype=np.uint8)
    grown = [np.asarray(Image.fromarray(noise[..., c]).resize((width, height))) for c in range(channels)]
    return np.stack(grown, axis=2)


def save(path: Path, array: np.ndarray, mode: str = "RGB", **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.squeeze()).convert(mode).save(path, **options)
    return path


def reference(array: np.ndarray, size: int = 8) -> np.ndarray:
    """[C, size, size] by torchvision's functions, step by step."""
    x = torch.from_numpy(array.transpose(2, 0, 1).copy())
    return F.center_crop(F.resize(x, [size], antialias=True), [size]).numpy()


def test_any_size_becomes_one_and_classes_become_labels(tmp_path: Path) -> None:
    shapes = {"cat/a.png": (20, 11), "cat/b.jpg": (9, 40), "dog/a.bmp": (8, 8), "dog/b.webp": (5, 6)}
    for seed, (name, shape) in enumerate(shapes.items()):
        save(tmp_path / name, pixels(*shape, seed=seed))
    batch = read_batch(str(tmp_path), labels="required", input=SMALL)
    assert batch.images.dtype == np.uint8
    assert batch.input_shape == (3, 8, 8)
    assert batch.input == InputRecord(image_size=8, channels=3)
    assert batch.files == tuple(shapes)
    assert batch.labels is not None
    assert batch.labels.tolist() == ["cat", "cat", "dog", "dog"]
    for image, name in zip(batch.images, shapes, strict=True):
        np.testing.assert_array_equal(image, reference(np.asarray(Image.open(tmp_path / name).convert("RGB"))))


def test_grey_if_all_are_unless_the_input_says_more(tmp_path: Path) -> None:
    save(tmp_path / "a" / "1.png", pixels(9, 12, 1), "L")
    batch = read_batch(str(tmp_path), labels="optional", input=SMALL)
    assert batch.input == InputRecord(image_size=8, channels=1)
    np.testing.assert_array_equal(batch.images[0], reference(pixels(9, 12, 1)))
    as_colour = read_batch(str(tmp_path), labels="optional", input=InputRecord(image_size=8, channels=3))
    np.testing.assert_array_equal(as_colour.images[0], np.repeat(batch.images[0], 3, axis=0))
    save(tmp_path / "b" / "1.png", pixels(12, 9))
    assert read_batch(str(tmp_path), labels="optional", input=SMALL).input_shape == (3, 8, 8)
    as_grey = read_batch(str(tmp_path), labels="optional", input=InputRecord(image_size=8, channels=1))
    np.testing.assert_array_equal(as_grey.images[0], batch.images[0])
    wanted = F.rgb_to_grayscale(torch.from_numpy(reference(pixels(12, 9)))).numpy()
    np.testing.assert_array_equal(as_grey.images[1], wanted)


@pytest.mark.parametrize("size", [None, 8])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright(orientation: int, size: int | None, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    save(tmp_path / "1.png", pixels(9, 12), exif=exif)
    flip = {2: 0, 3: 3, 4: 1, 5: 5, 6: 4, 7: 6, 8: 2}  # orientation → PIL's Transpose
    upright = Image.fromarray(pixels(9, 12))
    if orientation in flip:
        upright = upright.transpose(Image.Transpose(flip[orientation]))
    batch = read_batch(str(tmp_path), labels="ignored", input=InputRecord(image_size=size) if size else None)
    array = np.asarray(upright)
    wanted = reference(array) if size else array.transpose(2, 0, 1)
    np.testing.assert_array_equal(batch.images[0], wanted)


@pytest.mark.parametrize(
    ("mode", "name"),
    [("P", "1.png"), ("RGBA", "1.png"), ("LA", "1.png"), ("CMYK", "1.jpg"), ("1", "1.png"), ("YCbCr", "1.tif")],
)
def test_modes(mode: str, name: str, tmp_path: Path) -> None:
    path = save(tmp_path / name, pixels(9, 12), mode)
    grey = mode == "1"
    wanted = np.asarray(Image.open(path).convert("L" if grey else "RGB")).reshape(9, 12, -1)
    batch = read_batch(str(tmp_path), labels="ignored", input=SMALL)
    np.testing.assert_array_equal(batch.images[0], reference(wanted))
    np.testing.assert_array_equal(read_batch(str(tmp_path), labels="ignored").images[0], wanted.transpose(2, 0, 1))


def broken_folder(root: Path) -> list[str]:
    """Nine pictures of three classes; the names of those that are broken."""
    for index in range(9):
        save(root / "abc"[index // 3] / f"{index}.png", pixels(9 + index, 12, seed=index))
    whole = (root / "a" / "1.png").read_bytes()
    (root / "a" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "b" / "3.png").write_bytes(b"")
    (root / "b" / "4.png").write_text("a text")
    Image.fromarray(np.zeros((9, 12), np.uint16)).save(root / "c" / "8.png")
    Image.fromarray(np.zeros((9, 12), np.float32)).save(root / "c" / "7.tif")
    return ["a/1.png", "b/3.png", "b/4.png", "c/7.tif", "c/8.png"]


@pytest.mark.parametrize("channels", [None, 3])
def test_broken_pictures_are_named_and_counted(channels: int | None, tmp_path: Path) -> None:
    broken = broken_folder(tmp_path)
    record = InputRecord.model_validate({"image_size": 8, "channels": channels})
    with pytest.raises(BadInput) as caught:
        read_batch(str(tmp_path), labels="required", input=record)
    said = str(caught.value)
    assert said.startswith(
        f"broken picture: {tmp_path}/a/1.png; found image file is truncated; 5 of 10 pictures broken: "
    )
    assert all(name in said for name in broken)
    assert "--skip-broken" in said
    batch = read_batch(str(tmp_path), labels="required", input=record, skip_broken=True)
    assert batch.skipped == tuple(broken)
    assert batch.files == ("a/0.png", "a/2.png", "b/5.png", "c/6.png", "c/7.png")
    assert batch.labels is not None
    assert batch.labels.tolist() == ["a", "a", "b", "c", "c"]
    for image, name in zip(batch.images, batch.files, strict=True):
        np.testing.assert_array_equal(image, reference(np.asarray(Image.open(tmp_path / name))))


def test_only_some_of_many_broken_ones_are_named(tmp_path: Path) -> None:
    for index in range(20):
        (tmp_path / f"{index:02d}.png").write_bytes(b"")
    for skip in (False, True):
        with pytest.raises(BadInput, match=r"20 of 20 pictures broken: 00.png, .*07.png and 12 more"):
            read_batch(str(tmp_path), labels="ignored", skip_broken=skip)


def test_a_failing_disk_is_no_broken_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1.png", pixels(9, 12))

    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Image, "open", fail)
    with pytest.raises(DiskProblem, match=r"1\.png"):
        read_batch(str(tmp_path), labels="ignored", input=SMALL, skip_broken=True)


def test_long_and_narrow_pictures_are_refused_not_blown_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "1.png", pixels(8, 40))
    monkeypatch.setattr(transforms, "MOST", 8 * 8 * 4)
    with pytest.raises(BadInput, match=r"narrow.*1\.png; found 40x8"):
        read_batch(str(tmp_path), labels="ignored", input=SMALL)
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 8, 40), np.uint8))
    with pytest.raises(BadInput, match="narrow"):
        read_batch(str(tmp_path / "b.npz"), labels="ignored", input=SMALL)


def test_order_and_memory_do_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(30):
        save(tmp_path / f"{index:02d}.png", pixels(9 + index % 3, 12, seed=index))
    whole = read_batch(str(tmp_path), labels="ignored", input=SMALL)
    monkeypatch.setattr(spool, "THRESHOLD", 0)
    monkeypatch.setattr(pictures, "_AT_ONCE", 1)
    again = read_batch(str(tmp_path), labels="ignored", input=SMALL)
    assert spool._map_of(again.images) is not None
    np.testing.assert_array_equal(again.images, whole.images)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_go_through_the_same(
    channels: int, dtype: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stack = np.stack([pixels(9, 12, channels, seed) for seed in range(7)])
    path = tmp_path / "a.npz"
    np.savez(path, x=stack if dtype == np.uint8 else stack.astype(dtype) / 255)
    monkeypatch.setattr(transforms, "_AT_ONCE", 2 * 4 * 108)
    batch = read_batch(str(path), labels="ignored", input=SMALL)
    assert batch.input == (
        SMALL if channels == 4 else InputRecord.model_validate({"image_size": 8, "channels": channels})
    )
    wanted = np.stack([reference(image) for image in stack])
    if dtype == np.uint8:
        np.testing.assert_array_equal(batch.images, wanted)
    else:  # uint8 rounds after each direction
        np.testing.assert_allclose(batch.images, wanted / 255, atol=1.5 / 255)
    colour = read_batch(str(path), labels="ignored", input=InputRecord(image_size=8, channels=3))
    np.testing.assert_array_equal(
        colour.images, np.repeat(batch.images, 3, axis=1)[:, -3:] if channels == 1 else batch.images[:, :3]
    )


def test_vectors_have_no_size(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=np.zeros((3, 5), np.float32))
    with pytest.raises(BadInput, match=r"vectors cannot be resized.*--image-size"):
        read_batch(str(tmp_path / "a.npz"), labels="ignored", input=SMALL)


def test_what_there_is_is_known_before_it_is_read(tmp_path: Path) -> None:
    (tmp_path / "f").mkdir()
    (tmp_path / "f" / "0.png").write_bytes(b"broken")
    save(tmp_path / "f" / "1.png", pixels(9, 12, 1), "L")
    np.savez(tmp_path / "a.npz", x=np.zeros((2, 9, 12, 3), np.uint8))
    np.savez(tmp_path / "b.npz", x=np.zeros((2, 5), np.uint8))
    seen: list[Raw] = []
    for name in ("f", "a.npz", "b.npz"):
        with look(str(tmp_path / name), labels="ignored", skip_broken=True) as unread:
            seen.append(unread.raw)
    assert seen == [Raw(True, (1, 9, 12)), Raw(False, (3, 9, 12)), Raw(False, (5,))]
