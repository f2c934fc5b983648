"""Some processes that work together as those of ``torchrun`` do, forked: their own start would take seconds."""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch.distributed as dist
from torch import Tensor

from clmoe_cli.runtime.distributed import collectives

Found = dict[str, Tensor]


def together(n: int, act: Callable[[int], Found], folder: Path) -> list[dict[str, np.ndarray]]:
    """What ``act`` finds in each of n processes, which is told which of them it is."""
    folder.mkdir()
    children = [_forked(act, rank, n, folder) for rank in range(n)]
    ended: dict[int, int] = {}
    deadline = time.monotonic() + 60
    while len(ended) < n and time.monotonic() < deadline and not any(ended.values()):
        for pid in set(children) - set(ended):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended[pid] = os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    for pid in set(children) - set(ended):  # waits for what will not come
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    assert list(ended.values()) == [0] * n, ended
    found = []
    for rank in range(n):
        with np.load(folder / f"{rank}.npz") as file:
            found.append({name: file[name] for name in file.files})
    return found


def _forked(act: Callable[[int], Found], rank: int, n: int, folder: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # a fork beside idle threads
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=n)
        collectives.meet()  # one that is done at once must not be gone before all have come
        found = act(rank)
        np.savez(folder / f"{rank}.npz", **{name: value.detach().numpy() for name, value in found.items()})
        dist.destroy_process_group()
        status = 0
    except BaseException:
        traceback.print_exc(file=sys.stderr)
    finally:
        sys.stderr.flush()
        os._exit(status)
