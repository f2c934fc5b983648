# Everything that the package offers; modules are imported when a name of theirs is asked for.
from . import checkpoints as checkpoints
from .checkpoints import Checkpoint as Checkpoint
from .commit import Follower as Follower, Writer as Writer, unwritten as unwritten, writer as writer
from .errors import (
    BadInput as BadInput,
    ClmoeError as ClmoeError,
    DiskProblem as DiskProblem,
    Interrupted as Interrupted,
    StoreDamaged as StoreDamaged,
    StoreIncompatible as StoreIncompatible,
    StoreLocked as StoreLocked,
    StoreMissing as StoreMissing,
    UsageProblem as UsageProblem,
)
from .eyes import (
    NetworkEyeArrays as NetworkEyeArrays,
    encode_eye as encode_eye,
    encode_network_eye as encode_network_eye,
)
from .gates import (
    SolvedGate as SolvedGate,
    SolvedGaussians as SolvedGaussians,
    coarse_form as coarse_form,
    encode_gate as encode_gate,
    encode_gaussians as encode_gaussians,
    rows_of as rows_of,
)
from .records import (
    Accuracy as Accuracy,
    ClassAccuracy as ClassAccuracy,
    ConfidenceBin as ConfidenceBin,
    ExpertRecord as ExpertRecord,
    FeaturesRecord as FeaturesRecord,
    GateRecord as GateRecord,
    HistoryEntry as HistoryEntry,
    InputRecord as InputRecord,
    LayerRecord as LayerRecord,
    Manifest as Manifest,
    MeasuredRecord as MeasuredRecord,
    ObjectRef as ObjectRef,
    Probe as Probe,
    TaskLayer as TaskLayer,
    TaskRecord as TaskRecord,
    WrongAnswer as WrongAnswer,
)
from .removal import (
    remove_tasks as remove_tasks,
    subnetwork_digest as subnetwork_digest,
    used_and_kept as used_and_kept,
)
from .remote import mirrored as mirrored
from .rollback import Repaired as Repaired, repair as repair, would_repair as would_repair
from .store import (
    Store as Store,
    check_local as check_local,
    check_place as check_place,
    is_remote as is_remote,
    read_consistently as read_consistently,
)
from .subnetworks import (
    SubnetworkRecord as SubnetworkRecord,
    decode_subnetwork as decode_subnetwork,
    encode_subnetwork as encode_subnetwork,
)
from .verification import Finding as Finding, verify as verify
from .weights import (
    ExpertWeights as ExpertWeights,
    decode_base as decode_base,
    decode_weights as decode_weights,
    encode_base as encode_base,
    encode_weights as encode_weights,
)
