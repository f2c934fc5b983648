"""One root for all errors that a person can cause or meet; each says what, where, found, expected, what to do."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar


class ClmoeError(Exception):
    """An error with one line for people and fields for programs.

    ``where``: the file; ``key``: the place in it; ``hint``: what to do. ``exit_code`` is the command line's.
    """

    exit_code: ClassVar[int] = 1

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        key: str | None = None,
        found: str | None = None,
        expected: str | None = None,
        hint: str | None = None,
    ) -> None:
        super().__init__(what)
        self.what, self.where, self.key = what, where, key
        self.found, self.expected, self.hint = found, expected, hint

    def as_dict(self) -> dict[str, Any]:
        """The fields that are set, and the kind of error."""
        names = ("what", "where", "key", "found", "expected", "hint")
        return {"kind": type(self).__name__} | {n: getattr(self, n) for n in names if getattr(self, n) is not None}

    def __str__(self) -> str:
        text = self.what
        if self.where is not None:
            text += f": {self.where}"
        if self.key is not None:
            text += f" [{self.key}]"
        for label, value in (("found ", self.found), ("expected ", self.expected), ("", self.hint)):
            if value is not None:
                text += f"; {label}{value}"
        line = " ".join(text.split())
        return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in line)


class UsageProblem(ClmoeError):
    """The command was not meant like this (exit 2)."""

    exit_code = 2


class BadInput(ClmoeError):
    """The data cannot be used (exit 3)."""

    exit_code = 3


class StoreMissing(ClmoeError):
    """There is no store, or nothing in it yet (exit 4)."""

    exit_code = 4


class StoreDamaged(ClmoeError):
    """A file of the store is not what was committed (exit 4)."""

    exit_code = 4


class ObjectVanished(StoreDamaged):
    """A file that the manifest names is not there: damage, or a newer commit has swept it meanwhile."""


class StoreIncompatible(ClmoeError):
    """The store was written by another format version (exit 4)."""

    exit_code = 4


class StoreLocked(ClmoeError):
    """Another writer holds the store (exit 5)."""

    exit_code = 5


class DiskProblem(ClmoeError):
    """The operating system refused to read or write (exit 6)."""

    exit_code = 6


class Interrupted(ClmoeError):
    """Stopped from outside, and how to go on (exit 130)."""

    exit_code = 130


_HINTS = {
    errno.ENOSPC: "free some space and run the command again",
    errno.EDQUOT: "free some of your quota and run the command again",
    errno.EROFS: "the file system is mounted read-only",
    errno.EACCES: "check the permissions of the folder and the file",
    errno.EPERM: "check the permissions of the folder and the file",
    errno.EMFILE: "too many files are open: raise the limit (ulimit -n)",
}


@contextmanager
def disk_errors(where: str) -> Iterator[None]:
    """Turns an OSError into a DiskProblem that names the file."""
    try:
        yield
    except OSError as error:
        raise DiskProblem(
            (error.strerror or str(error)).lower(),
            where=str(error.filename or where),
            hint=_HINTS.get(error.errno or 0, "the store is as it was before this command"),
        ) from error
