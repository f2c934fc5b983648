"""HDF5 codec for one task: masks, gradient scores, calibration, statistics, gate, probe outputs.

::

    /                 attributes: schema, task, expert, layers
    masks/<layer>     uint8, the packed bits of a mask; attribute shape
    scores/<param>    float16, shuffle + gzip, in units of attribute scale; zero outside the mask
    image_scores/<param>    the same, of gradients scaled to unit length image by image (since schema 2)
    calibration/<kind>, statistics/<name>, gate/<name>     plain arrays
    probe_outputs     float32 [P, C]

A file is written and read in memory as a whole; no file is ever modified. Whatever is encoded passes every check
that decoding makes, so that nothing unreadable is ever committed.
"""

from __future__ import annotations

import io
import math
import zlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from store_schema import heaps
from store_schema.errors import ClmoeError, StoreDamaged
from store_schema.hdf5 import Reader
from store_schema.layout import SUBNETWORK_SCHEMA

GROUPS = ("masks", "scores", "image_scores", "calibration", "statistics", "gate")
SCORES = ("scores", "image_scores")
SINCE_SCHEMA_2 = ("image_scores",)
"""Groups that objects of schema 1 lack: they are read as empty."""
PLAIN = {
    "calibration": ("float32", "float64"),
    "statistics": ("float16", "float32", "float64", "int64"),
    "gate": ("float16", "float32", "float64", "int64", "uint8"),
}
MALFORMED = (
    OSError, LookupError, RuntimeError, ValueError, TypeError, AttributeError, MemoryError, ArithmeticError, EOFError,
    SystemError, zlib.error,
)  # fmt: skip
"""What h5py raises, somewhere, for bytes that are no proper file."""


@dataclass(frozen=True)
class SubnetworkRecord:
    """A task's object. ``masks``: layer → bool [out, in]; ``scores``: parameter → float16 of its shape, in units
    of ``score_scale``; ``image_scores`` likewise; the rest are numeric arrays by name."""

    task: str
    expert: str
    masks: Mapping[str, NDArray[np.bool_]]
    scores: Mapping[str, NDArray[np.float16]]
    score_scale: Mapping[str, float]
    calibration: Mapping[str, NDArray[Any]]
    statistics: Mapping[str, NDArray[Any]]
    gate: Mapping[str, NDArray[Any]]
    probe_outputs: NDArray[np.float32]
    image_scores: Mapping[str, NDArray[np.float16]] = field(default_factory=dict)
    image_score_scale: Mapping[str, float] = field(default_factory=dict)


def encode_subnetwork(record: SubnetworkRecord) -> bytes:
    """The bytes of a task's object; the same values give the same bytes.

    Raises ClmoeError when a value is NaN or infinite, or a name, type or size does not fit the format.
    """
    try:
        data = _image(record)
        decode_subnetwork(data, "", record.task, record.expert, {n: m.shape for n, m in record.masks.items()})
    except MALFORMED as error:
        raise ClmoeError(f"task {record.task} cannot be stored", found=str(error)) from error
    except StoreDamaged as error:
        raise ClmoeError(
            f"task {record.task} cannot be stored", key=error.key, found=error.found, expected=error.expected
        ) from error
    return data


def _image(record: SubnetworkRecord) -> bytes:
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110"), track_order=False) as file:
        file.attrs["schema"] = SUBNETWORK_SCHEMA
        file.attrs["task"] = record.task
        file.attrs["expert"] = record.expert
        file.attrs["layers"] = "\n".join(record.masks)
        for name, mask in record.masks.items():
            put = file.create_dataset(f"masks/{name}", data=np.packbits(mask, axis=None), track_times=False)
            put.attrs["shape"] = np.array(mask.shape, dtype=np.int64)
        for kind, found, scale in (
            ("scores", record.scores, record.score_scale),
            ("image_scores", record.image_scores, record.image_score_scale),
        ):
            file.require_group(kind)
            for name, scores in found.items():
                path = f"{kind}/{name}"
                put = file.create_dataset(path, data=scores, compression="gzip", shuffle=True, track_times=False)
                put.attrs["scale"] = float(scale[name])
        for group in ("calibration", "statistics", "gate"):
            arrays: Mapping[str, NDArray[Any]] = getattr(record, group)
            file.create_group(group)
            for name, value in arrays.items():
                file.create_dataset(f"{group}/{name}", data=value, track_times=False)
        file.create_dataset("probe_outputs", data=record.probe_outputs, track_times=False)
    return image.getvalue()


def decode_subnetwork(
    data: bytes,
    where: str,
    task: str,
    expert: str,
    shapes: Mapping[str, tuple[int, ...]],
    groups: Collection[str] = GROUPS,
) -> SubnetworkRecord:
    """Parses and checks a task's object against what the manifest says of it; ``shapes``: layer → [out, in].

    ``groups``: those that are wanted; the others are left empty, neither read nor checked.

    Raises StoreDamaged for anything that this format does not have (links, external storage, virtual data sets,
    other filters, other types), wrong sizes, NaN or infinite values, scores outside the mask.
    """
    try:
        heaps.check(data)
        with h5py.File(io.BytesIO(data), "r") as file:
            return _decode(Reader(file, where), task, expert, shapes, groups)
    except StoreDamaged:
        raise
    except MALFORMED as error:
        raise StoreDamaged("not a valid HDF5 object", where=where, found=str(error)) from error


def _decode(
    reader: Reader, task: str, expert: str, shapes: Mapping[str, tuple[int, ...]], groups: Collection[str]
) -> SubnetworkRecord:
    file = reader.file
    schema = reader.attribute(file, "schema")
    if isinstance(schema, np.ndarray) or schema not in range(1, SUBNETWORK_SCHEMA + 1):
        raise reader.fail("schema", repr(schema), f"1 to {SUBNETWORK_SCHEMA}")
    present = tuple(name for name in GROUPS if schema >= 2 or name not in SINCE_SCHEMA_2)
    wanted = {"task": task, "expert": expert, "layers": "\n".join(shapes)}
    for key, value in wanted.items():
        found = reader.attribute(file, key)
        if isinstance(found, np.ndarray) or found != value:
            raise reader.fail(key, repr(found), repr(value))
    if set(reader.names(file)) != {*present, "probe_outputs"}:
        raise reader.fail("/", sorted(file), sorted((*present, "probe_outputs")))
    sets: dict[str, dict[str, Any]] = {name: {} for name in GROUPS}
    for name in present:
        group = reader.group(name)
        members = reader.names(group) if name in groups else []
        sets[name] = {member: reader.dataset(group, member) for member in members}
    probe = reader.dataset(file, "probe_outputs")
    if probe.dtype != np.float32 or (probe.size and probe.ndim != 2):
        raise reader.fail("probe_outputs", f"{probe.dtype} {probe.shape}", "float32 [P, C]")
    if "masks" in groups:
        _check_masks(reader, sets["masks"], shapes)
    scale = {
        kind: {
            name: _check_score(reader, f"{kind}/{name}", found, shapes.get(name)) for name, found in sets[kind].items()
        }
        for kind in SCORES
    }
    for group_name, dtypes in PLAIN.items():
        for name, found in sets[group_name].items():
            if found.dtype.name not in dtypes or (group_name == "calibration" and not 1 <= found.ndim <= 2):
                raise reader.fail(f"{group_name}/{name}", f"{found.dtype} {found.shape}", " or ".join(dtypes))
    # All is checked that can be before anything is read.
    arrays = {group: {name: reader.values(found) for name, found in members.items()} for group, members in sets.items()}
    masks = {
        name: np.unpackbits(arrays["masks"][name], count=math.prod(shape)).view(bool).reshape(shape)
        for name, shape in shapes.items()
        if "masks" in groups
    }
    for kind in SCORES:
        for name, scores in arrays[kind].items():
            if name in masks and scores[~masks[name]].any():
                raise reader.fail(f"{kind}/{name}", "scores outside the mask", "zero there")
    return SubnetworkRecord(
        task, expert, masks, arrays["scores"], scale["scores"],
        arrays["calibration"], arrays["statistics"], arrays["gate"], reader.values(probe),
        arrays["image_scores"], scale["image_scores"],
    )  # fmt: skip


def _check_masks(reader: Reader, masks: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> None:
    if set(masks) != set(shapes):
        raise reader.fail("masks", sorted(masks), sorted(shapes))
    for name, shape in shapes.items():
        packed, size = masks[name], math.prod(shape)
        declared = np.atleast_1d(reader.attribute(packed, "shape")).tolist()
        if packed.dtype != np.uint8 or declared != list(shape) or packed.shape != ((size + 7) // 8,):
            found = f"{packed.dtype} {packed.shape} for {declared}"
            raise reader.fail(f"masks/{name}", found, f"packed bits of {shape}")
        reader.declare(f"masks/{name}", size)  # unpacked


def _check_score(reader: Reader, path: str, found: Any, shape: tuple[int, ...] | None) -> float:
    """The scale of scores; ``shape``: that of their mask, None where they have none."""
    scale = reader.attribute(found, "scale")
    if found.dtype != np.float16 or not isinstance(scale, float) or not math.isfinite(scale):
        raise reader.fail(path, found.dtype, "float16 with a finite scale")
    if shape is not None and found.shape != shape:
        raise reader.fail(path, f"shape {found.shape}", f"the mask's, {shape}")
    return float(scale)
