"""Several processes started by ``torchrun``: they join, work as one, and end together.

Process 0 alone writes the store and stdout. A process that is lost ends the others, before anything is committed; of
what went wrong only the first that met it speaks.
"""

from __future__ import annotations

import math
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

from store_schema.errors import ClmoeError, UsageProblem

PATIENCE = timedelta(days=30)
"""How long a process waits for others: their end is noticed at once, and who waits for the lock is not lost."""
SOON = 5.0
"""Seconds after which a process says what it waits for."""
LAUNCH = 3.0
"""Seconds, about, that ``torchrun`` and the processes' meeting take."""
_LOOK = 0.1
SINGLE = ("detect", "inspect", "export", "schema")
WRITING = ("prune", "undo", "checkout", "rename", "tasks")

_first: bool | None = None
_joined = False


class PeerLost(ClmoeError):
    """Another process of the same run has ended (exit 6)."""

    exit_code = 6

    def __init__(self, error: Exception, hint: str = "nothing was committed; run the command again") -> None:
        place = f"process {os.environ.get('RANK')} of {os.environ.get('WORLD_SIZE')}"
        said = re.sub(r"\[[^]]*\.(cc|cpp):\d+\]", "", str(error))  # where in torch's sources
        super().__init__(
            "another process of this run has ended", where=place, found=" ".join(said.split())[:120], hint=hint
        )


_LEFT_BEHIND = "unset RANK and WORLD_SIZE to run one process; torchrun sets them for several"


def _number(name: str) -> int | None:
    text = os.environ.get(name, "").strip()
    return int(text) if re.fullmatch(r"[0-9]{1,9}", text) else None


def launched() -> bool:
    """Whether this process is one of several. Variables that say nonsense do not make it one."""
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    return rank is not None and world is not None and 0 <= rank < world > 1


def joined() -> bool:
    """Whether others work along with this process by now: all read the same, and each can read a share of it."""
    return _joined


def paid(seconds: float) -> bool:
    """Whether working together for so many seconds can have saved more than meeting took; one process had nobody to
    meet."""
    return not launched() or seconds * ((_number("WORLD_SIZE") or 1) - 1) >= LAUNCH


def on_this_machine() -> tuple[int, int] | None:
    """Which of how many processes on this machine this one is; None for a process that is alone."""
    return (_number("LOCAL_RANK") or 0, _number("LOCAL_WORLD_SIZE") or 1) if launched() else None


def neighbours() -> int:
    """How many of the processes are on this machine."""
    place = on_this_machine()
    return 1 if place is None else place[1]


def refuse_pipe(source: str) -> None:
    """UsageProblem for a pipe that several processes would read."""
    if launched() and (source == "-" or Path(source).is_fifo()):
        raise UsageProblem(
            "only one process can read a pipe",
            where="stdin" if source == "-" else source,
            hint="name a file or a folder",
        )


def leading() -> bool:
    """Whether this process speaks for all: it is alone, or process 0."""
    return not launched() or _number("RANK") == 0


def check_variables() -> None:
    """UsageProblem for variables of ``torchrun`` that cannot be: those that somebody has left behind, for instance."""
    local = ("LOCAL_WORLD_SIZE", "LOCAL_RANK") if launched() else ()
    for name in ("WORLD_SIZE", "RANK", *local):
        if name in os.environ and _number(name) is None:
            found = ascii(os.environ[name][:40])
            raise UsageProblem(f"the variable {name} is no number", found=found, expected="0, 1, …", hint=_LEFT_BEHIND)
    rank, world = _number("RANK"), _number("WORLD_SIZE")
    if world == 0:
        raise UsageProblem(
            "the variable WORLD_SIZE says no process", found="0", expected="1 or more", hint=_LEFT_BEHIND
        )
    if rank is not None and world is not None and rank >= world:
        found, wanted = f"RANK={rank}", f"less than WORLD_SIZE={world}"
        raise UsageProblem("the variable RANK is too large", found=found, expected=wanted, hint=_LEFT_BEHIND)


def speaks() -> bool:
    """Whether this process says what went wrong: it met it first, or before the processes joined it is process 0."""
    return leading() if _first is None else _first


def has_a_part(command: str | None) -> bool:
    """Whether this process has something to do in a command: those of ``SINGLE`` are for process 0 alone.

    Raises UsageProblem for commands that several processes would run several times, and for variables of theirs that
    cannot be.
    """
    if command is not None and command not in SINGLE:
        check_variables()
    if launched() and command in WRITING:
        raise UsageProblem(
            f"clmoe {command} is for one process",
            found=f"{os.environ['WORLD_SIZE']} processes",
            hint="run it without torchrun; several processes can learn and predict",
        )
    return leading() or command not in SINGLE


@contextmanager
def together(device: str) -> Iterator[None]:
    """Joins the processes of a run until the block ends; nothing happens to a process that is alone.

    ``device``: where this one computes, :func:`clmoe_cli.runtime.devices.resolved`. Raises PeerLost where another
    process has ended; one that is told to stop (SIGTERM, as torchrun ends what is left of a run)
    meets a KeyboardInterrupt.
    """
    if not launched():
        yield
        return
    for name in ("MASTER_ADDR", "MASTER_PORT"):
        if not os.environ.get(name):
            found = f"RANK={_number('RANK')}, WORLD_SIZE={_number('WORLD_SIZE')}"
            raise UsageProblem(f"the variable {name} is not set", found=found, hint=_LEFT_BEHIND)
    import torch
    import torch.distributed as dist
    from torch.distributed.rendezvous import rendezvous

    from clmoe_cli.runtime.distributed.collectives import Lost

    # As an interruption, so that the store's lock and the progress bar are given back.
    before = signal.signal(signal.SIGTERM, _stop)
    board: Any = None
    global _joined
    try:
        try:
            if device.startswith("cuda"):
                torch.cuda.set_device(device)
            # What the processor computes goes another way than what graphics cards do.
            backend = "cpu:gloo,cuda:nccl" if device.startswith("cuda") else "gloo"

            def join() -> None:
                nonlocal board
                met, rank, world = next(iter(rendezvous("env://")))
                try:
                    dist.init_process_group(backend, store=met, rank=rank, world_size=world, timeout=PATIENCE)
                finally:
                    board = met  # not before: nothing can be asked of it while this thread waits there

            _patiently(join)
        except (RuntimeError, ValueError) as error:
            raise Lost(str(error)) from error
        _joined = True
        yield
    except BaseException as error:
        # Ending already: being told so once more must not hide why.
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        _claim(board)  # before the connections close, which the others take for a loss
        if isinstance(error, Lost):
            raise PeerLost(error) from error
        raise
    else:
        signal.signal(signal.SIGTERM, before)
    finally:
        _joined = False
        if dist.is_initialized():
            dist.destroy_process_group()


def _patiently(join: Callable[[], None]) -> None:
    """Joins in a thread of its own, so that signals end this one while it waits, and says what it waits for.

    Raises what ``join`` raises.
    """
    problems: list[BaseException] = []

    def work() -> None:
        try:
            join()
        except BaseException as error:
            problems.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    late = time.monotonic() + SOON
    while thread.is_alive():
        thread.join(_LOOK)
        if thread.is_alive() and time.monotonic() > late:
            late = math.inf
            place = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
            rank, world = _number("RANK"), _number("WORLD_SIZE")
            text = (
                f"process {rank} waits for the others of {world} processes at {place}, since RANK and WORLD_SIZE say so"
            )
            print(f"{text}; unset both to run one process", file=sys.stderr, flush=True)
    if problems:
        raise problems[0]


def _claim(board: Any) -> None:
    """Notes at the rendezvous that something went wrong; whether this process is the first to say so."""
    global _first
    if board is None:
        return
    try:
        _first = board.add(f"clmoe/failed/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", 1) == 1
    except RuntimeError:  # torchrun itself has ended
        _first = None


def leave(code: int) -> NoReturn:
    """Ends the process; one of several without taking the interpreter down first.

    Threads of the process group may be letting go of their last tensors then, and one that asks an interpreter for
    them that is being taken down would abort a process whose work is done: the likely cause of an abort seen once.
    """
    if launched():
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _stop(number: int, frame: object) -> NoReturn:
    raise KeyboardInterrupt
