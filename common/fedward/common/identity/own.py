"""What a machine of a consortium shows and signs with: its own key, its certificate, the root."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Self

from fedward.common.errors import IdentityError
from fedward.common.files import read_bytes
from fedward.common.identity.certificates import (
    Certificate,
    check_chain,
    read_certificate,
    read_certificates,
)
from fedward.common.identity.keys import PrivateKey

_HINT = "install what the coordinator sent"


@dataclass(frozen=True)
class Identity:
    """One machine's identity; made by `load`, so key, certificate and root belong together.

    Attributes:
        key: private.
        certificate: for that key.
        issuer: that signed the certificate.
        root: pinned at enrolment.
    """

    key: PrivateKey
    certificate: Certificate
    issuer: Certificate
    root: Certificate

    @classmethod
    def load(
        cls, key: PrivateKey, chain_path: Path, root_path: Path, *, now: datetime | None = None
    ) -> Self:
        """Read certificates for a key.

        Args:
            key: ours.
            chain_path: file with our certificate and the issuer's.
            root_path: file with the root's certificate.
            now: check the chain as of then; by default, its dates are not checked.

        Raises:
            IdentityError: a file is missing, or something does not belong together.
        """
        chain = read_certificates(read_bytes(chain_path, error=IdentityError, hint=_HINT))
        root = read_certificate(read_bytes(root_path, error=IdentityError, hint=_HINT))
        if len(chain) != 2 or chain[0].public_key != key.public:
            raise IdentityError(
                f"{chain_path.name} is not a certificate for this machine's key", hint=_HINT
            )
        check_chain(*chain, root, now=now or chain[0].not_before)
        return cls(key, chain[0], chain[1], root)

    @property
    def name(self) -> str:
        """In the roster."""
        return self.certificate.name

    @property
    def chain_pem(self) -> bytes:
        """Our certificate and the issuer's, for TLS."""
        return (self.certificate.pem + self.issuer.pem).encode()

    @property
    def root_pem(self) -> bytes:
        """What peers' certificates are checked against, for TLS."""
        return self.root.pem.encode()
