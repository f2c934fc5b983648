"""Any ONNX file with a picture in and a vector out as a backbone, through onnxruntime.

How its pictures are normalised stands in a small JSON file beside it, ``model.json`` beside ``model.onnx``, or in
Hugging Face's ``preprocessor_config.json``: ``mean`` and ``std`` of the three channels (pixels from 0 to 1) and
``size``. The file is known by its sha256.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from clmoe_cli.backbone.frozen import Backbone
from clmoe_cli.data.npz import name_list, one_line, read_problem
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.packages import missing
from store_schema.errors import BadInput, UsageProblem
from store_schema.records import FeaturesRecord

EXTRA = "pip install 'clmoe[photos]'"
_OWN = ("", "ai.onnx", "ai.onnx.ml", "com.microsoft")
"""Domains of operators that onnxruntime brings; others need code of their own."""
_NAMES = ("pooler_output", "image_embeds", "embeddings", "features")
"""Outputs that are taken first where a file has several vectors."""
_KEYS = {"mean": ("mean", "image_mean"), "std": ("std", "image_std"), "size": ("crop_size", "size", "image_size")}
_EXAMPLE = '{"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "size": 224}'


@dataclass(frozen=True, eq=False)
class OnnxRunner:
    """A session of onnxruntime: its one input [n, 3, H, W] and the output [n, width] that is read.

    ``fixed``: height and width that it reads, 0 for any. ``batch``: pictures of a call. A session has one thread, and
    several blocks pass at the same time: sums are the same however many there are.
    """

    where: str
    batch: int
    fixed: tuple[int, int]
    _session: Any = field(repr=False)
    _input: str
    _output: str
    _half: bool = False

    def check_size(self, height: int, width: int) -> None:
        """Raises UsageProblem for another size than the file's."""
        if any(wanted not in (0, given) for wanted, given in zip(self.fixed, (height, width), strict=True)):
            raise UsageProblem(
                f"{self.where} cannot read pictures of this size", found=f"{height}x{width}",
                expected="x".join(str(side or "any") for side in self.fixed), hint=f"--image-size {max(self.fixed)}",
            )  # fmt: skip

    def block(self, height: int, width: int, device: str) -> int:
        """Pictures of a call."""
        return self.batch

    def workers(self, device: str) -> int:
        """As many as torch has threads."""
        return torch.get_num_threads()

    def run(self, pictures: Tensor, device: str) -> Tensor:
        """Features [n, width] of normalised pictures [n, 3, H, W]. BadInput where the file cannot compute them."""
        values = pictures.half() if self._half else pictures
        try:
            (found,) = self._session.run([self._output], {self._input: values.numpy()})
        except Exception as error:  # onnxruntime raises kinds of its own, one for each fault
            what = "the network cannot compute features"
            raise BadInput(what, where=self.where, found=one_line(error)[:200]) from error
        return torch.from_numpy(found).float().flatten(1)

    def module(self) -> None:
        """None: it is a file."""


def load(path: str, size: tuple[int, int] | None = None) -> Backbone:
    """The backbone in an ONNX file; ``size``: height and width of the pictures, None for the file's own.

    Raises UsageProblem where onnxruntime is missing or the size is not the file's, BadInput for a file that cannot be
    read, needs code or files beside it, is no network from pictures to vectors, or whose answers are not finite or
    not the same twice.
    """
    where = one_line(path)
    try:
        data = _bytes(Path(path), where)
    except OSError as error:
        raise read_problem(error, where) from error
    mean, std, wanted = _preprocessing(Path(path), where)
    runner = session(data, where)
    sides = [side for side in runner.fixed if side]
    image_size = sides[0] if sides else wanted
    if size is not None:
        runner.check_size(*size)
    shown = size or (image_size, image_size)
    width = _checked(runner, shown)
    record = FeaturesRecord(
        arch=Path(path).name[-200:], sha256=hashlib.sha256(data).hexdigest(), mean=mean, std=std
    )  # fmt: skip
    return Backbone(record, width, image_size, mean, std, runner)


def session(data: bytes, where: str) -> OnnxRunner:
    """What runs a model; raises what :func:`load` does of its graph."""
    if missing("onnx", "onnxruntime"):
        raise UsageProblem("ONNX files need the packages onnx and onnxruntime", hint=EXTRA)
    import onnx

    try:
        model = onnx.load_model_from_string(data)
    except Exception as error:  # protobuf raises a kind of its own
        raise BadInput("not an ONNX file", where=where, found=one_line(error)[:120]) from error
    tensors = list(_tensors(onnx, model.graph)) + [
        tensor for function in model.functions for node in function.node for tensor in _of_node(onnx, node)
    ]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.external_data for tensor in tensors):
        hint = "save it as one file: onnx.save(onnx.load(path), path, save_as_external_data=False)"
        raise BadInput("weights outside of the file", where=where, expected="a file that holds them all", hint=hint)
    foreign = sorted({x.domain for x in model.opset_import} - set(_OWN) - {x.domain for x in model.functions})
    if foreign:
        raise BadInput("operators that need code of their own", where=where, found=name_list(foreign))
    try:
        ready = one_threaded(data)
    except Exception as error:  # onnxruntime raises kinds of its own
        raise BadInput("not a network that runs", where=where, found=one_line(error)[:200]) from error
    inputs = ready.get_inputs()
    shape = inputs[0].shape if inputs else []
    if len(inputs) != 1 or len(shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(float16)"):
        found = name_list([f"{x.name} {x.type} {x.shape}" for x in inputs])
        hint = "export the part that reads pictures"
        raise BadInput("not one picture in", where=where, found=found, expected="[N, 3, H, W] of floats", hint=hint)
    batch, channels, *sides = [side if isinstance(side, int) else 0 for side in shape]
    if channels not in (0, 3):
        raise BadInput("not pictures in colour", where=where, found=str(shape), expected="[N, 3, H, W]")
    named = sorted(ready.get_outputs(), key=lambda x: _NAMES.index(x.name) if x.name in _NAMES else len(_NAMES))
    vectors = [x.name for x in named if len(x.shape or ()) == 2 or (x.shape or ())[2:] == [1, 1]]
    if not vectors:
        found = name_list([f"{x.name} {x.shape}" for x in named])
        hint = "export it with its pooled output"
        raise BadInput("no vector out", where=where, found=found, expected="an output [N, width]", hint=hint)
    half = inputs[0].type == "tensor(float16)"
    return OnnxRunner(where, batch or 1, (sides[0], sides[1]), ready, inputs[0].name, vectors[0], half)


def one_threaded(model: str | bytes) -> Any:
    """A session of onnxruntime with one thread, so that sums are the same however many there are. Raises its errors."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # it tells of graphics cards that it does not find
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def exported(net: nn.Module, example: Tensor, name: str, outputs: Sequence[str], any_number: bool = False) -> Any:
    """The ONNX model of a module in evaluation mode whose one input is like ``example`` [n, …] and is called ``name``.

    ``outputs``: their names. ``any_number``: n may be another one.
    """
    # The older exporter, of TorchScript, cannot pool to a size that does not divide the map's, and is to go.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            net,
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[name],
            output_names=list(outputs),
            dynamic_shapes=({0: torch.export.Dim("batch")},) if any_number else None,
        )
    assert program is not None
    return program.model_proto


def _bytes(path: Path, where: str) -> bytes:
    total = path.stat().st_size
    if total > limits.ONNX_BYTES:
        raise BadInput("too large", where=where, found=f"{total} bytes", expected=f"at most {limits.ONNX_BYTES}")
    return path.read_bytes()


def _tensors(onnx: Any, graph: Any) -> Iterator[Any]:
    """All tensors of a graph and of the graphs inside its nodes."""
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(onnx, node)


def _of_node(onnx: Any, node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        yield from (attribute.t, *attribute.tensors)
        for graph in (attribute.g, *attribute.graphs):
            yield from _tensors(onnx, graph)


def _preprocessing(path: Path, where: str) -> tuple[tuple[float, ...], tuple[float, ...], int]:
    """Mean and deviation [3] of the channels and the size of a picture, from the file beside the network."""
    beside = [path.with_suffix(".json"), path.parent / "preprocessor_config.json"]
    file = next((one for one in beside if one.is_file()), None)
    if file is None:
        hint = f"write {one_line(beside[0])}: {_EXAMPLE}"
        raise BadInput("nothing says how its pictures are normalised", where=where, hint=hint)
    name = one_line(file)
    try:
        said = json.loads(file.read_bytes()[: limits.HEADER_BYTES])
    except OSError as error:
        raise read_problem(error, name) from error
    except ValueError as error:
        raise BadInput("not JSON", where=name, found=one_line(error)[:80], expected=_EXAMPLE) from error
    found = {key: next((said[k] for k in keys if k in said), None) for key, keys in _KEYS.items()} if isinstance(
        said, dict) else {}  # fmt: skip
    mean, std = (_channels(found.get(key)) for key in ("mean", "std"))
    size = found.get("size")
    if isinstance(size, dict):
        size = next((size[key] for key in ("height", "shortest_edge") if key in size), None)
    if mean is None or std is None or min(std) <= 0 or type(size) is not int or not 1 <= size <= 4096:
        shown = one_line(json.dumps({"mean": mean, "std": std, "size": size}))
        raise BadInput("not how pictures are normalised", where=name, found=shown[:120], expected=_EXAMPLE)
    return mean, std, size


def _channels(values: object) -> tuple[float, ...] | None:
    """Three finite numbers, or None."""
    if not isinstance(values, list) or len(values) != 3:
        return None
    if not all(type(value) in (int, float) and math.isfinite(value) for value in values):
        return None
    return tuple(float(value) for value in values)


def _checked(runner: OnnxRunner, size: tuple[int, int]) -> int:
    """Length of a feature vector, after the same pictures gave the same finite vectors twice."""
    probe = torch.rand((runner.batch, 3, *size), generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, second = runner.run(probe, "cpu"), runner.run(probe, "cpu")
    fail = f"{runner.where} gives no features"
    if first.shape[0] != runner.batch or not first.shape[1]:
        expected = f"[{runner.batch}, width]"
        raise BadInput(fail, where=runner.where, found=str(list(first.shape)), expected=expected)
    if not bool(torch.isfinite(first).all()):
        raise BadInput("features that are not finite", where=runner.where)
    if not torch.equal(first, second):
        hint = "export it for evaluation, without dropout"
        raise BadInput("other features for the same picture", where=runner.where, hint=hint)
    return int(first.shape[1])
