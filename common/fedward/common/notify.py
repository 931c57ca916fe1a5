"""Tell systemd how a service is doing: ready, alive, stopping. Elsewhere this does nothing.

A unit of `Type=notify` counts as started once `READY=1` came; with `WatchdogSec=` systemd restarts
it when `WATCHDOG=1` stays away. The protocol is one datagram per state to the socket named in
`NOTIFY_SOCKET` (sd_notify(3)); no library is needed.

    notifier = Notifier()
    notifier.ready("listening")
    async with asyncio.TaskGroup() as group:
        group.create_task(notifier.keep_alive(is_well))
        ...
    notifier.stopping()

    >>> Notifier({}).ready()
    False
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable, Mapping

_PATIENCE_S = 0.5
"""How long to wait for a service manager whose queue is full."""
_BEATS_PER_LIMIT = 3
"""Signs of life within the watchdog's limit, so that one late one restarts nothing."""


class Notifier:
    """The service manager's ear, if there is one.

    Every method returns whether a message was sent; a service manager that does not listen is no
    reason to stop a federation, so that nothing raises.

    Args:
        environment: where `NOTIFY_SOCKET` and `WATCHDOG_USEC` are looked up; that of this process
            by default.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        given = os.environ if environment is None else environment
        self._address = _address(given.get("NOTIFY_SOCKET", ""))
        self.watchdog_s = _watchdog_s(given)
        """Longest silence that systemd accepts; None if it does not watch this process."""

    def ready(self, status: str = "") -> bool:
        """Say that the service does its work from now on."""
        return self._send("READY=1", *([f"STATUS={_line(status)}"] if status else []))

    def status(self, text: str) -> bool:
        """Show one line in `systemctl status`: nothing private, it is in the system's journal."""
        return self._send(f"STATUS={_line(text)}")

    def watchdog(self) -> bool:
        """Give a sign of life."""
        return self._send("WATCHDOG=1")

    def stopping(self) -> bool:
        """Say that the service ends on purpose."""
        return self._send("STOPPING=1")

    async def keep_alive(self, well: Callable[[], bool] = lambda: True) -> None:
        """Give signs of life until cancelled, as long as `well()`; returns if nobody watches.

        It runs on the service's own event loop: a loop that hangs is silent, and is restarted.
        """
        if self.watchdog_s is None:
            return
        while True:
            if well():
                self.watchdog()
            await asyncio.sleep(self.watchdog_s / _BEATS_PER_LIMIT)

    def _send(self, *lines: str) -> bool:
        if self._address is None:
            return False
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
                ear.settimeout(_PATIENCE_S)
                ear.connect(self._address)
                ear.sendall("\n".join(lines).encode())
        except OSError:
            return False
        return True


def _address(text: str) -> str | None:
    """A path, or a name in Linux's abstract namespace, written with a leading @."""
    if text.startswith("@"):
        return "\0" + text[1:]
    return text if text.startswith("/") else None


def _watchdog_s(environment: Mapping[str, str]) -> float | None:
    """The watchdog's limit, if it is for this process (sd_watchdog_enabled(3))."""
    limit, pid = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", "")
    if not limit.isdecimal() or int(limit) == 0 or (pid and pid != str(os.getpid())):
        return None
    return int(limit) / 1e6


def _line(text: str) -> str:
    return " ".join(text.split())
