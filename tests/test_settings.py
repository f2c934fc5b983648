"""Settings that mean nothing: named, with what was probably meant; and what no variable may set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import shells


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("lern", "'lern'. Did you mean 'learn'?"),
        ("inspekt --json", "Did you mean 'inspect'?"),
        ("learn --epoch 3", "--epochs"),
        ("inspect --verfy", "--verify"),
        ("schema lern", "did you mean 'learn'?"),
    ],
)
def test_commands_and_options_are_suggested(args: str, words: str, tmp_path: Path) -> None:
    done = shells.spawn(*args.split(), cwd=tmp_path, light=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stroe = 1", "[stroe]; did you mean store?"),
        ("max_dorp = 1", "[max_dorp]; did you mean max-drop?"),
        ("lern = 1", "did you mean learn?"),
        ("zebra = 1", "settings are named like the options"),
        ("[inspct]", "did you mean inspect?"),
        ("[learn]\nepoch = 1", "[learn.epoch]; did you mean epochs?"),
        ("[inspect]\nfromat = 'md'", "[inspect.fromat]; did you mean format?"),
        ("[learn]\njsno = true", "[learn.jsno]"),
        ("store = 3", "not a text: clmoe.toml [store]; found 3; put quotes round it"),
        ("[learn]\ndata = 2026-01-02", "[learn.data]; found 2026-01-02"),
    ],
)
def test_settings_are_suggested(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "clmoe.toml").write_text(text)
    done = shells.spawn("inspect", cwd=tmp_path, light=True)
    assert (done.returncode, done.stdout) == (2, b"")
    assert words in done.stderr.decode()


def warned(args: str, cwd: Path, **variables: str) -> list[str]:
    """The lines on stderr before the error that there is no store, or no data."""
    done = shells.spawn(*args.split(), cwd=cwd, light=True, **variables)
    lines = done.stderr.decode().splitlines()
    assert (done.returncode, done.stdout) == (4 if args.startswith("inspect") else 2, b"")
    return lines[:-1]


def test_variables_that_nothing_reads_are_named(tmp_path: Path) -> None:
    assert warned("inspect", tmp_path, CLMOE_LEARN_EPOCH="3") == [
        "warning: nothing reads the variable CLMOE_LEARN_EPOCH; did you mean CLMOE_LEARN_EPOCHS?"
    ]
    # Also before the complaint that what it was to say is missing.
    (line,) = warned("learn", tmp_path, CLMOE_LEARN_DATE="a.npz")
    assert line.endswith("did you mean CLMOE_LEARN_DATA?")
    assert warned("inspect --json", tmp_path, CLMOE_ZEBRA="1", CLMOE_STROE="x") == [
        "warning: nothing reads the variable CLMOE_STROE; did you mean CLMOE_STORE?",
        "warning: nothing reads the variable CLMOE_ZEBRA",
    ]
    odd = warned("inspect", tmp_path, **{"CLMOE_\x1b[31m\n": "1"})
    assert len(odd) == 1
    assert odd[0].isprintable()


def test_no_warning_where_none_is_due(tmp_path: Path) -> None:
    used = {
        "CLMOE_LEARN_EPOCHS": "3",
        "CLMOE_LEARN_MAX_DROP": "1",
        "CLMOE_PRUNE_YES": "0",
        "CLMOE_VERBOSE": "0",
        "CLMOE_LOCK_TIMEOUT": "1",
        "CLMOE_INSPECT_FORMAT": "md",
        "CLMOE_DETECT_STORE": "x",
        "CLMOE_DEBUG": "0",
        "CLMOE_PREDICT_DEVICE": "cpu",
        "CLMOEX": "1",
    }
    assert warned("inspect", tmp_path, **used) == []
    # A warning is no hint: -q does not take it away.
    assert len(warned("inspect -q", tmp_path, CLMOE_ZEBRA="1")) == 1
    assert len(warned("inspect", tmp_path, CLMOE_ZEBRA="1", CLMOE_QUIET="1")) == 1


def test_no_variable_asks_for_help_a_version_or_completion(tmp_path: Path) -> None:
    names = ("VERSION", "HELP", "INSTALL_COMPLETION", "SHOW_COMPLETION", "INSPECT_HELP")
    variables = {f"CLMOE_{name}": "1" for name in names}
    assert [line.split()[5].rstrip(";") for line in warned("inspect", tmp_path, **variables)] == sorted(variables)
    done = shells.spawn("--help", cwd=tmp_path, light=True)
    assert b"env var" not in done.stdout


def test_a_format_is_set_by_its_variable(tmp_path: Path) -> None:
    root = shells.folder(tmp_path)
    done = shells.spawn("inspect", "--store", root / "store", cwd=tmp_path, light=True, CLMOE_INSPECT_FORMAT="md")
    assert done.stdout.startswith(b"| generation |")


@pytest.mark.parametrize("args", [(), ("--help",)])
def test_help_fits_into_eighty_columns(args: tuple[str, ...], tmp_path: Path) -> None:
    done = shells.spawn(*args, cwd=tmp_path, light=True, COLUMNS="80")
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 0
    assert lines[0] == "Usage: clmoe [OPTIONS] COMMAND [ARGS]..."
    commands = lines[lines.index("Commands:") + 1 :]
    assert len(commands) >= 7
    assert all(line.endswith(".") and not line.endswith("...") for line in commands), commands


def spoken(args: str, cwd: Path, **variables: str) -> str:
    done = shells.spawn(*args.split(), cwd=cwd, light=True, **variables)
    assert done.returncode != 0
    return done.stderr.decode()


def test_settings_of_a_folder_hold_in_the_folders_below(tmp_path: Path) -> None:
    below = tmp_path / "photos" / "today"
    below.mkdir(parents=True)
    (tmp_path / "clmoe.toml").write_text('store = "experts"\n')
    assert f"no store: {tmp_path / 'experts'}" in spoken("inspect", below)
    assert "no store: experts" in spoken("inspect", tmp_path)
    assert "no store: /else/where" in spoken("inspect --store /else/where", below)
    (tmp_path / "photos" / "clmoe.toml").write_text('store = "/near"\n')
    assert "no store: /near" in spoken("inspect", below)
    (tmp_path / "photos" / "clmoe.toml").write_text("stroe = 1\n")
    assert f"unknown setting: {tmp_path / 'photos' / 'clmoe.toml'} [stroe]" in spoken("inspect", below)


def test_the_store_may_stand_before_the_command(tmp_path: Path) -> None:
    (tmp_path / "clmoe.toml").write_text('store = "settings"\n')
    assert "no store: said" in spoken("--store said inspect", tmp_path, CLMOE_STORE="variable")
    assert "no store: later" in spoken("--store said inspect --store later", tmp_path)
    assert "schema has no store; found --store" in spoken("--store said schema learn", tmp_path)
    assert "Did you mean 'inspect'?" in spoken("--store said inspekt", tmp_path)


@pytest.mark.parametrize("command", ["learn", "detect"])
def test_data_may_stand_behind_the_command(command: str, tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"no npz")
    assert "no data given" in spoken(command, tmp_path)
    said = spoken(f"{command} a.npz --data b.npz", tmp_path)
    assert "data given twice; found a.npz and --data b.npz" in said
    assert "cannot read the data: missing.npz" in spoken(f"{command} missing.npz", tmp_path)


def test_a_variable_has_a_name_with_spaces_and_a_line_for_each_of_several(tmp_path: Path) -> None:
    root = shells.folder(tmp_path)
    for old, new in (("task1", "my birds"), ("task2", "birds")):
        assert shells.spawn("rename", old, new, "--store", root / "store", cwd=tmp_path, light=True).returncode == 0

    def would(wanted: str) -> list[str]:
        done = shells.spawn(
            "prune", "--dry-run", "--json", "--store", root / "store", cwd=tmp_path, light=True, CLMOE_PRUNE_TASK=wanted
        )
        found: list[str] = json.loads(done.stdout)["removed"]
        return found

    assert would("my birds") == ["my birds"]
    assert sorted(would("my birds\nbirds")) == ["birds", "my birds"]


@pytest.mark.parametrize(
    ("args", "variables", "words"),
    [
        ("learn x.npz", {"CLMOE_LEARN_EPOCHS": "three"}, "--epochs is set by the variable CLMOE_LEARN_EPOCHS"),
        ("predict x.npz", {"CLMOE_PREDICT_REJECT": "2"}, "found '2'; expected a number less than or equal to 1; "),
        ("learn x.npz", {"CLMOE_LEARN_DEVICE": "cdua"}, "'cuda'?; --device is set by the variable CLMOE_LEARN_DEVICE"),
        ("inspect", {"CLMOE_STORE": "away"}, "no store: away; clmoe learn creates it; --store is set by the variable"),
        ("detect", {"CLMOE_DETECT_DATA": "no.npz"}, "check the path; --data is set by the variable CLMOE_DETECT_DATA"),
        (
            "inspect",
            {"CLMOE_INSPECT_REPORT": "page.txt"},
            "; --report is set by the variable CLMOE_INSPECT_REPORT",
        ),
        ("export a.onnx", {"CLMOE_EXPORT_ALL": "?"}, "not a value of --all; found '?'; expected a valid boolean; "),
        ("--store away inspect", {"CLMOE_STORE": "away"}, "no store: away; clmoe learn creates it\n"),
        ("inspect --store away", {"CLMOE_STORE": "away"}, "no store: away; clmoe learn creates it\n"),
    ],
)
def test_an_error_names_the_variable_that_set_a_value(
    args: str, variables: dict[str, str], words: str, tmp_path: Path
) -> None:
    said = spoken(args, tmp_path, **variables)
    assert words in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize(
    ("args", "text", "words"),
    [
        ("learn x.npz", "epochs = 'three'", "[epochs]"),
        ("learn x.npz", "epochs = 7\n[learn]\nepochs = 0", "[learn.epochs]"),
        ("learn x.npz", "device = 'cdua'", "--device is set by clmoe.toml [device]"),
        ("inspect", "[inspect]\nstore = 'away'", "no store: away; clmoe learn creates it; --store is set by"),
        ("inspect", "quiet = 3", "not a value of --quiet; found 3; expected a valid boolean; "),
        ("predict", "[predict]\nsources = 'no.npz'", "check the path; sources is set by clmoe.toml [predict.sources]"),
        ("predict", "[predict]\ndata = 'no.npz'\nreport = 'page.txt'", "--batch is set by clmoe.toml [predict.data]"),
        ("learn x.npz", "[learn]\nmax_drop = -1", "[learn.max_drop]"),
    ],
)
def test_an_error_names_the_file_and_the_key_that_set_a_value(args: str, text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "clmoe.toml").write_text(text)
    said = spoken(args, tmp_path)
    assert words in said
    assert "set by clmoe.toml [" in said
    assert "variable" not in said
    assert "env var" not in said
    (tmp_path / "below").mkdir()
    assert f"set by {tmp_path / 'clmoe.toml'} [" in spoken(args, tmp_path / "below")


def test_json_may_stand_before_the_command(tmp_path: Path) -> None:
    root = shells.folder(tmp_path)
    (root / "clmoe.toml").write_text('store = "store"\n')
    ways = ("--json inspect", "inspect --json", "--json --store store inspect")
    found = [shells.spawn(*way.split(), cwd=root, light=True, CLMOE_JSON="0").stdout for way in ways]
    assert json.loads(found[0])["schema"].startswith("clmoe.inspect/")
    assert found == [found[0]] * 3
    assert json.loads(spoken("--json inspect --store away", root, CLMOE_JSON="0"))["error"]["where"] == "away"
    assert json.loads(spoken("--json schema", root))["error"]["what"] == "schema has no json"
    (root / "clmoe.toml").write_text("[inspect]\njson = true\n")
    assert json.loads(spoken("--store away inspect", root))["error"]["where"] == "away"


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ("log extra", "Got unexpected extra argument(s) (extra); expected clmoe log\n"),
        ("learn a.npz b.npz", "Got unexpected extra argument(s) (b.npz); expected clmoe learn [DATA]\n"),
        ("rename one", "Missing argument 'new'; expected clmoe rename OLD NEW\n"),
        ("copy one", "Missing argument 'TARGET'; expected clmoe copy SOURCE TARGET\n"),
    ],
)
def test_arguments_that_are_too_many_or_too_few_are_told_what_is_expected(
    args: str, words: str, tmp_path: Path
) -> None:
    assert spoken(args, tmp_path) == f"clmoe: {words}"
