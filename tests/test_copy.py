"""``copy``: tasks of one store in another; nobody's answers change by a bit."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shells
import small_store as small
from pictures import batch as pictures

import clmoe
from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.generations import log, rename, undo
from clmoe_cli.api.learn import learn
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.data import Batch
from store_schema import (
    Store,
    StoreDamaged,
    StoreIncompatible,
    StoreMissing,
    UsageProblem,
    verify,
    writer,
)

GOLDEN = Path(__file__).parent / "golden"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return small.build(tmp_path / "source", 3)


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store of two tasks of digits that the other one does not know, learned with another seed."""
    root = tmp_path_factory.mktemp("others") / "store"
    for number, (name, classes) in enumerate({"task1": [1, 3], "more": [6, 8]}.items()):
        learn(str(root), pictures(classes, 60, number), clmoe.LearnOptions(
            name=name, arch=small.OPTIONS.arch, method=small.OPTIONS.method, seed=7))  # fmt: skip
    return root


@pytest.fixture
def target(others: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(others, tmp_path / "target"))


def content(root: Path) -> str:
    return Store.open(root).manifest.content_hash()


def whole(root: Path) -> bool:
    """Every file is, and every task's outputs are those of when it was learned."""
    return clmoe.inspect(str(root), check=True).verified is True


def test_a_copy_of_everything_is_the_same_store(source: Path, tmp_path: Path) -> None:
    report = copy(str(source), str(tmp_path / "new"))
    assert (report.applied, report.new_store, report.generation) == (True, True, 1)
    assert [(t.task, t.expert) for t in report.tasks] == [(t.old_task, t.old_expert) for t in report.tasks]
    assert content(tmp_path / "new") == content(source)
    assert small.answers(tmp_path / "new") == small.answers(source)
    assert whole(tmp_path / "new")
    for root in (tmp_path / "new", source):
        learn(str(root), pictures([1, 3], 60, 5), small.OPTIONS)
    assert content(tmp_path / "new") == content(source)


@pytest.mark.parametrize("tasks", [["task1"], ["task2"], ["task3", "task1"]])
def test_some_tasks_are_what_prune_of_the_others_leaves(tasks: list[str], source: Path, tmp_path: Path) -> None:
    copy(str(source), str(tmp_path / "new"), CopyOptions(tasks))
    before = small.told(source)
    assert small.told(tmp_path / "new") == {name: before[name] for name in sorted(tasks)}
    assert whole(tmp_path / "new")
    prune(str(source), PruneOptions([name for name in before if name not in tasks]), lambda plan: True)
    assert content(tmp_path / "new") == content(source)
    assert small.answers(tmp_path / "new") == small.answers(source)


def test_two_stores_become_one(source: Path, target: Path) -> None:
    there, here = small.told(source), small.told(target)
    untouched = content(source)
    options = CopyOptions(names={"task1": "bars"})
    planned = copy(str(source), str(target), CopyOptions(names=options.names, dry_run=True))
    assert (planned.applied, small.told(target)) == (False, here)
    report = copy(str(source), str(target), options)
    assert report.tasks == planned.tasks
    assert [(t.task, t.old_task) for t in report.tasks] == [("bars", "task1"), ("task2", "task2"), ("task3", "task3")]
    assert not {t.expert for t in report.tasks} & {t.expert for t in Store.open(target).manifest.tasks[:2]}
    now = small.told(target)
    # The name of the task is part of what is told.
    (label, _, confidence), was = now.pop("bars"), there.pop("task1")
    assert [label, confidence] == [was[0], was[2]]
    assert now == here | there
    now["bars"] = was
    assert content(source) == untouched
    assert whole(target)
    manifest = Store.open(target).manifest
    assert [t.number for t in manifest.tasks] == [1, 2, 3, 4, 5]
    assert all({m.task for m in t.measured or ()} <= set(now) for t in manifest.tasks)
    done = [(d.action, d.task, d.images, d.source) for d in log(str(target)).commits][-3:]
    assert done == [("copy", name, 60, "source") for name in ("bars", "task2", "task3")]


def test_all_tasks_of_a_merged_store_answer_without_a_task_id(source: Path, target: Path) -> None:
    copy(str(source), str(target), CopyOptions(names={"task1": "bars"}))
    for classes, name in (([0, 4], "bars"), ([1, 3], "task1"), ([6, 8], "more"), ([2, 7], "task2")):
        report = predict(str(target), pictures(classes, 80, 30))
        assert report.accuracy is not None
        assert report.accuracy > 0.9
        assert np.mean(report.task == name) > 0.9


def test_either_way_gives_the_same_answers(source: Path, target: Path, tmp_path: Path) -> None:
    """The gate depends on what is known alone, and on no order."""
    other = Path(shutil.copytree(source, tmp_path / "other"))
    rename(str(other), "task1", "bars")
    copy(str(source), str(target), CopyOptions(names={"task1": "bars"}))
    reverse = Path(shutil.copytree(target, tmp_path / "reverse"))
    prune(str(reverse), PruneOptions(["bars", "task2", "task3"]), lambda plan: True)
    copy(str(reverse), str(other))
    ours, theirs = (predict(str(root), small.questions()) for root in (target, other))
    assert ours.labels == theirs.labels
    assert ours.task.tolist() == theirs.task.tolist()
    assert ours.confidence.tobytes() == theirs.confidence.tobytes()
    assert ours.p_value.tobytes() == theirs.p_value.tobytes()


def test_a_merged_store_goes_on(source: Path, target: Path) -> None:
    copy(str(source), str(target), CopyOptions(["task3"]))
    before = small.told(target)
    report = learn(str(target), pictures([0, 4], 60, 1), small.OPTIONS)
    assert report.status == "learned"
    assert {name: told for name, told in small.told(target).items() if name in before} == before
    refined = learn(str(target), small.batch(3, 120), clmoe.LearnOptions(
        arch=small.OPTIONS.arch, method=small.OPTIONS.method, refine="task3"))  # fmt: skip
    assert refined.status == "refined"
    prune(str(target), PruneOptions("task1"), lambda plan: True)
    assert whole(target)


def test_an_undo_takes_a_copy_back(source: Path, target: Path) -> None:
    before, answers = content(target), small.answers(target)
    copy(str(source), str(target), CopyOptions(["task2", "task3"]))
    assert undo(str(target)).removed == ("task2", "task3")
    assert content(target) == before
    assert small.answers(target) == answers


def test_pruning_what_was_copied_gives_the_gate_of_before(source: Path, target: Path) -> None:
    before = [gate.solved for gate in Store.open(target).manifest.gates]
    copy(str(source), str(target), CopyOptions(["task2", "task3"]))
    assert [gate.solved for gate in Store.open(target).manifest.gates] != before
    prune(str(target), PruneOptions(["task2", "task3"]), lambda plan: True)
    assert [gate.solved for gate in Store.open(target).manifest.gates] == before


def rows(first: int, scale: float = 1.0) -> Batch:
    """Rows of twelve numbers of two classes."""
    rng = np.random.default_rng(first)
    y = np.repeat(np.arange(first, first + 2), 60)
    return Batch((scale * (rng.normal(size=(120, 12)) + 6 * np.eye(12)[y])).astype(np.float32), y + 100, "rows")


def table(root: Path, first: int, scale: float = 1.0, name: str = "rows") -> Path:
    options = clmoe.LearnOptions(name=name, arch="mlp:16", method=small.OPTIONS.method)
    learn(str(root), rows(first, scale), options)
    return root


def test_other_kinds_of_input_come_beside(source: Path, tmp_path: Path) -> None:
    other = table(tmp_path / "table", 0)
    before = predict(str(other), rows(0))
    pictures_before = small.answers(source)
    copy(str(other), str(source))
    after = predict(str(source), rows(0))
    for name in ("label", "confidence", "p_value"):
        assert getattr(after, name).tobytes() == getattr(before, name).tobytes()
    assert small.answers(source) == pictures_before
    assert whole(source)
    assert len(Store.open(source).manifest.gates) == 2


def test_tables_of_one_unit_are_merged_and_of_another_refused(tmp_path: Path) -> None:
    first, second, far = (table(tmp_path / n, f, s, n) for n, f, s in (("a", 0, 1.0), ("b", 4, 1.0), ("c", 8, 300.0)))
    scales = [Store.open(root).manifest.gates[0].input_scale for root in (first, second, far)]
    if scales[0] == scales[1]:
        copy(str(second), str(first))
        assert whole(first)
    before = content(first)
    with pytest.raises(StoreIncompatible, match=r"tell such inputs apart in different ways.*input scale"):
        copy(str(far), str(first))
    assert content(first) == before


def test_the_range_of_joined_stores_is_that_of_both(tmp_path: Path) -> None:
    """So that a warning about another unit is given for what neither has."""
    near, far = table(tmp_path / "near", 0, 0.1, "near"), table(tmp_path / "far", 4, 0.5, "far")
    ranges = [Store.open(root).manifest.gates[0] for root in (near, far)]
    copy(str(near), str(far))
    both = Store.open(far).manifest.gates[0]
    for name in ("input_range", "input_lowest"):
        (low, high), (other_low, other_high) = (getattr(gate, name) for gate in ranges)
        assert getattr(both, name) == (min(low, other_low), max(high, other_high))
        assert getattr(both, name) not in ((low, high), (other_low, other_high))


def test_stores_of_other_features_are_refused(source: Path, tmp_path: Path) -> None:
    eyed = tmp_path / "eyed"
    options = clmoe.LearnOptions(arch=small.OPTIONS.arch, method=small.OPTIONS.method, eyes="first", name="eyed")
    learn(str(eyed), pictures([1, 3], 60, 0), options)
    with pytest.raises(StoreIncompatible, match=r"in different ways.*found --eyes first; expected --eyes none"):
        copy(str(eyed), str(source))
    copy(str(eyed), str(tmp_path / "new"))
    assert content(tmp_path / "new") == content(eyed)
    learn(str(eyed), pictures([6, 8], 60, 0), clmoe.LearnOptions(arch=options.arch, method=options.method, name="x"))
    copy(str(eyed), str(tmp_path / "new"), CopyOptions(["x"]))
    gates = [Store.open(root).manifest.gates for root in (eyed, tmp_path / "new")]
    assert gates[0] == gates[1]
    assert whole(tmp_path / "new")


@pytest.mark.parametrize("number", [1, 2, 3])
def test_stores_of_older_formats_are_copied(number: int, tmp_path: Path) -> None:
    golden, new = GOLDEN / f"format{number}" / "store", tmp_path / "new"
    copy(str(golden), str(new))
    manifests = [Store.open(root).manifest for root in (golden, new)]
    old, now = ([(t.name, t.number, t.expert, t.subnetwork_sha256) for t in m.tasks] for m in manifests)
    assert now == old
    assert [f for f in verify(new) if f.damage] == []
    images = Batch(np.load(GOLDEN / f"format{number}" / "expected.npz")["x"], None, "golden")
    for task in (None, *(t.name for t in manifests[0].tasks)):
        before, after = (predict(str(root), images, task=task) for root in (golden, new))
        for name in ("label", "task", "confidence", "p_value"):
            assert getattr(after, name).tobytes() == getattr(before, name).tobytes()
    part = tmp_path / "part"
    copy(str(golden), str(part), CopyOptions(["task2"]))
    copy(str(golden), str(part), CopyOptions(["task1"]))
    again, whole = (predict(str(root), images) for root in (part, golden))
    assert again.label.tolist() == whole.label.tolist()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (CopyOptions(["tusk1"]), UsageProblem, "unknown task; found 'tusk1'.*did you mean 'task1'"),
        (CopyOptions(), UsageProblem, r"exist already; found 'task1'; .*--rename task1=NEW"),
        (CopyOptions(names={"task2": "task1"}), UsageProblem, "exist already; found 'task1';"),
        (CopyOptions(["task2"], {"task2": "more"}), UsageProblem, "exist already; found 'more'"),
        (CopyOptions(names={"task1": "q", "task2": "q"}), UsageProblem, "tasks would have one name; found 'q'"),
        (CopyOptions(["task2"], {"task1": "x"}), UsageProblem, "unknown task to rename; found 'task1'"),
        (CopyOptions(["task2"], {"task2": "a\nb"}), UsageProblem, "not a name for a task"),
    ],
)
def test_names_that_do_not_go_together(
    options: CopyOptions, error: type[Exception], message: str, source: Path, target: Path, tmp_path: Path
) -> None:
    before = shells.contents(target)
    with pytest.raises(error, match=message):
        copy(str(source), str(target), options)
    assert shells.contents(target) == before


def test_a_refused_copy_makes_no_store(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem):
        copy(str(source), str(tmp_path / "new"), CopyOptions(["nobody"]))
    with pytest.raises(UsageProblem, match="into itself"):
        copy(str(source), f"{source}/../source")
    with pytest.raises(StoreMissing, match="no store"):
        copy(str(tmp_path / "nowhere"), str(tmp_path / "new"))
    copy(str(source), str(tmp_path / "new"), CopyOptions(dry_run=True))
    assert not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("dear")
    with pytest.raises(StoreMissing, match="holds no store"):
        copy(str(source), str(tmp_path / "mine"))


def test_no_store_lies_in_another(source: Path, target: Path, tmp_path: Path) -> None:
    before = shells.contents(tmp_path)
    for one, other in ((source, source / "sub"), (source, source / "objects" / "sub"), (source, tmp_path)):
        with pytest.raises(
            UsageProblem, match=r"a store cannot lie in another one; found .* and .*; name another folder"
        ):
            copy(str(one), str(other))
    with pytest.raises(StoreMissing, match=f"cannot lie in another one: .*sub; found the store {target}"):
        copy(str(source), str(target / "sub"))
    with pytest.raises(StoreMissing, match="a store cannot lie in another one"):
        learn(str(target / "a" / "b"), small.batch(1), small.OPTIONS)
    assert shells.contents(tmp_path) == before


def test_labels_that_look_alike_are_refused(source: Path, tmp_path: Path) -> None:
    text = small.batch(1)
    assert text.labels is not None
    worded = Batch(text.images, text.labels.astype(str), "text")
    learn(str(tmp_path / "text"), worded, clmoe.LearnOptions(name="text", arch="mlp:8,8", method=small.OPTIONS.method))
    with pytest.raises(UsageProblem, match="labels clash with those of the store; found '0', '4' as text"):
        copy(str(tmp_path / "text"), str(source))


def test_a_damaged_source_is_not_copied(source: Path, target: Path) -> None:
    before = small.told(target)
    weights = Store.open(source).manifest.experts[0].weights
    assert weights is not None
    path = source / "objects" / weights.sha256[:2] / f"{weights.sha256}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(StoreDamaged):
        copy(str(source), str(target), CopyOptions(["task2"]))
    assert small.told(target) == before


def test_a_store_that_may_only_be_read_is_copied_while_another_process_writes_it(
    source: Path, target: Path, tmp_path: Path
) -> None:
    """The source is not locked and not written."""
    with writer(source):
        copy(
            str(source),
            str(target),
            CopyOptions(["task2"]),
        )
    for path in [source, *source.rglob("*")]:
        path.chmod(stat.S_IRUSR | stat.S_IXUSR if path.is_dir() else stat.S_IRUSR)
    before = shells.contents(source)
    copy(str(source), str(target), CopyOptions(["task3"]))
    assert shells.contents(source) == before
    for path in [source, *source.rglob("*")]:
        path.chmod(0o700)
    assert verify(target) == []


def test_the_command(source: Path, target: Path, tmp_path: Path) -> None:
    def said(*args: Any, code: int = 0) -> str:
        done = shells.spawn("copy", *args, cwd=tmp_path)
        assert done.returncode == code, done.stderr
        return (done.stdout or done.stderr).decode()

    assert "--rename task1=NEW" in said("source", "target", code=2)
    assert said("source", "new", "--dry-run").startswith("would copy 3 tasks into a new store\n")
    found = json.loads(
        said("source", "target", "--task", "task1", "--task", "task3", "--rename", "task1=bars", "--json")
    )
    assert [task["task"] for task in found["tasks"]] == ["bars", "task3"]
    assert said("source", "target", "--task", "task2").splitlines()[0] == "copied 1 task into generation 4"
    assert "OLD=NEW" in said("source", "new", "--rename", "bars", code=2)
    assert "renamed twice" in said("source", "new", "--rename", "task1=a", "--rename", "task1=b", code=2)
    with writer(target):
        locked = said("source", "target", "--rename", "task1=z", "--task", "task1", "--lock-timeout", "0", code=5)
    assert "locked by another writer" in locked


def test_a_damaged_source_makes_no_store(source: Path, tmp_path: Path) -> None:
    path = max(source.glob("objects/*/*.h5"), key=lambda path: path.stat().st_size)
    path.chmod(0o644)
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(StoreDamaged):
        copy(str(source), str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_copied_task_says_when_it_was_learned(source: Path, tmp_path: Path) -> None:
    copy(str(source), str(tmp_path / "new"))
    name = Store.open(source).manifest.tasks[0].name
    done = shells.spawn("inspect", name, "--store", tmp_path / "new", cwd=tmp_path, light=True)
    assert b"copied" in done.stdout
    assert b"from store source" in done.stdout
