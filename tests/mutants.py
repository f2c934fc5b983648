"""Deliberate faults in the code, each of which some test must notice; ``make mutants``.

One fault at a time is put into a copy of the packages, and the tests that are meant for it are run there. A fault that
they let pass has survived: a test of what users rely on is missing. Faults are exact texts that occur once in their
file, and tests are named one by one, so that the list cannot rot (tests/test_mutants.py).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
COPIED = ("clmoe", "clmoe_cli", "store_schema", "tests")
ENOUGH = 0.9
"""Share of the faults that must be killed."""
LONGEST = 300
"""Seconds after which the tests of a fault are stopped; the fault has then been noticed."""
PASSED, FAILED = 0, 1
"""Exit codes of pytest; any other means that it ran no test as it should."""


@dataclass(frozen=True)
class Fault:
    """In ``file`` the text ``before``, which occurs there once, becomes ``after``; one of ``tests`` must fail."""

    name: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    def put_into(self, root: Path) -> None:
        """Changes the file of this name below ``root``."""
        path = root / self.file
        path.write_text(changed(path.read_text(), self))


def changed(text: str, fault: Fault) -> str:
    """The text with the fault in it. Raises ValueError unless the text to be changed occurs exactly once."""
    if (found := text.count(fault.before)) != 1 or fault.before == fault.after:
        raise ValueError(f"{fault.name}: its text occurs {found} times in {fault.file}")
    return text.replace(fault.before, fault.after)


LEARNING, TRAINING = "tests/method/test_learning.py", "tests/method/test_training.py"
ROUNDING, STARTING = "tests/method/test_rounding.py", "tests/test_starting.py"
ONSET, GATE, GAUSSIANS = (f"tests/method/test_{name}.py" for name in ("calibration_onset", "gate", "gaussians"))
KERNELS, FUSION, IMAGES = (f"tests/method/test_{name}.py" for name in ("convolutions", "fusion", "image_scores"))
STORE, DAMAGE, FAULTS, CODECS = (
    f"tests/store_schema/test_{name}.py" for name in ("store", "damage", "faults", "codecs")
)
HOSTILE, PACKED = (f"tests/store_schema/test_{name}.py" for name in ("hostile", "directions"))
REPAIR, MIGRATIONS, STORED_GATES = (f"tests/store_schema/test_{name}.py" for name in ("repair", "migrations", "gates"))

FAULTS_OF_LEARNING = (
    Fault(
        "reads all frozen weights", "clmoe_cli/api/learn.py",
        "loader.frozen(expert, step.placement.reads)",
        "loader.frozen(expert)",
        ("tests/test_growth.py::test_a_task_reads_the_weights_of_constructive_tasks_and_of_no_others",),
    ),
    Fault(
        "training that other code has begun is gone on with", "clmoe_cli/api/resuming.py",
        '"code": _code(),', '"code": "",',
        ("tests/test_resume.py::test_nothing_else_picks_it_up",),
    ),
    Fault(
        "a value that is far too small loses its sign", "clmoe_cli/api/checks.py",
        'found=f"{float(row[at]) / scale:.3g}"', 'found=f"{float(largest[worst]) / scale:.3g}"',
        ("tests/test_misread.py::test_a_fill_value_of_a_table_is_found_by_its_column",),
    ),
    Fault(
        "unreadable weights are trained with", "clmoe_cli/method/learn_task.py",
        "torch.where(shared.readable[name], shared.weights[name], zero)",
        "shared.weights[name]",
        (f"{LEARNING}::test_frozen_weights_that_are_not_readable_are_not_used",),
    ),
    Fault(
        "unreadable weights are selected", "clmoe_cli/method/learn_task.py",
        "masks.intersection(chosen.mask, usable)",
        "chosen.mask",
        (f"{LEARNING}::test_frozen_weights_that_are_not_readable_are_not_used",),
    ),
    Fault(
        "scores of tuning images", "clmoe_cli/method/subnetwork/pruning.py",
        "without_idle(net, final, chosen.mask, scored)",
        "without_idle(net, final, chosen.mask, held_out)",
        (f"{LEARNING}::test_what_is_stored_is_of_the_images_that_it_is_meant_to_be_of",),
    ),
    Fault(
        "image scores of tuning images", "clmoe_cli/method/learn_task.py",
        "image_scores(net, params, scored.x, scored.y)",
        "image_scores(net, params, parts.tuning.x, parts.tuning.y)",
        (f"{LEARNING}::test_what_is_stored_is_of_the_images_that_it_is_meant_to_be_of",),
    ),
    Fault(
        "calibrated by training images", "clmoe_cli/method/learn_task.py",
        "own = held if len(held) else parts.training.subsample(CALIBRATION_LIMIT)",
        "own = parts.training.subsample(CALIBRATION_LIMIT)",
        (f"{LEARNING}::test_what_is_stored_is_of_the_images_that_it_is_meant_to_be_of",),
    ),
    Fault(
        "accuracy of tuning images", "clmoe_cli/method/learn_task.py",
        "accuracy = quality(net, params, held) if len(held) and classes > 1 else None",
        "accuracy = quality(net, params, parts.tuning) if len(held) and classes > 1 else None",
        (f"{LEARNING}::test_what_is_stored_is_of_the_images_that_it_is_meant_to_be_of",),
    ),
    Fault(
        "whitening judged by training images", "clmoe_cli/method/routing/mahalanobis.py",
        "values, held = blocks(net, params, training), blocks(net, params, held_out)",
        "values, held = blocks(net, params, training), blocks(net, params, training)",
        (f"{LEARNING}::test_what_is_stored_is_of_the_images_that_it_is_meant_to_be_of",),
    ),
    Fault(
        "trained on what is held out", "clmoe_cli/method/learn_task.py",
        "return Split(data.take(rest), data.take(held[0::2]), data.take(held[1::2]), held[1::2])",
        "return Split(data.take(order), data.take(held[0::2]), data.take(held[1::2]), held[1::2])",
        (f"{LEARNING}::test_held_out_parts_share_no_image",),
    ),
    Fault(
        "refining overwrites other tasks", "clmoe_cli/method/learn_task.py",
        "movable = masks.intersection(before.mask, setting.moved(masks.inverse(taken)))",
        "movable = before.mask",
        (f"{LEARNING}::test_refining_moves_nothing_that_another_task_uses",),
    ),
    Fault(
        "refining that makes it worse stands", "clmoe_cli/method/learn_task.py",
        "if quality(net, trained.params, parts.tuning).loss >= quality(net, before.params, parts.tuning).loss:",
        "if quality(net, trained.params, parts.tuning).loss < 0.0:",
        (f"{LEARNING}::test_refining_that_makes_it_worse_is_undone",),
    ),
    Fault(
        "masks of rounds are not nested", "clmoe_cli/method/subnetwork/pruning.py",
        "((value >= threshold) | ~free[name]) & (value > 0) & before.mask[name]",
        "((value >= threshold) | ~free[name]) & (value > 0)",
        (f"{LEARNING}::test_masks_of_later_rounds_lie_within_those_of_earlier_ones",),
    ),
    Fault(
        "readable weights are pruned as well", "clmoe_cli/method/subnetwork/pruning.py",
        "((value >= threshold) | ~free[name])",
        "(value >= threshold)",
        (f"{LEARNING}::test_constructive_weights_are_read_whole_and_others_not_at_all",),
    ),
    Fault(
        "idle weights stay selected", "clmoe_cli/method/subnetwork/pruning.py",
        "if masks.count(used) == masks.count(mask):",
        "if True:",
        (f"{LEARNING}::test_no_weight_with_zero_score_on_every_training_image_is_selected",),
    ),
    Fault(
        "sparser masks without proof", "clmoe_cli/method/subnetwork/pruning.py",
        "return mean <= self.max_drop and mean + 2 * error <= self.max_drop + self.resolution",
        "return mean <= self.max_drop",
        (f"{LEARNING}::test_a_mask_may_err_more_by_the_tolerance_where_the_images_can_tell",),
    ),
    Fault(
        "thawed under one optimizer", "clmoe_cli/method/subnetwork/training.py",
        "        moving.restore()\n",
        "        if not isinstance(moving.optimizer, torch.optim.RMSprop):\n            moving.restore()\n",
        (f"{TRAINING}::test_frozen_entries_keep_their_bits_under_every_optimizer",),
    ),
    Fault(
        "few frozen entries are thawed", "clmoe_cli/method/subnetwork/freezing.py",
        "bits.index_copy_(0, held, anchor)",
        "pass",
        (f"{TRAINING}::test_the_guard_puts_back_what_is_frozen_and_nothing_else",),
    ),
    Fault(
        "passes move statistics", "clmoe_cli/method/networks/convnet.py",
        "            self._call(params, x, False)\n",
        "            self._call(params, x, True)\n",
        (f"{KERNELS}::test_scores_and_deviation_equal_the_loop_over_single_images",),
    ),
    Fault(
        "placement moves a known task's statistics", "clmoe_cli/method/networks/convnet.py",
        "fresh = {key: value.clone() if key.endswith(STATISTICS) else value for key, value in params.items()}",
        "fresh = dict(params)",
        (f"{KERNELS}::test_adapted_statistics_are_those_of_the_images",),
    ),
    Fault(
        "gradients cancel between images", "clmoe_cli/method/subnetwork/gradient_scores.py",
        'f"{layer}.weight": absolute.T @ inputs.abs()',
        'f"{layer}.weight": (delta.T @ inputs).abs()',
        ("tests/method/test_importance.py::test_scores_equal_the_loop_over_single_images",),
    ),
    Fault(
        "constant units are forgotten", "clmoe_cli/method/subnetwork/compact.py",
        '[constant].relu()',
        '[constant] * 0.0',
        ("tests/method/test_compaction.py::test_the_same_answers",),
    ),
    Fault(
        "standardised numbers have no bound", "clmoe_cli/method/scaling.py",
        ".div_(self.spread).clamp_(-BOUND, BOUND)",
        ".div_(self.spread)",
        ("tests/method/test_scaling.py::test_columns_that_hardly_ever_vary_do_not_keep_the_rows_that_do",
         "tests/method/test_scaling.py::test_constant_columns_are_harmless_and_stay_so_when_they_vary_later",),
    ),
)  # fmt: skip

FAULTS_OF_PLACEMENT = (
    Fault(
        "divergence over the known mask", "clmoe_cli/method/tasks/placement.py",
        "_on(known.scores, known.mask), common)",
        "_on(known.scores, known.mask), known.mask)",
        (f"{LEARNING}::test_scores_diverge_over_what_both_select",),
    ),
    Fault(
        "any divergence will do", "clmoe_cli/method/tasks/placement.py",
        "    divergence: float = 0.9\n",
        "    divergence: float = 9.0\n",
        (f"{LEARNING}::test_what_is_constructive_by_default",),
    ),
    Fault(
        "no overlap is too little", "clmoe_cli/method/tasks/placement.py",
        "    least: float = 0.12\n",
        "    least: float = 0.0\n",
        (f"{LEARNING}::test_what_is_constructive_by_default",),
    ),
    Fault(
        "overlap by chance will do", "clmoe_cli/method/tasks/placement.py",
        "least = max(thresholds.overlap * chance.overlap, least)",
        "least = max(0.0, least)",
        (f"{LEARNING}::test_what_is_constructive_by_default",),
    ),
    Fault(
        "placed where nothing is free", "clmoe_cli/method/tasks/placement.py",
        "if room[c.expert][0] >= thresholds.capacity]",
        "if room[c.expert][0] >= 0.0]",
        (f"{LEARNING}::test_placement_by_all_causes",),
    ),
    Fault(
        "alpha is ignored by images", "clmoe_cli/method/tasks/novelty.py",
        "(name for name in batch if batch[name] >= alpha)",
        "(name for name in batch if batch[name] >= 0.01)",
        (f"{ONSET}::test_the_rate_of_false_alarms_is_what_p_values_are_held_against",),
    ),
    Fault(
        "alpha is ignored by batches of several tasks", "clmoe_cli/method/tasks/novelty.py",
        "        if mixed >= alpha:\n            names",
        "        if mixed >= 0.01:\n            names",
        (f"{ONSET}::test_the_rate_of_false_alarms_is_what_p_values_are_held_against",),
    ),
    Fault(
        "alpha is ignored by labelled batches of several tasks", "clmoe_cli/method/tasks/novelty.py",
        "if mixed >= alpha and share >= AGREEMENT:",
        "if mixed >= 0.01 and share >= AGREEMENT:",
        (f"{ONSET}::test_the_rate_of_false_alarms_is_what_p_values_are_held_against",),
    ),
    Fault(
        "mixed batches by the largest p-value", "clmoe_cli/method/tasks/novelty.py",
        "return own.where(won.any(dim=0), largest), answering.where(won.any(dim=0), at)",
        "return largest, at",
        (f"{ONSET}::test_images_of_a_mixed_batch_count_by_the_task_that_answers_them",),
    ),
    Fault(
        "p-values of answers by their class alone", "clmoe_cli/method/routing/gaussians.py",
        "        if not len(self.best):\n            return super()",
        "        if True:\n            return super()",
        (f"{GAUSSIANS}::test_p_values_of_a_tasks_own_new_images_are_uniform_however_many_classes_it_has",),
    ),
    Fault(
        "as many folds for few images", "clmoe_cli/method/routing/gaussians.py",
        "fine = FOLDS if len(y) >= MANY * classes else FINE",
        "fine = FOLDS",
        (f"{GAUSSIANS}::test_means_covariances_and_quantiles_are_those_of_the_images",),
    ),
    Fault(
        "a fifth of two columns left out", "clmoe_cli/method/subnetwork/training.py",
        "        share = min(1.0, count / FEW_INPUTS)\n",
        "        share = 1.0\n",
        ("tests/method/test_learning.py::test_of_two_inputs_none_is_left_out_so_often_that_classes_look_alike",),
    ),
    Fault(
        "neighbours by the column of the largest unit", "clmoe_cli/method/routing/gaussians.py",
        "((folds(y, values / units), True)",
        "((folds(y, values), True)",
        (f"{GAUSSIANS}::test_the_choice_is_made_by_images_that_were_left_out",),
    ),
    Fault(
        "shares whatever held-out images say", "clmoe_cli/method/routing/gaussians.py",
        "    chosen = _telling(grids)\n",
        "    chosen = len(powers) - 1\n",
        (f"{GAUSSIANS}::test_shares_that_tell_nothing_leave_classes_equally_likely",),
    ),
    Fault(
        "scores without the shares of classes", "clmoe_cli/method/routing/gaussians.py",
        " + task.priors[self.position[one]]",
        "",
        (f"{GAUSSIANS}::test_scores_have_the_priors_of_their_classes",),
    ),
    Fault(
        "shares are not stored", "clmoe_cli/store_tensors.py",
        "value.any() if name == PRIORS else",
        "False if name == PRIORS else",
        ("tests/test_tables.py::test_rows_of_a_rare_class_are_answered_as_often_as_they_are_met",),
    ),
    Fault(
        "choices by images whose neighbours are learned", "clmoe_cli/method/routing/gaussians.py",
        "((folds(y, values / units), True)",
        "((folds(y), True)",
        (f"{GAUSSIANS}::test_the_choice_is_made_by_images_that_were_left_out",),
    ),
    Fault(
        "labels that conflict are known", "clmoe_cli/method/tasks/novelty.py",
        "        if share >= AGREEMENT:\n",
        "        if share >= 0.0:\n",
        (f"{ONSET}::test_the_table_of_known_and_new",),
    ),
    Fault(
        "p-values off by one", "clmoe_cli/method/routing/calibration.py",
        "upper = (at_least(self.values, deviations) + 1) / (n + 1)",
        "upper = at_least(self.values, deviations) / (n + 1)",
        (f"{ONSET}::test_p_values_equal_counting",),
    ),
    Fault(
        "what deviates too little is usual", "clmoe_cli/method/routing/calibration.py",
        "return torch.minimum(upper / (1 - LOWER), lower / LOWER).clamp(max=1.0)",
        "return (upper / (1 - LOWER)).clamp(max=1.0)",
        (f"{ONSET}::test_what_deviates_too_little_is_as_strange_as_what_deviates_too_much",),
    ),
    Fault(
        "large batches are surer than their calibration", "clmoe_cli/method/routing/calibration.py",
        "counted = min(len(p), COUNTED * calibration)",
        "counted = len(p)",
        (f"{ONSET}::test_batch_p_value_is_the_gamma_tail",),
    ),
    Fault(
        "batches compared with larger ones", "clmoe_cli/method/subnetwork/image_scores.py",
        "size = sum(size <= images for size in SIZES[: len(calibration)])",
        "size = len(calibration)",
        (f"{IMAGES}::test_a_batch_is_compared_with_drawn_ones_of_no_larger_size",),
    ),
)  # fmt: skip

FAULTS_OF_ROUTING = (
    Fault(
        "the paper's router without overlap", "clmoe_cli/method/routing/paper.py",
        "    return overlap - apart\n",
        "    return -apart\n",
        (f"{LEARNING}::test_without_image_scores_the_papers_router_weighs_overlap_and_divergence",),
    ),
    Fault(
        "less sharp in formats 1 and 2", "clmoe_cli/method/routing/subspaces.py",
        "SHARPNESS = 1.7\n",
        "SHARPNESS = 0.8\n",
        (f"{GATE}::test_stores_of_formats_1_and_2_are_as_sure_as_they_were_learned",),
    ),
    Fault(
        "near classes keep their coarse distance", "clmoe_cli/method/routing/subspaces.py",
        "FAR = 2.5\n",
        "FAR = 1.05\n",
        (f"{GATE}::test_a_class_that_only_seems_farther_is_looked_at_in_full",),
    ),
    Fault(
        "p-values of formats 1 and 2 off by one", "clmoe_cli/method/routing/subspaces.py",
        "return (farther * count + 1) / (count + 1)",
        "return farther * count / (count + 1)",
        (f"{GATE}::test_few_images_give_few_directions_and_no_false_p_values",),
    ),
    Fault(
        "a far image outvotes a batch", "clmoe_cli/method/routing/gaussians.py",
        "return (likely - likely.amax(dim=1, keepdim=True)).clamp_min(-BOUND).sum(dim=0)",
        "return (likely - likely.amax(dim=1, keepdim=True)).sum(dim=0)",
        (f"{GAUSSIANS}::test_only_the_tasks_of_the_shortlist_are_read_and_batches_find_theirs",),
    ),
    Fault(
        "the shared covariance hangs on the order of learning", "clmoe_cli/method/routing/gaussians.py",
        "canonical = sorted(range(len(tasks)), key=lambda t: _key(tasks[t]))",
        "canonical = list(range(len(tasks)))",
        (f"{GAUSSIANS}::test_the_order_of_the_tasks_changes_no_bit_of_what_they_share",),
    ),
    Fault(
        "Woodbury with the wrong sign", "clmoe_cli/method/routing/gaussians.py",
        "        y = x - (x @ reach) @ reach.T\n        found = values",
        "        y = x + (x @ reach) @ reach.T\n        found = values",
        (f"{GAUSSIANS}::test_scores_are_those_of_whole_covariance_matrices",),
    ),
    Fault(
        "large variances are rounded as coarsely as small ones", "clmoe_cli/method/routing/rounding.py",
        "/ max(1, count) / own)",
        "/ max(1, count) / own.min())",
        (f"{ROUNDING}::test_it_is_what_the_equations_say",),
    ),
    Fault(
        "alpha chosen by images of the fit", "clmoe_cli/method/routing/gaussians.py",
        "some = few.nonzero()[:, 0]",
        "some = (rest & known[y]).nonzero()[:, 0]",
        (f"{GAUSSIANS}::test_the_choice_is_made_by_images_that_were_left_out",),
    ),
    Fault(
        "a large alpha is trusted", "clmoe_cli/method/routing/gaussians.py",
        "likeliest if likeliest <= TRUSTED else likeliest / 2",
        "likeliest",
        (f"{GAUSSIANS}::test_the_choice_is_the_likeliest_by_tallies_and_prior",
         f"{GAUSSIANS}::test_scores_are_those_of_whole_covariance_matrices"),
    ),
    Fault(
        "what lies too near is usual", "clmoe_cli/method/routing/gaussians.py",
        "return torch.minimum(found / (1 - LOWER), lower / LOWER).clamp(max=1.0)",
        "return found",
        (f"{GAUSSIANS}::test_of_vectors_both_tails_count",),
    ),
    Fault(
        "rounding is a distance", "clmoe_cli/method/routing/gaussians.py",
        "SAME = 1e-10\n",
        "SAME = 0.0\n",
        (f"{GAUSSIANS}::test_equal_images_are_usual_and_others_are_not",),
    ),
    Fault(
        "distances of images of the fit", "clmoe_cli/method/routing/gaussians.py",
        "distances[here, c] = settled(_own_distances(values[here].double(), own, units, part.variance))",
        "distances[here, c] = settled(_own_distances(values[here].double(), "
        "(whole.means[c], whole.directions[c], whole.variances[c]), units, whole.variance))",
        (f"{GAUSSIANS}::test_means_covariances_and_quantiles_are_those_of_the_images",
         f"{GAUSSIANS}::test_p_values_of_a_classes_own_new_images_are_uniform"),
    ),
    Fault(
        "a label of two tasks counts twice", "clmoe_cli/method/routing/decide.py",
        "posterior = scores.masked_fill(beaten, NEVER).softmax(dim=1)",
        "posterior = scores.softmax(dim=1)",
        (f"{FUSION}::test_a_label_of_two_tasks_counts_once",),
    ),
    Fault(
        "sure of a doubtful task", "clmoe_cli/method/routing/decide.py",
        "return replace(found, confidence=found.confidence * batch.sure, likely=likely)",
        "return found",
        (f"{FUSION}::test_a_batch_is_as_sure_of_its_task_as_the_evidence",),
    ),
    Fault(
        "a subnetwork speaks for other tasks", "clmoe_cli/method/routing/decide.py",
        "both = mixed(mine - whole, said, weight)",
        "both = mixed(mine - whole, said + 1.0, weight)",
        (f"{FUSION}::test_a_subnetwork_speaks_within_its_task_only",),
    ),
    Fault(
        "no noise on means", "clmoe_cli/method/privacy.py",
        "return found * variance.sqrt()[:, None]",
        "return found * 0.0",
        ("tests/test_privacy.py::test_means_have_the_noise_that_is_stated",),
    ),
    Fault(
        "small classes have means as measured", "clmoe_cli/method/privacy.py",
        "small = (counts > 0) & (counts < LEAST)",
        "small = counts < 0",
        ("tests/test_privacy.py::test_small_classes_have_a_mean_together_or_that_of_the_others",),
    ),
    Fault(
        "noise that the store can tell", "clmoe_cli/method/privacy.py",
        'key=int.from_bytes(digest.digest()[:16], "big")',
        "key=len(x)",
        ("tests/test_privacy.py::test_noise_hangs_on_every_image_and_on_nothing_that_is_stored",),
    ),
    Fault(
        "the eye's parts change places", "clmoe_cli/method/routing/network_eye.py",
        'LAST * _rooted(done.inputs["output"].double())',
        'EARLY * _rooted(done.inputs["output"].double())',
        ("tests/method/test_network_eye.py::test_it_sees_what_the_slow_reference_sees",),
    ),
    Fault(
        "the eye forgets its base", "clmoe_cli/api/gating.py",
        "return NetworkEye.of(record.arch, network(record, base), task.params)",
        "return NetworkEye.of(record.arch, network(record, {} if base else base), task.params)",
        ("tests/test_eyes.py::test_on_pretrained_weights_the_eye_names_them_and_they_stay",),
    ),
    Fault(
        "an eye's weights in other places", "clmoe_cli/store_tensors.py",
        "flat[tensor(at)] = tensor(values)",
        "flat[: len(at)] = tensor(values)",
        ("tests/test_eyes.py::test_all_tasks_are_seen_by_the_subnetwork_of_the_first",),
    ),
    Fault(
        "a pretrained eye without its normalisations", "clmoe_cli/api/starting.py",
        "own = {name: value for name, value in self.params.items() if name not in net.shared_shapes()}",
        "own = net.initial_owned(1, torch.Generator().manual_seed(0))",
        ("tests/test_eyes.py::test_pretrained_weights_look_as_they_are_whatever_was_learned_first",),
    ),
    Fault(
        "pretrained weights do not look of themselves", "clmoe_cli/api/session.py",
        "wanted = self.options.eyes or starts",
        'wanted = self.options.eyes or "none"',
        ("tests/test_eyes.py::test_pretrained_weights_look_as_they_are_whatever_was_learned_first",),
    ),
)  # fmt: skip

FAULTS_OF_THE_STORE = (
    Fault(
        "files are not synced", "store_schema/files.py",
        "                sync(fd)\n",
        "                pass\n",
        (f"{FAULTS}::test_a_commit_makes_everything_durable_before_head_names_it",),
    ),
    Fault(
        "folders are not synced", "store_schema/files.py",
        "        sync_folder(target.parent)\n",
        "        pass\n",
        (f"{FAULTS}::test_a_commit_makes_everything_durable_before_head_names_it",),
    ),
    Fault(
        "written before it is synced", "store_schema/files.py",
        """                sync(fd)
            finally:
                os.close(fd)
            rename(part, target)
""",
        """                rename(part, target)
                sync(fd)
            finally:
                os.close(fd)
""",
        (f"{FAULTS}::test_a_commit_makes_everything_durable_before_head_names_it",),
    ),
    Fault(
        "short writes are not completed", "store_schema/files.py",
        "left = left[write(fd, left) :]",
        "left = left[len(left) * (write(fd, left) >= 0) :]",
        (f"{FAULTS}::test_short_writes_are_completed",),
    ),
    Fault(
        "HEAD before its manifest", "store_schema/commit.py",
        """        files.write_durably(self.root / layout.TMP, path, data)
        write_format(self.root)  # before HEAD: an older version must not meet a manifest that it cannot read
        self._replace_head(
            Store(self.root, manifest, head_bytes(generation, hashlib.sha256(data).hexdigest(), manifest.repair_floor))
        )
""",
        """        write_format(self.root)
        self._replace_head(
            Store(self.root, manifest, head_bytes(generation, hashlib.sha256(data).hexdigest(), manifest.repair_floor))
        )
        files.write_durably(self.root / layout.TMP, path, data)
""",
        (f"{FAULTS}::test_a_commit_makes_everything_durable_before_head_names_it",),
    ),
    Fault(
        "FORMAT after HEAD", "store_schema/commit.py",
        """        write_format(self.root)  # before HEAD: an older version must not meet a manifest that it cannot read
        self._replace_head(
            Store(self.root, manifest, head_bytes(generation, hashlib.sha256(data).hexdigest(), manifest.repair_floor))
        )
""",
        """        self._replace_head(
            Store(self.root, manifest, head_bytes(generation, hashlib.sha256(data).hexdigest(), manifest.repair_floor))
        )
        write_format(self.root)
""",
        (f"{MIGRATIONS}::test_stopped_between_format_and_head",),
    ),
    Fault(
        "commits name objects that are not there", "store_schema/commit.py",
        "            objects.get(self.root, ref)\n        objects.reserve",
        "            layout.object_path(self.root, ref.sha256, ref.suffix)\n        objects.reserve",
        (f"{STORE}::test_a_manifest_never_names_objects_that_are_not_there",),
    ),
    Fault(
        "objects of the generation before are swept", "store_schema/commit.py",
        "if not self.manifest.generation - keep < generation <= self.manifest.generation:",
        "if generation != self.manifest.generation:",
        (f"{STORE}::test_two_generations_are_kept_and_gc_keeps_one",),
    ),
    Fault(
        "checksums of objects are not compared", "store_schema/objects.py",
        "    if found != sha256:\n",
        "    if not sha256:\n",
        (f"{DAMAGE}::test_another_valid_object_of_the_same_task_is_damage",),
    ),
    Fault(
        "the checksum of a manifest is not compared", "store_schema/store.py",
        "    if hashlib.sha256(data).hexdigest() != sha256:\n",
        "    if not sha256:\n",
        (f"{DAMAGE}::test_a_manifest_that_head_does_not_name_is_refused",),
    ),
    Fault(
        "a changed parent is not noticed", "store_schema/verification.py",
        "if child is not None and hashlib.sha256(data).hexdigest() != child.parent:",
        "if child is not None and not child.parent:",
        (f"{DAMAGE}::test_verify_notices_a_swapped_object_and_a_changed_parent",),
    ),
    Fault(
        "a thawed weight is not noticed", "store_schema/removal.py",
        '        add(f"weight {layer}", weights.shared[layer][masks[layer]])\n',
        "",
        (f"{CODECS}::test_one_thawed_bit_changes_the_digest",),
    ),
    Fault(
        "a pruned task's weights stay", "store_schema/removal.py",
        "for task, bits in masks.items() if task not in names)])",
        "for task, bits in masks.items())])",
        (f"{CODECS}::test_removal_frees_exactly_what_no_other_task_uses",),
    ),
    Fault(
        "pruning takes what another task uses", "store_schema/removal.py",
        "shared[layer] = np.where(kept, value, np.float32(0))",
        "shared[layer] = np.where(kept & ~used, value, np.float32(0))",
        (f"{CODECS}::test_removal_frees_exactly_what_no_other_task_uses",),
    ),
    Fault(
        "a pruned task stays in the gate", "store_schema/gates.py",
        "return np.flatnonzero(np.repeat(np.asarray(kept, dtype=bool), classes))",
        "return np.flatnonzero(np.repeat(np.asarray(kept, dtype=bool) | True, classes))",
        (f"{STORED_GATES}::test_tasks_leave_and_come_back_with_their_rows",),
    ),
    Fault(
        "repaired across an undo", "clmoe_cli/api/generations.py",
        '"repair_floor": following,',
        '"repair_floor": old.repair_floor,',
        ("tests/test_generations.py::test_a_repair_does_not_go_back_behind_an_undo",),
    ),
    Fault(
        "an undo takes a changed manifest", "clmoe_cli/api/generations.py",
        "if target == now.generation - 1 and hashlib.sha256(data).hexdigest() != now.parent:",
        "if target == now.generation - 1 and not data:",
        ("tests/test_generations.py::test_a_changed_manifest_is_not_gone_back_to",),
    ),
    Fault(
        "what was measured keeps a renamed task's old name", "clmoe_cli/api/generations.py",
        "if m.task == old else m for m in task.measured)",
        "if m.task == new else m for m in task.measured)",
        ("tests/test_generations.py::test_a_renamed_task_answers_as_before",),
    ),
    Fault(
        "a removal that has changed is not asked about again", "clmoe_cli/api/prune.py",
        "if planned.goes != agreed:",
        "if planned.goes == ((), ()):",
        ("tests/test_prune.py::test_other_tasks_than_were_agreed_to_are_asked_about_again",),
    ),
    Fault(
        "a removal is planned on what the store was", "clmoe_cli/api/prune.py",
        "if locked.store.head != known.head:",
        "if not known.head:",
        ("tests/test_prune.py::test_nobody_waits_for_somebody_who_thinks",),
    ),
    Fault(
        "an unfinished learn of another generation is said to go on", "store_schema/checkpoints.py",
        'about["parent"] == head',
        "bool(head)",
        ("tests/test_prune.py::test_an_unfinished_learn_is_listed_and_can_be_discarded",),
    ),
    Fault(
        "a copied expert takes the name of another", "clmoe_cli/api/copying.py",
        "number = max(int(expert.id[1:]), next_expert)",
        "number = int(expert.id[1:])",
        ("tests/test_copy.py::test_two_stores_become_one",),
    ),
    Fault(
        "a copy brings weights that only tasks left behind use", "clmoe_cli/api/copying.py",
        "weights, _ = remove_tasks(source.read_expert(old), bits, behind)",
        "weights = source.read_expert(old)\n"
        "    weights = replace(weights, owned={n: p for n, p in weights.owned.items() if n not in behind})",
        ("tests/test_copy.py::test_some_tasks_are_what_prune_of_the_others_leaves",),
    ),
    Fault(
        "stores of other features are joined", "clmoe_cli/api/copying.py",
        "other = next((key for key in expected if found.get(key) != expected[key]), None)",
        'other = next((key for key in ("gate",) if found.get(key) != expected[key]), None)',
        (
            "tests/test_copy.py::test_stores_of_other_features_are_refused",
            "tests/test_copy.py::test_tables_of_one_unit_are_merged_and_of_another_refused",
        ),
    ),
    Fault(
        "the range of joined stores is that of one", "clmoe_cli/api/ranges.py",
        "return {name: _over(getattr(old, name), ends) if known else None for name, ends in fields.items()}",
        "return fields if known else dict.fromkeys(fields)",
        ("tests/test_copy.py::test_the_range_of_joined_stores_is_that_of_both",),
    ),
    Fault(
        "what is fetched is not compared with its hash", "store_schema/remote.py",
        "if sha256 is not None and hashlib.sha256(data).hexdigest() != sha256:",
        "if sha256 is not None and not data:",
        ("tests/test_remote.py::test_what_goes_wrong_is_one_error",),
    ),
    Fault(
        "repaired across a prune", "store_schema/rollback.py",
        "if number >= floor and _is_whole",
        "if _is_whole",
        (f"{REPAIR}::test_never_across_a_prune",),
    ),
    Fault(
        "repaired to an older generation than needed", "store_schema/rollback.py",
        "manifest, data = whole[0]",
        "manifest, data = whole[-1]",
        (f"{REPAIR}::test_of_whole_generations_the_newest_stands",),
    ),
    Fault(
        "what cannot be read is gone back from", "store_schema/rollback.py",
        "[f for f in findings if f.unread]",
        "[f for f in findings if f.unread and not f.damage]",
        (f"{REPAIR}::test_what_cannot_be_read_is_not_gone_back_from",),
    ),
    Fault(
        "weights that are NaN are stored", "store_schema/weights.py",
        "        if not np.isfinite(value).all():\n",
        "        if value is None:\n",
        (f"{CODECS}::test_weights_that_are_not_finite_are_never_written",),
    ),
    Fault(
        "scores outside the mask are left out in silence", "store_schema/subnetworks.py",
        "if scores.shape != mask.shape or scores[~mask].any():",
        "if scores.shape != mask.shape:",
        (f"{CODECS}::test_what_could_not_be_read_is_never_written",),
    ),
    Fault(
        "scores outside the mask are read", "store_schema/subnetworks.py",
        "    if scores[~mask].any():\n",
        "    if scores[~mask].size < 0:\n",
        (f"{HOSTILE}::test_each_is_refused_by_the_check_that_is_meant_for_it",),
    ),
    Fault(
        "packed numbers are rounded as they are read", "store_schema/directions.py",
        "if not np.array_equal(found, exact):",
        "if found.shape != exact.shape:",
        (f"{PACKED}::test_what_nobody_packed_is_refused",),
    ),
    Fault(
        "the sign of zero is lost", "store_schema/directions.py",
        "if not np.isfinite(value).all() or np.signbit(value[value == 0]).any():",
        "if not np.isfinite(value).all():",
        (f"{PACKED}::test_a_negative_zero_keeps_its_sign",),
    ),
    Fault(
        "links are followed", "store_schema/files.py",
        "fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)",
        "fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)",
        (f"{DAMAGE}::test_links_and_folders_in_place_of_objects_are_refused",),
    ),
    Fault(
        "a task reads no base", "clmoe_cli/method/networks/base.py",
        "below = {name: self.base[name].to(value) for name, value in params.items() if name in self.base}",
        "below: dict[str, Tensor] = {}",
        (f"{STARTING}::test_tasks_read_the_whole_base_and_add_a_little",),
    ),
    Fault(
        "a copied expert loses its base", "clmoe_cli/api/copying.py",
        'base = None if record.base is None else locked.put(source.read_object(record.base), "safetensors")',
        "base = None",
        (f"{STARTING}::test_a_base_goes_where_its_tasks_go",),
    ),
    Fault(
        "a base is not among what a generation needs", "store_schema/records.py",
        "yield from (e.base for e in self.experts if e.base is not None)",
        "yield from ()",
        (f"{STARTING}::test_a_base_outlives_its_generation",),
    ),
    Fault(
        "the model of a store leaves the base out", "clmoe_cli/api/export_all.py",
        "plain.state(net, net.effective(params), scaling)",
        "plain.state(net, params, scaling)",
        (f"{STARTING}::test_a_model_of_the_whole_store_stands_on_the_base",),
    ),
)  # fmt: skip

FAULTS_OF_ALL = (*FAULTS_OF_LEARNING, *FAULTS_OF_PLACEMENT, *FAULTS_OF_ROUTING, *FAULTS_OF_THE_STORE)


def copied(target: Path) -> Path:
    """A copy of the packages, their tests and what these are run with."""
    for name in COPIED:
        shutil.copytree(ROOT / name, target / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", target)
    return target


def run(root: Path, tests: Iterable[str]) -> tuple[int, str]:
    """Exit code and output of pytest on these tests of a copy, until the first that fails."""
    command = [sys.executable, "-B", "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", *tests]
    env = {**os.environ, "PYTHONPATH": str(root)}
    try:
        done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, timeout=LONGEST, check=False)
    except subprocess.TimeoutExpired:
        return FAILED, f"stopped after {LONGEST} seconds"
    return done.returncode, done.stdout + done.stderr


def judged(root: Path, fault: Fault) -> bool:
    """Whether the tests kill the fault. Raises RuntimeError when they could not be run."""
    path = root / fault.file
    good = path.read_bytes()
    try:
        fault.put_into(root)
        code, said = run(root, fault.tests)
    finally:
        path.write_bytes(good)
    if code not in (PASSED, FAILED):
        raise RuntimeError(f"{fault.name}: pytest ended with {code}\n{said}")
    return code == FAILED


def main(arguments: Sequence[str] | None = None) -> int:
    """Tries the faults; 1 when too many survive, or when the tests fail without any."""
    parser = argparse.ArgumentParser(prog="mutants", description=__doc__.partition("\n")[0])
    parser.add_argument("--only", action="append", metavar="NAME", help="only the fault of this name; may be repeated")
    parser.add_argument("--list", action="store_true", help="name the faults and their files, and try none")
    asked = parser.parse_args(arguments)
    known = {fault.name: fault for fault in FAULTS_OF_ALL}
    if unknown := [name for name in asked.only or () if name not in known]:
        parser.error(f"no fault is called {unknown[0]!r}; --list names them")
    faults = [known[name] for name in asked.only] if asked.only else list(FAULTS_OF_ALL)
    if asked.list:
        for fault in faults:
            print(f"{fault.file}\t{fault.name}")
        return 0
    started, survived = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        root = copied(Path(folder))
        code, said = run(root, dict.fromkeys(test for fault in faults for test in fault.tests))
        if code != PASSED:
            print(f"the tests fail without any fault\n{said}")
            return 1
        for i, fault in enumerate(faults, 1):
            killed = judged(root, fault)
            if not killed:
                survived.append(fault.name)
            print(f"{i:3}/{len(faults)}  {'killed  ' if killed else 'SURVIVED'}  {fault.name}", flush=True)
    killed_in_all = len(faults) - len(survived)
    print(f"{killed_in_all} of {len(faults)} killed in {time.monotonic() - started:.0f} s", end="")
    print(f"; survived: {', '.join(survived)}" if survived else "")
    return 0 if killed_in_all >= ENOUGH * len(faults) else 1


if __name__ == "__main__":
    sys.exit(main())
