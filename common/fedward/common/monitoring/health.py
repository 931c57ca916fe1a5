"""Whether a service is well, and if not, why: a list of named checks.

>>> health = Health({"disk": lambda: None, "database": lambda: "it does not answer"})
>>> health.problems()
{'database': 'it does not answer'}
>>> health.well()
False
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from fedward.common.errors import FedwardError

Check = Callable[[], str | None]
"""Looks at one thing, quickly: None if it is well, otherwise what is wrong, in words.

What it says can be read by whoever may ask for `/healthz`: nothing private.
"""


class Health:
    """Checks that are made whenever somebody asks.

    Args:
        checks: what to look at, by name.
    """

    def __init__(self, checks: Mapping[str, Check]) -> None:
        self._checks = dict(checks)

    def problems(self) -> dict[str, str]:
        """What is wrong, by the name of the check; empty if everything is well."""
        found = {name: _look(check) for name, check in self._checks.items()}
        return {name: problem for name, problem in found.items() if problem}

    def well(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems()


def _look(check: Check) -> str | None:
    try:
        return check()
    except FedwardError as error:
        return error.problem


def disk_room(folder: Path, least_mb: int = 512) -> Check:
    """A check that the disk of a folder has room for what a service must write."""

    def look() -> str | None:
        try:
            free_mb = shutil.disk_usage(folder).free >> 20
        except OSError:
            return "the disk does not answer"
        return None if free_mb >= least_mb else f"the disk has only {free_mb} MB left"

    return look


def not_expired(end: Callable[[], datetime]) -> Check:
    """A check that a certificate is still valid; `end` gives until when the newest is."""

    def look() -> str | None:
        return "the certificate has expired" if datetime.now(UTC) > end() else None

    return look
