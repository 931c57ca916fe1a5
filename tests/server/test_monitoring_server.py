"""The server's figures are what happened, and strangers cannot invent any."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import REGISTRY

from fedward.common.errors import IdentityError, LinkError
from fedward.common.version import version
from fedward.server.monitoring import ServerMetrics


@pytest.fixture
def metrics() -> ServerMetrics:
    return ServerMetrics(clock=lambda: 1000.0)


def value(metrics: ServerMetrics, name: str, /, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"fedward_server_{name}", labels)


def test_rounds(metrics: ServerMetrics) -> None:
    metrics.round_done(2.0)
    metrics.round_done(20.0)
    metrics.round_done(None)
    metrics.round_failed()
    metrics.defect()
    assert value(metrics, "rounds_total") == 3
    assert value(metrics, "rounds_failed_total") == 1
    assert value(metrics, "defects_total") == 1
    assert value(metrics, "round_seconds_sum") == 22.0
    assert value(metrics, "round_seconds_bucket", le="3.0") == 1


def test_sites_that_leave_the_roster_leave_the_figures(metrics: ServerMetrics) -> None:
    metrics.sites({"north", "stranger"}, {"north", "south"})
    assert value(metrics, "sites_connected") == 1
    assert value(metrics, "sites_enrolled") == 2
    assert value(metrics, "site_connected", site="south") == 0
    assert value(metrics, "site_connected", site="stranger") is None
    metrics.sites({"south"}, {"south"})
    assert value(metrics, "site_connected", site="south") == 1
    assert value(metrics, "site_connected", site="north") is None


def test_runs(metrics: ServerMetrics) -> None:
    metrics.runs({"running": 2, "released": 1})
    metrics.runs({"running": 1})
    assert value(metrics, "runs", state="running") == 1
    assert value(metrics, "runs", state="released") is None


def test_refusals_are_counted_by_class(metrics: ServerMetrics) -> None:
    metrics.refused(LinkError("x", hint="y"))
    metrics.refused("LinkError", times=3)
    metrics.refused(IdentityError("x", hint="y"))
    for stranger in ("site=evil", "ValueError", ""):
        metrics.refused(stranger)
    assert value(metrics, "refusals_total", reason="LinkError") == 4
    assert value(metrics, "refusals_total", reason="IdentityError") == 1
    assert value(metrics, "refusals_total", reason="other") == 3
    assert b"evil" not in generate_latest(metrics.registry)


def test_bytes_and_certificates(metrics: ServerMetrics) -> None:
    metrics.moved(10, 3)
    metrics.moved(10, 7)
    metrics.moved(0, 0)  # somebody began to count anew: nothing is taken back
    assert value(metrics, "bytes_total", direction="in") == 10
    assert value(metrics, "bytes_total", direction="out") == 7
    metrics.certificate("server", datetime.fromtimestamp(4600, UTC))
    assert value(metrics, "certificate_expiry_seconds", name="server") == 3600
    metrics.certificate("server", datetime.fromtimestamp(400, UTC))
    assert value(metrics, "certificate_expiry_seconds", name="server") == -600


def test_nothing_is_global(metrics: ServerMetrics) -> None:
    metrics.round_done(1.0)
    assert value(ServerMetrics(), "rounds_total") == 0
    assert REGISTRY.get_sample_value("fedward_server_rounds_total") is None
    assert value(metrics, "info", version=version(), protocol="1") == 1
