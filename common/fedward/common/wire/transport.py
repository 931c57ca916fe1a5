"""How gRPC is set up on both sides of the link.

TLS 1.3 only: importing `fedward.common.wire` switches older versions off where gRPC is loaded after
it, and `is_modern` is the second door, for every call.

Messages are never compressed by the transport: bodies that shrink are packed by `encoding`, which
stops at the announced size.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from fedward.common.wire.kinds import LARGEST_MESSAGE

SERVICE: Final = "fedward.link.v1.Link"
"""As `link.proto` names it."""
KEEPALIVE_S: Final = 20.0
"""How often an idle connection is pinged: more often than firewalls and NAT forget it."""
PING_TIMEOUT_S: Final = 20.0
"""After how long without an answer to a ping a connection is given up."""
HANDSHAKE_TIMEOUT_S: Final = 10.0
"""How long a connection may take to say who it is."""
MOST_STREAMS: Final = 32
"""Calls at a time on one connection."""
WINDOW: Final = 1 << 20
"""Bytes of a call that may be on their way unread: what a slow reader costs in memory, and 10 MB/s
over 100 ms. Left to itself gRPC measures the network, and allows many times that to everybody."""
_LARGEST_METADATA: Final = 8 << 10

Options = Sequence[tuple[str, Any]]

_BOTH: tuple[tuple[str, Any], ...] = (
    ("grpc.max_receive_message_length", LARGEST_MESSAGE),
    ("grpc.max_send_message_length", LARGEST_MESSAGE),
    ("grpc.max_metadata_size", _LARGEST_METADATA),
    ("grpc.absolute_max_metadata_size", 2 * _LARGEST_METADATA),
    ("grpc.keepalive_time_ms", int(KEEPALIVE_S * 1000)),
    ("grpc.keepalive_timeout_ms", int(PING_TIMEOUT_S * 1000)),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", WINDOW),
    # Bit 0 stands for "as it is": a message compressed by the transport is refused.
    ("grpc.compression_enabled_algorithms_bitset", 1),
)


def server_options(**more: Any) -> Options:
    """Options of the server; `more` are further ones, `__` in their names for a dot."""
    return (
        *_BOTH,
        ("grpc.server_handshake_timeout_ms", int(HANDSHAKE_TIMEOUT_S * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", int(KEEPALIVE_S * 1000 / 2)),
        ("grpc.max_concurrent_streams", MOST_STREAMS),
        # A second service on the same port is a mistake, not a way to share work.
        ("grpc.so_reuseport", 0),
        *_further(more),
    )


def channel_options(**more: Any) -> Options:
    """Options of a client's channel; `more` are further ones, `__` in their names for a dot."""
    return (
        *_BOTH,
        # What is sent again, and when, is the link's decision: gRPC must not repeat calls.
        ("grpc.enable_retries", 0),
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.max_reconnect_backoff_ms", 10_000),
        *_further(more),
    )


def is_modern(auth_context: Mapping[str, Iterable[bytes]]) -> bool:
    """Whether a peer speaks TLS 1.3, by the `auth_context()` of a call."""
    return list(auth_context.get("ssl_tls_version", ())) == [b"TLSv1.3"]


def _further(more: Mapping[str, Any]) -> Options:
    return tuple((name.replace("__", "."), value) for name, value in more.items())
