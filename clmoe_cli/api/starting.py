"""Where the free weights of ``learn`` start from: drawn afresh, or pretrained ones out of a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from clmoe_cli.api.inputs import kind_text
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.backbone import lite0
from clmoe_cli.backbone.torchvision_models import pretrained
from clmoe_cli.data import Batch
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import Network, Params
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.routing.network_eye import NetworkEye
from clmoe_cli.method.scaling import LEAST
from clmoe_cli.method.tasks.placement import DRAWS
from store_schema import ExpertRecord, Manifest, StoreIncompatible, UsageProblem


@dataclass(frozen=True, eq=False)
class Start:
    """Pretrained parameters by the expert's own names, all but the output's, and their hash; None for neither."""

    params: Params | None = None
    sha256: str | None = None

    @staticmethod
    def of(options: LearnOptions, batch: Batch) -> Start:
        """What ``options.weights`` names, for images like these; ``lite0`` without it starts from its package's.

        Raises UsageProblem for an architecture that takes no file, BadInput for weights that do not fit it.
        """
        if options.weights is None and options.arch != lite0.ARCH:
            return Start()
        net = parse_arch(options.arch, batch.input_shape)
        if not isinstance(net, ConvNet):
            raise UsageProblem(
                "--weights is for convolutional experts", key="--arch", found=repr(options.arch),
                expected="a network of torchvision", hint="--features-weights is for a backbone",
            )  # fmt: skip
        if options.weights is None:
            found = lite0.published(net.module)
        else:
            found = pretrained(options.arch, net.module, options.weights)
        ours = {theirs: name for name, theirs in net.names.items()}
        layers = {key: key.rpartition(".") for key in found.tensors}
        params = {f"{ours[layers[key][0]]}.{layers[key][2]}": value for key, value in found.tensors.items()}
        return Start(net.ordered(params), found.sha256)

    def fits(self, record: ExpertRecord) -> bool:
        """Whether an expert's tasks start from these weights, or from fresh ones as this does."""
        return record.pretrained == self.sha256

    def require(self, record: ExpertRecord) -> None:
        """UsageProblem (no file) or StoreIncompatible (another one) for an expert whose tasks start elsewhere."""
        if self.fits(record):
            return
        needed = f"weights {record.pretrained[:16]}" if record.pretrained else "weights drawn afresh"
        if self.sha256 is None:
            raise UsageProblem(
                "the expert's tasks start from pretrained weights", key=record.id, found="no --weights",
                expected=needed, hint="--weights FILE names the file that it was made with",
            )  # fmt: skip
        raise StoreIncompatible(
            "the expert's tasks start from other weights", key=record.id, found=f"weights {self.sha256[:16]}",
            expected=needed, hint="give the file that it was made with, or --expert new",
        )  # fmt: skip

    def base(self, record: ExpertRecord, device: str) -> Params:
        """What a new expert of that record stands on, on that device: its shared weights of these; nothing of none."""
        if self.params is None:
            return {}
        return {layer.name: self.params[layer.name].to(device) for layer in record.layers}

    def eye(self, record: ExpertRecord) -> NetworkEye:
        """The network that these are, for an expert of that record."""
        assert self.params is not None
        net = parse_arch(record.arch, record.input_shape, self.base(record, "cpu"))
        own = {name: value for name, value in self.params.items() if name not in net.shared_shapes()}
        return NetworkEye.pretrained(record.arch, net, own)

    def beside(self, net: Network) -> Params | None:
        """What takes the place of fresh parameters: all of these, or those that a task owns where the rest is below."""
        if self.params is None:
            return None
        return {name: value for name, value in self.params.items() if name not in net.base}

    def draws(self, net: Network, generator: torch.Generator) -> list[Params]:
        """Sets of shared weights that stand for what a task would start from: the file's, or some fresh ones."""
        if net.base:
            return [net.initial_shared(generator)]
        if self.params is not None:
            return [{name: self.params[name] for name in net.shared_shapes()}]
        return [net.initial_shared(generator) for _ in range(DRAWS)]


def homes(
    start: Start, experts: Sequence[ExpertRecord], manifest: Manifest, options: LearnOptions, batch: Batch
) -> list[ExpertRecord]:
    """Those of the ``experts`` that read the batch into which it may go: of one architecture, with one start.

    Vectors enough to be standardised leave out an expert that does not do so. An expert that was asked for is the
    only one; UsageProblem or StoreIncompatible where it does not fit.
    """
    wanted = options.expert
    found = [e for e in experts if e.arch == options.arch and wanted in (None, "new", e.id)]
    if wanted in (None, "new"):
        plain = len(batch.input_shape) > 1 or len(batch.images) < LEAST
        return [e for e in found if start.fits(e) and (plain or e.standardised)]
    if not found:
        record = manifest.expert(str(wanted))
        raise UsageProblem(
            "the task does not fit into that expert",
            key=record.id,
            found=f"{options.arch}, images {kind_text(batch.input_shape, batch.input)}",
            expected=f"{record.arch}, images {kind_text(record.input_shape, record.input)}",
        )
    start.require(found[0])
    return found
