"""One graphics card beside all cores of the processor of the same machine, in at most four minutes and one table.

    python benchmarks/card.py --root MNIST_ROOT --photos PHOTOS --out bench-out/card

P6 (six tasks of two digits, ``mlp:500,500``) is learned on both from the same images; the store of the card is asked
and verified on both. ``resnet9`` learns five tasks of CIFAR-10 on the card, where this version knows the architecture.
Imports and the first use of a device are not in the seconds. Work that the time left does not allow is left out and
named. Without a card the processor has its column alone. Test images are used for these figures only.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import P6, Absent, Data, Places, digits, few, pictures
from sequence import percent, table, write

from clmoe_cli.api.certify import certify_outputs
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.subnetwork.training import Epoch, Schedule
from clmoe_cli.runtime.devices import resolved
from store_schema import Store, StoreDamaged

MARGIN = 1.3
"""A task may take so many times the longest one before it."""
NONE = "–"


@dataclass
class Time:
    """What is left of ``seconds``."""

    seconds: float
    began: float = field(default_factory=time.monotonic)

    def left(self) -> float:
        return self.seconds - (time.monotonic() - self.began)


@dataclass
class Learned:
    """Seconds of each task, ``training`` those up to the last epoch."""

    seconds: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)


def learn_all(store: Path, data: Data, options: LearnOptions, spare: Callable[[], float]) -> Learned:
    """Learns the tasks in order, as many as ``spare`` seconds allow."""
    found = Learned()
    for number in range(len(data.tasks)):
        if spare() < MARGIN * max(found.seconds, default=0.0):
            break
        batch, ends = data.learned(number, 0), [time.monotonic()]

        def note(epoch: Epoch, ends: list[float] = ends) -> None:
            ends[1:] = [time.monotonic()]

        learn(str(store), batch, replace(options, name=f"task{number + 1}"), on_epoch=note)
        found.seconds.append(time.monotonic() - ends[0])
        found.training.append(ends[-1] - ends[0])
        print(f"{options.method.device} {options.arch} task {number + 1}: {found.seconds[-1]:.1f} s", file=sys.stderr)
    return found


def warmed(device: str, data: Data, scratch: Path) -> None:
    """A small task, so that libraries are loaded and the device is awake."""
    some = few((data.train[0], data.train[1]), 200, 0)
    options = LearnOptions(arch="mlp:32", method=Options(Schedule(epochs=1), device=device))
    learn(str(scratch / f"warm-{device.partition(':')[0]}"), Data(some, some, data.tasks).learned(0, 0), options)


def shown(found: Learned | None, count: int) -> list[str]:
    """Seconds of so many tasks and of their training."""
    if found is None or not found.seconds:
        return [NONE, NONE]
    return [f"{sum(found.seconds[:count]):.1f}", f"{sum(found.training[:count]):.1f}"]


def compared(store: Path, data: Data, card: str) -> dict[str, Any]:
    """The same store asked on both devices, and verified by the processor."""
    asked = data.asked()
    here, there = (predict(str(store), asked, device=device) for device in ("cpu", card))
    try:
        certify_outputs(Store.open(store))
        verified = True
    except StoreDamaged:
        verified = False
    return {
        "images": len(asked.images),
        "labels that differ": int((here.label != there.label).sum()),
        "largest difference of a confidence": float(np.abs(here.confidence - there.confidence).max()),
        "verified on the other device": verified,
    }


def accuracy(store: Path, data: Data, count: int, device: str) -> float:
    """Share of test images of the first tasks that are answered right, no task given."""
    known = replace(data, tasks=data.tasks[:count])
    asked = known.asked()
    return float((predict(str(store), asked, device=device).label == asked.labels).mean())


def known(arch: str) -> bool:
    """Whether this version has the architecture."""
    try:
        parse_arch(arch, (3, 32, 32))
    except ValueError:
        return False
    return True


def measured(options: argparse.Namespace, scratch: Path, clock: Time) -> tuple[dict[str, Any], list[list[str]]]:
    """All figures, and the rows of the table: what, processor, card, ratio."""
    places = Places(options.photos, options.root, scratch)
    p6 = digits(P6)(places)
    p6 = replace(p6, train=few(p6.train, options.images, 0))
    card = None if options.device == "cpu" else resolved(options.device)
    card = None if card == "cpu" else card
    plain = LearnOptions(arch=options.arch, method=Options(Schedule(epochs=options.epochs)))
    found: dict[str, Any] = {
        "threads": torch.get_num_threads(),
        "card": torch.cuda.get_device_name(card) if card and card.startswith("cuda") else card,
        "images": len(p6.train[1]),
    }
    deep, there, rows = None, None, []
    warmed("cpu", p6, scratch)
    if card:
        warmed(card, p6, scratch)
        on_card = replace(plain, method=replace(plain.method, device=card))
        there = learn_all(scratch / "card", p6, on_card, clock.left)
        found |= compared(scratch / "card", p6, card)
        if options.photos and known(options.deep):
            photos = pictures("cifar10", 5, options.photographs)(places)
            deep = learn_all(scratch / "deep", photos, replace(on_card, arch=options.deep), clock.left)
            found["deep accuracy"] = accuracy(scratch / "deep", photos, len(deep.seconds), card)
    here = learn_all(scratch / "processor", p6, plain, clock.left)
    both = min(len(here.seconds), len(there.seconds)) if there else len(here.seconds)
    times = [shown(here, both), shown(there, both)]
    ratios = [f"{float(a) / float(b):.2f}" if b not in (NONE, "0.0") else NONE for a, b in zip(*times, strict=True)]
    for name, mine, its, ratio in zip(("learn", "of that training"), *times, ratios, strict=True):
        rows.append([f"P6, {both} tasks, {found['images']} images: {name}, s", mine, its, ratio])
    right = accuracy(scratch / "processor", p6, both, "cpu")
    its_right = percent(accuracy(scratch / "card", p6, both, "cpu")) if card else NONE
    rows.append(["answered right, no task given, %", percent(right), its_right, ""])
    if card:
        rows += [[name, "", str(found[name]), ""] for name in found if name.startswith(("labels", "largest", "verif"))]
    name = f"CIFAR-10, {options.deep}, {len(deep.seconds) if deep else 5} tasks: learn, s"
    rows.append([name, NONE, shown(deep, 5)[0] if deep else "left out", ""])
    if deep:
        rows.append(["answered right, no task given, %", NONE, percent(found["deep accuracy"]), ""])
    found |= {"processor": vars(here), "on card": vars(there) if there else None, "deep": vars(deep) if deep else None}
    return found | {"accuracy": right, "seconds": clock.seconds - clock.left()}, rows


def header(found: dict[str, Any]) -> Sequence[str]:
    """The table's first line."""
    return ("", f"processor, {found['threads']} threads", found["card"] or "no card here", "processor to card")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, required=True)
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--out", type=Path, default=Path("bench-out/card"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--images", type=int, default=20_000, help="of P6, in all")
    parser.add_argument("--photographs", type=int, default=12_000)
    parser.add_argument("--arch", default="mlp:500,500")
    parser.add_argument("--deep", default="resnet9")
    parser.add_argument("--epochs", type=int, default=Schedule().epochs)
    parser.add_argument("--seconds", type=float, default=225.0)
    options = parser.parse_args()
    clock = Time(options.seconds)
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
    with TemporaryDirectory() as scratch:
        try:
            found, rows = measured(options, Path(scratch), clock)
        except Absent as error:
            raise SystemExit(str(error)) from error
    text = table(header(found), rows)
    write(options.out, "card", found, text)
    print(text)


if __name__ == "__main__":
    main()
