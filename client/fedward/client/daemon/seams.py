"""What a daemon works with, as it sees it: rules, training, ledger; and whom it wakes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from fedward.client.link.assignments import Assignment
from fedward.client.worker.protocol import Do, Done, Load
from fedward.common.audit.chain import Head
from fedward.common.errors import FedwardError
from fedward.common.study import Study


class Rules(Protocol):
    """What the site allows; asked before every task."""

    def check_study(self, name: str, study: Study) -> None:
        """Return if stewards and policy allow this study now.

        Raises:
            PolicyError: they do not (any more).
        """
        ...

    def check_hours(self, study: Study) -> None:
        """Return if work for it is allowed at this hour.

        Raises:
            PolicyError: it is not.
        """
        ...


class Trains(Protocol):
    """Has tasks done; `worker.pool.Pool` is one."""

    async def do(self, load: Load, task: Do) -> Done:
        """Have a task done; see `Pool.do`."""
        ...


class Books(Protocol):
    """The ledger, to look at; `account.Account` is one."""

    @property
    def head(self) -> Head:
        """The end of the ledger."""
        ...

    def check_goes_on(self, study: str, run: str) -> None:
        """Return if a run is not over for good.

        Raises:
            StateError: it is.
        """
        ...

    def paid(self, study: str, run: str, number: int, group: str, reply: str | None = None) -> bool:
        """Whether the ledger was charged for that reply, or for any if none is given."""
        ...


@dataclass(frozen=True)
class Place:
    """Where a daemon works.

    Attributes:
        site: name of the site.
        folder: of the site.
        studies: folder of the offered studies.
        threads: that a training process may use.
        patients_key: what a training process is given of it, see `worker.protocol.Load`.
    """

    site: str
    folder: Path
    studies: Path
    threads: int = 1
    patients_key: str = field(default="", repr=False)


@dataclass(frozen=True)
class Signals:
    """Whom a daemon wakes; each returns at once.

    Attributes:
        studies_changed: what is offered may have changed.
        roster: there is a newer roster.
        answered: a task was answered; None, or why it was refused, in the site's own words.
    """

    studies_changed: Callable[[], None] = lambda: None
    roster: Callable[[bytes], None] = lambda _data: None
    answered: Callable[[Assignment, FedwardError | None], None] = lambda _asked, _error: None
