"""Who is calling: from the certificate of a connection to an active member of the roster.

gRPC has checked that the peer holds the key of a certificate under our root. Whether that key is
still a member's, the roster says, and it is asked at every call.

Guarantee:
    What `Peers.admit` returns is a peer over TLS 1.3 whose certificate is valid now, whose public
    key is that of an active member, under that member's name.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from fedward.common.buckets import Bucket
from fedward.common.errors import IdentityError
from fedward.common.identity.certificates import Certificate, read_certificate
from fedward.common.identity.keys import PublicKey
from fedward.common.identity.roster import Member, Roster
from fedward.common.wire import kinds
from fedward.common.wire.transport import is_modern
from fedward.server.link.refusals import BusyError

_PEM = "x509_pem_cert"
_MOST_CERTIFICATES = 4096
_CALLERS = ("site", "observer")


class Call(Protocol):
    """What we need of gRPC's context of a call."""

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        """What TLS says about the peer."""
        ...

    def peer(self) -> str:
        """Its network address."""
        ...


@dataclass(frozen=True)
class Peer:
    """Who is calling.

    Attributes:
        name: in the roster.
        role: in the roster.
        key: that it proved to hold.
        certificate: that it showed.
        address: on the network.
    """

    name: str
    role: str
    key: PublicKey
    certificate: Certificate
    address: str


class Peers:
    """Tells who is calling; every method may be called from any thread.

    Args:
        roster: the newest.
        now: the time, UTC.
    """

    def __init__(
        self, roster: Roster, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)
    ) -> None:
        self._roster = roster
        self._now = now
        self._read: OrderedDict[bytes, Certificate] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def roster(self) -> Roster:
        """The newest roster."""
        return self._roster

    def use(self, roster: Roster) -> None:
        """Judge by another roster from now on.

        Raises:
            IdentityError: it is older than the one in use.
        """
        if roster.version < self._roster.version:
            raise IdentityError(
                f"version {roster.version} of the roster is older than the one in use, "
                f"{self._roster.version}",
                hint="restore the newest roster",
            )
        self._roster = roster

    def admit(self, call: Call) -> Peer:
        """Who is calling.

        Raises:
            IdentityError: nobody who may.
        """
        facts = call.auth_context()
        if not is_modern(facts):
            raise IdentityError("the connection is not TLS 1.3", hint="upgrade the peer")
        pem = next(iter(facts.get(_PEM, ())), None)
        if pem is None:
            raise IdentityError("the peer shows no certificate", hint="install one")
        certificate = self._certificate(pem)
        member = self._member(certificate)
        return Peer(member.name, member.role, member.public_key, certificate, call.peer())

    def check(self, peer: Peer) -> None:
        """Return if a peer that was admitted still would be.

        Raises:
            IdentityError: it would not: revoked, or its certificate expired.
        """
        self._member(peer.certificate)

    def _member(self, certificate: Certificate) -> Member:
        if not certificate.not_before <= self._now() <= certificate.not_after:
            raise IdentityError(
                f"the certificate of {certificate.name} is not valid now",
                hint="renew it, and compare the clocks",
            )
        member = self._roster.by_fingerprint(certificate.fingerprint)
        if member is None:
            raise IdentityError(
                f"the key of {certificate.name} is not in the roster",
                hint="ask the coordinator to enrol it",
            )
        if not member.active:
            raise IdentityError(f"{member.name} is revoked", hint="ask the coordinator why")
        if (member.name, member.role) != (certificate.name, certificate.role):
            raise IdentityError(
                f"the certificate says {certificate.role} {certificate.name}, the roster says "
                f"{member.role} {member.name}",
                hint="ask the coordinator for a new certificate",
            )
        if member.role not in _CALLERS:
            raise IdentityError(f"a {member.role} does not call the server", hint="use a site's")
        return member

    def _certificate(self, pem: bytes) -> Certificate:
        with self._lock:
            known = self._read.get(pem)
        if known is None:
            known = read_certificate(pem)
            with self._lock:
                self._read[pem] = known
                if len(self._read) > _MOST_CERTIFICATES:
                    self._read.popitem(last=False)
        return known


def claimed(call: Call) -> str:
    """The name in a peer's certificate, for the log: whether it is true was not checked."""
    found = call.auth_context().get("x509_common_name", ())
    return b"".join(found)[:100].decode(errors="replace")


CALLS_PER_TASK = 4
"""To fetch a task, to ask where its reply goes on, to send that, and one more."""


HOURLY: Mapping[str, int] = {kinds.RENEW: 20, kinds.DECIDE: 600, kinds.WITNESS: 1200}
"""Questions of a kind that one member may ask in an hour: each costs a signature, or a transaction
and an entry in the audit log. A site asks for a certificate once an hour at most, repeats a
decision that was refused every 15 s, and has its ledger witnessed every 10 s, in two questions,
however fast rounds follow. What takes an approval back is not counted
(`service.takes_back`)."""


@dataclass(frozen=True)
class Limits:
    """How much one member may ask of the server, beside what the server asks for.

    Attributes:
        calls_at_once: calls that are being answered, over all its connections.
        calls_per_s: calls begun, in the long run.
        burst: calls begun at once, after a pause.
        hourly: questions of a kind in an hour, for those kinds that are dear.
    """

    calls_at_once: int = 16
    calls_per_s: float = 20.0
    burst: int = 100
    hourly: Mapping[str, int] = field(default_factory=lambda: HOURLY)


@dataclass
class _Use:
    calls: Bucket
    running: int = 0
    kinds: dict[str, Bucket] = field(default_factory=dict)


class Allowance:
    """Counts the calls of each member against its limits. For the event loop only.

    Args:
        limits: of each.
        clock: seconds, never going back.
    """

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._uses: dict[str, _Use] = {}

    @contextmanager
    def one_call(self, name: str) -> Iterator[None]:
        """Count a call while it runs.

        Raises:
            BusyError: there are too many.
        """
        limits, use = self._limits, self._use(name)
        if use.running >= limits.calls_at_once:
            raise BusyError(f"too many calls of {name} at once", hint="wait for some to end")
        if not use.calls.take(self._clock()):
            raise BusyError(f"too many calls of {name}", hint="call less often")
        use.running += 1
        try:
            yield
        finally:
            use.running -= 1

    def one_question(self, name: str, kind: str) -> None:
        """Count a question, if its kind is a dear one.

        Raises:
            BusyError: there were too many in the last hour.
        """
        most = self._limits.hourly.get(kind)
        if most is None:
            return
        now, known = self._clock(), self._use(name).kinds
        if not known.setdefault(kind, Bucket.hourly(most, now)).take(now):
            raise BusyError(
                f"{name} asks too often to {kind}", hint=f"at most {most} times an hour"
            )

    def give_back(self, name: str) -> None:
        """A task is done: what the server asked for is not counted, however fast rounds follow."""
        use = self._uses.get(name)
        if use is not None:
            use.calls.give_back(CALLS_PER_TASK)

    def _use(self, name: str) -> _Use:
        if name not in self._uses:
            limits = self._limits
            self._uses[name] = _Use(Bucket(limits.burst, limits.calls_per_s, self._clock()))
        return self._uses[name]
