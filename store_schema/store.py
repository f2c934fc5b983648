"""Reading a store: one snapshot of HEAD, objects verified before they are parsed; no lock, no write."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from numpy.typing import NDArray

from store_schema import files, layout, objects
from store_schema.errors import (
    DiskProblem,
    ObjectVanished,
    StoreDamaged,
    StoreIncompatible,
    StoreMissing,
    UsageProblem,
    disk_errors,
)
from store_schema.eyes import NetworkEyeArrays, decode_eye, decode_network_eye
from store_schema.gates import SolvedGate, SolvedGaussians, decode_gate, decode_gaussians
from store_schema.records import GateRecord, InputRecord, Manifest, ObjectRef
from store_schema.subnetworks import GROUPS, SubnetworkRecord, decode_subnetwork
from store_schema.weights import ExpertWeights, decode_base, decode_weights

T = TypeVar("T")
RETRIES = 20
MARK = "://"
"""What the name of a store on object storage has, and a folder's has not."""


@dataclass(frozen=True)
class Store:
    """A snapshot: the manifest that HEAD named when the store was opened."""

    root: Path
    manifest: Manifest
    head: bytes

    @staticmethod
    def exists(path: str | Path) -> bool:
        """Whether a store was founded there, whole or damaged; it may have no task yet."""
        root = Path(path)
        with disk_errors(str(root)):
            return (root / layout.FORMAT).exists() or (root / layout.HEAD).exists() or committed(root)

    @staticmethod
    def open(path: str | Path, *, empty: bool = False) -> Store:
        """Opens a store for reading; ``empty``: also one that has no commit yet.

        Raises StoreMissing (no store, or no task yet), StoreIncompatible (newer format), StoreDamaged, DiskProblem
        (no folder), and UsageProblem for an address (:mod:`store_schema.remote`).
        """
        check_local(path)
        root = Path(path)
        check_format(root)
        store = newest(root)
        if store.manifest.generation == 0 and not empty:
            raise without_task(root)
        return store

    def read_object(self, ref: ObjectRef) -> bytes:
        """An object's bytes, whose size and hash are right."""
        return objects.get(self.root, ref)

    def read_expert(self, expert_id: str) -> ExpertWeights:
        """An expert's shared weights and its tasks' owned parameters."""
        record = self.manifest.expert(expert_id)
        if record.weights is None:
            raise StoreDamaged("an expert without weights", where=str(self.root), key=expert_id)
        where = str(layout.object_path(self.root, record.weights.sha256, record.weights.suffix))
        names = [t.name for t in self.manifest.tasks_of(expert_id)]
        return decode_weights(self.read_object(record.weights), where, record, names)

    def read_base(self, expert_id: str) -> Mapping[str, NDArray[Any]] | None:
        """The pretrained weights [shape of the layer] below an expert's, layer by layer; None when there are none."""
        record = self.manifest.expert(expert_id)
        if record.base is None:
            return None
        where = str(layout.object_path(self.root, record.base.sha256, record.base.suffix))
        return decode_base(self.read_object(record.base), where, {layer.name: layer.shape for layer in record.layers})

    def read_subnetwork(self, task: str, groups: Collection[str] = GROUPS) -> SubnetworkRecord:
        """A task's masks, scores, calibration, statistics and gate, or only some of these ``groups``."""
        record = self.manifest.task(task)
        expert = self.manifest.expert(record.expert)
        where = str(layout.object_path(self.root, record.subnetwork.sha256, record.subnetwork.suffix))
        shapes = {layer.name: layer.shape for layer in expert.layers}
        return decode_subnetwork(self.read_object(record.subnetwork), where, task, expert.id, shapes, groups)

    def read_gate(
        self, input_shape: tuple[int, ...], input: InputRecord | None = None
    ) -> SolvedGate | SolvedGaussians | None:
        """The solved gate of a kind of input, by its record's rule; None when there is none."""
        record = self.manifest.gate(input_shape, input)
        if record is None:
            return None
        where = str(layout.object_path(self.root, record.solved.sha256, record.solved.suffix))
        classes = sum(len(t.classes) for t in self.manifest.tasks_of_shape(input_shape, input))
        decode = decode_gate if record.rule is None else decode_gaussians
        return decode(self.read_object(record.solved), where, record.features, classes)

    def read_eye(self, record: GateRecord) -> dict[str, NDArray[Any]] | None:
        """The arrays of an eye made of patches, as :mod:`store_schema.eyes` has them; None when there is none."""
        if record.eye is None or record.eye_is_network:
            return None
        where = str(layout.object_path(self.root, record.eye.sha256, record.eye.suffix))
        return decode_eye(self.read_object(record.eye), where, record.input_shape)

    def read_network_eye(self, record: GateRecord) -> tuple[NetworkEyeArrays, Mapping[str, NDArray[Any]]] | None:
        """The eye of a kind of input that is a network, and the base that it stands on, empty for none; None when
        there is no such eye."""
        if record.eye is None or not record.eye_is_network:
            return None
        where = str(layout.object_path(self.root, record.eye.sha256, record.eye.suffix))
        base = record.eye_base
        eye = decode_network_eye(self.read_object(record.eye), where, None if base is None else base.sha256)
        if base is None:
            return eye, {}
        where = str(layout.object_path(self.root, base.sha256, base.suffix))
        return eye, decode_base(self.read_object(base), where, eye.shapes)


def without_task(root: Path) -> StoreMissing:
    """What is said of a store that no learn has finished in. Raises DiskProblem."""
    with disk_errors(str(root / layout.CHECKPOINTS)):
        begun = any(layout.KEY.fullmatch(path.name) for path in (root / layout.CHECKPOINTS).glob("*"))
    goes_on = "a learn has begun: the same command goes on with it, and clmoe log says how far it is"
    hint = goes_on if begun else "clmoe learn puts the first task into it"
    return StoreMissing("the store is empty", where=str(root), hint=hint)


def read_consistently(path: str | Path, use: Callable[[Store], T], known: Store | None = None) -> T:
    """Opens a store and uses it; starts again from HEAD when a newer commit swept an object meanwhile.

    ``known``: a snapshot of it, with which to begin.
    """
    store = known or Store.open(path)
    for _ in range(RETRIES):
        try:
            return use(store)
        except ObjectVanished:
            newer = Store.open(path)
            if newer.head == store.head:
                raise
            store = newer
    return use(store)


def is_remote(store: str | Path) -> bool:
    """Whether that is an address, as ``s3://bucket/store``, and no folder."""
    return MARK in str(store)


def check_local(store: str | Path) -> None:
    """UsageProblem for an address, where something is to be written."""
    if is_remote(store):
        raise UsageProblem(
            "a store on object storage can only be read",
            found=str(store),
            expected="a folder",
            hint="clmoe copy brings its tasks into one",
        )


def check_place(root: Path) -> None:
    """DiskProblem where no store can be, since the path, or what it lies in, is there and is no folder."""
    with disk_errors(str(root)):
        there = next((path for path in (root, *root.parents) if path.exists()), None)
        if there is not None and not there.is_dir():
            raise DiskProblem("not a folder", where=str(there), hint="name another folder for the store")


def check_format(root: Path) -> None:
    """Refuses what is no store, and stores of a newer format by name; older ones are upgraded as they are read."""
    path = root / layout.FORMAT
    with disk_errors(str(path)):
        if not path.exists() and not path.is_symlink():
            # FORMAT is the last file of a new store: looked for again once commits are seen.
            if committed(root) and not path.exists():
                raise StoreDamaged("missing file", where=str(path), hint="restore it from a copy of the store")
            if not path.exists():
                check_place(root)
                hint = "the folder holds no store; check --store" if root.exists() else "clmoe learn creates it"
                raise StoreMissing("no store", where=str(root), hint=hint)
    text = files.read_regular(path, 64).decode("ascii", "replace")
    if not layout.NUMBER.fullmatch(text):
        raise StoreDamaged(
            "not a format number", where=str(path), found=repr(text), expected=str(layout.FORMAT_VERSION)
        )
    if not 1 <= int(text) <= layout.FORMAT_VERSION:
        raise StoreIncompatible(
            "the store has another format", where=str(path), found=f"format {int(text)}",
            expected=f"format {layout.FORMAT_VERSION}", hint="use a clmoe of the version that wrote it, or newer",
        )  # fmt: skip


def committed(root: Path) -> bool:
    """Whether anything was ever committed here."""
    with disk_errors(str(root)):
        return any(generation > 0 for _, generation in layout.manifests(root))


def newest(root: Path, known: Store | None = None) -> Store:
    """The snapshot that HEAD names; read again when a commit sweeps its manifest meanwhile.

    ``known``: a snapshot of the same store, which is the answer where HEAD still names it.
    """
    head = files.read_regular(root / layout.HEAD, layout.MAX_HEAD)
    if known is not None and known.head == head:
        return known
    while True:
        try:
            return Store(root, manifest_of(root, head), head)
        except ObjectVanished:
            now = files.read_regular(root / layout.HEAD, layout.MAX_HEAD)
            if now == head:
                raise
            head = now


def manifest_of(root: Path, head: bytes) -> Manifest:
    """The manifest that HEAD names, with its hash checked."""
    where = str(root / layout.HEAD)
    try:
        generation, sha256, floor = parse_head(head)
    except ValueError as error:
        raise StoreDamaged("not a valid HEAD", where=where, expected="a generation and a sha256") from error
    path = layout.manifest_path(root, generation)
    data = files.read_regular(path, layout.MAX_MANIFEST)
    if hashlib.sha256(data).hexdigest() != sha256:
        # Which of the two is damaged cannot be told: both are named.
        raise StoreDamaged(
            "HEAD and its manifest do not agree", where=f"{where} and {path}", expected=f"sha256 {sha256[:12]}…",
            hint="restore both from a copy of the store",
        )  # fmt: skip
    manifest = Manifest.from_bytes(data, str(path))
    _check_written(root, json.loads(data)["format"])
    if (manifest.generation, manifest.repair_floor) != (generation, floor):
        found, expected = f"generation {manifest.generation}", f"generation {generation}, repair floor {floor}"
        raise StoreDamaged(
            "HEAD and its manifest do not agree", where=f"{where} and {path}", found=found, expected=expected
        )
    return manifest


def _check_written(root: Path, number: int) -> None:
    """StoreDamaged when FORMAT is older than a manifest: FORMAT is written before HEAD is replaced."""
    path = root / layout.FORMAT
    found = files.read_regular(path, 64).decode("ascii", "replace")
    if not layout.NUMBER.fullmatch(found) or int(found) < number:
        raise StoreDamaged(
            "FORMAT is older than its manifest", where=str(path), found=repr(found), expected=str(number)
        )


def head_bytes(generation: int, sha256: str, repair_floor: int) -> bytes:
    """HEAD as it is written, and the only way in which it may be read.

    The floor is that of the manifest: it has to be known when the manifest is what was lost.
    """
    floor = {"repair_floor": repair_floor} if repair_floor else {}
    return f"{json.dumps({'generation': generation, 'sha256': sha256} | floor)}\n".encode()


def parse_head(head: bytes) -> tuple[int, str, int]:
    """Generation, sha256 of its manifest, repair floor; ValueError when these are no bytes of a HEAD."""
    try:
        fields = json.loads(head)
        generation, sha256, floor = fields["generation"], fields["sha256"], fields.get("repair_floor", 0)
        if [type(v) for v in (generation, sha256, floor)] == [int, str, int] and head == head_bytes(
            generation, sha256, floor
        ):
            return generation, sha256, floor
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        pass
    raise ValueError("not a HEAD")
