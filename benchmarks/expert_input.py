"""What experts read: pixels, fixed features, or a backbone's; judged by held-out training pictures alone.

    python benchmarks/expert_input.py --photos PHOTOS --mnist MNIST_ROOT --out bench-out/expert_input

Of each data set a few thousand training pictures. Four fifths are learned, task after task with default options. The
last fifth is asked without a task id, of the gate alone and of gate and subnetworks together (``fused``), and with the
task given. Test files are not opened.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import P6, Absent, Array, Data, Places, digits, few, groups, packed
from sklearn.model_selection import train_test_split

from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import read_batch

SETS = {"digits": 6, "cifar10": 5, "gtsrb": 8, "cifar100": 10}
"""Tasks of each."""
INPUTS = ("none", "fixed", "lite0")
"""``--features``: experts that read pixels, fixed features, a backbone's."""


def parts(name: str, places: Places, images: int) -> Data:
    """Training pictures of a data set in two parts, to learn and to ask."""
    whole = digits(P6)(places).train if name == "digits" else packed(places.photo(f"{name}.train.packed.npz"))
    x, y = few(whole, images, places.seed)
    own, held = train_test_split(np.arange(len(y)), test_size=0.2, stratify=y, random_state=places.seed)
    tasks = P6 if name == "digits" else groups(y, SETS[name])
    return Data((x[own], y[own]), (x[held], y[held]), tasks)


def seen(data: Data, features: str, scratch: Path) -> Data:
    """The same data as experts read it."""
    if features == "none":
        return data
    session = BackboneSession(features, experts="mlp:500,500")
    record = session.record(None, None)
    found: list[tuple[Array, Array]] = []
    for x, y in (data.train, data.test):
        np.savez(scratch / "pictures.npz", x=x, y=y)
        batch = read_batch(scratch / "pictures.npz", labels="required", input=record, extractor=session)
        assert batch.labels is not None
        found.append((np.array(batch.images), batch.labels))
    return Data(found[0], found[1], data.tasks, input=record)


def measured(data: Data, seed: int, scratch: Path) -> dict[str, Any]:
    """Shares of right answers on what is asked, and seconds."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        store, started = str(Path(folder) / "store"), time.perf_counter()
        names = [learn(store, data.learned(i, seed), LearnOptions(seed=seed)).task for i in range(len(data.tasks))]
        seconds = time.perf_counter() - started
        found = {router: predict(store, data.asked(), router=router).accuracy for router in ("gate", "fused")}
        given = [predict(store, (own := data.asked(i)), task=name).label == own.labels for i, name in enumerate(names)]
    return {**found, "given": float(np.concatenate(given).mean()), "seconds": seconds}


def main() -> None:
    """Prints a row for each data set and input."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=Path)
    parser.add_argument("--mnist", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--images", type=int, default=4000, help="training pictures of a data set")
    parser.add_argument("--only", nargs="+", default=list(SETS))
    parser.add_argument("--inputs", nargs="+", default=list(INPUTS))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    args.out.mkdir(parents=True, exist_ok=True)
    rows = ["| data | `--features` | gate | fused | task given | seconds |", "| --- | --- | --- | --- | --- | --- |"]
    for name in args.only:
        with tempfile.TemporaryDirectory() as folder:
            scratch = Path(folder)
            try:
                data = parts(name, Places(args.photos, args.mnist, scratch, args.seed), args.images)
            except Absent as error:
                print(error, file=sys.stderr)
                continue
            for features in args.inputs:
                figures = measured(seen(data, features, scratch), args.seed, scratch)
                (args.out / f"{name}-{features}-{args.seed}.json").write_text(json.dumps(figures))
                shown = " | ".join(f"{100 * figures[key]:.1f}" for key in ("gate", "fused", "given"))
                rows.append(f"| {name} | {features} | {shown} | {figures['seconds']:.0f} |")
                print(rows[-1], file=sys.stderr, flush=True)
    print("\n".join(rows))


if __name__ == "__main__":
    main()
