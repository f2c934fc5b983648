"""Writes small photographs, in folders by class, cut from three photographs that Python packages carry.

scikit-learn carries a pagoda and a dahlia, matplotlib a portrait. Each class is a region of one photograph. Pictures to
learn from and pictures to ask about are crops of disjoint parts of that region, at random places, of random size,
turned, mirrored and made lighter or darker. This serves a demonstration: crops of one photograph are far more alike
than photographs of one class are. Usage: crop_photos.py FOLDER
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib
import numpy as np
import sklearn.datasets
from PIL import Image, ImageEnhance, ImageOps

SKLEARN = Path(sklearn.datasets.__file__).with_name("images")
CHINA, FLOWER = SKLEARN / "china.jpg", SKLEARN / "flower.jpg"
PORTRAIT = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"
LEARN, ASK = 48, 12
"""Crops of each class. With 30 or more to learn from, pictures have p-values and can be rejected."""
SIDES, DEGREES = (56, 74), 20
"""Pixels of a crop's side, and how far it is turned at most."""
Boxes = tuple[tuple[int, int, int, int], ...]
"""Left, top, right and bottom of each, in pixels."""
CLASSES: dict[str, dict[str, tuple[Path, Boxes, Boxes]]] = {
    "garden": {
        "pagoda": (
            CHINA,
            ((75, 60, 210, 200), (210, 200, 345, 340)),
            ((210, 60, 345, 200), (75, 200, 210, 340)),
        ),
        "treetops": (CHINA, ((350, 290, 446, 427), (543, 290, 640, 427)), ((446, 290, 543, 427),)),
    },
    "flower": {
        "dahlia": (
            FLOWER,
            ((165, 85, 305, 222), (305, 222, 445, 360)),
            ((305, 85, 445, 222), (165, 222, 305, 360)),
        ),
        "leaves": (
            FLOWER,
            ((0, 20, 160, 220), (450, 190, 590, 360)),
            ((0, 220, 160, 420), (450, 0, 640, 190)),
        ),
    },
}
"""By task and class: the photograph, its parts to learn from and those to ask about."""
UNKNOWN: Boxes = ((150, 20, 380, 320),)


def crop(photograph: Image.Image, boxes: Boxes, rng: np.random.Generator) -> Image.Image:
    """A square of random place, size, angle and brightness from one of the boxes; it shows nothing outside of it."""
    left, top, right, bottom = boxes[int(rng.integers(len(boxes)))]
    side, degrees = int(rng.integers(*SIDES)), float(rng.uniform(-DEGREES, DEGREES))
    angle = np.deg2rad(DEGREES)
    reach = side / 2 * (np.cos(angle) + np.sin(angle)) + 1  # from the middle to a turned corner, and a pixel beside it
    x, y = rng.uniform(left + reach, right - reach), rng.uniform(top + reach, bottom - reach)
    turned = photograph.rotate(degrees, Image.Resampling.BICUBIC, center=(x, y))
    start = round(x - side / 2), round(y - side / 2)
    picture = turned.crop((*start, start[0] + side, start[1] + side))
    picture = ImageEnhance.Brightness(picture).enhance(rng.uniform(0.75, 1.25))
    return ImageOps.mirror(picture) if rng.random() < 0.5 else picture


def write(folder: Path, photograph: Path, boxes: Boxes, count: int, rng: np.random.Generator) -> None:
    """So many crops as JPEG files."""
    folder.mkdir(parents=True)
    with Image.open(photograph) as opened:
        whole = opened.convert("RGB")
    for i in range(count):
        crop(whole, boxes, rng).save(folder / f"{i:02d}.jpg", quality=92)


def main(out: Path) -> None:
    """Writes TASK/CLASS to learn from, TASK.test/CLASS to ask about, and unknown/ of no class."""
    rng = np.random.default_rng(0)
    for task, classes in CLASSES.items():
        for name, (photograph, learn, ask) in classes.items():
            write(out / task / name, photograph, learn, LEARN, rng)
            write(out / f"{task}.test" / name, photograph, ask, ASK, rng)
    write(out / "unknown", PORTRAIT, UNKNOWN, ASK, rng)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
