"""Several processes started by ``torchrun``: they join, work as one, and end together.

Process 0 alone writes the store and stdout. A process that is lost ends the others, before anything is committed.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from store_schema.errors import ClmoeError, Interrupted


class PeerLost(ClmoeError):
    """Another process of the same run has ended (exit 6)."""

    exit_code = 6


def launched() -> bool:
    """Whether this process is one of several."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def leading() -> bool:
    """Whether this process speaks for all: it is alone, or process 0."""
    return not launched() or os.environ["RANK"] == "0"


@contextmanager
def together(device: str) -> Iterator[None]:
    """Joins the processes of a run until the block ends; nothing happens to a process that is alone.

    Raises PeerLost where another process has ended, Interrupted where this one was told to.
    """
    if not launched():
        yield
        return
    import torch.distributed as dist

    from clmoe_cli.continual.parallel import Lost

    # torchrun stops what is left of a run so, and the store's lock and progress bar want to be given back.
    before = signal.signal(signal.SIGTERM, _stop)
    try:
        dist.init_process_group("nccl" if device == "cuda" else "gloo")
        yield
    except Lost as error:
        raise PeerLost(
            "another process of this run has ended",
            where=f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}",
            found=str(error)[:120],
            hint="the store is as it was before this command; see what the other one said, and run it again",
        ) from error
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
        signal.signal(signal.SIGTERM, before)


def _stop(number: int, frame: object) -> None:
    raise Interrupted(
        "stopped with the other processes of this run",
        where=f"process {os.environ['RANK']} of {os.environ['WORLD_SIZE']}",
        hint="unless the command had reported success, the store is as it was before",
    )
