from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributions import Gamma

from clmoe_cli.method.routing.calibration import LOWER, MINIMUM, Calibration, batch_p_value
from clmoe_cli.method.tasks.novelty import Evidence, Verdict, decide


@given(seed=st.integers(0, 1000))
def test_p_values_equal_counting(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    values = torch.randint(0, 20, (60,), generator=rng).double()
    asked = torch.randint(-2, 23, (30,), generator=rng).double()
    found = Calibration.of(values).p_values(asked)
    for d, p in zip(asked.tolist(), found.tolist(), strict=True):
        above, below = (1 + sum(v >= d for v in values.tolist())), (1 + sum(v <= d for v in values.tolist()))
        assert p == pytest.approx(min(1.0, above / 61 / (1 - LOWER), below / 61 / LOWER))


def test_what_deviates_too_little_is_as_strange_as_what_deviates_too_much() -> None:
    calibration = Calibration.of(torch.arange(100).double())
    low, typical, high = calibration.p_values(torch.tensor([-1.0, 50.0, 200.0])).tolist()
    assert high < low < 0.2
    assert 0.5 < typical < 0.6
    assert batch_p_value(calibration.p_values(torch.full((32,), -1.0)), 100) < 0.01


def test_p_values_are_not_available_below_the_minimum() -> None:
    few = Calibration.of(torch.arange(MINIMUM - 1).double())
    assert not few.available
    assert few.p_values(torch.zeros(3)).isnan().all()


@pytest.mark.parametrize("n", [1, 8, 32, 128, 256])
@pytest.mark.parametrize("held_out", [MINIMUM, 100, 600])
def test_false_alarms_stay_at_alpha(held_out: int, n: int) -> None:
    rng = torch.Generator().manual_seed(n)
    alarms = 0
    for _ in range(400):
        calibration = Calibration.of(torch.randn(held_out, generator=rng).exp())
        alarms += batch_p_value(calibration.p_values(torch.randn(n, generator=rng).exp()), held_out) < 0.05
    assert alarms / 400 <= 0.08


def test_shifted_batches_are_rejected() -> None:
    rng = torch.Generator().manual_seed(0)
    calibration = Calibration.of(torch.randn(600, generator=rng))
    shifted = [batch_p_value(calibration.p_values(1.5 + torch.randn(32, generator=rng)), 600) for _ in range(100)]
    assert sum(p < 0.01 for p in shifted) >= 99


def test_no_batch_has_a_p_value_of_nothing() -> None:
    assert batch_p_value(torch.full((500,), 1e-4, dtype=torch.float64), 6000) == 1e-300


def test_batch_p_value_is_the_gamma_tail() -> None:
    p = torch.tensor([0.3, 0.01, 0.7], dtype=torch.float64)
    gamma = Gamma(torch.tensor(3.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    assert batch_p_value(p, 2, margin=0.0) == pytest.approx(1 - float(gamma.cdf(-p.log().sum())), rel=1e-6)
    assert batch_p_value(p[:1], 1, margin=0.0) == pytest.approx(0.3)
    # Thirty images count for four: more than two calibration images cannot tell.
    four = Gamma(torch.tensor(4.0, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64))
    tail = 1 - float(four.cdf(-4 * p.log().mean()))
    assert batch_p_value(p.repeat(10), 2, margin=0.0) == pytest.approx(tail, rel=1e-6)


GOOD, BAD = torch.full((20,), 0.5, dtype=torch.float64), torch.full((20,), 0.002, dtype=torch.float64)
HALF = torch.cat([GOOD[:10], BAD[:10]])
ZERO_ONE = torch.arange(20) % 2
A = Evidence(GOOD, ZERO_ONE, frozenset({0, 1}), 600)
FAR = Evidence(BAD, ZERO_ONE + 2, frozenset({2, 3}), 600)
MIXED = {
    "a": Evidence(HALF, ZERO_ONE, A.classes, 600),
    "b": Evidence(HALF.flip(0), ZERO_ONE + 2, FAR.classes, 600),
}


NONE = torch.full((20,), math.nan, dtype=torch.float64)
FEW = Evidence(NONE, ZERO_ONE, frozenset({0, 1}), 20)
"""A task with too few images for p-values."""
RARE = Evidence(GOOD.where(ZERO_ONE == 0, math.nan), ZERO_ONE, frozenset({0, 1}), 600)
"""A task of which a class is too rare for p-values: half of the images are next to it."""
RARER = Evidence(BAD.where(torch.arange(20) > 10, math.nan), ZERO_ONE, frozenset({0, 1}), 600)
"""The same, next to which are more than half of the images."""


@pytest.mark.parametrize(
    ("tasks", "labels", "outcome", "names", "reason"),
    [
        ({}, None, "new", (), "no task is known yet"),
        ({"far": FAR}, None, "new", (),
         "its images deviate from every known task (nearest far, p = {far}, below alpha = 0.01)"),
        ({"far": FAR, "few": FEW}, None, "undecided", (),
         "its images deviate from far (nearest far, p = {far}, below alpha = 0.01), but few could not judge (too few "
         "images)"),
        ({"few": FEW}, None, "undecided", (), "no known task near it has the 30 images a class that p-values need"),
        ({"rarer": RARER}, None, "undecided", (),
         "no known task near it has the 30 images a class that p-values need"),
        ({"rare": RARE}, None, "known", ("rare",), "it looks like rare (p = {rare}, not below alpha = 0.01)"),
        ({"rarer": RARER, "far": FAR}, None, "undecided", (),
         "its images deviate from far (nearest far, p = {far}, below alpha = 0.01), but rarer could not judge (too few "
         "images)"),
        ({"far": FAR, "few": FEW}, ZERO_ONE + 8, "new", (), "it has classes that no known task near it has: #8, #9"),
        ({"far": FAR, "few": FEW}, ZERO_ONE, "known", ("few",),
         "no p-value for want of images, but it looks like few, which predicts 100 % of its labels (90 % are needed)"),
        ({"far": FAR, "few": FEW}, 1 - ZERO_ONE, "undecided", (),
         "its images and labels fit none of far, but few, which knows some of its labels, could not judge (too few "
         "images)"),
        ({"far": FAR, "few": FEW}, ZERO_ONE + 2, "new", (),
         "its images and labels together fit no known task (p = {far} with the tasks that know the labels, below "
         "alpha = 0.01)"),
        ({"far": FAR}, ZERO_ONE + 2, "new", (),
         "its images and labels together fit no known task (p = {far} with the tasks that know the labels, below "
         "alpha = 0.01)"),
        ({"a": A, "far": FAR}, None, "known", ("a",), "it looks like a (p = {a}, not below alpha = 0.01)"),
        ({"a": A, "far": FAR}, ZERO_ONE, "known", ("a",),
         "it looks like a (p = {a}, not below alpha = 0.01), and 100 % of its labels agree"),
        ({"a": A, "far": FAR}, ZERO_ONE.where(torch.arange(20) > 3, 0), "known", ("a",),
         "it looks like a (p = {a}, not below alpha = 0.01), and 90 % of its labels agree"),
        ({"a": A, "far": FAR}, 1 - ZERO_ONE, "new", (),
         "it looks like a (p = {a}, not below alpha = 0.01), but its labels conflict with a: 0 % agree, 50 % are "
         "needed"),
        ({"a": A, "far": FAR}, ZERO_ONE + 8, "new", (),
         "it has classes that no known task near it has: #8, #9; yet it looks like a (p = {a}, not below alpha = "
         "0.01)"),
        ({"a": A, "far": FAR}, torch.arange(20), "new", (),
         "it has classes that no known task near it has: #4, #5, #6, #7, #8, #9, #10, #11 and 8 more; yet it looks "
         "like a (p = {a}, not below alpha = 0.01)"),
        ({"a": A, "far": FAR}, ZERO_ONE + 2, "new", (),
         "its images and labels together fit no known task (p = {far} with the tasks that know the labels, below "
         "alpha = 0.01)"),
        (MIXED, None, "known", ("a", "b"), "each image fits one of the tasks a, b (p = {a}, not below alpha = 0.01)"),
        (MIXED, torch.cat([ZERO_ONE[:10], ZERO_ONE[10:] + 2]), "known", ("a", "b"),
         "each image and its label fit one of the tasks a, b (p = {a}, not below alpha = 0.01; 100 % of its labels "
         "agree)"),
        (MIXED, torch.cat([1 - ZERO_ONE[:10], 3 - ZERO_ONE[10:]]), "new", (),
         "its images and labels together fit no known task (0 % of its labels agree with the tasks that its images "
         "fit, 50 % are needed)"),
        ({"few": FEW}, ZERO_ONE, "known", ("few",),
         "no p-value for want of images, but it looks like few, which predicts 100 % of its labels (90 % are needed)"),
        ({"few": FEW}, 1 - ZERO_ONE, "undecided", (),
         "no known task fits: none has images enough for a p-value; few predicts 0 % of its labels, 90 % are needed"),
        ({"few": FEW, "more": Evidence(NONE, ZERO_ONE + 1, frozenset({1, 2}), 20)},
         ZERO_ONE.where(torch.arange(20) > 0, 2), "undecided", (),
         "no known task fits: none has images enough for a p-value; few predicts 95 % of its labels, but has not all "
         "of its classes"),
    ],
)  # fmt: skip
def test_the_table_of_known_and_new(tasks, labels, outcome, names, reason) -> None:
    verdict = decide(tasks, labels, 0.01, lambda code: f"#{code}")
    assert (verdict.verdict, verdict.tasks, verdict.known) == (outcome, names, outcome == "known")
    p = {name: f"{e.p_value():.2g}" for name, e in (("a", A), ("far", FAR), ("rare", RARE))}
    assert verdict.reason == reason.format(**p)


@pytest.mark.parametrize(
    ("tasks", "labels"),
    [
        ({"a": A, "far": FAR}, None),
        ({"a": A, "far": FAR}, ZERO_ONE),
        (MIXED, None),
        (MIXED, torch.cat([ZERO_ONE[:10], ZERO_ONE[10:] + 2])),
    ],
    ids=["one", "one, labelled", "several", "several, labelled"],
)
def test_the_rate_of_false_alarms_is_what_p_values_are_held_against(tasks, labels) -> None:
    p = decide(tasks, labels, 0.01).p_value
    assert p is not None
    assert 0.01 < p < 0.99
    assert decide(tasks, labels, 0.999 * p).verdict == "known"
    assert decide(tasks, labels, 1.001 * p).verdict == "new"
    assert decide({"far": FAR}, None, 0.9 * FAR.p_value()).verdict == "known"


def test_tasks_without_p_values_are_known_by_their_predictions_only() -> None:
    tasks = {"few": FEW}
    assert decide(tasks, ZERO_ONE, 0.01).known
    assert decide(tasks, ZERO_ONE, 0.01).p_value is None
    assert not decide(tasks, 1 - ZERO_ONE, 0.01).known
    assert not decide(tasks, None, 0.01).known


def test_evidence_of_whole_batches_judges_no_image_by_itself() -> None:
    """Each image fits one of two tasks, which counts only where single images can be told apart."""
    single = {"a": MIXED["a"], "b": MIXED["b"]}
    assert decide(single, None, 0.01).known
    whole = {name: replace(evidence, whole=1e-6) for name, evidence in single.items()}
    verdict = decide(whole, None, 0.01)
    assert (verdict.verdict, verdict.p_value) == ("new", 1e-6)
    fits = {**whole, "a": replace(MIXED["a"], whole=0.5)}
    assert decide(fits, None, 0.01).tasks == ("a",)


def test_images_of_a_mixed_batch_count_by_the_task_that_answers_them() -> None:
    first = torch.arange(20) < 10

    def outcome(by_a: Tensor, by_b: Tensor) -> Verdict:
        tasks = {"a": replace(MIXED["a"], won=by_a), "b": replace(MIXED["b"], won=by_b)}
        return decide(tasks, None, 0.01)

    assert outcome(first, ~first).tasks == ("a", "b")
    # Each is usual for the other task only, which does not answer it.
    assert outcome(~first, first).verdict == "new"
    # Tasks that were not compared answer them: the one that fits better counts.
    none = torch.zeros(20, dtype=torch.bool)
    assert outcome(none, none).tasks == ("a", "b")
    assert decide(MIXED, None, 0.01).tasks == ("a", "b")


def test_of_several_tasks_that_fit_the_one_that_answers_most_images_is_named() -> None:
    some = torch.arange(20) < 14
    likelier = replace(A, p=torch.full((20,), 0.9, dtype=torch.float64), classes=frozenset({2, 3}), won=~some)
    assert decide({"a": replace(A, won=some), "b": likelier}, None, 0.01).tasks == ("a",)
    assert decide({"a": A, "b": replace(likelier, won=None)}, None, 0.01).tasks == ("b",)
