"""A folder of class folders that is written: copies of picture files, all of them or none.

The pictures are copied byte by byte into a folder beside the target, which takes its place at the end.
"""

from __future__ import annotations

import filecmp
import secrets
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from clmoe_cli.data.npz import name_list, one_line, read_problem
from clmoe_cli.runtime.events import OnDone
from clmoe_cli.runtime.words import amount
from store_schema.errors import DiskProblem, UsageProblem


@dataclass(frozen=True)
class ClassFolder:
    """What a folder is to hold: ``sources`` ``[N]``, paths of pictures, and ``names`` ``[N]``, ``CLASS/picture``."""

    target: Path
    sources: tuple[str, ...]
    names: tuple[str, ...]

    @staticmethod
    def of(target: str | Path, sources: Sequence[str], classes: Sequence[str]) -> ClassFolder:
        """Pictures with the classes ``[N]`` that are the names of their folders.

        Pictures of one class and one name, from different folders, get a number in front.
        """
        taken: set[str] = set()
        names: dict[str, str] = {}
        for source, of in sorted(zip(sources, classes, strict=True)):
            own, number = Path(source).name, 1
            while f"{of}/{own}".casefold() in taken:
                number += 1
                own = f"{number}_{Path(source).name}"
            taken.add(f"{of}/{own}".casefold())
            names[source] = f"{of}/{own}"
        return ClassFolder(Path(target), tuple(names), tuple(names.values()))

    def is_there(self) -> bool:
        """Whether the target has just these pictures already, the same bytes.

        UsageProblem where it has other files, or is a file itself. Hidden files beside the pictures do not count.
        """
        where = one_line(self.target)
        try:
            if not self.target.exists():
                return False
            if not self.target.is_dir():
                raise UsageProblem(
                    "not a folder", where=where, found="a file", hint="remove it or choose another folder"
                )
            entries = sorted(self.target.rglob("*"))
            if not entries:
                return False
            found = {
                path.relative_to(self.target).as_posix(): path
                for path in entries
                if not path.name.startswith(".") and not path.is_dir()
            }
            wanted = dict(zip(self.names, self.sources, strict=True))
            others = sorted(found.keys() ^ wanted.keys()) or [
                name for name, source in wanted.items() if not filecmp.cmp(source, found[name], shallow=False)
            ]
        except OSError as error:
            raise read_problem(error, where) from error
        if others:
            differ = f"{amount(len(others), 'picture')} more, fewer or other than would be written: {name_list(others)}"
            raise UsageProblem(
                "the folder has other pictures", where=where, found=differ, hint="remove it or choose another folder"
            )
        return True

    def write(self, to: OnDone) -> None:
        """Copies the pictures; ``to`` is told how many are done.

        Raises BadInput for one that cannot be read, DiskProblem where the folder cannot be written; nothing is left
        behind then.
        """
        temporary = self.target.with_name(f".{self.target.name}.{secrets.token_hex(4)}.tmp")
        try:
            try:
                for name in sorted({name.partition("/")[0] for name in self.names}):
                    (temporary / name).mkdir(parents=True)
                for done, (source, name) in enumerate(zip(self.sources, self.names, strict=True), start=1):
                    _copy(source, temporary / name)
                    to(done)
                if self.target.exists():
                    self.target.rmdir()  # it is empty, or is_there had refused it
                temporary.rename(self.target)
            except BaseException:
                shutil.rmtree(temporary, ignore_errors=True)
                raise
        except OSError as error:
            reason = error.strerror or one_line(error)
            hint = "check the folder, its permissions and the free space"
            raise DiskProblem(
                "cannot write the folder", where=one_line(self.target), found=reason, hint=hint
            ) from error


def _copy(source: str, target: Path) -> None:
    with _opened(source) as picture, target.open("xb") as copy:
        shutil.copyfileobj(picture, copy)


def _opened(source: str) -> IO[bytes]:
    try:
        return Path(source).open("rb")
    except OSError as error:
        raise read_problem(error, one_line(source)) from error
