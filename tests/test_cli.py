"""The command line as scripts meet it: real processes, their streams, exit codes and files."""

from __future__ import annotations

import csv
import fcntl
import io
import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pytest
from campaigns import some
from pictures import blobs

from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import read_batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import Store, layout

ARCH, EPOCHS = "mlp:32,32", 5
QUICK = ("--arch", ARCH, "--epochs", EPOCHS)
FIELDS = {"label", "task", "expert", "confidence", "known", "p_value"}
ROUTERS = ("fused", "gate", "fisher", "loss", "gradient", "paper")
Done = subprocess.CompletedProcess[bytes]


def save(path: Path, **arrays: Any) -> Path:
    np.savez(path, **arrays)
    return path


# Of each task: places of the blobs, labels, edge length, colour, images.
TASKS: dict[str, tuple[list[tuple[int, int]], list[Any], int, bool]] = {
    "corners": ([(1, 1), (6, 6)], [1, 5], 8, False),
    "pets": ([(1, 6), (6, 1)], ["cat", "dog"], 8, False),
    "colour": ([(1, 1), (4, 4)], [7, 8], 6, True),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("cli-data")
    made = {}
    for name, (places, labels, size, colour) in TASKS.items():
        for part, n, seed in (("train", 400, 1), ("test", 100, 2)):
            x, y = blobs(places, n, seed, size)
            x = np.stack([x, x // 2, x // 4], axis=3) if colour else x
            made[f"{name}.{part}"] = save(root / f"{name}.{part}.npz", x=x, y=np.array(labels)[y])
    x, y = blobs([(3, 0), (3, 7)], 200, 3)
    made["other"] = save(root / "other.npz", x=x, y=y + 20)
    made["odd"] = save(root / "odd.npz", x=np.zeros((20, 9, 9), np.uint8), y=np.arange(20) % 2)
    return made


@pytest.fixture(scope="module")
def shared(data: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of three tasks in two or more experts that tests only read."""
    root = tmp_path_factory.mktemp("cli-store") / "store"
    for name in TASKS:
        args = ["learn", "--data", data[f"{name}.train"], "--store", root, "--name", name, *QUICK, "-q"]
        assert run(app, [str(a) for a in args]) == 0
    return root


@pytest.fixture
def own(shared: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(shared, tmp_path / "own"))


@pytest.fixture(autouse=True)
def outside(tmp_path: Path, shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A working folder without settings; the store comes from the environment."""
    for name in [n for n in os.environ if n.startswith("CLMOE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("CLMOE_STORE", str(shared))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.chdir(tmp_path)


def spawn(*args: object, program: tuple[str | Path, ...] = (), **options: Any) -> Done:
    """``clmoe`` in a process of its own: a fork, if no other ``program`` is given."""
    command = [*(program or (forking.served() / "clmoe",)), *map(str, args)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60, **options)


ANEW = (sys.executable, "-m", "clmoe_cli")
"""``clmoe`` from the start of the interpreter on."""


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """``clmoe`` in this process: code, stdout, stderr."""

    def invoke(*args: object) -> tuple[int, str, str]:
        code = run(app, [str(a) for a in args])
        streams = capsys.readouterr()
        return code, streams.out, streams.err

    return invoke


def result(call: Call, *args: object) -> dict[str, Any]:
    """The JSON object that a command prints; nothing else may be on stdout, and with -q nothing on stderr."""
    code, out, err = call(*args, "--json", "-q")
    assert (code, err) == (0, "")
    found: dict[str, Any] = json.loads(out)
    assert found["schema"].startswith(f"clmoe.{args[0]}/")
    return found


def contents(root: Path) -> dict[str, bytes | None]:
    """Every path of a store with its bytes (None: a folder); the lock names its last holder and is left out."""
    return {
        str(p.relative_to(root)): p.read_bytes() if p.is_file() else None for p in root.rglob("*") if p.name != "lock"
    }


def one_line(err: str) -> str:
    assert err.endswith("\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert err.startswith(("clmoe: ", '{"schema": "clmoe.error/1"'))
    return err


def bad_data(kind: str, path: Path) -> Path:
    x, y = blobs([(1, 1), (6, 6)], 40, 5)
    nan = x.astype(np.float32)
    nan[7, 2, 2] = np.nan
    boxed = np.empty(40, dtype=object)
    boxed[:] = 1
    makes: dict[str, Callable[[], Any]] = {
        "missing file": lambda: None,
        "not an npz": lambda: path.write_bytes(b"images\n" * 50),
        "a single array": lambda: np.save(path.with_suffix(""), x) or path.with_suffix(".npy").rename(path),
        "cut short": lambda: path.write_bytes(save(path, x=x, y=y).read_bytes()[:900]),
        "an empty file": lambda: path.write_bytes(b""),
        "no images": lambda: save(path, pictures=x, y=y),
        "no labels": lambda: save(path, x=x),
        "lengths differ": lambda: save(path, x=x, y=y[1:]),
        "nan": lambda: save(path, x=nan, y=y),
        "infinite": lambda: save(path, x=np.where(np.isnan(nan), -np.inf, nan), y=y),
        "object images": lambda: save(path, x=boxed, y=y),
        "object labels": lambda: save(path, x=x, y=boxed),
        "empty data": lambda: save(path, x=x[:0], y=y[:0]),
        "float labels": lambda: save(path, x=x, y=y / 2),
        "one-hot labels": lambda: save(path, x=x, y=np.eye(2, dtype=int)[y]),
        "whole numbers as pixels": lambda: save(path, x=x.astype(np.int64), y=y),
        "no layout": lambda: save(path, x=x[:, None, None], y=y),
        "blank label": lambda: save(path, x=x, y=np.array(["a", " "])[y]),
        "label with a newline": lambda: save(path, x=x, y=np.array(["a", "b\nc"])[y]),
    }
    makes[kind]()
    return path


WORDS = {
    "missing file": "No such file",
    "not an npz": "not an npz",
    "a single array": "single .npy",
    "cut short": "damaged or cut short",
    "an empty file": "empty file",
    "no images": "found pictures, y; expected one of x, X, images, data",
    "no labels": "expected one of y, Y, labels, targets",
    "lengths differ": "found [39]; expected [40]",
    "nan": "NaN or Inf in image 7",
    "infinite": "NaN or Inf in image 7",
    "object images": "object",
    "object labels": "object",
    "empty data": "at least one image",
    "float labels": "integers or strings",
    "one-hot labels": "argmax",
    "whole numbers as pixels": "uint8",
    "no layout": "reshape",
    "blank label": "empty",
    "label with a newline": "control characters",
}


@pytest.mark.parametrize("kind", WORDS)
def test_bad_data_exit_3_with_one_line_and_change_nothing(kind: str, call: Call, own: Path, tmp_path: Path) -> None:
    path, before = bad_data(kind, tmp_path / "bad.npz"), contents(own)
    for args in (["--store", own], ["--store", tmp_path / "new"], ["--store", own, "--if-known", "new"]):
        code, out, err = call("learn", "--data", path, *args)
        assert (code, out) == (3, "")
        assert WORDS[kind] in one_line(err)
        assert "bad.npz" in err
    code, out, err = call("learn", "--data", path, "--store", own, "--json")
    assert (code, out) == (3, "")
    error = json.loads(one_line(err))["error"]
    assert (error["kind"], error["exit_code"], error["where"]) == ("BadInput", 3, str(path))
    if kind not in ("no labels", "a single array"):
        for command in (["predict", "--batch", path], ["detect", "--use-labels", "--data", path]):
            code, out, err = call(*command, "--store", own)
            assert (code, out, one_line(err) != "") == (3, "", True)
    assert contents(own) == before
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    ("args", "code", "words"),
    [
        ("predict --batch {odd}", 3, "found 1×9×9; expected 1×8×8 or 3×6×6"),
        ("predict --batch {odd} --task pets", 3, "another shape"),
        ("learn --data {odd} --expert e1", 2, "does not fit"),
        ("predict --batch {test} --task pet", 2, "did you mean 'pets'?"),
        ("predict --batch {test} --router los", 2, "did you mean 'loss'?"),
        ("predict --batch {test} --route batches", 2, "did you mean 'batch'?"),
        ("predict --batch {test} --reject 1.5", 2, "--reject"),
        ("predict --batch {test} --output out.xlsx", 2, ".npz, .csv, .json, .ndjson"),
        ("predict --batch {test} --output .", 2, "suffix"),
        ("predict --batch {test} --output nowhere/out.csv", 2, "no such folder"),
        ("predict --batch {test} --output folder.csv", 2, "is a folder"),
        ("detect --data {test} --evidence fishers", 2, "did you mean 'fisher'?"),
        ("learn --data {test} --expert e11", 2, "did you mean 'e1'?"),
        ("learn --data {test} --if-known refined", 2, "did you mean 'refine'?"),
        ("learn --data {test} --arch cnn", 2, "mlp:500,500"),
        ("learn --data {test} --epochs 0", 2, "--epochs"),
        ("learn --data {test} --epochs many", 2, "--epochs"),
        ("learn --data {test} --seed 9223372036854775808", 2, "--seed"),
        ("learn --data {test} --name {blank}", 2, "not a name"),
        ("learn --data {test} --name {long}", 2, "1 to 200 printable"),
        ("learn --data {test} --name {lines}", 2, "not a name"),
        ("prune --task colours --yes", 2, "did you mean 'colour'?"),
        ("prune --expert e11 --yes", 2, "did you mean 'e1'?"),
        ("prune --to-frozen -1 --yes", 2, "0 to 100"),
        ("prune --to-frozen nan --yes", 2, "0 to 100"),
        ("prune --task pets --to-frozen 3 --yes", 2, "one thing"),
        ("prune --task pets --expert e1", 2, "one of --task"),
        ("prune --yes", 2, "one of --task"),
        ("prune --expert e9 --yes", 2, "unknown expert"),
        ("prune --to-frozen 101", 2, "percentage"),
        ("predict --batch {test} --task A", 2, "unknown task"),
        ("learn --data {test} --name pets --if-known new", 2, "exists"),
        ("learn --data {test} --arch mlp:x", 2, "mlp:500,500"),
        ("learn --data {test} --score gradients", 2, "did you mean 'gradient"),
        ("learn --data {test} --if-known maybe", 2, "skip"),
        ("learn --data {test} --augment heavy", 2, "none, light, strong"),
        ("learn --data {test} --arch resnet9:0", 2, "resnet9"),
        ("learn --data {test} --arch lite1", 2, "did you mean 'lite0'?"),
        ("learn --data {test} --expert e9", 2, "unknown expert"),
        ("learn --data {test} --seed 77", 2, "another seed"),
        ("learn --data {test} --device abacus", 2, "device"),
        ("learn", 2, "--data"),
        ("learn --dta x", 2, "--d"),
        ("inspect --format xml", 2, "csv or md"),
        ("inspect --plot frozen.gif", 2, ".png, .svg, .pdf, .html"),
        ("inspect --report report.htm", 2, "expected .html"),
        ("inspect --report nowhere/report.html", 2, "no such folder"),
        ("inspect --plot folder.csv/../folder.png --report folder.csv", 2, "expected .html"),
        ("inspect --verfy", 2, "No such option"),
        ("predict", 2, "no data given"),
        ("predct", 2, "predct"),
        ("tasks mnist5 out --classes 1,2", 2, "did you mean mnist5k?"),
        ("tasks mnist5k out --classes 1;2", 2, "such as 1,5"),
        ("learn --data {test} --expert e1 --store nowhere", 2, "expected one of new"),
        ("learn --data {test} --expert nwe", 2, "did you mean 'new'?"),
        ("learn --data {test} --store {blank}", 2, "--store"),
        ("inspect --store nowhere", 4, "clmoe learn creates it"),
        ("predict --batch {test} --store nowhere", 4, "no store"),
        ("detect --data {test} --store nowhere", 4, "no store"),
        ("prune --gc --yes --store nowhere", 4, "no store"),
        ("prune --task pets --store nowhere", 4, "no store"),
        ("inspect --store folder.csv", 4, "holds no store"),
        ("inspect --store {test}", 6, "not a folder"),
        ("predict --batch {test} --store {test}", 6, "not a folder"),
        ("log --store {test}/store", 6, "not a folder"),
        ("learn --data {test} --store {test}", 6, "not a folder"),
        ("learn --data {test} --store {test}/store", 6, "store"),
        ("predict --batch {test} --output /proc/out.npz", 6, "out.npz"),
        ("predict --batch {test} --output /proc/out.csv", 6, "out.csv"),
        ("inspect --plot /proc/out.png", 6, "out.png"),
        ("inspect --report /proc/out.html", 6, "out.html"),
    ],
)
def test_errors_are_one_line_with_their_exit_code(
    args: str, code: int, words: str, call: Call, shared: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    before = contents(shared)
    (tmp_path / "folder.csv").mkdir()
    texts = {"odd": data["odd"], "test": data["corners.test"], "blank": " ", "long": "n" * 201, "lines": "a\nb"}
    filled = [part.format(**texts) for part in args.split(" ")]
    found, out, err = call(*filled)
    assert (found, out) == (code, ""), err
    assert words in one_line(err)
    found, out, err = call(*filled, "--json")
    assert (found, out) == (code, "")
    assert json.loads(one_line(err))["error"]["exit_code"] == code
    assert contents(shared) == before
    assert {p.name for p in tmp_path.iterdir()} == {"folder.csv"}
    assert not list((tmp_path / "folder.csv").iterdir())


@pytest.mark.parametrize("written", [f"{layout.FORMAT_VERSION + 1}\n", "1.1\n", "", "one\n"])
def test_another_format_is_refused_by_every_command(written: str, call: Call, own: Path, data: dict[str, Path]) -> None:
    (own / "FORMAT").write_text(written)
    before = contents(own)
    for args in (
        ["inspect"],
        ["inspect", "--verify"],
        ["learn", "--data", data["other"], "--lock-timeout", 0],
        ["predict", "--batch", data["pets.test"]],
        ["detect", "--data", data["pets.test"]],
        ["prune", "--task", "pets", "--yes"],
    ):
        code, out, err = call(*args, "--store", own)
        assert (code, out) == (4, "")
        assert "format" in one_line(err).lower()
    assert contents(own) == before


IN_TURN = """
import contextlib, io, json, sys
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
found = []
for command in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = run(app, command)
    found.append((code, out.getvalue(), err.getvalue()))
print(json.dumps(found))
"""


def test_no_permission_is_exit_6(own: Path, data: dict[str, Path], tmp_path: Path) -> None:
    # Root may write anywhere, unless it gives the capability away.
    wrap: tuple[str, ...] = ()
    if os.geteuid() == 0:
        wrap = ("setpriv", "--inh-caps=-all", "--bounding-set=-all")
    before = contents(own)
    folders = [p for p in (own, *own.rglob("*")) if p.is_dir()]
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    try:
        for folder in folders:
            folder.chmod(0o555)
        commands = [
            ["learn", "--data", data["other"], "--store", own, *QUICK, "-q"],
            ["prune", "--task", "pets", "--yes", "--store", own, "-q"],
            ["learn", "--data", data["other"], "--store", closed / "new", "-q"],
            ["predict", "--batch", data["pets.test"], "--output", closed / "out.npz"],
            ["inspect", "--report", closed / "out.html", "--store", "nowhere"],
            ["inspect", "--plot", closed / "out.svg", "--store", "nowhere"],
            ["inspect", "--json", "--store", own],
        ]
        done = spawn(json.dumps(commands, default=str), program=(*wrap, sys.executable, "-c", IN_TURN))
        *refused, (code, out, err) = json.loads(done.stdout)
        assert len(refused) == 6
        for found in refused:
            assert found[:2] == [6, ""], found
            assert "ermission" in one_line(found[2])
        assert (code, json.loads(out)["schema"], err) == (0, "clmoe.inspect/1", "")
    finally:
        for folder in (*folders, closed):
            folder.chmod(0o755)
    assert contents(own) == before


def test_a_locked_store_names_its_holder(call: Call, own: Path, data: dict[str, Path]) -> None:
    before = contents(own)
    with (own / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lock.truncate()
        lock.write("process 4711 on elsewhere")
        lock.flush()
        for args in (["learn", "--data", data["other"]], ["prune", "--task", "pets", "--yes"]):
            code, out, err = call(*args, "--store", own, "--lock-timeout", 0, "-q")
            assert (code, out) == (5, "")
            assert "process 4711 on elsewhere" in one_line(err)
        code, _, err = call("prune", "--gc", "--yes", "--store", own, "--lock-timeout", 0.2)
        assert code == 5
        assert err.splitlines()[1] == "waiting for the store: process 4711 on elsewhere is writing"
        assert json.loads(call("inspect", "--store", own, "--json")[1])["generation"] == 3
    assert contents(own) == before
    assert call("prune", "--task", "pets", "--yes", "--store", own)[0] == 0
    assert f"process {os.getpid()} on {socket.gethostname()}" in (own / "lock").read_text()


def untimed(text: str) -> list[str]:
    """Lines of stderr without the one on what training takes, which only slow machines have."""
    return [line for line in text.splitlines() if not line.startswith("training: ")]


def test_streams_hold_what_they_should(data: dict[str, Path], tmp_path: Path) -> None:
    store = tmp_path / "new"
    done = spawn("learn", "--data", data["corners.train"], "--store", store, *QUICK, "--json", "-v")
    assert done.returncode == 0
    assert json.loads(done.stdout)["status"] == "learned"
    lines = untimed(done.stderr.decode())
    assert lines[0].startswith(f"train 1/{EPOCHS}  loss ")
    assert lines[-1].startswith("onset: no task")
    done = spawn("learn", "--data", data["pets.train"], "--store", store, *QUICK, "-q")
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"learned pets in ")
    assert b"\x1b" not in done.stdout
    before = contents(store)
    done = spawn("learn", "--data", data["pets.test"], "--store", store, "--json")
    assert (done.returncode, json.loads(done.stdout)["status"]) == (0, "known")
    assert contents(store) == before


def test_stdin_is_read_as_npz(data: dict[str, Path]) -> None:
    done = spawn("predict", "--batch", "-", "--json", "-q", input=data["pets.test"].read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    assert json.loads(done.stdout)["accuracy"] > 0.9
    done = spawn("detect", "--data", "-", input=b"")
    assert (done.returncode, done.stdout) == (3, b"")
    assert "stdin" in one_line(done.stderr.decode())


def shell(script: str, **environment: str) -> Done:
    """A shell script in which ``clmoe`` is the program under test."""
    text = f'clmoe() {{ "{sys.executable}" -m clmoe_cli "$@"; }}\n{script}'
    return subprocess.run(
        ["bash", "-c", text], capture_output=True, check=False, timeout=60, env={**os.environ, **environment}
    )


def test_closed_and_full_streams(own: Path) -> None:
    done = shell(f"clmoe prune --task pets --store {own} --json <&-")
    assert (done.returncode, json.loads(done.stdout)["applied"]) == (0, False)
    assert done.stderr.decode().splitlines()[-1] == "nothing was changed: add --yes to act"
    done = shell("clmoe inspect >&-")
    assert (done.returncode, done.stderr) == (0, b"")
    done = shell("clmoe inspect --json >/dev/full")
    assert done.returncode == 6
    assert "No space left" in one_line(done.stderr.decode())
    assert "standard output" in done.stderr.decode()
    for script, code in (("learn --data nowhere.npz", 3), (f"prune --task pets --store {own}", 6)):
        done = shell(f"clmoe {script} 2>/dev/full")
        assert (done.returncode, done.stderr) == (code, b"")
    done = shell("clmoe inspect --json | true; exit ${PIPESTATUS[0]}")
    assert (done.returncode, done.stderr) == (0, b"")


def test_any_encoding_will_do() -> None:
    done = shell("clmoe inspect && clmoe predict --help", PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    assert (done.returncode, done.stderr) == (0, b"")
    assert b"images 1\\xd78\\xd78" in done.stdout


def test_names_and_labels_are_no_markup(call: Call, tmp_path: Path, data: dict[str, Path]) -> None:
    x, y = blobs([(1, 1), (6, 6)], 200, 6)
    labels = np.array(["[/b] :cat:", "[red]é"])
    path, store = save(tmp_path / "odd.npz", x=x, y=labels[y]), tmp_path / "new"
    code, out, err = call("learn", "--data", path, "--store", store, "--name", "[/x]", *QUICK, "-q")
    assert (code, err) == (0, "")
    assert out.startswith("learned [/x] in new expert e1")
    assert "classes:  [/b] :cat:, [red]é" in out
    for args in (["inspect"], ["predict", "--batch", path], ["detect", "--data", path], ["prune", "--task", "[/x]"]):
        code, out, err = call(*args, "--store", store, "-q")
        # That nothing was removed is said however quiet it is to be.
        assert (code, err) == (0, "nothing was changed: add --yes to act\n" if args[0] == "prune" else ""), args
        assert "[/x]" in out
    done = spawn(
        "predict", "--batch", path, "--json", "--store", store, env={**os.environ, "PYTHONIOENCODING": "ascii"}
    )
    assert {p["label"] for p in json.loads(done.stdout)["predictions"]} == set(labels.tolist())


def test_outputs_of_predict(call: Call, data: dict[str, Path], tmp_path: Path) -> None:
    common = ["predict", "--batch", data["pets.test"], "--reject", 0.2]
    printed = result(call, *common)
    rows = printed["predictions"]
    assert [r["index"] for r in rows] == list(range(100))
    assert {"index", *FIELDS} == set(rows[0])
    assert printed["accuracy"] > 0.5
    for suffix in ("npz", "csv", "json", "ndjson"):
        code, out, err = call(*common, "--output", tmp_path / f"out.{suffix}")
        assert (code, out) == (0, "")
        assert err.startswith("wrote 100 predictions")
    assert json.loads((tmp_path / "out.json").read_text()) == printed
    assert [json.loads(line) for line in (tmp_path / "out.ndjson").read_text().splitlines()] == rows
    with (tmp_path / "out.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{k: r[k] for k in ("label", "task", "expert")} for r in table] == [
        {k: r[k] for k in ("label", "task", "expert")} for r in rows
    ]
    for key in ("confidence", "p_value"):
        assert [float(r[key]) for r in table] == [r[key] for r in rows]
    arrays = np.load(tmp_path / "out.npz", allow_pickle=False)
    assert set(arrays) == FIELDS | {"reject"}
    assert float(arrays["reject"]) == 0.2
    for key in FIELDS:
        assert arrays[key].tolist() == [r[key] for r in rows]
    assert arrays["known"].dtype == bool
    assert arrays["known"].tolist() == (arrays["p_value"] >= 0.2).tolist()
    assert 0 < arrays["known"].sum() < 100
    assert set(arrays["label"].tolist()) <= {"1", "5", "cat", "dog"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.csv", "out.json", "out.ndjson", "out.npz"]
    unrejected = result(call, "predict", "--batch", data["pets.test"])["predictions"]
    assert [r["label"] for r in unrejected] == [r["label"] for r in rows]
    assert all(r["known"] is None for r in unrejected)
    assert result(call, "predict", "--batch", data["pets.test"], "--output", tmp_path / "plain.npz")["rejected"] == 0
    plain = np.load(tmp_path / "plain.npz", allow_pickle=False)
    assert plain["known"].all()
    assert np.isnan(plain["reject"])
    assert call("predict", "--batch", data["pets.test"], "--output", tmp_path / "plain.csv")[0] == 0
    with (tmp_path / "plain.csv").open(encoding="utf-8") as file:
        assert {row["known"] for row in csv.DictReader(file)} == {""}


def test_the_same_command_gives_the_same_bytes(call: Call, data: dict[str, Path], tmp_path: Path) -> None:
    for suffix in ("npz", "csv", "json", "ndjson"):
        first, second = tmp_path / f"1.{suffix}", tmp_path / f"2.{suffix}"
        for path in (first, second):
            assert call("predict", "--batch", data["corners.test"], "--output", path, "-q") == (0, "", "")
        assert first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("router", ROUTERS)
@pytest.mark.parametrize("route", ["image", "batch"])
def test_every_router(router: str, route: str, call: Call, data: dict[str, Path]) -> None:
    for name in TASKS:
        found = result(call, "predict", "--batch", data[f"{name}.test"], "--route", route, "--router", router)
        rows = found["predictions"]
        assert (found["router"], found["route"], len(rows)) == (router, route, 100)
        assert all(0 <= r["confidence"] <= 1 and 0 <= r["p_value"] <= 1 for r in rows)
        if route == "batch":
            assert {r["task"] for r in rows} == {name}
            assert found["accuracy"] > 0.9


def test_a_given_task_answers_among_its_classes(call: Call, data: dict[str, Path]) -> None:
    for name, (_, labels, _, _) in TASKS.items():
        found = result(call, "predict", "--batch", data[f"{name}.test"], "--task", name)
        assert found["router"] is None
        assert {r["task"] for r in found["predictions"]} == {name}
        assert {r["label"] for r in found["predictions"]} == set(labels)
        assert found["accuracy"] > 0.9
    foreign = result(call, "predict", "--batch", data["corners.test"], "--task", "pets")
    assert {r["label"] for r in foreign["predictions"]} <= {"cat", "dog"}
    assert foreign["accuracy"] == 0.0


def test_detect_by_exit_code(call: Call, data: dict[str, Path], shared: Path) -> None:
    before = contents(shared)
    for name in TASKS:
        code, out, err = call("detect", "--data", data[f"{name}.test"], "--exit-code", "--json", "-q")
        found = json.loads(out)
        assert (code, err, found["verdict"], found["task"]) == (0, "", "known", name)
        assert found["expert"] == Store.open(shared).manifest.task(name).expert
        assert {"task", "deviation", "p_value", "overlap", "divergence"} <= set(found["tasks"][0])
    code, out, err = call("detect", "--data", data["other"], "--exit-code", "--json")
    assert (code, err) == (10, "")
    assert (json.loads(out)["verdict"], json.loads(out)["task"]) == ("new", None)
    assert call("detect", "--data", data["other"])[0] == 0
    for name, verdict in (("corners.test", "known"), ("other", "new")):
        assert result(call, "detect", "--data", data[name], "--evidence", "gradient")["verdict"] == verdict
    assert contents(shared) == before


def test_detect_by_labels(call: Call, data: dict[str, Path], tmp_path: Path) -> None:
    with np.load(data["corners.test"]) as arrays:
        swapped = save(tmp_path / "swapped.npz", x=arrays["x"], y=6 - arrays["y"])
    found = result(call, "detect", "--data", swapped)
    assert (found["verdict"], found["task"]) == ("known", "corners")
    assert all(0 < row["hamming"] < 1 for row in found["tasks"])
    conflict = result(call, "detect", "--data", swapped, "--use-labels")
    assert (conflict["verdict"], "conflict" in conflict["reason"]) == ("new", True)


def test_damage_is_named(call: Call, own: Path, data: dict[str, Path]) -> None:
    manifest = Store.open(own).manifest
    weights = manifest.expert(manifest.task("corners").expert).weights
    assert weights is not None
    path = layout.object_path(own, weights.sha256, weights.suffix)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    for args in (["predict", "--batch", data["corners.test"], "-q"], ["inspect", "--verify"]):
        code, out, err = call(*args, "--store", own)
        assert (code, out, path.name in err) == (4, "", True)


def test_inspect_counts_what_the_masks_say(shared: Path, call: Call, tmp_path: Path) -> None:
    found = result(call, "inspect")
    opened = Store.open(shared)
    for expert in found["experts"]:
        for layer in expert["layers"]:
            used = np.any([opened.read_subnetwork(t).masks[layer["name"]] for t in expert["tasks"]], axis=0)
            assert (layer["frozen"], layer["parameters"]) == (int(used.sum()), used.size)
            assert layer["frozen_percent"] == pytest.approx(100 * used.mean(), abs=1e-4)
    assert [h["task"] for h in found["history"]] == list(TASKS)
    assert all(found["overlap"][i][i] == 1.0 for i in range(len(TASKS)))
    # What placement measured before a task was learned stands beside what its mask shares now.
    measured = {t["name"]: {m["task"]: m["overlap"] for m in t["measured"]} for t in found["tasks"]}
    homes = {t["name"]: t["expert"] for t in found["tasks"]}
    assert measured["corners"] == {}
    for name, others in measured.items():
        mates = [t["name"] for t in found["tasks"] if homes[t["name"]] == homes[name]]
        assert set(others) == set(mates[: mates.index(name)])
    assert ("overlap by construction" in call("inspect")[1]) == any(measured.values())
    assert {"experts", "tasks", "total"} <= set(found["bytes"])
    assert result(call, "inspect", "--verify")["verified"] is True
    rows = list(csv.DictReader(io.StringIO(call("inspect", "--format", "csv")[1])))
    assert rows[-1]["task"] == "colour"
    assert call("inspect", "--format", "md")[1].startswith("| generation |")
    assert call("inspect", "--plot", tmp_path / "f.png", "-q")[0] == 0
    assert (tmp_path / "f.png").read_bytes()[:4] == b"\x89PNG"


def test_known_data_by_if_known(call: Call, own: Path, data: dict[str, Path], tmp_path: Path) -> None:
    before = contents(own)
    kept = answers(call, own, "pets", data, tmp_path)
    args = ["learn", "--data", data["corners.train"], "--store", own, *QUICK]
    assert (report := result(call, *args))["status"] == "known"
    assert (report["task"], report["new_expert"], contents(own) == before) == ("corners", False, True)
    code, _, err = call(*args[:2], data["corners.test"], *args[3:], "--if-known", "refine", "-q")
    assert (code, "too few" in err) == (3, True)
    report = result(call, *args, "--if-known", "refine")
    assert (report["status"], report["task"]) == ("refined", "corners")
    assert [t.name for t in Store.open(own).manifest.tasks] == list(TASKS)
    report = result(call, *args, "--if-known", "new", "--name", "again")
    assert (report["status"], report["task"], report["onset"]["verdict"]) == ("learned", "again", "known")
    assert [t.name for t in Store.open(own).manifest.tasks] == [*TASKS, "again"]
    assert answers(call, own, "pets", data, tmp_path) == kept
    assert result(call, "inspect", "--verify", "--store", own)["verified"] is True


def answers(call: Call, store: Path, task: str, data: dict[str, Path], folder: Path) -> dict[str, bytes]:
    path = folder / "answers.npz"
    args = ["--batch", data[f"{task}.test"], "--task", task, "--store", store, "--output", path, "-q"]
    assert call("predict", *args) == (0, "", "")
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key].tobytes() for key in FIELDS}


@pytest.mark.campaign
def test_content_hash_depends_on_data_and_seed_alone(call: Call, data: dict[str, Path], tmp_path: Path) -> None:
    def hash_of(store: Path) -> str:
        return str(result(call, "inspect", "--store", store)["content_hash"])

    names = ("corners.test", "pets.test")
    for name, program in zip(names, (ANEW, ()), strict=True):
        args = ("learn", "--data", data[name], "--store", tmp_path / "apart", *QUICK, "-q")
        assert spawn(*args, program=program).returncode == 0
        assert call("learn", "--data", data[name], "--store", tmp_path / "here", *QUICK, "-q")[0] == 0
        options = LearnOptions(arch=ARCH, method=Options(Schedule(epochs=EPOCHS)))
        learn(str(tmp_path / "api"), read_batch(str(data[name]), labels="required"), options)
        result(call, "learn", "--data", data[name], "--store", tmp_path / "seed", *QUICK, "--seed", 1)
    same = {hash_of(tmp_path / store) for store in ("apart", "here", "api")}
    assert len(same) == 1
    assert hash_of(tmp_path / "seed") not in same
    assert result(call, "inspect", "--store", tmp_path / "seed")["seed"] == 1


def test_pruning_frees_exactly_what_no_other_task_uses(
    call: Call, own: Path, data: dict[str, Path], tmp_path: Path
) -> None:
    opened = Store.open(own)
    expert = opened.manifest.task("pets").expert
    mates = [t.name for t in opened.manifest.tasks_of(expert) if t.name != "pets"]
    freed = 0
    for layer, mask in opened.read_subnetwork("pets").masks.items():
        others = [opened.read_subnetwork(name).masks[layer] for name in mates]
        freed += int((mask & ~np.any([np.zeros_like(mask), *others], axis=0)).sum())
    before, kept = contents(own), {name: answers(call, own, name, data, tmp_path) for name in ("corners", "colour")}

    code, out, err = call("prune", "--task", "pets", "--store", own, "--json")
    plan = json.loads(out)
    assert (code, plan["applied"], plan["removed"], plan["freed_parameters"]) == (0, False, ["pets"], freed)
    assert err.splitlines()[0].startswith("plan: remove task pets, expert e2; frees")
    assert contents(own) == before

    done = result(call, "prune", "--task", "pets", "--store", own, "--yes")
    assert done["applied"] is True
    assert {k: done[k] for k in ("removed", "freed_parameters", "frozen_percent")} == {
        k: plan[k] for k in ("removed", "freed_parameters", "frozen_percent")
    }
    seen = result(call, "inspect", "--store", own)
    assert [t["name"] for t in seen["tasks"]] == ["corners", "colour"]
    assert seen["frozen_percent"] == done["frozen_percent"]
    assert {name: answers(call, own, name, data, tmp_path) for name in kept} == kept
    assert call("predict", "--batch", data["pets.test"], "--task", "pets", "--store", own)[0] == 2

    old = opened.manifest.task("pets").subnetwork.sha256
    assert [p for p in own.rglob("*.h5") if p.stem == old]
    code, out, _ = call("prune", "--gc", "--store", own)
    assert [p for p in own.rglob("*.h5") if p.stem == old]
    gone = result(call, "prune", "--gc", "--yes", "--store", own)
    assert (gone["removed"], gone["gc"], gone["freed_parameters"]) == ([], True, 0)
    assert gone["freed_bytes"] > 0
    assert not [p for p in own.rglob("*.h5") if p.stem == old]
    assert len(list((own / "manifests").iterdir())) == 1
    assert {name: answers(call, own, name, data, tmp_path) for name in kept} == kept
    assert result(call, "inspect", "--verify", "--store", own)["verified"] is True
    assert result(call, "learn", "--data", data["pets.train"], "--store", own, *QUICK)["status"] == "learned"


def test_pruning_experts_and_down_to_a_percentage(call: Call, own: Path) -> None:
    last = Store.open(own).manifest.experts[-1].id
    done = result(call, "prune", "--expert", last, "--store", own, "--yes")
    assert (done["removed"], done["removed_experts"]) == (["colour"], [last])
    result(call, "prune", "--to-frozen", "5", "--store", own, "--yes")
    found = result(call, "inspect", "--store", own)
    assert all(e["frozen_percent"] <= 5 for e in found["experts"])
    result(call, "prune", "--to-frozen", "0", "--store", own, "--yes")
    empty = result(call, "inspect", "--store", own)
    assert (empty["tasks"], empty["experts"], empty["frozen_percent"]) == ([], [], 0.0)
    code, _, err = call("predict", "--batch", "x.npz", "--store", own)
    assert code == 3, err


def test_flag_before_environment_before_file_before_default(
    call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: dict[str, Path]
) -> None:
    monkeypatch.delenv("CLMOE_STORE")
    assert "no store: clmoe-store" in call("inspect")[2]
    settings = tmp_path / "clmoe.toml"
    settings.write_text('store = "common"\n[inspect]\nstore = "table"\n')
    assert "no store: table" in call("inspect")[2]
    assert "no store: common" in call("prune", "--gc")[2]
    monkeypatch.setenv("CLMOE_STORE", "environment")
    assert "no store: environment" in call("inspect")[2]
    assert "no store: flag" in call("inspect", "--store", "flag")[2]
    settings.write_text(f'arch = "{ARCH}"\n[learn]\nepochs = 2\nquiet = true\nname = "file"\n')
    learned = ["learn", "--data", data["other"], "--store", "new", "--if-known", "new"]
    assert call(*learned)[::2] == (0, "")
    task = Store.open("new").manifest.task("file")
    assert (task.config["epochs"], Store.open("new").manifest.experts[0].arch) == (2, ARCH)
    monkeypatch.setenv("CLMOE_QUIET", "0")
    monkeypatch.setenv("CLMOE_LEARN_NAME", "environment")
    code, _, err = call(*learned, "--epochs", 1)
    assert (code, untimed(err)[0][:10]) == (0, "train 1/1 ")
    assert Store.open("new").manifest.task("environment").config["epochs"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("store =", "not a valid TOML file"),
        ("stroe = 1", "[stroe]"),
        ("[inspct]", "[inspct]"),
        ("[inspect]\nepochs = 1", "[inspect.epochs]"),
        ("[learn.deep]\nx = 1", "[learn.deep]"),
        ("quiet = [1, 2]", "--quiet"),
    ],
)
def test_wrong_settings_are_named(text: str, words: str, call: Call, tmp_path: Path) -> None:
    (tmp_path / "clmoe.toml").write_text(text)
    code, out, err = call("inspect")
    assert (code, out) == (2, "")
    assert words in one_line(err)


@pytest.mark.parametrize("way", ["environment", "file"])
def test_json_errors_however_json_was_asked_for(
    way: str, call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if way == "environment":
        monkeypatch.setenv("CLMOE_JSON", "1")
    else:
        (tmp_path / "clmoe.toml").write_text("json = true\n")
    assert json.loads(call("inspect")[1])["schema"] == "clmoe.inspect/1"
    code, out, err = call("inspect", "--store", "nowhere")
    assert (code, out) == (4, "")
    assert json.loads(one_line(err))["error"]["kind"] == "StoreMissing"


def test_help_names_every_command(call: Call) -> None:
    code, out, _ = call("--help")
    assert code == 0
    assert all(name in out for name in ("learn", "detect", "predict", "inspect", "prune", "tasks"))


def test_light_commands_import_no_torch() -> None:
    code = """
import contextlib, io, sys
from clmoe_cli.cli.app import main
for args in (["--help"], ["--version"], ["inspect"], ["inspect", "--json"], ["learn", "--help"], ["prune", "--gc"]):
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        main(args)
    assert out.getvalue(), args
    assert "torch" not in sys.modules, args
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
    done = spawn("--version", program=ANEW)
    assert (done.returncode, done.stdout.startswith(b"clmoe "), done.stderr) == (0, True, b"")


def test_completion_imports_no_torch() -> None:
    environment = {**os.environ, "_CLMOE_COMPLETE": "complete_bash", "COMP_WORDS": "clmoe in", "COMP_CWORD": "1"}
    code = (
        "import sys; sys.argv[0] = 'clmoe'\n"
        "from clmoe_cli.cli.app import main\n"
        "try:\n    main([])\nfinally:\n    print('torch' in sys.modules, file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment, timeout=60, text=True
    )
    assert done.stdout.split() == ["inspect"]
    assert done.stderr == "False\n"


def test_tracebacks_only_when_asked_for(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    one_line(call("inspect", "--store", "nowhere")[2])
    monkeypatch.setenv("CLMOE_DEBUG", "1")
    code, out, err = call("inspect", "--store", "nowhere")
    assert (code, out) == (4, "")
    assert err.startswith("Traceback (most recent call last)")
    assert err.splitlines()[-1].startswith("clmoe: no store: nowhere")


def test_a_bug_is_exit_1_and_one_line(monkeypatch: pytest.MonkeyPatch, call: Call) -> None:
    def broken(*args: object, **kwargs: object) -> None:
        raise RuntimeError("two\nlines")

    monkeypatch.setattr("clmoe_cli.api.inspect.inspect", broken)
    code, out, err = call("inspect")
    assert (code, out) == (1, "")
    assert "bug in clmoe: RuntimeError: two lines" in one_line(err)


@pytest.mark.parametrize("extra", some(((), ("--json",)), ()))
def test_interruption_exits_130(extra: tuple[str, ...], own: Path, data: dict[str, Path]) -> None:
    before = contents(own)
    args = ["learn", "--data", data["other"], "--store", own, "--arch", "mlp:900,900", "--epochs", 1000, *extra]
    child = subprocess.Popen(
        # Once from the start of the interpreter on.
        [*((forking.served() / "clmoe",) if extra else ANEW), *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A job in the background ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )
    assert child.stderr is not None
    said = b""
    while b"train 2/" not in said:  # what the first epoch had reached is in the store by then
        assert select.select([child.stderr], [], [], 60)[0]
        said += os.read(child.stderr.fileno(), 1 << 16)
    child.send_signal(signal.SIGINT)
    out, err = child.communicate(timeout=60)
    err = said + err
    lines = [line for line in untimed(err.decode()) if not line.startswith("train ")]
    assert (child.returncode, out, len(lines)) == (130, b"", 1), err
    if extra:
        assert json.loads(lines[0])["error"]["exit_code"] == 130
    else:
        assert lines[0].startswith("clmoe: interrupted; the store is as it was before this command; run the same")
    after = {path: data for path, data in contents(own).items() if not path.startswith("checkpoints/")}
    assert after == before
    with (own / "lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
