"""Writers and readers at once, each a process: four of either; in the whole campaign eight, and some are killed."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from store_samples import commit_task

from store_schema import Store, verify, writer

TESTS = str(Path(__file__).parent.parent)

WRITE = """
import sys
sys.path.insert(0, sys.argv[3])
from store_samples import commit_task
from store_schema import writer
for i in range(int(sys.argv[4])):
    with writer(sys.argv[1], create=True) as locked:
        commit_task(locked, f"{sys.argv[2]}-{i}", i)
    print(f"{sys.argv[2]}-{i}", flush=True)
"""

READ = """
import sys
from pathlib import Path
from store_schema import read_consistently

def seen(store):
    names = [t.name for t in store.manifest.tasks]
    assert set(store.read_expert("e1").owned) == set(names), "weights and manifest of two generations"
    assert len(store.read_gate((7,)).means) == 2 * len(names), "gate and manifest of two generations"
    assert store.read_subnetwork(names[-1]).task == names[-1]
    return store.manifest.generation, names

last, reads = (0, []), 0
while True:
    final = Path(sys.argv[2]).exists()
    now = read_consistently(sys.argv[1], seen)
    assert now[0] >= last[0] and now[1][: len(last[1])] == last[1], "a reader went back"
    last, reads = now, reads + 1
    if final:
        break
print(reads)
"""


def start(*args: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_every_task_is_there_and_no_reader_sees_an_error(
    tmp_path: Path, whole: bool, record_property: pytest.RecordProperty
) -> None:
    crew, rounds, kills = (8, 25, 6) if whole else (4, 1, 0)
    root, stop = tmp_path / "s", tmp_path / "stop"
    with writer(root, create=True) as locked:
        commit_task(locked, "first", 0)
    readers = [start(READ, root, stop) for _ in range(crew)]
    writers = [start(WRITE, root, w, TESTS, rounds) for w in range(crew)]
    killed = []
    rng = np.random.default_rng(0)
    for w in range(kills):
        wanted = Store.open(root).manifest.generation + int(rng.integers(5, 15))
        while Store.open(root).manifest.generation < wanted:  # amid the work of all, wherever this one is
            time.sleep(rng.uniform(0, 0.01))
        writers[w].send_signal(signal.SIGKILL)
        killed.append(writers[w])
    said = [w.communicate(timeout=600) for w in writers]
    stop.touch()
    found = [r.communicate(timeout=60) for r in readers]
    record_property("cases", crew * rounds + sum(int(out or 0) for out, _ in found))
    failed = [err for _, err in found if err] + [
        e for (_, e), w in zip(said, writers, strict=True) if w not in killed and e
    ]
    record_property("failures", len(failed))
    assert failed == []
    there = {t.name for t in Store.open(root).manifest.tasks}
    reported = {name for out, _ in said for name in out.split()}
    assert reported <= there  # whoever was told that a task is learned has it
    assert there - reported - {"first"} <= {f"{w}-{i}" for w in range(kills) for i in range(rounds)}
    assert {f"{w}-{i}" for w in range(kills, crew) for i in range(rounds)} <= there
    assert [f for f in verify(root) if f.damage] == []
    with writer(root, timeout=0) as locked:  # free at once, though holders were killed
        commit_task(locked, "last", 1)
    assert verify(root) == []
