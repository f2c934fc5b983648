"""``learn --eyes``: made once, kept with the kind of input, the same for every task, and never changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import batch
from safetensors.torch import load_file, save_file

from clmoe_cli.api.copying import CopyOptions, copy
from clmoe_cli.api.export import export
from clmoe_cli.api.export_all import export_all
from clmoe_cli.api.inspect import inspect
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.networks.architectures import parse_arch
from clmoe_cli.method.routing.features import ADAPTED, EYED, PRETRAINED, features
from clmoe_cli.method.routing.network_eye import NetworkEye
from clmoe_cli.method.subnetwork.training import Schedule
from clmoe_cli.store_tensors import Loader
from store_schema import ClmoeError, Interrupted, Store, StoreDamaged, StoreIncompatible, UsageProblem, verify
from store_schema.eyes import decode_eye, decode_network_eye, encode_eye, encode_network_eye
from store_schema.layout import object_path

QUICK = Options(schedule=Schedule(epochs=1))


def options(eyes: str | None = None) -> LearnOptions:
    return LearnOptions(arch="mlp:16", method=QUICK, eyes=eyes)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks seen by the eye of the first."""
    root = tmp_path_factory.mktemp("eyes") / "store"
    learn(str(root), batch([0, 3], 120), options("first"))
    learn(str(root), batch([6, 9], 120), options())
    return root


def eye_of(root: Path) -> str:
    ref = Store.open(root).manifest.gates[0].eye
    assert ref is not None
    return ref.sha256


def test_all_tasks_are_seen_by_one_eye_and_answers_do_not_depend_on_the_batch(store: Path) -> None:
    gate = Store.open(store).manifest.gates[0]
    assert gate.features.endswith(EYED)
    asked = batch([0, 3, 6, 9], 120, seed=1)
    found = predict(str(store), asked)
    assert found.scores is not None
    assert found.scores.accuracy > 0.8
    single = [predict(str(store), batch_of(asked, i)) for i in (0, 50, 119)]
    assert [s.label[0] for s in single] == [found.label[i] for i in (0, 50, 119)]
    assert [s.p_value[0] for s in single] == [found.p_value[i] for i in (0, 50, 119)]
    assert verify(store) == []


def batch_of(whole: Batch, at: int) -> Batch:
    """One image of a batch."""
    assert whole.labels is not None
    return replace(whole, images=whole.images[at : at + 1], labels=whole.labels[at : at + 1])


def test_the_eye_stays_when_the_first_task_goes_and_goes_with_the_last(store: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(store, root)
    before = eye_of(root)
    prune(str(root), PruneOptions(task="task1", gc=True), lambda plan: True)
    assert eye_of(root) == before
    assert verify(root) == []
    learn(str(root), batch([0, 3], 120), options("first"))
    assert eye_of(root) == before
    for name in [t.name for t in Store.open(root).manifest.tasks]:
        prune(str(root), PruneOptions(task=name, gc=True), lambda plan: True)
    assert Store.open(root).manifest.gates == ()
    assert not object_path(root, before, "safetensors").exists()


@pytest.mark.campaign
def test_the_same_images_make_the_same_eye_whatever_the_epochs(store: Path, tmp_path: Path) -> None:
    other = LearnOptions(arch="mlp:8", method=Options(schedule=Schedule(epochs=2)), eyes="first")
    learn(str(tmp_path / "store"), batch([0, 3], 120), other)
    assert eye_of(tmp_path / "store") == eye_of(store)


def test_a_kind_of_input_keeps_to_how_it_was_begun(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageProblem, match="begun with other eyes"):
        learn(str(store), batch([1, 4], 60), options("none"))
    root = tmp_path / "store"
    learn(str(root), batch([0, 3], 60), options())
    assert Store.open(root).manifest.gates[0].eye is None
    with pytest.raises(UsageProblem, match="begun with other eyes"):
        learn(str(root), batch([1, 4], 60), options("first"))


def test_eyes_look_at_pictures_only(tmp_path: Path) -> None:
    x = np.random.default_rng(0).random((60, 20)).astype(np.float32)
    with pytest.raises(UsageProblem, match="eyes look at pictures"):
        learn(str(tmp_path / "store"), Batch(x, np.arange(60) % 2, "table"), options("first"))


@pytest.mark.campaign
def test_exports_answer_as_predict_does(store: Path, tmp_path: Path) -> None:
    # A file that answers otherwise is not kept.
    report = export(str(store), "task2", tmp_path / "task2.onnx")
    assert (tmp_path / "task2.onnx").exists()
    assert report.answers == "mixture"


def resumed(root: Path, chosen: LearnOptions) -> object:
    """The eye of a first ``learn`` that was interrupted in its second epoch and went on."""
    epochs = 0

    def stop(epoch: object) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        learn(str(root), batch([0, 3], 120), chosen, on_epoch=stop)
    learn(str(root), batch([0, 3], 120), chosen)
    return eye_of(root)


@pytest.mark.campaign
def test_an_interrupted_learn_goes_on_to_the_same_bits(store: Path, tmp_path: Path) -> None:
    assert resumed(tmp_path / "store", options("first")) == eye_of(store)


def test_damaged_eyes_are_found(store: Path) -> None:
    gate = Store.open(store).manifest.gates[0]
    arrays = Store.open(store).read_eye(gate)
    assert arrays is not None
    data = encode_eye(arrays)
    assert data == object_path(store, eye_of(store), "safetensors").read_bytes()
    for broken in (b"", data[:-1], data[: len(data) // 2], b"\0" * 64):
        with pytest.raises(StoreDamaged):
            decode_eye(broken, "here", gate.input_shape)
    with pytest.raises(StoreDamaged, match="wrong shapes"):
        decode_eye(data, "here", (3, *gate.input_shape[1:]))
    nan = {**arrays, "offsets": np.full_like(arrays["offsets"], np.nan)}
    with pytest.raises(ClmoeError, match="cannot be stored"):
        encode_eye(nan)


def network_options(eyes: str | None = None, epochs: int = 1) -> LearnOptions:
    return LearnOptions(arch="cnn:6,8", method=Options(schedule=Schedule(epochs=epochs)), eyes=eyes)


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks seen by the first one's subnetwork."""
    root = tmp_path_factory.mktemp("adapted") / "store"
    learn(str(root), batch([0, 3], 120), network_options("subnetwork"))
    learn(str(root), batch([6, 9], 120), network_options())
    return root


def test_all_tasks_are_seen_by_the_subnetwork_of_the_first(adapted: Path) -> None:
    store = Store.open(adapted)
    gate, loader = store.manifest.gates[0], Loader(store)
    assert gate.features.endswith(ADAPTED)
    eye, first = loader.eye(gate), loader.task("task1")
    assert isinstance(eye, NetworkEye)
    assert set(eye.params) == {name for name in first.params if not name.startswith("output.")}
    assert all(torch.equal(value, first.params[name]) for name, value in eye.params.items())
    asked = batch([0, 3, 6, 9], 120, seed=1)
    # What the gate has of every task is of the joint space, and it is what an image is compared with.
    wide = features(torch.from_numpy(asked.scaled()).flatten(1), (1, 16, 16), gate.features, eye=eye).shape[1]
    assert {loader.gaussians(name).means.shape[1] for name in ("task1", "task2")} == {wide}
    found = predict(str(adapted), asked)
    assert found.scores is not None
    assert found.scores.accuracy > 0.8
    single = [predict(str(adapted), batch_of(asked, i)) for i in (0, 50, 119)]
    assert [s.label[0] for s in single] == [found.label[i] for i in (0, 50, 119)]
    assert [s.p_value[0] for s in single] == [found.p_value[i] for i in (0, 50, 119)]
    assert verify(adapted) == []


@pytest.mark.campaign
def test_a_refined_or_pruned_first_task_leaves_the_subnetwork_that_looks(adapted: Path, tmp_path: Path) -> None:
    root = tmp_path / "store"
    shutil.copytree(adapted, root)
    before, asked = eye_of(root), batch([6, 9], 60, seed=1)
    learn(str(root), batch([0, 3], 160, seed=4), replace(network_options(epochs=2), refine="task1"))
    assert eye_of(root) == before
    said = predict(str(root), asked, task="task2")
    prune(str(root), PruneOptions(task="task1", gc=True), lambda plan: True)
    assert eye_of(root) == before
    assert predict(str(root), asked, task="task2").p_value.tolist() == said.p_value.tolist()
    learn(str(root), batch([0, 3], 120), network_options("subnetwork"))
    assert eye_of(root) == before
    assert verify(root) == []
    for name in [t.name for t in Store.open(root).manifest.tasks]:
        prune(str(root), PruneOptions(task=name, gc=True), lambda plan: True)
    assert not object_path(root, before, "safetensors").exists()


def test_an_interrupted_learn_ends_with_the_same_subnetwork_as_eye(adapted: Path, tmp_path: Path) -> None:
    assert resumed(tmp_path / "store", network_options("subnetwork")) == eye_of(adapted)


@pytest.mark.campaign
def test_stores_seen_by_one_subnetwork_go_together(adapted: Path, tmp_path: Path) -> None:
    copy(str(adapted), str(tmp_path / "new"), CopyOptions(["task2"]))
    copy(str(adapted), str(tmp_path / "new"), CopyOptions(["task1"], {"task1": "first"}))
    asked = batch([0, 3, 6, 9], 60, seed=1)
    assert predict(str(tmp_path / "new"), asked).label.tolist() == predict(str(adapted), asked).label.tolist()
    assert verify(tmp_path / "new") == []
    other = tmp_path / "other"
    learn(str(other), batch([1, 4], 120), replace(network_options("subnetwork"), name="other"))
    with pytest.raises(StoreIncompatible, match=r"in different ways.*found eye"):
        copy(str(adapted), str(other))
    plain = tmp_path / "plain"
    learn(str(plain), batch([1, 4], 120), replace(network_options("none"), name="other"))
    with pytest.raises(StoreIncompatible, match="found --eyes subnetwork; expected --eyes none"):
        copy(str(adapted), str(plain))


@pytest.mark.parametrize("suffix", [pytest.param("onnx", marks=pytest.mark.campaign), "pt2"])
def test_a_subnetwork_that_looks_goes_into_the_graph(adapted: Path, tmp_path: Path, suffix: str) -> None:
    # A file that answers otherwise than predict is not kept.
    assert export_all(str(adapted), tmp_path / f"all.{suffix}").tasks == ("task1", "task2")
    if suffix == "onnx":
        assert export(str(adapted), "task2", tmp_path / "task2.onnx").answers == "mixture"


@pytest.fixture
def weights(tmp_path: Path) -> str:
    """A file of weights for ``cnn:6,8``."""
    net = parse_arch("cnn:6,8", (1, 16, 16))
    rng = torch.Generator().manual_seed(3)
    made = {n: v for n, v in (net.initial_shared(rng) | net.initial_owned(2, rng)).items() if "output" not in n}
    made |= {n: v + 0.1 * torch.rand(v.shape, generator=rng) for n, v in made.items() if n.startswith("norm")}
    save_file(made, tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def test_on_pretrained_weights_the_eye_names_them_and_they_stay(weights: str, tmp_path: Path) -> None:
    told = replace(network_options("subnetwork"), weights=weights)
    root = tmp_path / "store"
    learn(str(root), batch([0, 3], 120), told)
    store = Store.open(root)
    gate, expert = store.manifest.gates[0], store.manifest.experts[0]
    assert gate.eye_base is not None
    assert gate.eye_base == expert.base
    sizes, base = inspect(root).bytes, gate.eye_base.size
    assert sizes.experts["e1"] > base
    assert min(sizes.gates.values()) > base
    # The file that both need lies there once.
    assert sizes.total == sum(path.stat().st_size for path in (root / "objects").rglob("*.*"))
    loader = Loader(store)
    eye, first = loader.eye(gate), loader.task("task1")
    assert isinstance(eye, NetworkEye)
    whole, wanted = eye.net.effective(eye.params), first.net.effective(first.params)
    assert all(torch.equal(value, wanted[name]) for name, value in whole.items())
    # Of what was added only what is not zero is kept.
    found = store.read_network_eye(gate)
    assert found is not None
    added = {name: int(first.params[name].count_nonzero()) for name in eye.net.shared_shapes()}
    assert {name: len(found[0].added.get(name, ((), ()))[0]) for name in added} == added
    learn(str(root), batch([6, 9], 120), replace(told, eyes=None, expert="new", weights=None))
    asked = batch([6, 9], 40, seed=1)
    before = predict(str(root), asked, task="task2").p_value.tolist()
    prune(str(root), PruneOptions(task="task1", gc=True), lambda plan: True)
    assert predict(str(root), asked, task="task2").p_value.tolist() == before
    assert verify(root) == []
    path = object_path(root, gate.eye_base.sha256, "safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    assert [Path(one.file).stem for one in verify(root) if one.damage] == [gate.eye_base.sha256]


@pytest.mark.campaign
@pytest.mark.parametrize("eyes", [None, "pretrained"])
def test_pretrained_weights_look_as_they_are_whatever_was_learned_first(
    weights: str, tmp_path: Path, eyes: str | None
) -> None:
    told = replace(network_options(eyes), weights=weights)
    for name, order in (("one", ("a", "b")), ("other", ("b", "a"))):
        for task in order:
            data = batch({"a": [0, 3], "b": [6, 9]}[task], 120)
            learn(str(tmp_path / name), data, replace(told, name=task))
    one, other = Store.open(tmp_path / "one"), Store.open(tmp_path / "other")
    gate = one.manifest.gates[0]
    assert (gate.features, gate.eye, gate.eye_base) == (
        "scattering-1" + PRETRAINED, other.manifest.gates[0].eye, one.manifest.experts[0].base,
    )  # fmt: skip
    assert {expert.eyes for expert in inspect(tmp_path / "one").experts} == {"pretrained"}
    eye, made = Loader(one).eye(gate), load_file(weights)
    assert isinstance(eye, NetworkEye)
    whole = eye.net.effective(eye.params)
    assert {name: value.tolist() for name, value in whole.items()} == {n: v.tolist() for n, v in made.items()}
    # The gate knows nothing of the order.
    asked = batch([0, 3, 6, 9], 60, seed=1)
    said = [predict(str(tmp_path / name), asked, router="gate") for name in ("one", "other")]
    assert said[0].labels == said[1].labels
    assert said[0].scores is not None
    assert said[0].scores.accuracy > 0.8
    if eyes is None:  # which compares the file with predict
        export_all(str(tmp_path / "one"), tmp_path / "all.pt2")
    # Stores that see by the same weights go together.
    copy(str(tmp_path / "other"), str(tmp_path / "new"), CopyOptions(["b"]))
    copy(str(tmp_path / "one"), str(tmp_path / "new"), CopyOptions(["a"]))
    assert predict(str(tmp_path / "new"), asked, router="gate").labels == said[0].labels
    assert verify(tmp_path / "new") == []


def test_pretrained_eyes_can_be_left_out_and_need_weights(weights: str, tmp_path: Path) -> None:
    told = replace(network_options("none"), weights=weights)
    learn(str(tmp_path / "store"), batch([0, 3], 60), told)
    assert Store.open(tmp_path / "store").manifest.gates[0].eye is None
    learn(str(tmp_path / "store"), batch([6, 9], 60), replace(told, eyes=None))
    assert Store.open(tmp_path / "store").manifest.gates[0].eye is None
    with pytest.raises(UsageProblem, match=r"no pretrained weights.*cnn:6,8.*--arch lite0"):
        learn(str(tmp_path / "new"), batch([0, 3], 60), network_options("pretrained"))


def test_what_no_subnetwork_can_look_at_is_one_line(adapted: Path, tmp_path: Path) -> None:
    new = str(tmp_path / "store")
    with pytest.raises(UsageProblem, match=r"has convolutions.*mlp:16"):
        learn(new, batch([0, 3], 60), options("subnetwork"))
    with pytest.raises(UsageProblem, match="one class trains no subnetwork"):
        learn(new, batch([0], 60), network_options("subnetwork"))
    x = np.random.default_rng(0).random((60, 20)).astype(np.float32)
    with pytest.raises(UsageProblem, match="eyes look at pictures"):
        learn(new, Batch(x, np.arange(60) % 2, "table"), options("subnetwork"))
    for other in ("none", "first"):
        with pytest.raises(UsageProblem, match=r"begun with other eyes.*expected subnetwork"):
            learn(str(adapted), batch([1, 4], 60), network_options(other))


def test_a_damaged_subnetwork_that_looks_is_found(adapted: Path) -> None:
    store = Store.open(adapted)
    found = store.read_network_eye(store.manifest.gates[0])
    assert found is not None
    eye, _ = found
    data = encode_network_eye(eye)
    assert data == object_path(adapted, eye_of(adapted), "safetensors").read_bytes()
    for broken in (b"", data[:-1], data[: len(data) // 2], b"\0" * 64):
        with pytest.raises(StoreDamaged):
            decode_network_eye(broken, "here", None)
    with pytest.raises(StoreDamaged, match="another object"):
        decode_network_eye(data, "here", "0" * 64)
    name, (at, values) = next(iter(eye.added.items()))
    size = int(np.prod(eye.shapes[name]))
    for wrong in (at[::-1].copy(), at - 1 - at[0], at + size - at[-1], at[:-1]):
        with pytest.raises(ClmoeError, match="cannot be stored"):
            encode_network_eye(replace(eye, added={**eye.added, name: (wrong, values)}))
    with pytest.raises(ClmoeError, match="cannot be stored"):
        encode_network_eye(replace(eye, added={**eye.added, name: (at, np.full_like(values, np.nan))}))
