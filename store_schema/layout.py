"""Every path, key and version number of the store, and nothing else."""

from __future__ import annotations

import re
from pathlib import Path

FORMAT_VERSION = 5
SUBNETWORK_SCHEMA = 3
WEIGHTS_SCHEMA = 1
STANDARDISED_SCHEMA = 2
GATE_SCHEMA = 1
GAUSSIANS_SCHEMA = 2
EYE_SCHEMA = 1
CHECKPOINT_SCHEMA = 2

FORMAT = "FORMAT"
HEAD = "HEAD"
LOCK = "lock"
MANIFESTS = "manifests"
OBJECTS = "objects"
CHECKPOINTS = "checkpoints"
TMP = "tmp"
NAMES = frozenset({FORMAT, HEAD, LOCK, MANIFESTS, OBJECTS, CHECKPOINTS, TMP})

SUFFIXES = ("safetensors", "h5")
NUMBER = re.compile(r"(0|[1-9][0-9]*)\n")
KEY = re.compile("[0-9a-f]{64}")
MAX_OBJECT = 4 << 30
MAX_MANIFEST = 256 << 20
MAX_HEAD = 4096
MAX_NAME = 200
"""Characters of the name of a class or a task."""
MAX_CONFUSIONS = 100
"""Wrong answers of held-out images that a task keeps: pairs of a class and an answer."""


def object_path(root: Path, sha256: str, suffix: str) -> Path:
    """Where an object of that content lies."""
    return root / OBJECTS / sha256[:2] / f"{sha256}.{suffix}"


def manifest_path(root: Path, generation: int) -> Path:
    """Where the manifest of a generation lies."""
    return root / MANIFESTS / f"{generation}.json"


def manifests(root: Path) -> list[tuple[Path, int]]:
    """The manifests that are there, with the generation that their name says; other files are left out."""
    found = [(p, int(p.stem)) for p in (root / MANIFESTS).glob("*.json") if p.stem.isdecimal() and p.stem.isascii()]
    return sorted((p, n) for p, n in found if p.name == f"{n}.json")


def checkpoint_path(root: Path, sha256: str) -> Path:
    """Where a learn in progress lies, by the hash of its data, arguments and parent."""
    return root / CHECKPOINTS / sha256
