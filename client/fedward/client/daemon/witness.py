"""Ends of ledgers, signed by those who have seen them: an old disk that is put back is noticed.

A site states the end of its own ledger, signs those that other sites stated, and keeps who signed
its own. What it signed once it remembers: it signs nothing that goes back.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from fedward.client.daemon.account import Account
from fedward.client.daemon.record import Record
from fedward.common.audit.chain import Head
from fedward.common.errors import FedwardError, IdentityError, StateError
from fedward.common.files import read_bytes, write_atomic
from fedward.common.identity import Roster
from fedward.common.statements import (
    COUNTERSIGNATURE,
    LEDGER_HEAD,
    Signer,
    read_statement,
    signer_of,
    state,
)

_LOG = logging.getLogger(__name__)
_MOST = 2000

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


class Witness:
    """One site's part in it.

    Args:
        site: name of the site.
        key: of the site.
        account: its ledger.
        record: its audit log.
        seen: file that remembers what was signed.
    """

    def __init__(
        self, site: str, key: Signer, *, account: Account, record: Record, seen: Path
    ) -> None:
        self._site = site
        self._key = key
        self._account = account
        self._record = record
        self._path = seen
        self._seen = _load(seen)
        self._to_send: list[str] = []
        self._stated = -1

    @property
    def has_news(self) -> bool:
        """Whether the ledger has grown since its end was last stated, or signatures wait."""
        return bool(self._to_send) or self._account.spent != self._stated

    async def exchange(self, ask: Ask, roster: Roster) -> None:
        """State, sign and keep, until there is nothing left to sign.

        Raises:
            FedwardError: the server refuses, or does not answer.
        """
        spent, head = self._account.spent, self._account.head
        # What was stated once, the server expects in every greeting from then on.
        self._record.ledger_at(head)
        said = state(LEDGER_HEAD, self._site, head.to_dict(), self._key).decode()
        answer = await ask({"ledger": said, "signed": self._to_send})
        self._stated, self._to_send = spent, []
        for text in _texts(answer.get("signatures")):
            self._each(self._keep, text, roster)
        for text in _texts(answer.get("heads")):
            self._each(self._sign, text, roster)
        if self._to_send:
            await ask({"signed": self._to_send})
            self._to_send = []

    def _each(self, what: Callable[[bytes, Roster], None], text: str, roster: Roster) -> None:
        try:
            what(text.encode(), roster)
        except FedwardError as error:
            facts = {"problem": error.problem, "code": error.exit_code}
            _LOG.warning("a statement about a ledger was left out", extra={"facts": facts})

    def _sign(self, statement: bytes, roster: Roster) -> None:
        """Sign the end of another site's ledger, unless it went back."""
        site = signer_of(statement)
        head = Head.read(_read(statement, LEDGER_HEAD, site, roster))
        before = self._seen.get(site)
        if site == self._site or head == before:
            return
        if before is not None and head.length <= before.length:
            self._record.note_caused(
                "witness-refused", by=site, once=True, site=site, ledger=head.to_dict()
            )
            raise StateError(f"the ledger of {site} went back", hint="ask the coordinator")
        self._seen[site] = head
        write_atomic(self._path, json.dumps({s: h.to_dict() for s, h in self._seen.items()}))
        said = state(COUNTERSIGNATURE, self._site, {"site": site, **head.to_dict()}, self._key)
        self._to_send.append(said.decode())

    def _keep(self, statement: bytes, roster: Roster) -> None:
        """Keep that another site has signed the end of our ledger."""
        by = signer_of(statement)
        content = _read(statement, COUNTERSIGNATURE, by, roster)
        if content.get("site") == self._site:
            self._account.witness(Head.read(content), by, statement)


def _read(statement: bytes, kind: str, site: str, roster: Roster) -> dict[str, Any]:
    member = roster.member(site)
    if member is None or not member.active or member.role != "site":
        raise IdentityError("a statement is by nobody of the roster", hint="ask the coordinator")
    return read_statement(statement, kind, site, member.public_key)


def _texts(value: object) -> list[str]:
    found = value if isinstance(value, list) else []
    return [text for text in found[:_MOST] if isinstance(text, str)]


def _load(path: Path) -> dict[str, Head]:
    if not path.exists():
        return {}
    try:
        found = json.loads(read_bytes(path, error=StateError))
        return {str(site): Head.read(head) for site, head in found.items()}
    except (ValueError, AttributeError) as error:
        raise StateError(
            f"{path.name} cannot be read", hint="keep it as evidence, and move it away"
        ) from error
