"""Ends of ledgers, signed by those who have seen them: an old disk that is put back is noticed.

A site states the end of its own ledger, signs those that other sites stated, and keeps who signed
its own. What it signed once it remembers, in the other site's own words: it signs nothing that goes
back, and shows the words instead.

Guarantee:
    A site whose ledger lacks an end that the site itself has signed stops, whoever brings that
    along: one honest site that has seen it is enough, though disk and server were put back
    together. Nobody can stop a site by words that are not its own.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedward.client.daemon.account import Account
from fedward.client.daemon.record import Record
from fedward.common.audit.chain import Head
from fedward.common.errors import FedwardError, IdentityError, OutputError, StateError
from fedward.common.files import read_bytes, write_atomic
from fedward.common.identity import Roster
from fedward.common.statements import (
    COUNTERSIGNATURE,
    LEDGER_HEAD,
    Signer,
    claims,
    read_statement,
    signer_of,
    state,
)

_LOG = logging.getLogger(__name__)
_MOST_HEADS = 4000
"""Ends of other ledgers that are looked at in an answer."""
_MOST_SIGNATURES = 16
"""Signatures under this site's ledger that are looked at in an answer."""
_AGAIN_S = 300.0
"""After which an end is stated again that did not change: others may have seen a later one."""

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


@dataclass(frozen=True)
class Seen:
    """What another site said of its ledger, and we have signed.

    Attributes:
        head: the end.
        statement: in the words that the site signed.
        before: those that were signed before these; empty for the first.
    """

    head: Head
    statement: str
    before: str = ""


class Witness:
    """One site's part in it.

    Args:
        site: name of the site.
        key: of the site.
        account: its ledger.
        record: its audit log.
        seen: file that remembers what was signed.
        lacks: is told of an end that the site has signed once, and its ledger has not.
    """

    def __init__(
        self,
        site: str,
        key: Signer,
        *,
        account: Account,
        record: Record,
        seen: Path,
        lacks: Callable[[Head, FedwardError], None],
    ) -> None:
        self._site = site
        self._key = key
        self._account = account
        self._record = record
        self._path = seen
        self._seen = _load(seen)
        self._lacks = lacks
        self._stated = -1
        self._stated_at = 0.0

    @property
    def has_news(self) -> bool:
        """Whether the ledger has grown since its end was stated, or that is long ago."""
        late = time.monotonic() - self._stated_at > _AGAIN_S
        return late or self._account.spent != self._stated

    def again(self) -> None:
        """There is another connection, maybe to a server that has seen less: state it again."""
        self._stated = -1

    async def exchange(self, ask: Ask, roster: Roster) -> None:
        """State the end of our ledger, look at what others say of it, and sign theirs.

        Raises:
            FedwardError: the server refuses, or does not answer; or the disk does.
        """
        spent, head = self._account.spent, self._account.head
        # What was stated once, the server expects in every greeting from then on.
        self._record.ledger_at(head)
        said = state(LEDGER_HEAD, self._site, head.to_dict(), self._key).decode()
        answer = await ask({"ledger": said})
        self._stated, self._stated_at = spent, time.monotonic()
        for end, error in await asyncio.to_thread(self._look, answer, roster):
            self._lacks(end, error)
        signed = await asyncio.to_thread(self._sign_all, answer, roster)
        if signed:
            await ask({"signed": signed})

    def _look(self, answer: dict[str, Any], roster: Roster) -> list[tuple[Head, FedwardError]]:
        """Keep what others signed of our ledger; gives the ends that it lacks."""
        lacking: list[tuple[Head, FedwardError]] = []
        for text in _texts(answer.get("signatures"), _MOST_SIGNATURES):
            with _left_out():
                lacking += self._lacking(text, roster)
            with _left_out():
                self._keep(text.encode(), roster)
        return lacking

    def _sign_all(self, answer: dict[str, Any], roster: Roster) -> list[str]:
        """Sign the ends of other ledgers that the server has no signature of ours for."""
        before, signed = dict(self._seen), list[str]()
        told = answer.get("signed")
        known = told if isinstance(told, dict) else {}
        for text in _texts(answer.get("heads"), _MOST_HEADS):
            with _left_out():
                signed += self._sign(text, roster, known)
        if self._seen != before:  # before a signature leaves
            found = {site: _to_dict(seen) for site, seen in self._seen.items()}
            write_atomic(self._path, json.dumps(found))
        return signed

    def _sign(self, text: str, roster: Roster, known: Mapping[str, Any]) -> list[str]:
        """A signature, or none; of a ledger that went back, under what was signed before."""
        statement = text.encode()
        site, head = signer_of(statement), Head.read(claims(statement))
        before = self._seen.get(site)
        signed = before is not None and head == before.head
        if site == self._site or (signed and known.get(site) == head.length):
            return []
        _read(statement, LEDGER_HEAD, site, roster)
        if before is None or head.length > before.head.length:
            self._seen[site] = Seen(head, text, "" if before is None else before.statement)
        elif not signed:
            self._record.note_caused(
                "witness-refused", by=site, once=True, site=site, ledger=head.to_dict()
            )
            _LOG.warning("an older end of a ledger was shown", extra={"facts": {"site": site}})
        return [self._signature(site, self._seen[site])]

    def _signature(self, site: str, seen: Seen) -> str:
        content = {
            "site": site,
            **seen.head.to_dict(),
            "statement": seen.statement,
            "before": seen.before,
        }
        return state(COUNTERSIGNATURE, self._site, content, self._key).decode()

    def _lacking(self, text: str, roster: Roster) -> list[tuple[Head, FedwardError]]:
        """Ends that we have signed by what another site says, and that our ledger lacks."""
        said = claims(text.encode())
        lacking: list[tuple[Head, FedwardError]] = []
        for own in filter(None, (said.get("statement"), said.get("before"))):
            head = Head.read(_read(str(own).encode(), LEDGER_HEAD, self._site, roster))
            try:
                self._account.check(head.to_dict(), "another site")
            except StateError as error:
                lacking.append((head, error))
        return lacking

    def _keep(self, statement: bytes, roster: Roster) -> None:
        """Keep that another site has signed the end of our ledger."""
        by = signer_of(statement)
        content = _read(statement, COUNTERSIGNATURE, by, roster)
        if content.get("site") == self._site:
            self._account.witness(Head.read(content), by, statement)


@contextmanager
def _left_out() -> Iterator[None]:
    """What cannot be used of an answer is left out of it; a disk that refuses ends it."""
    try:
        yield
    except OutputError:
        raise
    except FedwardError as error:
        facts = {"problem": error.problem, "code": error.exit_code}
        _LOG.warning("a statement about a ledger was left out", extra={"facts": facts})


def _read(statement: bytes, kind: str, site: str, roster: Roster) -> dict[str, Any]:
    member = roster.member(site)
    if member is None or not member.active or member.role != "site":
        raise IdentityError("a statement is by nobody of the roster", hint="ask the coordinator")
    return read_statement(statement, kind, site, member.public_key)


def _texts(value: object, most: int) -> list[str]:
    found = value if isinstance(value, list) else []
    return [text for text in found[:most] if isinstance(text, str)]


def _to_dict(seen: Seen) -> dict[str, Any]:
    return {**seen.head.to_dict(), "statement": seen.statement, "before": seen.before}


def _load(path: Path) -> dict[str, Seen]:
    if not path.exists():
        return {}
    try:
        found = json.loads(read_bytes(path, error=StateError))
        return {
            str(site): Seen(Head.read(said), str(said["statement"]), str(said["before"]))
            for site, said in found.items()
        }
    except (ValueError, KeyError, AttributeError) as error:
        raise StateError(
            f"{path.name} cannot be read", hint="keep it as evidence, and move it away"
        ) from error
