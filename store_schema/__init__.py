"""What lies on disk: layout, records, codecs, the atomic store. Knows neither torch nor the command line."""

from store_schema import checkpoints
from store_schema.checkpoints import Checkpoint
from store_schema.commit import Writer, unwritten, writer
from store_schema.errors import (
    BadInput,
    ClmoeError,
    DiskProblem,
    Interrupted,
    StoreDamaged,
    StoreIncompatible,
    StoreLocked,
    StoreMissing,
    UsageProblem,
)
from store_schema.gates import SolvedGate, coarse_form, encode_gate, rows_of
from store_schema.records import (
    Accuracy,
    ExpertRecord,
    FeaturesRecord,
    GateRecord,
    HistoryEntry,
    InputRecord,
    LayerRecord,
    Manifest,
    ObjectRef,
    Probe,
    TaskLayer,
    TaskRecord,
)
from store_schema.removal import remove_tasks, subnetwork_digest, used_and_kept
from store_schema.repair import Repaired, repair, would_repair
from store_schema.store import Store, read_consistently
from store_schema.subnetworks import SubnetworkRecord, decode_subnetwork, encode_subnetwork
from store_schema.verify import Finding, verify
from store_schema.weights import ExpertWeights, decode_weights, encode_weights

__all__ = [
    "Accuracy",
    "BadInput",
    "Checkpoint",
    "ClmoeError",
    "DiskProblem",
    "ExpertRecord",
    "ExpertWeights",
    "FeaturesRecord",
    "Finding",
    "GateRecord",
    "HistoryEntry",
    "InputRecord",
    "Interrupted",
    "LayerRecord",
    "Manifest",
    "ObjectRef",
    "Probe",
    "Repaired",
    "SolvedGate",
    "Store",
    "StoreDamaged",
    "StoreIncompatible",
    "StoreLocked",
    "StoreMissing",
    "SubnetworkRecord",
    "TaskLayer",
    "TaskRecord",
    "UsageProblem",
    "Writer",
    "checkpoints",
    "coarse_form",
    "decode_subnetwork",
    "decode_weights",
    "encode_gate",
    "encode_subnetwork",
    "encode_weights",
    "read_consistently",
    "remove_tasks",
    "repair",
    "rows_of",
    "subnetwork_digest",
    "unwritten",
    "used_and_kept",
    "verify",
    "would_repair",
    "writer",
]
