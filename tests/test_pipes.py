"""Pipes: rows as they are decided, readers that leave early, errors and their exit codes in real processes."""

from __future__ import annotations

import fcntl
import json
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pytest
import shells
import small_store as small

from clmoe_cli.api import gating
from clmoe_cli.api.predict import PredictReport, predict
from clmoe_cli.api.predictions import Prediction
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.method.routing import paper
from clmoe_cli.method.routing.subspaces import Gate
from store_schema import Store

ROWS = 180
AT_ONCE = 16
THIRD_TASK = "warning: no task knows the labels 5, 9: 60 of 180 images cannot be right\n"
"""The store knows the tasks 1 and 2 of the three in ``all.npz``."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shells.folder(tmp_path_factory.mktemp("pipes"))


@pytest.fixture
def few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gating, "CHUNK", AT_ONCE)
    monkeypatch.setattr(paper, "CHUNK", AT_ONCE)


WAYS = [
    [],
    ["--router", "gate", "--reject", "0.3"],
    ["--router", "fisher"],
    ["--router", "paper"],
    ["--task", "task1"],
    ["--route", "batch"],
    ["--route", "batch", "--batch-size", "60"],
    ["--route", "batch", "--batch-size", "7", "--router", "loss"],
]


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
@pytest.mark.usefixtures("few_at_once")
def test_rows_on_stdout_are_those_of_the_file(
    way: list[str], root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    args = ["predict", "--batch", str(root / "all.npz"), "--store", str(root / "store"), *way]
    assert run(app, [*args, "--output", str(tmp_path / "rows.ndjson"), "-q"]) == 0
    assert capfd.readouterr() == ("", THIRD_TASK)
    assert run(app, [*args, "--output", "-"]) == 0
    out, err = capfd.readouterr()
    assert out.encode() == (tmp_path / "rows.ndjson").read_bytes()
    assert [json.loads(line)["index"] for line in out.splitlines()] == list(range(ROWS))
    assert sorted(line.split()[0] for line in err.splitlines()) == ["accuracy", "warning:"]
    assert run(app, [*args, "--output", "-", "-q"]) == 0
    assert capfd.readouterr() == (out, THIRD_TASK)


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({}, [16] * 11 + [4]),
        ({"router": "loss"}, [16] * 11 + [4]),
        ({"task": "task2", "route": "batch"}, [16] * 11 + [4]),
        ({"route": "batch"}, [16] * 11 + [4]),
        ({"route": "batch", "batch_size": 10}, [10] * 18),
        ({"route": "batch", "batch_size": 40, "router": "fisher"}, [40] * 4 + [20]),
    ],
)
@pytest.mark.usefixtures("few_at_once")
def test_parts_are_what_is_decided_at_a_time(options: dict[str, Any], sizes: list[int], root: Path) -> None:
    with np.load(root / "all.npz") as arrays:
        batch = Batch(arrays["x"], arrays["y"], "all", files=tuple(f"{i}.png" for i in range(ROWS)))
    parts: list[PredictReport] = []
    whole = predict(str(root / "store"), batch, on_part=parts.append, **options)
    assert [len(part.labels) for part in parts] == sizes
    assert [row for part in parts for row in part.rows()] == whole.rows()
    assert whole.rows()[-1].file == f"{ROWS - 1}.png"
    assert all(part.scores is None for part in parts)
    assert whole.scores is not None


@pytest.mark.parametrize("router", ["fused", "gate", "fisher"])
@pytest.mark.usefixtures("few_at_once")
def test_all_rows_are_of_one_state_of_the_store(router: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A commit that sweeps, between two parts, what later parts need."""
    monkeypatch.setattr(Gate.shortlist, "__defaults__", (1,))  # so that not all tasks are needed at once
    store = str(small.build(tmp_path / "store", 3))
    images = np.concatenate([small.batch(number).images for number in (1, 2, 3)])
    batch = Batch(images, None, "in the order of the tasks")
    expected = predict(store, batch, router=router).rows()
    assert {row.task for row in expected[:AT_ONCE]} != {row.task for row in expected}
    found: list[Prediction] = []

    def take(part: PredictReport) -> None:
        if not found:
            for name in ("task3", "task2"):
                prune(store, PruneOptions(task=name, gc=True), lambda plan: True)
        found.extend(part.rows())

    assert predict(store, batch, router=router, on_part=take).rows() == expected
    assert found == expected
    assert [task.name for task in Store.open(store).manifest.tasks] == ["task1"]


SLOW = """
import os, sys
from clmoe_cli.api import gating
from clmoe_cli.cli.process import run
from clmoe_cli.cli.app import main
gating.CHUNK = 16
real = gating.decide_images
held = os.open(sys.argv[1], os.O_RDONLY)
def waiting(*args):
    os.read(held, 1)
    return real(*args)
gating.decide_images = waiting
main(sys.argv[2:])
"""


def test_rows_are_out_before_the_next_images_are_decided(root: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "leave")
    args = ["predict", "--batch", root / "all.npz", "--store", root / "store", "--output", "-", "-q"]
    child = subprocess.Popen(
        [forking.served() / "python", "-c", SLOW, tmp_path / "leave", *map(str, args)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=shells.clean(),
    )  # fmt: skip
    writing = os.open(tmp_path / "leave", os.O_WRONLY)
    assert child.stdout is not None
    out, seen = child.stdout.fileno(), b""
    for number in range(1, 4):
        assert not select.select([out], [], [], 0.05)[0]
        os.write(writing, b".")
        while seen.count(b"\n") < AT_ONCE * number:
            assert select.select([out], [], [], 60)[0]
            seen += os.read(out, 1 << 16)
        assert seen.count(b"\n") == AT_ONCE * number
    child.stdout.close()  # the reader has seen enough
    os.write(writing, b"." * 100)
    assert child.stderr is not None
    assert child.stderr.read() == b""
    child.stderr.close()
    assert child.wait(60) == 0
    os.close(writing)


def test_stdin_to_stdout(root: Path) -> None:
    args = ("predict", "--batch", "-", "--store", root / "store", "--output", "-")
    done = shells.spawn(*args, cwd=root, stdin=(root / "1.npz").read_bytes())
    assert (done.returncode, done.stderr.startswith(b"accuracy ")) == (0, True)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["index"] for row in rows] == list(range(60))
    done = shells.spawn(*args, cwd=root, stdin=b"no images")
    assert (done.returncode, done.stdout) == (3, b"")


def test_rows_in_any_encoding(tmp_path: Path) -> None:
    part = small.batch(1)
    assert part.labels is not None
    np.savez(tmp_path / "named.npz", x=part.images, y=np.array(["ä", "日本"])[(part.labels > 0).astype(int)])
    learn = ("learn", "--data", "named.npz", "--store", "named", *shells.QUICK, "-q")
    assert shells.spawn(*learn, cwd=tmp_path).returncode == 0
    args = ("predict", "--batch", "named.npz", "--store", "named", "--output", "-", "-q")
    plain, escaped = (shells.spawn(*args, cwd=tmp_path, PYTHONIOENCODING=name) for name in ("utf-8", "ascii"))
    assert "日本".encode() in plain.stdout
    assert escaped.stdout.isascii()
    read = [[json.loads(line) for line in done.stdout.decode().splitlines()] for done in (plain, escaped)]
    assert read[0] == read[1]


@pytest.mark.parametrize("way", ["flag", "variable", "file"])
def test_one_object_and_rows_do_not_go_to_one_stream(way: str, root: Path, tmp_path: Path) -> None:
    args = ["predict", "--batch", root / "1.npz", "--store", root / "store", "--output", "-"]
    if way == "file":
        (tmp_path / "clmoe.toml").write_text("json = true\n")
    variables = {"CLMOE_JSON": "1"} if way == "variable" else {}
    done = shells.spawn(*args, *(["--json"] if way == "flag" else []), cwd=tmp_path, **variables)
    assert (done.returncode, done.stdout) == (2, b"")
    assert "both write to stdout" in json.loads(done.stderr)["error"]["what"]


COMMANDS = [
    "inspect",
    "inspect --json",
    "inspect --format csv",
    "detect --data 1.npz --json",
    "predict --batch all.npz",
    "predict --batch all.npz --json",
    "predict --batch all.npz --output -",
    "prune --task task1 --dry-run --json",
    "learn --data 1.npz --json",
    "learn --data 3.npz --dry-run",
    "schema",
    "--help",
    "--version",
    "--show-completion",
]
LIGHT = ("inspect", "schema", "--help", "--version", "--show-completion")
"""Those that start fast."""


@pytest.mark.parametrize("command", COMMANDS)
def test_a_reader_that_leaves_ends_a_command_quietly(command: str, root: Path) -> None:
    store = "" if command.startswith(("-", "schema")) else "--store store"
    reading, writing = os.pipe()
    os.close(reading)  # the reader is gone before the first byte
    # A shell stays in between: --show-completion asks which one it is.
    clmoe = [sys.executable, "-m", "clmoe_cli"] if command in LIGHT else [str(forking.served() / "clmoe")]
    args = ["bash", "-c", '"$@"; exit $?', "bash", *clmoe, *command.split(), *store.split()]
    done = subprocess.run(
        args, cwd=root, env=shells.clean(), stdout=writing, stderr=subprocess.PIPE, check=False, timeout=60
    )
    os.close(writing)
    assert done.returncode == 0
    said = done.stderr.decode().replace(THIRD_TASK, "").splitlines()
    assert not [line for line in said if not line.startswith(("accuracy", "warning: only 60 images"))], done.stderr


def test_a_verdict_is_told_by_the_exit_code_when_nobody_reads(root: Path) -> None:
    for printing in ("", "--json"):
        detect = f"clmoe detect --data {root}/3.npz --store {root}/store --exit-code {printing}"
        done = shells.bash(f"{detect} | true; exit ${{PIPESTATUS[0]}}", root)
        assert (done.returncode, done.stdout, done.stderr) == (shells.bash(detect, root).returncode, b"", b"")
        assert done.returncode == 10


def test_a_learn_goes_on_when_nobody_reads_its_progress(root: Path, tmp_path: Path) -> None:
    quick = " ".join(shells.QUICK)
    learn = f"clmoe learn --data {root}/3.npz --store store --epochs 5 {quick}"
    done = shells.bash(f"({learn}) 2>&1 >out | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert (tmp_path / "out").read_bytes().startswith(b"learned task1")
    assert [task.name for task in Store.open(tmp_path / "store").manifest.tasks] == ["task1"]
    done = shells.bash(f"({learn} --if-known new) 2>&1 | true; exit ${{PIPESTATUS[0]}}", tmp_path)
    assert (done.returncode, done.stderr) == (0, b"")
    assert [task.name for task in Store.open(tmp_path / "store").manifest.tasks] == ["task1", "task2"]


BUG = """
import sys
import clmoe_cli.api.inspect as module
from clmoe_cli.cli.app import main
def broken(*args, **kwargs):
    raise RuntimeError("oh")
module.inspect = broken
main(sys.argv[1:])
"""


EARLY = """
import os, signal, sys
class Interrupted:
    def find_spec(self, name, path, target=None):
        if name == "clmoe_cli.cli.log":
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Interrupted())
from clmoe_cli.__main__ import main
main()
"""


@pytest.mark.parametrize("as_json", [False, True])
def test_an_interruption_while_it_starts_is_told_in_a_line(as_json: bool, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EARLY, "log", *(["--json"] if as_json else [])]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, check=False, env=shells.clean())
    assert (done.returncode, done.stdout, done.stderr.count(b"\n")) == (130, b"", 1)
    assert b"interrupted; the store is as it was" in done.stderr
    assert (b"exit_code" in done.stderr) == as_json


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes_of_processes(as_json: bool, root: Path, tmp_path: Path) -> None:
    extra = ["--json"] if as_json else []
    (tmp_path / "bad.npz").write_bytes(b"nothing")
    (tmp_path / "damaged").mkdir()
    (tmp_path / "damaged" / "FORMAT").write_text("2\n")
    locked = shells.folder(tmp_path) / "store"
    calls = {
        0: ["inspect", "--store", root / "store"],
        2: ["predict", "--batch", "all.npz", "--router", "los"],
        3: ["predict", "--batch", "bad.npz", "--store", root / "store"],
        4: ["inspect", "--store", "damaged"],
        5: ["prune", "--task", "task1", "--yes", "--store", locked, "--lock-timeout", "0", "-q"],
        6: ["predict", "--batch", "1.npz", "--store", root / "store", "--output", "/proc/out.csv"],
        10: ["detect", "--data", "3.npz", "--use-labels", "--exit-code", "--store", root / "store"],
    }
    with (locked / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Those that start fast do so from the start of the interpreter on.
        spawns = {code: shells.anew if code in (0, 2, 4) and not as_json else shells.spawn for code in calls}
        found = {code: spawns[code](*args, *extra, cwd=tmp_path) for code, args in calls.items()}
    command = [forking.served() / "python", "-c", BUG, "inspect", *extra]
    found[1] = subprocess.run(command, capture_output=True, check=False, env=shells.clean(), timeout=60)
    for code, done in found.items():
        assert done.returncode == code, done.stderr
        if code in (0, 10):
            assert done.stdout
            continue
        assert done.stdout == b""
        line = done.stderr.decode()
        assert line.count("\n") == 1, line
        if as_json:
            assert json.loads(line)["error"]["exit_code"] == code
        else:
            assert line.startswith("clmoe: ")
