"""How a daemon is, in `status.json`: for the site's own people, and for `fedward client status`.

It may say more than the server is told, in the site's own words, and stays at the site.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedward.client.link.assignments import Assignment
from fedward.common.errors import FedwardError, OutputError
from fedward.common.files import read_bytes, remove_leftovers, write_atomic

_KEPT = 10
Clock = Callable[[], datetime]


class Status:
    """What is written when something changes; call it from one thread.

    Args:
        path: of the file.
        site: name of the site.
        pid: of the daemon.
        clock: gives the time in UTC.
    """

    def __init__(self, path: Path, *, site: str, pid: int, clock: Clock | None = None) -> None:
        remove_leftovers(path.parent, of=path.name)
        self._path = path
        self._clock = clock or (lambda: datetime.now(UTC))
        self._facts: dict[str, Any] = {
            "site": site,
            "pid": pid,
            "started": self._now(),
            "link": "connecting",
            "halted": "",
            "studies": {},
            "runs": {},
            "refusals": [],
            "failed_to_write": 0,
        }

    def update(self, **facts: Any) -> None:
        """Change what is said, and write it if that is news."""
        if any(self._facts.get(name) != value for name, value in facts.items()):
            self._facts.update(facts)
            self.write()

    def answered(self, asked: Assignment, error: FedwardError | None) -> None:
        """A task was answered."""
        now = self._now()
        about = {"study": asked.study, "round": asked.round, "action": asked.action, "at": now}
        if error is None:
            self._facts["runs"][asked.run] = about
        else:
            # A rule's own words are in the cause; the error itself is what the server is told.
            last = {
                **about,
                "run": asked.run,
                "code": error.exit_code,
                "reason": str(error.__cause__ or error),
            }
            self._facts["refusals"] = [*self._facts["refusals"], last][-_KEPT:]
        self.write()

    def write(self) -> None:
        """Write it; a disk that refuses is no reason to stop, and is noticed elsewhere."""
        self._facts["updated"] = self._now()
        try:
            write_atomic(self._path, json.dumps(self._facts, indent=1, sort_keys=True) + "\n")
        except OutputError:
            self._facts["failed_to_write"] += 1

    def _now(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="seconds")


def read_status(path: Path) -> dict[str, Any]:
    """What a daemon said last; empty if none ever ran."""
    if not path.exists():
        return {}
    try:
        found = json.loads(read_bytes(path))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
