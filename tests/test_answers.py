from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("answers")


@pytest.fixture
def datasets(answers: ModuleType) -> ModuleType:
    return importlib.import_module("datasets")


def clouds(n: int, d: int, classes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % classes
    return torch.randn((n, d), generator=rng) + 2 * torch.eye(classes, d)[y], y


def places(datasets: ModuleType, scratch: Path) -> object:
    return datasets.Places(None, None, scratch)


@pytest.mark.campaign
def test_the_benchmark_runs_small_and_reuses(
    answers: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(answers, "COMPARED", {"iris-shared": answers.EVERY["iris-shared"]})
    monkeypatch.setattr(sys, "argv", [
        "answers.py", "--only", "iris-shared", "cifar10", "--columns", "store", "before", "discriminant",
        "--epochs", "1", "--arch", "mlp:20", "--out", str(tmp_path), "--reuse",
    ])  # fmt: skip
    answers.main()
    shown = capsys.readouterr()
    assert "cifar10: skipped, cifar10.train.packed.npz is not in None" in shown.err
    found = json.loads((tmp_path / "answers.json").read_text())
    assert list(found["evidence"]) == ["iris-shared"]
    assert set(found["evidence"]["iris-shared"]) == {"before", "discriminant", "gate", "fused", "given", "images"}
    assert found["evidence"]["iris-shared"]["discriminant"] > 0.9
    row = found["honesty"]["iris-shared"]
    # Three classes of 15 test rows; those of the shared class are asked of both tasks.
    assert row["asked"] == 60
    assert row["tasks"] == 2
    assert row["held_out"] > 0
    assert row["logistic"] > 0.9
    assert shown.out.rstrip("\n") == (tmp_path / "answers.md").read_text().rstrip("\n")
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
    before = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("iris-shared*")}
    assert set(before) == {"iris-shared-0.store.json", "iris-shared-0.joint.json"}
    answers.main()
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.store.json")}.items() <= before.items()
    assert json.loads((tmp_path / "answers.json").read_text()) == found


def test_the_discriminant_is_that_of_scikit_learn(answers: ModuleType) -> None:
    x, y = clouds(300, 12, 4)
    asked, _ = clouds(50, 12, 4, seed=1)
    plain = LinearDiscriminantAnalysis(solver="lsqr").fit(x.numpy(), y.numpy())
    found = answers.discriminated(x, y, asked, 1e-9).log_softmax(1)
    np.testing.assert_allclose(found.numpy(), plain.predict_log_proba(asked.numpy()), atol=0.2, rtol=0.02)
    assert (found.argmax(1).numpy() == plain.predict(asked.numpy())).all()


def test_ranpac_is_ridge_regression_on_random_features(answers: ModuleType) -> None:
    x, y = clouds(200, 6, 3)
    projection = torch.randn((6, 40), generator=torch.Generator().manual_seed(0))
    gram, target = answers.sums(x, y, projection, 3)
    weights = answers.solved(gram, target, 0.1)
    features = (x @ projection).relu().numpy().astype(float)
    plain = Ridge(alpha=0.1 * float(gram.diagonal().mean()), fit_intercept=False)
    plain.fit(features, np.eye(3)[y.numpy()])
    np.testing.assert_allclose(weights.T.numpy(), plain.coef_, atol=1e-4)


@pytest.mark.parametrize("n", [20, 400])
def test_subspaces_are_the_leading_directions(answers: ModuleType, n: int) -> None:
    x, y = clouds(2 * n, 30, 2)
    x = x * torch.linspace(3, 0.2, 30)
    found = answers.Subspaces.fit(x, y, 2).distances(x)
    for c in range(2):
        own = x[y == c].double()
        k = min(128, len(own) // 4, 15)
        rows = torch.linalg.svd(own - own.mean(0))[2][:k]
        centred = x.double() - own.mean(0)
        wanted = centred.square().sum(1) - (centred @ rows.T).square().sum(1)
        torch.testing.assert_close(found[:, c].double(), wanted, rtol=0.02, atol=0.02)


def test_choices_are_made_on_held_out_inputs(answers: ModuleType) -> None:
    x, y = clouds(40, 5, 2)
    split = answers.Split(x, y, torch.arange(40) % 10 == 0, x, 2, 0)
    seen = []

    def scores(x: torch.Tensor, y: torch.Tensor, asked: torch.Tensor, right: bool) -> torch.Tensor:
        seen.append((len(x), len(asked)))
        truth = torch.eye(2)[split.y[split.held]]
        return truth if right else 1 - truth

    assert split.chosen(scores, (False, True)) is True
    assert seen == [(36, 4)] * 2


@pytest.mark.parametrize("column", ["ranpac", "linear", "mlp"])
def test_plainer_tools_learn_what_is_easy(answers: ModuleType, column: str) -> None:
    x, y = clouds(400, 8, 4)
    test, truth = clouds(200, 8, 4, seed=1)
    split = answers.Split(x, y, torch.arange(400) % 10 == 0, test, 4, 0)
    size = {"ranpac": {"size": 100}, "linear": {"epochs": 100}, "mlp": {"epochs": 20}}[column]
    found = getattr(answers, column)(split, None, **size)
    best = answers.discriminated(x, y, test, 1e-3)
    reached, wanted = (float((s.argmax(1) == truth).double().mean()) for s in (found["scores"], best))
    assert reached > wanted - 0.1
    assert found["chosen"]


def task(**figures: object) -> dict[str, object]:
    plain = {"reported": 0.9, "held_out": 100, "predicted": 180, "asked": 200, "end": 180, "given": 180}
    return {**plain, "gained": 0, "lost": 0, "warnings": [], **figures}


def test_reports_are_judged_in_standard_errors(answers: ModuleType) -> None:
    row = answers.honest({"tasks": [task(), task(end=150)], "noise": False})
    assert row["reported"] == row["predicted"] == 0.9
    assert row["z_end"] > 2
    assert (row["z"], row["tasks_apart"], row["below"], row["guessing"]) == (0, 0, 0, False)
    # A task without a report does not count; a poor one next to it does.
    row = answers.honest({"tasks": [task(reported=None, held_out=0), task(reported=0.6)], "noise": False})
    assert row["tasks_apart"] == 1
    assert -7 < row["z"] < -5
    assert row["held_out"] == 100
    # The plain binomial error, with one share for both.
    share = (60 + 180 + 1) / 302
    assert answers.apart(60, 100, 180, 200) == pytest.approx(-0.3 / np.sqrt(share * (1 - share) * (1 / 100 + 1 / 200)))
    assert answers.apart(10, 10, 50, 50) == 0
    row = answers.honest({"tasks": [task(reported=None, held_out=0, warnings=["guessing"])], "noise": True})
    assert (row["z"], row["guessing"]) == (None, True)


def test_a_named_task_is_judged_on_the_same_inputs(answers: ModuleType) -> None:
    differences = np.array([1] * 3 + [-1] * 9 + [0] * 88)
    error = differences.std(ddof=1) / 10
    assert answers.below(3, 9, 100) == pytest.approx(0.06 / error)
    assert answers.below(9, 3, 100) == answers.below(0, 0, 5) == 0
    # One input among any number is one standard error, and no more.
    assert answers.below(0, 1, 54) == pytest.approx(1)
    row = answers.honest({"tasks": [task(lost=1), task(lost=9, gained=3)], "noise": False})
    assert row["tasks_below"] == 1


def test_warnings_are_read_from_old_and_new_reports(answers: ModuleType) -> None:
    class Old:
        guessing = True

    class New:
        guessing = True
        warnings = ({"code": "imbalance", "text": ""},)

    assert answers.warned(Old()) == ["guessing"]
    assert answers.warned(New()) == ["imbalance"]


def test_data_sets_are_cut_as_they_say(datasets: ModuleType, tmp_path: Path) -> None:
    assert datasets.groups(np.array(["b", "a", "c", "a"]), 2) == (("a", "b"), ("c",))
    for name in ("digits8", "digits8-pictures", "wine", "wine-shared", "shapes", "imbalanced", "moons", "noise"):
        data = datasets.EVERY[name](places(datasets, tmp_path))
        learned = [data.learned(i, 0) for i in range(len(data.tasks))]
        for batch, classes in zip(learned, data.tasks, strict=True):
            assert set(batch.classes()) == set(classes)
        together = np.concatenate([batch.images for batch in learned]).reshape(-1, data.train[0][0].size)
        assert set(map(bytes, together)) == set(map(bytes, data.train[0].reshape(len(data.train[0]), -1)))
        asked = data.asked()
        assert not set(map(bytes, asked.images)) & set(map(bytes, data.train[0]))
        again = datasets.EVERY[name](places(datasets, tmp_path))
        assert np.array_equal(data.test[0], again.test[0])
        assert np.array_equal(data.train[1], again.train[1])
    with pytest.raises(datasets.Absent, match="MNIST is not in"):
        datasets.EVERY["p6"](places(datasets, tmp_path))


def test_few_keeps_the_shares_of_the_classes(datasets: ModuleType) -> None:
    x, y = np.arange(300), np.repeat([0, 1], [100, 200])
    some, labels = datasets.few((x, y), 30, 0)
    assert np.bincount(labels).tolist() == [10, 20]
    assert np.array_equal(y[some], labels)
    assert datasets.few((x, y), 300, 0)[0] is x
