"""Files made to do harm, past the hash as an attacker would: exit 3 or 4, one line, bounded memory, nothing touched."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import small_store as small
from test_data import BAD
from test_hostile import HOSTILE

from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from store_schema import ObjectRef, Store, layout
from store_schema.store import head_bytes

LIMIT = 512 << 20
SAMPLED = 8
"""One of so many is tried in ``make test``; what they are made of has tests of its own beside the readers."""
Change = Callable[[Path], None]


def memory(field: str) -> int:
    (line,) = [x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field)]
    return int(line.split()[1]) << 10


def with_manifest(root: Path, change: Callable[[dict[str, Any]], Any], *, raw: bool = False) -> None:
    """Rewrites the current manifest, and HEAD so that its hash is right."""
    generation = Store.open(root).manifest.generation
    path = layout.manifest_path(root, generation)
    fields = json.loads(path.read_text())
    changed = change(fields)
    data = changed if raw else json.dumps(fields).encode()
    path.write_bytes(data)
    (root / "HEAD").write_bytes(head_bytes(generation, hashlib.sha256(data).hexdigest(), 0))


def with_object(root: Path, ref: ObjectRef, change: Callable[[bytes], bytes]) -> None:
    """Puts other bytes in the place of an object; every hash that names it is right."""
    old = layout.object_path(root, ref.sha256, ref.suffix)
    data = change(old.read_bytes())
    sha256 = hashlib.sha256(data).hexdigest()
    new = layout.object_path(root, sha256, ref.suffix)
    new.parent.mkdir(exist_ok=True)
    new.write_bytes(data)

    def named(fields: dict[str, Any]) -> bytes:
        def put(value: Any) -> None:
            if isinstance(value, dict):
                if value.get("sha256") == ref.sha256 and "suffix" in value:
                    value.update(sha256=sha256, size=max(1, len(data)))
                for child in value.values():
                    put(child)
            elif isinstance(value, list):
                for child in value:
                    put(child)

        put(fields)
        return json.dumps(fields).encode()

    with_manifest(root, named, raw=True)


def h5(change: Callable[[h5py.File], None]) -> Change:
    def apply(root: Path) -> None:
        def bad(data: bytes) -> bytes:
            image = io.BytesIO(data)
            with h5py.File(image, "r+") as file:
                change(file)
            return image.getvalue()

        with_object(root, Store.open(root).manifest.tasks[0].subnetwork, bad)

    return apply


def header(
    change: Callable[[dict[str, Any]], None], tail: Callable[[bytes], bytes] = bytes
) -> Callable[[bytes], bytes]:
    def bad(data: bytes) -> bytes:
        (size,) = struct.unpack("<Q", data[:8])
        fields = json.loads(data[8 : 8 + size])
        change(fields)
        text = json.dumps(fields).encode()
        return struct.pack("<Q", len(text)) + text + tail(data[8 + size :])

    return bad


def first(fields: dict[str, Any]) -> dict[str, Any]:
    return fields[min(k for k in fields if k != "__metadata__")]


def twice(data: bytes) -> bytes:
    (size,) = struct.unpack("<Q", data[:8])
    text = data[8 : 8 + size].rstrip()
    key = min(k for k in json.loads(text) if k != "__metadata__")
    text = text[:-1] + f', "{key}": {json.dumps(json.loads(text)[key])}}}'.encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]


TENSORS: dict[str, Callable[[bytes], bytes]] = {
    "nothing": lambda data: b"",
    "seven bytes": lambda data: data[:7],
    "a header of an exabyte": lambda data: struct.pack("<Q", 1 << 60) + data[8:],
    "a header longer than the file": lambda data: struct.pack("<Q", len(data)) + data[8:],
    "no JSON": lambda data: struct.pack("<Q", 40) + b"\xff" * 40 + data[8:],
    "nested deeply": lambda data: struct.pack("<Q", 200_000) + b"[" * 200_000,
    "the same tensor twice": twice,
    "one byte more": lambda data: data + b"x",
    "one byte less": lambda data: data[:-1],
    "overlapping": header(lambda f: first(f).update(data_offsets=[4, first(f)["data_offsets"][1] + 4])),
    "negative offsets": header(lambda f: first(f).update(data_offsets=[-4, 0])),
    "offsets the other way round": header(lambda f: first(f)["data_offsets"].reverse()),
    "offsets of 64 bits": header(lambda f: first(f).update(data_offsets=[0, (1 << 64) - 1])),
    "a huge shape": header(lambda f: first(f).update(shape=[1 << 40, 1 << 40])),
    "a shape whose product overflows": header(lambda f: first(f).update(shape=[1 << 32, 1 << 32, 1])),
    "a negative shape": header(lambda f: first(f).update(shape=[-1])),
    "another type": header(lambda f: first(f).update(dtype="I32")),
    "an unknown type": header(lambda f: first(f).update(dtype="PICKLE")),
    "no metadata": header(lambda f: f.pop("__metadata__") and None),
    "metadata of 20 MB": header(lambda f: f["__metadata__"].update(x="y" * (20 << 20))),
    "a name with dots": header(lambda f: f.update({"../../evil": f.pop(min(k for k in f if k != "__metadata__"))})),
    "another tensor": header(lambda f: f.update(extra={"dtype": "F32", "shape": [0], "data_offsets": [0, 0]})),
    "not a number": header(lambda f: None, lambda body: b"\x00\x00\xc0\x7f" * (len(body) // 4)),
    "infinite": header(lambda f: None, lambda body: b"\x00\x00\x80\x7f" * (len(body) // 4)),
}


def tensors(change: Callable[[bytes], bytes], which: str) -> Change:
    def apply(root: Path) -> None:
        manifest = Store.open(root).manifest
        ref = manifest.experts[0].weights if which == "expert" else manifest.gates[0].solved
        assert ref is not None
        with_object(root, ref, change)

    return apply


def fields(change: Callable[[dict[str, Any]], Any]) -> Change:
    return lambda root: with_manifest(root, change)


def raw(change: Callable[[bytes], bytes]) -> Change:
    return lambda root: with_manifest(root, lambda f: change(json.dumps(f).encode()), raw=True)


def linked(name: str) -> Change:
    def apply(root: Path) -> None:
        path = root / name if name else layout.manifest_path(root, Store.open(root).manifest.generation)
        target = root.parent / "outside" / "target"
        shutil.copyfile(path, target)
        path.unlink()
        path.symlink_to(target)

    return apply


def linked_object(root: Path) -> None:
    ref = Store.open(root).manifest.tasks[0].subnetwork
    path = layout.object_path(root, ref.sha256, ref.suffix)
    path.rename(root.parent / "outside" / "target")
    path.symlink_to(root.parent / "outside" / "target")


def special(kind: str) -> Change:
    def apply(root: Path) -> None:
        ref = Store.open(root).manifest.tasks[0].subnetwork
        path = layout.object_path(root, ref.sha256, ref.suffix)
        path.unlink()
        {
            "a pipe": lambda: os.mkfifo(path),
            "a folder": path.mkdir,
            "a link to itself": lambda: path.symlink_to(path),
            "a link to zeros without end": lambda: path.symlink_to("/dev/zero"),
            "a sparse file of 3 GB": lambda: (path.touch(), os.truncate(path, 3 << 30)),
        }[kind]()

    return apply


STORES: dict[str, Change] = {
    **{f"h5: {k}": h5(v) for k, v in HOSTILE.items()},
    "h5: two names of one data set": h5(lambda f: f.__setitem__("statistics/x", f["probe_outputs"])),
    **{f"expert: {k}": tensors(v, "expert") for k, v in TENSORS.items()},
    **{f"gate: {k}": tensors(v, "gate") for k, v in TENSORS.items()},
    "manifest: no JSON": raw(lambda data: b"\x00" * 100),
    "manifest: nested deeply": raw(lambda data: b"[" * 1_000_000),
    "manifest: a number of a million digits": raw(lambda data: data.replace(b'"seed": 0', b'"seed": ' + b"9" * 10**6)),
    "manifest: not a number": raw(lambda data: data.replace(b'"input_scale": ', b'"input_scale": NaN, "x": ')),
    "manifest: unknown field": fields(lambda f: f.update(extra=1)),
    "manifest: a path for a hash": fields(lambda f: f["tasks"][0]["subnetwork"].update(sha256="../" * 21 + "x")),
    "manifest: a path for a suffix": fields(lambda f: f["tasks"][0]["subnetwork"].update(suffix="../../etc/passwd")),
    "manifest: an object of an exabyte": fields(lambda f: f["tasks"][0]["subnetwork"].update(size=1 << 60)),
    "manifest: a huge layer": fields(lambda f: f["experts"][0]["layers"][0].update(shape=[1 << 31, 1 << 31])),
    "manifest: a huge input": fields(lambda f: f["experts"][0].update(input_shape=[1 << 31, 1 << 31])),
    "manifest: a huge architecture": fields(lambda f: f["experts"][0].update(arch="mlp:" + "9" * 18)),
    "manifest: another architecture": fields(lambda f: f["experts"][0].update(arch="mlp:9,9")),
    "manifest: no architecture": fields(lambda f: f["experts"][0].update(arch="__import__('os')")),
    "manifest: a task of no expert": fields(lambda f: f["tasks"][0].update(expert="e9")),
    "manifest: two tasks of one name": fields(lambda f: f["tasks"].append(f["tasks"][0])),
    "manifest: control characters": fields(lambda f: f["tasks"][0].update(name="\x1b[2Jtask")),
    "manifest: another format": fields(lambda f: f.update(format=layout.FORMAT_VERSION + 1)),
    "a link for HEAD": linked("HEAD"),
    "a link for FORMAT": linked("FORMAT"),
    "a link for the manifest": linked(""),
    "a link for an object": linked_object,
    **{kind: special(kind) for kind in (
        "a pipe", "a folder", "a link to itself", "a link to zeros without end", "a sparse file of 3 GB")},
}  # fmt: skip


def tree(folder: Path) -> dict[str, object]:
    return {
        str(p.relative_to(folder)): (p.read_bytes() if p.is_file() and not p.is_symlink() else p.lstat().st_mode)
        for p in sorted(folder.rglob("*"))
        if p.lstat().st_size < LIMIT and p.name != layout.LOCK
    }


def told(arguments: list[str], folder: Path) -> tuple[int, str, int]:
    """Exit code, what was said on stderr, and memory above what the process began with."""
    said, used = folder / "said", folder / "used"

    def act() -> int:
        signal.alarm(60)
        os.chdir(folder / "outside")
        Path("/proc/self/clear_refs").write_text("5")
        before = memory("VmRSS")
        with said.open("w") as sys.stderr, (folder / "out").open("w") as sys.stdout:
            code = run(app, arguments)
        used.write_text(str(memory("VmHWM") - before))
        return code

    status = small.in_child(act)
    return status, said.read_text(), int(used.read_text()) if used.exists() else 0


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    images = small.questions()
    np.savez(folder / "images.npz", x=images.images)
    return small.build(folder / "store", 2)


def test_there_are_a_hundred_of_them() -> None:
    assert len(STORES) + len(BAD) >= 100


def test_stores_made_to_do_harm(
    good: Path, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty
) -> None:
    """A sample is verified; in the whole campaign all are, and predicted with and learned into as well."""
    images = str(good.parent / "images.npz")
    data = small.batch(2)
    np.savez(tmp_path / "task.npz", x=data.images, y=data.labels)
    verbs = [["inspect", "--verify"]]
    if whole:
        learn = ["learn", "--data", str(tmp_path / "task.npz"), "--arch", "mlp:8,8", "--epochs", "1", "--quiet"]
        verbs += [
            ["predict", "--batch", images, "--quiet"],
            ["inspect"],
            ["prune", "--task", "task1", "--yes", "--quiet"],
            learn,
        ]
    failures, cases, most = [], 0, 0
    for name, change in list(STORES.items())[:: 1 if whole else SAMPLED]:
        for verb in verbs:
            folder = tmp_path / f"case{cases}"
            (folder / "outside").mkdir(parents=True)
            (folder / "outside" / "canary").write_text("mine")
            root = folder / "store"
            shutil.copytree(good, root)
            change(root)
            before = tree(folder)
            code, said, used = told([*verb, "--store", str(root), "-q"], folder)
            after = tree(folder)
            for own in ("said", "used", "out"):
                after.pop(own, None)
            cases, most = cases + 1, max(most, used)
            # What a command does not read, it need not refuse.
            fine = (3, 4) if verb[-1] == "--verify" else (0, 3, 4)
            if code not in fine or (code and (said.count("\n") != 1 or "Traceback" in said)) or used > LIMIT:
                failures.append(f"{name}, {verb[0]}: exit {code}, {used >> 20} MiB, {said[-300:]}")
            if verb[0] in ("inspect", "predict") and before != after:
                failures.append(f"{name}, {verb[0]}: files were changed")
            if {k: v for k, v in before.items() if k.startswith("outside")} != {
                k: v for k, v in after.items() if k.startswith("outside")
            }:
                failures.append(f"{name}, {verb[0]}: files outside the store were changed")
            shutil.rmtree(folder)
    record_property("cases", cases)
    record_property("MiB", most >> 20)
    record_property("failures", len(failures))
    assert not failures, "\n".join(failures)


def test_data_made_to_do_harm(good: Path, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty) -> None:
    (tmp_path / "outside").mkdir()
    failures, cases, most = [], 0, 0
    for name, (make, _) in list(BAD.items())[:: 1 if whole else SAMPLED]:
        path = tmp_path / "bad.npz"
        path.write_bytes(make())
        code, said, used = told(["predict", "--batch", str(path), "--store", str(good), "-q"], tmp_path)
        cases, most = cases + 1, max(most, used)
        if code != 3 or said.count("\n") != 1 or "Traceback" in said or used > LIMIT:
            failures.append(f"{name}: exit {code}, {used >> 20} MiB, {said[-300:]}")
    record_property("cases", cases)
    record_property("MiB", most >> 20)
    record_property("failures", len(failures))
    assert not failures, "\n".join(failures)
