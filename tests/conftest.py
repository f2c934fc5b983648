from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

# Before anything loads the library for threads: one thread, and one that waits for others takes no processor.
os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0"}

import pytest
import torch
from hypothesis import HealthCheck, settings

from clmoe_cli.backbone import places
from clmoe_cli.method.networks.base import Network, Params

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent / "store_schema")]
torch.set_num_threads(1)
# A shell starts what runs in the background deaf to SIGINT, and so would be every process of the tests.
signal.signal(signal.SIGINT, signal.default_int_handler)
for profile, examples in (("sample", 15), ("whole", 500)):
    settings.register_profile(
        profile,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=True,
        max_examples=examples,
    )
settings.load_profile("sample")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--whole", action="store_true", help="run the campaigns in full, not a sample")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--whole"):
        settings.load_profile("whole")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves the campaigns to ``make test-faults``, but for those that are asked for by name."""
    if config.getoption("--whole"):
        return
    named = {argument.partition("::")[2].partition("[")[0] for argument in config.args if "::" in argument}
    left = [
        item for item in items if item.get_closest_marker("campaign") and getattr(item, "originalname", "") not in named
    ]
    items[:] = [item for item in items if item not in left]
    config.hook.pytest_deselected(items=left)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Nothing of the user's cache is read or written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(places.FOLDER, str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv(places.FOLDER, str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="session", autouse=True)
def _shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Stores are learned once for all processes of a run, in the folder that those have in common."""
    import trained

    base = tmp_path_factory.getbasetemp()
    trained.kept = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "trained"
    yield
    # Once a test has started one, its module is there.
    if forking := sys.modules.get("forking"):
        forking.stop()


@pytest.fixture
def rng() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def random_params(net: Network, classes: int, rng: torch.Generator, dtype: torch.dtype = torch.float64) -> Params:
    both = net.initial_shared(rng) | net.initial_owned(classes, rng)
    return {
        # Variances stay positive.
        name: (value + 0.1 * torch.randn(value.shape, generator=rng).abs()).to(dtype)
        if name.endswith("running_var")
        else (value + 0.1 * torch.randn(value.shape, generator=rng)).to(dtype)
        for name, value in net.ordered(both).items()
    }
