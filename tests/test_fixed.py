"""Fixed features as a backbone: what the gate reads of pixels is what experts then read."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from pictures import bars

from clmoe_cli.backbone.loading import load
from clmoe_cli.cli.app import app
from clmoe_cli.cli.process import run
from clmoe_cli.method.routing import features
from store_schema import Store, UsageProblem

QUICK = ("--arch", "mlp:32,32", "--epochs", "3")


def colours(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_they_are_the_features_of_the_gate_whatever_pictures_are_beside() -> None:
    backbone, x = load("fixed"), colours(300)
    found = backbone.features(x)
    assert found.shape == (300, backbone.width)
    shares = x.flatten(1).double() / 255
    torch.testing.assert_close(found.double(), features.features(shares, (3, 32, 32)), rtol=0, atol=1e-5)
    assert torch.equal(backbone.features(x[7:8]), found[7:8])
    assert torch.equal(backbone.features(x.flip(0)).flip(0), found)


def test_what_they_cannot_be_made_of_is_refused() -> None:
    with pytest.raises(UsageProblem, match=r"fixed features need larger pictures.*8x8.*12 pixels at least"):
        load("fixed", size=(8, 8))
    with pytest.raises(UsageProblem, match="no weights"):
        load("fixed", "weights.safetensors")


def test_a_store_of_them_learns_and_answers_without_being_told_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(*args: object) -> tuple[int, str, str]:
        return run(app, [str(arg) for arg in args]), *capsys.readouterr()

    store = tmp_path / "store"
    for number, rows in enumerate(([0, 4], [2, 6])):
        x, y = bars(rows, 160, number, 32)
        np.savez(tmp_path / f"{number}.npz", x=x, y=y)
        told = ("--features", "fixed") if number == 0 else ()
        code, _, said = call("learn", "--data", tmp_path / f"{number}.npz", "--store", store, *told, *QUICK)
        assert code == 0, said
    (kind,) = {e.input.features.arch for e in Store.open(store).manifest.experts if e.input and e.input.features}
    assert kind == "fixed"
    code, out, said = call("predict", "--batch", tmp_path / "0.npz", "--store", store, "--json")
    assert code == 0, said
    assert json.loads(out)["accuracy"] >= 0.95
    assert re.search("features of fixed: 160 pictures", said)
    code, _, said = call("predict", "--batch", tmp_path / "0.npz", "--store", store, "--features", "lite0")
    assert code == 4
    assert "fixed" in said
