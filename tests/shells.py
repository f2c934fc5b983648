"""A small store and its data as files, and ``clmoe`` in processes of its own and in shells.

Most processes are forks (:mod:`forking`); :func:`anew` starts the interpreter.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import forking
import numpy as np
import small_store as small

QUICK = ("--arch", "mlp:8,8", "--epochs", "1")


def folder(root: Path) -> Path:
    """``store`` with tasks 1 and 2, ``1.npz`` to ``3.npz`` with the data of the tasks, ``all.npz`` with all of them.

    ``more.npz`` has enough of task 1 to refine it.
    """
    small.build(root / "store", 2)
    parts = [small.batch(number) for number in (1, 2, 3)]
    for number, part in enumerate(parts, start=1):
        np.savez(root / f"{number}.npz", x=part.images, y=part.labels)
    x, y = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    np.savez(root / "all.npz", x=x, y=y)
    np.savez(root / "more.npz", x=np.concatenate([x[:60]] * 2), y=np.concatenate([y[:60]] * 2))
    return root


def contents(root: Path) -> dict[str, tuple[bytes | None, int]]:
    """Every path below with its bytes (None: a folder) and the time of its last change."""
    return {
        str(p.relative_to(root)): (p.read_bytes() if p.is_file() else None, p.stat().st_mtime_ns)
        for p in root.rglob("*")
    }


def clean() -> dict[str, str]:
    """This process's environment without what sets clmoe."""
    kept = {
        k: v
        for k, v in os.environ.items()
        if k == "CLMOE_CACHE" or not k.startswith(("CLMOE_", "_CLMOE_", "_TYPER", "PYTHONUNBUFFERED"))
    }
    return {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}


def spawn(
    *args: object, cwd: Path, stdin: bytes = b"", light: bool = False, **variables: str
) -> subprocess.CompletedProcess[bytes]:
    """``clmoe`` in a process; ``light``: for a command that imports little."""
    return _done([forking.served(light) / "clmoe", *map(str, args)], cwd, stdin, variables)


def anew(*args: object, cwd: Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[bytes]:
    """``clmoe`` in a process that begins with the start of the interpreter."""
    return _done([sys.executable, "-m", "clmoe_cli", *map(str, args)], cwd, stdin, variables)


def bash(script: str, cwd: Path, *, light: bool = False, **variables: str) -> subprocess.CompletedProcess[bytes]:
    """A script in which ``clmoe`` is a command on the path."""
    path = {"PATH": f"{forking.served(light)}:{os.environ['PATH']}"}
    return _done(["bash", "--norc", "-c", script], cwd, b"", path | variables)


def _done(
    command: list[str | Path], cwd: Path, stdin: bytes, variables: dict[str, str]
) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        command, cwd=cwd, env=clean() | variables, input=stdin, capture_output=True, check=False, timeout=60
    )
