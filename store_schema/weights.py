"""safetensors codec for one expert: the shared weights, and each task's owned parameters under its name.

Keys: ``shared/<layer>`` and ``task/<task name>/<parameter>``; a parameter's name has no slash, so the last one
parts them whatever the task is called.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save

from store_schema.errors import StoreDamaged
from store_schema.layout import WEIGHTS_SCHEMA
from store_schema.records import ExpertRecord

Array = NDArray[np.float32]
MAX_HEADER = 32 << 20


@dataclass(frozen=True)
class ExpertWeights:
    """``shared``: layer → float32 [out, in]; ``owned``: task → parameter → float32."""

    shared: Mapping[str, Array]
    owned: Mapping[str, Mapping[str, Array]]


def encode_weights(weights: ExpertWeights, expert: str) -> bytes:
    """The bytes of an expert's object; the same values give the same bytes."""
    tensors = {f"shared/{name}": value for name, value in weights.shared.items()}
    for task, params in weights.owned.items():
        tensors |= {f"task/{task}/{name}": value for name, value in params.items()}
    ready = {key: np.ascontiguousarray(tensors[key], dtype=np.float32) for key in sorted(tensors)}
    # A single metadata entry: the writer keeps several in no particular order.
    return save(ready, metadata={"clmoe": f"schema {WEIGHTS_SCHEMA}, expert {expert}"})


def decode_weights(data: bytes, where: str, record: ExpertRecord, tasks: Sequence[str]) -> ExpertWeights:
    """Parses and checks an expert's object against its record and the names of its tasks.

    Raises StoreDamaged: header, offsets, dtype, shape, missing or unknown key, NaN or infinite values.
    """
    _check_header(data, where)
    try:
        found: dict[str, Array] = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
    shapes = {layer.name: layer.shape for layer in record.layers}
    shared: dict[str, Array] = {}
    owned: dict[str, dict[str, Array]] = {task: {} for task in tasks}
    for key, value in found.items():
        if not np.isfinite(value).all():
            raise StoreDamaged("a weight is NaN or infinite", where=where, key=key)
        if key.startswith("shared/") and key[7:] in shapes:
            if value.shape != shapes[key[7:]]:
                raise StoreDamaged(
                    "wrong shape", where=where, key=key, found=str(value.shape), expected=str(shapes[key[7:]])
                )
            shared[key[7:]] = value
            continue
        task, _, name = key.removeprefix("task/").rpartition("/")
        if not key.startswith("task/") or task not in owned:
            raise StoreDamaged("a weight that nothing uses", where=where, key=key)
        owned[task][name] = value
    missing = [*(set(shapes) - set(shared)), *(task for task, params in owned.items() if not params)]
    if missing:
        raise StoreDamaged("weights are missing", where=where, key=str(missing[0]))
    return ExpertWeights({name: shared[name] for name in shapes}, owned)


def _check_header(data: bytes, where: str) -> None:
    """The header must tile the rest of the file exactly, in float32, before any library reads it."""
    try:
        (size,) = struct.unpack_from("<Q", data)
        if size > min(MAX_HEADER, len(data) - 8):
            raise ValueError(f"a header of {size} bytes in a file of {len(data)}")
        header = json.loads(data[8 : 8 + size].decode())
        spans = []
        for key, entry in header.items():
            if key == "__metadata__":
                continue
            start, end = entry["data_offsets"]
            count = int(np.prod([int(n) for n in entry["shape"]], dtype=object)) if entry["shape"] else 1
            if entry["dtype"] != "F32" or any(n < 1 for n in entry["shape"]) or end - start != 4 * count:
                raise ValueError(f"{key!r} is no float32 array of its declared size")
            spans.append((start, end))
        edge = 0
        for start, end in sorted(spans):
            if start != edge:
                raise ValueError("offsets overlap or leave gaps")
            edge = end
        if edge != len(data) - 8 - size:
            raise ValueError("offsets do not end where the file does")
    except (struct.error, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StoreDamaged("not a valid safetensors file", where=where, found=str(error)) from error
