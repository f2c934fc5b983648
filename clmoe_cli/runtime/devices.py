"""Where to compute: a processor, or an accelerator if there is one. A store is the same whatever computed it."""

from __future__ import annotations

import os

import torch

from clmoe_cli.runtime.choices import DEVICES
from clmoe_cli.runtime.distributed.processes import launched
from clmoe_cli.runtime.words import one_of
from store_schema import UsageProblem


def resolved(device: str) -> str:
    """The device that torch is told: ``auto`` is the first accelerator that is there, or the CPU.

    Of several processes on one machine each takes a graphics card of its own, on which results do not depend on
    chance. Raises UsageProblem for an unknown
    device, one that is not there or that several processes cannot use, and where there are too few cards.
    """
    one_of("device", device, DEVICES)
    several = launched()
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available() and not several, "cpu": True}
    if device == "auto":
        device = next(name for name, found in there.items() if found)
    if not there[device]:
        raise UsageProblem(
            "no such device for several processes" if several else "no such device on this machine",
            found=device,
            expected=" or ".join(name for name, found in there.items() if found),
            hint="--device auto takes what there is",
        )
    cards, wanted = torch.cuda.device_count(), int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if several else 1
    if device == "cuda" and several and wanted > cards:
        raise UsageProblem(
            "more processes than graphics cards on this machine",
            found=str(wanted),
            expected=f"at most {cards}",
            hint="choose another --nproc-per-node, or --device cpu",
        )
    if device != "cuda":
        return device
    # The same bits each time, and no convolution in ten bits: what is predicted agrees with other devices.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32 = True, False
    return f"cuda:{os.environ.get('LOCAL_RANK', '0') if several else '0'}"
