"""The documentation says what the program does: every option is in it, and every command of the README runs."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet50

from clmoe_cli.cli.app import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ELSEWHERE = ("make demo", "make test")
"""Whole trainings, run by hand; and what runs this."""
DOWNLOADS = re.compile(r"--features resnet50(?! --features-weights)")


def section(command: str) -> str:
    return REFERENCE.split(f"## `clmoe {command}`", 1)[1].split("\n## ", 1)[0]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_is_in_the_reference_with_its_help(command: str) -> None:
    text = " ".join(section(command).split())
    for parameter in COMMANDS[command].params:
        for name in parameter.opts if parameter.param_type_name == "option" else ():
            if name != "--help":
                assert f"{name}" in text, f"{command} {name}: run `make docs`"
        help_text = " ".join((getattr(parameter, "help", None) or "").split())
        assert help_text, f"{command} {parameter.name} has no help"
        assert help_text in text, f"{command} {parameter.name}: run `make docs`"


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_is_in_the_readme(command: str) -> None:
    assert f"`{command}" in README


def test_no_option_in_the_readme_is_made_up() -> None:
    known = {name for command in COMMANDS.values() for parameter in command.params for name in parameter.opts}
    said = {name for line in commands() if line.startswith("clmoe ") for name in re.findall(r"(?<!\S)--[a-z-]+", line)}
    assert said - known - {"--help", "--version", "--install-completion", "--show-completion"} == set()


def commands() -> list[str]:
    """The lines of the README's shell blocks, without their comments; a line that ends in \\ goes on."""
    blocks = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [text for line in lines if (text := line.partition(" #")[0].strip())]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the README's commands name and do not make."""
    place = tmp_path_factory.mktemp("readme")
    rng = np.random.default_rng(0)
    for folder, names in (("photos", ("cat", "dog")), ("scans", ("page", "stamp"))):
        for which, name in enumerate(names):
            (place / folder / name).mkdir(parents=True)
            for i in range(8):
                pixels = rng.integers(0, 90, (70, 80, 3), dtype=np.uint8)
                pixels[:35] += np.uint8(140 * which)
                Image.fromarray(pixels).save(place / folder / name / f"{i}.png")
    (place / "holiday").mkdir()
    for path in sorted((place / "photos" / "cat").glob("*.png"))[:3]:
        shutil.copy(path, place / "holiday")
    torch.manual_seed(0)
    save_file(resnet50().state_dict(), place / "my.safetensors")
    save_file(
        {k: v for k, v in resnet18().state_dict().items() if not k.startswith("fc.")}, place / "resnet18.safetensors"
    )
    return place


EXAMPLE = README.split("## A worked example", 1)[1]
"""The worked example comes first in it."""


def test_every_command_of_the_readme_runs(workplace: Path) -> None:
    """In the order of the README, in one folder, with short trainings; those of the worked example run below."""
    example = re.findall(r"```sh\n(.*?)```", EXAMPLE, re.DOTALL)[0]
    lines = [line for line in commands() if line not in ELSEWHERE and not line.startswith("pip ")]
    rest = [line for line in lines if line not in example]
    assert len(rest) >= 3
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CLMOE_LEARN_EPOCHS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    for line in rest:
        if DOWNLOADS.search(line):
            shlex.split(line)
            continue
        done = subprocess.run(
            ["sh", "-ec", line], cwd=workplace, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        assert "Traceback" not in done.stderr


def plain(text: str) -> str:
    """Words without figures, which depend on the machine, and without line breaks, which depend on the figures."""
    return " ".join(re.sub(r"\d[\d.e-]*", "#", text).split())


def test_the_worked_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    lines = [
        line.partition(" #")[0].strip() for line in re.findall(r"```sh\n(.*?)```", EXAMPLE, re.DOTALL)[0].splitlines()
    ]
    shown = re.findall(r"```text\n(.*?)```", EXAMPLE, re.DOTALL)[0].split("$ ")[1:]
    printed = {part.partition("\n")[0]: part.partition("\n")[2] for part in shown}
    assert len(printed) == 4
    assert set(printed) <= set(lines)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    shares = {}
    for line in lines:
        done = subprocess.run(
            ["sh", "-ec", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        )
        whole = done.stderr + done.stdout
        assert plain(printed.get(line, "")) in plain(whole), whole
        shares[line] = [float(share) for share in re.findall(r"([\d.]+) % of", whole)]
    # The figures themselves: held-out accuracy of each task, and accuracy on the test images.
    assert len([line for line in lines if shares[line] and min(shares[line]) >= 96]) == 4


def test_the_tutorial_of_own_data_runs(tmp_path: Path) -> None:
    """With short trainings; its script is what the data come from."""
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    (tmp_path / "make_data.py").write_text(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0])
    lines = [line for block in re.findall(r"```sh\n(.*?)```", text, re.DOTALL) for line in block.splitlines()]
    assert len(lines) == 10
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CLMOE_LEARN_EPOCHS": "1", "OMP_NUM_THREADS": "1", "COLUMNS": "80"}
    told = {}
    for line in lines:
        done = subprocess.run(
            ["sh", "-ec", line], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{line}: {done.stderr}"
        told[line] = done.stderr + done.stdout
    assert told["clmoe detect --data second.npz --store vectors"].startswith("new")
    assert "accuracy 100.00 % of 300 images" in told[lines[-2]]


@pytest.mark.parametrize("path", sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]), ids=lambda p: p.name)
def test_links_lead_to_files(path: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)", path.read_text(encoding="utf-8")):
        assert target.startswith("http") or (path.parent / target).exists(), target


def test_the_readme_is_short() -> None:
    assert len(README.split()) <= 1300


def test_the_tutorial_chains_tasks_and_is_run_again(workplace: Path, tmp_path: Path) -> None:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "CLMOE_LEARN_EPOCHS": "2", "CLMOE_LEARN_ARCH": "mlp:30,30"}
    rng = np.random.default_rng(0)
    for i, row in enumerate((2, 8)):
        x = rng.integers(0, 90, (300, 12, 12), dtype=np.uint8)
        y = np.arange(300) % 2
        x[y == 0, row] += 120
        x[y == 1, :, row] += 120
        np.savez(tmp_path / f"{i}.npz", x=x, y=y + 2 * i)
    # Tasks of any shape go into one store: vectors, larger pictures, and too few pictures to be known without labels.
    for name, shape, n in (("vectors", (20,), 300), ("larger", (16, 16), 300), ("few", (14, 14), 30)):
        y = np.arange(n) % 2
        x = rng.normal(0, 0.1, (n, *shape)).astype(np.float32)
        x[y == 0, 3] += 1
        np.savez(tmp_path / f"{name}.npz", x=x, y=np.array([f"{name} a", f"{name} b"])[y])
    more = ["vectors.npz", "larger.npz", "few.npz"]
    command = ["sh", str(ROOT / "examples" / "chain.sh"), "store", "0.npz", "1.npz", *more]
    options = {"cwd": tmp_path, "env": environment, "capture_output": True, "text": True}
    first = subprocess.run(command, check=True, **options)  # type: ignore[call-overload]
    learned = [line.split(" in ")[0] for line in first.stdout.splitlines()[:-1]]
    assert learned == [f"task{number}" for number in range(1, 6)]
    again = subprocess.run(command, check=True, **options)  # type: ignore[call-overload]
    known = [f"{name}: known, nothing to learn" for name in ("0.npz", "1.npz", *more[:2])]
    assert again.stdout.splitlines()[:5] == [*known, "task5: known by its labels, nothing to learn"]
    assert (tmp_path / "frozen.csv").read_text().startswith("generation,action,task,expert,layer")
    missing = subprocess.run([*command[:3], "2.npz"], check=False, **options)  # type: ignore[call-overload]
    assert missing.returncode == 3
    assert "2.npz" in missing.stderr
