"""Campaigns: a sample of each runs in ``make test``, the whole in ``make test-faults``.

Each test says how many cases it tried with ``record_property("cases", n)`` and how many of them failed with
``record_property("failures", n)``, before it asserts that none did.
"""

from __future__ import annotations

import pytest


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether every case is wanted, or a sample."""
    return bool(request.config.getoption("--whole"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if not config.getoption("--whole"):
        return
    terminalreporter.section("cases tried")
    for outcome in ("passed", "failed"):
        for report in terminalreporter.stats.get(outcome, []):
            figures = ", ".join(f"{name} {value}" for name, value in report.user_properties)
            if figures:
                terminalreporter.write_line(f"{report.nodeid}  {figures}  ({outcome}, {report.duration:.0f} s)")
