"""The coordinator's desk: answers the small questions of sites from the registry and the roster.

What the answers hold (JSON; a statement is the text of a `common.statements` statement):

    studies   → studies: [{offer: statement, state, choice, run}], oldest first
                over: {study: choice}, of those released that the site may still withdraw from
    decide    ← decision: statement
              → study, choice, state, new
    renew     ← request: PEM   → certificate: PEM, the site's and the issuer's; roster
    roster    → roster: as it was signed, version
    witness   ← ledger: statement (the end of the site's own ledger), signed: [statements]
              → ledger: the end on record, heads: [statements of other sites, to be signed],
                signatures: [statements of other sites under this site's ledger]
    greeting  ← roster: version that the site has
              → ledger, audit: ends of the site's logs on record ({length, hash} or null),
                roster_data: the newest roster, if the site's is another version

Guarantee:
    An answer counts only if the site itself signed it, for this study, later than its last one. A
    site whose ledger or audit log is shorter than it was before, or another, is refused when it
    greets. (Later messages of a session may overtake each other: what is shorter there is old.)
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from fedward.common.audit import AuditLog
from fedward.common.audit import Head as LogEnd
from fedward.common.audit.caused import Caused
from fedward.common.errors import FedwardError, IdentityError, LinkError, StateError
from fedward.common.identity import Member, RosterFile
from fedward.common.statements import COUNTERSIGNATURE, DECISION, LEDGER_HEAD, read_statement
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Head, Header
from fedward.common.wire.session import Heads
from fedward.server.link.desk import Question
from fedward.server.registry import Choice, Countersignature, LogHead, Offer, Registry, State
from fedward.server.registry.states import meant

LEDGER = "ledger"
AUDIT = "audit"
WENT_BACK = "log went back"
"""Kind of the entry about it."""
_STATED = "stated-ledger"
"""Log under which a ledger's end is kept with a statement that other sites can check."""
_MOST_SIGNED = 2000
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
        self._caused = caused
        self._renew = renew
        self._lock = threading.Lock()
        self._writing = threading.Lock()
        self._ends: dict[tuple[str, str], LogEnd] = {
            (head.site, head.log): LogEnd(head.length, head.hash) for head in registry.heads()
        }
        self._versions: dict[str, int] = {}
        self.refresh()

    # --- questions --------------------------------------------------------------------------------

    def greeted(self, question: Question) -> dict[str, Any]:
        """Say how far the site's logs were seen; refuse a site whose logs went back."""
        self._see(question.site, question.header, question.evidence, greeting=True)
        said: dict[str, Any] = {
            LEDGER: self._end(question.site, LEDGER),
            AUDIT: self._end(question.site, AUDIT),
        }
        if question.body.get("roster") != self._roster.current.version:
            # By it a site learns of a new key of ours: it asks nobody whom its roster lacks.
            said["roster_data"] = self._roster.data.decode()
        return said

    def studies(self, question: Question) -> dict[str, Any]:
        """Studies that the site is invited to, as the coordinator signed them."""
        self._see(question.site, question.header, question.evidence)
        site = question.site
        offers = self._registry.offered(site)
        # What is over asks for nothing more, but who withdraws even then wants it on record.
        over = self._registry.approved_and_over(site)[-_MOST_OVER:]
        told = dict.fromkeys(over, Choice.APPROVE.value)
        return {"studies": _fitting(offers, site), "over": told}

    def decide(self, question: Question) -> dict[str, Any]:
        """Check and keep what the site decided.

        Raises:
            IdentityError: the site did not sign it.
            StateError: it does not fit what was decided before, or is older.
        """
        site = question.site
        member = self._member(site)
        evidence = _text(question.body, "decision")
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
        chain, roster = self._renew(question.site, _text(question.body, "request"))
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
        site = question.site
        member = self._member(site)
        self._see(site, question.header, question.evidence)
        if LEDGER in question.body:
            evidence = _text(question.body, LEDGER)
            end = LogEnd.read(read_statement(evidence, LEDGER_HEAD, site, member.public_key))
            self._put(site, LEDGER, end, evidence)
            self._put(site, _STATED, end, evidence)
        signed = question.body.get("signed", [])
        if not isinstance(signed, list) or len(signed) > _MOST_SIGNED:
            raise _malformed()
        for text in signed:
            self._countersign(member, text)
        # What revoked sites said stays on record; the others would only refuse it, every time.
        others = {m.name for m in self._roster.current.members if m.active} - {site}
        heads = [h for h in self._registry.heads(_STATED) if h.site in others]
        signatures = [s for s in self._registry.countersignatures(site) if s.witness in others]
        return {
            LEDGER: self._end(site, LEDGER),
            "heads": [head.evidence.decode() for head in heads],
            "signatures": [signature.evidence.decode() for signature in signatures],
        }

    # --- from memory ------------------------------------------------------------------------------

    def heads(self, site: str) -> Heads:
        """The end of the coordinator's log, and that of the site's as it is on record here."""
        with self._lock:
            seen = self._ends.get((site, AUDIT))
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
        shown: dict[str, list[Any]] = {site.name: [] for site in self._registry.sites()}
        for offer in self._registry.studies():
            for site in offer.answers:
                shown.setdefault(site, []).append([offer.study, offer.state.value, offer.runs[-1:]])
        found = {site: _number(what) for site, what in shown.items()}
        with self._lock:
            changed = {site for site, n in found.items() if self._versions.get(site) != n}
            self._versions = found
        return frozenset(changed)

    def remember(self, heads: Iterable[LogHead]) -> None:
        """Take note of ends of logs that were put on record with a round."""
        with self._lock:
            for head in heads:
                known = self._ends.get((head.site, head.log))
                if known is None or known.length < head.length:
                    self._ends[head.site, head.log] = LogEnd(head.length, head.hash)

    # --- details ----------------------------------------------------------------------------------

    def _member(self, site: str) -> Member:
        member = self._roster.current.member(site)
        if member is None or not member.active or member.role != "site":
            raise IdentityError(
                f"{site} is no active site of the roster", hint="ask the coordinator"
            )
        return member

    def _see(self, site: str, header: Header, evidence: bytes, *, greeting: bool = False) -> None:
        for log, head in ((LEDGER, header.ledger), (AUDIT, header.audit)):
            # An empty log says nothing yet, unless there was more of it before.
            if header.HasField(log) and (head.length or (site, log) in self._ends):
                end = LogEnd.of(head.length, head.hash)
                self._put(site, log, end, evidence, greeting=greeting)

    def _put(
        self, site: str, log: str, end: LogEnd, evidence: bytes, *, greeting: bool = False
    ) -> None:
        with self._writing:
            known, by = self._ends.get((site, log)), f"{log} of {site}"
            if known == end:
                self._caused.settled(WENT_BACK, by=by)
                return
            if known is not None and known.length > end.length and not greeting:
                return
            try:
                self._registry.witness(
                    site, log, length=end.length, hash_=end.hash, evidence=evidence
                )
            except StateError:
                # The site's daemon comes back with it for as long as it stays like that.
                facts = {"site": site, "log": log, **end.to_dict()}
                self._caused.append(WENT_BACK, by=by, once=True, **facts)
                raise
            self._caused.settled(WENT_BACK, by=by)
            with self._lock:
                self._ends[site, log] = end

    def _end(self, site: str, log: str) -> dict[str, Any] | None:
        with self._lock:
            end = self._ends.get((site, log))
        return None if end is None else end.to_dict()

    def _countersign(self, witness: Member, text: object) -> None:
        evidence = _text({"signed": text}, "signed")
        content = read_statement(evidence, COUNTERSIGNATURE, witness.name, witness.public_key)
        end, site = LogEnd.read(content), str(content.get("site"))
        self._registry.countersign(
            Countersignature(site, end.length, end.hash, witness.name, evidence)
        )


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


def _fitting(offers: Sequence[Offer], site: str) -> list[dict[str, Any] | None]:
    """What an answer has room for: what goes on before what ended, the newest first.

    A None at the end says that not all had room: a site takes what is missing for nothing.
    """
    room, fitting = kinds.ROOM_FOR_OFFERS, list[dict[str, Any] | None]()
    newest, ended = list(reversed(offers)), (State.FAILED, State.STOPPED)
    for offer in sorted(newest, key=lambda offer: offer.state in ended):
        shown = _shown(offer, site)
        size = len(json.dumps(shown))
        if size <= room:
            fitting.append(shown)
            room -= size
    return fitting if len(fitting) == len(offers) else [*fitting, None]


def _text(body: Mapping[str, Any], key: str) -> bytes:
    value = body.get(key)
    if not isinstance(value, str):
        raise _malformed()
    try:
        return value.encode()
    except UnicodeEncodeError as error:
        raise _malformed() from error


def _malformed() -> FedwardError:
    return LinkError(
        "a question does not say what it must",
        hint="check that both sides run the same version of fedward",
    )


def _number(what: object) -> int:
    return int.from_bytes(hashlib.sha256(json.dumps(what).encode()).digest()[:6], "big")
