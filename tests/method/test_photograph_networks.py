"""``resnet9`` and ``lite0``: what they compute, what a task owns, that no layer runs out, and that frozen bits stay."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import random_params
from efficientnet_lite_pytorch import EfficientNet
from oracle import pictures as slow
from oracle import single_images
from torch import nn
from torch.func import functional_call

from clmoe_cli.backbone import lite0 as packaged
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.learn_task import Identity, Options, Setting, Shared, learn_task
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import STATISTICS, Normalisation, logits
from clmoe_cli.method.networks.convnet import ConvNet
from clmoe_cli.method.networks.resnet9 import TRAITS
from clmoe_cli.method.scaling import Scaling
from clmoe_cli.method.subnetwork import masks, plain
from clmoe_cli.method.subnetwork.gradient_scores import gradient_scores
from clmoe_cli.method.subnetwork.pruning import Tolerance, within_most
from clmoe_cli.method.subnetwork.training import Annealing, Epoch, Run, Schedule, anneal, train
from clmoe_cli.method.subnetwork.training_state import Journal

QUICK = Options(Schedule(epochs=2, batch_size=32), Tolerance(failures=1, halvings=0, final_epochs=2))


def marked(n: int, seed: int, channel: int, side: int = 16) -> Labelled:
    """Colour pictures [n, 3·side·side]: class 1 has a bright square in a channel, which lies anywhere."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    x = 0.4 * torch.rand((n, 3, side, side), generator=rng)
    at = torch.randint(2, side - 6, (n, 2), generator=rng)
    place = torch.arange(side)
    inside = [(place >= a[:, None]) & (place < a[:, None] + 4) for a in at.T]
    x[:, channel] += 0.6 * (inside[0][:, :, None] & inside[1][:, None, :] & (y == 1)[:, None, None])
    return Labelled(x.flatten(1), y)


@pytest.mark.parametrize(("channels", "height", "width"), [(3, 16, 16), (1, 28, 20), (3, 33, 40)])
def test_resnet9_computes_what_its_table_says(channels: int, height: int, width: int, rng: torch.Generator) -> None:
    net = ConvNet("resnet9:2", (channels, height, width))
    params = random_params(net, 3, rng)
    x = torch.rand((4, net.input_size), generator=rng, dtype=torch.float64)
    found = net.trace(params, x).logits
    torch.testing.assert_close(found, slow.resnet9(params, x.view(4, channels, height, width)), rtol=1e-10, atol=1e-12)
    assert net.trace(params, x).hidden(("output",)).shape == (4, 16)


def test_resnet9_has_a_few_million_weights_and_a_layer_for_each_task() -> None:
    net = parse_arch("resnet9", (3, 32, 32))
    sizes = {name: math.prod(shape) for name, shape in net.shared_shapes().items()}
    assert 1e6 < sum(sizes.values()) < 5e6
    assert sum(sizes.values()) == 1602 * 32**2
    assert "stem.conv.weight" not in sizes
    owned = net.initial_owned(7, torch.Generator().manual_seed(0))
    assert owned["stem.conv.weight"].shape == (32, 3, 3, 3)
    norms = [name for name, kind in net.kinds.items() if isinstance(kind, Normalisation)]
    assert {f"{name}.{kind}" for name in norms for kind in ("weight", "bias", *STATISTICS)} < set(owned)
    assert owned["output.weight"].shape == (7, 256)


@pytest.mark.parametrize(
    ("arch", "shape"),
    [("resnet9", (3, 15, 32)), ("resnet9:0", (3, 32, 32)), ("resnet9:", (3, 32, 32)), ("resnet9:9000", (3, 32, 32)),
     ("resnet9:x", (3, 32, 32)), ("resnet9", (12,)), ("lite0", (3, 31, 64)), ("lite0", (2, 64, 64)),
     ("lite0:2", (3, 64, 64))],
)  # fmt: skip
def test_what_they_cannot_read_is_refused(arch: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected"):
        parse_arch(arch, shape)


@pytest.mark.parametrize("size", [32, 45, 96])
def test_lite0_computes_what_the_package_does(size: int) -> None:
    net = ConvNet("lite0", (3, size, size))
    theirs = EfficientNet.from_name("efficientnet-lite0", image_size=size).train(False)
    found = packaged.published(net.module)
    assert found.sha256 == packaged.FINGERPRINT
    theirs.load_state_dict(found.tensors, strict=False)
    theirs._fc = nn.Linear(1280, 2)
    head = {f"_fc.{name}": value for name, value in theirs._fc.state_dict().items()}
    bytes_ = torch.randint(0, 256, (3, 3, size, size), generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        wanted = theirs((bytes_.float() - 127) / 128)
        ours = functional_call(net.module, {**found.tensors, **head}, (bytes_.float() / 255,))
        grey = functional_call(
            ConvNet("lite0", (1, size, size)).module, {**found.tensors, **head}, (bytes_[:, :1].float() / 255,)
        )
        repeated = theirs((bytes_[:, :1].expand(-1, 3, -1, -1).float() - 127) / 128)
    torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(grey, repeated, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("arch", "side", "images"), [("resnet9:2", 16, 3), ("lite0", 32, 1)])
def test_scores_equal_the_loop_over_single_images(arch: str, side: int, images: int, rng: torch.Generator) -> None:
    net = ConvNet(arch, (3, side, side))
    params = random_params(net, 2, rng)
    x = torch.rand((images, net.input_size), generator=rng, dtype=torch.float64)
    y = torch.arange(images) % 2
    fast, wanted = gradient_scores(net, params, x, y), single_images.scores(net, params, x, y)
    assert list(fast) == list(wanted)
    for name, value in fast.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-7, atol=1e-11, msg=name)


def test_a_task_takes_a_share_of_each_layer_at_most(rng: torch.Generator) -> None:
    net = parse_arch("resnet9:4", (3, 16, 16))
    scores = {name: torch.rand(shape, generator=rng) for name, shape in net.shared_shapes().items()}
    free = {name: torch.rand(value.shape, generator=rng) < 0.7 for name, value in scores.items()}
    wanted = masks.ones_like(scores)
    found = within_most(net, wanted, scores, free)
    for name, mask in found.items():
        assert bool(mask[~free[name]].all())  # what is frozen already costs nothing
        fresh = mask & free[name]
        assert int(fresh.sum()) == int(TRAITS.most * int(free[name].sum()))
        assert float(scores[name][fresh].min()) >= float(scores[name][free[name] & ~mask].max())
    few = {name: mask & (scores[name] > 0.97) for name, mask in wanted.items()}
    after = within_most(net, few, scores, free)
    assert all(bool((few[name] | ~after[name]).all()) for name in few)
    # Kernels of single channels are not limited.
    net = parse_arch("lite0", (3, 32, 32))
    scores = {name: torch.rand(shape, generator=rng) for name, shape in net.shared_shapes().items()}
    every = masks.ones_like(scores)
    found = within_most(net, every, scores, every)
    full = {name for name, mask in found.items() if bool(mask.all())}
    assert full == {name for name in scores if "depthwise" in name}
    assert within_most(parse_arch("cnn:3", (3, 8, 8)), every, scores, every) is every


ACTS = {"train": train, "anneal": anneal}
SMALL = [("resnet9:2", 16, kind, act) for kind in ("sgd", "adamw") for act in ACTS]
LARGE = [("lite0", 32, kind, act) for kind in ("sgd", "adamw") for act in ACTS]


@pytest.mark.parametrize(
    ("arch", "side", "kind", "act"),
    [*SMALL, *(pytest.param(*case, marks=pytest.mark.campaign) for case in LARGE)],
)
def test_frozen_kernels_keep_their_bits(arch: str, side: int, kind: str, act: str, rng: torch.Generator) -> None:
    net = ConvNet(arch, (3, side, side))
    params = random_params(net, 2, rng, torch.float32)
    trainable = {name: torch.rand(shape, generator=rng) < 0.4 for name, shape in net.shared_shapes().items()}
    make = {
        "sgd": lambda v: torch.optim.SGD(v, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
        "adamw": lambda v: torch.optim.AdamW(v, lr=0.01, weight_decay=0.5),
    }[kind]
    extra = (Annealing("test", 1, 0.01),) if act == "anneal" else ()
    data = marked(16, 3, 1, side)
    run = Run(net, data, data, Schedule(epochs=1, batch_size=16), rng)
    found, _ = ACTS[act](run, params, trainable, *extra, optimizer=lambda lr: make)
    for name, mask in trainable.items():
        assert torch.equal(found[name][~mask].view(torch.int32), params[name][~mask].view(torch.int32))
        assert not torch.equal(found[name][mask], params[name][mask])
    moved = [name for name in found if name not in trainable]
    assert all(not torch.equal(found[name], params[name]) for name in moved if not name.endswith("bias"))


def test_training_warms_up_and_goes_on_where_it_was_stopped(rng: torch.Generator) -> None:
    net = ConvNet("resnet9:2", (3, 16, 16))
    data, rates = marked(64, 0, 1), []
    params = net.ordered(net.initial_shared(rng) | net.initial_owned(2, rng))
    free = masks.ones_like({name: params[name] for name in net.shared_shapes()})

    def make(lr: float):
        def made(values: list[torch.Tensor]) -> torch.optim.Optimizer:
            found = torch.optim.Adam(values, lr=lr)
            found.register_step_pre_hook(lambda step, args, kwargs: rates.append(step.param_groups[0]["lr"]))
            return found

        return made

    def trained(journal: Journal, on_epoch=lambda epoch: None):
        own = torch.Generator().manual_seed(2)
        run = Run(net, data, data, Schedule(epochs=4, batch_size=32), own, journal, on_epoch)
        return train(run, params, free, optimizer=make)[0]

    whole = trained(Journal())
    peak = max(rates)
    assert peak == pytest.approx(TRAITS.peak * Schedule().lr, rel=1e-3)
    assert 0.15 < rates.index(peak) / len(rates) < 0.35
    assert rates[0] < peak / 10
    assert rates[-1] < peak / 100
    kept: dict[str, torch.Tensor] = {}

    def stop(epoch: Epoch) -> None:
        if epoch.epoch == 3:
            raise KeyboardInterrupt

    def save(state, reached: str) -> None:
        kept.clear()
        kept.update({name: value.clone() for name, value in state.items()})

    with pytest.raises(KeyboardInterrupt):
        trained(Journal(save=save), stop)
    again = trained(Journal(dict(kept)))
    assert all(torch.equal(again[name], whole[name]) for name in whole)


@pytest.mark.campaign
def test_tasks_freeze_their_share_of_every_layer_and_change_no_answer() -> None:
    shape = (3, 16, 16)
    net = parse_arch("resnet9:4", shape)
    weights = {name: torch.zeros(sides) for name, sides in net.shared_shapes().items()}
    frozen = masks.zeros_like(weights)
    learned, before = [], []
    for number in range(3):
        data = marked(80, number, number % 3)
        setting = Setting(QUICK, torch.Generator().manual_seed(number), input_shape=shape)
        task = learn_task(
            Identity(f"t{number}", "e1", 2), net, Shared(weights, frozen, frozen), data, setting
        ).subnetwork
        for name, mask in task.mask.items():
            free, fresh = ~frozen[name], mask & ~frozen[name]
            assert int(fresh.sum()) <= TRAITS.most * int(free.sum())
            assert torch.equal(task.params[name][mask & frozen[name]], weights[name][mask & frozen[name]])
            weights[name] = torch.where(fresh, task.params[name], weights[name])
            frozen[name] = frozen[name] | mask
        learned.append(task)
        before.append(logits(net, task.params, data.x))
    for number, task in enumerate(learned):
        own = {name: torch.where(task.mask[name], weights[name], 0.0) for name in weights}
        assert torch.equal(logits(net, task.params | own, marked(80, number, number % 3).x), before[number])
        assert not torch.equal(task.params["stem.conv.weight"], learned[number - 1].params["stem.conv.weight"])
    assert 1 - (1 - TRAITS.most) ** 10 < 0.5


@pytest.mark.parametrize(("arch", "side"), [("resnet9:2", 16), ("lite0", 32)])
def test_a_task_is_exported_as_it_answers(arch: str, side: int, rng: torch.Generator) -> None:
    net = ConvNet(arch, (3, side, side))
    params = random_params(net, 3, rng)
    x = torch.rand((2, 3, side, side), generator=rng, dtype=torch.float64)
    scaling = Scaling(1 / 4)
    found = plain.module(plain.described(net, 3, scaling), plain.state(net, params, scaling))
    with torch.no_grad():
        wanted = logits(net, params, scaling.apply(x.flatten(1)))
        torch.testing.assert_close(found(x), wanted, rtol=1e-6, atol=1e-9)
