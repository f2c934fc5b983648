from __future__ import annotations

import math

import pytest
import torch
from fresh import initial_parameters
from torch import Tensor, nn
from torch.func import functional_call

from clmoe_cli.method.networks.modules import _Means, build, head_of, layers_of

LAYERS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d)
# One of each family that passes, with the smallest pictures that all its variants read.
FAMILIES = {
    "cnn:4,6,8": 9, "resnet9:2": 16, "lite0": 32, "alexnet": 64,
    "densenet121": 32, "efficientnet_b0": 32, "efficientnet_v2_s": 32, "googlenet": 32,
    "inception_v3": 75, "mnasnet0_5": 32, "mobilenet_v2": 32, "mobilenet_v3_small": 32, "regnet_x_400mf": 32,
    "regnet_y_400mf": 32, "resnet18": 32, "resnet50": 32, "resnext50_32x4d": 32, "shufflenet_v2_x0_5": 32,
}  # fmt: skip


class Trace:
    """Everything that the layers read and computed, with the versions that the tensors had then."""

    def __init__(self, module: nn.Module) -> None:
        self.order: list[str] = []
        self.tensors: list[tuple[str, Tensor, int]] = []
        for name, layer in module.named_modules():
            if isinstance(layer, LAYERS):
                layer.register_forward_hook(self._hook(name))

    def _hook(self, name: str):
        def note(layer: nn.Module, args: tuple[Tensor, ...], out: Tensor) -> None:
            self.order.append(name)
            self.tensors += [(f"{name} in", args[0], args[0]._version), (f"{name} out", out, out._version)]

        return note

    def overwritten(self) -> list[str]:
        return [name for name, tensor, version in self.tensors if tensor._version != version]


@pytest.mark.parametrize("arch", FAMILIES)
def test_skeletons_allocate_nothing_and_hooks_see_layers_in_order_and_untouched(arch: str) -> None:
    state = torch.get_rng_state()
    net = build(arch, (3, FAMILIES[arch], FAMILIES[arch]), 5)
    assert torch.equal(state, torch.get_rng_state())
    assert all(value.is_meta for value in net.state_dict().values())
    assert not net.training
    trace = Trace(net)
    logits = net(torch.empty(2, 3, FAMILIES[arch], FAMILIES[arch], device="meta"))
    assert logits.shape == (2, 5)
    assert trace.order == list(layers_of(net))
    assert trace.order[-1] == head_of(net)
    # Residual sums and in-place activations write into what batch norms return.
    assert trace.overwritten() == []


@pytest.mark.parametrize("arch", ["cnn:4,6", "resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("training", [False, True])
def test_runs_on_given_parameters_alone(arch: str, training: bool, rng: torch.Generator) -> None:
    net = build(arch, (3, 32, 32), 4).train(training)
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.eval()
    params = initial_parameters(net, rng)
    for value in params.values():
        value.requires_grad_(value.ndim > 1)
    before = {name: value.detach().clone() for name, value in params.items()}
    x = torch.randn(3, 3, 32, 32, generator=rng)
    trace = Trace(net)
    logits = functional_call(net, params, (x,))
    logits.square().sum().backward()
    assert logits.shape == (3, 4)
    assert logits.isfinite().all()
    assert trace.overwritten() == []
    assert all(p.grad is not None and bool(p.grad.any()) for p in params.values() if p.requires_grad)
    moved = {name for name, value in params.items() if not torch.equal(value, before[name])}
    running = {name for name in params if name.endswith(("running_mean", "running_var"))}
    assert moved == (running if training else set())


def test_kept_batch_norm_computes_what_torchvision_does(rng: torch.Generator) -> None:
    from torchvision.models import resnet18

    net = build("resnet18", (3, 32, 32), 4)
    params = initial_parameters(net, rng)
    reference = resnet18(num_classes=4).eval()
    missing, unexpected = reference.load_state_dict(params, strict=False)
    assert not unexpected
    assert all(name.endswith("num_batches_tracked") for name in missing)
    x = torch.randn(2, 3, 32, 32, generator=rng)
    assert torch.equal(functional_call(net, params, (x,)), reference(x))


def test_grey_pictures_are_repeated(rng: torch.Generator) -> None:
    grey, colour = (build("resnet18", (channels, 32, 32), 4) for channels in (1, 3))
    params = initial_parameters(grey, rng)
    x = torch.randn(2, 1, 32, 32, generator=rng)
    expected = functional_call(colour, params, (x.repeat(1, 3, 1, 1),))
    assert torch.equal(functional_call(grey, params, (x,)), expected)


def test_initial_parameters_come_from_the_generator_and_keep_the_scale() -> None:
    net = build("cnn:64,128", (3, 16, 16), 10)
    first, again, other = (initial_parameters(net, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert list(first) == [name for name in net.state_dict() if not name.endswith("num_batches_tracked")]
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["conv2.weight"], other["conv2.weight"])
    bound = math.sqrt(6 / (64 * 9))
    assert 0.99 * bound < float(first["conv2.weight"].abs().max()) <= bound
    bound = math.sqrt(1 / (128 * 4))
    assert 0.99 * bound < float(first["output.weight"].abs().max()) <= bound
    assert not first["output.bias"].any()
    assert bool((first["norm1.weight"] == 1).all())
    assert not first["norm1.bias"].any()
    assert not first["norm1.running_mean"].any()
    assert bool((first["norm1.running_var"] == 1).all())


def test_depthwise_convolutions_count_what_one_channel_reads(rng: torch.Generator) -> None:
    params = initial_parameters(build("mobilenet_v2", (3, 32, 32), 4), rng)
    depthwise = params["features.1.conv.0.0.weight"]
    assert depthwise.shape == (32, 1, 3, 3)
    bound = math.sqrt(6 / 9)
    assert 0.95 * bound < float(depthwise.abs().max()) <= bound


@pytest.mark.parametrize(("side", "size"), [(7, 2), (5, (3, 2)), (3, 6), (8, (None, 2)), (4, 1)])
def test_means_over_windows_are_those_of_torch(side: int, size: object, rng: torch.Generator) -> None:
    ours, theirs = _Means(size), nn.AdaptiveAvgPool2d(size)
    x = torch.randn(2, 3, side, side + 2, generator=rng, dtype=torch.float64).requires_grad_()
    weights = torch.randn(theirs(x).shape, generator=rng, dtype=torch.float64)
    found = ours(x)
    torch.testing.assert_close(found, theirs(x))
    gradients = [torch.autograd.grad((out * weights).sum(), x)[0] for out in (found, theirs(x))]
    torch.testing.assert_close(*gradients)
    net = build("cnn:2", (1, 14, 14), 2)
    assert isinstance(net.get_submodule("mean"), _Means)


@pytest.mark.parametrize(
    ("sides", "pools", "grid"),
    [((28, 28), 3, 2), ((7, 9), 1, 2), ((4, 64), 1, 2), ((3, 5), 0, 2), ((1, 8), 0, 1)],
)
def test_cnn_pools_while_both_sides_are_at_least_four(sides: tuple[int, int], pools: int, grid: int) -> None:
    net = build("cnn:2,3,4", (2, *sides), 5)
    assert sum(isinstance(module, nn.MaxPool2d) for module in net.modules()) == pools
    assert net.get_submodule("output").in_features == 4 * grid**2
    assert [name for name, _ in net.named_parameters() if "1" in name] == ["conv1.weight", "norm1.weight", "norm1.bias"]


@pytest.mark.parametrize(
    ("arch", "shape", "words"),
    [
        ("cnn:", (3, 8, 8), "unknown architecture 'cnn:'; expected mlp:500,500 or cnn:32,64"),
        ("cnn:8,,8", (3, 8, 8), "unknown architecture"),
        ("cnn:08", (3, 8, 8), "unknown architecture"),
        ("cnn:٣", (3, 8, 8), "unknown architecture"),
        ("cnn:8\n", (3, 8, 8), "unknown architecture"),
        ("cnn:65537", (3, 8, 8), "too wide"),
        ("cnn:65536,65536", (3, 8, 8), "38656475136 weights; expected at most 100000000"),
        ("resnet19", (3, 32, 32), "did you mean 'resnet18'"),
        ("ResNet18", (3, 32, 32), "unknown architecture"),
        ("resnet18", (4, 32, 32), "cannot read 4 channels; expected 1 or 3"),
        ("vgg11_bn", (3, 64, 64), "128755392 weights"),
        ("regnet_y_128gf", (3, 64, 64), "weights; expected at most 100000000"),
        ("vit_b_16", (3, 224, 224), "has a VisionTransformer; expected only Conv2d, Linear and BatchNorm2d"),
        ("swin_t", (3, 224, 224), "has a LayerNorm (features.0.2)"),
        ("convnext_tiny", (3, 224, 224), "has a LayerNorm2d (features.0.1)"),
        ("squeezenet1_0", (3, 224, 224), "does not end in a linear layer"),
        ("densenet121", (3, 28, 28), "cannot read inputs of 3x28x28; expected larger ones"),
        ("alexnet", (1, 28, 28), "cannot read inputs of 1x28x28"),
    ],
)
def test_refused_in_one_line(arch: str, shape: tuple[int, int, int], words: str) -> None:
    with pytest.raises(ValueError, match=r"^(unknown )?architecture") as caught:
        build(arch, shape, 10)
    text = str(caught.value)
    assert words in text
    assert len(text.splitlines()) == 1 or "\n" in arch
