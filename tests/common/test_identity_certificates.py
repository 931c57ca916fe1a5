"""Certificates: what is issued, what a chain must be, and that real TLS agrees."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.common.identities import DAY, NOW, Consortium

from fedward.common.errors import IdentityError
from fedward.common.identity import (
    Authority,
    Certificate,
    Identity,
    PrivateKey,
    check_chain,
    issue,
    make_issuer,
    make_request,
    make_root,
    read_certificate,
    read_certificates,
    read_request,
)

OURS = Consortium()
OTHERS = Consortium()


def check(leaf: Certificate, **changes: object) -> None:
    given = {
        "issuer": OURS.issuer.certificate,
        "root": OURS.root.certificate,
        "now": NOW,
        **changes,
    }
    check_chain(leaf, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize("role", ["site", "observer", "coordinator"])
def test_a_leaf_says_who_it_is_for(role: str) -> None:
    leaf = OURS.leaf("north", role)  # type: ignore[arg-type]
    check(leaf)
    again = read_certificate(leaf.pem)
    assert (again.name, again.role, again.consortium) == ("north", role, "Example")
    assert again.public_key == OURS.key("north").public
    assert again.not_after == NOW + 90 * DAY


def test_dates_stay_within_those_of_what_signs() -> None:
    late = NOW + timedelta(days=700)
    leaf = OURS.leaf("north", now=late)
    assert leaf.not_after == OURS.issuer.certificate.not_after
    assert leaf.not_before < late
    with pytest.raises(IdentityError, match="issuer's certificate has expired"):
        OURS.leaf("north", now=NOW + timedelta(days=731))


@pytest.mark.parametrize("days", [0, -1, 91])
def test_a_leaf_lives_90_days_at_most(days: int) -> None:
    with pytest.raises(IdentityError):
        OURS.leaf("north", days=days)


@pytest.mark.parametrize("name", ["", "North", "a/b", "../x", "a" * 65, "a b", "-a", "root", "a\n"])
def test_names_that_are_not_given(name: str) -> None:
    with pytest.raises(IdentityError, match="name is not allowed"):
        OURS.leaf(name)
    with pytest.raises(IdentityError, match="name is not allowed"):
        make_request(PrivateKey.generate(), name)


@pytest.mark.parametrize("name", ["", " x", "x\n", "x" * 65, "a\x00b"])
def test_names_that_no_consortium_has(name: str) -> None:
    with pytest.raises(IdentityError, match="consortium's name"):
        make_root(PrivateKey.generate(), name, now=NOW)


def test_expired_and_not_yet() -> None:
    leaf = OURS.leaf("north", days=30)
    check(leaf, now=NOW + 29 * DAY)
    with pytest.raises(IdentityError, match="expired on 2026-03-31"):
        check(leaf, now=NOW + 31 * DAY)
    # A clock that is behind by less than an hour is borne.
    check(leaf, now=NOW - timedelta(minutes=59))
    with pytest.raises(IdentityError, match=r"not valid yet.*clock"):
        check(leaf, now=NOW - timedelta(hours=2))


def test_another_root_with_the_same_names_is_refused() -> None:
    leaf = OTHERS.leaf("north")
    with pytest.raises(IdentityError):
        check(leaf)
    with pytest.raises(IdentityError, match="not by this consortium's root"):
        check(leaf, issuer=OTHERS.issuer.certificate)
    with pytest.raises(IdentityError, match="not by this consortium's root"):
        check(OURS.leaf("north"), root=OTHERS.root.certificate)


def test_a_leaf_issues_nothing() -> None:
    north = Authority(OURS.key("north"), OURS.leaf("north"))
    forged = issue(PrivateKey.generate().public, "coordinator", "coordinator", north, now=NOW)
    with pytest.raises(IdentityError):
        check(forged)
    with pytest.raises(IdentityError, match="wrong roles"):
        check(forged, issuer=north.certificate)


def test_an_issuer_makes_no_issuer() -> None:
    second = make_issuer(OURS.key("x").public, OURS.issuer, now=NOW)
    leaf = issue(OURS.key("y").public, "y", "site", Authority(OURS.key("x"), second), now=NOW)
    with pytest.raises(IdentityError):
        check(leaf, issuer=second)


def test_roles_are_not_swapped() -> None:
    leaf, issuer, root = OURS.leaf("north"), OURS.issuer.certificate, OURS.root.certificate
    for chain in (
        (issuer, issuer, root),
        (root, root, root),
        (leaf, root, root),
        (leaf, leaf, leaf),
    ):
        with pytest.raises(IdentityError):
            check_chain(*chain, now=NOW)


def test_other_consortium_under_the_same_key_is_refused() -> None:
    name = Consortium("Another", keys=dict(OURS.keys))
    with pytest.raises(IdentityError, match="different consortia"):
        check(name.leaf("north"))


def test_key_and_certificate_of_an_authority_belong_together() -> None:
    with pytest.raises(IdentityError, match="do not belong together"):
        Authority(OURS.key("north"), OURS.issuer.certificate)


def oracle(leaf: Certificate, *, host: x509.DNSName | None) -> bool:
    """What another library's rules of the web say, for a server at `host` or for a client."""
    rules = PolicyBuilder().store(Store([OURS.root.certificate.raw])).time(NOW)
    try:
        if host is None:
            rules.build_client_verifier().verify(leaf.raw, [OURS.issuer.certificate.raw])
        else:
            rules.build_server_verifier(host).verify(leaf.raw, [OURS.issuer.certificate.raw])
    except VerificationError:
        return False
    return True


def test_only_a_coordinator_is_a_server_and_only_at_its_hosts() -> None:
    host, other = x509.DNSName("fl.example.org"), x509.DNSName("example.org")
    server = OURS.leaf("coordinator", "coordinator", hosts=["fl.example.org", "10.0.0.5"])
    assert (oracle(server, host=host), oracle(server, host=None)) == (True, True)
    assert not oracle(server, host=other)
    assert server.hosts == ("fl.example.org", "10.0.0.5")
    for role in ("site", "observer"):
        leaf = OURS.leaf("north", role, hosts=["fl.example.org"])  # type: ignore[arg-type]
        assert (oracle(leaf, host=host), oracle(leaf, host=None)) == (False, True)
        assert leaf.hosts == ()


def test_hosts_that_no_certificate_is_for() -> None:
    with pytest.raises(IdentityError, match="host name"):
        OURS.leaf("coordinator", "coordinator", hosts=["fü.example.org"])


def handshake(tmp_path: Path, server: Consortium, client: Consortium, host: str) -> str:
    """A mutual TLS handshake in memory, by OpenSSL; gives the protocol that was agreed on."""
    now = server.now
    sides = []
    for who, name, role, purpose in (
        (server, "coordinator", "coordinator", ssl.PROTOCOL_TLS_SERVER),
        (client, "north", "site", ssl.PROTOCOL_TLS_CLIENT),
    ):
        leaf = who.leaf(name, role, hosts=["localhost"], now=now)  # type: ignore[arg-type]
        (tmp_path / name).write_text(
            who.key(name).pem.decode() + leaf.pem + who.issuer.certificate.pem
        )
        context = ssl.SSLContext(purpose)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.load_cert_chain(tmp_path / name)
        context.load_verify_locations(cadata=who.root.certificate.pem)
        context.verify_mode = ssl.CERT_REQUIRED
        sides.append(context)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        sides[0].wrap_bio(to_server, to_client, server_side=True),
        sides[1].wrap_bio(to_client, to_server, server_hostname=host),
    ]
    done: set[int] = set()
    for _ in range(6):
        for number in (1, 0):
            try:
                ends[number].do_handshake()
                done.add(number)
            except ssl.SSLWantReadError:
                pass
    assert done == {0, 1}
    return str(ends[1].version())


def test_openssl_shakes_hands_with_them(tmp_path: Path) -> None:
    today = Consortium(now=NOW.now(NOW.tzinfo))
    assert handshake(tmp_path, today, today, "localhost") == "TLSv1.3"
    for client, host in ((Consortium(now=today.now), "localhost"), (today, "example.org")):
        with pytest.raises(ssl.SSLCertVerificationError):
            handshake(tmp_path, today, client, host)


def test_several_certificates_in_one_text() -> None:
    chain = OURS.leaf("north").pem + OURS.issuer.certificate.pem
    assert [found.role for found in read_certificates(chain)] == ["site", "issuer"]
    for text in ("", "x", chain.replace("MII", "MIJ")):
        with pytest.raises(IdentityError):
            read_certificates(text)


def test_a_certificate_of_somebody_else_is_refused() -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "north")])
    key = OURS.key("north")
    plain = (
        x509.CertificateBuilder(name, name, key.public.raw, x509.random_serial_number())
        .not_valid_before(NOW)
        .not_valid_after(NOW + DAY)
        .sign(key.raw, hashes.SHA256())
    )
    with pytest.raises(IdentityError, match="not one of fedward's"):
        Certificate.of(plain)


def test_a_request_is_by_the_holder_of_the_key() -> None:
    request = read_request(make_request(OURS.key("north"), "north"))
    assert (request.name, request.public_key) == ("north", OURS.key("north").public)


@settings(max_examples=60)
@given(position=st.integers(0, 10_000), value=st.integers(0, 255))
def test_a_changed_request_is_noticed_or_means_the_same(position: int, value: int) -> None:
    pem = make_request(OURS.key("north"), "north")
    changed = bytearray(pem)
    changed[position % len(pem)] = value
    try:
        request = read_request(bytes(changed))
    except IdentityError:
        return
    assert (request.name, request.public_key) == ("north", OURS.key("north").public)


def test_own_identity_belongs_together(tmp_path: Path) -> None:
    leaf, root = OURS.leaf("north"), OURS.root.certificate
    (tmp_path / "root.crt").write_text(root.pem)
    chain = tmp_path / "site.crt"
    chain.write_text(leaf.pem + OURS.issuer.certificate.pem)
    found = Identity.load(OURS.key("north"), chain, tmp_path / "root.crt", now=NOW)
    assert (found.name, found.root_pem.decode()) == ("north", root.pem)
    assert found.chain_pem == chain.read_bytes()
    with pytest.raises(IdentityError, match="not a certificate for this machine's key"):
        Identity.load(OURS.key("south"), chain, tmp_path / "root.crt")
    with pytest.raises(IdentityError, match="expired"):
        Identity.load(OURS.key("north"), chain, tmp_path / "root.crt", now=NOW + 91 * DAY)
    (tmp_path / "root.crt").write_text(OTHERS.root.certificate.pem)
    with pytest.raises(IdentityError):
        Identity.load(OURS.key("north"), chain, tmp_path / "root.crt")
    chain.write_text(leaf.pem)
    with pytest.raises(IdentityError):
        Identity.load(OURS.key("north"), chain, tmp_path / "root.crt")
