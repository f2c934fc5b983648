"""What ``clmoe schema`` publishes: what commands really print, what the contract names, and the same as before."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shells
import small_store as small
from jsonschema import Draft202012Validator, ValidationError
from pictures import bars

from clmoe_cli.api.schemas import DIALECT, names, schema
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from store_schema import Store, layout

GOLDEN = Path(__file__).parent / "golden" / "schemas"
# What the contract of the command line names, by command; several where a command prints one of several objects.
CONTRACT = {
    "learn": [
        "schema task expert status new_expert classes accuracy per_class opinion warnings layers owned_parameters "
        "onset candidates seconds",
        "schema segments",
    ],
    "detect": ["schema verdict task expert p_value tasks"],
    "predict": ["schema predictions accuracy", "schema accuracy output"],
    "inspect": ["schema experts tasks overlap history bytes frozen_percent", "schema task arch kind history"],
    "export": [
        "schema output format task expert arch classes input_shape parameters nonzero bytes deviation",
        "schema output format tasks classes input_shape bytes deviation p_value_deviation milliseconds",
    ],
    "prune": ["schema removed freed_parameters frozen_percent unfinished"],
    "log": ["schema generation commits unfinished"],
    "undo": ["schema applied generation restored removed returned"],
    "checkout": ["schema applied generation restored removed returned"],
    "rename": ["schema generation old new"],
    "copy": ["schema applied generation new_store tasks"],
    "tasks": ["schema files"],
    "prediction": ["index label task expert confidence known p_value"],
    "error": ["schema error"],
}
NUMBERS = {"detect": 2, "learn": 2, "predict": 2}
"""Editions of the objects whose meaning has changed; all others are the first."""
SAME = {"checkout": "undo"}
"""Commands that print another's object."""
NESTED = {
    "learn": {
        "Accuracy": "answer within subnetwork dense guessing held_out",
        "ClassAccuracy": "label images accuracy",
        "LayerUse": "name parameters selected reused frozen_percent",
        "Onset": "verdict p_value",
        "Candidate": "hamming overlap divergence constructive",
    },
    "detect": {"Compared": "deviation p_value overlap divergence"},
    "predict": {"Prediction": "index label task expert confidence"},
    "inspect": {
        "Expert": "id arch tasks layers frozen_percent",
        "Frozen": "name parameters frozen frozen_percent",
        "Task": "name expert classes accuracy layers learned_at",
    },
    "error": {"Failure": "what exit_code"},
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = shells.folder(tmp_path_factory.mktemp("schemas"))
    parts = [small.batch(number, 600) for number in (3, 1)]
    x, y = (np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "labels"))
    np.savez(root / "stream.npz", x=x, y=y)
    np.savez(root / "unlabelled.npz", x=parts[0].images[:30])
    np.savez(root / "vectors.npz", x=np.ones((5, 7), np.float32))
    pixels, labels = bars([1, 6], 80, 5)
    np.savez(root / "named.npz", x=pixels, y=np.array(["ä", "b"])[(labels > 1).astype(int)])
    sized = ["--image-size", "16", "--store", str(root / "sized"), "-q"]
    assert run(app, ["learn", "--data", str(root / "named.npz"), *shells.QUICK, *sized]) == 0
    ref = Store.open(shutil.copytree(root / "store", root / "damaged")).manifest.task("task2").subnetwork
    layout.object_path(root / "damaged", ref.sha256, ref.suffix).write_bytes(b"")
    return root


@pytest.fixture
def here(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shutil.copytree(root, tmp_path / "here"))
    monkeypatch.setenv("CLMOE_STORE", "store")
    return tmp_path / "here"


QUICK = " ".join(shells.QUICK)
PRINTED = [
    f"learn --data 3.npz {QUICK}",
    f"learn --data named.npz {QUICK} --store new",
    f"learn --data 1.npz {QUICK}",
    f"learn --data more.npz {QUICK} --if-known refine",
    f"learn --data 3.npz {QUICK} --dry-run",
    f"learn --data 1.npz {QUICK} --dry-run",
    f"learn --data more.npz {QUICK} --if-known refine --dry-run",
    f"learn --data stream.npz {QUICK} --segment",
    f"learn --data stream.npz {QUICK} --segment --dry-run",
    "detect --data 1.npz",
    "detect --data 3.npz --use-labels",
    "detect --data vectors.npz",
    "predict --batch all.npz --reject 0.05",
    "predict --batch unlabelled.npz",
    "predict --batch all.npz --route batch --batch-size 60 --router fisher",
    "predict --batch 1.npz --task task1 --output out.csv",
    "inspect",
    "inspect task1",
    "inspect --verify",
    "inspect --store sized",
    "inspect --repair",
    "inspect --repair --dry-run --store damaged",
    "prune --task task1",
    "prune --expert e1 --dry-run",
    "prune --gc --yes",
    "tasks mnist5k digits --classes 1,5",
    "tasks mnist5k digits --classes 1,5 --dry-run",
]
WRONG = [
    "learn --data none.npz",
    "inspect --store nowhere",
    "predict --batch 1.npz --task task9",
    "predict",
    "lern",
    "prune",
]


@pytest.mark.parametrize("command", PRINTED)
def test_what_is_printed_is_as_published(command: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command.split(), "--json", "-q"]) == 0
    printed = json.loads(capfd.readouterr().out)
    published = schema(command.split()[0])
    Draft202012Validator(published).validate(printed)
    # And each key that is required is: without it, or with something else in it, the object is refused.
    kind = fitting(published, printed)
    if "refine" in command:
        assert printed["status"] == "refined"
    for key in kind["required"]:
        for other in ({k: v for k, v in printed.items() if k != key}, printed | {key: {"no": ["such thing"]}}):
            with pytest.raises(ValidationError):
                Draft202012Validator({**kind, "$defs": published.get("$defs", {})}).validate(other)
    Draft202012Validator(published).validate(printed | {"later": [1]})


def kinds(published: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects of which a schema allows one."""
    refs = [each["$ref"].rpartition("/")[2] for each in published.get("anyOf", [])]
    return [published["$defs"][ref] for ref in refs] or [published]


def fitting(published: dict[str, Any], printed: dict[str, Any]) -> dict[str, Any]:
    return next(kind for kind in kinds(published) if set(kind["required"]) <= set(printed))


@pytest.mark.parametrize("command", WRONG)
def test_errors_are_as_published(command: str, here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(app, [*command.split(), "--json"]) in (2, 3, 4)
    Draft202012Validator(schema("error")).validate(json.loads(capfd.readouterr().err))


def test_rows_are_as_published(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert run(app, ["predict", "--batch", "all.npz", "--output", "-", "-q"]) == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert len(rows) == 180
    for row in rows:
        Draft202012Validator(schema("prediction")).validate(row)
    assert set(rows[0]) == set(schema("prediction")["required"])


@pytest.mark.parametrize("name", CONTRACT)
def test_what_the_contract_names_is_required(name: str) -> None:
    published = schema(name)
    Draft202012Validator.check_schema(published)
    for kind, keys in zip(kinds(published), CONTRACT[name], strict=True):
        assert set(keys.split()) <= set(kind["required"])
        assert kind["properties"].get("schema", {}).get("const") == (
            None if name == "prediction" else f"clmoe.{SAME.get(name, name)}/{NUMBERS.get(name, 1)}"
        )
    for nested, keys in NESTED.get(name, {}).items():
        assert set(keys.split()) <= set(published["$defs"][nested]["required"])
    assert not closed(published)


def closed(value: Any) -> bool:
    """Whether an object in it allows no other keys, so that none could be added later."""
    if isinstance(value, dict):
        return value.get("additionalProperties") is False or any(map(closed, value.values()))
    return isinstance(value, list) and any(map(closed, value))


@pytest.mark.parametrize("name", [*CONTRACT, "all"])
def test_what_is_published_is_what_was_published(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    """Where a change is meant: ``python tests/golden/schemas.py``, and read what it changed."""
    assert run(app, ["schema", *([] if name == "all" else [name])]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    if name == "all":
        assert json.loads(out) == {each: json.loads((GOLDEN / f"{each}.json").read_text()) for each in CONTRACT}
    else:
        assert out == (GOLDEN / f"{name}.json").read_text()
        assert json.loads(out)["$schema"] == DIALECT


def test_every_command_is_published_and_nothing_else_is_kept() -> None:
    commands = {command.callback.__name__ for command in app.registered_commands if command.callback}
    assert commands - {"schema"} <= set(names())
    assert {path.stem for path in GOLDEN.iterdir()} == set(names())


def test_the_script_writes_what_is_kept(tmp_path: Path) -> None:
    script = shutil.copy(GOLDEN.parent / "schemas.py", tmp_path / "schemas.py")
    subprocess.run([sys.executable, script], check=True, env=shells.clean(), timeout=60)
    for path in GOLDEN.iterdir():
        assert (tmp_path / "schemas" / path.name).read_bytes() == path.read_bytes()


def test_schemas_need_no_torch() -> None:
    code = "import sys\nfrom clmoe_cli.cli.app import main\ntry: main(['schema'])\n"
    code += "finally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=shells.clean(), timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")
