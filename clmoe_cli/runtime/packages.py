"""Which optional packages are installed, without importing them."""

from __future__ import annotations

from importlib.util import find_spec


def missing(*names: str) -> list[str]:
    """Those of these packages that are not installed."""
    return [name for name in names if find_spec(name) is None]
