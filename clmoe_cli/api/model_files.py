"""Models that leave: safetensors and ONNX files that anyone reads without ``clmoe`` (docs/export.md).

What a model is, its classes and what it reads lie in both as one JSON object under ``clmoe`` in the metadata. A single
entry, since the writer of safetensors keeps several in no particular order.
"""

from __future__ import annotations

import io
import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor, nn

from clmoe_cli.api.reports import Features, Json
from clmoe_cli.backbone.onnx_files import exported, one_threaded
from clmoe_cli.runtime.packages import missing
from store_schema import InputRecord, UsageProblem

FLOATS = "float32: uint8 divided by 255, floats as they are"
"""What a model takes."""
SPARSE = ("indices", "values", "shape")
"""What stands for a tensor ``name`` that is kept sparse: ``name.indices`` and so on."""


@dataclass(frozen=True, kw_only=True)
class Reads:
    """What a model's inputs are, and what pictures go through before; None leaves a step out."""

    shape: tuple[int, ...]
    values: str = FLOATS
    image_size: int | None
    channels: int | None
    features: Features | None


def steps_of(record: InputRecord | None) -> dict[str, Any]:
    """The fields of :class:`Reads` that say what pictures go through."""
    seen = None if record is None else record.features
    return {
        "image_size": None if record is None else record.image_size,
        "channels": None if record is None else record.channels,
        "features": None if seen is None else Features(seen.arch, seen.sha256),
    }


def to_safetensors(values: Mapping[str, Tensor], about: Mapping[str, Json], sparse: Collection[str]) -> bytes:
    """The bytes of a safetensors file; the same values give the same bytes.

    Of those named in ``sparse`` the positions in C order (int32 [n]) and the values (float32 [n]) of all entries whose
    bits are not zero are kept, and the shape (int64 [rank]), where that is shorter.
    """
    found: dict[str, Tensor] = {}
    for name, value in values.items():
        flat = value.contiguous().view(-1)
        # By its bits: a zero with a sign is kept.
        indices = flat.view(torch.int32).nonzero()[:, 0] if name in sparse else None
        if indices is None or 8 * (len(indices) + value.ndim) >= 4 * value.numel():
            found[name] = value.contiguous()
            continue
        parts = (indices.to(torch.int32), flat[indices], torch.tensor(value.shape))
        found |= {f"{name}.{kind}": part for kind, part in zip(SPARSE, parts, strict=True)}
    return save(found, metadata={"clmoe": json.dumps(about, sort_keys=True)})


def from_safetensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The dense tensors of such a file, and what it says of itself."""
    found = load_file(path)
    for key in [key for key in found if key.endswith(".indices")]:
        name = key.removesuffix(".indices")
        indices, values, shape = (found.pop(f"{name}.{kind}") for kind in SPARSE)
        dense = torch.zeros(tuple(shape.tolist()), dtype=values.dtype)
        dense.view(-1)[indices.long()] = values
        found[name] = dense
    with safe_open(path, framework="pt") as file:
        return found, json.loads(file.metadata()["clmoe"])


def check_onnx() -> None:
    """Raises UsageProblem where the packages that write ONNX files (the extra ``export``) are missing."""
    if missing("onnx", "onnxscript"):
        raise UsageProblem("onnx files need the packages onnx and onnxscript", hint="pip install 'clmoe[export]'")


TASK_OUTPUTS = ("logits", "probabilities")
Asked = Callable[[Tensor], list[Tensor]]
"""What a model in a file answers images [n, …]: its outputs, in their order."""


def to_onnx(
    net: nn.Module, shape: Sequence[int], about: Mapping[str, Json], outputs: Sequence[str] = TASK_OUTPUTS
) -> bytes:
    """The bytes of an ONNX file of a module that makes ``outputs`` [N, …] of images [N, *shape].

    The same module gives the same bytes; nothing in them tells where it was exported.
    """
    model = exported(net, torch.zeros((2, *shape)), "images", outputs, any_number=True)
    graph = model.graph
    # Traces with the paths of this machine's files.
    for part in (model, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del part.metadata_props[:]
    model.metadata_props.add(key="clmoe", value=json.dumps(about, sort_keys=True))
    data: bytes = model.SerializeToString(deterministic=True)
    return data


def to_pt2(net: nn.Module, shape: Sequence[int], about: Mapping[str, Json]) -> bytes:
    """The bytes of an ``ExportedProgram`` of a module that reads images [N, *shape]; the same ones every time."""
    images = (torch.zeros((2, *shape)),)
    program = torch.export.export(net, images, dynamic_shapes=({0: torch.export.Dim("batch")},))
    for node in program.graph.nodes:
        for trace in ("stack_trace", "nn_module_stack", "source_fn_stack", "from_node", "torch_fn"):
            node.meta.pop(trace, None)
    for held in (program.state_dict, program.constants):  # parts of other tensors are kept as they are, and whole
        for name, value in held.items():
            if isinstance(value, Tensor):
                own = value.detach().clone(memory_format=torch.contiguous_format)
                held[name] = nn.Parameter(own, requires_grad=False) if isinstance(value, nn.Parameter) else own
    file = io.BytesIO()
    torch.export.save(program, file, extra_files={PT2_ABOUT: json.dumps(about, sort_keys=True)})
    return file.getvalue()


PT2_ABOUT = "clmoe.json"
"""The file in a .pt2 that says what its model is."""


def open_onnx(path: str) -> tuple[Asked, str]:
    """What answers by the model in a file, and the name of what runs it.

    That is onnxruntime where it is installed, else the slow reference of the package onnx.
    """
    if missing("onnxruntime"):
        from onnx.reference import ReferenceEvaluator

        session: Any = ReferenceEvaluator(path)
        runner = "onnx.reference"
    else:
        session = one_threaded(path)
        runner = "onnxruntime"
    return lambda images: [torch.from_numpy(out) for out in session.run(None, {"images": images.numpy()})], runner


def open_pt2(path: str) -> tuple[Asked, str]:
    """The same of an ``ExportedProgram``."""
    net = torch.export.load(io.BytesIO(Path(path).read_bytes())).module()

    def asked(images: Tensor) -> list[Tensor]:
        with torch.inference_mode():
            return list(net(images))

    return asked, "torch"


def run_onnx(path: str, parts: Sequence[Tensor]) -> tuple[list[Tensor], str]:
    """Logits of batches of images by the model of a task in a file, and the name of what ran it."""
    asked, runner = open_onnx(path)
    return [asked(part)[TASK_OUTPUTS.index("logits")] for part in parts], runner


def milliseconds(asked: Asked, images: Tensor) -> float:
    """Milliseconds that a model takes for each of the images [n, …], all at once: the shortest of three times."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        asked(images)
        found.append(time.perf_counter() - start)
    return 1000 * min(found) / len(images)
