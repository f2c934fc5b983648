"""Progress: what is said when, on a terminal and elsewhere; that nothing else changes by it. No test waits."""

from __future__ import annotations

import json
import math
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import forking
import numpy as np
import pytest
from campaigns import some
from pictures import bright_rows as bars

from clmoe_cli.api.detect import detect
from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import EVERY, predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.api.segment import learn_stream
from clmoe_cli.api.tasks import TasksOptions, make_tasks
from clmoe_cli.data import Batch, read_batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.subnetwork.training import Epoch, Quality, Schedule
from clmoe_cli.report.progress import Progress, duration
from clmoe_cli.runtime.events import Step
from store_schema import Store

OPTIONS = LearnOptions(arch="mlp:16,16", method=Options(Schedule(epochs=2)))
READING = "reading"


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def epoch(phase: str, number: int, of: int) -> Epoch:
    return Epoch(phase, number, of, 0.25, Quality(0.5, 0.975))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def shown(clock: Clock) -> Progress:
    return Progress(quiet=False, terminal=False, clock=clock)


@pytest.fixture
def after(clock: Clock, shown: Progress, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """Lets seconds pass, then tells; the lines that have been said since."""

    def pass_and_tell(seconds: float, *told: Step | Epoch) -> list[str]:
        clock.now += seconds
        for one in told:
            (shown.step if isinstance(one, Step) else shown.epoch)(one)
        shown.tick()
        out, err = capsys.readouterr()
        assert out == ""
        return err.splitlines()

    return pass_and_tell


After = Callable[..., list[str]]


def test_a_step_within_a_second_says_nothing(after: After) -> None:
    assert after(0, Step(READING, 0, 20, "pictures")) == []
    assert after(0.9, Step(READING, 10, 20, "pictures")) == []
    assert after(5, Step(READING, 20, 20, "pictures")) == []
    assert after(60) == []


def test_a_long_step_has_a_line_after_a_second_and_then_every_ten(after: After) -> None:
    assert after(0, Step(READING, 0, 20_000, "pictures")) == []
    assert after(1, Step(READING, 1000, 20_000, "pictures")) == [
        "reading: 1000/20000 pictures, 1000 a second, about 19 s left"
    ]
    assert after(9, Step(READING, 9000, 20_000, "pictures")) == []
    assert after(1, Step(READING, 10_000, 20_000, "pictures")) == [
        "reading: 10000/20000 pictures, 909 a second, about 11 s left"
    ]
    # Nothing new is heard, and time goes on.
    assert after(10) == ["reading: 10000/20000 pictures, 909 a second, about 1 s left"]
    assert after(10) == ["reading: 10000/20000 pictures, 909 a second"]


def test_what_cannot_be_counted(after: After) -> None:
    assert after(0, Step("loading resnet50", 0, 1)) == []
    assert after(1) == ["loading resnet50 …"]
    assert after(0, Step("loading resnet50", 1, 1)) == []
    assert after(0, Step("receiving stdin", 0, None, "MiB")) == []
    assert after(2, Step("receiving stdin", 700, None, "MiB")) == ["receiving stdin: 700 MiB"]


def test_a_step_that_comes_again_soon_is_not_said_again(after: After) -> None:
    after(0, Step("scores", 0, 10, "images"))
    assert len(after(2, Step("scores", 5, 10, "images"))) == 1
    assert after(0, Step("scores", 10, 10, "images"), Step("scores", 0, 10, "images")) == []
    assert after(2, Step("scores", 5, 10, "images")) == []
    assert after(7, Step("scores", 5, 10, "images")) == []
    assert len(after(1, Step("scores", 6, 10, "images"))) == 1


def test_a_step_within_a_step_leaves_the_outer_one_as_it_was(after: After) -> None:
    after(0, Step("tasks", 0, 4, "tasks"))
    after(0.5, Step("scores", 0, 2, "images"))
    after(0.1, Step("scores", 2, 2, "images"))
    assert after(0.5, Step("tasks", 1, 4, "tasks")) == ["tasks: 1/4 tasks, about 3 s left"]


def test_a_line_says_where_no_image_was_held_out(after: After) -> None:
    seen = replace(epoch("train", 1, 40), seen=True)
    (line,) = after(2, Step("train", 60, 60, "images", (1, 40)), seen)
    assert line.startswith("train 1/40  loss 0.2500  training images 0.5000, 97.50 %")


def test_a_line_an_epoch_with_the_time_that_is_left_at_most(after: After) -> None:
    state = "loss 0.2500  validation 0.5000, 97.50 %"
    assert after(0, Step("train", 0, 60, "images", (1, 40))) == []
    assert after(2, Step("train", 60, 60, "images", (1, 40)), epoch("train", 1, 40)) == [
        f"train 1/40  {state}, at most 78 s left"
    ]
    assert after(2, epoch("train", 2, 40)) == [f"train 2/40  {state}, at most 76 s left"]
    # Patience has ended it. What follows goes through all of its epochs, and each round begins anew.
    assert after(0, Step("prune", 0, 60, "images", (1, 2))) == []
    assert after(9, epoch("prune", 1, 2)) == [f"prune 1/2  {state}, about 9 s left"]
    assert after(9, epoch("prune", 2, 2)) == [f"prune 2/2  {state}"]
    assert after(0, Step("prune", 0, 60, "images", (1, 2))) == []
    assert after(3, epoch("prune", 1, 2)) == [f"prune 1/2  {state}, about 3 s left"]


def test_an_epoch_that_takes_long_has_lines_of_its_own(after: After) -> None:
    after(0, Step("train", 0, 600, "images", (1, 10)))
    # What it will cost is said at once.
    assert after(1, Step("train", 10, 600, "images", (1, 10))) == ["train, epoch 1: 10/600 images, at most 10 min left"]
    assert after(9, Step("train", 100, 600, "images", (1, 10))) == []
    assert len(after(1, Step("train", 110, 600, "images", (1, 10)))) == 1
    assert after(9, Step("train", 190, 600, "images", (1, 10))) == []
    assert len(after(41, epoch("train", 1, 10))) == 1
    assert after(9, Step("train", 90, 600, "images", (2, 10))) == []
    assert len(after(1, Step("train", 100, 600, "images", (2, 10)))) == 1


def test_quiet_says_nothing(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    shown = Progress(quiet=True, terminal=True, clock=clock)
    shown.step(Step(READING, 0, 20, "pictures"))
    clock.now += 100
    shown.step(Step(READING, 1, 20, "pictures"))
    shown.epoch(epoch("train", 1, 4))
    shown.waiting("somebody")
    shown.resuming("epoch 3")
    shown.segment(1, 2, 0, 100)
    shown.tick()
    shown.close()
    assert capsys.readouterr() == ("", "")


def test_durations_are_short() -> None:
    said = [duration(seconds) for seconds in (1, 35.4, 99.4, 100, 5999, 6000, 360_000)]
    assert said == ["1 s", "35 s", "99 s", "2 min", "100 min", "1.7 h", "100.0 h"]


# --- A terminal -----------------------------------------------------------------------------------------------------

SCRIPT = """
import sys
from clmoe_cli.report import progress
from clmoe_cli.runtime.events import Step
from clmoe_cli.method.subnetwork.training import Epoch, Quality
progress.SOON, progress.BEAT = 0.0, 3600.0
how = sys.argv[1]
with progress.progress(how == "quiet") as shown:
    for done in range(0, 20000, 4000):
        shown.step(Step("features of efficientnet_v2_l", done, 20000, "pictures"))
        shown.tick()
    shown.step(Step("features of efficientnet_v2_l", 20000, 20000, "pictures"))
    if how == "ended":
        print("asked", file=sys.stderr)
    for number in range(1, 4):
        shown.step(Step("consolidate", 30, 60, "images", (number, 10)))
        shown.tick()
        shown.epoch(Epoch("consolidate", number, 10, 12.34567, Quality(12.5, 1.0)))
        shown.tick()
    shown.waiting("process 7 on host")
    if how == "error":
        raise ValueError("an error")
    if how == "interrupted":
        raise KeyboardInterrupt
    shown.step(Step("commit", 0, 1))
    shown.tick()
print("the result")
"""
STATE = "loss 12.3457  validation 12.5000, 100.00 %"


def on_terminal(*command: str, **environment: str) -> tuple[int, str, str]:
    """Exit code, stdout, and what came to a terminal of 80 columns that is stderr."""
    ours, theirs = pty.openpty()
    env = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE")}
    env |= {"TERM": "xterm", "OMP_NUM_THREADS": "1", **environment}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, stdin=subprocess.DEVNULL, env=env) as child:
        os.close(theirs)
        said = b""
        try:
            while piece := os.read(ours, 1 << 16):
                said += piece
        except OSError:  # how a terminal ends
            pass
        os.close(ours)
        assert child.stdout is not None
        out = child.stdout.read().decode()
    return child.returncode, out, said.decode()


def screen(said: str) -> list[str]:
    """What is left on a terminal, line by line; a line must fit into its 80 columns."""
    lines, row, column = [""], 0, 0
    for part in re.findall(r"\x1b\[[?0-9;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", said):
        if part == "\r":
            column = 0
        elif part == "\n":
            row, column = row + 1, 0
            lines += [""] * (row + 1 - len(lines))
        elif part.startswith("\x1b"):
            if part == "\x1b[2K":
                lines[row] = ""
            elif part.endswith("A"):
                row -= int(part[2:-1])
            else:
                assert part.endswith("m") or part in ("\x1b[?25l", "\x1b[?25h"), part
        else:
            lines[row] = lines[row][:column].ljust(column) + part + lines[row][column + len(part) :]
            column += len(part)
            assert column <= 80, lines[row]
    return [line.rstrip() for line in lines if line.strip()]


@pytest.mark.parametrize("how", ["ended", "error", "interrupted"])
@pytest.mark.parametrize("colour", [{}, {"NO_COLOR": "1"}])
def test_the_bar_leaves_a_terminal_as_it_was(how: str, colour: dict[str, str]) -> None:
    code, out, said = on_terminal(str(forking.served() / "python"), "-c", SCRIPT, how, **colour)
    assert (code, out) == {"ended": (0, "the result\n"), "error": (1, ""), "interrupted": (-2, "")}[how]
    assert "features of efficientnet_v2_l" in said
    assert re.search(r"8000/20000 pictures +(about )?\d", said)
    assert f"{STATE}" in said
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h") > 0
    assert bool(re.search(r"\x1b\[[0-9;]*[39][0-9]m", said)) is (not colour)
    left = screen(said)
    kept = [line for line in left if not line.startswith(("Traceback", " ", "ValueError", "KeyboardInterrupt"))]
    end = f"consolidate 3/10  {STATE}  (0 s)"
    assert kept == [*(["asked"] if how == "ended" else []), "waiting for the store: process 7 on host is writing", end]


def test_a_terminal_that_cannot_move_its_cursor_gets_lines() -> None:
    code, out, said = on_terminal(str(forking.served() / "python"), "-c", SCRIPT, "ended", TERM="dumb")
    assert (code, out, "\x1b" in said) == (0, "the result\n", False)
    lines = [line.split(", about")[0] for line in said.splitlines() if line.startswith("consolidate ")]
    assert lines == [f"consolidate {n}/10  {STATE}" for n in (1, 2, 3)]


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_quiet_leaves_a_terminal_alone(term: str) -> None:
    assert on_terminal(str(forking.served() / "python"), "-c", SCRIPT, "quiet", TERM=term) == (0, "the result\n", "")


# --- The commands ---------------------------------------------------------------------------------------------------


def batch(classes: list[int], n: int = 300, seed: int = 0) -> Batch:
    return Batch(*bars(classes, n, seed), "made up")


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("progress") / "store"
    learn(str(root), batch([0, 4]), OPTIONS)
    learn(str(root), batch([2, 7], seed=1), OPTIONS)
    return root


def names(steps: list[Step]) -> list[str]:
    """The names of steps, each of which began at nothing, went forward and ended."""
    found: list[str] = []
    last: dict[str, Step] = {}
    for step in (step for step in steps if step.epoch is None):
        before = last.get(step.name)
        if before is None or before.done == before.total:
            assert step.done == 0 or step == before, step
            found += [step.name] if step != before else []
        else:
            assert before.done <= step.done, (before, step)
        assert step.total is None or step.done <= step.total
        last[step.name] = step
    assert all(step.done == step.total for step in last.values()), last
    return found


@pytest.mark.campaign
def test_learn_tells_its_steps_and_learns_the_same(store: Path, tmp_path: Path) -> None:
    again, steps, epochs = tmp_path / "again", list[Step](), list[Epoch]()
    learn(str(again), batch([0, 4]), OPTIONS, on_step=steps.append, on_epoch=epochs.append)
    first = names(steps)
    rounds = sum(e.phase == "prune" and e.epoch == 1 for e in epochs)
    assert first == [
        *("loading weights", "scale", "range", "fingerprint"),
        *["scores"] * (rounds + 1),
        *(
            "statistics",
            "calibration",
            "features",
            "gate",
            "held-out answers",
            "reading the store",
            "commit",
        ),
    ]
    learn(str(again), batch([2, 7], seed=1), OPTIONS, on_step=(more := list[Step]()).append)
    assert {"onset", "placement", "gate", "commit"} <= set(names(more))
    assert Store.open(again).manifest.content_hash() == Store.open(store).manifest.content_hash()


def test_epochs_are_told_of_by_the_batch_and_never_by_the_image(tmp_path: Path) -> None:
    steps: list[Step] = []
    learn(str(tmp_path / "s"), batch([0, 4]), OPTIONS, on_step=steps.append)
    training = [step for step in steps if step.name == "train"]
    images, epochs = training[0].total, 2
    assert images
    assert {step.epoch for step in training} == {(1, epochs), (2, epochs)}
    assert [step.done for step in training if step.epoch == (1, 2)][-1] == images
    batches = math.ceil(
        images / Schedule().batch(images // 8, MLP(1, (1,)))
    )  # few images are passed over several times
    assert len(training) <= epochs * (batches + 20) < images


@pytest.mark.parametrize("router", some(EVERY, "fused", "gate"))
@pytest.mark.parametrize("route", ["image", "batch"])
def test_predict_tells_how_many_images_are_decided(store: Path, router: str, route: str) -> None:
    steps: list[Step] = []
    size = 20 if route == "batch" else None
    options: dict[str, Any] = {"router": router, "route": route, "batch_size": size}
    answers = predict(str(store), batch([0, 2, 4, 7], 60, 5), **options, on_step=steps.append)
    assert answers.label.tolist() == predict(str(store), batch([0, 2, 4, 7], 60, 5), **options).label.tolist()
    found = names(steps)
    assert ("deciding" if router in ("fused", "gate") else "routing") in found
    assert steps[-1].done == steps[-1].total
    decided = [s.done for s in steps if s.name in ("deciding", "routing")]
    assert decided == ([0, 20, 40, 60] if route == "batch" else [0, 60])


def test_other_commands_tell_their_steps(store: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(store, tmp_path / "own"))
    steps: list[Step] = []
    detect(str(own), batch([0, 4], 60, 9), on_step=steps.append)
    assert names(steps) == ["onset", "overlap"]
    steps.clear()
    inspect(str(own), check=True, mend=True, on_step=steps.append)
    told = names(steps)
    assert told[0] == "repairing"
    assert {"checking files", "checking tasks", "checking outputs", "reading the store"} <= set(told)
    assert max(step.done for step in steps if step.name == "checking outputs") == 2
    steps.clear()
    prune(str(own), PruneOptions(task="task1"), lambda plan: True, on_step=steps.append)
    assert names(steps) == ["reading the store"]


def test_a_stream_tells_of_its_boundaries_and_segments(tmp_path: Path) -> None:
    parts = [bars([0, 4], 300, 0), bars([2, 7], 300, 1)]
    stream = Batch(*(np.concatenate(part) for part in zip(*parts, strict=True)), "made up")
    steps: list[Step] = []
    segments: list[tuple[int, ...]] = []
    options = {"on_step": steps.append, "on_segment": lambda *told: segments.append(told)}
    report = learn_stream(str(tmp_path / "s"), stream, OPTIONS, **options)
    assert "boundaries" in names(steps)
    edges = [(part.start, part.stop) for part in report.segments]
    assert segments == [(i, len(edges), *edge) for i, edge in enumerate(edges, start=1)]


def test_reading_tells_how_much_is_read(tmp_path: Path) -> None:
    from PIL import Image

    for name in ("cat", "dog"):
        (tmp_path / "tree" / name).mkdir(parents=True)
        for i in range(200):
            Image.new("L", (4, 4), i % 256).save(tmp_path / "tree" / name / f"{i}.png")
    steps: list[Step] = []
    read_batch(str(tmp_path / "tree"), labels="required", on_step=steps.append)
    assert names(steps) == ["listing the pictures", "looking through", "reading"]
    assert steps[-1] == Step("reading", 400, 400, "pictures")
    assert len(steps) < 100
    x, y = bars([1, 2], 50, 0)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    steps.clear()
    read_batch(str(tmp_path / "x.npz"), labels="required", on_step=steps.append)
    assert steps == [Step("reading", 0, 50, "images"), Step("reading", 50, 50, "images")]


def test_tasks_tell_what_they_write(tmp_path: Path) -> None:
    steps: list[Step] = []
    make_tasks("mnist5k", tmp_path, TasksOptions(classes=[(1, 5), (2, 6)], per_class=5), on_step=steps.append)
    assert names(steps) == ["reading mnist5k", "writing"]
    assert steps[-1] == Step("writing", 5, 5, "files")


def clmoe(*args: object) -> tuple[str, ...]:
    return (str(forking.served() / "clmoe"), *map(str, args))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    x, y = bars([1, 9], 300, 3)
    np.savez(tmp_path / "x.npz", x=x, y=y)
    return tmp_path / "x.npz"


def arguments(data: Path, store: Path) -> tuple[object, ...]:
    return ("learn", "--data", data, "--store", store, "--arch", "mlp:16,16", "--epochs", 2, "--json")


def test_a_terminal_sees_each_phase_and_stdout_is_the_result(data: Path, tmp_path: Path) -> None:
    code, out, said = on_terminal(*clmoe(*arguments(data, tmp_path / "s")))
    assert code == 0, said
    assert json.loads(out)["status"] == "learned"
    left = [line for line in screen(said) if re.match(r"(train|prune|consolidate) 2/2  loss .* \(\d+ s\)$", line)]
    # How many rounds there are the data decide.
    assert list(dict.fromkeys(line.split()[0] for line in left)) == ["train", "prune", "consolidate"]
    assert said.count("\x1b[?25l") == said.count("\x1b[?25h")


def test_a_terminal_is_left_alone_by_quiet(data: Path, tmp_path: Path) -> None:
    code, out, said = on_terminal(*clmoe(*arguments(data, tmp_path / "s"), "-q"))
    assert (code, json.loads(out)["status"], said) == (0, "learned", "")


def test_pipes_get_lines_whatever_the_environment_says_of_colour(data: Path, tmp_path: Path) -> None:
    env = {**os.environ, "FORCE_COLOR": "1", "TTY_COMPATIBLE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(clmoe(*arguments(data, tmp_path / "s")), capture_output=True, text=True, env=env, check=True)
    assert json.loads(done.stdout)["status"] == "learned"
    assert "\x1b" not in done.stderr
    assert "\r" not in done.stderr
    lines = done.stderr.splitlines()
    assert [line.split()[:2] for line in lines if "  validation " in line][:3] == [
        ["train", "1/2"],
        ["train", "2/2"],
        ["prune", "1/2"],
    ]
