"""Looking at the way to the server: its name, its port, and who answers there.

Everything is done as gRPC does it, but with Python's own sockets, so that each step can fail with a
reason of its own.
"""

from __future__ import annotations

import errno
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cryptography import x509

from fedward.common.errors import IdentityError, LinkError
from fedward.common.identity.certificates import Certificate

_HTTP2 = "h2"
_EXPIRED = (9, 10)
"""OpenSSL's codes: not yet valid, has expired."""
_OTHER_NAME = (62, 64)
_ALERTS_ABOUT_US = ("CERTIFICATE", "UNKNOWN_CA", "HANDSHAKE_FAILURE", "ACCESS_DENIED")


def resolve(host: str, port: int) -> str:
    """Which addresses a host name has.

    Raises:
        LinkError: it has none.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise LinkError(
            f"the name {host} has no address",
            hint="check it with the coordinator, and this machine's DNS",
        ) from error
    return f"{host} is {', '.join(sorted({str(address[4][0]) for address in found}))}"


def connect(host: str, port: int, timeout_s: float) -> str:
    """Whether a port can be reached.

    Raises:
        LinkError: it cannot.
    """
    with _connected(host, port, timeout_s):
        return f"{host}:{port} answers"


def handshake(
    host: str,
    port: int,
    name: str,
    *,
    certificate: Path,
    key: Path,
    passphrase: str | None,
    root_pem: bytes,
    timeout_s: float,
) -> Certificate:
    """Greet with mutual TLS 1.3, and return the certificate of who answers.

    Args:
        host: to connect to.
        port: to connect to.
        name: that the server's certificate must be for.
        certificate: file of ours, followed by the issuer's.
        key: file of our private key.
        passphrase: of the key.
        root_pem: that the server's certificate must come from.
        timeout_s: for every step.

    Raises:
        IdentityError: one side does not accept the other.
        LinkError: what answers does not speak the link's language.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols([_HTTP2])
    context.load_verify_locations(cadata=root_pem.decode())
    try:
        context.load_cert_chain(certificate, key, password=lambda: passphrase or "")
    except (OSError, ValueError) as error:
        raise IdentityError(
            "this machine's key and certificate cannot be used together",
            hint="install the certificate again",
        ) from error
    with (
        _connected(host, port, timeout_s) as plain,
        _explained(),
        context.wrap_socket(plain, server_hostname=name) as talk,
    ):
        _check_welcome(talk)
        shown = talk.getpeercert(binary_form=True) or b""
    return Certificate.of(x509.load_der_x509_certificate(shown))


def free_port(address: str, port: int) -> str:
    """Whether a port can be listened on.

    Raises:
        LinkError: it cannot.
    """
    if port == 0:
        return "any free port"
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.create_server((address, port), family=family):
            return f"{port} is free"
    except OSError as error:
        taken = error.errno == errno.EADDRINUSE
        raise LinkError(
            f"port {port} is in use" if taken else f"port {port} cannot be listened on",
            hint="stop what listens there, or choose another port"
            if taken
            else "choose a port above 1023 and an address of this machine",
        ) from error


def _connected(host: str, port: int, timeout_s: float) -> socket.socket:
    try:
        return socket.create_connection((host, port), timeout=timeout_s)
    except TimeoutError as error:
        raise LinkError(
            f"{host}:{port} does not answer",
            hint=f"let the firewall pass outgoing connections to port {port}",
        ) from error
    except OSError as error:
        refused = error.errno == errno.ECONNREFUSED
        raise LinkError(
            f"nothing listens at {host}:{port}" if refused else f"{host}:{port} is out of reach",
            hint="check host and port with the coordinator, and whether the server runs"
            if refused
            else "check this machine's network and its route",
        ) from error


def _check_welcome(talk: ssl.SSLSocket) -> None:
    """Wait for the server's first word: in TLS 1.3, only that shows that it took our certificate.

    Raises:
        LinkError: it has none, or is no server of the link.
    """
    if talk.selected_alpn_protocol() != _HTTP2 or not talk.recv(1):
        raise LinkError(
            "what answers is no fedward server", hint="check host and port with the coordinator"
        )


@contextmanager
def _explained() -> Iterator[None]:
    """Turn what TLS raises into errors of fedward."""
    try:
        yield
    except ssl.SSLCertVerificationError as error:
        raise _about_server(error.verify_code) from error
    except (ssl.SSLEOFError, ssl.SSLZeroReturnError) as error:
        raise _broken() from error
    except ssl.SSLError as error:
        raise _about_us(error.reason or "") from error
    except OSError as error:
        raise _broken() from error


def _broken() -> LinkError:
    return LinkError(
        "the connection broke while the two sides greeted each other",
        hint="look for a firewall that cuts it, and check that the server runs",
    )


def _about_server(code: int) -> IdentityError:
    if code in _EXPIRED:
        return IdentityError(
            "the server's certificate is not valid at this time",
            hint="check this machine's clock, then tell the coordinator",
        )
    if code in _OTHER_NAME:
        return IdentityError(
            "the server's certificate is for another name",
            hint="set host, or name, in [server] of client.toml to what the coordinator says",
        )
    return IdentityError(
        "who answers shows a certificate that is not of this consortium",
        hint="if a firewall opens TLS connections here, exempt this one; else ask the coordinator",
    )


def _about_us(reason: str) -> IdentityError | LinkError:
    if any(word in reason for word in _ALERTS_ABOUT_US):
        return IdentityError(
            "the server does not accept this machine's certificate",
            hint="check its dates above, and ask the coordinator whether it was revoked",
        )
    return LinkError(
        "what answers does not speak TLS 1.3", hint="check host and port with the coordinator"
    )
