"""Notices what people do while the daemon runs: decisions, another policy, other data, other files.

Once a second it looks at a few dates; only what has a new one is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from fedward.client.daemon.changes import KIND, Changes
from fedward.client.daemon.record import Record
from fedward.common.audit.chain import Head
from fedward.common.audit.entries import Entry
from fedward.common.errors import FedwardError

_LOG = logging.getLogger(__name__)
LOOK_S = 0.5
"""Between two looks."""
DECIDED = "study"
"""Kind of the audit log's entries about where a study stands."""


class Watch:
    """Looks, and tells what is new.

    Args:
        changes: the files.
        states: where every offered study stands.
        record: the audit log.
        before: where studies stood, as the log said last; see `stood`.
        moved: is told where every study stands, when one has moved, and which have moved.
        changed: is told that files have changed: by name.
        decisions: gives the end of the record of decisions.
    """

    def __init__(
        self,
        changes: Changes,
        *,
        states: Callable[[], Mapping[str, str]],
        record: Record,
        before: Mapping[str, str],
        moved: Callable[[Mapping[str, str], frozenset[str]], Awaitable[None]],
        changed: Callable[[frozenset[str]], Awaitable[None]],
        decisions: Callable[[], Head | None] = lambda: None,
    ) -> None:
        self._changes = changes
        self._states = states
        self._record = record
        self._known = dict(before)
        self._moved = moved
        self._changed = changed
        self._decisions = decisions
        self._untold: set[str] = set()
        """Files whose change is on record, and that nobody acted on yet."""
        self._unheard: set[str] = set()
        """Studies whose move is on record, and that nobody acted on yet."""
        self._stale = True
        self._failed = ""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_S)

    def offered(self) -> None:
        """There may be studies that were not there before."""
        self._stale = True

    async def look(self) -> None:
        """Look once. What cannot be read is looked at again the next time."""
        try:
            for path, digest in self._changes.look():
                self._record.note(KIND, file=path.name, sha256=digest)
                self._changes.recorded(path, digest)
                self._untold.add(path.name)
            if self._untold:
                await self._changed(frozenset(self._untold))
            if self._untold or self._stale:
                self._untold, self._stale = set(), False
                await self._compare()
            self._failed = ""
        except FedwardError as error:
            if error.problem != self._failed:
                facts = {"problem": error.problem, "hint": error.hint}
                _LOG.error("the site's own files cannot be used", extra={"facts": facts})
            self._failed, self._stale = error.problem, True

    async def _compare(self) -> None:
        states = dict(self._states())
        moved = {name for name, where in states.items() if self._known.get(name) != where}
        end = self._decisions() if moved else None
        facts: dict[str, Any] = {} if end is None else {"decisions": end.to_dict()}
        for name in sorted(moved):
            # That a study waits when it is offered, the server brings about; all else, people.
            offered = states[name] == "waiting" and name not in self._known
            note = self._record.note_caused if offered else self._record.note
            note(DECIDED, study=name, state=states[name], **facts)
            self._known[name] = states[name]
            self._unheard.add(name)
        self._known = states
        self._unheard &= states.keys()  # an offer may be taken back before anybody heard of it
        await self._moved(states, frozenset(self._unheard))
        self._unheard = set()


def stood(entries: list[Entry]) -> dict[str, str]:
    """Where studies stood, as an audit log said last."""
    return {
        str(entry.facts.get("study")): str(entry.facts.get("state"))
        for entry in entries
        if entry.kind == DECIDED
    }
