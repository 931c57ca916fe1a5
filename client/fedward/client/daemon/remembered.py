"""What the site's own audit log remembers of its other records: an older copy of one is noticed.

A server that is asked says how far it saw the ledger; one that lies says nothing. The site's own
log names the end of the ledger with every release, and with what others show that the ledger lacks;
and that of the decisions with every change of where a study stands. So neither goes back alone, and
the log itself is what the server has seen.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from fedward.common.audit.entries import Entry
from fedward.common.errors import StateError

LEDGER = "ledger"
DECISIONS = "decisions"
LACKS = "ledger-lacks"
"""Kind of the entry about an end that the site has signed once, as others show, and has not."""
_KINDS = {LEDGER: ("release", LACKS), DECISIONS: ("study",)}


def last_end(entries: Iterable[Entry], of: str) -> Any:
    """The end of a record, as a log of the site said last; None if it never did.

    Args:
        entries: of the audit log.
        of: `LEDGER` or `DECISIONS`.
    """
    found = None
    for entry in entries:
        if entry.kind in _KINDS[of]:
            found = entry.facts.get(of) or found
    return found


def decisions_went_back() -> StateError:
    """The refusal to work by decisions that are older than they were."""
    return StateError(
        "this site's record of decisions is older than what its audit log says",
        hint="put the newest copy back; what it lacks may be a withdrawal",
    )
