"""Services as processes: started, known to be ready, killed, started again, and gone at the end.

Each tells that it is ready over a socket, as to systemd (`NOTIFY_SOCKET`), so nobody waits longer
than needed. Its output goes to a file.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Self

from fedward.common.errors import RoundError

_READY_S = 180.0
_STOP_S = 15.0
_PORTS = range(20_000, 32_000)


class Service:
    """One `fedward … run` in a process group of its own.

    Args:
        arguments: after `fedward`.
        folder: an existing folder for its output and its socket.
        name: what it is called there.
        environment: added to this process's.
        within: a command that runs another, as `ip netns exec far-away`.
    """

    def __init__(
        self,
        arguments: list[str],
        *,
        folder: Path,
        name: str,
        environment: dict[str, str] | None = None,
        within: Sequence[str] = (),
    ) -> None:
        self.name = name
        self.output = folder / f"{name}.out"
        self._arguments = arguments
        self._environment = environment or {}
        self._within = list(within)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *, ready_s: float = _READY_S) -> None:
        """Start it and return when it says that it is ready.

        Raises:
            RoundError: it ended, or did not get ready in time; the message quotes its last line.
        """
        # A file, not an abstract socket: those end at the border of a network namespace.
        with (
            TemporaryDirectory(prefix="fedward-") as folder,
            socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener,
        ):
            name = str(Path(folder) / "ready")
            listener.bind(name)
            self._launch(name)
            self._await(listener, time.monotonic() + ready_s)

    def _launch(self, notify: str) -> None:
        environment = {**os.environ, **self._environment, "NOTIFY_SOCKET": notify}
        with self.output.open("ab") as output:
            self._process = subprocess.Popen(  # noqa: S603  (our own command)
                [*self._within, sys.executable, "-m", "fedward.common", *self._arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,
            )

    def _await(self, listener: socket.socket, until: float) -> None:
        listener.settimeout(0.2)  # only to see whether the process ended
        while time.monotonic() < until:
            with suppress(TimeoutError):
                if b"READY=1" in listener.recv(4096):
                    return
            if not self.alive:
                break
        self.kill()
        raise RoundError(f"{self.name} did not start", hint=self.last_line() or "see its output")

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int | None:
        """Of the process, while it runs."""
        return self._process.pid if self._process is not None and self.alive else None

    def kill(self) -> None:
        """SIGKILL, to the process alone; what it started must notice by itself."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            self._process.wait()

    def kill_child(self) -> bool:
        """SIGKILL to a process that it started: a training process. False if there is none."""
        children = _children(self.pid) if self.pid else []
        if not children:
            return False
        with suppress(ProcessLookupError):
            os.kill(children[0], signal.SIGKILL)
        return True

    def stop(self) -> int | None:
        """SIGTERM, and SIGKILL to all that is left if that takes too long; the exit code."""
        if self._process is None:
            return None
        with suppress(ProcessLookupError):
            self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        return self._process.wait()

    def last_line(self) -> str:
        """The end of its output, for a message."""
        with suppress(OSError):
            lines = self.output.read_text(errors="replace").strip().splitlines()
            return lines[-1][:300] if lines else ""
        return ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()


def _children(pid: int) -> list[int]:
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += [int(word) for word in task.read_text().split()]
    return found


def free_port() -> int:
    """A port of the loopback interface that nobody listens on now.

    Below those that the system gives to whoever connects: else one of its connections may have the
    port when the service is started, or started again.
    """
    while True:
        port = secrets.choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
