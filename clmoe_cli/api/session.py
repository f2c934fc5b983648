"""One ``learn`` on one snapshot of a store: what it was given, and what follows from that at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TypedDict

import torch

from clmoe_cli.api import checks, common, gating
from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.measuring import Kind
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.reports import Caution, OnWarning
from clmoe_cli.api.starting import Start
from clmoe_cli.backbone.session import check_backbone
from clmoe_cli.data import Batch
from clmoe_cli.data.labels import Label
from clmoe_cli.method.learn_task import Learned
from clmoe_cli.method.networks.base import Network
from clmoe_cli.method.routing.features import is_image
from clmoe_cli.method.subnetwork.training import OnCost, OnEpoch
from clmoe_cli.runtime.events import OnStep, silent
from clmoe_cli.runtime.words import one_of
from clmoe_cli.store_tensors import Loader, derived_seed, generator, network
from store_schema import ExpertRecord, Manifest, Store


class Callbacks(TypedDict, total=False):
    """What ``learn`` calls, as its keywords: the fields of :class:`Listeners`."""

    on_epoch: OnEpoch
    on_wait: Callable[[str], None]
    on_resume: Callable[[str], None]
    on_step: OnStep
    on_warning: OnWarning
    on_cost: OnCost


@dataclass(frozen=True)
class Listeners:
    """Who is told of epochs (``on_epoch``), of who holds the lock (``on_wait``), of what an interrupted run had reached
    (``on_resume``), of all that may take long (``on_step``), of what training will take (``on_cost``) and, at once, of
    what looks wrong (``on_warning``)."""

    on_epoch: OnEpoch = lambda epoch: None
    on_wait: Callable[[str], None] = lambda holder: None
    on_resume: Callable[[str], None] = lambda reached: None
    on_step: OnStep = silent
    on_warning: OnWarning = lambda caution: None
    on_cost: OnCost = lambda cost: None


@dataclass(frozen=True)
class Session:
    """Labelled data, options and start of a ``learn``, and the snapshot of the store that it builds on.

    ``batch``: its pixels are scaled already, where memory has room (:func:`clmoe_cli.api.common.prepared`).
    ``warnings`` grows as things that look wrong are seen.
    """

    store: Store
    batch: Batch
    options: LearnOptions
    start: Start
    listeners: Listeners = field(default_factory=Listeners)
    warnings: list[Caution] = field(default_factory=list)

    @property
    def manifest(self) -> Manifest:
        """The snapshot's manifest."""
        return self.store.manifest

    @cached_property
    def expected(self) -> Expected:
        """What the snapshot expects of data; it may be newer than the one that the data were read for."""
        return Expected.of(self.manifest)

    @property
    def on_step(self) -> OnStep:
        """Who is told of steps."""
        return self.listeners.on_step

    @cached_property
    def loader(self) -> Loader:
        """Reads the snapshot, each object at most once."""
        return Loader(self.store, self.options.method.device)

    @property
    def number(self) -> int:
        """The number that a new task has."""
        return self.manifest.next_task

    @property
    def seed(self) -> int:
        """The seed of a new task."""
        return derived_seed(self.manifest.seed, self.number, "task")

    @cached_property
    def generator(self) -> torch.Generator:
        """What samples of the data are drawn with, in the order of the steps."""
        return generator(self.seed)

    @cached_property
    def classes(self) -> tuple[Label, ...]:
        """The classes of the data."""
        return self.batch.classes()

    @cached_property
    def experts(self) -> list[ExpertRecord]:
        """Experts with tasks that read this kind of input."""
        return [e for e in self.manifest.experts if common.reads(e, self.batch) and self.manifest.tasks_of(e.id)]

    @property
    def known_labels(self) -> list[Label]:
        """The labels of all tasks of the store."""
        return [label for task in self.manifest.tasks for label in task.classes]

    @cached_property
    def names(self) -> list[str]:
        """The tasks of these experts."""
        experts = {e.id for e in self.experts}
        return [t.name for t in self.manifest.tasks if t.expert in experts]

    @cached_property
    def input_scale(self) -> float:
        """What the data are multiplied by where they are the first of their kind, or of an expert; computed once."""
        return common.input_scale(self.batch, self.on_step)

    def network(self, record: ExpertRecord) -> Network:
        """The architecture of an expert; of one that is new, on pretrained weights where the task starts from some."""
        if record.weights is not None:
            return self.loader.network(record.id)
        return network(record, self.start.base(record, self.options.method.device))

    def kind(self, number: int, expert: ExpertRecord, learned: Learned) -> Kind:
        """The data's kind of input as the gate sees it, with the tasks that read it but the one of that number.

        ``learned``: that task, of ``expert``; if it is the first one of its kind, its subnetwork may be the eye. Where
        nothing was said, pretrained weights that it starts from are.
        """
        record = self.manifest.gate(self.batch.input_shape, self.batch.input)
        scale = self.input_scale if record is None else record.input_scale
        eye = None if record is None else self.loader.eye(record)
        starts = "pretrained" if self.start.params is not None and is_image(self.batch.input_shape) else "none"
        wanted = self.options.eyes or starts
        if record is None and wanted == "first":
            drawn = generator(derived_seed(self.manifest.seed, number, "eye"))
            eye = gating.eye_of(self.batch, scale, drawn, self.on_step)
        elif record is None and wanted == "subnetwork":
            eye = gating.network_eye_of(expert, learned)
        elif record is None and wanted == "pretrained":
            eye = self.start.eye(expert)
        return gating.kind_of(self.manifest, self.batch, number, scale, eye)

    def warn(self, *cautions: Caution) -> None:
        """Tells whoever listens at once, and keeps it for the report."""
        for caution in cautions:
            self.warnings.append(caution)
            self.listeners.on_warning(caution)

    def check(self) -> None:
        """Raises UsageProblem, BadInput or StoreIncompatible for what the store cannot learn."""
        checks.check_seed(self.manifest, self.options.seed)
        checks.check_labels(self.expected, self.batch)
        if self.options.expert not in (None, "new"):
            one_of("expert", str(self.options.expert), [*(e.id for e in self.manifest.experts), "new"])
        check_backbone(self.expected.backbone, self.batch)
        gating.check_eyes(
            self.manifest, self.batch, self.options.eyes, self.options.arch, self.start.params is not None
        )
        gating.check(self.manifest, self.batch, "use a clmoe of the version that wrote it, or another --store")
