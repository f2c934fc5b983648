"""Pretrained experts: free weights start from a file, which the expert remembers and every later learn needs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fresh import initial_parameters
from pictures import batch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torchvision import models

from clmoe_cli.api import measuring, resuming
from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.export import export
from clmoe_cli.api.export_all import export_all
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.starting import Start
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.data import Batch
from clmoe_cli.method.images import Labelled
from clmoe_cli.method.learn_task import Identity, Options, Setting, Shared, learn_task
from clmoe_cli.method.networks import modules
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.networks.base import logits
from clmoe_cli.method.subnetwork import masks
from clmoe_cli.method.subnetwork.pruning import Tolerance
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.runtime.events import silent
from clmoe_cli.store_tensors import Loader
from store_schema import BadInput, StoreDamaged, StoreIncompatible, UsageProblem, verify
from store_schema import Store as Opened

ARCH, SHAPE = "cnn:4,8", (1, 16, 16)
STILL = Options(Schedule(epochs=1, lr=1e-9), Tolerance(lr=1e-9))


def weights(path: Path, seed: int) -> str:
    """A file for ``ARCH``: everything but the output layer, which nobody needs."""
    fresh = initial_parameters(modules.build(ARCH, SHAPE, 2), torch.Generator().manual_seed(seed))
    rng = torch.Generator().manual_seed(seed + 100)
    for name, value in fresh.items():
        if name.startswith("norm"):
            value.add_(0.1 * torch.rand(value.shape, generator=rng))
    save_file({name: value for name, value in fresh.items() if not name.startswith("output.")}, path)
    return str(path)


def told(file: str | None, **more: object) -> LearnOptions:
    options = LearnOptions(arch=ARCH, weights=file, method=Options(Schedule(epochs=1)))
    return replace(options, **more)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("weights")
    return weights(root / "own.safetensors", 1), weights(root / "other.safetensors", 2)


def test_training_begins_where_the_file_is(files: tuple[str, str]) -> None:
    given = batch([0, 4], 80, 1)
    start = Start.of(told(files[0]), given)
    net = parse_arch(ARCH, SHAPE)
    assert start.params is not None
    zeros = {name: torch.zeros(shape) for name, shape in net.shared_shapes().items()}
    none = masks.zeros_like(zeros)
    x, y = torch.from_numpy(given.scaled().reshape(80, -1)), torch.from_numpy(given.labels) // 4

    def learned(begin: dict[str, torch.Tensor] | None) -> dict[str, torch.Tensor]:
        rng = torch.Generator().manual_seed(0)
        setting = Setting(STILL, rng, start=begin)
        task = learn_task(Identity("a", "e1", 2), net, Shared(zeros, none, none), Labelled(x, y), setting).subnetwork
        own = {name: task.mask.get(name, torch.tensor(True)) for name in task.params}
        return {name: torch.where(own[name], value, torch.nan) for name, value in task.params.items()}

    found, fresh = learned(start.params), learned(None)
    moved = 0
    for name in (*zeros, "norm1.weight", "norm2.bias"):
        used = ~found[name].isnan()
        assert bool(used.any())
        torch.testing.assert_close(found[name][used], start.params[name][used], rtol=0, atol=1e-6)
        moved += int((fresh[name].nan_to_num() - start.params[name]).abs().max() > 0.01)
    assert moved == 4  # without the file it begins elsewhere


def test_weights_that_a_later_task_must_not_touch_stay(files: tuple[str, str]) -> None:
    given = batch([0, 4], 80, 1)
    start = Start.of(told(files[0]), given)
    net = parse_arch(ARCH, SHAPE)
    base = {name: torch.full(shape, 0.5) for name, shape in net.shared_shapes().items()}
    rng = torch.Generator().manual_seed(3)
    frozen = {name: torch.rand(value.shape, generator=rng) < 0.5 for name, value in base.items()}
    readable = {name: mask & (torch.rand(mask.shape, generator=rng) < 0.5) for name, mask in frozen.items()}
    x, y = torch.from_numpy(given.scaled().reshape(80, -1)), torch.from_numpy(given.labels) // 4
    setting = Setting(STILL, torch.Generator().manual_seed(0), start=start.params)
    shared = Shared(base, frozen, readable)
    task = learn_task(Identity("a", "e1", 2), net, shared, Labelled(x, y), setting).subnetwork
    assert start.params is not None
    for name, mask in task.mask.items():
        assert not bool((mask & frozen[name] & ~readable[name]).any())
        assert bool((task.params[name][mask & readable[name]] == 0.5).all())
        new = mask & ~frozen[name]
        torch.testing.assert_close(task.params[name][new], start.params[name][new], rtol=0, atol=1e-6)


def test_an_expert_is_of_its_file(files: tuple[str, str], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    first = learn(store, batch([0, 4], 80, 1), told(files[0]))
    known = Start.of(told(files[0]), batch([0, 4], 80, 1))
    record = Opened.open(store).manifest.expert(first.expert)
    assert record.pretrained == known.sha256
    assert known.sha256 is not None
    # Neither without the file nor with another one is it looked at.
    for file in (None, files[1]):
        more = learn(store, batch([2, 7], 80, 2), told(file, if_known="new"))
        assert more.new_expert
        assert more.candidates == ()
    pretrained = [e.pretrained for e in Opened.open(store).manifest.experts]
    assert pretrained == [known.sha256, None, Start.of(told(files[1]), batch([2, 7], 80, 2)).sha256]
    with pytest.raises(UsageProblem, match=f"e1.*no --weights.*{known.sha256[:16]}"):
        learn(store, batch([5, 9], 80, 3), told(None, expert="e1", if_known="new"))
    with pytest.raises(StoreIncompatible, match=f"e1.*expected weights {known.sha256[:16]}"):
        learn(store, batch([5, 9], 80, 3), told(files[1], expert="e1", if_known="new"))
    with pytest.raises(StoreIncompatible, match=r"e2.*drawn afresh"):
        learn(store, batch([5, 9], 80, 3), told(files[0], expert="e2", if_known="new"))
    later = learn(store, batch([5, 9], 80, 3), told(files[0], expert="e1", if_known="new"))
    assert (later.expert, later.new_expert) == ("e1", False)
    assert {c.task for c in later.candidates} == {first.task}
    assert verify(tmp_path / "store") == []


@pytest.mark.campaign
def test_refining_needs_the_file(files: tuple[str, str], tmp_path: Path) -> None:
    store = str(tmp_path / "store")
    learn(store, batch([0, 4], 400, 1), told(files[0]))
    more = batch([0, 4], 500, 2)
    with pytest.raises(UsageProblem, match="--weights FILE"):
        learn(store, more, told(None, if_known="refine"))
    assert learn(store, more, told(files[0], if_known="refine")).status == "refined"
    assert learn(store, more, told(None)).status == "known"


def test_comparisons_begin_where_training_would(files: tuple[str, str], rng: torch.Generator) -> None:
    net = parse_arch(ARCH, SHAPE)
    start = Start.of(told(files[0]), batch([0, 4], 80, 1))
    assert start.params is not None
    (draw,) = start.draws(net, rng)
    assert list(draw) == list(net.shared_shapes())
    assert all(torch.equal(draw[name], start.params[name]) for name in draw)
    several = Start().draws(net, rng)
    assert len(several) > 1
    assert not torch.equal(several[0]["conv1.weight"], several[1]["conv1.weight"])


def test_progress_is_of_one_file(files: tuple[str, str]) -> None:
    given = batch([0, 4], 80, 1)
    starts = [Start.of(told(file), given) for file in (*files, None)]
    keys = {resuming._key(given, told(start.sha256), "", 0, silent) for start in starts}
    assert len(keys) == 3


def test_all_but_the_output_of_torchvisions_networks(tmp_path: Path) -> None:
    net = models.shufflenet_v2_x0_5(weights=None)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    options = LearnOptions(arch="shufflenet_v2_x0_5", weights=str(tmp_path / "net.safetensors"))
    pictures = Batch(np.zeros((2, 3, 32, 32), np.uint8), np.arange(2), "here")
    found = Start.of(options, pictures).params
    assert found is not None
    ours = parse_arch(options.arch, (3, 32, 32))
    owned = ours.initial_owned(2, torch.Generator())
    assert list(found) == [k for k in ours.ordered(ours.shared_shapes() | owned) if not k.startswith("output.")]
    assert torch.equal(found["conv1.0.weight"], net.state_dict()["conv1.0.weight"])


def test_options_that_do_not_go_together(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = batch([0, 4], 80, 1)
    with pytest.raises(UsageProblem, match=r"--weights is for convolutional experts.*mlp:8"):
        learn(str(tmp_path / "store"), given, replace(told(files[0]), arch="mlp:8"))
    with pytest.raises(BadInput, match=r"not the weights of cnn:4.*own\.safetensors"):
        learn(str(tmp_path / "store"), given, replace(told(files[0]), arch="cnn:4"))
    assert not (tmp_path / "store").exists()
    np.savez(tmp_path / "data.npz", x=given.images, y=given.labels)
    args = ["learn", "--data", str(tmp_path / "data.npz"), "--store", str(tmp_path / "store")]
    args += ["--arch", ARCH, "--weights", files[0], "--epochs", "1", "-q", "--json"]
    assert run(app, args) == 0
    assert json.loads(capsys.readouterr()[0])["new_expert"]
    assert Opened.open(tmp_path / "store").manifest.experts[0].pretrained is not None


def effective(store: Path, task: str) -> dict[str, torch.Tensor]:
    """A task's parameters as its layers use them, in float64, from the arrays on disk alone."""
    opened = Opened.open(store)
    expert = opened.manifest.task(task).expert
    weights, below = opened.read_expert(expert), opened.read_base(expert)
    own = opened.read_subnetwork(task).masks
    assert below is not None
    found = {name: below[name].astype(float) + np.where(own[name], weights.shared[name], 0) for name in below}
    found |= {name: value.astype(float) for name, value in weights.owned[task].items()}
    return {name: torch.from_numpy(np.array(value)) for name, value in found.items()}


def test_tasks_read_the_whole_base_and_add_a_little(files: tuple[str, str], tmp_path: Path) -> None:
    first = learn(str(tmp_path / "store"), batch([0, 4], 80, 1), told(files[0]))
    before = effective(tmp_path / "store", first.task)
    options = told(files[0], expert=first.expert, if_known="new")
    second = learn(str(tmp_path / "store"), batch([2, 7], 80, 2), options)
    assert (second.expert, verify(tmp_path / "store")) == (first.expert, [])
    opened = Opened.open(tmp_path / "store")
    given, below = load_file(files[0]), opened.read_base(first.expert)
    assert below is not None
    assert all(np.array_equal(value, given[name].numpy()) for name, value in below.items())
    shared = opened.read_expert(first.expert).shared
    used = {name: np.zeros(value.shape, bool) for name, value in shared.items()}
    for task in (first.task, second.task):
        for name, mask in opened.read_subnetwork(task).masks.items():
            used[name] |= mask
    assert all(not shared[name][~used[name]].any() for name in shared)
    assert any(shared[name].any() for name in shared)
    after = effective(tmp_path / "store", first.task)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    # An oracle: the layers one by one in float64, from what lies on disk.
    images = torch.from_numpy(batch([0, 4], 12, 9).scaled()).double()
    x, p = images * opened.manifest.expert(first.expert).input_scale, after
    for n in (1, 2):
        x = F.max_pool2d(F.conv2d(x, p[f"conv{n}.weight"], padding=1), 2)
        moments = p[f"norm{n}.running_mean"], p[f"norm{n}.running_var"]
        x = F.batch_norm(x, *moments, p[f"norm{n}.weight"], p[f"norm{n}.bias"]).relu()
    x = F.adaptive_avg_pool2d(x, 2).flatten(1) @ p["output.weight"].T + p["output.bias"]
    loader = Loader(opened)
    task = loader.task(first.task)
    rows = loader.scaling(first.expert).apply(images.float().flatten(1))
    torch.testing.assert_close(logits(task.net, task.params, rows), x.float(), rtol=1e-4, atol=1e-4)


def test_a_quota_holds_in_every_layer_on_a_base(files: tuple[str, str], tmp_path: Path) -> None:
    report = learn(str(tmp_path / "store"), batch([0, 4], 80, 1), told(files[0]))
    assert report.layers
    assert all(layer.selected <= 0.03 * layer.parameters for layer in report.layers)


def test_a_base_goes_where_its_tasks_go(files: tuple[str, str], tmp_path: Path) -> None:
    source, given = tmp_path / "store", batch([0, 4], 80, 1)
    # Else the gates of the two see by other weights.
    report = learn(str(source), given, told(files[0], eyes="none"))
    learn(str(tmp_path / "other"), batch([2, 7], 80, 2), told(files[1], eyes="none"))
    copy(str(source), str(tmp_path / "new"))
    copy(str(source), str(tmp_path / "other"), CopyOptions(names={report.task: "came"}))
    for folder, name in (("new", report.task), ("other", "came")):
        found, expected = effective(tmp_path / folder, name), effective(source, report.task)
        assert all(torch.equal(found[key], value) for key, value in expected.items())
        assert verify(tmp_path / folder) == []
    export(str(source), report.task, tmp_path / "task.safetensors")
    found = load_file(tmp_path / "task.safetensors")
    names = [key for key in expected if key != "conv1.weight"]  # which takes over the scale of inputs
    assert all(torch.equal(found[key].double(), expected[key].float().double()) for key in names)


@pytest.mark.campaign
def test_a_model_of_the_whole_store_stands_on_the_base(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measuring, "opinion_weight", lambda *logs: 0.5)
    store = str(tmp_path / "store")
    learn(store, batch([0, 4], 80, 1), told(files[0]))
    export_all(store, tmp_path / "store.pt2")  # which compares it with predict


def test_a_base_outlives_its_generation(files: tuple[str, str], tmp_path: Path) -> None:
    # Without eyes, so that the expert alone needs it.
    first = learn(str(tmp_path / "store"), batch([0, 4], 80, 1), told(files[0], eyes="none"))
    for n, pair in enumerate(([1, 2], [5, 6], [3, 8]), start=2):
        learn(str(tmp_path / "store"), batch(pair, 20, n), replace(told(None, expert="new"), arch="mlp:4"))
    assert verify(tmp_path / "store") == []
    assert Loader(Opened.open(tmp_path / "store")).network(first.expert).base


def test_a_damaged_base_is_named(files: tuple[str, str], tmp_path: Path) -> None:
    report = learn(str(tmp_path / "store"), batch([0, 4], 80, 1), told(files[0]))
    record = Opened.open(tmp_path / "store").manifest.expert(report.expert).base
    assert record is not None
    path = tmp_path / "store" / "objects" / record.sha256[:2] / f"{record.sha256}.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.chmod(0o644)
    path.write_bytes(data)
    assert [Path(finding.file).name for finding in verify(tmp_path / "store") if finding.damage] == [path.name]
    with pytest.raises(StoreDamaged, match=record.sha256[:12]):
        Loader(Opened.open(tmp_path / "store")).network(report.expert)


def test_experts_without_a_base_go_on_without(
    files: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = str(tmp_path / "store")
    with monkeypatch.context() as before:  # pretrained experts were made like this
        before.setattr(Start, "base", lambda *args: {})
        first = learn(store, batch([0, 4], 80, 1), told(files[0]))
    options = told(files[0], expert=first.expert, if_known="new")
    second = learn(store, batch([2, 7], 80, 2), options)
    opened = Opened.open(store)
    assert (second.expert, opened.manifest.expert(first.expert).base) == (first.expert, None)
    assert Loader(opened).network(first.expert).base == {}
    assert verify(store) == []
