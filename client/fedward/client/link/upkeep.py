"""Keeps what the site knows about the consortium fresh: the roster, and its own certificate."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any

from fedward.client.link.connection import ExpelledError, Line
from fedward.client.link.greeting import ask
from fedward.common.errors import IdentityError, LinkError
from fedward.common.identity import (
    Identity,
    Roster,
    check_chain,
    make_request,
    read_certificates,
    read_roster,
)
from fedward.common.wire import kinds
from fedward.common.wire.link_pb2 import Signed
from fedward.common.wire.message import unpack

_log = logging.getLogger(__name__)
_HINT = "ask the coordinator"
_GREETED = "roster_data"
"""Under which a greeting carries the roster, if the site's is older."""


class Upkeep:
    """The newest identity and roster.

    Args:
        identity: of the site.
        roster: the newest that the site has seen.
        install: writes a renewed certificate, with the issuer's, where the next start finds it.
        on_roster: is given every newer roster, checked.
        now: gives the time, with its zone.
    """

    def __init__(
        self,
        identity: Identity,
        roster: Roster,
        *,
        install: Callable[[str], None],
        on_roster: Callable[[bytes], None],
        now: Callable[[], datetime],
    ) -> None:
        self.identity = identity
        self.roster = roster
        self._install = install
        self._on_roster = on_roster
        self._now = now

    async def fetch_roster(self, line: Line) -> None:
        """Ask for the newest roster.

        Raises:
            IdentityError: it is older, or not by this consortium's issuer.
            FedwardError: the server refuses, or does not answer.
        """
        self._accept(await ask(line, kinds.ROSTER, {"version": self.roster.version}), "roster")

    def adopt(self, answer: Signed) -> Roster | None:
        """The newer roster that an answer carries which our roster's server did not sign.

        A server whose key was replaced shows the roster that says so: the issuer signed it, so it
        needs nobody else's word.

        Raises:
            IdentityError: it is older, or not by this consortium's issuer.
        """
        said = unpack(answer.body)
        return self.roster if _GREETED in said and self._accept(said, _GREETED) else None

    def _accept(self, said: dict[str, Any], key: str) -> bool:
        text = said.get(key)
        if not isinstance(text, str):
            raise LinkError("the server's roster cannot be read", hint=_HINT)
        data, known = text.encode(), self.roster.version
        roster = read_roster(
            data, self.identity.root_pem, not_before_version=known, now=self._now()
        )
        if roster.version == known:
            return False
        self._on_roster(data)
        self.roster = roster
        _log.info("a newer roster is in force", extra={"facts": {"version": roster.version}})
        return True

    def check_membership(self) -> None:
        """Return if the roster has this site's key as active.

        Raises:
            ExpelledError: it was revoked.
        """
        member = self.roster.by_fingerprint(self.identity.key.public.fingerprint)
        if member is None or not member.active or member.name != self.identity.name:
            raise ExpelledError("this site was revoked", hint=_HINT)

    @property
    def renewal_due(self) -> bool:
        """Whether the certificate is in the last third of its time."""
        leaf = self.identity.certificate
        return self._now() >= leaf.not_after - (leaf.not_after - leaf.not_before) / 3

    async def renew(self, line: Line) -> None:
        """Get a new certificate for the same key, check it, install it.

        Raises:
            IdentityError: what comes is not a later certificate for this site and key.
            FedwardError: the server refuses, or does not answer.
            OutputError: the disk refuses.
        """
        mine = self.identity
        old = mine.certificate
        request = make_request(mine.key, mine.name).decode()
        answer = await ask(line, kinds.RENEW, {"request": request})
        chain = answer.get("certificate")
        if not isinstance(chain, str):
            raise LinkError("the server's certificate cannot be read", hint=_HINT)
        leaf, *others = read_certificates(chain)
        if len(others) != 1:
            raise IdentityError("a new certificate comes without its issuer's", hint=_HINT)
        check_chain(leaf, others[0], mine.root, now=self._now())
        if (leaf.name, leaf.role, leaf.public_key) != (mine.name, old.role, mine.key.public):
            raise IdentityError("a new certificate is for somebody else", hint=_HINT)
        if leaf.not_after <= old.not_after:
            raise IdentityError("a new certificate ends before the old one", hint=_HINT)
        self._install(chain)
        self.identity = replace(mine, certificate=leaf, issuer=others[0])
        end = leaf.not_after.date().isoformat()
        _log.info("the certificate was renewed", extra={"facts": {"valid_until": end}})
