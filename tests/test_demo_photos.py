"""The demonstration on photographs: what it learns from and what it asks about are disjoint; its commands exist."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import typer
from PIL import Image

from clmoe_cli.cli.app import app
from clmoe_cli.data import read_batch
from store_schema import InputRecord

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = (EXAMPLES / "demo-photos.sh").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def crops() -> ModuleType:
    for package in ("sklearn", "matplotlib"):
        pytest.importorskip(package)
    spec = importlib.util.spec_from_file_location("crop_photos", EXAMPLES / "crop_photos.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_parts_to_learn_from_and_to_ask_about_are_disjoint(crops: ModuleType) -> None:
    for classes in crops.CLASSES.values():
        for photograph, learn, ask in classes.values():
            with Image.open(photograph) as opened:
                width, height = opened.size
            used = np.zeros((height, width), int)
            for left, top, right, bottom in (*learn, *ask):
                assert 0 <= left < right <= width
                assert 0 <= top < bottom <= height
                used[top:bottom, left:right] += 1
            assert used.max() == 1


@pytest.mark.campaign
def test_a_crop_shows_nothing_outside_of_its_box(crops: ModuleType) -> None:
    rng = np.random.default_rng(0)
    boxes = [b for classes in crops.CLASSES.values() for _, *parts in classes.values() for part in parts for b in part]
    for left, top, right, bottom in boxes:
        pixels = np.full((bottom + 60, right + 60, 3), 255, np.uint8)
        pixels[top:bottom, left:right] = 10
        for _ in range(20):
            seen = np.asarray(crops.crop(Image.fromarray(pixels), ((left, top, right, bottom),), rng))
            assert seen.max() <= 13
            assert crops.SIDES[0] <= seen.shape[0] == seen.shape[1] < crops.SIDES[1]


@pytest.mark.campaign
def test_the_folders_are_tasks_and_the_same_each_time(crops: ModuleType, tmp_path: Path) -> None:
    subprocess.run([sys.executable, EXAMPLES / "crop_photos.py", tmp_path / "a"], check=True)
    crops.main(tmp_path / "b")
    found = {path.relative_to(tmp_path / "a"): path.read_bytes() for path in (tmp_path / "a").rglob("*.jpg")}
    assert found == {path.relative_to(tmp_path / "b"): path.read_bytes() for path in (tmp_path / "b").rglob("*.jpg")}
    assert len(set(found.values())) == len(found)
    for task, classes in crops.CLASSES.items():
        for name, count in ((task, crops.LEARN), (f"{task}.test", crops.ASK)):
            batch = read_batch(str(tmp_path / "a" / name), labels="required", input=InputRecord(image_size=8))
            assert batch.labels is not None
            assert sorted(batch.labels.tolist()) == sorted([*classes] * count)
    assert crops.LEARN >= 30
    named = set(re.findall(r"(?<=\s)photos/\S+", SCRIPT))
    assert len(named) >= 8
    assert all((tmp_path / "a" / word.removeprefix("photos/")).exists() for word in named)


def test_the_script_uses_commands_and_options_that_exist() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    lines = re.findall(r"^run clmoe (\S+) (.*)$", f"{SCRIPT}\n".replace("run clmoe inspect\n", ""), re.MULTILINE)
    assert {name for name, _ in lines} == {"learn", "predict", "inspect"}
    for name, rest in lines:
        known = {option for parameter in commands[name].params for option in parameter.opts}
        assert set(re.findall(r"(?<!\S)--[a-z-]+", rest)) <= known
    for option in ("--features lite0", "--reject", "--report", "--with-pictures"):
        assert option in SCRIPT
    assert "no benchmark" in SCRIPT
    subprocess.run(["sh", "-n", EXAMPLES / "demo-photos.sh"], check=True)
