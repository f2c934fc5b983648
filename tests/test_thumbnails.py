"""``inspect --report --with-pictures``: a page that shows a few pictures of each class and stays one file."""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import unicodedata
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up import made_up
from PIL import Image

from clmoe_cli.api.inspect import InspectReport, inspect
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.report import thumbnails as module
from clmoe_cli.report.html import report_page
from clmoe_cli.report.thumbnails import EACH, SIDE, thumbnails
from clmoe_cli.runtime.events import Step, silent
from store_schema.errors import BadInput

RED, GREEN, BLUE = (250, 10, 10), (10, 250, 10), (10, 10, 250)


def picture(path: Path, colour: tuple[int, int, int] = RED, size: tuple[int, int] = (200, 120)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tasks 1 and 2, with the classes 2 and "class 1", 4 and "class 2"."""
    return made_up(tmp_path_factory.mktemp("thumbnails") / "store", [2])


@pytest.fixture(scope="module")
def report(store: Path) -> InspectReport:
    return inspect(str(store))


class Seen(HTMLParser):
    """Pictures and texts of a page, in their order."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.images: list[tuple[str, Image.Image]] = []
        self.texts: list[str] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        if tag == "img":
            head, _, data = (found["src"] or "").partition(",")
            assert head == "data:image/jpeg;base64"
            image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)))
            assert image.format == "JPEG"
            self.images.append((found["alt"] or "", image))

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def page(report: InspectReport, folder: Path) -> Seen:
    return Seen(report_page(report, thumbnails(report, folder, silent)))


def is_of(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    middle = image.convert("RGB").getpixel((image.width // 2, image.height // 2))
    assert isinstance(middle, tuple)
    return max(abs(a - b) for a, b in zip(middle, colour, strict=True)) < 12


def test_class_folders_and_task_folders(report: InspectReport, tmp_path: Path) -> None:
    picture(tmp_path / "2" / "a.png", GREEN)
    picture(tmp_path / "task1" / "class 1" / "deeper" / "a.jpg", BLUE)
    picture(tmp_path / "anything" / "class 2" / "a.ppm", RED, (30, 90))
    seen = page(report, tmp_path)
    assert [name for name, _ in seen.images] == ["2", "class 1", "class 2"]
    assert [image.size for _, image in seen.images] == [(SIDE, 58), (SIDE, 58), (30, 90)]
    for (_, image), colour in zip(seen.images, (GREEN, BLUE, RED), strict=True):
        assert is_of(image, colour)
    assert "no pictures found: 4" in seen.texts
    assert sum("no pictures found" in text for text in seen.texts) == 1


def test_the_folder_of_the_task_comes_first(report: InspectReport, tmp_path: Path) -> None:
    for place, colour in (("other/2", RED), ("2", GREEN), ("task1/2", BLUE)):
        picture(tmp_path / place / "a.png", colour)
    for place, colour in (("task1/2", BLUE), ("2", GREEN), ("other/2", RED)):
        assert is_of(page(report, tmp_path).images[0][1], colour)
        (tmp_path / place / "a.png").unlink()
    assert page(report, tmp_path).images == []


def test_a_few_pictures_from_all_over_the_folder(report: InspectReport, tmp_path: Path) -> None:
    for i in range(40):
        picture(tmp_path / "2" / f"{i:02d}.png", (6 * i, 0, 0))
    images = page(report, tmp_path).images
    assert len(images) == EACH
    for (_, image), i in zip(images, (0, 10, 20, 30), strict=True):
        assert is_of(image, (6 * i, 0, 0))


def test_broken_pictures_are_counted_and_others_stand_in(report: InspectReport, tmp_path: Path) -> None:
    for i in range(8):
        picture(tmp_path / "2" / f"{i}.png")
    (tmp_path / "2" / "0.png").write_bytes(b"no picture")
    cut = (tmp_path / "2" / "4.png").read_bytes()
    (tmp_path / "2" / "4.png").write_bytes(cut[: len(cut) // 2])
    (tmp_path / "4").mkdir()
    (tmp_path / "4" / "a.jpg").write_bytes(b"")
    (tmp_path / "class 1").mkdir()
    (tmp_path / "class 1" / "notes.txt").write_text("no picture")
    picture(tmp_path / "class 1" / ".hidden.png")
    seen = page(report, tmp_path)
    assert [name for name, _ in seen.images] == ["2"] * EACH
    assert "2 broken pictures left out" in seen.texts
    assert "1 broken picture left out" in seen.texts
    assert "no pictures found: class 1" in seen.texts


def test_grey_turned_and_large_pictures(report: InspectReport, tmp_path: Path) -> None:
    (tmp_path / "2").mkdir()
    Image.fromarray(np.full((300, 10), 90, np.uint8)).save(tmp_path / "2" / "a.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010E] = "where it was taken"
    Image.new("RGB", (400, 100), BLUE).save(tmp_path / "2" / "b.jpg", exif=exif)
    (_, grey), (_, turned) = page(report, tmp_path).images
    assert (grey.mode, grey.height) == ("L", SIDE)
    assert turned.size == (24, SIDE)
    assert not turned.getexif()
    assert b"taken" not in base64.b64decode(thumbnails(report, tmp_path, silent)[0].shown[0].uris[1].partition(",")[2])


def test_a_page_has_a_bounded_size(report: InspectReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    for name in ("2", "class 1", "4"):
        (tmp_path / name).mkdir()
        for i in range(EACH):
            Image.fromarray(rng.integers(0, 255, (300, 300, 3), dtype=np.uint8)).save(tmp_path / name / f"{i}.png")
    whole = thumbnails(report, tmp_path, silent)
    sizes = [len(uri) for task in whole for own in task.shown for uri in own.uris]
    assert len(sizes) == 3 * EACH
    most = sum(sizes[: EACH + 2]) + 10
    monkeypatch.setattr(module, "_MOST", most)
    found = thumbnails(report, tmp_path, silent)
    assert [len(own.uris) for task in found for own in task.shown] == [EACH, 2, 0]
    assert [own.full for task in found for own in task.shown] == [False, False, True]
    text = report_page(report, found).decode()
    assert "left out: the page has as many pictures as it may" in text
    assert len(text) < len(report_page(report)) + most + 3000
    monkeypatch.undo()
    monkeypatch.setattr(module, "ALL", 5)  # of four classes
    assert [len(own.uris) for task in thumbnails(report, tmp_path, silent) for own in task.shown] == [1, 1, 1]


def test_without_pictures_the_page_is_as_it_was(report: InspectReport, tmp_path: Path) -> None:
    picture(tmp_path / "2" / "a.png")
    plain, more = report_page(report).decode(), report_page(report, thumbnails(report, tmp_path, silent)).decode()
    assert "<img" not in plain
    assert "Pictures of the classes" not in plain
    section = re.compile(r"<h2>Pictures of the classes</h2>.*?(?=<h2>Numbers</h2>)", re.DOTALL)
    assert section.sub("", more) == plain
    assert more == report_page(report, thumbnails(report, tmp_path, silent)).decode()


def test_names_of_the_store_are_data(tmp_path: Path) -> None:
    names = {1: '"><script>alert(1)</script>', 2: "../secret"}
    report = inspect(str(made_up(tmp_path / "store", [2], names=names)))
    hostile = tuple(
        type(task)(**{**vars(task), "classes": ("../secret", '"><img src=x onerror="alert(2)">', "..", "cafe\u0301")})
        for task in report.tasks
    )
    report = type(report)(**{**vars(report), "tasks": hostile})
    picture(tmp_path / "secret" / "a.png")
    picture(tmp_path / "given" / '"><img src=x onerror="alert(2)">' / "a.png")
    picture(tmp_path / "given" / unicodedata.normalize("NFD", "café") / "a.png")
    (tmp_path / "given" / "cafe").mkdir()
    found = thumbnails(report, tmp_path / "given", silent)
    assert all("../secret" in task.none and ".." in task.none for task in found)
    text = report_page(report, found).decode()
    assert "<script" not in text
    assert 'onerror="' not in text
    assert str(tmp_path) not in text
    assert len(Seen(text.encode()).images) == 4


def test_a_folder_is_asked_for_and_steps_are_told(report: InspectReport, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no such folder"):
        thumbnails(report, tmp_path / "nowhere", silent)
    steps: list[Step] = []
    thumbnails(report, tmp_path, steps.append)
    assert [(step.name, step.done, step.total) for step in steps] == [("reading pictures", i, 2) for i in range(3)]


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("--with-pictures photos", 2, "--with-pictures needs --report"),
        ("--with-pictures photos --plot plot.svg", 2, "--with-pictures needs --report"),
        ("--with-pictures nowhere --report page.html", 3, "no such folder"),
        ("--with-pictures photos/2/a.png --report page.html", 3, "no such folder"),
    ],
)
def test_what_cannot_be_shown_is_refused_before_any_work(
    args: str,
    code: int,
    words: str,
    store: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "photos" / "2" / "a.png")
    assert run(app, ["inspect", "--store", str(store), *args.split()]) == code
    printed = capsys.readouterr()
    assert words in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["photos"]


LIGHT = """
import sys
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
code = run(app, sys.argv[1:])
assert "torch" not in sys.modules
sys.exit(code)
"""


def test_the_command_line_without_torch(store: Path, tmp_path: Path) -> None:
    picture(tmp_path / "secret place" / "2" / "a.png")
    before = {path: path.read_bytes() for path in store.rglob("*") if path.is_file()}
    args = ["inspect", "--store", store, "--report", "page.html", "--with-pictures", "secret place", "--json"]
    done = subprocess.run(
        [sys.executable, "-c", LIGHT, *map(str, args)],
        capture_output=True, check=False, timeout=60, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == "wrote page.html\n"
    assert json.loads(done.stdout) == inspect(str(store)).to_json()
    text = (tmp_path / "page.html").read_bytes()
    assert len(Seen(text).images) == 1
    assert b"secret place" not in text
    assert {path: path.read_bytes() for path in store.rglob("*") if path.is_file()} == before
