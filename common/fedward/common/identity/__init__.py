"""Who somebody is: keys, certificates, and the signed roster of the consortium's members.

`keys` signs and verifies, `requests` asks for a certificate, `issuing` makes one, `certificates`
reads and checks one, `roster` says who is a member, `enrolment` is the file a hospital installs.
"""

from fedward.common.identity.certificates import (
    ROLES,
    Certificate,
    Role,
    check_chain,
    check_issuer,
    read_certificate,
    read_certificates,
)
from fedward.common.identity.issuing import (
    LONGEST_LEAF_DAYS,
    Authority,
    issue,
    make_issuer,
    make_root,
)
from fedward.common.identity.key_files import find_passphrase
from fedward.common.identity.keys import PrivateKey, PublicKey, same_fingerprint, spoken
from fedward.common.identity.own import Identity
from fedward.common.identity.requests import Request, make_request, read_request
from fedward.common.identity.roster import Member, Roster, read_roster, sign_roster
from fedward.common.identity.roster_file import RosterFile

__all__ = [
    "LONGEST_LEAF_DAYS",
    "ROLES",
    "Authority",
    "Certificate",
    "Identity",
    "Member",
    "PrivateKey",
    "PublicKey",
    "Request",
    "Role",
    "Roster",
    "RosterFile",
    "check_chain",
    "check_issuer",
    "find_passphrase",
    "issue",
    "make_issuer",
    "make_request",
    "make_root",
    "read_certificate",
    "read_certificates",
    "read_request",
    "read_roster",
    "same_fingerprint",
    "sign_roster",
    "spoken",
]
