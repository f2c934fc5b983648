from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from store_samples import commit_task

from store_schema import writer


@pytest.fixture
def make_store(tmp_path: Path) -> Callable[..., Path]:
    def make(*names: str, folder: str = "store") -> Path:
        root = tmp_path / folder
        for i, name in enumerate(names):
            with writer(root, seed=3, create=True) as locked:
                commit_task(locked, name, i)
        return root

    return make
