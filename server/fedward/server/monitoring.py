"""The server's figures for Prometheus. Names of sites and states are in them, no patient is.

metrics = ServerMetrics()
metrics.sites(connected={"north"}, enrolled={"north", "south"})
metrics.round_done(12.5)
endpoint = Endpoint(metrics.registry, health)
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping

from prometheus_client import Histogram

from fedward.common.monitoring.figures import Clock, Figures

_ROUND_SECONDS = (0.1, 0.3, 1, 3, 10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600)


class ServerMetrics(Figures):
    """What a coordinator wants to see of a server; every method may be called from any thread."""

    def __init__(self, *, clock: Clock = time.time) -> None:
        super().__init__("server", clock=clock)
        self._connected = self.gauge("sites_connected", "Sites that are connected now.")
        self._enrolled = self.gauge("sites_enrolled", "Active sites of the roster.")
        self._site = self.gauge("site_connected", "Whether an enrolled site is connected.", "site")
        self._runs = self.gauge("runs", "Runs, by the state that they are in.", "state")
        self._rounds = self.counter("rounds", "Rounds that were completed.")
        self._failed = self.counter("rounds_failed", "Rounds that were given up.")
        self._defects = self.counter("defects", "Defects of fedward that runs met.")
        self._seconds = Histogram(
            "fedward_server_round_seconds",
            "How long completed rounds took.",
            buckets=_ROUND_SECONDS,
            registry=self.registry,
        )

    def sites(self, connected: Collection[str], enrolled: Collection[str]) -> None:
        """Who of the active sites of the roster is connected."""
        present = set(connected) & set(enrolled)
        self._connected.set(len(present))
        self._enrolled.set(len(enrolled))
        self.fill(self._site, {name: name in present for name in enrolled})

    def runs(self, states: Mapping[str, int]) -> None:
        """How many runs are in which state."""
        self.fill(self._runs, states)

    def round_done(self, seconds: float | None) -> None:
        """A round was completed and checkpointed; None if it is not known when it began."""
        self._rounds.inc()
        if seconds is not None:
            self._seconds.observe(seconds)

    def round_failed(self) -> None:
        """A round was given up: too few sites, or its model could not be used."""
        self._failed.inc()

    def defect(self) -> None:
        """A run met a defect of fedward, and went on after it or failed."""
        self._defects.inc()
