"""Several processes read pictures and compute features in shares, and have what one process has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from launching import together
from PIL import Image
from torch import Tensor

from clmoe_cli.backbone.session import BackboneSession
from clmoe_cli.data import pictures, read_batch
from clmoe_cli.runtime import limits
from clmoe_cli.runtime.distributed import processes, sharing
from store_schema import BadInput, UsageProblem
from store_schema.records import FeaturesRecord

COUNT, BROKEN = 23, (0, 4, 22)


@pytest.fixture(autouse=True)
def _few_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a folder of few pictures is read in several parts, the last of them short."""
    monkeypatch.setattr(limits, "PICTURES_DECODED", 1)
    monkeypatch.setattr(pictures, "THREADS", 3)
    monkeypatch.setattr(pictures, "_AT_ONCE", 1)


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Says in a process that it works with others, as ``together`` of the command does."""
    return lambda: monkeypatch.setattr(processes, "_joined", True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for i in range(COUNT):
        path = tmp_path / "pictures" / "ab"[i % 2] / f"{i:02}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 30, 3), dtype=np.uint8)).save(path)
        if i in BROKEN:
            path.write_bytes(path.read_bytes()[:-400])  # its head is whole
    return tmp_path / "pictures"


def read(folder: Path, **more: Any) -> dict[str, Tensor]:
    """Pictures, names, skipped names and labels, all as numbers."""
    batch = read_batch(str(folder), labels="optional", **more)
    assert batch.labels is not None
    texts = "\n".join([*(batch.files or ()), "skipped", *batch.skipped, "labels", *batch.labels.tolist()])
    return {"images": torch.tensor(batch.images), "texts": torch.tensor(list(texts.encode()))}


@pytest.mark.parametrize("processes_", [2, 3])
def test_each_process_decodes_its_share_and_all_have_all(
    processes_: int, folder: Path, joined: Callable[[], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = read(folder, skip_broken=True)
    decoded: list[str] = []
    decode = pictures.decode

    def counting(path: str, grey: bool | None = None) -> Any:
        decoded.append(path)
        return decode(path, grey)

    def act(rank: int) -> dict[str, Tensor]:
        joined()
        monkeypatch.setattr(pictures, "decode", counting)
        found = read(folder, skip_broken=True)
        return found | {"decoded": torch.tensor([len(decoded), len(set(decoded))])}

    found = together(processes_, act, tmp_path / "found")
    for each in found:
        assert np.array_equal(each["images"], alone["images"].numpy())
        assert np.array_equal(each["texts"], alone["texts"].numpy())
    counts = [each["decoded"].tolist() for each in found]
    assert sum(count for count, _ in counts) == sum(different for _, different in counts) == COUNT
    assert min(count for count, _ in counts) >= COUNT // 4


def test_broken_pictures_are_told_alike_by_all(folder: Path, joined: Callable[[], None], tmp_path: Path) -> None:
    with pytest.raises(BadInput) as alone:
        read(folder)

    def act(rank: int) -> dict[str, Tensor]:
        joined()
        with pytest.raises(BadInput) as caught:
            read(folder)
        assert str(caught.value) == str(alone.value)
        return {}

    together(2, act, tmp_path / "found")
    assert f"{len(BROKEN)} of {COUNT} pictures broken" in str(alone.value)


def session(most: float = np.inf) -> BackboneSession:
    """One whose backbone has the sums of pictures as features, and none for pictures whose sum is above ``most``."""

    def features(images: Tensor, device: str) -> Tensor:
        found = images.double().sum(dim=(1, 2, 3)).float()
        if float(found.max()) > most:
            raise BadInput("the features are not finite", hint="check its weights")
        return torch.stack([found, found.square()], dim=1)

    found = BackboneSession("sums")
    found._loaded: Any = SimpleNamespace(
        record=FeaturesRecord(arch="sums", sha256="0" * 64), width=2, features=features, arch="sums"
    )
    return found


@pytest.mark.usefixtures("empty_cache")
@pytest.mark.parametrize("count", [1, 2, 7])
def test_each_process_computes_its_share_of_the_features(
    count: int, joined: Callable[[], None], tmp_path: Path
) -> None:
    images = np.random.default_rng(1).integers(0, 256, (count, 3, 4, 4), dtype=np.uint8)

    def act(rank: int) -> dict[str, Tensor]:
        joined()
        first, again = session(), session()
        mine: list[int] = []
        own = first.backbone.features

        def counted(some: Tensor, device: str) -> Tensor:
            mine.append(len(some))
            return own(some, device)

        first.backbone.features = counted  # type: ignore[method-assign, misc]
        found = first.vectors(images)
        kept = again.vectors(images)
        return {
            "found": torch.tensor(found), "kept": torch.tensor(kept),
            "computed": torch.tensor([first.computed, again.computed, sum(mine)]),
        }  # fmt: skip

    each = together(2, act, tmp_path / "found")
    alone = session()
    alone.keep = False
    right = alone.vectors(images)
    for found in each:
        assert np.array_equal(found["found"], right)
        assert np.array_equal(found["kept"], right)
    # All are told of all that was computed; nothing was computed twice, and nothing again once it was kept.
    assert [found["computed"].tolist() for found in each] == [[count, 0, count // 2], [count, 0, count - count // 2]]


@pytest.mark.usefixtures("empty_cache")
def test_what_one_cannot_compute_is_told_by_all(joined: Callable[[], None], tmp_path: Path) -> None:
    images = np.zeros((4, 3, 2, 2), np.uint8)
    images[3] = 9

    def act(rank: int) -> dict[str, Tensor]:
        joined()
        with pytest.raises(BadInput, match="the features are not finite; check its weights"):
            session(most=50.0).vectors(images)
        return {}

    together(2, act, tmp_path / "found")


def test_errors_travel_whole() -> None:
    error = UsageProblem("what", where="where", key="key", found="found", hint="hint")
    back = sharing.error_of(UsageProblem, sharing.fields(error))
    assert (type(back), str(back), back.expected) == (UsageProblem, str(error), None)
