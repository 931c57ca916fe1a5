"""Keys under a passphrase: PKCS#8 files that OpenSSL reads, with a derivation that costs to guess.

`cryptography` writes such files with 2048 rounds of PBKDF2 and offers no other number, so they are
written here: EncryptedPrivateKeyInfo (RFC 5958, section 3) by PBES2 (RFC 8018, sections 6.2 and
A.4) with PBKDF2-HMAC-SHA256 and AES-256-CBC. It reads them, as it reads older ones.

    >>> from cryptography.hazmat.primitives.asymmetric import ed25519
    >>> key = ed25519.Ed25519PrivateKey.generate()
    >>> sealed = seal(key, "a long sentence, no?")
    >>> rounds_of(sealed)
    600000
    >>> unseal(sealed, "a long sentence, no?").private_bytes_raw() == key.private_bytes_raw()
    True
"""

from __future__ import annotations

import base64
import secrets
import textwrap
from functools import lru_cache

from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.kdf.pbkdf2 import PBKDF2HMAC

ROUNDS = 600_000
"""What OWASP asks of PBKDF2 with HMAC-SHA256 (Password Storage Cheat Sheet, 2023)."""

_SALT_BYTES = 16
_BLOCK_BYTES = 16
_KEY_BYTES = 32
_SEQUENCE, _INTEGER, _OCTETS, _OID, _NULL = 0x30, 0x02, 0x04, 0x06, 0x05
_PBES2 = bytes.fromhex("2a864886f70d01050d")
_PBKDF2 = bytes.fromhex("2a864886f70d01050c")
_HMAC_SHA256 = bytes.fromhex("2a864886f70d0209")
_AES_256_CBC = bytes.fromhex("60864801650304012a")
_LABEL = "ENCRYPTED PRIVATE KEY"
_MOST_OPEN = 16


def is_sealed(data: bytes) -> bool:
    """Whether the content of a key file needs a passphrase."""
    return data.startswith(b"-----BEGIN") and b"ENCRYPTED" in data


def seal(key: PrivateKeyTypes, passphrase: str) -> bytes:
    """A key as the content of a file that needs this passphrase. Takes half a second."""
    plain = key.private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    salt, start = secrets.token_bytes(_SALT_BYTES), secrets.token_bytes(_BLOCK_BYTES)
    kdf = PBKDF2HMAC(hashes.SHA256(), length=_KEY_BYTES, salt=salt, iterations=ROUNDS)
    cipher = Cipher(algorithms.AES256(kdf.derive(passphrase.encode())), modes.CBC(start))
    padder, encryptor = padding.PKCS7(8 * _BLOCK_BYTES).padder(), cipher.encryptor()
    padded = padder.update(plain) + padder.finalize()
    prf = _der(_SEQUENCE, _der(_OID, _HMAC_SHA256), _der(_NULL))
    derivation = _der(_SEQUENCE, _der(_OCTETS, salt), _integer(ROUNDS), prf)
    scheme = _der(
        _SEQUENCE,
        _der(_SEQUENCE, _der(_OID, _PBKDF2), derivation),
        _der(_SEQUENCE, _der(_OID, _AES_256_CBC), _der(_OCTETS, start)),
    )
    whole = _der(
        _SEQUENCE,
        _der(_SEQUENCE, _der(_OID, _PBES2), scheme),
        _der(_OCTETS, encryptor.update(padded) + encryptor.finalize()),
    )
    text = "\n".join(textwrap.wrap(base64.b64encode(whole).decode(), 64))
    return f"-----BEGIN {_LABEL}-----\n{text}\n-----END {_LABEL}-----\n".encode()


@lru_cache(maxsize=_MOST_OPEN)
def unseal(data: bytes, passphrase: str) -> PrivateKeyTypes:
    """The key in such a file; the same file is opened once in a process, because that costs.

    Raises:
        ValueError: the passphrase is wrong, or there is no key in it.
        UnsupportedAlgorithm: it is sealed in a way that is not known.
    """
    return serialization.load_pem_private_key(data, passphrase.encode())


def rounds_of(data: bytes) -> int:
    """Rounds of PBKDF2 that a guess at the passphrase of a file costs; 0 if it cannot be told."""
    try:
        lines = data.decode("ascii").split("\n")
        der = base64.b64decode("".join(line for line in lines if line[:1] != "-"))
        [whole] = _items(der)
        [algorithm, _] = _items(whole)
        [scheme, parameters] = _items(algorithm)
        [derivation, _] = _items(parameters)
        [function, salted] = _items(derivation)
        rounds = _items(salted)[1]
    except (ValueError, IndexError):
        return 0
    return int.from_bytes(rounds) if (scheme, function) == (_PBES2, _PBKDF2) else 0


# --- DER, as much of it as that takes (X.690, section 8) -----------------------------------------


def _der(tag: int, *contents: bytes) -> bytes:
    content = b"".join(contents)
    size = len(content).to_bytes((len(content).bit_length() + 7) // 8)
    long = bytes([0x80 | len(size)]) if len(content) >= 0x80 else b""
    return bytes([tag]) + long + (size or b"\0") + content


def _integer(value: int) -> bytes:
    return _der(_INTEGER, value.to_bytes(value.bit_length() // 8 + 1))


def _items(der: bytes) -> list[bytes]:
    """Contents of the values that stand one after the other.

    Raises:
        ValueError: one is cut off.
        IndexError: so is one's length.
    """
    found, at = [], 0
    while at < len(der):
        size, at = der[at + 1], at + 2
        if size & 0x80:
            more = size & 0x7F
            size, at = int.from_bytes(der[at : at + more]), at + more
        if at + size > len(der):
            raise ValueError("a value is cut off")
        found.append(der[at : at + size])
        at += size
    return found
