"""The rooms and their arrows: which package may import which, what starts without torch, what appears nowhere."""

from __future__ import annotations

import ast
import graphlib
import importlib
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest

import store_schema

ROOT = Path(__file__).parent.parent
SOURCES = sorted(path for name in ("clmoe", "clmoe_cli", "store_schema") for path in (ROOT / name).rglob("*.py"))


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


ROOMS = (
    "top", "runtime", "method", "data", "store_tensors", "backbone", "api", "report", "cli", "clmoe",
)  # fmt: skip
"""From below to above. A room imports rooms below it, and neither itself's callers nor, of these, ``CLOSED`` ones."""
CLOSED = {"method": {"data", "top"}, "data": {"method"}, "store_tensors": {"data"}}
METHOD = (
    "images", "networks", "reproducible", "privacy", "scaling",
    "subnetwork", "routing", "tasks", "explain", "learn_task",
)  # fmt: skip
"""The same within the method: what its steps are made of comes first."""
FOREIGN = {
    "runtime": ("typer", "rich", "h5py", "safetensors"),
    "method": ("typer", "rich", "h5py", "safetensors", "pathlib", "os", "store_schema"),
    "data": ("typer", "rich", "torch.nn"),
    "store_tensors": ("typer", "rich"),
    "backbone": ("typer", "rich"),
    "api": ("typer", "rich"),
    "store_schema": ("clmoe", "clmoe_cli", "torch", "torchvision", "typer", "rich"),
}
"""Packages that a room does not know."""


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in SOURCES}


def arrows(path: Path) -> set[str]:
    """The modules of ours that one imports, also within functions."""
    return {name for name in imports(path) if name in MODULES} - {module_of(path)} - parents(path)


def parents(path: Path) -> set[str]:
    """Packages: importing a module of one imports it."""
    return {name for name, own in MODULES.items() if own.name == "__init__.py" and own.parent in path.parents}


def room_of(module: str) -> str:
    first, *rest = module.split(".")
    return (rest[0] if rest and rest[0] != "__main__" else "top") if first == "clmoe_cli" else first


@pytest.mark.parametrize("module", MODULES)
def test_imports_point_one_way(module: str) -> None:
    path, room = MODULES[module], room_of(module)
    assert not touches(path, *FOREIGN.get(room, ())), module
    if room == "store_schema" or module == "clmoe_cli.__main__":
        return
    assert room in ROOMS, f"{module}: a room without a place among the others"
    for other in arrows(path):
        there = room_of(other)
        if there == room:
            if room == "method":
                mine, its = (METHOD.index(name.split(".")[2]) for name in (module, other))
                assert its <= mine, f"{module} → {other}"
        elif there != "store_schema":
            assert ROOMS.index(there) < ROOMS.index(room), f"{module} → {other}"
            assert there not in CLOSED.get(room, set()), f"{module} → {other}"


def test_no_imports_go_in_a_circle() -> None:
    order = graphlib.TopologicalSorter({module: arrows(path) for module, path in MODULES.items()})
    assert len(list(order.static_order())) >= len(MODULES)


def test_every_folder_says_what_it_is_for() -> None:
    for folder in {path.parent for path in SOURCES}:
        assert ast.get_docstring(ast.parse((folder / "__init__.py").read_text())), folder


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_nothing_unpickles(path: Path) -> None:
    text = path.read_text()
    calls = re.findall(r"torch\.load\(.*", text)
    if path.parts[-2:] == ("backbone", "lite0.py"):
        # The checkpoint of a package, whose sha256 is known.
        assert calls == ['torch.load(path, map_location="cpu", weights_only=True)']
    else:
        assert not calls
    for word in ("import " + "pickle", "allow_pickle" + "=True", "ev" + "al("):
        assert word not in text


def test_what_the_store_offers_is_there_whatever_was_imported_first() -> None:
    for path in (ROOT / "store_schema").glob("[a-z]*.py"):
        importlib.import_module(f"store_schema.{path.stem}")
    modules = {name for name in store_schema.__all__ if inspect.ismodule(getattr(store_schema, name))}
    assert modules == {"checkpoints"}
    assert "verify" in store_schema.__all__


PROBE = """
import sys
from clmoe_cli.cli.process import run
from clmoe_cli.cli.app import app
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
