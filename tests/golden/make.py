"""Writes the golden store of the format that this version writes, once, when a format is new: ``python make.py``.

A golden store is never written again: later versions must read it as it is.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[2]))  # the packages before the tests of the same name
import small_store as small

from clmoe_cli.api.predict import predict
from store_schema import Store, layout

if __name__ == "__main__":
    torch.set_num_threads(1)
    folder = Path(__file__).parent / f"format{layout.FORMAT_VERSION}"
    small.build(folder / "store", 2)
    questions = small.questions()
    report = predict(str(folder / "store"), questions)
    manifest = Store.open(folder / "store").manifest
    np.savez_compressed(
        folder / "expected.npz", x=questions.images, label=report.label, task=report.task,
        confidence=report.confidence, content_hash=manifest.content_hash(),
    )  # fmt: skip
    for name in (layout.LOCK, layout.TMP, layout.CHECKPOINTS):  # none of them is in a copy
        path = folder / "store" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
