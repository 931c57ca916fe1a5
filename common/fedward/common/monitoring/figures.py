"""Figures that both sides show: what is refused and why, what is moved, what expires when."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Info
from prometheus_client.process_collector import ProcessCollector

from fedward.common.errors import FedwardError, error_classes
from fedward.common.version import version
from fedward.common.wire.kinds import PROTOCOL

Clock = Callable[[], float]
"""Seconds since 1970."""
_OTHER = "other"


class Figures:
    """A registry of one service's own; nothing global.

    Args:
        side: "server" or "client", the second word of every figure's name.
        clock: the time, for what expires.
    """

    def __init__(self, side: str, *, clock: Clock = time.time) -> None:
        self.registry = CollectorRegistry()
        self._clock = clock
        self._prefix = f"fedward_{side}"
        ProcessCollector(registry=self.registry)
        info = Info(self._prefix, "What runs.", registry=self.registry)
        info.info({"version": version(), "protocol": str(PROTOCOL)})
        self._bytes = self.counter(
            "bytes", "Bytes of models and updates that came in and went out.", "direction"
        )
        for direction in ("in", "out"):
            self._bytes.labels(direction)
        self._refusals = self.counter("refusals", "Refusals, by the class of the error.", "reason")
        self._left_out = self.counter(
            "audit_left_out",
            "Entries of the audit log that the other side caused too often to add each.",
            "kind",
        )
        self._totals: dict[Counter, float] = {}
        self._expiry = self.gauge(
            "certificate_expiry_seconds", "Until a certificate expires; below 0 it has.", "name"
        )

    def moved(self, received: int, sent: int) -> None:
        """How many bytes came in from the other side and went out, since this service began."""
        self.advance(self._bytes.labels("in"), received)
        self.advance(self._bytes.labels("out"), sent)

    def refused(self, reason: FedwardError | str, times: int = 1) -> None:
        """Something was refused.

        Args:
            reason: the error, or the name of its class; anything else counts as "other", so that
                a stranger cannot invent figures.
            times: how often.
        """
        name = reason if isinstance(reason, str) else type(reason).__name__
        known = {kind.__name__ for kind in error_classes()}
        self._refusals.labels(name if name in known else _OTHER).inc(times)

    def left_out(self, kind: str) -> None:
        """An entry of the audit log was counted only, see `common.audit.caused`."""
        self._left_out.labels(kind).inc()

    def certificate(self, name: str, expires: datetime) -> None:
        """A certificate is in use; again with another date after a renewal."""
        moment = expires.timestamp()
        self._expiry.labels(name).set_function(lambda: moment - self._clock())

    @staticmethod
    def fill(gauge: Gauge, values: Mapping[str, float]) -> None:
        """Give a gauge with one label exactly these values; a reader never sees it empty."""
        samples = [sample for metric in gauge.collect() for sample in metric.samples]
        gone = {value for sample in samples for value in sample.labels.values()}
        for label, value in values.items():
            gauge.labels(label).set(value)
        for label in gone - set(values):
            gauge.remove(label)

    def advance(self, counter: Counter, total: float) -> None:
        """Let a counter follow a total that somebody else keeps; it never goes back."""
        before = self._totals.get(counter, 0.0)
        if total > before:
            counter.inc(total - before)
            self._totals[counter] = total

    def counter(self, name: str, text: str, *labels: str) -> Counter:
        """A figure that only grows."""
        return Counter(f"{self._prefix}_{name}", text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, *labels: str) -> Gauge:
        """A figure that goes up and down."""
        return Gauge(f"{self._prefix}_{name}", text, labels, registry=self.registry)
