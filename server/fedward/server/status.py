"""`status.json`: what the running service says of itself, for `fedward server status`."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedward.common.errors import StateError
from fedward.common.files import read_bytes, remove_leftovers, write_atomic
from fedward.common.version import version
from fedward.server.link.presence import Attendance
from fedward.server.registry import Run

AT_LEAST_EVERY_S = 15.0
"""How often it is written if nothing changes."""


class StatusFile:
    """Writes it, when something changed.

    Args:
        path: of the file.
        pid: of the service.
        port: that it listens on.
    """

    def __init__(self, path: Path, *, pid: int, port: int) -> None:
        remove_leftovers(path.parent, of=path.name)
        self._path = path
        self._head = {"pid": pid, "port": port, "version": version(), "since": _now()}
        self._last: dict[str, Any] = {}
        self._written = 0.0

    def write(
        self,
        *,
        roster: int,
        sites: Collection[Attendance],
        enrolled: Collection[str],
        runs: Collection[Run],
        waiting: Mapping[str, str],
        certificate_until: datetime,
    ) -> None:
        """Say how it is.

        Raises:
            OutputError: the disk refuses.
        """
        said = {
            "roster": roster,
            "certificate_until": certificate_until.isoformat(),
            "sites": {
                name: _site(next((s for s in sites if s.site == name), None))
                for name in sorted(enrolled)
            },
            "runs": {
                run.id: {
                    "state": run.state.value,
                    "round": run.round,
                    "rounds": run.rounds,
                    "waiting": waiting.get(run.id, ""),
                }
                for run in runs
            },
        }
        due = time.monotonic() - self._written >= AT_LEAST_EVERY_S
        if due or said != self._last:
            self._last = said
            self._written = time.monotonic()
            self._put({"state": "serving", **said})

    def ended(self) -> None:
        """The service ends."""
        self._put({"state": "stopped"})

    def _put(self, said: dict[str, Any]) -> None:
        content = {**self._head, "updated": _now(), **said}
        write_atomic(self._path, json.dumps(content, indent=1, sort_keys=True) + "\n")


def read_status(path: Path) -> dict[str, Any]:
    """What the service said last; empty if it never ran here."""
    if not path.exists():
        return {}
    data = read_bytes(path, error=StateError)
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _site(found: Attendance | None) -> dict[str, Any]:
    if found is None:
        return {"connected": False, "since": None, "software": "", "reason": "never seen"}
    return {
        "connected": found.connected,
        "since": _text(found.since),
        "software": found.software,
        "reason": found.reason,
    }


def _now() -> str:
    return _text(time.time())


def _text(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
