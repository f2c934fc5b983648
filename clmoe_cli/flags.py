"""Options that several commands share, or that are long to say."""

from __future__ import annotations

from typing import Annotated

import typer


def _folder(value: str) -> str:
    if not value.strip():
        raise typer.BadParameter("a folder is expected, not nothing")
    return value


StoreOption = Annotated[
    str, typer.Option("--store", envvar="CLMOE_STORE", callback=_folder, help="Folder of the store.")
]
JsonOption = Annotated[bool, typer.Option("--json", envvar="CLMOE_JSON", help="Print one JSON object.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", envvar="CLMOE_QUIET", help="No progress, no hints.")]
VerboseOption = Annotated[bool, typer.Option("--verbose", "-v", envvar="CLMOE_VERBOSE", help="Say more on stderr.")]
TimeoutOption = Annotated[
    float | None, typer.Option(min=0.0, envvar="CLMOE_LOCK_TIMEOUT", help="Seconds to wait for another writer.")
]
ImageSizeOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=4096,
        help="Resize pictures to this side and cut out the centre; 0: as they are [default: as the store's tasks].",
    ),
]
SkipBrokenOption = Annotated[
    bool, typer.Option("--skip-broken", help="Leave out pictures of a folder that cannot be read.")
]
NameOption = Annotated[
    str | None,
    typer.Option(help="Name of the task [default: task1, task2, …]; with --segment NAME.1, NAME.2, …"),
]
SegmentOption = Annotated[
    bool, typer.Option("--segment", help="The file is a stream: find where one task ends and the next begins.")
]
BoundariesOption = Annotated[
    str | None,
    typer.Option(help="With --segment: find them by labels (and images), or by images alone [default: labels]."),
]
DeviceOption = Annotated[
    str, typer.Option(help="Where to compute: cpu, cuda, mps, or auto: the first accelerator that is there.")
]
BatchSizeOption = Annotated[int, typer.Option(min=2, help="Images of one step of training.")]
RejectOption = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Mark images unknown whose p-value is below this.")
]
RouteSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="With --route batch: every so many consecutive images are one task's."),
]
