"""Random damage to every file of a real store: the same answers or an error, never other answers; files are named.

No damage is what is in the lock file, a checkpoint that is gone, and a missing manifest of an older generation: ``prune
--gc`` leaves a store like that.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import forking
import numpy as np
import pytest
import small_store as small
from store_samples import contents

from store_schema import Checkpoint, ClmoeError, Store, StoreDamaged, checkpoints, layout, repair, verify

Damage = Callable[[Path, list[Path], np.random.Generator], bool]


def flip(path: Path, others: list[Path], rng: np.random.Generator) -> bool:
    data = bytearray(path.read_bytes())
    for place in rng.integers(len(data), size=rng.integers(1, 4)):
        data[place] ^= 1 << rng.integers(8)
    path.write_bytes(data)
    return True


def cut(path: Path, others: list[Path], rng: np.random.Generator) -> bool:
    os.truncate(path, int(rng.integers(path.stat().st_size)))
    return True


def zero(path: Path, others: list[Path], rng: np.random.Generator) -> bool:
    data = bytearray(path.read_bytes())
    start = int(rng.integers(len(data)))
    end = min(len(data), start + int(rng.integers(1, 4097)))
    data[start:end] = bytes(end - start)
    path.write_bytes(data)
    return True


def delete(path: Path, others: list[Path], rng: np.random.Generator) -> bool:
    path.unlink()
    return True


def swap(path: Path, others: list[Path], rng: np.random.Generator) -> bool:
    other = others[int(rng.integers(len(others)))]
    one, two = path.read_bytes(), other.read_bytes()
    path.write_bytes(two)
    other.write_bytes(one)
    return True


KINDS: tuple[Damage, ...] = (flip, cut, zero, delete, swap)


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three tasks, and a fourth that was stopped on the way."""
    root = small.build(tmp_path_factory.mktemp("damage") / "store", 3)
    checkpoints.save(root, "0" * 64, Checkpoint(1, "1" * 64, "task4", "epoch 1", {"x": np.arange(200.0)}))
    return root


def files_of(root: Path) -> list[Path]:
    return sorted(p for p in root.rglob("*") if p.is_file())


def named(root: Path) -> str:
    """What ``inspect --verify`` would name."""
    try:
        return " ".join(f.file for f in verify(root) if f.damage)
    except ClmoeError as error:
        return str(error)


def changed(root: Path, before: dict[Path, bytes]) -> list[Path]:
    return [p for p, data in before.items() if not p.exists() or p.read_bytes() != data]


def to_be_named(bad: list[Path]) -> list[Path]:
    named = [p for p in bad if p.name != layout.LOCK]
    return [p for p in named if p.exists() or not (p.name == "2.json" or layout.CHECKPOINTS in p.parts)]


def mended(before: dict[Path, bytes], paths: list[Path]) -> None:
    for path in paths:
        path.write_bytes(before[path])


def test_the_library_notices_or_answers_the_same(
    good: Path, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty
) -> None:
    root = Path(shutil.copytree(good, tmp_path / "own"))
    before = {path: path.read_bytes() for path in files_of(root)}
    current = Store.open(root).manifest
    always_read = {root / "HEAD", root / "FORMAT", layout.manifest_path(root, current.generation)}
    answer, told, rng = small.answers(root), small.told(root), np.random.default_rng(0)
    failures, refused, cases = [], 0, 25_000 if whole else len(before) * len(KINDS) // 4
    for case in range(cases):
        path = list(before)[case % len(before)]
        kind = KINDS[(case // len(before)) % len(KINDS)]
        kind(path, list(before), rng)
        bad = changed(root, before)
        try:
            said = named(root)
            missed = [p.name for p in to_be_named(bad) if str(p) not in said]
            if missed:
                failures.append(f"{case} {kind.__name__} {path.name}: verify does not name {missed}")
            try:
                if small.answers(root) != answer:
                    failures.append(f"{case} {kind.__name__} {path.name}: another answer")
                if set(bad) & always_read:
                    failures.append(f"{case} {kind.__name__} {path.name}: not noticed")
            except ClmoeError as error:
                refused += 1
                if error.exit_code != 4 or "\n" in str(error) or not bad:
                    failures.append(f"{case} {kind.__name__} {path.name}: {error!r}")
        except Exception as error:
            failures.append(f"{case} {kind.__name__} {path.name}: {error!r}")
        if case % 10 == 0:
            own = Path(shutil.copytree(root, tmp_path / "repaired"))
            failures += [f"{case} {kind.__name__} {path.name}: {w}" for w in wrongly_repaired(own, told)]
            shutil.rmtree(own)
        mended(before, bad)
    record_property("cases", cases)
    record_property("repairs", (cases + 9) // 10)
    record_property("failures", len(failures))
    assert not failures, "\n".join(failures[:20])
    assert refused > cases // 4
    assert named(root) == ""


def wrongly_repaired(root: Path, told: dict[str, list[bytes]]) -> list[str]:
    """What ``inspect --repair`` did wrong with a damaged store; ``told``: what each task answered before."""
    damaged = contents(root)
    try:
        found = repair(root)
    except StoreDamaged:
        return [] if contents(root) == damaged else ["a repair that failed has changed something"]
    wrong = []
    if [f for f in verify(root) if f.damage]:
        wrong.append("damage after a repair")
    tasks = Store.open(root).manifest.tasks
    if found.generation not in (2, 3) or len(tasks) != found.generation:
        wrong.append(f"repaired to generation {found.generation} with {len(tasks)} tasks")
    if (len(tasks) < len(told)) != bool(found.lost):
        wrong.append(f"lost {found.lost}, left {len(tasks)} tasks")
    if any(small.answers(root, t.name) != told[t.name] for t in tasks):
        wrong.append("other answers after a repair")
    return wrong


def test_the_command_line_notices_or_answers_the_same(
    good: Path, tmp_path: Path, whole: bool, record_property: pytest.RecordProperty
) -> None:
    root = Path(shutil.copytree(good, tmp_path / "own"))
    images = small.questions()
    np.savez(tmp_path / "images.npz", x=images.images)
    before = {path: path.read_bytes() for path in files_of(root)}
    verbs = (
        ["predict", "--json", "--batch", str(tmp_path / "images.npz")],
        ["inspect", "--json"],
        ["inspect", "--verify", "--json"],
        ["detect", "--json", "--data", str(tmp_path / "images.npz")],
    )

    def run(verb: list[str]) -> tuple[int, str, str]:
        command = [forking.served() / "clmoe", *verb, "--store", str(root)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120, env=environment)
        return done.returncode, done.stdout, done.stderr

    def kept(out: str) -> str:
        """Without the learn that was stopped: a checkpoint that is gone is no damage."""
        return json.dumps({k: v for k, v in json.loads(out).items() if k != "unfinished"})

    expected: dict[int, str] = {}
    rng, failures, cases = np.random.default_rng(1), [], 110 if whole else 2
    for case in range(cases):
        which = case % len(verbs)
        if which not in expected:
            code, expected[which], said = run(verbs[which])
            assert code == 0, said
            expected[which] = kept(expected[which])
        path = list(before)[int(rng.integers(len(before)))]
        kind = KINDS[int(rng.integers(len(KINDS)))]
        kind(path, list(before), rng)
        bad = changed(root, before)
        code, out, said = run(verbs[which])
        same = code == 0 and kept(out) == expected[which] and not (which == 2 and to_be_named(bad))
        error = code == 4 and out == "" and said.count("\n") == 1 and "Traceback" not in said
        if which == 2 and code == 4:
            error &= all(str(p) in said for p in to_be_named(bad))
        if not (same or error):
            failures.append(f"{case} {kind.__name__} {path.name} {verbs[which][0]}: {code} {said[-300:]}")
        mended(before, bad)
    record_property("cases", cases)
    record_property("failures", len(failures))
    assert failures == [], failures[:20]
