"""Peak memory of ``learn`` on a folder of 20,000 pictures and of ``predict`` on an npz of 2 GB, beside a tenth of each.

    python benchmarks/memory.py --out bench-out/memory
    python benchmarks/memory.py --images 400 --gigabytes 0.02 --arch mlp:20      (only to try it)

What is bounded grows by little between the two sizes, what is proportional tenfold. Memory is read from ``/proc`` every
few milliseconds, over a command and the processes that it starts: anonymous pages (``RssAnon``, what the command
itself holds), and all resident ones (mapped files count there, which the kernel can drop). ``import torch`` alone is
the first row.
"""

from __future__ import annotations

import argparse
import math
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from scenes import CHUNK, draw, write_pictures
from sequence import table, write

CLASSES = ("apple", "lime")
SIDE = 64
EVERY = 0.01
"""Seconds between two looks at the memory."""
MIB = 2**20
KEYS = ("mib", "anonymous_mib", "resident_mib", "seconds")


def chunk(name: str, index: int) -> np.ndarray:
    """``CHUNK`` pictures [CHUNK, SIDE, SIDE, 3] uint8."""
    return draw(name, CHUNK, SIDE, np.random.default_rng((7, CLASSES.index(name), index)))


def write_chunk(job: tuple[str, int], folder: Path) -> None:
    name, index = job
    write_pictures(folder / name, chunk(name, index), index * CHUNK + 1)


def write_folder(folder: Path, images: int, jobs: int) -> None:
    """About so many pictures of two classes, in whole chunks."""
    for name in CLASSES:
        (folder / name).mkdir(parents=True)
    numbers = range(math.ceil(images / CHUNK / len(CLASSES)))
    with ProcessPoolExecutor(jobs) as processes:
        list(processes.map(partial(write_chunk, folder=folder), product(CLASSES, numbers)))


def write_npz(path: Path, size: int) -> int:
    """An npz of ``size`` bytes as ``numpy.savez`` writes it, float32 [N, 3, 64, 64] in 0 to 1, streamed; returns N.

    A thousand pictures in turn: they need not differ to fill memory.
    """
    some = np.concatenate([chunk(name, i) for name, i in product(CLASSES, range(2))]).transpose(0, 3, 1, 2)
    images = max(1, size // (some[0].size * 4))
    header = {"descr": "<f4", "fortran_order": False, "shape": (images, *some.shape[1:])}
    with zipfile.ZipFile(path, "w") as file, file.open("x.npy", "w", force_zip64=True) as member:
        np.lib.format.write_array_header_1_0(member, header)
        for start in range(0, images, len(some)):
            member.write((some[: images - start] / np.float32(255)).astype("<f4").tobytes())
    return images


def family(pid: int) -> Iterator[int]:
    """A process and all that descend from it."""
    yield pid
    try:
        found = [
            int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()
        ]
    except OSError:
        return
    for child in found:
        yield from family(child)


def resident(pid: int) -> tuple[int, int]:
    """Anonymous and all resident bytes of a process and its descendants now."""
    anonymous = total = 0
    for member in family(pid):
        try:
            lines = dict(line.split(":", 1) for line in Path(f"/proc/{member}/status").read_text().splitlines())
        except OSError:
            continue
        anonymous += int(lines.get("RssAnon", "0 kB").split()[0]) * 1024
        total += int(lines.get("VmRSS", "0 kB").split()[0]) * 1024
    return anonymous, total


def measured(command: list[str]) -> dict[str, Any]:
    """Runs a command; its peaks in MiB and its seconds. A command that fails ends the benchmark."""
    started, peak = time.monotonic(), (0, 0)
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None:
            peak = tuple(map(max, peak, resident(running.pid)))
            time.sleep(EVERY)
        problem = running.stderr.read() if running.stderr else ""
    if running.returncode:
        raise SystemExit(f"{' '.join(command)}: exit {running.returncode}: {problem}")
    return {
        "anonymous_mib": peak[0] / MIB,
        "resident_mib": peak[1] / MIB,
        "seconds": time.monotonic() - started,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("bench-out/memory"))
    parser.add_argument("--images", type=int, default=20_000, help="pictures in the folder")
    parser.add_argument("--gigabytes", type=float, default=2.0, help="size of the npz")
    parser.add_argument("--arch", default="cnn:8,16,32")
    parser.add_argument("--image-size", type=int, help="passed on to learn")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2, help="processes that draw pictures")
    options = parser.parse_args()
    if options.out.exists():
        raise SystemExit(f"{options.out} exists: remove it first")
    options.out.mkdir(parents=True)
    clmoe = [sys.executable, "-m", "clmoe_cli"]
    flags = ["--arch", options.arch, "--epochs", str(options.epochs), "-q"]
    if options.image_size:
        flags += ["--image-size", str(options.image_size)]
    rows = [{"run": "import torch, torchvision", **measured([sys.executable, "-c", "import torch, torchvision"])}]
    for part in (10, 1):
        folder, store = options.out / f"folder{part}", options.out / f"store{part}"
        write_folder(folder, options.images // part, options.jobs)
        files = list(folder.rglob("*.png"))
        learned = measured([*clmoe, "learn", "--data", str(folder), "--store", str(store), *flags])
        images, size = len(files), sum(file.stat().st_size for file in files)
        rows.append({"run": "learn", "images": images, "mib": size / MIB, **learned})
        print(rows[-1], file=sys.stderr, flush=True)
    store, answers = options.out / "store10", options.out / "answers.npz"
    for part in (10, 1):
        npz = options.out / f"asked{part}.npz"
        images = write_npz(npz, round(options.gigabytes * 1e9 / part))
        asked = ["predict", "--batch", str(npz), "--store", str(store), "--output", str(answers), "-q"]
        rows.append({"run": "predict", "images": images, "mib": npz.stat().st_size / MIB, **measured([*clmoe, *asked])})
        print(rows[-1], file=sys.stderr, flush=True)
        npz.unlink()
    result: dict[str, Any] = {"arch": options.arch, "runs": rows}
    for name, few, many in (("learn", *rows[1:3]), ("predict", *rows[3:5])):
        for kind in ("anonymous_mib", "resident_mib"):
            result[f"{name}_growth_{kind}"] = many[kind] - few[kind]
    cells = [[row["run"], row.get("images", ""), *(f"{row[k]:.0f}" if k in row else "" for k in KEYS)] for row in rows]
    header = ("run", "images", "data, MiB", "anonymous peak, MiB", "resident peak, MiB", "s")
    write(options.out, "memory", result, f"# Peak memory, {options.arch}\n\n" + table(header, cells))


if __name__ == "__main__":
    main()
