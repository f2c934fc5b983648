"""Where to compute: a processor, or an accelerator if there is one. A store is the same whatever computed it."""

from __future__ import annotations

import torch

from clmoe_cli.runtime.choices import DEVICES
from clmoe_cli.runtime.distributed.processes import on_this_machine
from clmoe_cli.runtime.words import one_of
from store_schema import UsageProblem


def resolved(device: str) -> str:
    """The device that torch is told: ``auto`` is the first accelerator that is there, or the CPU.

    Of several processes on one machine each takes a graphics card of its own, on which results do not depend on
    chance. Raises UsageProblem for an unknown
    device, one that is not there or that several processes cannot use, and where there are too few cards.
    """
    one_of("device", device, DEVICES)
    local = on_this_machine()
    several = local is not None
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
    cards, (place, wanted) = torch.cuda.device_count(), local or (0, 1)
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
    return f"cuda:{place}"
