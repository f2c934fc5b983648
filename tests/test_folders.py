"""Folders as people have them: what is left out is named, what is clutter is not, and a split is no set of classes."""

from __future__ import annotations

import base64
import errno
import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clmoe_cli.data import Batch, listing, read_batch
from clmoe_cli.data.decoding import PLUGIN
from store_schema import BadInput, InputRecord


def save(path: Path, value: int = 7, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((4, 5, 3), value, np.uint8)).save(path, **options)
    return path


def read(root: Path, use: str = "optional", skip_broken: bool = False) -> Batch:
    return read_batch(str(root), labels=use, skip_broken=skip_broken)  # type: ignore[arg-type]


def classes(root: Path, *names: str) -> None:
    for name in names or ("cat", "dog"):
        save(root / name / "1.png")


def test_clutter_is_no_picture_and_no_class(tmp_path: Path) -> None:
    classes(tmp_path)
    for name in ("cat/.ipynb_checkpoints/1-checkpoint.png", ".ipynb_checkpoints/1.png", "__MACOSX/cat/2.png"):
        save(tmp_path / name)
    for name in ("cat/._1.png", "._cat", ".DS_Store", "cat/Thumbs.db", "dog/desktop.ini"):
        (tmp_path / name).write_bytes(b"\0\5\x16\7")
    batch = read(tmp_path, "required")
    assert batch.files == ("cat/1.png", "dog/1.png")
    assert (batch.warnings, batch.notes, batch.skipped) == ((), (), ())


def test_what_is_no_picture_is_counted(tmp_path: Path) -> None:
    classes(tmp_path)
    for name in ("labels.csv", "cat/a.txt", "cat/b.txt", "dog/film.mp4", "README"):
        (tmp_path / name).write_text("")
    assert read(tmp_path).notes == ("left out, since they are no pictures: 1 .csv, 1 .mp4, 2 .txt, 1 without suffix",)


@pytest.mark.parametrize("name", ["1.gif", "1.jfif", "1.jpe", "1.avif", "1.GIF", "1.pnm"])
def test_pictures_of_other_suffixes_are_read(name: str, tmp_path: Path) -> None:
    save(tmp_path / "a" / "0.png", 90)
    made = save(tmp_path / "a" / "made.png", 90)
    kind = {"jfif": "JPEG", "jpe": "JPEG", "pnm": "PPM"}.get(name[2:].lower())
    with Image.open(made) as picture:
        picture.save(tmp_path / "a" / name, kind)
    made.unlink()
    batch = read(tmp_path)
    assert batch.files == ("a/0.png", f"a/{name}")
    assert np.abs(batch.images.astype(int) - 90).max() <= 2


def test_of_a_moving_picture_the_first_frame_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (5, 4), (value, value, value)) for value in (10, 200)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path).images.max() < 20


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAXxtZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABoAABAAAAAAAAAEgAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/GlwcnAA"
    "AADcaXBjbwAAAHVodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQApQgEBA3AAAAMAkA"
    "AAAwAAAwAeoCCBBZbqrprm4CGgwIAAAAyAAAADAIRiAAEABkQBwXPBiQAAABNjb2xybmNseAABAA0ABoAAAAAUaXNwZQAAAAAAAABAAAAAQAAA"
    "AChjbGFwAAAAGAAAAAEAAAAQAAAAAf///9gAAAAC////0AAAAAIAAAAQcGl4aQAAAAADCAgIAAAAGGlwbWEAAAAAAAAAAQABBYECAwWEAAAAUG"
    "1kYXQAAABEKAGvEyGlIGjlNVP9KpdSAWB+pMAs8abNDLZBeYU2ExDCXSI0DZuzX+RTYKz+gDcX0jL++smygOfHKju7JMC0b92c6Ew="
)
"""A picture [16, 24, 3] as phones write it: red on the left, blue on the right."""


def test_pictures_of_phones_are_read(tmp_path: Path) -> None:
    (tmp_path / "phone.HEIC").write_bytes(HEIC)
    pixels = read(tmp_path).images[0]
    assert pixels.shape == (3, 16, 24)
    assert np.abs(pixels[:, 8, 4].astype(int) - (200, 40, 40)).max() < 8
    assert np.abs(pixels[:, 8, 20].astype(int) - (40, 40, 200)).max() < 8
    (tmp_path / "phone.HEIC").write_bytes(HEIC[:300])
    with pytest.raises(BadInput, match=r"broken picture.*phone\.HEIC"):
        read(tmp_path)


def test_formats_that_are_not_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, PLUGIN, None)
    classes(tmp_path)
    for name in ("cat/x.heic", "dog/y.SVG"):
        (tmp_path / name).write_bytes(b"something")
    with pytest.raises(BadInput, match=r"format that is not read.*2 of 4.*cat/x\.heic, dog/y\.SVG.*--skip-broken"):
        read(tmp_path, "required")
    assert read(tmp_path, "required", skip_broken=True).skipped == ("cat/x.heic", "dog/y.SVG")
    record = InputRecord(image_size=4, channels=3)
    assert len(read_batch(str(tmp_path), labels="required", input=record, skip_broken=True).images) == 2
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "a.heic").write_bytes(b"something")
    with pytest.raises(BadInput, match=r"not read.*a\.heic.*pip install 'clmoe\[photos\]', or save it as PNG"):
        read(tmp_path / "only", skip_broken=True)


def test_a_pipe_among_pictures_is_named(tmp_path: Path) -> None:
    classes(tmp_path)
    os.mkfifo(tmp_path / "cat" / "pipe.png")
    with pytest.raises(BadInput, match=r"not a regular file.*found 1 of 3.*a picture; --skip-broken") as caught:
        read(tmp_path, "required")
    assert "None" not in str(caught.value)


def test_pictures_beside_folders_are_refused_or_have_no_label(tmp_path: Path) -> None:
    classes(tmp_path)
    save(tmp_path / "top.png", 1)
    with pytest.raises(BadInput, match=r"no labels.*beside the folders, 1 of 3 pictures: top\.png"):
        read(tmp_path, "required")
    batch = read(tmp_path)
    assert batch.labels is None
    assert batch.files == ("top.png", "cat/1.png", "dog/1.png")
    (warning,) = batch.warnings
    assert "top.png: all are taken, and none has a label" in warning
    assert read(tmp_path, "ignored").files == batch.files


def test_folders_inside_class_folders_are_said_to_be_none(tmp_path: Path) -> None:
    for name in ("cat/1.png", "cat/old/2.png", "dog/3.png"):
        save(tmp_path / name)
    batch = read(tmp_path, "required")
    assert batch.labels is not None
    assert batch.labels.tolist() == ["cat", "cat", "dog"]
    assert batch.notes == ("classes are cat, dog; folders inside class folders are no classes of their own: cat/old",)


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classes(tmp_path)
    save(tmp_path / "dog" / "locked" / "1.png")
    real = os.scandir

    def scandir(path: str) -> object:
        if str(path).endswith("locked"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return real(path)

    monkeypatch.setattr(listing.os, "scandir", scandir)
    for use in ("required", "optional", "ignored"):
        with pytest.raises(BadInput, match=r"dog/locked; found Permission denied.*permissions"):
            read(tmp_path, use)


def test_a_link_multiplies_no_pictures(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    save(elsewhere / "9.png")
    root = tmp_path / "root"
    classes(root)
    (root / "cat" / "again").symlink_to("..")
    (root / "cat" / "self").symlink_to(".")
    (root / "aaa").symlink_to("dog")  # sorted before what it leads to
    (root / "bird").symlink_to(elsewhere)
    (root / "dog" / "gone").symlink_to("nowhere")
    batch = read(root, "required")
    assert batch.files == ("bird/9.png", "cat/1.png", "dog/1.png")
    assert batch.warnings == ("left out, since what they lead to is read already: links aaa, cat/again, cat/self",)


def test_names_of_classes_are_composed(tmp_path: Path) -> None:
    classes(tmp_path, "cafe\u0301", "th\u00e9")
    assert read(tmp_path, "required").classes() == ("caf\u00e9", "th\u00e9")
    classes(tmp_path / "more", "q" * 201, "a")
    with pytest.raises(BadInput, match="too long"):
        read(tmp_path / "more")


def split(root: Path, **parts: tuple[str, ...]) -> Path:
    for part, names in parts.items():
        classes(root / part, *names)
    return root


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("held_out", ["val", "valid", "validation", "test", "Testing"])
def test_a_split_is_learned_by_its_part_for_training(train: str, held_out: str, tmp_path: Path) -> None:
    split(tmp_path, **{train: ("cat", "dog"), held_out: ("cat", "dog")})
    batch = read(tmp_path, "required")
    assert batch.classes() == ("cat", "dog")
    assert batch.files == (f"{train}/cat/1.png", f"{train}/dog/1.png")
    assert batch.others == (str(tmp_path / held_out),)
    assert batch.warnings == (
        f"{tmp_path} is a split: learned is {train} (2 pictures), and not {held_out} (2 pictures)",
    )
    for use in ("optional", "ignored"):
        asked = read(tmp_path, use)
        assert len(asked.images) == 4
        assert asked.classes() == (("cat", "dog") if use == "optional" else ())
        assert "is a split: pictures of all its parts are taken" in asked.warnings[0]
        assert asked.others == ()


def test_odd_splits(tmp_path: Path) -> None:
    three = split(tmp_path / "three", train=("a", "b"), val=("a",), test=("b", "c"))
    assert read(three, "required").others == (str(three / "test"), str(three / "val"))
    alone = split(tmp_path / "alone", train=("a", "b"))
    assert read(alone, "required").classes() == ("a", "b")
    without = split(tmp_path / "without", val=("a", "b"), test=("a", "b"))
    with pytest.raises(BadInput, match=r"without class folders to learn from.*test \(2 pictures\), val"):
        read(without, "required")
    flat = tmp_path / "flat"
    classes(flat, "train", "test")
    with pytest.raises(BadInput, match="without class folders to learn from"):
        read(flat, "required")
    loose = split(tmp_path / "loose", train=("a", "b"))
    save(loose / "test" / "1.png")
    batch = read(loose, "required")
    assert (batch.classes(), batch.others) == (("a", "b"), ())
    asked = read(loose)
    assert (asked.labels, len(asked.images)) == (None, 3)
    assert "without class folders in test: all are taken, and none has a label" in asked.warnings[1]


def test_classes_called_as_a_split_among_others_are_classes(tmp_path: Path) -> None:
    classes(tmp_path, "train", "bus", "test")
    batch = read(tmp_path, "required")
    assert (batch.classes(), batch.warnings) == (("bus", "test", "train"), ())


def mode_of(path: Path) -> str:
    with Image.open(path) as picture:
        return picture.mode


def deep_png(path: Path, colour: int) -> None:
    """A 16-bit PNG of 3 by 2 pixels, written by hand: Pillow writes none. ``colour``: PNG's type of colour."""
    channels = {2: 3, 4: 2, 6: 4}[colour]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    row = b"\0" + bytes(range(3 * channels * 2))
    head = struct.pack(">IIBBBBB", 3, 2, 16, colour, 0, 0, 0)
    data = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(row * 2)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + data)


@pytest.mark.parametrize("colour", [2, 4, 6])
def test_deep_colour_is_not_cut_in_silence(colour: int, tmp_path: Path) -> None:
    deep_png(tmp_path / "a.png", colour)
    assert mode_of(tmp_path / "a.png") in ("RGB", "LA", "RGBA")
    for record in (None, InputRecord(image_size=2, channels=3)):
        with pytest.raises(BadInput, match=r"not an 8-bit picture.*a\.png.*;16B"):
            read_batch(str(tmp_path), labels="ignored", input=record)


def test_deep_pictures_of_other_formats(tmp_path: Path) -> None:
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 65535\n" + bytes(12))
    with pytest.raises(BadInput, match=r"not an 8-bit picture.*a\.ppm"):
        read(tmp_path)
    (tmp_path / "a.ppm").write_bytes(b"P6 2 1 255\n" + bytes(6))
    assert read(tmp_path).input_shape == (3, 1, 2)
    (tmp_path / "a.ppm").unlink()
    # A TIFF of 16-bit RGB: little-endian, one strip.
    fields = [
        (256, 3, 1, 2), (257, 3, 1, 1), (258, 3, 3, 122), (259, 3, 1, 1), (262, 3, 1, 2), (273, 4, 1, 128),
        (277, 3, 1, 3), (278, 3, 1, 1), (279, 4, 1, 12),
    ]  # fmt: skip
    head = b"II*\0" + struct.pack("<IH", 8, len(fields)) + b"".join(struct.pack("<HHII", *f) for f in fields)
    (tmp_path / "a.tif").write_bytes((head + bytes(4)).ljust(122, b"\0") + struct.pack("<3H", 16, 16, 16) + bytes(12))
    assert mode_of(tmp_path / "a.tif") == "RGB"
    with pytest.raises(BadInput, match=r"not an 8-bit picture.*a\.tif"):
        read(tmp_path)
    (tmp_path / "a.tif").unlink()
    save(tmp_path / "a.avif")
    assert len(read(tmp_path).images) == 1
    data = bytearray((tmp_path / "a.avif").read_bytes())
    data[data.index(b"av1C") + 6] |= 0x40  # says ten bits
    (tmp_path / "a.avif").write_bytes(data)
    with pytest.raises(BadInput, match=r"a\.avif"):
        read(tmp_path)
