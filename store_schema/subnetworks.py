"""HDF5 codec for one task: masks, gradient scores, calibration, statistics, gate, probe outputs.

::

    /                 attributes: schema, task, expert, layers
    masks/<layer>     uint8, the packed bits of a mask; attribute shape
    scores/<param>    float16, shuffle + gzip, in units of attribute scale; zero outside the mask
    calibration/<kind>, statistics/<name>, gate/<name>     plain arrays
    probe_outputs     float32 [P, C]

A file is written and read in memory as a whole; no file is ever modified.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from store_schema.errors import StoreDamaged
from store_schema.layout import SUBNETWORK_SCHEMA

GROUPS = ("masks", "scores", "calibration", "statistics", "gate")
DTYPES = ("uint8", "float16", "float32", "float64", "int64")
MAX_ARRAY = 256 << 20
DEFLATE_LIMIT = 1100
"""Deflate cannot expand further: a data set that declares more than this times its stored bytes lies."""


@dataclass(frozen=True)
class SubnetworkRecord:
    """A task's object. ``masks``: layer → bool [out, in]; ``scores``: parameter → float16 of its shape, in units
    of ``score_scale``; the rest are numeric arrays by name."""

    task: str
    expert: str
    masks: Mapping[str, NDArray[np.bool_]]
    scores: Mapping[str, NDArray[np.float16]]
    score_scale: Mapping[str, float]
    calibration: Mapping[str, NDArray[Any]]
    statistics: Mapping[str, NDArray[Any]]
    gate: Mapping[str, NDArray[Any]]
    probe_outputs: NDArray[np.float32]


def encode_subnetwork(record: SubnetworkRecord) -> bytes:
    """The bytes of a task's object; the same values give the same bytes."""
    image = io.BytesIO()
    with h5py.File(image, "w", libver=("v110", "v110"), track_order=False) as file:
        file.attrs["schema"] = SUBNETWORK_SCHEMA
        file.attrs["task"] = record.task
        file.attrs["expert"] = record.expert
        file.attrs["layers"] = "\n".join(record.masks)
        for name, mask in record.masks.items():
            put = file.create_dataset(f"masks/{name}", data=np.packbits(mask, axis=None), track_times=False)
            put.attrs["shape"] = np.array(mask.shape, dtype=np.int64)
        for name, scores in record.scores.items():
            put = file.create_dataset(
                f"scores/{name}", data=scores, compression="gzip", shuffle=True, track_times=False
            )
            put.attrs["scale"] = float(record.score_scale[name])
        for group in ("calibration", "statistics", "gate"):
            arrays: Mapping[str, NDArray[Any]] = getattr(record, group)
            file.create_group(group)
            for name, value in arrays.items():
                file.create_dataset(f"{group}/{name}", data=value, track_times=False)
        file.create_dataset("probe_outputs", data=record.probe_outputs, track_times=False)
    return image.getvalue()


def decode_subnetwork(
    data: bytes, where: str, task: str, expert: str, shapes: Mapping[str, tuple[int, ...]]
) -> SubnetworkRecord:
    """Parses and checks a task's object against what the manifest says of it; ``shapes``: layer → [out, in].

    Raises StoreDamaged for anything that this format does not have (links, external storage, virtual data sets,
    other filters, other types), wrong sizes, NaN or infinite values, scores outside the mask.
    """
    try:
        with h5py.File(io.BytesIO(data), "r") as file:
            return _decode(file, where, task, expert, shapes)
    except StoreDamaged:
        raise
    except (
        OSError,
        KeyError,
        RuntimeError,
        ValueError,
        TypeError,
        AttributeError,
        MemoryError,
        OverflowError,
    ) as error:
        raise StoreDamaged("not a valid HDF5 object", where=where, found=str(error)) from error


def _decode(file: Any, where: str, task: str, expert: str, shapes: Mapping[str, tuple[int, ...]]) -> SubnetworkRecord:
    def fail(key: str, found: Any, expected: Any) -> StoreDamaged:
        return StoreDamaged("wrong content", where=where, key=key, found=str(found), expected=str(expected))

    expected = {"schema": SUBNETWORK_SCHEMA, "task": task, "expert": expert, "layers": "\n".join(shapes)}
    for key, value in expected.items():
        if file.attrs[key] != value:
            raise fail(key, repr(file.attrs[key]), repr(value))
    if set(file) != {*GROUPS, "probe_outputs"}:
        raise fail("/", sorted(file), sorted((*GROUPS, "probe_outputs")))
    arrays: dict[str, dict[str, NDArray[Any]]] = {}
    for group in GROUPS:
        _hard_link(file, group, fail)
        if not isinstance(file[group], h5py.Group):
            raise fail(group, "a data set", "a group")
        arrays[group] = {name: _array(file[group], name, fail) for name in file[group]}
    probe = _array(file, "probe_outputs", fail)
    masks: dict[str, NDArray[np.bool_]] = {}
    if set(arrays["masks"]) != set(shapes):
        raise fail("masks", sorted(arrays["masks"]), sorted(shapes))
    for name, shape in shapes.items():
        packed, size = arrays["masks"][name], int(np.prod(shape))
        declared = tuple(int(n) for n in file["masks"][name].attrs["shape"])
        if packed.dtype != np.uint8 or declared != shape or packed.shape != ((size + 7) // 8,):
            raise fail(f"masks/{name}", f"{packed.dtype} {packed.shape} for {declared}", f"packed bits of {shape}")
        masks[name] = np.unpackbits(packed, count=size).astype(bool).reshape(shape)
    scale = {name: float(file["scores"][name].attrs["scale"]) for name in arrays["scores"]}
    for name, scores in arrays["scores"].items():
        if scores.dtype != np.float16 or not np.isfinite(scale[name]):
            raise fail(f"scores/{name}", scores.dtype, "float16 with a finite scale")
        if name in masks and (scores.shape != masks[name].shape or scores[~masks[name]].any()):
            raise fail(f"scores/{name}", "scores outside the mask", "zero there, and the mask's shape")
    return SubnetworkRecord(
        task, expert, masks, arrays["scores"], scale,
        arrays["calibration"], arrays["statistics"], arrays["gate"], probe,
    )  # fmt: skip


def _hard_link(parent: Any, name: str, fail: Callable[[str, Any, Any], StoreDamaged]) -> None:
    if not isinstance(parent.get(name, getlink=True), h5py.HardLink):
        raise fail(name, "a soft or external link", "a hard link")


def _array(parent: Any, name: str, fail: Callable[[str, Any, Any], StoreDamaged]) -> NDArray[Any]:
    """A data set's values, after every check that can be made before they are read."""
    key = f"{parent.name}/{name}".lstrip("/")
    _hard_link(parent, name, fail)
    found = parent[name]
    if not isinstance(found, h5py.Dataset):
        raise fail(key, "a group", "a data set")
    if found.is_virtual or found.external:
        raise fail(key, "virtual or external storage", "its own bytes")
    if found.dtype.name not in DTYPES or not found.dtype.isnative:
        raise fail(key, found.dtype, " or ".join(DTYPES))
    plist = found.id.get_create_plist()
    filters = {plist.get_filter(i)[0] for i in range(plist.get_nfilters())}
    if not filters <= {h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_SHUFFLE}:
        raise fail(key, f"filters {sorted(filters)}", "shuffle and gzip at most")
    stored = found.id.get_storage_size() * (DEFLATE_LIMIT if filters else 1)
    if found.shape is None or found.nbytes > min(MAX_ARRAY, stored):
        raise fail(key, f"{found.nbytes} bytes declared", f"at most {min(MAX_ARRAY, stored)}")
    value: NDArray[Any] = found[()]
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise fail(key, "NaN or infinite values", "finite ones")
    return value
