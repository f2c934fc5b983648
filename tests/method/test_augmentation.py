"""Augmentation against a loop over pixels; what it draws from, where it is the default, which pictures it mirrors."""

from __future__ import annotations

import pytest
import torch
from campaigns import some
from card import DEVICE, Card
from oracle import pictures as slow
from pictures import labelled_bars, stripes
from torch import Tensor

from clmoe_cli.method.images import Images, Labelled
from clmoe_cli.method.learn_task import Identity, Options, Setting, Shared, Split, learn_task
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.routing.mirrors import may_mirror, mirrored
from clmoe_cli.method.subnetwork import augmentation, masks
from clmoe_cli.method.subnetwork.augmentation import DRAWS, Augmentation
from clmoe_cli.method.subnetwork.finetuning import finetune
from clmoe_cli.method.subnetwork.training import Annealing, Run, Schedule
from clmoe_cli.runtime.distributed.collectives import Share

SHAPE = (3, 16, 20)


@pytest.mark.parametrize("strong", [False, True])
@pytest.mark.parametrize("mirrors", [False, True])
def test_a_batch_is_changed_as_single_pictures_are_pixel_by_pixel(
    strong: bool, mirrors: bool, rng: torch.Generator
) -> None:
    x = torch.rand((6, 3 * 16 * 20), generator=rng, dtype=torch.float64)
    drawn = torch.rand((6, DRAWS), generator=rng, dtype=torch.float64)
    drawn[0], drawn[1] = 0.0, 1 - 1e-9
    before = x.clone()
    found = Augmentation(SHAPE, strong, mirrors).changed(x, drawn)
    one = slow.strong if strong else slow.light
    each = [one(picture.view(SHAPE), row.tolist(), mirrors) for picture, row in zip(x, drawn, strict=True)]
    wanted = torch.stack(each).flatten(1)
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12 if strong else 0)
    assert torch.equal(x, before)
    assert not torch.equal(found, x)


def test_numbers_come_from_the_generator_and_are_those_of_the_whole_batch() -> None:
    change = Augmentation(SHAPE, True, True)
    x = torch.rand((10, 3 * 16 * 20), generator=torch.Generator().manual_seed(4))
    state = torch.get_rng_state()
    whole = change(x, Share(10, slice(0, 10)), torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), state)
    part = change(x[3:7], Share(10, slice(3, 7)), torch.Generator().manual_seed(1))
    torch.testing.assert_close(part, whole[3:7], rtol=0, atol=1e-6)
    assert not torch.equal(change(x, Share(10, slice(0, 10)), torch.Generator().manual_seed(2)), whole)


def test_light_moves_an_eighth_and_keeps_every_number() -> None:
    x = torch.arange(16.0 * 20).repeat(3)[None].repeat(200, 1)
    found = Augmentation(SHAPE)(x, Share(200, slice(0, 200)), torch.Generator().manual_seed(0)).view(-1, *SHAPE)
    rows, columns = (found[:, 0, 8, 10] / 20).floor() - 8, found[:, 0, 8, 10] % 20 - 10
    assert (int(rows.min()), int(rows.max()), int(columns.min()), int(columns.max())) == (-2, 2, -2, 2)
    assert set(found.unique().tolist()) <= set(x.unique().tolist())


def test_the_default_is_for_colour_pictures_and_convolutions() -> None:
    conv, perceptron = parse_arch("cnn:4", (3, 16, 16)), parse_arch("mlp:4", (3, 16, 16))
    assert augmentation.default(conv, (3, 16, 16)) == "light"
    assert augmentation.default(perceptron, (3, 16, 16)) == "none"
    assert augmentation.default(parse_arch("cnn:4", (1, 16, 16)), (1, 16, 16)) == "none"
    assert augmentation.default(parse_arch("mlp:4", (7,)), (7,)) == "none"


def arrows(n: int, seed: int, pairs: bool) -> Labelled:
    """Grey triangles that point to the left or to the right (``pairs``: these are the classes), or up."""
    rng = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    at = torch.arange(16.0)
    left = ((at[:, None] - 8).abs() < at[None, :] / 2).float()
    up = left.T.contiguous()
    shown = torch.where(y[:, None, None] == 0, left, left.flip(1) if pairs else up)
    turned = (torch.rand((n, 1, 1), generator=rng) < 0.5) & torch.tensor(not pairs)
    shown = torch.where(turned, shown.flip(2), shown)
    return Labelled((shown + 0.3 * torch.rand((n, 16, 16), generator=rng)).flatten(1), y)


def test_pictures_are_mirrored_where_classes_stay_what_they_are() -> None:
    assert may_mirror(arrows(300, 0, pairs=False), (1, 16, 16))
    assert not may_mirror(arrows(300, 1, pairs=True), (1, 16, 16))
    # Too few to tell, labels that say nothing, and what is no picture.
    assert not may_mirror(arrows(20, 0, pairs=False), (1, 16, 16))
    data = arrows(300, 0, pairs=False)
    noise = Labelled(data.x, torch.randint(0, 2, (300,), generator=torch.Generator().manual_seed(2)))
    assert not may_mirror(noise, (1, 16, 16))
    assert not may_mirror(Labelled(torch.rand(300, 3 * 8 * 8), data.y), (3, 8, 8))
    x = torch.rand(2, 3 * 4 * 5)
    assert torch.equal(mirrored(mirrored(x, (3, 4, 5)), (3, 4, 5)), x)
    assert torch.equal(mirrored(x, (3, 4, 5)).view(2, 3, 4, 5)[..., 0], x.view(2, 3, 4, 5)[..., 4])


def test_whether_pictures_are_mirrored_hangs_on_no_reading() -> None:
    data = arrows(300, 0, pairs=False)
    x = data.x
    assert isinstance(x, Tensor)
    lazy = Labelled(Images(lambda rows: x[rows], torch.arange(300), 256), data.y)
    assert may_mirror(lazy, (1, 16, 16))


def setting(options: Options, shape: tuple[int, ...], seed: int = 1) -> Setting:
    return Setting(options, torch.Generator().manual_seed(seed), input_shape=shape)


def test_what_is_trained_on_is_what_the_name_says() -> None:
    data = stripes(60, 0, 0)
    shape = (2, 8, 8)
    net = parse_arch("cnn:4", shape)
    parts = Split(data, data, data.take(torch.arange(0)), torch.arange(0))
    for name, wanted in ((None, None), ("none", None), ("light", (False, False)), ("strong", (True, False))):
        run = setting(Options(augment=name), shape).run(net, parts)
        found = run.augment
        assert (found and (found.strong, found.mirrors)) == wanted
    assert setting(Options(augment="light"), (128,)).run(parse_arch("mlp:4", (128,)), parts).augment is None


def test_every_step_sees_the_changed_pictures(rng: torch.Generator) -> None:
    net = parse_arch("mlp:5", (1, 16, 16))
    data = labelled_bars(64, torch.float32)
    seen: list[Tensor] = []

    def change(x: Tensor, own: Share, generator: torch.Generator) -> Tensor:
        seen.append(x)
        return torch.zeros_like(x)

    run = Run(net, data, data, Schedule(epochs=1, batch_size=32), rng, augment=change)
    params = net.ordered(net.initial_shared(rng) | net.initial_owned(int(data.y.max()) + 1, rng))
    # Of inputs that are all zero no weight of the first layer has a gradient: none moves.
    mask = {"hidden1.weight": torch.rand(params["hidden1.weight"].shape, generator=rng) < 0.05}
    mask["hidden1.weight"][:, :100] = False
    sparse = masks.apply(params, mask)
    found, _ = finetune(run, sparse, mask, Annealing("test", 1, 0.01))
    assert seen
    assert all(x.shape[1] == 256 for x in seen)  # whole pictures, though the compact form reads few of the pixels
    assert torch.equal(found["hidden1.weight"], sparse["hidden1.weight"])
    assert not torch.equal(found["output.bias"], sparse["output.bias"])


@pytest.mark.parametrize("name", ["light", "strong"])
@pytest.mark.parametrize("arch", some(("cnn:6,8", "mlp:12"), "cnn:6,8"))
def test_a_second_augmented_task_changes_no_bit_of_the_first(name: str, arch: str) -> None:
    shape = (2, 8, 8)
    net = parse_arch(arch, shape)
    options = Options(Schedule(epochs=2, batch_size=32), augment=name)
    zeros = {key: torch.zeros(sides) for key, sides in net.shared_shapes().items()}
    none = masks.zeros_like(zeros)
    first = learn_task(
        Identity("a", "e1", 2), net, Shared(zeros, none, none), stripes(200, 0, 0), setting(options, shape)
    )
    assert first.augmented == name
    task, asked = first.subnetwork, stripes(50, 7, 0)
    before = logits(net, task.params, asked.x)
    shared = Shared({key: task.params[key] for key in zeros}, task.mask, task.mask)
    second = learn_task(Identity("b", "e1", 2), net, shared, stripes(200, 1, 1), setting(options, shape, 2)).subnetwork
    for key, mask in task.mask.items():
        both = mask & second.mask[key]
        bits = [params[key][both].view(torch.int32) for params in (task.params, second.params)]
        assert torch.equal(*bits)
    assert torch.equal(logits(net, task.params, asked.x), before)


def test_pictures_are_changed_where_they_are() -> None:
    x = torch.rand((5, 3 * 16 * 20), generator=torch.Generator().manual_seed(4))
    own = Share(5, slice(0, 5))
    change = Augmentation(SHAPE, True, True)
    here = change(x, own, torch.Generator().manual_seed(1))
    with Card():
        there = change(x.to("mps"), own, torch.Generator().manual_seed(1))
        assert there.device == DEVICE
        torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)
