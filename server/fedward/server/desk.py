"""The coordinator's desk: answers the small questions of sites from the registry and the roster.

What the answers hold (JSON; a statement is the text of a `common.statements` statement):

    studies   → studies: [{offer: statement, state, choice, run}], oldest first
                over: {study: choice}, of those released that the site may still withdraw from,
                and of those without room
    decide    ← decision: statement
              → study, choice, state, new
    renew     ← request: PEM   → certificate: PEM, the site's and the issuer's; roster
    roster    → roster: as it was signed, version
    witness   ← ledger: statement (the end of the site's own ledger), signed: [statements]
              → ledger: the end on record, heads: [statements of other sites, to be signed],
                signed: {site: length that this site has signed},
                signatures: [statements of other sites under this site's ledger, some]
    greeting  ← roster: version that the site has
              → ledger, audit: ends of the site's logs on record ({length, hash} or null),
                roster_data: the newest roster, if the site's is another version

Guarantee:
    An answer counts only if the site itself signed it, for this study, later than its last one. No
    log of a site goes back, see `ends`.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedward.common.audit import AuditLog
from fedward.common.audit.caused import Caused
from fedward.common.errors import IdentityError, StateError
from fedward.common.identity import Member, RosterFile
from fedward.common.statements import DECISION, read_statement
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head
from fedward.common.wire.session import Heads
from fedward.server.ends import AUDIT, LEDGER, Ends
from fedward.server.link.desk import Question, words
from fedward.server.registry import Choice, LogHead, Offer, Registry, State
from fedward.server.registry.states import meant
from fedward.server.witnesses import Witnesses

_MOST_OVER = 1000

Renew = Callable[[str, bytes], tuple[bytes, bytes]]
"""From a site's name and request to its new certificates and the roster; `Registrar.renew`."""


class Desk:
    """Answers questions; see `link.desk.Desk`.

    Args:
        registry: where everything is kept.
        roster: the newest roster; somebody else reloads it.
        audit: the coordinator's log.
        caused: adds entries to it that sites cause.
        renew: gives a site a new certificate.
    """

    def __init__(
        self,
        registry: Registry,
        *,
        roster: RosterFile,
        audit: AuditLog,
        caused: Caused,
        renew: Renew,
    ) -> None:
        self._registry = registry
        self._roster = roster
        self._audit = audit
        self._renew = renew
        self._lock = threading.Lock()
        self._ends = Ends(registry, caused)
        self._witnesses = Witnesses(registry, roster, self._ends)
        self._versions: dict[str, int] = {}
        self._looked_at = -1
        """`Registry.changes` when it was last looked at."""
        self.refresh()

    # --- questions --------------------------------------------------------------------------------

    def greeted(self, question: Question) -> dict[str, Any]:
        """Say how far the site's logs were seen; refuse a site whose logs went back."""
        site = question.site
        self._ends.see(site, question.header, question.evidence, greeting=True)
        said: dict[str, Any] = {log: self._ends.shown(site, log) for log in (LEDGER, AUDIT)}
        if question.body.get("roster") != self._roster.current.version:
            # By it a site learns of a new key of ours: it asks nobody whom its roster lacks.
            said["roster_data"] = self._roster.data.decode()
        return said

    def studies(self, question: Question) -> dict[str, Any]:
        """Studies that the site is invited to, as the coordinator signed them."""
        self._ends.see(question.site, question.header, question.evidence)
        site = question.site
        offers = self._registry.offered(site)
        shown, without = _fitting(offers, site)
        # What is over asks for nothing more, but who withdraws even then wants it on record; so
        # does who withdraws from what had no room.
        over = [*self._registry.approved_and_over(site), *without][-_MOST_OVER:]
        return {"studies": shown, "over": dict.fromkeys(over, Choice.APPROVE.value)}

    def decide(self, question: Question) -> dict[str, Any]:
        """Check and keep what the site decided.

        Raises:
            IdentityError: the site did not sign it.
            StateError: it does not fit what was decided before, or is older.
        """
        site = question.site
        member = self._member(site)
        evidence = words(question.body.get("decision"))
        content = read_statement(evidence, DECISION, site, member.public_key)
        study, choice = str(content.get("study")), _choice(content.get("choice"))
        offer = self._registry.study(study)
        before = offer.answers.get(site)
        choice = meant(before.choice if before else None, choice)
        if before is not None and before.choice not in (None, choice):
            _check_later(content, read_statement_time(before.evidence))
        new = self._registry.decide(site, study, choice, evidence)
        if new:
            self._audit.append(
                "decision",
                site=site,
                study=study,
                choice=choice.value,
                evidence=hashlib.sha256(evidence).hexdigest(),
            )
            self.refresh()
        state = self._registry.study(study).state
        return {"study": study, "choice": choice.value, "state": state.value, "new": new}

    def renew(self, question: Question) -> dict[str, Any]:
        """A new certificate for the same key."""
        chain, roster = self._renew(question.site, words(question.body.get("request")))
        return {"certificate": chain.decode(), "roster": roster.decode()}

    def roster(self, question: Question) -> dict[str, Any]:
        """The newest roster, as it was signed."""
        del question
        data = self._roster.data
        return {"roster": data.decode(), "version": self._roster.current.version}

    def witness(self, question: Question) -> dict[str, Any]:
        """Put the end of the site's ledger on record, and exchange signatures with others.

        Raises:
            IdentityError: a statement is not by who should have made it.
            StateError: the ledger went back, or what is signed was never shown.
        """
        member = self._member(question.site)
        self._ends.see(question.site, question.header, question.evidence)
        return self._witnesses.exchange(question, member)

    # --- from memory ------------------------------------------------------------------------------

    def heads(self, site: str) -> Heads:
        """The end of the coordinator's log, and that of the site's as it is on record here."""
        seen = self._ends.of(site, AUDIT)
        own = self._audit.head
        return Heads(
            audit=Head(length=own.length, hash=own.digest),
            witnessed=None if seen is None else Head(length=seen.length, hash=seen.digest),
        )

    def studies_version(self, site: str) -> int:
        """Changes with what is offered to a site, with its answer and with the state."""
        with self._lock:
            return self._versions.get(site, 0)

    def refresh(self) -> frozenset[str]:
        """Look at the registry again, which commands change; gives sites with something new."""
        now = self._registry.changes()
        if now == self._looked_at:
            return frozenset()
        shown: dict[str, list[Any]] = {site.name: [] for site in self._registry.sites()}
        for study in self._registry.standings():
            for site in study.choices:
                shown.setdefault(site, []).append([study.study, study.state.value, study.run])
        found = {site: _number(what) for site, what in shown.items()}
        with self._lock:
            self._looked_at = now
            changed = {site for site, n in found.items() if self._versions.get(site) != n}
            self._versions = found
        return frozenset(changed)

    def remember(self, heads: Iterable[LogHead]) -> None:
        """Take note of ends of logs that were put on record with a round."""
        self._ends.remember(heads)

    # --- details ----------------------------------------------------------------------------------

    def _member(self, site: str) -> Member:
        member = self._roster.current.member(site)
        if member is None or not member.active or member.role != "site":
            raise IdentityError(
                f"{site} is no active site of the roster", hint="ask the coordinator"
            )
        return member


def read_statement_time(evidence: bytes) -> int:
    """When an answer that was checked before was made, Unix time in milliseconds."""
    try:
        return int(json.loads(evidence)["content"]["at_ms"])
    except (ValueError, TypeError, KeyError):
        return 0


def _check_later(content: Mapping[str, Any], before_ms: int) -> None:
    at_ms = content.get("at_ms")
    if type(at_ms) is not int or at_ms <= before_ms:
        raise StateError(
            "the decision is not later than the one on record",
            hint="an old decision does not count again; decide anew",
        )


def _choice(value: object) -> Choice:
    try:
        return Choice(str(value))
    except ValueError as error:
        raise StateError(
            "that is no decision", hint=f"one of {', '.join(c.value for c in Choice)}"
        ) from error


def _shown(offer: Offer, site: str) -> dict[str, Any]:
    choice = offer.answers[site].choice
    return {
        "offer": offer.evidence.decode(),
        "state": offer.state.value,
        "choice": None if choice is None else choice.value,
        "run": offer.runs[-1] if offer.runs else "",
    }


def _fitting(offers: Sequence[Offer], site: str) -> tuple[list[dict[str, Any] | None], list[str]]:
    """What an answer has room for: what goes on before what ended, the newest first.

    A None at the end says that not all had room: a site takes what is missing for nothing. Then
    come the hashes of those that the site approves and that had none.
    """
    room, fitting, without = kinds.ROOM_FOR_OFFERS, list[dict[str, Any] | None](), list[str]()
    newest, ended = list(reversed(offers)), (State.FAILED, State.STOPPED)
    for offer in sorted(newest, key=lambda offer: offer.state in ended):
        shown = _shown(offer, site)
        size = len(json.dumps(shown))
        if size <= room:
            fitting.append(shown)
            room -= size
        elif offer.answers[site].choice is Choice.APPROVE:
            without.append(offer.study)
    return (fitting if len(fitting) == len(offers) else [*fitting, None]), without


def _number(what: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:6], "big")
