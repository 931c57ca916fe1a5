"""Who has seen the end of whose ledger: statements of one site are shown to the others, and back.

What counts is what a site itself has signed. Another site's signature comes with that, so nobody
can say of a ledger what it never was; and a server that has an old copy of its registry, as after a
restored backup, learns from any site what it had seen.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from fedward.common.errors import FedwardError, IdentityError, OutputError, StateError
from fedward.common.identity import Member, RosterFile
from fedward.common.wire import kinds
from fedward.common.witnessing import claimed, read_countersignature, read_end
from fedward.server.ends import LEDGER, STATED, Ends
from fedward.server.link.desk import Question, malformed, words
from fedward.server.registry import Countersignature, Registry, RegistryUnavailable

_MOST_SIGNATURES = 16
"""That a site is given of those under its own ledger: one is enough to stop it."""
_ROOM_FOR_ENDS = kinds.LARGEST_SMALL_BODY // 2
"""Bytes that the ends of other ledgers may take in an answer; of more, others each time."""


class Witnesses:
    """Answers what sites ask about ledgers' ends.

    Args:
        registry: keeps the signatures.
        roster: the newest; somebody else reloads it.
        ends: of the sites' logs.
    """

    def __init__(self, registry: Registry, roster: RosterFile, ends: Ends) -> None:
        self._registry = registry
        self._roster = roster
        self._ends = ends

    def exchange(self, question: Question, member: Member) -> dict[str, Any]:
        """Put the end of a site's ledger on record, and exchange signatures with others.

        A signature that cannot be used is left out: the site that sent it is not told that it is
        on record, and another's mistake must not keep what it says of the rest.

        Args:
            question: of the site.
            member: the site, in the roster.

        Raises:
            IdentityError: what it says of its own ledger is not what it has signed.
            StateError: the ledger went back.
            LinkError: the question does not say what it must.
        """
        site, body = question.site, question.body
        if LEDGER in body:
            evidence = words(body[LEDGER])
            end = read_end(evidence.decode(), site, member.public_key)
            self._ends.put(site, LEDGER, end, evidence)
            self._ends.put(site, STATED, end, evidence)
        signed = self._countersign(member, body.get("signed", []))
        # What revoked sites said stays on record; the others would only refuse it, every time.
        others = {m.name for m in self._roster.current.members if m.active} - {site}
        heads = [h.evidence for h in self._registry.heads(STATED) if h.site in others]
        under = [s for s in self._registry.countersignatures(site) if s.witness in others]
        under.sort(key=lambda signature: signature.length, reverse=True)
        return {
            LEDGER: self._ends.shown(site, LEDGER),
            "signed": signed,
            "heads": _fitting(heads),
            "signatures": [s.evidence.decode() for s in under[:_MOST_SIGNATURES]],
        }

    def _countersign(self, witness: Member, signed: object) -> dict[str, int]:
        """Keep what a site has signed: of each ledger the furthest, in one transaction.

        Returns:
            By site, the length that it has signed now.
        """
        if not isinstance(signed, list) or len(signed) > len(self._roster.current.members):
            raise malformed()
        known = {
            found.site: found.length
            for found in self._registry.countersignatures(witness=witness.name)
        }
        newest: dict[str, Countersignature] = {}
        for evidence in map(words, signed):
            with _left_out():
                said = claimed(evidence.decode())  # what is known is not worth checking
                if said.head.length > known.get(said.site, -1):
                    newest[said.site] = self._read(witness, evidence)
                    known[said.site] = said.head.length
        if newest:
            self._registry.countersign(newest.values())
        return known

    def _read(self, witness: Member, evidence: bytes) -> Countersignature:
        seen = read_countersignature(evidence.decode(), witness.name, witness.public_key)
        site, end = seen.site, seen.head
        owner = self._roster.current.member(site)
        if owner is None or owner.role != "site" or site == witness.name:
            raise IdentityError("a ledger of nobody is signed", hint="ask the site")
        said = [read_end(statement, site, owner.public_key) for statement in seen.words]
        if said[0] != end:
            raise StateError(
                f"site {witness.name} signs another end of a ledger than {site} has stated",
                hint="sign what was given to you",
            )
        statement = seen.statement.encode()
        with suppress(StateError):  # two ledgers of one length: on record, and its owner learns it
            self._ends.put(site, LEDGER, end, statement)
            self._ends.put(site, STATED, end, statement)
        return Countersignature(site, end.length, end.hash, witness.name, evidence)


@contextmanager
def _left_out() -> Iterator[None]:
    try:
        yield
    except (OutputError, RegistryUnavailable):
        raise
    except FedwardError:
        pass


def _fitting(statements: Iterable[bytes]) -> list[str]:
    shuffled = list(statements)
    random.shuffle(shuffled)
    room, fitting = _ROOM_FOR_ENDS, list[str]()
    for statement in shuffled:
        size = 2 * len(statement)  # in JSON, quoted
        if size <= room:
            fitting.append(statement.decode())
            room -= size
    return fitting
