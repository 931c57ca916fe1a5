"""What travels between hospital and server: bodies, signed messages, sessions, gRPC's settings.

`body` is the content of a large message as a file, `spool` receives one piece by piece, `message`
signs and verifies, `session` counts, `transport` sets gRPC up. `link.proto` is the format; the
modules `link_pb2*` are generated from it.

gRPC has no option for the oldest TLS version, but reads, when it is loaded, which ciphers of TLS
1.2 it may use. The one named here cannot be used with the P-256 certificates of fedward, so nothing
older than TLS 1.3 comes about, whose ciphers that list does not choose. Import this package before
anything that loads gRPC, as Flower does; `transport.is_modern` is the second door.
"""

from __future__ import annotations

import os
from typing import Final

_TLS_1_2_CIPHERS: Final = "ECDHE-RSA-AES128-GCM-SHA256"

os.environ["GRPC_SSL_CIPHER_SUITES"] = _TLS_1_2_CIPHERS
