"""The client's figures for Prometheus, for this hospital only.

Guarantee:
    No count of patients or rows and no metric of a model is among them. What a study spent of ε is,
    only if the site's settings ask for it: it is no secret of a patient, but it tells which rounds
    ran when.

    metrics = ClientMetrics(folder, show_epsilon=False)
    metrics.connected(True)
    metrics.round_trained()
    endpoint = Endpoint(metrics.registry, health)
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from pathlib import Path

from fedward.common.monitoring.figures import Clock, Figures


class ClientMetrics(Figures):
    """What a hospital's IT wants to see of a client; every method may be called from any thread.

    Args:
        folder: the site's folder, for the space that its disk has left.
        show_epsilon: whether `epsilon_spent` is shown.
        clock: the time, for what expires.
    """

    def __init__(
        self, folder: Path, *, show_epsilon: bool = False, clock: Clock = time.time
    ) -> None:
        super().__init__("client", clock=clock)
        self._connected = self.gauge("connected", "Whether the server is connected.")
        self._rounds = self.counter("rounds_trained", "Rounds that were trained here.")
        self._restarts = self.counter("worker_restarts", "Training processes that ended early.")
        self._epsilon = (
            self.gauge("epsilon_spent", "Privacy that a study has spent or reserved.", "study")
            if show_epsilon
            else None
        )
        free = self.gauge("disk_free_bytes", "Space left on the disk of the site's folder.")
        free.set_function(lambda: _free(folder))

    def connected(self, now: bool) -> None:
        """The link to the server is up, or down."""
        self._connected.set(now)

    def round_trained(self) -> None:
        """A round's reply is durable."""
        self._rounds.inc()

    def worker_restarts(self, total: int) -> None:
        """How many training processes have ended early since this service began."""
        self.advance(self._restarts, total)

    @property
    def shows_epsilon(self) -> bool:
        """Whether `epsilon_spent` is shown."""
        return self._epsilon is not None

    def epsilon_spent(self, spent: Mapping[str, float]) -> None:
        """What the studies have spent by now; ignored unless the settings ask for it."""
        if self._epsilon is not None:
            self.fill(self._epsilon, spent)


def _free(folder: Path) -> float:
    try:
        return float(shutil.disk_usage(folder).free)
    except OSError:
        return float("nan")
