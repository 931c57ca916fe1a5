"""A request for a certificate: made where the key is, carried to the coordinator by hand or mail.

It proves that whoever made it holds the key. Whether that is the hospital, only the fingerprint
tells, read out over a way that the request did not take.

    >>> key = PrivateKey.generate()
    >>> request = read_request(make_request(key, "north"))
    >>> request.name, request.public_key == key.public
    ('north', True)
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fedward.common.errors import IdentityError
from fedward.common.identity.keys import PrivateKey, PublicKey
from fedward.common.identity.names import check_name
from fedward.common.identity.unreadable import UNREADABLE

_AGAIN = "ask the hospital to send the file again"


@dataclass(frozen=True)
class Request:
    """What a request says; everything else in it is ignored.

    Attributes:
        name: who asks.
        public_key: theirs; they proved that they hold the private one.
    """

    name: str
    public_key: PublicKey


def make_request(key: PrivateKey, name: str) -> bytes:
    """A PKCS#10 request, PEM.

    Raises:
        IdentityError: the name is not allowed.
    """
    check_name(name)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    return builder.sign(key.raw, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def read_request(pem: bytes) -> Request:
    """Read and check a request.

    Raises:
        IdentityError: it cannot be read, was changed, or asks for what is not given.
    """
    try:
        request = x509.load_pem_x509_csr(pem)
        key = request.public_key()
        (name,) = request.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        valid = request.is_signature_valid
    except UNREADABLE as error:
        raise IdentityError("the request cannot be read", hint=_AGAIN) from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not valid:
        raise IdentityError("the request is not signed by its own P-256 key", hint=_AGAIN)
    check_name(str(name.value))
    return Request(str(name.value), PublicKey(key))
