"""``torchrun``: two processes learn and predict what one does, end together, and speak once."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import forking
import numpy as np
import pytest
import torch
from campaigns import some
from pictures import bars
from PIL import Image

from clmoe_cli.api.inputs import Expected
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.cli import reading
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import read_batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.runtime import devices
from clmoe_cli.store_tensors import Loader
from store_schema import Store, UsageProblem, verify, writer

ROOT = Path(__file__).parents[1]
TASKS = {"a": [0, 4], "b": [2, 7], "c": [5, 9]}
FLAGS = ("--arch", "mlp:16,16", "--epochs", "2")
OPTIONS = LearnOptions(arch="mlp:16,16", method=Options(Schedule(epochs=2)))
TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
LIMIT = 120

# Measured on one machine: 2e-7. Sums of float32 in another order; hundreds of steps may make more of it.
NEAR = {"rtol": 1e-3, "atol": 1e-4}

QUESTIONS = {
    "image": {},
    "three": {"route": "batch", "batch_size": 3},
    "whole": {"route": "batch"},
    "gate": {"router": "gate", "reject": 0.5},
    "fisher": {"router": "fisher", "reject": 0.5},
    "gradient": {"router": "gradient", "reject": 0.5},
    "loss": {"router": "loss", "reject": 0.5},
    "paper": {"router": "paper", "route": "batch", "batch_size": 40},
    "task": {"task": "task1"},
}
PAPERS = ("fisher", "gradient", "loss", "paper")
ASKING = """
import json, sys
import numpy as np
from clmoe_cli.api.predict import predict
from clmoe_cli.data import read_batch
from clmoe_cli.runtime.distributed.processes import leading, together

with together("cpu"):
    for name, options in json.loads(sys.argv[4]).items():
        for n in (1, 201):
            batch = read_batch(sys.argv[2], labels="optional").taken(slice(0, n))
            report = predict(sys.argv[1], batch, **options)
            if leading():
                np.savez(f"{sys.argv[3]}/{name}-{n}.npz", **report.arrays())
"""


def torchrun(*args: object, script: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    """``torchrun`` with two processes of ``clmoe``, or of a script; all of them are forks."""
    served = forking.served()
    program = [str(served / "python"), *script] if script else [str(served / "clmoe")]
    launcher = [str(served / "python"), "-c", "from torch.distributed.run import main; main()"]
    command = [*launcher, *TORCHRUN[3:], "--no-python", *program, *map(str, args)]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=ENVIRONMENT, timeout=LIMIT)


def ours(stderr: str) -> list[str]:
    """What clmoe said of an error. torchrun has a report and a traceback of its own."""
    assert "clmoe_cli/" not in stderr.replace("\n  ", "").partition("Traceback")[2], stderr
    return [line for line in stderr.splitlines() if line.startswith("clmoe: ")]


def alone(*args: object) -> int:
    return run(app, [str(arg) for arg in args])


def hash_of(store: Path) -> str:
    return Store.open(store).manifest.content_hash()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, (name, classes) in enumerate([*TASKS.items(), ("mixed", [0, 4, 2, 7])]):
        x, y = bars(classes, 201 if name == "mixed" else 300, seed)
        np.savez(folder / f"{name}.npz", x=x[:, None], y=y)
    return folder


@pytest.fixture(scope="module")
def one(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("one") / "store"
    for name in ("a", "b"):
        learn(str(store), read_batch(str(data / f"{name}.npz"), labels="required"), OPTIONS)
    return store


@pytest.fixture
def own(one: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(one, tmp_path / "own"))


def test_two_processes_learn_what_one_does(data: Path, one: Path, tmp_path: Path) -> None:
    """The tolerance: a hundredth of a mask's bits, weights that both have by ``NEAR``, accuracy to two of 37 images."""
    store = tmp_path / "two"
    for number, name in enumerate(("a", "b"), 1):
        done = torchrun("learn", "--data", data / f"{name}.npz", "--store", store, *FLAGS, "--json")
        assert done.returncode == 0, done.stderr
        report = json.loads(done.stdout)
        assert (report["task"], report["status"]) == (f"task{number}", "learned")
        assert done.stderr.count("train 1/2") == 1
    assert verify(store) == []
    assert list((store / "checkpoints").iterdir()) == []
    with writer(store, timeout=0):
        pass  # the lock is free
    first, second = (Loader(Store.open(root)) for root in (one, store))
    for name in ("task1", "task2"):
        x, y = first.task(name), second.task(name)
        differing = sum(int((x.mask[key] != y.mask[key]).sum()) for key in x.mask)
        selected = sum(int(value.sum()) for value in x.mask.values())
        assert differing <= 0.01 * selected
        for key, value in x.params.items():
            both = x.mask[key] & y.mask[key] if key in x.mask else torch.ones_like(value, dtype=torch.bool)
            np.testing.assert_allclose(value[both].numpy(), y.params[key][both].numpy(), err_msg=key, **NEAR)
        right = [found.manifest.task(name).accuracy.subnetwork for found in (first, second)]
        assert abs(right[0] - right[1]) <= 0.06
    batch = read_batch(str(data / "mixed.npz"), labels="optional")
    answers = [predict(str(root), batch) for root in (one, store)]
    assert (answers[0].label != answers[1].label).mean() <= 0.01


def test_two_processes_answer_what_one_does_in_order(data: Path, one: Path, tmp_path: Path) -> None:
    """201 images, and one: what decides is the same to the last bit, whatever share of the images a process has."""
    script = tmp_path / "asking.py"
    script.write_text(ASKING)
    mixed = data / "mixed.npz"
    done = torchrun(one, mixed, tmp_path, json.dumps(QUESTIONS), script=(str(script),))
    assert done.returncode == 0, done.stderr
    for name, options in QUESTIONS.items():
        for n in (1, 201):
            batch = read_batch(str(mixed), labels="optional").taken(slice(0, n))
            expected = predict(str(one), batch, **options).arrays()
            with np.load(tmp_path / f"{name}-{n}.npz") as found:
                for key in ("label", "task", "expert", "known", "p_value"):
                    assert np.array_equal(found[key], expected[key]), (name, n, key)
                # Confidences of the paper's routers are sums over subnetworks, in the order of the batch.
                near = 1e-5 if name in PAPERS else 0.0
                np.testing.assert_allclose(found["confidence"], expected["confidence"], rtol=near, err_msg=name)
    labels = predict(str(one), read_batch(str(mixed), labels="optional")).label
    assert (labels[1:] != labels[:-1]).mean() > 0.5  # another order would be seen


def test_the_command_writes_one_file(data: Path, one: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a folder, of which each process decodes a share, and an npz after it: the bytes that one process writes."""
    with np.load(data / "mixed.npz") as mixed:
        for i, (image, label) in enumerate(zip(mixed["x"][:70, 0], mixed["y"], strict=False)):
            path = tmp_path / "pictures" / str(label) / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(path)
    args = ("predict", tmp_path / "pictures", data / "mixed.npz", "--store", one, "--reject", "0.2", "--explain")
    told = []
    for n, asked in (("two", torchrun), ("one", alone)):
        done = asked(*args, "--json", "--output", tmp_path / f"{n}.csv")
        assert done == 0 if isinstance(done, int) else done.returncode == 0, done
        told.append(capsys.readouterr().out if isinstance(done, int) else done.stdout)
    assert told[0].replace("two.csv", "one.csv") == told[1]
    assert (tmp_path / "one.csv").read_bytes() == (tmp_path / "two.csv").read_bytes()
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 1 + 70 + 201


@pytest.mark.parametrize(("launch", "quiet", "said"), [(1e9, (), 1), (1e9, ("--quiet",), 0), (0.0, (), 0)])
def test_answers_that_are_quicker_than_a_start_are_told(
    launch: float,
    quiet: tuple[str, ...],
    said: int,
    data: Path,
    one: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("clmoe_cli.cli.predict.together", lambda device: nullcontext())
    for where in ("cli.predict", "runtime.distributed.processes"):
        monkeypatch.setattr(f"clmoe_cli.{where}.LAUNCH", launch)
    args = ("predict", data / "mixed.npz", "--store", one, "--output", tmp_path / "answers.csv")
    assert alone(*args, *quiet) == 0
    assert capsys.readouterr().err.count("several processes do not pay here: this took ") == said


def test_a_locked_store_is_told_once(data: Path, own: Path) -> None:
    with writer(own, timeout=0):
        done = torchrun("learn", "--data", data / "c.npz", "--store", own, *FLAGS, "--lock-timeout", "0.1")
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = ours(done.stderr)
    assert "locked by another writer" in line
    assert "exitcode  : 5" in done.stderr


def test_bad_data_are_told_once(own: Path, tmp_path: Path) -> None:
    before = hash_of(own)
    x, _ = bars([5, 9], 40, 0)
    np.savez(tmp_path / "unlabelled.npz", x=x)
    done = torchrun("learn", "--data", tmp_path / "unlabelled.npz", "--store", own, *FLAGS, "--json")
    assert done.returncode != 0
    assert done.stdout == ""
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("{")]
    assert json.loads(line)["error"]["exit_code"] == 3
    assert "exitcode  : 3" in done.stderr
    assert hash_of(own) == before


def workers(agent: int) -> dict[str, int]:
    """Process ids by rank."""
    found = {}
    for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split():
        pairs = dict(item.split("=", 1) for item in Path(f"/proc/{pid}/environ").read_text().split("\0") if "=" in item)
        if "RANK" in pairs:
            found[pairs["RANK"]] = int(pid)
    return found


@pytest.mark.campaign
@pytest.mark.parametrize("rank", ["0", "1"])
def test_all_end_when_one_is_killed_and_the_store_is_as_it_was(data: Path, own: Path, rank: str) -> None:
    before = hash_of(own)
    args = ("learn", "--data", str(data / "c.npz"), "--store", str(own), "--arch", "mlp:16,16", "--epochs", "1000")
    command = [*TORCHRUN, "-m", "clmoe_cli", *args]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT) as run_:
        assert run_.stderr is not None
        seen = ""
        while "train 2/" not in seen:
            line = run_.stderr.readline()
            assert line, seen
            seen += line
        pids = workers(run_.pid)
        assert sorted(pids) == ["0", "1"]
        os.kill(pids[rank], signal.SIGKILL)
        killed = time.monotonic()
        out, rest = run_.communicate(timeout=LIMIT)
    assert run_.returncode != 0
    assert out == ""
    assert time.monotonic() - killed < 60
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids.values())
    (line,) = ours(seen + rest)
    assert ".cc" not in line
    assert "another process of this run has ended" in line or "interrupted" in line
    assert hash_of(own) == before
    assert verify(own) == []
    assert alone("inspect", "--store", own, "--verify", "-q") == 0
    assert alone("learn", "--data", data / "c.npz", "--store", own, *FLAGS, "--lock-timeout", "0", "-q") == 0
    assert [t.name for t in Store.open(own).manifest.tasks] == ["task1", "task2", "task3"]


@pytest.fixture
def second(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """As process 1 of two; what is looked at here needs no other."""
    for key, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(key, value)
    return monkeypatch


@pytest.mark.parametrize(
    "command", [("prune", "--task", "task1", "--yes"), ("tasks", "mnist5k", "x", "--classes", "1,2")]
)
def test_commands_that_write_are_for_one_process(
    command: tuple[str, ...], own: Path, second: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = hash_of(own)
    second.setenv("CLMOE_STORE", str(own))
    assert alone(*command) == 2
    assert capsys.readouterr().err == ""
    second.setenv("RANK", "0")
    assert alone(*command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"clmoe {command[0]} is for one process" in line
    assert hash_of(own) == before
    second.setenv("WORLD_SIZE", "1")
    assert alone("inspect", "--json") == 0


@pytest.mark.parametrize("command", ["detect", "inspect"])
def test_commands_that_look_are_run_by_process_0(
    command: str, data: Path, one: Path, second: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = (command, *(("--data", data / "a.npz") if command == "detect" else ()), "--store", one, "--json")
    assert alone(*args) == 0
    assert capsys.readouterr().out == ""
    second.setenv("RANK", "0")
    assert alone(*args) == 0
    assert json.loads(capsys.readouterr().out)["schema"].startswith(f"clmoe.{command}/")


def test_usage_is_told_by_process_0(second: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for rank, lines in (("0", 1), ("1", 0)):
        second.setenv("RANK", rank)
        assert alone("learn", "--data", "x.npz", "--epochs", "none") == 2
        assert len(capsys.readouterr().err.splitlines()) == lines


def test_a_pipe_is_refused(tmp_path: Path, second: pytest.MonkeyPatch) -> None:
    os.mkfifo(tmp_path / "pipe")
    for source in ("-", str(tmp_path / "pipe")):
        with pytest.raises(UsageProblem, match="only one process can read a pipe"):
            reading.read(source, "required", Expected(), reading.How(quiet=True))


def test_each_process_has_a_card_of_its_own(second: pytest.MonkeyPatch) -> None:
    second.setattr(torch.backends.mps, "is_available", lambda: True)
    second.setattr(torch.cuda, "is_available", lambda: False)
    assert devices.resolved("auto") == "cpu"
    with pytest.raises(UsageProblem, match="for several processes"):
        devices.resolved("mps")
    second.setattr(torch.cuda, "is_available", lambda: True)
    second.setattr(torch.cuda, "device_count", lambda: 2)
    assert devices.resolved("auto") == "cuda:1"
    second.setattr(torch.cuda, "device_count", lambda: 1)
    for device in ("auto", "cuda"):
        with pytest.raises(UsageProblem, match="more processes than graphics cards"):
            devices.resolved(device)
    assert devices.resolved("cpu") == "cpu"


BAD = {
    "no number": ({"WORLD_SIZE": ""}, "WORLD_SIZE is no number; found ''"),
    "a word": ({"WORLD_SIZE": "two"}, "WORLD_SIZE is no number"),
    "a word for the rank": ({"RANK": "first"}, "RANK is no number"),
    "a negative rank": ({"RANK": "-1"}, "RANK is no number"),
    "no process": ({"WORLD_SIZE": "0"}, "WORLD_SIZE says no process"),
    "too large": ({"RANK": "2"}, "RANK is too large"),
    "a card that is no number": ({"LOCAL_RANK": "x"}, "LOCAL_RANK is no number"),
    "no meeting": ({}, "MASTER_ADDR is not set"),
}


@pytest.mark.parametrize("case", some(BAD, "a word", "too large", "no meeting"))
def test_variables_that_are_left_behind(
    case: str, data: Path, one: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    changed, says = BAD[case]
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", **changed}.items():
        monkeypatch.setenv(name, value)
    for command in ("learn", "predict"):
        assert alone(command, "--data", data / "a.npz", "--store", one) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert says in line
        assert "unset RANK and WORLD_SIZE" in line
    for args in (("inspect", "--store", one), ("detect", "--data", data / "a.npz", "--store", one), ("--help",)):
        assert alone(*args, *(() if args == ("--help",) else ("-q",))) == 0


@pytest.mark.parametrize("more", [{"RANK": "3"}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "4"}])
def test_one_of_one_is_alone(more: dict[str, str], data: Path, one: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in more.items():
        monkeypatch.setenv(name, value)
    assert alone("predict", "--batch", data / "a.npz", "--store", one, "-q") == 0


WAITING = (
    "from clmoe_cli.runtime.distributed import processes; processes.SOON = 0.3; "
    "from clmoe_cli.cli.app import main; main()"
)


@pytest.mark.parametrize("rank", ["0", "1"])
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_one_that_waits_for_others_says_so_and_ends_when_told(rank: str, how: int, data: Path, one: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    more = {"RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    command = [
        forking.served() / "python",
        "-c",
        WAITING,
        "predict",
        "--batch",
        str(data / "a.npz"),
        "--store",
        str(one),
        "-q",
    ]
    with subprocess.Popen(command, env=ENVIRONMENT | more, stderr=subprocess.PIPE, text=True) as waiting:
        try:
            assert waiting.stderr is not None
            line = next(text for text in waiting.stderr if "waits" in text)
            assert line.startswith(f"process {rank} waits for the others of 2 processes at 127.0.0.1:{port}")
            assert "unset both" in line
            waiting.send_signal(how)
            assert waiting.wait(20) == 130
        finally:
            waiting.kill()


@pytest.mark.parametrize("several", [True, False])
def test_processes_of_a_run_leave_without_taking_the_interpreter_down(several: bool) -> None:
    told = "import atexit; from clmoe_cli.runtime.distributed.processes import leave; atexit.register(print, 'late')"
    told += "; print('said'); leave(3)"
    more = {"RANK": "1", "WORLD_SIZE": "2"} if several else {}
    done = subprocess.run(
        [sys.executable, "-c", told], env={**os.environ, **more}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout.split()) == (3, ["said"] if several else ["said", "late"])
