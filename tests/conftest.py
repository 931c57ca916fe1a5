"""What every test shares: quiet Flower, repeatable Hypothesis, and where the real data are."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

import fedward.common.wire  # noqa: F401  (as the command does: before anything loads gRPC)

# Before anything imports flwr: no telemetry, no update check.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

# What is tried out about this machine is kept for the tests alone.
if "FEDWARD_CACHE" not in os.environ:
    os.environ["FEDWARD_CACHE"] = tempfile.mkdtemp(prefix="fedward-cache-")
    atexit.register(shutil.rmtree, os.environ["FEDWARD_CACHE"], ignore_errors=True)

# The same examples in every run, and no deadline: machines are shared.
settings.register_profile(
    "fedward",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("fedward")

ROOT = Path(__file__).resolve().parent.parent
UNTIL = float(os.environ.get("FEDWARD_TESTS_UNTIL") or "inf")
"""Time of day after which no slow test is begun any more; .ci/run says so, and why."""


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Leave a slow test out, saying so, where there is no time for it."""
    if time.time() > UNTIL and item.get_closest_marker("slow"):
        pytest.skip("no time was left for it on this machine")


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the repository."""
    return ROOT


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """The folder of the real data (FEDWARD_DATA, by default ../shared/data); skips without it."""
    path = Path(os.environ.get("FEDWARD_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        pytest.skip("the real data are not here: set FEDWARD_DATA to their folder")
    return path
