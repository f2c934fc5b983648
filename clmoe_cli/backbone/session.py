"""The backbone that a command's pictures go through: found out, checked against the store's, and used once for each.

torch is imported when the first picture needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from clmoe_cli.data.batch import Batch
from clmoe_cli.runtime.distributed.processes import joined
from clmoe_cli.runtime.events import OnStep, silent, whole
from store_schema.errors import ClmoeError, StoreIncompatible, UsageProblem
from store_schema.records import FeaturesRecord, InputRecord, Manifest

if TYPE_CHECKING:
    from clmoe_cli.backbone.frozen import Backbone

NONE = "none"
"""The ``arch`` that says: no backbone, whatever the store has."""


class BackboneSession:
    """What the options say of a backbone, and the backbone, once it is needed.

    ``arch``: the architecture or an ONNX file, ``none`` for no backbone, None for the store's. ``weights``: a
    safetensors file, None for the published ones. ``experts``: of ``learn``, the architecture of its experts; None
    where nothing is learned. ``device``: where to compute. ``keep``: whether features are kept for the next command
    (:mod:`clmoe_cli.backbone.cache`). ``computed``: pictures that passed the backbone so far; others had been kept.
    ``unkept``: whether the cache could not take them.
    It is the :class:`~clmoe_cli.data.extraction.Extractor` of whoever reads the pictures.
    """

    def __init__(
        self,
        arch: str | None = None,
        weights: str | None = None,
        experts: str | None = None,
        device: str = "cpu",
        keep: bool = True,
    ) -> None:
        self.arch, self.weights, self.experts, self.device, self.keep = arch, weights, experts, device, keep
        self.computed, self.unkept = 0, False
        self._loaded: Backbone | None = None

    def record(self, known: FeaturesRecord | None, size: int | None, on_step: OnStep = silent) -> InputRecord:
        """What pictures go through: resized to ``size`` (None: the backbone's own), colour, the backbone.

        ``known``: the store's backbone. Raises UsageProblem for experts that read no features or a size that the
        backbone does not read, StoreIncompatible for another backbone than the store's, or other weights, BadInput
        for weights that cannot be had.
        """
        if self.experts is not None and not self.experts.startswith("mlp:"):
            raise UsageProblem(
                "experts that read features are perceptrons", key="--arch", found=repr(self.experts),
                expected="mlp:WIDTH[,WIDTH…]", hint=f"leave --arch out, or read the pictures: --features {NONE}",
            )  # fmt: skip
        arch = known.arch if self.arch is None and known is not None else self.arch
        assert arch is not None, "neither the options nor the store name a backbone"
        from clmoe_cli.backbone.loading import is_file, load

        if known is not None and known.arch != arch and not (is_file(known.arch) and is_file(arch)):
            shown = "FILE.onnx" if is_file(known.arch) else known.arch
            raise _other(arch, known, f"--features {shown}, or another --store")
        if self.arch is None and is_file(arch):
            raise UsageProblem(
                "the store's backbone is an ONNX file", found=f"{arch}, sha256 {known.sha256[:16] if known else ''}",
                hint="say where it is: --features FILE.onnx, or in clmoe.toml",
            )  # fmt: skip
        if self._loaded is None:
            with whole(on_step, f"loading {arch}"):
                self._loaded = load(arch, self.weights, None if size is None else (size, size))
        found = self._loaded.record
        if known is not None and is_file(known.arch) and (known.sha256, known.mean, known.std) == (
            found.sha256, found.mean, found.std
        ):  # fmt: skip
            found = known  # the same file by another name
        if known is not None or self.experts is None:
            check_same(known, found)
        # Grey pictures are repeated to three channels in any case: one kind of input, whatever their colour.
        return InputRecord(image_size=size or self._loaded.image_size, channels=3, features=found)

    @property
    def backbone(self) -> Backbone:
        """The network, once :meth:`record` has found it out."""
        assert self._loaded is not None, "record() comes first"
        return self._loaded

    @property
    def name(self) -> str:
        """The network's name for people."""
        return self.backbone.arch

    @property
    def width(self) -> int:
        """Features of one picture."""
        return self.backbone.width

    def vectors(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        """Features [n, width] of pictures [n, C, H, W]: those that were kept, and the others' computed and kept.

        Several processes have a share each, and all of them all features. Raises BadInput for pixels that are no
        shares of one and for features that are not finite.
        """
        if not joined():
            return self._vectors(pictures)
        from clmoe_cli.runtime.distributed import sharing

        before, problem = self.computed, None
        some = pictures[sharing.own(len(pictures))]
        found = np.zeros((len(some), self.width), np.float32)
        try:
            found = self._vectors(some) if len(some) else found
        except ClmoeError as error:
            problem = sharing.fields(error)
        found, said = sharing.everyones(found, len(pictures), (self.computed - before, self.unkept, problem))
        self.computed = before + sum(computed for computed, _, _ in said)
        self.unkept = any(unkept for _, unkept, _ in said)
        for _, _, problem in said:
            if problem is not None:
                raise sharing.error_of(ClmoeError, problem)
        return found

    def _vectors(self, pictures: NDArray[Any]) -> NDArray[np.float32]:
        """The same of this process alone."""
        import torch

        from clmoe_cli.backbone.cache import FeatureCache, key_of

        backbone = self.backbone
        if not self.keep:
            self.computed += len(pictures)
            return backbone.features(torch.from_numpy(pictures), self.device).numpy()
        cache = FeatureCache(backbone.width)
        keys = [key_of(backbone.record, picture) for picture in pictures]
        found = cache.get(keys)
        places = list({key: place for place, key in enumerate(keys) if key not in found}.values())
        if places:
            computed = backbone.features(torch.from_numpy(pictures[places]), self.device).numpy()
            fresh = {keys[place]: vector for place, vector in zip(places, computed, strict=True)}
            self.unkept |= not cache.put(fresh)
            found |= fresh
            self.computed += len(places)
        return np.stack([found[key] for key in keys])


def backbone_of(manifest: Manifest) -> FeaturesRecord | None:
    """The one backbone of a store; None where no expert reads features."""
    return next((e.input.features for e in manifest.experts if e.input and e.input.features), None)


def check_backbone(known: FeaturesRecord | None, batch: Batch) -> None:
    """Raises StoreIncompatible for a batch that went through another backbone than the store's (``known``)."""
    found = batch.input.features if batch.input else None
    if known is not None and found is not None:
        check_same(known, found)


def check_same(recorded: FeaturesRecord | None, found: FeaturesRecord | None) -> None:
    """Raises StoreIncompatible when a store was made with another backbone, or with other weights of the same."""
    if recorded == found:
        return
    hint = "leave out --features"
    if recorded is not None and found is not None and found.arch == recorded.arch:
        hint = "give the weights that it was made with by --features-weights FILE, or another --store"
    elif recorded is not None:
        hint = f"--features {recorded.arch}, or another --store"
    raise _other(_shown(found), recorded, hint)


def _other(found: str, recorded: FeaturesRecord | None, hint: str) -> StoreIncompatible:
    return StoreIncompatible(
        "the store was made with other features", found=found, expected=_shown(recorded), hint=hint
    )


def _shown(named: FeaturesRecord | None) -> str:
    if named is None:
        return "no backbone"
    normalised = "" if named.mean is None else f", mean {list(named.mean)}, deviation {list(named.std or ())}"
    return f"{named.arch} with weights {named.sha256[:16]}{normalised}"
