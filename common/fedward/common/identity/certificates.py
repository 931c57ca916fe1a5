"""Certificates: a root that can be kept offline, an issuer under it, and short-lived leaves.

    root (10 years) → issuer (2 years) → coordinator, sites, observers (at most 90 days)

All keys are on P-256. A leaf's common name is a name of the roster, its organisational unit the
role, its organisation the consortium. A certificate says only that a key had a name until a date;
whether it still is a member, the signed roster says.

Here they are read and checked; `issuing` makes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Literal, Self, get_args

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509 import verification
from cryptography.x509.oid import NameOID

from fedward.common.errors import IdentityError
from fedward.common.identity.keys import PublicKey
from fedward.common.identity.names import check_name
from fedward.common.identity.unreadable import UNREADABLE

Role = Literal["coordinator", "site", "observer"]
"""Who somebody is in a consortium."""
ROLES: Sequence[str] = get_args(Role)
_ASK = "ask the coordinator for a new one"
_COMPARE = "compare the root's fingerprint with what the coordinator says"


@dataclass(frozen=True)
class Certificate:
    """A certificate, read.

    Attributes:
        raw: as `cryptography` knows it.
        name: common name.
        role: organisational unit: one of `ROLES`, or "root" or "issuer".
        consortium: organisation.
        public_key: whose it is.
        not_before: when it begins, UTC.
        not_after: when it ends, UTC.
    """

    raw: x509.Certificate
    name: str
    role: str
    consortium: str
    public_key: PublicKey
    not_before: datetime
    not_after: datetime

    @cached_property
    def pem(self) -> str:
        """As text."""
        return self.raw.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def fingerprint(self) -> str:
        """Of the public key."""
        return self.public_key.fingerprint

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host names and addresses that it is for; empty unless of a coordinator."""
        try:
            names = self.raw.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except x509.ExtensionNotFound:
            return ()
        found = names.get_values_for_type(x509.DNSName)
        return (*found, *map(str, names.get_values_for_type(x509.IPAddress)))

    @classmethod
    def of(cls, certificate: x509.Certificate) -> Self:
        """Read what it says.

        Raises:
            IdentityError: it is not one of fedward's.
        """
        try:
            key = certificate.public_key()
            subject = certificate.subject
            name, role, consortium = (
                _only(subject, oid)
                for oid in (
                    NameOID.COMMON_NAME,
                    NameOID.ORGANIZATIONAL_UNIT_NAME,
                    NameOID.ORGANIZATION_NAME,
                )
            )
            begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        except UNREADABLE as error:
            raise IdentityError("a certificate is not one of fedward's", hint=_ASK) from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("a certificate's key is not on the curve P-256", hint=_ASK)
        return cls(certificate, name, role, consortium, PublicKey(key), begin, end)


def _only(subject: x509.Name, oid: x509.ObjectIdentifier) -> str:
    (attribute,) = subject.get_attributes_for_oid(oid)
    return str(attribute.value)


def read_certificates(pem: str | bytes) -> tuple[Certificate, ...]:
    """All certificates of a text, in order.

    Raises:
        IdentityError: there is none, or one cannot be read.
    """
    data = pem.encode() if isinstance(pem, str) else pem
    try:
        found = x509.load_pem_x509_certificates(data)
    except UNREADABLE as error:
        raise IdentityError("a certificate cannot be read", hint=_ASK) from error
    return tuple(map(Certificate.of, found))


def read_certificate(pem: str | bytes) -> Certificate:
    """The first certificate of a text; see `read_certificates`."""
    return read_certificates(pem)[0]


def check_chain(
    leaf: Certificate, issuer: Certificate, root: Certificate, *, now: datetime
) -> None:
    """Return if the root signed the issuer, the issuer the leaf, and all are valid now.

    The root itself is trusted: compare its fingerprint with what the coordinator says.

    Raises:
        IdentityError: something does not fit; the message says what.
    """
    check_issuer(issuer, root, now=now)
    if leaf.role not in ROLES:
        raise IdentityError("a certificate has no role in a consortium", hint=_ASK)
    check_name(leaf.name)
    if leaf.consortium != root.consortium:
        raise IdentityError("certificates are of different consortia", hint=_ASK)
    _check_dates(leaf, now)
    # The client's rules: every leaf has that use, a coordinator's has the server's as well.
    store = verification.Store([root.raw])
    rules = verification.PolicyBuilder().store(store).time(now)
    try:
        rules.build_client_verifier().verify(leaf.raw, [issuer.raw])
    except verification.VerificationError as error:
        raise IdentityError(
            f"the certificate of {leaf.name} was not issued by this consortium", hint=_COMPARE
        ) from error


def check_issuer(issuer: Certificate, root: Certificate, *, now: datetime) -> None:
    """Return if the root signed this issuer, and both are valid now.

    Raises:
        IdentityError: it did not, or one is not.
    """
    if (root.role, issuer.role) != ("root", "issuer"):
        raise IdentityError("a chain of certificates has the wrong roles", hint=_ASK)
    if issuer.consortium != root.consortium:
        raise IdentityError("certificates are of different consortia", hint=_ASK)
    for certificate in (issuer, root):
        _check_dates(certificate, now)
        try:
            certificate.raw.verify_directly_issued_by(root.raw)
        except UNREADABLE as error:
            raise IdentityError(
                f"the certificate of the {certificate.role} is not by this consortium's root",
                hint=_COMPARE,
            ) from error


def _check_dates(certificate: Certificate, now: datetime) -> None:
    whose = f"the certificate of {certificate.name}"
    if now > certificate.not_after:
        end = certificate.not_after.date().isoformat()
        raise IdentityError(f"{whose} expired on {end}", hint=_ASK)
    if now < certificate.not_before:
        raise IdentityError(f"{whose} is not valid yet", hint="check this machine's clock")
