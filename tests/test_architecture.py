"""The rooms and their arrows: which package may import which, what starts without torch, what appears nowhere."""

from __future__ import annotations

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import store_schema

ROOT = Path(__file__).parent.parent
SOURCES = sorted([*(ROOT / "clmoe_cli").rglob("*.py"), *(ROOT / "store_schema").rglob("*.py")])


def imports(path: Path, inside_functions: bool = True) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = ast.walk(tree) if inside_functions else iter(tree.body)
    found = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found |= {node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def touches(path: Path, *packages: str) -> set[str]:
    return {name for name in imports(path) if any(name == p or name.startswith(f"{p}.") for p in packages)}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    room = path.relative_to(ROOT).parts
    if room[0] == "store_schema":
        assert not touches(path, "clmoe_cli", "torch", "torchvision", "typer", "rich")
    if "continual" in room:
        allowed = {n for n in touches(path, "clmoe_cli") if n.startswith("clmoe_cli.continual") or n == "clmoe_cli"}
        assert touches(path, "clmoe_cli") == allowed
        assert not touches(path, "store_schema", "typer", "rich", "h5py", "safetensors", "pathlib", "os")
    if room[-1] == "state.py":
        assert not touches(path, "clmoe_cli.commands", "clmoe_cli.data", "clmoe_cli.report.render", "typer", "rich")
    if "commands" in room:
        assert not touches(
            path, "typer", "rich", "clmoe_cli.cli.app", "clmoe_cli.report.render", "clmoe_cli.cli.process"
        )


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles_and_files_stay_small(path: Path) -> None:
    text = path.read_text()
    for word in ("torch" + ".load(", "import " + "pickle", "allow_pickle" + "=True", "ev" + "al("):
        assert word not in text
    assert len(text.splitlines()) <= 700


def test_what_the_store_offers_is_there_whatever_was_imported_first() -> None:
    for path in (ROOT / "store_schema").glob("[a-z]*.py"):
        importlib.import_module(f"store_schema.{path.stem}")
    modules = {name for name in store_schema.__all__ if inspect.ismodule(getattr(store_schema, name))}
    assert modules == {"checkpoints"}
    assert "verify" in store_schema.__all__


PROBE = """
import sys
from clmoe_cli.process import run
from clmoe_cli.app import app
code = run(app, sys.argv[1:])
heavy = [m for m in ("torch", "torchvision", "matplotlib") if m in sys.modules]
sys.stderr.write("heavy:" + ",".join(heavy))
sys.exit(code)
"""


LIGHT = (
    ["--help"], ["--version"], ["learn", "--help"], ["inspect", "--store", "nowhere"],
    ["learn", "--data", "nowhere.npz"], ["predict", "--batch", "nowhere/"], ["detect", "--data", "nowhere.csv"],
    ["learn", "--data", __file__, "--arch", "mpl:8"], ["learn", "--data", __file__, "--arch", "resnet19"],
    ["predict", "--batch", __file__, "--router", "best"],
)  # fmt: skip


@pytest.mark.parametrize("args", LIGHT, ids=" ".join)
def test_starts_without_torch(args: list[str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, *args], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stderr.endswith("heavy:"), done.stderr
