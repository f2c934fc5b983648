"""Convolutional experts: scores and deviations against single images, frozen bits, batches that do not leak."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from conftest import random_params
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import single_images
from pictures import stripes
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

from clmoe_cli.method.images import Images, Labelled
from clmoe_cli.method.learn_task import Identity, Options, Setting, Shared, learn_task
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import STATISTICS, Convolution, Normalisation, logits
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.mlp import MLP
from clmoe_cli.method.routing.mahalanobis import blocks
from clmoe_cli.method.subnetwork import gradient_scores as scoring
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.gradient_scores import Reference, deviation, factors, gradient_scores
from clmoe_cli.method.subnetwork.training import Annealing, Run, Schedule, anneal, train
from clmoe_cli.method.tasks.placement import KnownTask, Thresholds, compare

SMALL = ConvNet("cnn:3,4", (2, 8, 8))
QUICK = Options(Schedule(epochs=2, batch_size=16))


def setup(net: ConvNet, n: int, seed: int = 0, dtype: torch.dtype = torch.float64):
    rng = torch.Generator().manual_seed(seed)
    params = random_params(net, 3, rng, dtype)
    x = torch.randn((n, net.input_size), generator=rng, dtype=dtype)
    y = torch.randint(0, 3, (n,), generator=rng)
    mask = {name: torch.rand(shape, generator=rng) < 0.4 for name, shape in net.shared_shapes().items()}
    return params, x, y, mask


@given(seed=st.integers(0, 10_000), n=st.integers(1, 9), budget=st.sampled_from([1, 300, 1 << 22]))
@settings(max_examples=30)
def test_scores_and_deviation_equal_the_loop_over_single_images(seed: int, n: int, budget: int) -> None:
    params, x, y, mask = setup(SMALL, n, seed)
    reference = {name: torch.rand(value.shape).double() for name, value in params.items() if "running" not in name}
    # One image at a time, a few, all at once.
    with mock.patch.multiple(scoring, BUDGET=budget, CHUNK=4):
        fast = gradient_scores(SMALL, params, x, y)
        found = factors(SMALL, params, x, y)
        apart = deviation(SMALL, params, found, Reference.of(SMALL, mask, reference))
    slow = single_images.scores(SMALL, params, x, y)
    assert list(fast) == list(slow) == [name for name in params if not name.endswith(STATISTICS)]
    for name, value in fast.items():
        torch.testing.assert_close(value, slow[name], rtol=1e-9, atol=1e-15)
    for layer, values in single_images.deviation(SMALL, params, x, y, mask, reference).items():
        torch.testing.assert_close(apart[layer], values, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(("arch", "side"), [("resnet18", 32), ("mobilenet_v2", 32)])
def test_scores_of_torchvisions_networks_equal_per_sample_gradients(arch: str, side: int) -> None:
    # Strides, groups (depthwise kernels), skipped layers; torch.func as the reference.
    net = ConvNet(arch, (3, side, side))
    params, x, y, _ = setup(net, 3)
    fast = gradient_scores(net, params, x, y)
    theirs = {
        f"{net.names[name.rpartition('.')[0]]}.{name.rpartition('.')[2]}": value for name, value in params.items()
    }
    fixed = {name: value for name, value in theirs.items() if name.endswith(STATISTICS)}
    moving = {name: value for name, value in theirs.items() if name not in fixed}

    def loss(values: dict[str, Tensor], image: Tensor, target: Tensor) -> Tensor:
        out = functional_call(net.module, values | fixed, (image.view(1, 3, side, side),))
        return F.cross_entropy(out, target[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(moving, x, y)
    for (ours, value), name in zip(fast.items(), moving, strict=True):
        torch.testing.assert_close(value, each[name].abs().mean(dim=0), rtol=1e-7, atol=1e-12, msg=ours)


def test_layers_are_described_as_they_are() -> None:
    net = ConvNet("mobilenet_v2", (3, 32, 32))
    kinds = list(net.kinds.values())
    assert any(isinstance(kind, Convolution) and kind.groups > 1 for kind in kinds)
    assert isinstance(kinds[1], Normalisation)
    assert net.layers[-1] == "output"
    assert "output.weight" not in net.shared_shapes()
    assert net.reading[0] == net.layers[2]


def test_a_prediction_depends_on_no_other_image_and_changes_no_statistic(rng: torch.Generator) -> None:
    for net in (SMALL, ConvNet("resnet18", (3, 32, 32))):
        params, x, _, _ = setup(net, 6, dtype=torch.float32)
        before = {name: value.clone() for name, value in params.items()}
        together = logits(net, params, x)
        x[1:] = 100 * x[1:].flip(0)  # strange neighbours
        torch.testing.assert_close(logits(net, params, x)[0], together[0], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(logits(net, params, x[:1])[0], together[0], rtol=1e-5, atol=1e-5)
        assert all(torch.equal(value, before[name]) for name, value in params.items())


@pytest.mark.parametrize("act", [train, anneal], ids=["train", "anneal"])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_frozen_kernels_keep_their_bits_and_statistics_move(act, kind: str, rng: torch.Generator) -> None:
    params, x, _, trainable = setup(SMALL, 40, dtype=torch.float32)
    make = {
        "sgd": lambda v: torch.optim.SGD(v, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        "adamw": lambda v: torch.optim.AdamW(v, lr=0.01, weight_decay=0.5),
    }[kind]
    extra = (Annealing("test", epochs=2, lr=0.01),) if act is anneal else ()
    # Held-out images that any step makes better, so that the trained parameters are what is returned.
    held = Labelled(x, logits(SMALL, params, x).argmin(dim=1))
    data = Labelled(x, held.y)
    before = {name: value.clone() for name, value in params.items()}
    run = Run(SMALL, data, held, QUICK.schedule, rng)
    found, _ = act(run, params, trainable, *extra, optimizer=lambda lr: make)
    for name, mask in trainable.items():
        assert torch.equal(found[name][~mask].view(torch.int32), params[name][~mask].view(torch.int32))
        assert not torch.equal(found[name][mask], params[name][mask])
    for name in found:
        assert torch.equal(params[name], before[name])
        if name not in trainable:
            assert not torch.equal(found[name], params[name]), name


def test_a_second_task_in_the_same_expert_changes_no_output_of_the_first() -> None:
    net = ConvNet("cnn:6,8", (2, 8, 8))
    options = Options(Schedule(epochs=6, batch_size=32))
    zeros = {name: torch.zeros(shape) for name, shape in net.shared_shapes().items()}
    none = masks.zeros_like(zeros)
    setting = Setting(options, torch.Generator().manual_seed(1))
    first = learn_task(Identity("a", "e1", 2), net, Shared(zeros, none, none), stripes(300, 0, 0), setting)
    task, asked = first.subnetwork, stripes(50, 7, 0)
    before = logits(net, task.params, asked.x)
    base = {name: task.params[name] for name in zeros}
    setting = Setting(options, torch.Generator().manual_seed(2))
    shared = Shared(base, task.mask, task.mask)
    second = learn_task(Identity("b", "e1", 2), net, shared, stripes(300, 1, 1), setting)
    own = second.subnetwork
    for name, mask in task.mask.items():
        both = mask & own.mask[name]
        assert torch.equal(task.params[name][both], own.params[name][both])
        assert not own.params[name][~own.mask[name]].any()
    # Each task normalises by statistics of its own.
    name = next(name for name in task.params if name.endswith("running_mean"))
    assert not torch.equal(task.params[name], own.params[name])
    assert torch.equal(logits(net, task.params, asked.x), before)
    assert float((before.argmax(dim=1) == asked.y).double().mean()) > 0.9
    found = logits(net, own.params, stripes(50, 8, 1).x).argmax(dim=1)
    assert float((found == stripes(50, 8, 1).y).double().mean()) > 0.9
    for learned in (first, second):
        assert set(learned.half_scores[0]) == {n for n in learned.subnetwork.params if "running" not in n}
        assert set(learned.subnetwork.calibration) == {"gradient", "fisher", "loss"}


def test_adapted_statistics_are_those_of_the_images() -> None:
    params, x, _, _ = setup(SMALL, 64, dtype=torch.float32)
    found = SMALL.adapted(params, x)
    first = SMALL.trace(params, x).outputs["conv1"]
    pooled = F.max_pool2d(first.detach(), 2)
    torch.testing.assert_close(found["norm1.running_mean"], pooled.mean(dim=(0, 2, 3)))
    torch.testing.assert_close(found["norm1.running_var"], pooled.transpose(0, 1).flatten(1).var(dim=1))
    assert all(found[name] is params[name] for name in params if not name.endswith(STATISTICS))
    assert float(params["norm1.running_mean"].sub(found["norm1.running_mean"]).abs().max()) > 0


def test_hidden_activations_are_means_over_positions_and_inputs_are_shrunk() -> None:
    net = ConvNet("cnn:3,4", (2, 48, 40))
    params, x, y, _ = setup(net, 5, dtype=torch.float32)
    found = blocks(net, params, Labelled(x, y))
    done = net.trace(params, x)
    assert found["hidden"].shape == (5, 3 + 4 * 4)
    torch.testing.assert_close(found["hidden"][:, :3], done.inputs["conv2"].mean(dim=(2, 3)).detach())
    torch.testing.assert_close(found["hidden"][:, 3:], done.inputs["output"].detach())
    assert found["inputs"].shape == (5, 2 * 32 * 27)
    torch.testing.assert_close(found["inputs"].mean(), x.mean(), atol=0.02, rtol=0)


def test_images_that_are_read_when_they_are_looked_at_train_to_the_same_bits(
    rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    params, x, y, trainable = setup(SMALL, 40, dtype=torch.float32)
    largest = []

    def read(rows: Tensor) -> Tensor:
        largest.append(len(rows))
        return x[rows]

    lazy = Labelled(Images(read, torch.arange(40), x.shape[1]), y)
    found = [
        train(Run(SMALL, data, data, QUICK.schedule, torch.Generator().manual_seed(3)), params, trainable)[0]
        for data in (Labelled(x, y), lazy)
    ]
    assert all(torch.equal(found[0][name], found[1][name]) for name in params)
    monkeypatch.setattr(scoring, "CHUNK", 7)
    scores = [gradient_scores(SMALL, params, data.x, y) for data in (Labelled(x, y), lazy)]
    assert all(torch.equal(scores[0][name], scores[1][name]) for name in scores[0])
    part = lazy.take(torch.tensor([5, 3, 39]))
    assert torch.equal(part.x[:], x[[5, 3, 39]])
    assert len(lazy.subsample(10)) == 10
    assert lazy.subsample(40) is lazy


@pytest.mark.parametrize("arch", ["cnn:", "cnn:0", "cnn:3,", "vit_b_16", "resnet17", "cnn:99999999"])
def test_bad_architectures_are_refused(arch: str) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_arch(arch, (3, 32, 32))


def test_placement_judges_kernels_by_their_scores() -> None:
    plain = Thresholds()
    assert plain.of(MLP(4, (3,))) is plain
    assert (plain.of(SMALL).overlap, plain.of(SMALL).divergence, plain.of(SMALL).least) == plain.kernels
    params, x, y, mask = setup(SMALL, 60, dtype=torch.float32)
    scores = gradient_scores(SMALL, params, x, y)
    known = KnownTask("a", "e1", SMALL, masks.apply(params, mask), mask, scores)
    rng = torch.Generator().manual_seed(3)
    seen = set()
    for overlap, divergence in ((0.0, 2.0), (0.0, 0.0), (9.0, 2.0)):
        thresholds = Thresholds(kernels=(overlap, divergence, -1.0))
        found = compare(known, [SMALL.initial_shared(rng)], Labelled(x, y % 2), 2, thresholds, rng)
        assert found.least_overlap == (max(overlap * found.chance_overlap, -1.0) if overlap else -1.0)
        near = found.divergence <= divergence * found.chance_divergence
        assert found.constructive == (near and found.overlap >= found.least_overlap)
        seen.add(found.constructive)
    assert seen == {True, False}
