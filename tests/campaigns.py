"""What ``make test`` leaves to ``make test-faults``: tests that take long, and siblings of cases that run."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest


def some(values: Iterable[Any], *kept: Any) -> list[Any]:
    """``values`` as the parameters of a test; all but ``kept`` run in the campaign only."""
    every = list(values)
    assert set(kept) <= set(every)
    return [value if value in kept else pytest.param(value, marks=pytest.mark.campaign) for value in every]
