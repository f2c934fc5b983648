"""What a command refuses before it imports torch and reads data: a file that is not there, a word without meaning."""

from __future__ import annotations

import difflib
import importlib.util
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from clmoe_cli.data import several, sources
from clmoe_cli.runtime.choices import BOUNDARIES
from clmoe_cli.runtime.distributed.processes import leading
from clmoe_cli.runtime.words import one_of
from store_schema.errors import UsageProblem

_NETWORK = re.compile(
    r"^@register_model\((?:name=\"(?P<given>\w+)\")?.*\)\n(?:@.*\n)*def (?P<name>\w+)\(", re.MULTILINE
)

__all__ = [
    "check_alone",
    "check_arch",
    "check_boundaries",
    "check_refine",
    "check_source",
    "check_sources",
    "check_words",
    "one_task",
    "renamed",
    "source_of",
    "sources_of",
]


def check_source(source: str) -> None:
    """What :func:`clmoe_cli.data.sources.check_source` refuses.

    Of several processes the first alone asks: what only another one cannot read is said once they have joined.
    """
    if leading():
        sources.check_source(source)


def source_of(argument: str | None, option: str | None) -> str:
    """The data that a command is to read, which stand as an argument or behind ``--data``.

    Raises UsageProblem for none and for two, and what :func:`check_source` does.
    """
    if (argument is None) == (option is None):
        if argument is None:
            raise UsageProblem("no data given", expected="a file or a folder, or - for stdin", hint="--data FILE")
        raise UsageProblem("data given twice", found=f"{argument} and --data {option}", expected="one of them")
    source = argument if argument is not None else str(option)
    check_source(source)
    return source


def sources_of(arguments: Sequence[str], option: str | None) -> list[str]:
    """The same of a command that reads several as one batch; :func:`check_sources` says what it refuses."""
    if arguments and option is not None:
        found = f"{' '.join(arguments)} and --data {option}"
        raise UsageProblem("data given twice", found=found, expected="one of them")
    given = [*arguments, *(() if option is None else (option,))]
    check_sources(given)
    return given


def one_task(argument: str | None, option: str | None, store: str) -> str | None:
    """The task that ``inspect`` is asked for, as an argument or behind ``--task``; None for none.

    Raises UsageProblem for two, and for the folder of a store in the place of a task.
    """
    if argument is not None and option is not None and argument != option:
        raise UsageProblem("two tasks named", found=f"{argument} and --task {option}", expected="one of them")
    if argument is not None and argument != store and (Path(argument) / "HEAD").is_file():
        raise UsageProblem("a store where a task is named", found=argument, hint=f"--store {shlex.quote(argument)}")
    return option if argument is None else argument


def check_alone(task: str, others: Mapping[str, object]) -> None:
    """UsageProblem for options (name → value) that are about the whole store, beside one task."""
    for option, value in others.items():
        if value not in (None, False):
            hint = f"leave out {option}, or the task {task!a}"
            raise UsageProblem(f"{option} is of the whole store", found=f"task {task!a} as well", hint=hint)


def check_sources(given: Sequence[str]) -> None:
    """The same of several, and what :func:`clmoe_cli.data.several.grouped` refuses."""
    for group in several.grouped(given):
        for source in group if isinstance(group, tuple) else (group,):
            check_source(source)


def check_arch(text: str) -> None:
    """UsageProblem for what is no name of an architecture; whether it can read the images is found out later."""
    kind, _, sizes = text.partition(":")
    if kind in ("mlp", "cnn"):
        if re.fullmatch(r"\s*[1-9][0-9]{0,5}\s*(,\s*[1-9][0-9]{0,5}\s*)*", sizes):
            return
        close = None
    elif kind == "resnet9" and re.fullmatch(r"([1-9][0-9]{0,4})?", sizes) and text != "resnet9:":
        return
    else:
        known = torchvision_networks()
        if not known or text in (*known, "lite0"):
            return
        close = next(iter(difflib.get_close_matches(kind, [*known, "mlp", "cnn", "resnet9", "lite0"], n=1)), None)
        close = f"{close}:{sizes}" if close in ("mlp", "cnn") and sizes else close
    raise UsageProblem(
        f"unknown architecture {text!r}",
        key="--arch",
        expected="mlp:500,500 or cnn:32,64 and the like, resnet9, lite0, or a network of torchvision",
        hint=f"did you mean {close!r}?" if close else None,
    )


def torchvision_networks() -> list[str]:
    """Names of the networks in torchvision's sources, which are not imported; none where they are not found.

    Those for detection, segmentation and video are in folders of their own, and not among them.
    """
    found = importlib.util.find_spec("torchvision")
    if found is None or found.origin is None:
        return []
    sources = sorted((Path(found.origin).parent / "models").glob("*.py"))
    matches = [match for path in sources for match in _NETWORK.finditer(path.read_text(encoding="utf-8"))]
    return [match["given"] or match["name"] for match in matches]


def check_boundaries(boundaries: str | None, segment: bool) -> None:
    """Refuses what ``--boundaries`` cannot be (UsageProblem)."""
    if boundaries is not None:
        one_of("value of --boundaries", boundaries, BOUNDARIES)
    if boundaries is not None and not segment:
        raise UsageProblem("--boundaries needs --segment", hint="add --segment if the file is a stream of tasks")


def check_refine(refine: str | None, segment: bool) -> None:
    """Refuses a stream of tasks as data of one (UsageProblem)."""
    if refine is not None and segment:
        raise UsageProblem("--refine is one task, --segment several", found="both", hint="leave out --segment")


def renamed(given: Sequence[str]) -> dict[str, str]:
    """Old names → new names, of texts like ``OLD=NEW``; UsageProblem for what is none, or said twice."""
    found: dict[str, str] = {}
    for text in given:
        old, equals, new = text.rpartition("=")
        if not (old and equals) or old in found:
            what = "renamed twice" if old in found else "not a pair of names"
            raise UsageProblem(what, key="--rename", found=repr(text), expected="OLD=NEW, once for a task")
        found[old] = new
    return found


def check_words(*asked: tuple[str, str, tuple[str, ...]]) -> None:
    """UsageProblem for the first (kind, value, choices) whose value is not among its choices."""
    for kind, value, choices in asked:
        one_of(kind, value, choices)
