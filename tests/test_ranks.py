"""Several processes at one store: what they see, who goes on when one ends, and where a stopped run continues."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from launching import together
from small_store import OPTIONS, batch, build, state
from torch import Tensor

from clmoe_cli.api import resuming
from clmoe_cli.api.learn import learn
from clmoe_cli.api.predict import predict
from clmoe_cli.method.subnetwork.training import Epoch
from clmoe_cli.runtime.distributed import collectives, stores
from clmoe_cli.runtime.distributed.processes import PeerLost
from store_schema import BadInput, Interrupted, Store, verify
from store_schema.errors import ObjectVanished


def test_what_is_committed_stays_whoever_ends_then(tmp_path: Path) -> None:
    done: list[str] = []

    def act(rank: int) -> dict[str, Tensor]:
        if rank == 1:
            collectives.meet()
            return {}
        locked: Any = SimpleNamespace(root=tmp_path)
        manifest: Any = SimpleNamespace(name="committed")
        assert stores.committed(locked, lambda: done.append("") or manifest) is manifest
        assert done == [""]
        return {}

    together(2, act, tmp_path / "found")


def test_nothing_is_committed_once_one_has_ended(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        if rank == 0:
            locked: Any = SimpleNamespace(root=tmp_path)
            with pytest.raises(collectives.Lost):
                stores.committed(locked, lambda: pytest.fail("committed"))
        return {}

    together(2, act, tmp_path / "found")


def test_who_follows_cannot_tell_of_a_commit_that_was_cut_off(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        if rank == 0:
            collectives.meet()
            return {}
        locked: Any = SimpleNamespace(root=tmp_path)
        with pytest.raises(PeerLost, match="clmoe inspect tells"):
            stores.committed(locked, lambda: pytest.fail("committed"))
        return {}

    together(2, act, tmp_path / "found")


def test_all_read_the_same_generation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They see different ones, then one that a commit sweeps away, then the same; a loss without a commit is damage."""

    def act(rank: int) -> dict[str, Tensor]:
        heads = iter([[b"1", b"2", b"3", b"3"], [b"2", b"2", b"3", b"3"]][rank])
        monkeypatch.setattr(stores.Store, "open", lambda path: SimpleNamespace(head=next(heads)))

        def use(store: Any) -> bytes:
            if store.head != b"3":
                raise ObjectVanished("swept")
            return bytes(store.head)

        assert stores.read_together("store", None, use) == b"3"
        monkeypatch.setattr(stores.Store, "open", lambda path: SimpleNamespace(head=b"1"))
        with pytest.raises(ObjectVanished):
            stores.read_together("store", None, use)
        return {}

    together(2, act, tmp_path / "found")


def test_processes_that_were_given_different_data_refuse(tmp_path: Path) -> None:
    def act(rank: int) -> dict[str, Tensor]:
        with pytest.raises(BadInput, match="do not read the same"):
            learn(str(tmp_path / "store"), batch(1, 60 + 2 * rank), OPTIONS)
        return {}

    together(2, act, tmp_path / "found")
    assert state(tmp_path / "store") == ()


@pytest.mark.parametrize("epochs", [1, pytest.param(2, marks=pytest.mark.campaign)])
def test_a_stopped_run_goes_on_to_the_same_store(epochs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One epoch of each phase: the first stop is within the rounds of pruning, the other one in the phase after."""
    monkeypatch.setattr(resuming, "PAUSE", 0.0)
    own = build(tmp_path / "own", 1)
    before = state(own)

    def stop(rank: int) -> dict[str, Tensor]:
        seen: list[Epoch] = []

        def count(epoch: Epoch) -> None:
            seen.append(epoch)
            if len(seen) > epochs and rank == 0:
                raise KeyboardInterrupt

        with pytest.raises(PeerLost if rank else Interrupted):
            learn(str(own), batch(2), OPTIONS, on_epoch=count)
        return {}

    def go_on(rank: int) -> dict[str, Tensor]:
        told: list[str] = []
        learn(str(own), batch(2), OPTIONS, on_resume=told.append)
        return {"told": torch.tensor(len(told))}

    def whole(rank: int) -> dict[str, Tensor]:
        learn(str(tmp_path / "whole"), batch(1), OPTIONS)
        learn(str(tmp_path / "whole"), batch(2), OPTIONS)
        return {}

    together(2, stop, tmp_path / "stop")
    assert state(own) == before
    assert [int(found["told"]) for found in together(2, go_on, tmp_path / "go on")] == [1, 1]
    assert verify(own) == []
    assert list((own / "checkpoints").iterdir()) == []
    together(2, whole, tmp_path / "whole run")
    first, second = (Store.open(root).manifest for root in (own, tmp_path / "whole"))
    assert [t.name for t in first.tasks] == [t.name for t in second.tasks] == ["task1", "task2"]
    assert first.tasks[1].accuracy == second.tasks[1].accuracy


def test_routers_that_score_a_batch_answer_by_themselves(tmp_path: Path) -> None:
    """The scores of a batch are no sum over processes that look at other batches."""
    own = build(tmp_path / "store", 2)
    questions = batch(1, 50)
    expected = predict(str(own), questions, router="paper", route="batch", batch_size=10)

    def act(rank: int) -> dict[str, Tensor]:
        found = predict(str(own), questions, router="paper", route="batch", batch_size=10)
        assert (found.task == expected.task).all()
        assert (found.label == expected.label).all()
        return {}

    together(2, act, tmp_path / "found")
