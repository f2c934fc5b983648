"""clmoe beside Avalanche, hat-cl, river and scikit-learn: accuracy, seconds, bytes, lines of user code, and a kill.

    python benchmarks/peers.py --mnist MNIST_ROOT --photos DIR --venvs VENVS --install --out OUT

Each peer is its public package, in an environment of its own under ``--venvs`` (made by ``--install`` where it is
missing), and the shortest script that a user of it would write: ``benchmarks/peers/with_*.py``. A script loads what it
has saved, learns one task and saves, or loads and predicts; every task is a process. clmoe is its own two commands,
with their defaults. All of them get the same tasks one after another, each once, and one thread. hat-cl 0.1.1 is for
Python 3.9 and 3.10 (``--old-python``). A peer that cannot be run is left out, and the table says why.

Work: all of MNIST as the six tasks of P6, whose digits 5 and 2 are in two tasks each, and as five (Split-MNIST);
EfficientNet-Lite0 vectors of CIFAR-10 in five tasks and of CIFAR-100 in ten (``cifar10-lite0.train.npz``, …). The
peers' files are vectors ready for use: pixels from 0 to 1, columns of Lite0 standardised by the first task's. clmoe
reads pictures and vectors as they are. The number of classes is told to the peers, and to hat-cl the task.

What a peer has to choose (``choices``) is chosen by the figure on a tenth of the training inputs, held out; P6 takes
the choice of Split-MNIST. Test inputs are for the final figures only. Accuracy: share of all test inputs, no task
given; for hat-cl the mean over tasks, each given. Seconds: processor time of the processes that learn the tasks, their
start included, and of the one that predicts all test inputs. Bytes: what lies on disk after the last task. Lines: of
code in the script, without blank lines, comments and docstrings; of clmoe the two commands.

Killed: three tasks of Split-MNIST with ``--kill-images`` images each. ``learn`` of the third is killed (SIGKILL) after
three quarters of its processor time (sooner if it saves by then), and twice while it saves: a script at the middle and
at the last of the system calls that write its file (with strace), clmoe when a new object and when the new manifest is
in its store. Then: does the state load; are the answers for the first two tasks those from before; does the same
``learn`` run again, in what share of its processor time, and are its answers those of a run that was not killed. Peers
of one script are killed once.

Prints a Markdown table and writes ``peers.json`` after every figure. A run that was stopped goes on from it.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tokenize
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import P6, SPLIT, Data, Places, digits, vectors

Json = dict[str, Any]
Array = np.ndarray[Any, Any]

HERE = Path(__file__).parent
SCRIPTS = HERE / "peers"
CLMOE = (
    "{python} -m clmoe_cli learn --data {data} --store {state} --seed {seed}",
    "{python} -m clmoe_cli predict --batch {data} --store {state} --output {answers}",
)
HELD_OUT = 0.1
MOST_TO_CHOOSE = 10000
"""Training inputs that choices are made with."""
CHOICE_SEED = 1000
KILL_AT = (0.75, 0.6, 0.45)
"""Shares of the processor time of ``learn`` at which it is killed: the first at which it does not yet save."""
CALLS = ("write", "writev", "pwrite64")
WORK = {
    "P6": digits(P6),
    "Split-MNIST": digits(SPLIT),
    "CIFAR-10 Lite0": vectors("cifar10-lite0", 5),
    "CIFAR-100 Lite0": vectors("cifar100-lite0", 10),
}
LIKE = {"P6": "Split-MNIST", "CIFAR-100 Lite0": "CIFAR-10 Lite0"}
"""Data whose choices are those of other data."""
ENVIRONMENTS = {
    "avalanche": ("avalanche-lib", "torch", "torchvision"),
    "hat": ("hat-cl", "scipy", "pandas", "numpy<2"),
    "river": ("river", "pandas"),
    "sklearn": ("scikit-learn",),
}
"""Public packages of each environment; the first is the peer. hat-cl does not name all that it imports."""


@dataclass(frozen=True)
class Peer:
    """``script``: file in ``benchmarks/peers``, empty for clmoe. ``choices``: settings to choose from, by kind of data.

    ``seeded``: other seeds give other figures. ``kept``: inputs that the state holds.
    """

    name: str
    script: str = ""
    environment: str = ""
    choices: dict[str, list[Json]] = field(default_factory=dict)
    task_given: bool = False
    seeded: bool = True
    kept: int = 0


def network(strategy: str, rates: list[float], **arguments: list[Any]) -> dict[str, list[Json]]:
    """Settings of a strategy of Avalanche: learning rates × values of one argument × epochs."""
    values = [{key: value} for key, found in arguments.items() for value in found] or [{}]
    return {
        kind: [
            {"strategy": strategy, "lr": lr, "epochs": n, "arguments": own}
            for lr in rates
            for own in values
            for n in epochs[: 1 if strategy != "Replay" else 2]
        ]
        for kind, epochs in (("pixels", (1, 3)), ("vectors", (3, 10)))
    }


def alike(*settings: Json) -> dict[str, list[Json]]:
    return {"pixels": list(settings), "vectors": list(settings)}


def hat(epochs: int) -> list[Json]:
    return [{"lr": lr, "penalty": 0.75, "epochs": epochs} for lr in (1e-2, 1e-3)]


def bayes(threshold: float) -> list[Json]:
    """river's classifiers that learn from batches."""
    return [
        {"model": "GaussianNB"},
        {"model": "BernoulliNB", "arguments": {"true_threshold": threshold}},
        *({"model": "logistic", "lr": lr} for lr in (0.1, 0.01)),
    ]


PEERS = (
    Peer("clmoe"),
    Peer(
        "Avalanche replay, 2,000 inputs", "with_avalanche", "avalanche",
        network("Replay", [1e-3, 1e-4], mem_size=[2000]), kept=2000,
    ),
    Peer("Avalanche EWC", "with_avalanche", "avalanche", network("EWC", [1e-3], ewc_lambda=[100, 1e4])),
    Peer("Avalanche fine-tuning", "with_avalanche", "avalanche", network("Naive", [1e-3])),
    Peer(
        "Avalanche SLDA", "with_avalanche_slda", "avalanche", alike({"shrinkage": 1e-4}, {"shrinkage": 1e-2}),
        seeded=False,
    ),
    Peer("HAT (hat-cl)", "with_hat_cl", "hat", {"pixels": hat(3), "vectors": hat(8)}, task_given=True),
    Peer("river", "with_river", "river", {"pixels": bayes(0.5), "vectors": bayes(0.0)}, seeded=False),
    Peer(
        "scikit-learn SGD", "with_sklearn", "sklearn",
        alike(*({"model": "sgd", "alpha": alpha, "average": mean} for alpha in (1e-4, 1e-2) for mean in (False, True))),
    ),
    Peer(
        "scikit-learn GaussianNB", "with_sklearn", "sklearn",
        alike(*({"model": "bayes", "smoothing": share} for share in (1e-9, 1e-2, 1e-1))), seeded=False,
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Ran:
    """A process that has ended: its code, processor and wall seconds, and what it printed on stderr."""

    code: int
    seconds: float
    wall: float
    said: str


def processor() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def environment(path: str) -> dict[str, str]:
    """One thread; ``path``: where Python looks first."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "PYTHONPATH": path,
    }


def ran(command: list[str], folder: Path, until: Callable[[float], bool] | None = None) -> Ran:
    """``until``: told the processor seconds of the process; once it is true, that and all it started get SIGKILL."""
    path = str(HERE.parent) if "clmoe_cli" in command else ""
    started, before = time.monotonic(), processor()
    with tempfile.TemporaryFile("w+") as said:
        running = subprocess.Popen(
            command, cwd=folder, stdout=subprocess.DEVNULL, stderr=said, env=environment(path), start_new_session=True
        )
        while until is not None and running.poll() is None:
            fields = Path(f"/proc/{running.pid}/stat").read_text().rsplit(")", 1)[1].split()
            if until((int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")):
                os.killpg(running.pid, signal.SIGKILL)
                break
            time.sleep(0.001)
        code = running.wait()
        said.seek(0)
        return Ran(code, processor() - before, time.monotonic() - started, said.read())


@dataclass(frozen=True)
class User:
    """A peer with its interpreter and setting: the commands of its user. State lies in the folder that each is given.

    ``data``: folder of the files of this peer.
    """

    peer: Peer
    python: str
    setting: Json
    data: Path

    def command(self, verb: str, folder: Path, file: Path, answers: Path | None = None) -> list[str]:
        state = folder / "state"
        if self.peer.script:
            own = [str(state), str(file), *([str(answers)] if answers else []), json.dumps(self.setting)]
            return [self.python, str(SCRIPTS / f"{self.peer.script}.py"), verb, *own]
        words = CLMOE[verb == "predict"].split()
        known = {"python": self.python, "data": file, "state": state, "answers": answers, **self.setting}
        return [word.format(**known) for word in words]

    def learn(self, folder: Path, number: int, until: Callable[[float], bool] | None = None) -> Ran:
        return ran(self.command("learn", folder, self.data / f"task{number}.npz"), folder, until)

    def predict(self, folder: Path, name: str) -> tuple[Array | None, Ran]:
        """Labels for a test file, None where the process failed."""
        answers = folder.parent / f"{folder.name}.answers.{'npy' if self.peer.script else 'npz'}"
        answers.unlink(missing_ok=True)
        done = ran(self.command("predict", folder, self.data / name, answers), folder)
        if done.code or not answers.exists():
            return None, done
        found = np.load(answers)
        return (found if self.peer.script else found["label"]), done


def checked(done: Ran, what: str) -> Ran:
    if done.code:
        raise SystemExit(f"{what}: exit {done.code}: {done.said[-2000:]}")
    return done


def write(folder: Path, data: Data, most: int = 0) -> int:
    """Files of a data set, for clmoe in ``own`` and for the peers in ``vectors``; how many tasks there are.

    ``most``: so many images of a task at most, and the test file ``two.test.npz`` of the first two tasks; 0 for all.
    """
    _, train_y = np.unique(data.train[1], return_inverse=True)
    names, test_y = np.unique(data.test[1], return_inverse=True)
    classes = [np.searchsorted(names, list(task)) for task in data.tasks]
    own = [np.flatnonzero(np.isin(train_y, task))[: most or None] for task in classes]
    parts = {"own": (data.train[0], data.test[0])}
    if data.train[0].dtype == np.uint8:
        train, test = (np.float32(x.reshape(len(x), -1)) / 255 for x in parts["own"])
    else:
        first = data.train[0][own[0]]
        mean, deviation = first.mean(0), first.std(0) + 1e-3 * first.std()
        train, test = (np.float32((x - mean) / deviation) for x in parts["own"])
    parts["vectors"] = train, test
    for kind, (x, asked) in parts.items():
        (folder / kind).mkdir(parents=True)
        for number, index in enumerate(own, 1):
            # clmoe takes only what it knows by name.
            task = {} if kind == "own" else {"task": number - 1}
            np.savez(folder / kind / f"task{number}.npz", x=x[index], y=train_y[index], **task)
            index = np.isin(test_y, classes[number - 1])
            np.savez(folder / kind / f"task{number}.test.npz", x=asked[index], y=test_y[index], **task)
        np.savez(folder / kind / "all.test.npz", x=asked, y=test_y)
        if most:
            index = np.isin(test_y, np.concatenate(classes[:2]))
            np.savez(folder / kind / "two.test.npz", x=asked[index], y=test_y[index], task=0)
    return len(own)


def held_out(data: Data) -> Data:
    """Training inputs alone, some of them if they are many: nine tenths to learn, a tenth to ask."""
    order = np.random.default_rng(CHOICE_SEED).permutation(len(data.train[1]))[:MOST_TO_CHOOSE]
    asked, learned = np.split(order, [round(HELD_OUT * len(order))])
    (x, y) = data.train
    return replace(data, train=(x[learned], y[learned]), test=(x[asked], y[asked]))


def common(data: Data, seed: int) -> Json:
    """What every script is told."""
    columns = int(np.prod(data.train[0].shape[1:]))
    return {"seed": seed, "classes": len(np.unique(data.test[1])), "columns": columns, "tasks": len(data.tasks)}


def choose(peer: Peer, python: str, data: Data, folder: Path) -> list[Json]:
    """What each setting has on held-out training inputs."""
    settings = peer.choices["pixels" if data.train[0].dtype == np.uint8 else "vectors"]
    told = [{**common(data, CHOICE_SEED), **setting} for setting in settings]
    asked = sorted((folder / "vectors").glob("task*.test.npz" if peer.task_given else "all.test.npz"))
    command = [python, str(SCRIPTS / "choose.py"), peer.script, json.dumps(told), str(folder / "vectors")]
    done = subprocess.run(
        [*command, *(path.name for path in asked)], check=False, capture_output=True, text=True, env=environment("")
    )
    if done.returncode:
        raise SystemExit(f"choices of {peer.name}: exit {done.returncode}: {done.stderr[-2000:]}")
    return [{"setting": s, **row} for s, row in zip(settings, json.loads(done.stdout), strict=True)]


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(user: User, tasks: int, folder: Path) -> Json:
    """Accuracy, seconds and bytes of all tasks one after another."""
    folder.mkdir(parents=True)
    learned = [
        checked(user.learn(folder, number), f"{user.peer.name}, task {number}") for number in range(1, tasks + 1)
    ]
    names = [f"task{n}.test.npz" for n in range(1, tasks + 1)] if user.peer.task_given else ["all.test.npz"]
    right, asked = [], []
    for name in names:
        labels, done = user.predict(folder, name)
        asked.append(checked(done, f"{user.peer.name}, {name}"))
        right.append(float(np.mean(labels == np.load(user.data / name)["y"])))
    found = {
        "accuracy": float(np.mean(right)),
        "learn_seconds": sum(done.seconds for done in learned),
        "learn_wall": sum(done.wall for done in learned),
        "predict_seconds": sum(done.seconds for done in asked),
        "bytes": size(folder),
        "setting": user.setting,
    }
    shutil.rmtree(folder)
    return found


def after(user: User, folder: Path, before: list[Array | None], whole: list[Array | None], seconds: float) -> Json:
    """What is left after a kill: does it load, does it answer as before, and what the same ``learn`` does then."""
    names = asked_names(user)
    kept = [user.predict(folder, name)[0] for name in names[:-1]]
    again = user.learn(folder, 3)
    end = [user.predict(folder, name)[0] for name in names]

    def same(a: list[Array | None], b: list[Array | None]) -> bool:
        return all(x is not None and y is not None and np.array_equal(x, y) for x, y in zip(a, b, strict=True))

    return {
        "loads": all(answers is not None for answers in kept),
        "answers_as_before": same(kept, before),
        "or_as_after": same(kept, whole[:-1]),
        "learns_again": again.code == 0,
        "share_of_seconds": again.seconds / seconds,
        "same_end": same(end, whole),
    }


def asked_names(user: User) -> list[str]:
    """Test files of the first two tasks, and last of the third or of all."""
    given = [f"task{n}.test.npz" for n in (1, 2, 3)]
    return given if user.peer.task_given else ["two.test.npz", "all.test.npz"]


def kill(user: User, folder: Path) -> Json:
    """Kills ``learn`` of the third task before its end and while it saves; each time what is left."""
    before = folder / "before"
    before.mkdir(parents=True)
    for number in (1, 2):
        checked(user.learn(before, number), f"{user.peer.name}, task {number}")
    names = asked_names(user)
    kept = [user.predict(before, name)[0] for name in names[:-1]]
    whole = shutil.copytree(before, folder / "whole")
    full = checked(user.learn(whole, 3), user.peer.name)
    end = [user.predict(whole, name)[0] for name in names]

    def killed(act: Callable[[Path], Ran]) -> Json:
        own = shutil.copytree(before, folder / "own")
        done = act(own)
        hit = done.code in (-signal.SIGKILL, 128 + signal.SIGKILL)
        files = [path for path in before.rglob("*") if path.is_file() and path.name != "lock"]
        touched = any((own / path.relative_to(before)).read_bytes() != path.read_bytes() for path in files)
        found = {"killed": hit, "touched": touched, **after(user, own, kept, end, full.seconds)}
        shutil.rmtree(own)
        return found

    for share in KILL_AT:
        late = {
            "at": share,
            **killed(lambda own, used=share * full.seconds: user.learn(own, 3, lambda now: now >= used)),
        }
        if not late["touched"]:
            break
    saving = [killed(act) for act in (in_a_store(user) if user.peer.script == "" else in_a_file(user, before))]
    shutil.rmtree(folder)
    return {"seconds": full.seconds, "learning": late, "saving": saving}


def in_a_store(user: User) -> list[Callable[[Path], Ran]]:
    """Kills ``clmoe learn`` when the first new object of its commit is there, and when the new manifest is."""

    def act(own: Path, part: str) -> Ran:
        there = {path for path in (own / "state" / part).rglob("*") if path.is_file()}
        return user.learn(
            own, 3, lambda _: any(p.is_file() and p not in there for p in (own / "state" / part).rglob("*"))
        )

    return [lambda own: act(own, "objects"), lambda own: act(own, "manifests")]


def in_a_file(user: User, before: Path) -> list[Callable[[Path], Ran]]:
    """Kills a script at the middle and at the last system call that writes its file; none where strace is missing."""
    strace = shutil.which("strace")
    if strace is None:
        return []
    command = [strace, "-f", "-o"]

    def traced(own: Path, log: Path, *options: str) -> Ran:
        file = next(own.iterdir())
        filtered = ["-P", str(file), "-e", f"trace={','.join(CALLS)}", *options]
        return ran([*command, str(log), *filtered, *user.command("learn", own, user.data / "task3.npz")], own)

    with tempfile.TemporaryDirectory(dir=before.parent) as scratch:
        own, log = Path(scratch) / "own", Path(scratch) / "log"
        shutil.copytree(before, own)
        checked(traced(own, log), "strace")
        calls = re.findall(rf"^\d+ +({'|'.join(CALLS)})\(", log.read_text(), flags=re.MULTILINE)

    def act(own: Path, index: int) -> Ran:
        number = calls[: index + 1].count(calls[index])
        return traced(own, Path(os.devnull), "-e", f"inject={calls[index]}:signal=KILL:when={number}")

    return [lambda own: act(own, len(calls) // 2), lambda own: act(own, len(calls) - 1)]


def code_lines(source: str) -> int:
    """Lines with code: no blank lines, comments or docstrings."""
    skipped = {
        tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER,
    }  # fmt: skip
    lines: set[int] = set()
    opens = True
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in skipped:
            opens |= token.type != tokenize.COMMENT
            continue
        if not (opens and token.type == tokenize.STRING):
            lines.update(range(token.start[0], token.end[0] + 1))
        opens = False
    return len(lines)


def lines_of(peer: Peer) -> int:
    return code_lines((SCRIPTS / f"{peer.script}.py").read_text()) if peer.script else len(CLMOE)


def interpreter(peer: Peer, venvs: Path | None) -> str:
    """The Python of a peer: its environment's, or this one for clmoe and where there are no environments."""
    return sys.executable if venvs is None or not peer.script else str(venvs / peer.environment / "bin" / "python")


def install(venvs: Path, peers: list[Peer], old_python: str) -> None:
    for name in dict.fromkeys(peer.environment for peer in peers if peer.environment):
        if (venvs / name / "bin" / "python").exists():
            continue
        base = old_python if name == "hat" else sys.executable
        subprocess.run([base, "-m", "venv", str(venvs / name)], check=True)
        subprocess.run([str(venvs / name / "bin" / "pip"), "install", "--quiet", *ENVIRONMENTS[name]], check=True)


def versions(python: str, environment: str) -> Json | None:
    """Versions of Python and the packages there; None where the peer is not installed."""
    names = [re.split("[<=>]", package)[0] for package in ENVIRONMENTS.get(environment, ("torch", "numpy"))]
    ask = (
        "import sys, json, importlib.metadata as m;"
        f"print(json.dumps({{'python': sys.version.split()[0], **{{n: m.version(n) for n in {names!r}}}}}))"
    )
    try:
        done = subprocess.run([python, "-c", ask], check=False, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return None if done.returncode else json.loads(done.stdout)


def left(found: Json) -> str:
    """A kill in words."""
    learning = found["learning"]
    if not (learning["loads"] and learning["answers_as_before"]):
        return "learning: earlier tasks lost"
    goes_on = learning["learns_again"] and learning["share_of_seconds"] < 0.8
    words = f"learning: task {'goes on' if goes_on else 'starts again'}"
    saving = found.get("saving", [])
    lost = sum(not (kept["answers_as_before"] or kept["or_as_after"]) for kept in saving)
    if saving:
        words += (
            f"; saving: {f'all lost, {lost} of {len(saving)}' if lost else f'whole, {len(saving)} of {len(saving)}'}"
        )
    return words


def summary(result: Json) -> str:
    """Markdown: a row for each peer. Seconds and bytes are those of the first seed."""
    order = list(WORK)
    names = list(dict.fromkeys(name for row in result["peers"] for name in row.get("data", {})))
    names.sort(key=lambda name: order.index(name) if name in order else len(order))
    header = ["method", "inputs kept", "task id", *names]
    header += [f"seconds, {name}" for name in names] + [f"MB, {name}" for name in names] + ["lines", "killed"]
    lines = [header, ["---"] * len(header)]
    for row in result["peers"]:
        cells = [row["name"], f"{row['kept']:,}" if row["kept"] else "none", "needed" if row["task_given"] else "no"]
        if "absent" in row:
            cells += [row["absent"], *[""] * (len(header) - 4)]
        else:
            runs = [row["data"].get(name, []) for name in names]
            cells += [", ".join(f"{100 * run['accuracy']:.2f}" for run in found) for found in runs]
            cells += [f"{found[0]['learn_seconds']:.0f}" if found else "" for found in runs]
            cells += [f"{found[0]['bytes'] / 1e6:.2f}" if found else "" for found in runs]
            cells += [str(row["lines"]), left(row["killed"]) if row["killed"] else ""]
        lines.append(cells)
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def measured(options: argparse.Namespace, chosen_peers: list[Peer], works: dict[str, Data]) -> Json:
    """All figures. What is done so far is written after each of them, and not done again by the next run."""
    scratch, path = (options.out / "scratch").resolve(), options.out / "peers.json"
    shutil.rmtree(scratch, ignore_errors=True)
    known = {row["name"]: row for row in json.loads(path.read_text())["peers"]} if path.exists() else {}
    result: Json = {"seeds": options.seeds, "kill_images": options.kill_images, "peers": []}
    present: list[tuple[Peer, str, Json]] = []
    for peer in chosen_peers:
        python = interpreter(peer, options.venvs)
        row: Json = {"name": peer.name, "kept": peer.kept, "task_given": peer.task_given, "lines": lines_of(peer)}
        row["versions"] = versions(python, peer.environment)
        result["peers"].append(row)
        if row["versions"] is None:
            row["absent"] = f"not run: {ENVIRONMENTS[peer.environment][0]} is not installed"
            continue
        row.update({key: known.get(peer.name, {}).get(key, {}) for key in ("data", "choices", "killed")})
        present.append((peer, python, row))

    def save(text: str) -> None:
        path.write_text(json.dumps(result, indent=1))
        print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)

    for name, data in sorted(works.items(), key=lambda item: item[0] in LIKE):
        tasks = write(scratch / "data", data)
        like = LIKE[name] if LIKE.get(name) in works else name
        if like == name:
            write(scratch / "choice", held_out(data))
        for peer, python, row in present:
            if peer.script and like not in row["choices"]:
                row["choices"][like] = choose(peer, python, data, scratch / "choice")
                save(f"{like}, {peer.name}: {chosen(row, like)}")
            runs = row["data"].setdefault(name, [])
            for seed in (options.seeds if peer.seeded else options.seeds[:1])[len(runs) :]:
                setting = {**common(data, seed), **chosen(row, like)} if peer.script else {"seed": seed}
                found = measure(User(peer, python, setting, scratch / "data" / kind(peer)), tasks, scratch / "state")
                runs.append(found)
                save(f"{name}, {peer.name}: {100 * found['accuracy']:.2f} %, {found['learn_seconds']:.0f} s")
        shutil.rmtree(scratch / "data")
        shutil.rmtree(scratch / "choice", ignore_errors=True)
    name, data = next(iter(sorted(works.items(), key=lambda item: item[0] in LIKE)))
    if options.kill_images:
        write(scratch / "data", replace(data, tasks=data.tasks[:3]), options.kill_images)
        for peer, python, row in present:
            first = next(other for other in present if other[0].script == peer.script)
            if row["killed"] or first[0] is not peer:
                row["killed"] = row["killed"] or first[2]["killed"]
                continue
            setting = {**common(data, 0), **chosen(row, name)} if peer.script else {"seed": 0}
            row["killed"] = kill(User(peer, python, setting, scratch / "data" / kind(peer)), scratch / "kill")
            save(f"{peer.name}: {left(row['killed'])}")
    shutil.rmtree(scratch, ignore_errors=True)
    return result


def kind(peer: Peer) -> str:
    """Folder of the files of a peer."""
    return "vectors" if peer.script else "own"


def chosen(row: Json, name: str) -> Json:
    """The setting of the highest figure on held-out training inputs."""
    return max(row["choices"][name], key=lambda tried: tried["held_out"])["setting"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mnist", type=Path, help="root of torchvision's MNIST")
    parser.add_argument("--photos", type=Path, help="folder of cifar10-lite0.train.npz and the like")
    parser.add_argument("--venvs", type=Path, help="folder of the environments; without it this Python runs all peers")
    parser.add_argument("--install", action="store_true", help="make the environments that are missing")
    parser.add_argument("--old-python", default="python3.10", help="Python 3.9 or 3.10, for hat-cl")
    parser.add_argument("--peers", nargs="+", choices=[peer.name for peer in PEERS], help="default: all")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--kill-images", type=int, default=2000, help="images of a task that is killed; 0: no kills")
    parser.add_argument("--out", type=Path, default=Path("bench-out/peers"))
    options = parser.parse_args()
    if options.mnist is None and options.photos is None:
        parser.error("--mnist, --photos or both")
    chosen = [peer for peer in PEERS if options.peers is None or peer.name in options.peers]
    if options.install:
        if options.venvs is None:
            parser.error("--install needs --venvs")
        install(options.venvs, chosen, options.old_python)
    options.out.mkdir(parents=True, exist_ok=True)
    places = Places(options.photos, options.mnist, options.out)
    has = {True: options.photos, False: options.mnist}
    works = {name: load(places) for name, load in WORK.items() if has["Lite0" in name] is not None}
    result = measured(options, chosen, works)
    (options.out / "peers.json").write_text(json.dumps(result, indent=1))
    print(summary(result))


if __name__ == "__main__":
    main()
