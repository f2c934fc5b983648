"""What a store expects of data, resolved before any are read, and what pictures go through then. Imports no torch.

Rules, in this order: what the options say; images that an expert reads as they are, if their shape is its own; the one
transform that the store's experts have and the source can go through; none. ``learn``, ``detect`` and ``predict``
follow the same rules, so that more pictures of a task, and questions to it, are read as its own were. A backbone is
part of the transform: where all that the store knows of pictures went through one, those of another size do too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from clmoe_cli.backbone.session import NONE, BackboneSession, backbone_of
from clmoe_cli.data.batch import Batch, Raw
from clmoe_cli.data.labels import Label
from clmoe_cli.runtime.events import OnStep, silent
from clmoe_cli.runtime.words import one_of
from store_schema import BadInput, FeaturesRecord, InputRecord, Manifest, TaskRecord, UsageProblem

AS_THEY_ARE = 0
"""The ``image_size`` that says: no transform, whatever the store has."""

MOST_NAMES = 10_000
"""Characters of names of columns that a task keeps."""
_COLOURED = (3, 4)
"""Channels of a picture in colour, without and with opacity."""


@dataclass(frozen=True)
class Values:
    """The range of the numbers of one kind of input, in the units that experts read: what its tasks were learned from.

    ``largest``: least and most of the largest magnitudes of images; ``lowest``: the same of their least values.
    """

    largest: tuple[float, float]
    lowest: tuple[float, float]


@dataclass(frozen=True)
class Kind:
    """A kind of input that a store knows: the shape of one image after ``input``, and ``input``.

    ``values``: their range, None where it is not known (stores of older formats).
    """

    shape: tuple[int, ...]
    input: InputRecord | None
    values: Values | None = None

    def takes(self, raw: Raw) -> bool:
        """Whether such a source can become this kind. A folder's colour is known only when all of it is read."""
        if self.seen:
            return raw.shape is not None and len(raw.shape) == 3
        if raw.shape is None or len(raw.shape) != 3 or len(self.shape) != 3:
            return raw.shape == self.shape and self.same_size
        channels = self.input.channels if self.input else None
        fits = raw.folder or channels is not None or raw.shape[0] == self.shape[0]
        return fits and (not self.same_size or raw.shape[1:] == self.shape[1:])

    @property
    def same_size(self) -> bool:
        """Whether pictures must have the right size themselves."""
        return self.input is None or self.input.image_size is None

    @property
    def seen(self) -> bool:
        """Whether a backbone sees the pictures; the shape is then that of its features."""
        return self.input is not None and self.input.features is not None


@dataclass(frozen=True)
class Expected:
    """What a store expects of data; of one without tasks nothing is expected.

    ``kinds``: the kinds of input that its tasks read, vectors or images, each with its shape, its transform and its
    range; ``backbone``: the one that its pictures go through, None for none; ``classes``: the labels of each task, of
    which some are text or all are integers; ``columns``: the names of the columns of tables.
    """

    kinds: tuple[Kind, ...] = ()
    backbone: FeaturesRecord | None = None
    classes: Mapping[str, tuple[Label, ...]] = field(default_factory=dict)
    columns: tuple[tuple[str, ...], ...] = ()

    @staticmethod
    def of(manifest: Manifest) -> Expected:
        """What the tasks of a manifest were learned from."""
        classes = {task.name: task.classes for task in manifest.tasks}
        return Expected(kinds(manifest), backbone_of(manifest), classes, known_columns(manifest.tasks))

    def by(self, manifest: Manifest, task: str) -> Expected:
        """The same of data that one task is to read. UsageProblem for an unknown one."""
        name = one_of("task", task, [t.name for t in manifest.tasks])
        return replace(self, kinds=kinds(manifest, name), columns=known_columns([manifest.task(name)]))

    def kind_of(self, batch: Batch) -> Kind | None:
        """The kind that a batch is of, None for one that no task reads."""
        return next((k for k in self.kinds if (k.shape, k.input) == (batch.input_shape, batch.input)), None)

    def check_columns(self, batch: Batch) -> None:
        """BadInput for a table that has the columns of one that was learned, in another order."""
        given = batch.columns
        moved = next((each for each in self.columns if given and set(each) == set(given)), None)
        if given is None or moved is None or given in self.columns:
            return
        places = [f"{name!r} at {i}, not {moved.index(name)}" for i, name in enumerate(given) if moved[i] != name]
        raise BadInput(
            "the columns are in another order than when they were learned",
            where=batch.source,
            found=", ".join(places[:4]) + (f", and {len(places) - 4} more" if len(places) > 4 else ""),
            hint="bring them into that order, counted from 0: a store reads columns by their places",
        )

    def check_axes(self, raw: Raw, where: str) -> None:
        """BadInput for an array of three axes that is more likely one picture in colour than many grey ones."""
        pictures = [k for k in self.kinds if k.seen or len(k.shape) == 3]
        if raw.axes is None or not pictures or any(k.shape == raw.shape and k.same_size for k in pictures):
            return
        coloured = all(k.seen or k.shape[0] in _COLOURED for k in pictures)
        if raw.axes[2] in _COLOURED or (raw.axes[0] in _COLOURED and coloured):
            raise BadInput(
                "three axes may be one picture or several", where=where, found=str(list(raw.axes)),
                expected="[N, H, W, C] or [N, C, H, W]",
                hint=f"x[None] if it is one, x[:, None] if it is {raw.axes[0]} grey ones",
            )  # fmt: skip

    def transform(
        self,
        raw: Raw,
        image_size: int | None = None,
        session: BackboneSession | None = None,
        on_step: OnStep = silent,
    ) -> InputRecord | None:
        """What images like ``raw`` go through before an expert reads them; None for nothing.

        ``image_size``: the option, 0 for images as they are, None if it was not given. ``session``: what is said of a
        backbone; it then makes the features while pictures are read (:mod:`clmoe_cli.data.extraction`).

        Raises UsageProblem where several transforms fit or options contradict each other, and what
        :meth:`~clmoe_cli.backbone.session.BackboneSession.record` raises.
        """
        session = session or BackboneSession()
        asked = session.arch not in (None, NONE)
        if asked:
            _check_pictures(raw, image_size)
        if image_size == AS_THEY_ARE:
            return None
        if session.weights is not None and self.backbone is None and not asked:
            raise UsageProblem("--features-weights without a backbone", hint="--features ARCH names it")
        fitting = [k for k in self.kinds if k.takes(raw)]
        if session.arch is not None:
            fitting = [k for k in fitting if k.seen == asked]
        record, seen = _through(fitting, image_size)
        if not (seen or asked):
            return record
        return session.record(self.backbone, record.image_size if record else None, on_step)


def _check_pictures(raw: Raw, image_size: int | None) -> None:
    """UsageProblem for what cannot go through the backbone that was asked for."""
    if raw.shape is not None and len(raw.shape) != 3:
        found = f"vectors of {raw.shape[0]} numbers"
        raise UsageProblem("--features needs pictures", found=found, hint="leave out --features")
    if image_size == AS_THEY_ARE:
        raise UsageProblem("--features and --image-size 0 contradict each other", hint="leave one of them out")


def _through(fitting: Sequence[Kind], image_size: int | None) -> tuple[InputRecord | None, bool]:
    """The transform to use of the kinds that take a source, and whether the store's backbone is part of it."""
    if image_size is not None:
        exact = [k for k in fitting if k.input is not None and k.input.image_size == image_size]
        sized = decided(exact) or InputRecord(image_size=image_size)
        return sized, bool(fitting) and all(k.seen for k in exact or fitting)
    exact = [k for k in fitting if k.same_size]
    if any(k.input is None for k in exact):
        return None, False
    record = decided(exact or fitting)
    return record, record is not None and record.features is not None


def kinds(manifest: Manifest, task: str | None = None) -> tuple[Kind, ...]:
    """The kinds of input that the tasks of a manifest read, or that of one of them."""
    experts = [manifest.expert(t.expert) for t in manifest.tasks if task in (None, t.name)]
    found = dict.fromkeys((e.input_shape, e.input) for e in experts)
    return tuple(Kind(shape, record, _values(manifest, shape, record)) for shape, record in found)


def known_columns(tasks: Sequence[TaskRecord]) -> tuple[tuple[str, ...], ...]:
    """The names of the columns of each table that tasks were learned from, where they were kept."""
    kept = dict.fromkeys(str(task.config["columns"]) for task in tasks if task.config.get("columns"))
    return tuple(tuple(text.split("\n")) for text in kept)


def other_columns(known: Sequence[tuple[str, ...]], given: tuple[str, ...]) -> tuple[tuple[str, ...], ...]:
    """Which columns the known table that shares most has besides, and which it lacks; nothing where none is shared."""
    own = {*given}

    def shared(each: tuple[str, ...]) -> tuple[int, bool, int]:
        # Of several that share as many columns, the one that is as wide is meant, or has the fewest others.
        return len(own.intersection(each)), len(each) == len(given), -len(each)

    nearest = max(known, key=shared, default=())
    if own.isdisjoint(nearest):
        return ()
    others = {*nearest}
    return tuple(n for n in nearest if n not in own), tuple(n for n in given if n not in others)


def kept_columns(batch: Batch) -> dict[str, str]:
    """What a task's configuration keeps of the names of a table's columns: a line for each; nothing of very many."""
    text = "\n".join(batch.columns or ())
    return {"columns": text} if 0 < len(text) <= MOST_NAMES else {}


def _values(manifest: Manifest, shape: tuple[int, ...], record: InputRecord | None) -> Values | None:
    gate = manifest.gate(shape, record)
    if gate is None or gate.input_range is None or gate.input_lowest is None:
        return None
    return Values(gate.input_range, gate.input_lowest)


def decided(found: Sequence[Kind]) -> InputRecord | None:
    """The transform of these kinds; of some that differ in colour only, the pictures decide. None where there is none.

    Raises UsageProblem for several.
    """
    records = list(dict.fromkeys(k.input for k in found if k.input is not None))
    if len(records) < 2:
        return records[0] if records else None
    colourless = {record.model_copy(update={"channels": None}) for record in records}
    if len(colourless) == 1:
        return colourless.pop()
    raise UsageProblem(
        "the store knows several ways to read pictures",
        found=" or ".join(f"({input_text(record)})" for record in records),
        hint=f"name what they differ in: --features ARCH or {NONE}, --image-size N; in predict also --task NAME",
    )


def input_text(record: InputRecord) -> str:
    """``image size 64, colour``."""
    parts = [] if record.image_size is None else [f"image size {record.image_size}"]
    if record.channels is not None:
        parts.append("grey" if record.channels == 1 else "colour")
    if record.features is not None:
        parts.append(f"features of {record.features.arch}")
    return ", ".join(parts)


def shape_text(shape: Sequence[int]) -> str:
    """``1×28×28``."""
    return "×".join(map(str, shape))


def kind_text(shape: Sequence[int], record: InputRecord | None) -> str:
    """``3×64×64``, and where images went through something ``3×64×64 (image size 64, colour)``."""
    return shape_text(shape) if record is None else f"{shape_text(shape)} ({input_text(record)})"
