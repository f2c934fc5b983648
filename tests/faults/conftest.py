"""Campaigns: a sample of each runs in ``make test``, the whole in ``make test-faults``.

Each test says how many cases it tried with ``record_property("cases", n)`` and how many of them failed with
``record_property("failures", n)``, before it asserts that none did.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from tracing import Strace


@pytest.fixture
def strace(tmp_path: Path) -> Strace:
    """Skips where there is no strace, or it may not trace: the recorder inside the process is there all the same."""
    found = shutil.which("strace")
    if found is None or subprocess.run([found, "-o", "/dev/null", "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not here, or may not trace")
    return Strace(found, tmp_path / "log")


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
