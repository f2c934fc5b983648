"""safetensors codec for one expert: the shared weights, and each task's owned parameters under its name.

Keys: ``shared/<layer>`` and ``task/<task name>/<parameter>``; a parameter's name has no slash, so the last one
parts them whatever the task is called. A base, the pretrained weights below an expert's, has ``shared/<layer>`` alone.
An expert that standardises its inputs has ``input/centre`` and
``input/spread`` as well, and is of schema 2; all others are of schema 1. The metadata names the schema and the expert.
Whatever is encoded passes every check that decoding makes, so that nothing unreadable is ever committed.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store_schema.errors import ClmoeError, StoreDamaged
from store_schema.layout import STANDARDISED_SCHEMA, WEIGHTS_SCHEMA
from store_schema.records import ExpertRecord

Array = NDArray[np.float32]
MAX_HEADER = 8 << 20
MAX_RANK = 8
INPUTS = ("centre", "spread")
BASE = "base"


@dataclass(frozen=True)
class ExpertWeights:
    """``shared``: layer → float32 [out, in]; ``owned``: task → parameter → float32.

    ``inputs``: ``centre`` and ``spread`` of the inputs, float32 [D], the spread above zero; empty where an expert
    does not standardise them.
    """

    shared: Mapping[str, Array]
    owned: Mapping[str, Mapping[str, Array]]
    inputs: Mapping[str, Array] = field(default_factory=dict)


def encode_weights(weights: ExpertWeights, expert: str) -> bytes:
    """The bytes of an expert's object; the same values give the same bytes.

    Raises ClmoeError when a weight is NaN or infinite, or a name or size does not fit the format.
    """
    tensors = {f"shared/{name}": value for name, value in weights.shared.items()}
    for task, params in weights.owned.items():
        tensors |= {f"task/{task}/{name}": value for name, value in params.items()}
    tensors |= {f"input/{name}": value for name, value in weights.inputs.items()}
    ready = {key: np.ascontiguousarray(tensors[key], dtype=np.float32) for key in sorted(tensors)}
    # A single metadata entry: the writer keeps several in no particular order.
    width = len(next(iter(weights.inputs.values()))) if weights.inputs else None
    data = save(ready, metadata=_metadata(expert, width))
    shapes = {name: value.shape for name, value in weights.shared.items()}
    try:
        _parse(data, "", expert, shapes, list(weights.owned), width)
    except StoreDamaged as error:
        raise ClmoeError(
            f"the weights of expert {expert} cannot be stored", key=error.key,
            found=error.what if error.found is None else f"{error.what}: {error.found}", expected=error.expected,
        ) from error  # fmt: skip
    return data


def decode_weights(data: bytes, where: str, record: ExpertRecord, tasks: Sequence[str]) -> ExpertWeights:
    """Parses and checks an expert's object against its record and the names of its tasks.

    Raises StoreDamaged: header, offsets, dtype, shape, another expert, missing or unknown key, NaN or infinite
    values, a spread that is not above zero.
    """
    width = math.prod(record.input_shape) if record.standardised else None
    return _parse(data, where, record.id, {layer.name: layer.shape for layer in record.layers}, tasks, width)


def encode_base(weights: Mapping[str, Array]) -> bytes:
    """The bytes of a base: layer → float32 weights. The same values give the same bytes; raises ClmoeError."""
    return encode_weights(ExpertWeights(weights, {}), BASE)


def decode_base(data: bytes, where: str, shapes: Mapping[str, tuple[int, ...]]) -> Mapping[str, Array]:
    """Parses and checks a base of layers of these shapes; raises what :func:`decode_weights` raises."""
    return _parse(data, where, BASE, shapes, (), None).shared


def _metadata(expert: str, width: int | None) -> dict[str, str]:
    schema = WEIGHTS_SCHEMA if width is None else STANDARDISED_SCHEMA
    return {"clmoe": f"schema {schema}, expert {expert}"}


def _parse(
    data: bytes,
    where: str,
    expert: str,
    shapes: Mapping[str, tuple[int, ...]],
    tasks: Sequence[str],
    width: int | None,
) -> ExpertWeights:
    """``width``: D of an expert that standardises its inputs."""
    metadata = check_header(data, where, {"F32": 4})
    if metadata != _metadata(expert, width):
        wanted = str(_metadata(expert, width))
        raise StoreDamaged("another object", where=where, key="__metadata__", found=str(metadata), expected=wanted)
    try:
        found: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
    inputs: dict[str, Array] = {}
    shared: dict[str, Array] = {}
    owned: dict[str, dict[str, Array]] = {task: {} for task in tasks}
    expected = {f"shared/{name}": shape for name, shape in shapes.items()}
    if width is not None:
        expected |= {f"input/{name}": (width,) for name in INPUTS}
    for key, value in found.items():
        if not np.isfinite(value).all():
            raise StoreDamaged("a weight is NaN or infinite", where=where, key=key)
        if key in expected:
            if value.shape != expected[key]:
                raise StoreDamaged(
                    "wrong shape", where=where, key=key, found=str(value.shape), expected=str(expected[key])
                )
            kind, _, name = key.partition("/")
            (shared if kind == "shared" else inputs)[name] = value
            continue
        task, _, name = key.removeprefix("task/").rpartition("/")
        if not key.startswith("task/") or task not in owned or not name:
            raise StoreDamaged("a weight that nothing uses", where=where, key=key)
        owned[task][name] = value
    missing = [*(set(expected) - set(found)), *(task for task, params in owned.items() if not params)]
    if missing:
        raise StoreDamaged("weights are missing", where=where, key=str(missing[0]))
    if inputs and not (inputs["spread"] > 0).all():
        raise StoreDamaged("a spread that is not above zero", where=where, key="input/spread")
    return ExpertWeights({name: shared[name] for name in shapes}, owned, inputs)


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object in which no name occurs twice: readers differ in which of the two they take."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def check_header(data: bytes, where: str, sizes: Mapping[str, int], total: int | None = None) -> dict[str, str]:
    """The header must tile the rest of the file exactly before any library reads it.

    ``sizes``: the types allowed and their bytes. ``total``: the bytes of the file where ``data`` is only its beginning.
    Returns its metadata (empty where there is none); raises StoreDamaged.
    """
    length = len(data) if total is None else total
    try:
        (size,) = struct.unpack_from("<Q", data)
        if size > min(MAX_HEADER, length - 8):
            raise ValueError(f"a header of {size} bytes in a file of {length}")
        header = json.loads(data[8 : 8 + size].decode(), object_pairs_hook=_once)
        spans = []
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            shape = entry["shape"]
            numbers = [*shape, start, end]
            if len(shape) > MAX_RANK or not all(type(n) is int and 0 <= n <= length for n in numbers):
                raise ValueError(f"{key!r} has a shape or offsets that do not fit the file")
            size_of = sizes.get(entry["dtype"])
            if size_of is None or 0 in shape or end - start != size_of * math.prod(shape):
                raise ValueError(f"{key!r} is no array of {' or '.join(sizes)} of its declared size")
            spans.append((start, end))
        edge = 0
        for start, end in sorted(spans):
            if start != edge:
                raise ValueError("offsets overlap or leave gaps")
            edge = end
        if edge != length - 8 - size:
            raise ValueError("offsets do not end where the file does")
        metadata = header.get("__metadata__", {})
        if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
            raise ValueError("its metadata are no strings by name")
        return metadata
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
