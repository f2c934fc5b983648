"""Completion as shells ask for it: what is offered, without torch, and silent whatever the store is like."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import forking
import pytest
import shells
from made_up import made_up

from clmoe_cli.api.predict import EVERY
from clmoe_cli.backbone.loading import FIXED, LITE0
from clmoe_cli.backbone.session import NONE
from clmoe_cli.method.networks import modules
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.subnetwork import pruning
from clmoe_cli.runtime import choices
from store_schema import Store

ASK = """
import sys
from clmoe_cli.cli.app import main
sys.argv = ["clmoe"]
try:
    main([])
finally:
    for module in ("torch", "torchvision", "matplotlib"):
        assert module not in sys.modules, module
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return shells.folder(tmp_path_factory.mktemp("completion"))


def asked(line: str, cwd: Path, shell: str = "bash", **variables: str) -> subprocess.CompletedProcess[str]:
    words = line.split(" ")
    bash = {"COMP_WORDS": "\n".join(words), "COMP_CWORD": str(len(words) - 1)}
    others = {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = shells.clean() | (bash if shell == "bash" else others) | {"_CLMOE_COMPLETE": f"complete_{shell}"}
    return subprocess.run(
        [forking.served(light=True) / "python", "-c", ASK],
        cwd=cwd, env=environment | variables, capture_output=True, text=True, check=False,
    )  # fmt: skip


def offered(line: str, cwd: Path, **variables: str) -> list[str]:
    done = asked(line, cwd, **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("clmoe inspect --store store ta", ["task1", "task2"]),
        ("clmoe predict --only ", ["wrong", "unsure", "unknown"]),
        ("clmoe ", ["learn", "detect", "predict", "inspect", "prune", "tasks", "schema"]),
        ("clmoe pre", ["predict"]),
        ("clmoe --version pre", ["predict"]),
        ("clmoe prune --dry", ["--dry-run"]),
        ("clmoe predict --store store --task ", ["task1", "task2"]),
        ("clmoe predict --task task1 --store store --task ", ["task1", "task2"]),
        ("clmoe predict --store store --task x", []),
        ("clmoe predict --store=store --task task2", ["task2"]),
        ("clmoe prune --store store --task t", ["task1", "task2"]),
        ("clmoe prune --store store --expert ", ["e1"]),
        ("clmoe learn --store store --expert ", ["e1", "new"]),
        ("clmoe learn --expert ", ["new"]),
        ("clmoe predict --route ", [*choices.ROUTES]),
        ("clmoe predict --router ", [*choices.ROUTERS]),
        ("clmoe predict --device c", ["cpu", "cuda"]),
        ("clmoe predict --features res", ["resnet18", "resnet50"]),
        ("clmoe learn --score ", [*choices.SCORES]),
        ("clmoe learn --if-known ", [*choices.IF_KNOWN]),
        ("clmoe learn --boundaries ", [*choices.BOUNDARIES]),
        ("clmoe learn --arch ", [*choices.ARCHS]),
        ("clmoe learn --augment ", [*choices.AUGMENT]),
        ("clmoe detect --evidence ", [*choices.EVIDENCE]),
        ("clmoe inspect --format ", [*choices.FORMATS]),
        ("clmoe tasks m", ["mnist5k", "mnist"]),
        ("clmoe tasks f", ["fashion-mnist", "flowers102", "food101"]),
        ("clmoe schema pre", ["predict", "prediction"]),
        ("clmoe predict --batch ", []),  # the shell completes files
    ],
)
def test_what_is_offered(line: str, words: list[str], root: Path) -> None:
    found = offered(line, root)
    assert set(found) >= set(words) if line == "clmoe " else found == words


def test_the_store_is_that_of_flag_variable_file_or_default(root: Path, tmp_path: Path) -> None:
    line = "clmoe predict --task "
    assert offered(line, tmp_path) == []
    shutil.copytree(root / "store", tmp_path / "clmoe-store")
    assert offered(line, tmp_path) == ["task1", "task2"]
    (tmp_path / "clmoe.toml").write_text('store = "nowhere"\n')
    assert offered(line, tmp_path) == []
    (tmp_path / "clmoe.toml").write_text(f'[predict]\nstore = "{root / "store"}"\n')
    assert offered(line, tmp_path) == ["task1", "task2"]
    assert offered(line, tmp_path, CLMOE_STORE="nowhere") == []
    assert offered(line, tmp_path, CLMOE_STORE=str(root / "store"), CLMOE_NOBODY="1") == ["task1", "task2"]
    assert offered("clmoe predict --store nowhere --task ", tmp_path, CLMOE_STORE=str(root / "store")) == []


@pytest.mark.parametrize(
    "damage",
    ["no folder", "a file", "no HEAD", "another HEAD", "a cut manifest", "a newer format", "wrong settings", "no name"],
)
def test_what_is_damaged_completes_to_nothing(damage: str, root: Path, tmp_path: Path) -> None:
    store = Path(shutil.copytree(root / "store", tmp_path / "own"))
    manifest = max((store / "manifests").iterdir(), key=lambda path: path.stat().st_mtime)
    name = "own"
    if damage == "no folder":
        shutil.rmtree(store)
    elif damage == "a file":
        name = "clmoe.toml"
        (tmp_path / name).write_text("")
    elif damage == "no HEAD":
        (store / "HEAD").unlink()
    elif damage == "another HEAD":
        (store / "HEAD").write_text("{}")
    elif damage == "a cut manifest":
        manifest.write_bytes(manifest.read_bytes()[:100])
    elif damage == "a newer format":
        (store / "FORMAT").write_text("99\n")
    elif damage == "no name":
        name = "' '"
    else:
        (tmp_path / "clmoe.toml").write_text("[leran]\n")
    expected = ["task1", "task2"] if damage == "wrong settings" else []
    assert offered(f"clmoe predict --store {name} --task ", tmp_path) == expected
    for shell in ("zsh", "fish"):
        done = asked(f"clmoe predict --store {name} --task ", tmp_path, shell)
        assert (done.returncode, done.stderr) == (0, "")


def test_names_that_a_shell_would_act_on_are_not_offered(tmp_path: Path) -> None:
    names = ["$(touch pwned)", "`id`", "a b", "a;b", "--yes", "\\$(id)", "*", "'", "fine-1.2", "größe"]
    made_up(tmp_path / "store", [len(names)], names=dict(enumerate(names, 1)))
    assert [task.name for task in Store.open(tmp_path / "store").manifest.tasks] == names
    assert offered("clmoe predict --store store --task ", tmp_path) == ["fine-1.2", "größe"]


def test_other_shells(root: Path) -> None:
    done = asked("clmoe predict --store store --task ", root, "zsh")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == ["_arguments", "'*:", ':(("task1"', '"task2"))\'']
    done = asked("clmoe predict --store store --task ", root, "fish")
    assert (done.returncode, done.stderr, done.stdout.split()) == (0, "", ["task1", "task2"])
    done = asked("clmoe predict --batch ", root, "fish", _TYPER_COMPLETE_FISH_ACTION="is-args")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "")  # no words: files


def test_a_shell_completes_with_the_script_that_it_is_given(root: Path) -> None:
    script = """
    eval "$(_CLMOE_COMPLETE=source_bash clmoe)"
    COMP_WORDS=(clmoe predict --store store --task ta)
    COMP_CWORD=5
    complete -p clmoe | grep -o -- '-F [a-z_]*' | (read _ name; echo $name)
    _clmoe_completion clmoe ta --task
    printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = shells.bash(script, root, light=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.split() == [b"_clmoe_completion", b"task1", b"task2"]


SHELLS = {
    "zsh": """
    autoload -U compinit && compinit -D
    eval "$(_CLMOE_COMPLETE=source_zsh clmoe)"
    print $_comps[clmoe]
    """,
    "fish": """
    _CLMOE_COMPLETE=source_fish clmoe | source
    complete -C "clmoe predict --store store --task ta"
    """,
}


@pytest.mark.parametrize("shell", SHELLS)
def test_other_shells_take_their_scripts(shell: str, root: Path) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    path = {"PATH": f"{forking.served(True)}:{os.environ['PATH']}"}
    bare = ["-f"] if shell == "zsh" else ["--no-config"]
    done = subprocess.run(
        [shell, *bare, "-c", SHELLS[shell]],
        cwd=root, env=shells.clean() | path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.stderr == ""
    assert done.stdout.split() == {"zsh": ["_clmoe_completion"], "fish": ["task1", "task2"]}[shell]


TAB = """
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'autoload -U compinit && compinit -D; eval "$(_CLMOE_COMPLETE=source_zsh clmoe)"'
zpty -w shell 'line() { print -r -- "$BUFFER" > line.new; mv line.new line; exit }; zle -N line; bindkey "^X" line'
zpty -w shell 'PS1="rea""dy>"'
zpty -r shell shown '*ready>*'
zpty -w -n shell $'clmoe predict --store store --task task1 --only wr\t\x18'
while [[ ! -e line ]] sleep 0.05
cat line
"""
"""zsh on a terminal of its own: a line is typed, the tab key pressed, and then a key that writes what stands there."""


def test_the_tab_key_of_zsh_completes_a_word(root: Path, tmp_path: Path) -> None:
    if shutil.which("zsh") is None:
        pytest.skip("zsh is not installed")
    shutil.copytree(root / "store", tmp_path / "store")
    path = {"PATH": f"{forking.served(True)}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["zsh", "-f", "-c", TAB],
        cwd=tmp_path, env=shells.clean() | path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert (done.stdout, done.stderr) == ("clmoe predict --store store --task task1 --only wrong \n", "")


def test_words_are_those_that_commands_take() -> None:
    assert set(choices.ROUTERS) == set(EVERY)
    assert choices.SCORES == pruning.SCORES
    for arch in choices.ARCHS:
        assert parse_arch(arch, (3, 64, 64)).shared_shapes()
    assert choices.BACKBONES[:3] == (NONE, LITE0, FIXED)
    assert set(choices.BACKBONES[3:]) <= set(modules.torchvision_names())
