"""An attempt at reading images back: what someone does who has a store's files and knows what images look like."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load

Array = NDArray[np.float64]


def arrays(root: Path) -> Iterator[tuple[str, dict[str, Array]]]:
    """Every object of a store and every list of numbers in its newest manifest: a name, and arrays by name."""
    for path in sorted((root / "objects").glob("*/*.h5")):
        found: dict[str, Array] = {}
        with h5py.File(io.BytesIO(path.read_bytes()), "r") as file:
            file.visititems(lambda name, item, to=found: _put(to, name, item))
        yield path.name, found
    for path in sorted((root / "objects").glob("*/*.safetensors")):
        yield path.name, {name: value.astype(np.float64) for name, value in load(path.read_bytes()).items()}
    manifest = json.loads(max((root / "manifests").iterdir(), key=lambda p: int(p.stem)).read_text())
    yield "manifest", dict(_lists(manifest, ""))


def _put(to: dict[str, Array], name: str, item: Any) -> None:
    if isinstance(item, h5py.Dataset):
        to[name] = np.asarray(item[...], dtype=np.float64)


def _lists(value: Any, name: str) -> Iterator[tuple[str, Array]]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _lists(part, f"{name}/{key}")
    elif isinstance(value, list):
        try:
            yield name, np.asarray(value, dtype=np.float64)
        except (TypeError, ValueError):
            for i, part in enumerate(value):
                yield from _lists(part, f"{name}/{i}")


def guesses(root: Path, width: int) -> dict[str, Array]:
    """Guesses at images, or at features, of ``width`` numbers: by what they come from, [m, width] each."""
    found: dict[str, list[Array]] = {}

    def put(name: str, rows: Array) -> None:
        found.setdefault(name, []).append(rows.reshape(-1, width))

    objects = list(arrays(root))
    scaling = next((own for _, own in objects if own.get("input/centre", np.empty(0)).shape == (width,)), None)
    for _, own in objects:
        for name, value in own.items():
            for axis in range(value.ndim):
                if value.shape[axis] == width:
                    put(name, np.moveaxis(value, axis, -1))
        for means, directions, variances in _covariances(own, width):
            scaled = directions * np.sqrt(variances)
            used = scaled[:, variances > 1e-9 * max(variances.max(initial=0), 1e-30)]
            # A mean of two, and half of their difference; freedoms and numbers of images are guessed.
            for factor in (0.5, 2**-0.5, 1.0, 2**0.5, 2.0):
                for sign in (-1, 1):
                    put("mean ± direction", means[:, None] + sign * factor * used.T[None])
            if used.shape[1] > 1:
                put("independent components", independent(used.T))
        if {"gate/means", "gate/counts", "statistics/inputs.means"} <= set(own):
            gate, inner, counts = own["gate/means"], own["statistics/inputs.means"], own["gate/counts"]
            if gate.shape == inner.shape and gate.shape[1] == width:
                if scaling is not None:
                    inner = inner * scaling["input/spread"] + scaling["input/centre"]
                for out in range(1, 9):
                    n = counts[:, None]
                    put("difference of means", (n * gate - (n - out) * inner) / out)
        # More mixtures than images, as the rows of an inverse are, tell no more.
        many = [v for v in own.values() if v.ndim == 2 and v.shape[1] == width and 1 < len(v) <= 64]
        for value in many:
            put("independent components", independent(value - value.mean(axis=0)))
    return {name: np.concatenate(rows) for name, rows in found.items()}


def _covariances(own: dict[str, Array], width: int) -> Iterator[tuple[Array, Array, Array]]:
    """Means [C, d], directions [d, k] and variances [k] that belong together, of classes and of whole tasks."""
    names = {
        "statistics/inputs.": ("means", "directions", "variances"),
        "gate/": ("means", "shared", "shared_variances"),
    }
    for head, (means, directions, variances) in names.items():
        if head + directions in own and own[head + directions].shape[0] == width:
            yield own[head + means], own[head + directions], own[head + variances]
    if "gate/variances" in own and own["gate/directions"].shape[1] == width:
        for mean, wide, size in zip(own["gate/means"], own["gate/directions"], own["gate/variances"], strict=True):
            yield mean[None], wide, size


def independent(mixtures: Array, steps: int = 100) -> Array:
    """The independent components [r, d] of r mixtures [r, d] (symmetric FastICA, Hyvärinen 1999).

    Mixtures of as many images come apart: pixels of different images know nothing of each other.
    """
    centred = mixtures - mixtures.mean(axis=1, keepdims=True)
    _, size, right = np.linalg.svd(centred, full_matrices=False)
    right = right[size > 1e-6 * size.max(initial=1e-30)] * np.sqrt(mixtures.shape[1])
    if not len(right):
        return centred[:0]
    turn = np.linalg.qr(np.random.default_rng(0).standard_normal((len(right), len(right))))[0]
    for _ in range(steps):
        found = np.tanh(turn @ right)
        turn = found @ right.T / right.shape[1] - np.diag((1 - found**2).mean(axis=1)) @ turn
        u, _, v = np.linalg.svd(turn)
        turn = u @ v
    return turn @ right


def likeness(images: Array, typical: Array, rows: Array) -> Array:
    """How much of what sets an image apart is in the likeliest of the rows, [n] in 0 to 1.

    The largest correlation of the images [n, d] with rows [m, d], once the ``typical`` image of each one's class [n, d]
    and the mean brightness are taken out of both. Of many rows one is like any image by chance: ask it of new ones too.
    """
    found = []
    for image, known in zip(images, typical, strict=True):
        basis = np.linalg.qr(np.stack([np.ones_like(known), known], axis=1))[0]
        own = image - basis @ (basis.T @ image)
        rest = rows - (rows @ basis) @ basis.T
        size = np.linalg.norm(rest, axis=1)
        real = size > 1e-9 * np.linalg.norm(rows, axis=1).clip(1e-12)
        found.append(np.abs(rest[real] @ own / size[real]).max(initial=0) / np.linalg.norm(own))
    return np.asarray(found)
