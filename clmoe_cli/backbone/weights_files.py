"""Weights of torchvision's networks from files, checked before a library parses them or memory is taken.

The same weights have one hash however they came: it covers the tensors that the network uses, as float32, and not
the file. See :func:`fingerprint`.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from clmoe_cli.data.npz import name_list, one_line, read_problem
from store_schema.errors import BadInput, StoreDamaged
from store_schema.layout import MAX_OBJECT
from store_schema.weights import MAX_HEADER, check_header

Shapes: TypeAlias = Mapping[str, tuple[int, ...]]

_SIZES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1, "U8": 1, "BOOL": 1}
# Outputs that GoogLeNet and Inception have only while they train.
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
# torchvision's published checkpoints of DenseNet still have the names of before 2019.
_DENSE = re.compile(r"(denselayer[0-9]+\.(?:norm|conv))([12])\.")


class Weights(NamedTuple):
    """Name → finite float32 tensor, and their :func:`fingerprint`."""

    tensors: dict[str, Tensor]
    sha256: str


class Source(Protocol):
    """Where weights come from: its name for errors, the shapes that are there, and one tensor of a name."""

    @property
    def where(self) -> str:
        """Its name in errors."""

    @property
    def shapes(self) -> Shapes:
        """Name → shape of all that is there."""

    def tensor(self, key: str) -> Tensor:
        """The tensor of that name, as it was stored."""


@dataclass(frozen=True)
class InMemory:
    """Weights that are there already."""

    where: str
    tensors: Mapping[str, Tensor]

    @property
    def shapes(self) -> Shapes:
        """Name → shape."""
        return {key: tuple(value.shape) for key, value in self.tensors.items()}

    def tensor(self, key: str) -> Tensor:
        """The tensor of that name."""
        return self.tensors[key]


class WeightsFile:
    """A safetensors file; only its header is read until a tensor is asked for.

    Raises BadInput when there is no such file, it is none of safetensors, or larger than 4 GiB; DiskProblem for a
    failing disk.
    """

    def __init__(self, path: str | Path) -> None:
        self.where = one_line(path)
        if "\0" in str(path):
            raise BadInput("not a path", where=self.where, hint="check the path")
        try:
            found = Path(path).stat()
            if not stat.S_ISREG(found.st_mode):
                raise BadInput("not a file of weights", where=self.where, expected="a safetensors file")
            with Path(path).open("rb") as file:
                self._check(file.read(8), file.read(MAX_HEADER), os.fstat(file.fileno()).st_size)
            self._file = _opened(path)
            names: list[str] = self._file.keys()
            self.shapes: Shapes = {name: tuple(self._file.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, ValueError) as error:
            raise BadInput("not a valid safetensors file", where=self.where, found=one_line(error)) from error
        except OSError as error:
            raise read_problem(error, self.where) from error

    def _check(self, prefix: bytes, rest: bytes, total: int) -> None:
        if total > MAX_OBJECT:
            raise BadInput("too many weights", where=self.where, found=f"{total} bytes", expected="at most 4 GiB")
        try:
            check_header(prefix + rest, self.where, _SIZES, total)
        except StoreDamaged as error:
            hint = None
            if prefix[:2] in (b"PK", b"\x80\x02"):  # what torch.save writes, now and formerly
                hint = "convert a checkpoint of PyTorch to safetensors first (docs/backbones.md)"
            raise BadInput("not a valid safetensors file", where=self.where, found=error.found, hint=hint) from error

    def tensor(self, key: str) -> Tensor:
        """The tensor of that name, in memory of its own."""
        try:
            tensor: Tensor = self._file.get_tensor(key).clone()
        except (SafetensorError, ValueError) as error:
            raise BadInput("cannot read a weight", where=self.where, key=one_line(key), found=str(error)) from error
        return tensor


def used_by(net: nn.Module, head: str) -> dict[str, tuple[int, ...]]:
    """Name → shape of what a network takes from a file: parameters and running statistics, but for the output layer.

    Other buffers are the architecture's own, as Swin's tables of positions.
    """
    running = {
        f"{name}.{key}"
        for name, module in net.named_modules()
        if isinstance(module, nn.BatchNorm2d)
        for key in ("running_mean", "running_var")
    }
    wanted = [(k, v) for k, v in net.named_parameters()] + [(k, v) for k, v in net.named_buffers() if k in running]
    return {key: tuple(value.shape) for key, value in wanted if not key.startswith(f"{head}.")}


def fit(source: Source, net: nn.Module, head: str, arch: str) -> Weights:
    """The weights that the network ``arch`` uses, after names and shapes were compared; ``net`` may be on meta.

    The output layer ``head`` is left out and may be missing or of any size, as may counters of batches and auxiliary
    outputs. Raises BadInput that names what is missing, is of no use, has another shape, is no floating number, NaN
    or infinite, or a negative variance.
    """
    wanted = used_by(net, head)
    names = {key: key if key in source.shapes else _DENSE.sub(r"\1.\2.", key) for key in wanted}
    idle = set(net.state_dict()) - set(wanted)
    spare = [
        key
        for key in source.shapes
        if key not in idle and not key.startswith((f"{head}.", *_AUXILIARY)) and not key.endswith("num_batches_tracked")
    ]
    missing = sorted(key for key, name in names.items() if name not in source.shapes)
    unexpected = sorted(set(spare) - set(names.values()))
    if missing or unexpected:
        problems = [f"{name_list(missing)} missing"] if missing else []
        problems += [f"{name_list(unexpected)} without use"] if unexpected else []
        raise BadInput(
            f"not the weights of {arch}", where=source.where, found="; ".join(problems),
            hint="docs/backbones.md has the line that writes such a file",
        )  # fmt: skip
    for key, shape in wanted.items():
        if source.shapes[names[key]] != shape:
            found = str(list(source.shapes[names[key]]))
            raise BadInput(
                f"not the weights of {arch}", where=source.where, key=key, found=found, expected=f"{list(shape)}"
            )
    tensors = {key: _checked(source.tensor(names[key]), source.where, key) for key in wanted}
    return Weights(tensors, fingerprint(tensors))


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over the tensors in the order of their names: for each ``name float32 [sizes]``, a newline, its values.

    Values are little-endian float32 in C order. Neither the file's own bytes nor the type it kept the values in count.
    """
    digest = hashlib.sha256()
    for key in sorted(tensors):
        values = np.ascontiguousarray(tensors[key].detach().cpu().numpy(), dtype="<f4")
        digest.update(f"{key} float32 {list(values.shape)}\n".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def _opened(path: str | Path) -> Any:
    return safe_open(path, framework="pt")


def _checked(stored: Tensor, where: str, key: str) -> Tensor:
    if not stored.is_floating_point():
        raise BadInput("a weight is no floating number", where=where, key=key, found=str(stored.dtype))
    value = stored.detach().to(torch.float32).contiguous()
    if not bool(torch.isfinite(value).all()):
        raise BadInput("a weight is NaN or infinite", where=where, key=key)
    if key.endswith("running_var") and bool((value < 0).any()):
        raise BadInput("a variance is negative", where=where, key=key)
    return value
