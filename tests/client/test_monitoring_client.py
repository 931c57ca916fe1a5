"""The client's figures; what a study spent is shown only where the site wants it."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

from prometheus_client.exposition import generate_latest

from fedward.client.monitoring import ClientMetrics


def value(metrics: ClientMetrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(f"fedward_client_{name}", labels)


def test_figures(tmp_path: Path) -> None:
    metrics = ClientMetrics(tmp_path)
    assert value(metrics, "connected") == 0
    metrics.connected(True)
    assert value(metrics, "connected") == 1
    metrics.connected(False)
    assert value(metrics, "connected") == 0
    metrics.round_trained()
    metrics.worker_restarts(1)
    metrics.worker_restarts(1)
    assert value(metrics, "rounds_trained_total") == 1
    assert value(metrics, "worker_restarts_total") == 1
    free = value(metrics, "disk_free_bytes")
    assert free is not None
    assert 0 < free <= shutil.disk_usage(tmp_path).total
    gone = value(ClientMetrics(tmp_path / "gone"), "disk_free_bytes")
    assert gone is not None
    assert math.isnan(gone)


def test_epsilon_is_shown_only_where_the_site_wants_it(tmp_path: Path) -> None:
    open_, closed = ClientMetrics(tmp_path, show_epsilon=True), ClientMetrics(tmp_path)
    assert (open_.shows_epsilon, closed.shows_epsilon) == (True, False)
    for metrics in (open_, closed):
        metrics.epsilon_spent({"heart": 1.5, "lung": 0.5})
        metrics.epsilon_spent({"heart": 2.0})
    assert value(open_, "epsilon_spent", study="heart") == 2.0
    assert value(open_, "epsilon_spent", study="lung") is None
    page = generate_latest(closed.registry)
    assert b"epsilon" not in page
    assert b"heart" not in page
