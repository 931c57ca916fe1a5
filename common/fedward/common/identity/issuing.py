"""Makes certificates; only the coordinator's machine does. `certificates` says how they relate.

>>> from datetime import UTC
>>> from fedward.common.identity.certificates import check_chain
>>> now = datetime.now(UTC)
>>> root_key, issuer_key, key = (PrivateKey.generate() for _ in range(3))
>>> root = make_root(root_key, "Example", now=now)
>>> issuer = make_issuer(issuer_key.public, Authority(root_key, root), now=now)
>>> leaf = issue(key.public, "north", "site", Authority(issuer_key, issuer), now=now)
>>> check_chain(leaf, issuer, root, now=now)
>>> leaf.name, leaf.role, (leaf.not_after - now).days >= 89
('north', 'site', True)
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fedward.common.errors import IdentityError
from fedward.common.identity.certificates import ROLES, Certificate, Role
from fedward.common.identity.keys import PrivateKey, PublicKey
from fedward.common.identity.names import check_consortium, check_name

ROOT_DAYS = 3650
ISSUER_DAYS = 730
LONGEST_LEAF_DAYS = 90

_SKEW = timedelta(hours=1)
"""Certificates begin that much earlier, for machines whose clock is behind."""
_SCHEME = hashes.SHA256()


@dataclass(frozen=True)
class Authority:
    """What signs certificates: the root, or the issuer.

    Attributes:
        key: its private key.
        certificate: that belongs to it.
    """

    key: PrivateKey
    certificate: Certificate

    def __post_init__(self) -> None:
        if self.key.public != self.certificate.public_key:
            raise IdentityError(
                f"key and certificate of the {self.certificate.role} do not belong together",
                hint="restore both from the same backup",
            )


def make_root(
    key: PrivateKey, consortium: str, *, now: datetime, days: int = ROOT_DAYS
) -> Certificate:
    """A consortium's root, signed by itself."""
    check_consortium(consortium)
    name = _name("root", "root", consortium)
    builder = _builder(name, name, key.public, key.public, now - _SKEW, now + timedelta(days=days))
    return _sign(_as_authority(builder, path_length=1), key)


def make_issuer(
    public_key: PublicKey, root: Authority, *, now: datetime, days: int = ISSUER_DAYS
) -> Certificate:
    """An issuer, signed by the root."""
    top = root.certificate
    name = _name("issuer", "issuer", top.consortium)
    begin, end = _within(top, now, days)
    builder = _builder(name, top.raw.subject, public_key, top.public_key, begin, end)
    return _sign(_as_authority(builder, path_length=0), root.key)


def issue(
    public_key: PublicKey,
    name: str,
    role: Role,
    issuer: Authority,
    *,
    now: datetime,
    days: int = LONGEST_LEAF_DAYS,
    hosts: Iterable[str] = (),
) -> Certificate:
    """A leaf: for a client of TLS, and if it is the coordinator's, for a server at `hosts` too.

    Raises:
        IdentityError: the name, the role or a host is not allowed, or `days` are too many.
    """
    check_name(name)
    if role not in ROLES or not 1 <= days <= LONGEST_LEAF_DAYS:
        raise IdentityError(
            "a certificate with this role or duration is not issued",
            hint=f"roles: {', '.join(ROLES)}; 1 to {LONGEST_LEAF_DAYS} days",
        )
    top = issuer.certificate
    begin, end = _within(top, now, days)
    if end <= now:
        raise IdentityError(
            "the issuer's certificate has expired", hint="make a new issuer with the root key"
        )
    uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
    others: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:fedward:{role}:{name}")]
    if role == "coordinator":
        uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        others += map(_host, hosts)
    subject = _name(name, role, top.consortium)
    builder = (
        _builder(subject, top.raw.subject, public_key, top.public_key, begin, end)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(others), critical=False)
    )
    return _sign(builder, issuer.key)


def _within(top: Certificate, now: datetime, days: int) -> tuple[datetime, datetime]:
    """Dates of a certificate, never outside those of what signs it."""
    begin = max(now - _SKEW, top.not_before)
    return begin, min(now + timedelta(days=days), top.not_after)


def _name(name: str, role: str, consortium: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, consortium),
            x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            x509.NameAttribute(NameOID.COMMON_NAME, name),
        ]
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    try:
        return x509.DNSName(host)
    except ValueError as error:
        raise IdentityError(
            "a host name is not allowed", hint="use a DNS name in ASCII, or an IP address"
        ) from error


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: PublicKey,
    issuer_key: PublicKey,
    begin: datetime,
    end: datetime,
) -> x509.CertificateBuilder:
    by = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.raw)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.raw)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.raw), critical=False)
        .add_extension(by, critical=False)
    )


def _as_authority(builder: x509.CertificateBuilder, path_length: int) -> x509.CertificateBuilder:
    return builder.add_extension(
        x509.BasicConstraints(ca=True, path_length=path_length), critical=True
    ).add_extension(_usage(signs_certificates=True), critical=True)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _sign(builder: x509.CertificateBuilder, key: PrivateKey) -> Certificate:
    return Certificate.of(builder.sign(key.raw, _SCHEME))
