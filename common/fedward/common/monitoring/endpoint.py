"""A very small HTTP server for `/metrics` and `/healthz`, and for nothing else.

It answers GET, closes every connection after one answer, and gives nobody more than a few seconds,
kilobytes or connections. On a loopback address it also wants to be called by such a name, so that
no web page in a browser on this machine can read it through a name of its own.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import logging
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from fedward.common.errors import StateError
from fedward.common.monitoring.health import Health

_LARGEST_REQUEST = 8 << 10
_PATIENCE_S = 5.0
_MOST_CONNECTIONS = 16
_log = logging.getLogger(__name__)

Answer = tuple[HTTPStatus, str, bytes]
"""Status, type of content, content."""


class Endpoint:
    """Serves a registry and a health.

    Args:
        registry: the figures.
        health: the checks.
        host: address to listen on.
        port: port to listen on; 0 lets the system choose.
        patience_s: how long a caller may take to ask, and to read.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        health: Health,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        patience_s: float = _PATIENCE_S,
    ) -> None:
        self._registry = registry
        self._health = health
        self._host = host
        self._port = port
        self._patience_s = patience_s
        self._server: asyncio.Server | None = None
        self._callers: dict[asyncio.StreamWriter, asyncio.Task[None] | None] = {}

    async def start(self) -> int:
        """Listen, and return the port.

        Raises:
            StateError: the address or port cannot be had.
        """
        try:
            self._server = await asyncio.start_server(
                self._serve, self._host, self._port, limit=_LARGEST_REQUEST
            )
        except OSError as error:
            raise StateError(
                f"the monitoring port {self._port} cannot be opened",
                hint="choose another port or address in the settings",
            ) from error
        port: int = self._server.sockets[0].getsockname()[1]
        _log.info("monitoring listens", extra={"facts": {"port": port}})
        return port

    async def stop(self) -> None:
        """Stop listening, and end what is being answered."""
        if self._server is None:
            return
        self._server.close()
        answering = [task for task in self._callers.values() if task is not None]
        for writer in self._callers:
            writer.transport.abort()
        await asyncio.gather(*answering)
        await self._server.wait_closed()
        self._server = None

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._callers) >= _MOST_CONNECTIONS:
            writer.transport.abort()
            return
        self._callers[writer] = asyncio.current_task()
        try:
            # A caller that says too much, nothing, or hangs up, gets no answer.
            with suppress(TimeoutError, OSError, asyncio.IncompleteReadError):
                async with asyncio.timeout(self._patience_s):
                    writer.write(_http(*await self._answer(reader)))
                    await writer.drain()
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
            del self._callers[writer]

    async def _answer(self, reader: asyncio.StreamReader) -> Answer:
        try:
            request = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _plain(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)
        line, _, headers = request.decode("latin-1").partition("\r\n")
        words = line.split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            return _plain(HTTPStatus.BAD_REQUEST)
        if words[0] != "GET":
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED)
        if _is_loopback(self._host) and not _is_loopback(_called(headers)):
            return _plain(HTTPStatus.MISDIRECTED_REQUEST)
        return self._page(words[1].partition("?")[0])

    def _page(self, path: str) -> Answer:
        pages: dict[str, Callable[[], Answer]] = {"/metrics": self._figures, "/healthz": self._well}
        return pages[path]() if path in pages else _plain(HTTPStatus.NOT_FOUND)

    def _figures(self) -> Answer:
        return HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(self._registry)

    def _well(self) -> Answer:
        problems = self._health.problems()
        status = HTTPStatus.SERVICE_UNAVAILABLE if problems else HTTPStatus.OK
        content = {"healthy": not problems, "reasons": problems}
        return status, "application/json", json.dumps(content, ensure_ascii=False).encode()


def _called(headers: str) -> str:
    """The host that a caller asked for, without its port; empty if it asked for none or several."""
    hosts = [
        value.strip()
        for name, _, value in (line.partition(":") for line in headers.split("\r\n"))
        if name.strip().lower() == "host"
    ]
    if len(hosts) != 1:
        return ""
    host, _, port = hosts[0].rpartition(":")
    return (host if port.isdecimal() else hosts[0]).strip("[]")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _plain(status: HTTPStatus) -> Answer:
    return status, "text/plain; charset=utf-8", f"{status.phrase}\n".encode()


def _http(status: HTTPStatus, content_type: str, content: bytes) -> bytes:
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(content)}",
        "Cache-Control: no-store",
        "X-Content-Type-Options: nosniff",
        "Connection: close",
        *(("Allow: GET",) if status == HTTPStatus.METHOD_NOT_ALLOWED else ()),
    )
    return "\r\n".join((*head, "", "")).encode() + content
