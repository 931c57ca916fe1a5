"""A channel to the server: mutual TLS 1.3, outbound, no proxy that nobody asked for.

Errors of gRPC become ours here, in constant phrases: what the library says may quote anything.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fedward.common.wire import transport  # before gRPC, see `common.wire`

import grpc  # isort: skip

from fedward.common.errors import (
    FedwardError,
    IdentityError,
    LinkError,
    StateError,
    error_for_exit_code,
)
from fedward.common.identity import Identity
from fedward.common.wire.link_pb2 import Part, Range, Signed
from fedward.common.wire.link_pb2_grpc import LinkStub
from fedward.common.wire.pieces import read_chunk
from fedward.common.wire.session import Session
from fedward.common.wire.transport import SERVICE

_LONGEST_REASON = 300


class ExpelledError(IdentityError):
    """The server says that this site may not take part: trying again does not help."""


class BusyError(LinkError):
    """The server takes no more of this site at the moment: waiting helps."""


@dataclass(frozen=True)
class Endpoint:
    """Where the server is.

    Attributes:
        host: name or address; must stand in the server's certificate.
        port: of the service.
        proxy: an HTTP proxy to go through, as `http://host:port`; variables of the environment
            that name one are ignored.
    """

    host: str
    port: int
    proxy: str | None = None

    @property
    def target(self) -> str:
        """As gRPC writes it."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, eq=False)
class Line:
    """A connection on which both sides have greeted.

    Attributes:
        stub: makes calls.
        session: counts, signs and checks messages.
        patience_s: how long the other side may take for its next word.
    """

    stub: Any
    session: Session
    patience_s: float


def open_channel(endpoint: Endpoint, identity: Identity) -> grpc.aio.Channel:
    """A channel that has not connected yet; close it when it is not needed any more."""
    tls = grpc.ssl_channel_credentials(
        root_certificates=identity.root_pem,
        private_key=identity.key.pem,
        certificate_chain=identity.chain_pem,
    )
    more: dict[str, Any] = {"grpc__enable_http_proxy": int(endpoint.proxy is not None)}
    if endpoint.proxy is not None:
        more["grpc__http_proxy"] = endpoint.proxy
    options = transport.channel_options(**more)
    return grpc.aio.secure_channel(endpoint.target, tls, options=options)


def stub_of(channel: grpc.aio.Channel) -> Any:
    """The calls of the link's service."""
    return _Stub(channel)


class _Stub(LinkStub):
    """The generated stub, but for the calls that carry bodies: their pieces are not copied."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        super().__init__(channel)  # type: ignore[no-untyped-call]
        self.Fetch = channel.unary_stream(
            f"/{SERVICE}/Fetch",
            request_serializer=Range.SerializeToString,
            response_deserializer=read_chunk,
        )
        self.Send = channel.stream_unary(
            f"/{SERVICE}/Send",
            request_serializer=_written,
            response_deserializer=Signed.FromString,
        )


def _written(part: Part | bytes) -> bytes:
    return part if isinstance(part, bytes) else part.SerializeToString()


@contextmanager
def translated() -> Iterator[None]:
    """Turn what gRPC raises into errors of fedward.

    Raises:
        LinkError: the connection broke, or the other side does not answer.
        IdentityError: one side does not accept the other.
    """
    try:
        yield
    except grpc.aio.AioRpcError as error:
        raise explained(error) from None
    except (grpc.aio.UsageError, asyncio.InvalidStateError, TimeoutError) as error:
        raise _broken() from error
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        # gRPC cancels the calls of a channel that is closed; nobody has cancelled us.
        raise _broken() from None


def explained(error: grpc.aio.AioRpcError) -> FedwardError:
    """What a failed call means for the person who reads the log."""
    details = (error.details() or "").lower()
    match error.code():
        case grpc.StatusCode.UNAVAILABLE if "certificate" in details and "verif" in details:
            return IdentityError(
                "the server shows a certificate that is not for its name, has expired or is not of "
                "this consortium",
                hint="check server address and this machine's clock, then ask the coordinator",
            )
        case grpc.StatusCode.UNAVAILABLE:
            return LinkError(
                "the server cannot be reached",
                hint="check the address, the network and that the server runs",
            )
        case grpc.StatusCode.PERMISSION_DENIED:
            return ExpelledError(
                f"the server refuses this site ({_plain(error.details() or 'without a reason')})",
                hint="ask the coordinator",
            )
        case grpc.StatusCode.FAILED_PRECONDITION:
            return LinkError("the server does not know this session", hint="it is greeted again")
        case grpc.StatusCode.NOT_FOUND:
            return StateError("the server does not wait for this any more", hint="nothing")
        case grpc.StatusCode.INVALID_ARGUMENT:
            return LinkError(
                f"the server does not accept a message ({_plain(error.details() or '')})",
                hint="install the same version of fedward on both sides",
            )
        case grpc.StatusCode.DEADLINE_EXCEEDED:
            return LinkError("the server does not answer", hint="wait; it is tried again")
        case grpc.StatusCode.RESOURCE_EXHAUSTED:
            return BusyError("the server takes no more at the moment", hint="it is tried again")
        case grpc.StatusCode.UNIMPLEMENTED:
            return LinkError(
                "what answers at this address is not the link of fedward, or another version",
                hint="check the address; install the same version of fedward on both sides",
            )
    return _broken()


def refused(body: dict[str, Any]) -> FedwardError:
    """The error that a REFUSAL names, in the server's words, made fit for a log."""
    code = body.get("code")
    kind = error_for_exit_code(code) if isinstance(code, int) else None
    problem, hint = body.get("problem"), body.get("hint")
    said = _plain(problem) if isinstance(problem, str) and problem else "without a reason"
    todo = _plain(hint) if isinstance(hint, str) and hint else "ask the coordinator"
    if kind is IdentityError:
        kind = ExpelledError
    return (kind or LinkError)(f"the server refuses ({said})", hint=todo)


def _plain(text: str) -> str:
    """The other side's words without anything that could forge a line of a log."""
    return "".join(c if c.isprintable() else " " for c in text[:_LONGEST_REASON])


def _broken() -> LinkError:
    return LinkError("the connection to the server broke", hint="it is made again")
