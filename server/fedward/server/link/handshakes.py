"""Refusals that gRPC makes before anybody calls: no certificate, expired, foreign, old TLS, plain.

gRPC says so in a line on the standard error stream of its own, and nowhere else. While
`listening` lasts, this process's standard error goes through a pipe: such lines become refusals,
everything else goes on to where it was going. Only for a process's entry point.
"""

from __future__ import annotations

import fcntl
import os
import re
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress

from fedward.common.errors import IdentityError
from fedward.server.link.refusals import Refusals

_STDERR = 2
_SET_PIPE_SIZE = getattr(fcntl, "F_SETPIPE_SZ", 1031)
_PIPE_SIZE = 1 << 20
_FAILED = re.compile(rb"Handshake failed with error \S+ error:[0-9a-f]+:[^:]*:[^:]*:(\w+): ?(.*)$")
_VERIFY = "CERTIFICATE_VERIFY_FAILED"
_REASONS: Mapping[str, str] = {
    "PEER_DID_NOT_RETURN_A_CERTIFICATE": "the peer shows no certificate",
    "NO_SHARED_CIPHER": "the peer does not speak TLS 1.3",
    "UNSUPPORTED_PROTOCOL": "the peer does not speak TLS 1.3",
    "WRONG_VERSION_NUMBER": "the peer does not speak TLS",
    "HTTP_REQUEST": "the peer does not speak TLS",
}


def reason_of(line: bytes) -> str | None:
    """What a line of gRPC's log says about a handshake that failed; None if it is about another.

    >>> reason_of(b"x Handshake failed with error SSL_ERROR_SSL: error:1000007d:SSL routines:"
    ...           b"OPENSSL_internal:CERTIFICATE_VERIFY_FAILED: certificate has expired")
    'the certificate of the peer is refused: certificate has expired'
    """
    found = _FAILED.search(line.rstrip())
    if found is None:
        return None
    name, detail = found[1].decode(), found[2].decode(errors="replace")[:100]
    if name == _VERIFY:
        return f"the certificate of the peer is refused: {detail}"
    return _REASONS.get(name, f"the TLS handshake failed: {name.lower().replace('_', ' ')}")


@contextmanager
def listening(refusals: Refusals) -> Iterator[None]:
    """Note handshakes that fail, until the end of the block."""
    sys.stderr.flush()
    before = os.dup(_STDERR)
    source, sink = os.pipe()
    with suppress(OSError):  # a larger pipe is a comfort, not a need
        fcntl.fcntl(sink, _SET_PIPE_SIZE, _PIPE_SIZE)
    os.dup2(sink, _STDERR)
    os.close(sink)
    reader = threading.Thread(target=_forward, args=(source, before, refusals), daemon=True)
    reader.start()
    try:
        yield
    finally:
        sys.stderr.flush()
        os.dup2(before, _STDERR)  # closes the pipe's last writing end: the reader comes to its end
        reader.join()
        os.close(before)


def _forward(source: int, target: int, refusals: Refusals) -> None:
    with open(source, "rb") as lines:
        for line in lines:
            reason = reason_of(line)
            if reason is None:
                with suppress(OSError):
                    os.write(target, line)
            else:
                refusals.note(reason, peer="unknown", name="", error=IdentityError.__name__)
