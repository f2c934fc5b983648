"""HDF5 codec for one task: masks, gradient scores, calibration, statistics, gate, probe outputs.

::

    /                 attributes: schema, task, expert, layers
    masks/<layer>     uint8, the packed bits of a mask; attribute shape
    scores/<param>    float16 in units of attribute scale; of a parameter with a mask only what it selects
    image_scores/<param>    the same, of gradients scaled to unit length image by image (since schema 2)
    calibration/<kind>, statistics/<name>, gate/<name>     plain arrays; directions also packed (:mod:`.directions`)
    probe_outputs     float32 [P, C]

Every array of some length is compressed by shuffle and gzip. In schemas 1 and 2 scores have the shape of their
parameter, zero outside the mask, and only they are compressed.

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

from store_schema import directions, heaps
from store_schema.deflated import deflated
from store_schema.errors import ClmoeError, StoreDamaged
from store_schema.hdf5 import Reader
from store_schema.layout import SUBNETWORK_SCHEMA

GROUPS = ("masks", "scores", "image_scores", "calibration", "statistics", "gate")
SCORES = ("scores", "image_scores")
SINCE_SCHEMA_2 = ("image_scores",)
"""Groups that objects of schema 1 lack: they are read as empty."""
SINCE_SCHEMA_3 = ("uint16", "uint32")
"""Types that arrays of schemas 1 and 2 do not have: directions, packed."""
PLAIN = {
    "calibration": ("float32", "float64"),
    "statistics": ("float16", "float32", "float64", "int64", *SINCE_SCHEMA_3),
    "gate": ("float16", "float32", "float64", "int64", "uint8", *SINCE_SCHEMA_3),
}
SMALL = 512
"""Bytes up to which an array lies there as it is: what describes a compressed one takes about as much."""
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
            put = _put(file, f"masks/{name}", np.packbits(mask, axis=None))
            put.attrs["shape"] = np.array(mask.shape, dtype=np.int64)
        for kind, found, scale in (
            ("scores", record.scores, record.score_scale),
            ("image_scores", record.image_scores, record.image_score_scale),
        ):
            file.require_group(kind)
            for name, scores in sorted(found.items()):
                path = f"{kind}/{name}"
                put = _put(file, path, _selected(path, scores, record.masks.get(name)))
                put.attrs["scale"] = float(scale[name])
        for group in ("calibration", "statistics", "gate"):
            arrays: Mapping[str, NDArray[Any]] = getattr(record, group)
            file.create_group(group)
            for name, value in sorted(arrays.items()):
                _put(file, f"{group}/{name}", directions.smaller(value) if group != "calibration" else value)
        _put(file, "probe_outputs", record.probe_outputs)
    return image.getvalue()


def _put(file: Any, path: str, value: NDArray[Any]) -> Any:
    """Writes an array; a longer one in one chunk, since each chunk has an entry of its own."""
    if value.nbytes <= SMALL:
        return file.create_dataset(path, data=value, track_times=False)
    how = {"compression": "gzip", "shuffle": True, "chunks": value.shape, "track_times": False}
    put = file.create_dataset(path, shape=value.shape, dtype=value.dtype, **how)
    put.id.write_direct_chunk((0,) * value.ndim, deflated(value))
    return put


def _selected(path: str, scores: NDArray[Any], mask: NDArray[np.bool_] | None) -> NDArray[Any]:
    """What is stored of scores: those that the ``mask`` selects, [n]; all where there is none."""
    if mask is None:
        return scores
    if scores.shape != mask.shape or scores[~mask].any():
        raise ValueError(f"{path}: scores outside the mask")
    return scores[mask]


def decode_subnetwork(
    data: bytes,
    where: str,
    task: str,
    expert: str,
    shapes: Mapping[str, tuple[int, ...]],
    groups: Collection[str] = GROUPS,
) -> SubnetworkRecord:
    """Parses and checks a task's object against what the manifest says of it; ``shapes``: layer → [out, in].

    ``groups``: those that are wanted; the others are left empty, neither read nor checked. Scores come with the masks
    that they belong to.

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
    groups = {*groups, "masks"} if set(SCORES) & set(groups) else groups
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
            name: _check_score(reader, f"{kind}/{name}", found, shapes.get(name), schema)
            for name, found in sets[kind].items()
        }
        for kind in SCORES
    }
    for group_name, dtypes in PLAIN.items():
        allowed = [one for one in dtypes if schema >= 3 or one not in SINCE_SCHEMA_3]
        for name, found in sets[group_name].items():
            if found.dtype.name not in allowed or (group_name == "calibration" and not 1 <= found.ndim <= 2):
                raise reader.fail(f"{group_name}/{name}", f"{found.dtype} {found.shape}", " or ".join(allowed))
            if found.dtype.name in SINCE_SCHEMA_3:
                reader.declare(f"{group_name}/{name}", directions.UNPACKING * found.size)
    # All is checked that can be before anything is read.
    arrays = {group: {name: reader.values(found) for name, found in members.items()} for group, members in sets.items()}
    masks = {
        name: np.unpackbits(arrays["masks"][name], count=math.prod(shape)).view(bool).reshape(shape)
        for name, shape in shapes.items()
        if "masks" in groups
    }
    for kind in SCORES:
        for name, scores in arrays[kind].items():
            if name in masks:
                found = _spread if schema >= 3 else _dense
                arrays[kind][name] = found(reader, f"{kind}/{name}", scores, masks[name])
    for group_name in PLAIN:
        for name, read in arrays[group_name].items():
            if read.dtype.name in SINCE_SCHEMA_3:
                arrays[group_name][name] = _unpacked(reader, f"{group_name}/{name}", read)
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


def _check_score(reader: Reader, path: str, found: Any, shape: tuple[int, ...] | None, schema: int) -> float:
    """The scale of scores; ``shape``: that of their mask, None where they have none."""
    scale = reader.attribute(found, "scale")
    if found.dtype != np.float16 or not isinstance(scale, float) or not math.isfinite(scale):
        raise reader.fail(path, found.dtype, "float16 with a finite scale")
    if shape is not None and schema >= 3:
        size = math.prod(shape)
        if found.ndim != 1 or found.size > size:
            raise reader.fail(path, f"shape {found.shape}", f"a value for each selected one of {size} weights")
        reader.declare(path, size * found.dtype.itemsize)  # spread over the parameter
    elif shape is not None and found.shape != shape:
        raise reader.fail(path, f"shape {found.shape}", f"the mask's, {shape}")
    return float(scale)


def _dense(reader: Reader, path: str, scores: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Scores of schemas 1 and 2, which have the shape of their mask."""
    if scores[~mask].any():
        raise reader.fail(path, "scores outside the mask", "zero there")
    return scores


def _spread(reader: Reader, path: str, scores: NDArray[Any], mask: NDArray[np.bool_]) -> NDArray[Any]:
    """Scores of the shape of their mask, from those that it selects."""
    count = int(mask.sum())
    if len(scores) != count:
        raise reader.fail(path, f"{len(scores)} scores", f"the {count} that the mask selects")
    full = np.zeros(mask.shape, dtype=scores.dtype)
    full[mask] = scores
    return full


def _unpacked(reader: Reader, path: str, value: NDArray[Any]) -> NDArray[np.float16]:
    try:
        return directions.unpacked(value)
    except ValueError as error:
        raise reader.fail(path, str(error), "numbers of half precision") from error
