"""Private and public keys: made on the machine that uses them, read by nobody else.

All keys are ECDSA on P-256 with SHA-256 (grpcio does not accept Ed25519 certificates). A private
key lives in a file (`key_files`), encrypted if a passphrase was given. A public key is named by its
fingerprint, which people compare over the telephone.

    >>> key = PrivateKey.generate()
    >>> key.public.verify(key.sign(b"a message"), b"a message")
    >>> len(key.public.fingerprint)
    64
    >>> spoken("0123456789abcdef" * 4)[:24]
    '0123 4567 89ab cdef 0123'
"""

from __future__ import annotations

import hashlib
import hmac
from functools import cached_property
from pathlib import Path
from typing import Self

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedward.common.errors import IdentityError
from fedward.common.files import private_folder, write_atomic
from fedward.common.identity.key_files import check_passphrase, open_sealed, read_secret
from fedward.common.identity.pkcs8 import is_sealed, seal

_SCHEME = ec.ECDSA(hashes.SHA256())
_PEM = serialization.Encoding.PEM


class PublicKey:
    """Verifies what the holder of the private key signed; equal if it is the same key."""

    def __init__(self, key: ec.EllipticCurvePublicKey) -> None:
        if not isinstance(key.curve, ec.SECP256R1):
            raise IdentityError("a public key is not on the curve P-256", hint="make a new key")
        self.raw = key
        """As `cryptography` knows it."""

    @classmethod
    def from_pem(cls, pem: str | bytes) -> Self:
        """Read a public key.

        Raises:
            IdentityError: it is no public key on P-256.
        """
        data = pem.encode() if isinstance(pem, str) else pem
        try:
            key = serialization.load_pem_public_key(data)
        except (ValueError, UnsupportedAlgorithm) as error:
            raise IdentityError("a public key cannot be read", hint="ask for it again") from error
        if not isinstance(key, ec.EllipticCurvePublicKey):
            raise IdentityError("a public key is not on the curve P-256", hint="make a new key")
        return cls(key)

    @cached_property
    def pem(self) -> str:
        """SubjectPublicKeyInfo as text."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        return self.raw.public_bytes(_PEM, form).decode()

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the DER SubjectPublicKeyInfo, 64 hexadecimal digits."""
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        der = self.raw.public_bytes(serialization.Encoding.DER, form)
        return hashlib.sha256(der).hexdigest()

    def verify(self, signature: bytes, data: bytes) -> None:
        """Return if `signature` is one over `data` by the holder of this key.

        Raises:
            IdentityError: it is not.
        """
        try:
            self.raw.verify(signature, data, _SCHEME)
        except InvalidSignature as error:
            raise IdentityError(
                "a signature is not by the key that it should be by",
                hint="do not trust what it came with; ask the sender",
            ) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.fingerprint == other.fingerprint

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __repr__(self) -> str:
        return f"PublicKey({self.fingerprint[:16]}…)"


class PrivateKey:
    """Signs. Nothing that prints or logs it shows the key."""

    def __init__(self, key: ec.EllipticCurvePrivateKey) -> None:
        self.raw = key
        """As `cryptography` knows it."""
        self.public = PublicKey(key.public_key())

    @classmethod
    def generate(cls) -> Self:
        """A new key, from the operating system's generator."""
        return cls(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> Self:
        """Read a key file. A passphrase that the file does not need is ignored.

        Raises:
            IdentityError: it is missing, others may read it, the passphrase is wrong or missing, or
                it is no private key on P-256.
        """
        data = read_secret(path)
        if is_sealed(data):
            key = open_sealed(path, data, passphrase)
        else:
            try:
                key = serialization.load_pem_private_key(data, None)
            except (ValueError, TypeError, UnsupportedAlgorithm) as error:
                raise IdentityError(
                    f"no key is in {path.name}", hint="restore the file from a backup"
                ) from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise IdentityError(f"{path.name} is not a key on P-256", hint="make a new key")
        return cls(key)

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """Write the key, for its owner only, and close its folder to others.

        Raises:
            IdentityError: the passphrase is too short.
            OutputError: the disk refuses.
        """
        check_passphrase(passphrase)
        private_folder(path.parent)
        content = self.pem if passphrase is None else seal(self.raw, passphrase)
        write_atomic(path, content, private=True)

    @property
    def pem(self) -> bytes:
        """PKCS#8, not encrypted: for handing to a TLS library."""
        form, encryption = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return self.raw.private_bytes(_PEM, form, encryption)

    def sign(self, data: bytes) -> bytes:
        """A signature over `data`: ECDSA with SHA-256, DER."""
        return self.raw.sign(data, _SCHEME)

    def __repr__(self) -> str:
        return f"PrivateKey({self.public.fingerprint[:16]}…)"


def spoken(fingerprint: str) -> str:
    """A fingerprint in groups of four, to be read out on the telephone."""
    return " ".join(fingerprint[n : n + 4] for n in range(0, len(fingerprint), 4))


def same_fingerprint(given: str, fingerprint: str) -> bool:
    """Whether what a person typed is the whole of a fingerprint, however they grouped it.

    >>> same_fingerprint("AB:CD 01-23", "abcd0123"), same_fingerprint("abcd", "abcd0123")
    (True, False)
    """
    plain = "".join(c for c in given.lower() if c not in " :-\t\r\n")
    return hmac.compare_digest(plain.encode(), fingerprint.encode())
