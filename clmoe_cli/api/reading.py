"""Reading what is given, files or arrays, as the store expects it: what commands and the Python API share."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from clmoe_cli.api.inputs import Expected
from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import Batch, LabelUse, look
from clmoe_cli.data.given import ArrayReader, arrays, is_frame, paths
from clmoe_cli.data.several import grouped, joined
from clmoe_cli.data.targets import read_labels
from clmoe_cli.runtime.events import OnStep, silent
from store_schema import BadInput, UsageProblem
from store_schema.records import MOST_SIDE


@dataclass(frozen=True)
class How:
    """How images are read.

    ``image_size``, ``skip_broken`` and ``label_column`` are the options of these names; ``backbone``: what its options
    say of one; ``quiet``: notes are left out; ``on_step``: is told of what may take long; ``counted``: labels that are
    given apart say how many images there are.
    """

    image_size: int | None = None
    skip_broken: bool = False
    label_column: str | None = None
    backbone: BackboneSession | None = None
    quiet: bool = False
    on_step: OnStep = silent
    counted: bool = False


def read_source(source: str | tuple[str, ...] | ArrayReader, labels: LabelUse, expected: Expected, how: How) -> Batch:
    """The images of a source as the store expects them (:meth:`clmoe_cli.api.inputs.Expected.transform`).

    What they go through is decided once it is known what they are, before any is read; of pictures that go through a
    backbone the features are what is read. Raises what reading raises.
    """
    if how.image_size is not None and not 0 <= how.image_size <= MOST_SIDE:
        expected_sizes = f"a whole number of pixels up to {MOST_SIDE}, or 0 for pictures as they are"
        raise UsageProblem(
            "not a size of pictures", key="--image-size", found=str(how.image_size), expected=expected_sizes
        )
    with look(
        source, labels=labels, skip_broken=how.skip_broken, label_column=how.label_column, on_step=how.on_step
    ) as unread:
        if not how.counted:
            expected.check_axes(unread.raw, source.where if isinstance(source, ArrayReader) else str(source))
        record = expected.transform(unread.raw, how.image_size, how.backbone, how.on_step)
        extractor = how.backbone if record is not None and record.features is not None else None
        batch = unread.read(record, extractor)
        expected.check_columns(batch)
        return batch


def read_given(x: Any, y: Any, labels: LabelUse, expected: Expected, how: How) -> Batch:
    """Inputs ``x`` and labels ``y`` (None for none) of a caller in Python.

    ``x``: a path or a list of paths, or what :func:`clmoe_cli.data.given.arrays` takes. ``y`` beside paths: a label
    for each picture or row that they have. Raises BadInput and UsageProblem, as reading does.
    """
    named = paths(x)
    if named is None:
        if is_frame(x) and how.label_column is not None:
            y, how = how.label_column if y is None else y, replace(how, label_column=None)
        # Data to learn have labels somewhere, whatever the store reads.
        known = () if labels == "required" else expected.kinds
        widths = {kind.shape[0] for kind in known if len(kind.shape) == 1}
        return read_source(arrays(x, y, widths, labels == "required"), labels, expected, how)
    own: LabelUse = labels if y is None else "ignored"
    how = replace(how, counted=y is not None)
    found = joined([read_source(group, own, expected, how) for group in grouped(named)])
    if y is None:
        return found
    if found.skipped:
        hint = "leave those pictures out, with their labels"
        raise BadInput("labels do not match the images", found=f"broken: {', '.join(found.skipped[:8])}", hint=hint)
    return replace(found, labels=read_labels(arrays([[0.0]], y), len(found.images), "required"))
