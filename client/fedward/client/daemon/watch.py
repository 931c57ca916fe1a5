"""Notices what people do while the daemon runs: decisions, another policy, other data, other files.

Once a second it looks at a few dates; only what has a new one is read.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

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
            names: set[str] = set()
            for path, digest in self._changes.look():
                names.add(path.name)
                self._record.note(KIND, file=path.name, sha256=digest)
            if names:
                await self._changed(frozenset(names))
            if names or self._stale:
                self._stale = False
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
        for name in sorted(moved):
            end = self._decisions()
            facts = {} if end is None else {"decisions": end.to_dict()}
            self._record.note(DECIDED, study=name, state=states[name], **facts)
        self._known = states
        await self._moved(states, frozenset(moved))


def stood(entries: list[Entry]) -> dict[str, str]:
    """Where studies stood, as an audit log said last."""
    return {
        str(entry.facts.get("study")): str(entry.facts.get("state"))
        for entry in entries
        if entry.kind == DECIDED
    }
