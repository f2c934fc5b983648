"""Options that several commands share, or that are long to say."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clmoe_cli.cli.completion import among
from clmoe_cli.cli.settings import warn_of_variables
from clmoe_cli.runtime import choices

DEFAULT_STORE = "./clmoe-store"


def _folder(value: str) -> str:
    if not value.strip():
        raise typer.BadParameter("a folder is expected, not nothing")
    return value


StoreOption = Annotated[
    str, typer.Option("--store", envvar="CLMOE_STORE", callback=_folder, help="Folder of the store.")
]
DataArgument = Annotated[
    str | None,
    typer.Argument(metavar="[DATA]", help="The data: what --data names.", show_default=False),
]
SourcesArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[PICTURE|FOLDER|FILE]...", help="Pictures, folders of them, .npz, .npy, .csv, or - for stdin."
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", envvar="CLMOE_JSON", help="Print one JSON object.")]
QuietOption = Annotated[
    bool,
    # Eager: what a variable was meant to say comes before the complaint that it is missing.
    typer.Option(
        "--quiet", "-q", envvar="CLMOE_QUIET", is_eager=True, callback=warn_of_variables, help="No progress, no hints."
    ),
]
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
LabelColumnOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME|INDEX",
        help="Of a table (.csv, .tsv): the column with the labels; 0 is the first, -1 the last "
        "[default: one called y, label, target or class].",
    ),
]
NameOption = Annotated[
    str | None,
    typer.Option(help="Name of the task [default: that of the file, else task1, task2, …]; with --segment NAME.1, …"),
]
SegmentOption = Annotated[
    bool, typer.Option("--segment", help="The file is a stream: find where one task ends and the next begins.")
]
BoundariesOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=among(choices.BOUNDARIES),
        help="With --segment: find them by labels (and images), or by images alone [default: labels].",
    ),
]
DeviceOption = Annotated[
    str,
    typer.Option(
        autocompletion=among(choices.DEVICES),
        help="Where to compute: cpu, cuda, mps, or auto: the first accelerator that is there.",
    ),
]
BatchSizeOption = Annotated[
    int,
    typer.Option(
        min=2,
        help="Images of one step of training; of few images an eighth, with convolutions a thirtieth, at least 16.",
    ),
]
EyesOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=among(choices.EYES),
        help="What tells tasks of pictures apart beside fixed features, for all tasks: none; first: filters made from "
        "the first task's pictures; subnetwork: what the first task learned, in an --arch of convolutions; pretrained: "
        "the weights that an --arch starts from [default: the store's, or pretrained where there are such, or none].",
    ),
]
RejectOption = Annotated[
    float | None, typer.Option(min=0.0, max=1.0, help="Mark images unknown whose p-value is below this.")
]
ExplainOption = Annotated[
    bool, typer.Option("--explain", help="Say for each image why this task and class, and not another.")
]
RouteSizeOption = Annotated[
    int | None,
    typer.Option("--batch-size", min=1, help="With --route batch: every so many consecutive images are one task's."),
]
FeaturesOption = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        autocompletion=among(choices.BACKBONES),
        help="What experts and gate read of pictures: lite0, a network that comes with clmoe[photos]; FILE.onnx; "
        "one of torchvision, as resnet50; fixed, the gate's own features; none, the pixels [default: the store's].",
    ),
]
FeatureCacheOption = Annotated[
    bool,
    typer.Option(
        "--feature-cache/--no-feature-cache",
        help="Keep the features of pictures for the next command, in the user's cache.",
    ),
]
FeaturesWeightsOption = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="Weights of that network, safetensors [default: the published ones]."),
]
WeightsOption = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="With --arch resnet18, …: weights to start from, safetensors [default: drawn; lite0's: its own].",
    ),
]
EpochsOption = Annotated[
    int, typer.Option(min=1, help="At most so many epochs in each phase; validation loss ends the first one earlier.")
]
TimeLimitOption = Annotated[
    float | None,
    typer.Option(
        metavar="MINUTES",
        help="End training early, so that a task takes about so long; what follows training takes longer if it must "
        "[default: as long as it needs].",
    ),
]
ArchOption = Annotated[str, typer.Option(autocompletion=among(choices.ARCHS), help="Architecture of the experts.")]
IfKnownOption = Annotated[
    str,
    typer.Option(
        autocompletion=among(choices.IF_KNOWN), help="What to do with data of a known task: skip, refine, new."
    ),
]
ScoreOption = Annotated[
    str,
    typer.Option(
        autocompletion=among(choices.SCORES),
        help="gradient-weight, gradient (the paper's) or last-batch (its code's).",
    ),
]
AugmentOption = Annotated[
    str | None,
    typer.Option(
        autocompletion=among(choices.AUGMENT),
        help="Change training pictures a little in every step: none, light (moved) or strong (also cut, lit and with a "
        "hole); mirrored as well where classes stay what they are [default: light for colour pictures with "
        "convolutions, none otherwise].",
    ),
]
RouteOption = Annotated[
    str,
    typer.Option(autocompletion=among(choices.ROUTES), help="image: each by itself; batch: the file is one task."),
]
RouterOption = Annotated[
    str,
    typer.Option(autocompletion=among(choices.ROUTERS), help="Evidence: fused, gate, fisher, loss, gradient or paper."),
]
EvidenceOption = Annotated[
    str,
    typer.Option(
        autocompletion=among(choices.EVIDENCE),
        help="What tells known from new: gate (as predict --reject), fisher, or gradient (the paper's).",
    ),
]
MaxDropOption = Annotated[
    float, typer.Option(min=0.0, max=100.0, help="Points of held-out accuracy that sparsity may cost.")
]
PlotOption = Annotated[
    Path | None, typer.Option(help="Draw what is frozen, accuracy, overlaps and shares (.png, .svg, .pdf, .html).")
]
ReportOption = Annotated[
    Path | None, typer.Option("--report", help="Write all there is to see as one page for a browser (.html).")
]
WithPicturesOption = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        help="With --report: show a few pictures of each class, from class folders in DIR or in its task folders.",
    ),
]
FormatOption = Annotated[
    str | None,
    typer.Option(
        "--format",
        envvar="CLMOE_INSPECT_FORMAT",
        autocompletion=among(choices.FORMATS),
        help="csv or md: the frozen report as such a table.",
    ),
]
DryRunOption = Annotated[bool, typer.Option("--dry-run", help="Say what would be done; change nothing.")]
CurvesOption = Annotated[
    Path | None, typer.Option("--plot", help="Draw losses and accuracy over all epochs (.png, .svg, .pdf).")
]
ToFrozenOption = Annotated[
    float | None, typer.Option(help="Remove tasks until at most this percentage of each expert is frozen.")
]
GcOption = Annotated[bool, typer.Option("--gc", help="Delete older generations: what is removed is gone for good.")]
