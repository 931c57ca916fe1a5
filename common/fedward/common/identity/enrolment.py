"""What the coordinator sends a hospital after enrolling it: one text file, `north.crt`.

It holds the site's certificate, the issuer's, the root's, and the signed roster, which says where
the server is. Nothing in it is secret, and every byte is either signed or follows from what is, so
nothing can be changed on the way but the root as a whole: that is why its fingerprint is compared.
"""

from __future__ import annotations

import base64
import binascii
import textwrap
from dataclasses import dataclass
from datetime import datetime

from fedward.common.errors import IdentityError
from fedward.common.identity.certificates import Certificate, check_chain, read_certificates
from fedward.common.identity.keys import PublicKey, spoken
from fedward.common.identity.roster import Roster, read_roster

_BEGIN = "-----BEGIN FEDWARD ROSTER-----"
_END = "-----END FEDWARD ROSTER-----"
_AGAIN = "ask the coordinator to send the file again"
LARGEST = 8 << 20
"""Bytes that such a file may have."""


@dataclass(frozen=True)
class Bundle:
    """What the file says.

    Attributes:
        leaf: the site's certificate.
        issuer: that signed it.
        root: that signed the issuer.
        roster_data: the roster as it was signed.
        roster: the same, read.
    """

    leaf: Certificate
    issuer: Certificate
    root: Certificate
    roster_data: bytes
    roster: Roster

    @property
    def chain_pem(self) -> str:
        """The site's certificate and the issuer's, for TLS."""
        return self.leaf.pem + self.issuer.pem


def write_bundle(
    leaf: Certificate, issuer: Certificate, root: Certificate, roster_data: bytes, roster: Roster
) -> str:
    """The file's text."""
    lines = (
        f"# fedward: {leaf.name}, {leaf.role} of {leaf.consortium}",
        f"# server: {roster.host} port {roster.port}, {roster.coordinator.name}",
        f"# valid until: {leaf.not_after.date().isoformat()}",
        f"# fingerprint of the root: {spoken(root.fingerprint)}",
        f"# install it: fedward client install FOLDER {leaf.name}.crt",
    )
    encoded = textwrap.wrap(base64.b64encode(roster_data).decode(), 64)
    certificates = leaf.pem + issuer.pem + root.pem
    return "\n".join([*lines, certificates + _BEGIN, *encoded, _END, ""])


def read_bundle(data: bytes, *, now: datetime) -> Bundle:
    """Read and check all of it against its own root, which the caller has yet to trust.

    Raises:
        IdentityError: it was changed, has expired, or its parts do not belong together.
    """
    try:
        text = data[: LARGEST + 1].decode()
        before, _, after = text.partition(_BEGIN + "\n")
        encoded, _, _ = after.partition(_END)
        roster_data = base64.b64decode(encoded.replace("\n", ""), validate=True)
        leaf, issuer, root = read_certificates(before)
    except (ValueError, binascii.Error) as error:
        raise IdentityError("this is no enrolment file", hint=_AGAIN) from error
    check_chain(leaf, issuer, root, now=now)
    roster = read_roster(roster_data, root.pem, now=now)
    if write_bundle(leaf, issuer, root, roster_data, roster) != text:
        raise IdentityError("the enrolment file is not as it was written", hint=_AGAIN)
    member = roster.by_fingerprint(leaf.fingerprint)
    if member is None or not member.active or (member.name, member.role) != (leaf.name, leaf.role):
        raise IdentityError("the roster does not have the certificate's key", hint=_AGAIN)
    return Bundle(leaf, issuer, root, roster_data, roster)


def check_own(bundle: Bundle, name: str, key: PublicKey) -> None:
    """Return if a bundle is for this site and its key.

    Raises:
        IdentityError: it is for another.
    """
    if bundle.leaf.name != name:
        raise IdentityError(
            f"the enrolment file is for {bundle.leaf.name}, this is {name}",
            hint="ask the coordinator for the file of this site",
        )
    if bundle.leaf.public_key != key:
        raise IdentityError(
            "the enrolment file is for another key than this site's",
            hint="send the coordinator the request that is in the folder identity",
        )
