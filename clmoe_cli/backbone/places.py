"""Where what can be computed again is kept between commands: the user's cache, or the folder in ``CLMOE_CACHE``."""

from __future__ import annotations

import contextlib
import os
import tempfile
from pathlib import Path

FOLDER = "CLMOE_CACHE"
"""The variable that names the folder."""


def cache_folder() -> Path:
    """The folder, which may not be there yet."""
    given = os.environ.get(FOLDER)
    if given:
        return Path(given).expanduser()
    import platformdirs  # not at every start of a command

    return platformdirs.user_cache_path("clmoe")


def keep(name: str, data: bytes) -> None:
    """Writes a file of the folder at once or not at all. A disk that is full or read-only keeps nothing."""
    folder = cache_folder()
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        handle, path = tempfile.mkstemp(dir=folder, prefix=f".{name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
            Path(path).replace(folder / name)
        finally:
            Path(path).unlink(missing_ok=True)


def kept(name: str) -> bytes | None:
    """What was kept under that name; None where nothing was, or it cannot be read."""
    try:
        return (cache_folder() / name).read_bytes()
    except OSError:
        return None
