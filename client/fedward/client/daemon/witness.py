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
from pathlib import Path
from typing import Any

from fedward.client.daemon.account import Account
from fedward.client.daemon.record import Record
from fedward.common.audit.chain import Head
from fedward.common.errors import FedwardError, IdentityError, OutputError, StateError
from fedward.common.files import read_bytes, write_atomic
from fedward.common.identity import PublicKey, Roster
from fedward.common.statements import Signer, signer_of
from fedward.common.witnessing import (
    MOST_BEFORE,
    Seen,
    claimed,
    claimed_end,
    countersign,
    read_countersignature,
    read_end,
    state_end,
)

_LOG = logging.getLogger(__name__)
_MOST_ENDS = 4000
"""Ends of other ledgers that are looked at in an answer."""
_MOST_SIGNATURES = 16
"""Signatures under this site's ledger that are looked at in an answer."""
_AT_ONCE = 100
"""Signatures in a question: what has room in a message."""
_AGAIN_S = 300.0
"""After which an end is stated again that did not change: others may have seen a later one."""

Ask = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]


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
        answer = await ask({"ledger": state_end(self._site, head, self._key)})
        self._stated, self._stated_at = spent, time.monotonic()
        for end, error in await asyncio.to_thread(self._look, answer, roster):
            self._lacks(end, error)
        signed = await asyncio.to_thread(self._sign_all, answer, roster)
        for first in range(0, len(signed), _AT_ONCE):
            await ask({"signed": signed[first : first + _AT_ONCE]})

    def _look(self, answer: dict[str, Any], roster: Roster) -> list[tuple[Head, FedwardError]]:
        """The ends that our ledger lacks; if there are none, what others signed is kept."""
        signatures = _texts(answer.get("signatures"), _MOST_SIGNATURES)
        lacking: list[tuple[Head, FedwardError]] = []
        for text in signatures:
            with _left_out():
                lacking += self._lacking(claimed(text), roster)
        for text in [] if lacking else signatures:
            with _left_out():
                self._keep(text, roster)
        return lacking

    def _lacking(self, seen: Seen, roster: Roster) -> list[tuple[Head, FedwardError]]:
        """Ends that we have signed by what another site says, and that our ledger lacks."""
        lacking: list[tuple[Head, FedwardError]] = []
        for own in seen.words:
            with _left_out():
                head = read_end(own, self._site, _key(self._site, roster))
                try:
                    self._account.check(head.to_dict(), "another site")
                except StateError as error:
                    lacking.append((head, error))
        return lacking

    def _keep(self, text: str, roster: Roster) -> None:
        """Keep that another site has signed the end of our ledger."""
        by = signer_of(text.encode())
        seen = read_countersignature(text, by, _key(by, roster))
        if seen.site == self._site:
            self._account.witness(seen.head, by, text.encode())

    def _sign_all(self, answer: dict[str, Any], roster: Roster) -> list[str]:
        """Sign the ends of other ledgers that the server has no signature of ours for."""
        seen, signed = dict(self._seen), list[str]()
        told = answer.get("signed")
        known = told if isinstance(told, dict) else {}
        for text in _texts(answer.get("heads"), _MOST_ENDS):
            with _left_out():
                signed += self._sign(text, roster, known, seen)
        if seen != self._seen:  # before a signature leaves
            write_atomic(self._path, json.dumps({n: _to_dict(one) for n, one in seen.items()}))
            self._seen = seen
        return signed

    def _sign(
        self, text: str, roster: Roster, known: Mapping[str, Any], seen: dict[str, Seen]
    ) -> list[str]:
        """A signature, or none; of a ledger that went back, under what was signed before."""
        site, head = signer_of(text.encode()), claimed_end(text)
        before = seen.get(site)
        signed = before is not None and head == before.head
        if site == self._site or (signed and known.get(site) == head.length):
            return []
        key = _key(site, roster)
        read_end(text, site, key)
        if before is None or not _is_by(before, key):  # a site that was enrolled anew begins anew
            seen[site] = Seen(site, head, text)
        elif head.length > before.head.length:
            seen[site] = Seen(site, head, text, before.words[:MOST_BEFORE])
        elif not signed:
            self._record.note_caused(
                "witness-refused", by=site, once=True, site=site, ledger=head.to_dict()
            )
            _LOG.warning("an older end of a ledger was shown", extra={"facts": {"site": site}})
        return [countersign(self._site, seen[site], self._key)]


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


def _key(site: str, roster: Roster) -> PublicKey:
    member = roster.member(site)
    if member is None or not member.active or member.role != "site":
        raise IdentityError("a statement is by nobody of the roster", hint="ask the coordinator")
    return member.public_key


def _is_by(seen: Seen, key: PublicKey) -> bool:
    """Whether all that we keep of a site was signed by its present key."""
    try:
        for statement in seen.words:
            read_end(statement, seen.site, key)
    except (IdentityError, StateError):
        return False
    return True


def _texts(value: object, most: int) -> list[str]:
    found = value if isinstance(value, list) else []
    return [text for text in found[:most] if isinstance(text, str)]


def _to_dict(seen: Seen) -> dict[str, Any]:
    return {**seen.head.to_dict(), "statement": seen.statement, "before": list(seen.before)}


def _load(path: Path) -> dict[str, Seen]:
    if not path.exists():
        return {}
    try:
        found = json.loads(read_bytes(path, error=StateError))
        return {
            str(site): Seen(
                str(site),
                Head.read(said),
                str(said["statement"]),
                tuple(str(text) for text in said["before"]),
            )
            for site, said in found.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StateError(
            f"{path.name} cannot be read", hint="keep it as evidence, and move it away"
        ) from error
