"""What the site's own audit log remembers of its other records: an older copy of one is noticed.

A server that is asked says how far it saw the ledger; one that lies says nothing. The site's own
log names the end of the ledger with every release, and with what others show that the ledger lacks;
and that of the decisions with every change of where a study stands. So neither goes back alone, and
the log itself is what the server has seen.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from fedward.common.audit.chain import Head
from fedward.common.audit.entries import Entry
from fedward.common.errors import StateError

LEDGER = "ledger"
DECISIONS = "decisions"
LACKS = "ledger-lacks"
"""Kind of the entry about an end that the site has signed once, as others show, and has not."""
_KINDS = {LEDGER: "release", DECISIONS: "study"}


def last_end(entries: Iterable[Entry], of: str) -> Any:
    """The end of a record, as a log of the site said last; None if it never did.

    Args:
        entries: of the audit log.
        of: `LEDGER` or `DECISIONS`.
    """
    found = None
    for entry in entries:
        if entry.kind == _KINDS[of]:
            found = entry.facts.get(of) or found
    return found


class Ledger(Protocol):
    """The ledger, to compare; `account.Account` is one."""

    def check(self, seen: Any, by: str) -> None:
        """Return if the ledger has this end."""
        ...


class Decisions(Protocol):
    """The record of decisions, to compare; `rules.SiteRules` is one."""

    def check_holds(self, seen: Any) -> None:
        """Return if the record has this end."""
        ...


def check_own(entries: Sequence[Entry], ledger: Ledger, decisions: Decisions) -> None:
    """Return if ledger and decisions hold all that the site's own log says of them.

    Raises:
        StateError: one of them went back, or lacks what the site has signed.
    """
    ledger.check(last_end(entries, LEDGER), "its audit log")
    for end in lacking(entries):
        ledger.check(end.to_dict(), "its audit log")
    decisions.check_holds(last_end(entries, DECISIONS))


def lacking(entries: Iterable[Entry]) -> frozenset[Head]:
    """Ends that the ledger once lacked, by the site's own log."""
    return frozenset(Head.read(e.facts.get(LEDGER)) for e in entries if e.kind == LACKS)


def decisions_went_back() -> StateError:
    """The refusal to work by decisions that are older than they were."""
    return StateError(
        "this site's record of decisions is older than what its audit log says",
        hint="put the newest copy back; what it lacks may be a withdrawal",
    )
