"""``learn --eyes first``: made once, kept with the kind of input, the same for every task, and never changed."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pictures import batch

from clmoe_cli.api.export import export
from clmoe_cli.api.learn import learn
from clmoe_cli.api.options import LearnOptions
from clmoe_cli.api.predict import predict
from clmoe_cli.api.prune import PruneOptions, prune
from clmoe_cli.data import Batch
from clmoe_cli.method.learn_task import Options
from clmoe_cli.method.routing.features import EYED
from clmoe_cli.method.subnetwork.training import Schedule
from store_schema import ClmoeError, Interrupted, Store, StoreDamaged, UsageProblem, verify
from store_schema.eyes import decode_eye, encode_eye
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


def test_exports_answer_as_predict_does(store: Path, tmp_path: Path) -> None:
    # A file that answers otherwise is not kept.
    report = export(str(store), "task2", tmp_path / "task2.onnx")
    assert (tmp_path / "task2.onnx").exists()
    assert report.answers == "mixture"


def test_an_interrupted_learn_goes_on_to_the_same_bits(store: Path, tmp_path: Path) -> None:
    epochs = 0

    def stop(epoch: object) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 2:
            raise KeyboardInterrupt

    root = str(tmp_path / "store")
    with pytest.raises(Interrupted):
        learn(root, batch([0, 3], 120), options("first"), on_epoch=stop)
    learn(root, batch([0, 3], 120), options("first"))
    assert eye_of(Path(root)) == eye_of(store)


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
