"""The least that moving a model costs: grpcio with mutual TLS, and SHA-256 at both ends.

What the link is compared with. An asyncio server in a process of its own sends the same bytes to
every site and takes as many back, in pieces of 1 MB; each site is a process. No disk, no
signatures, no registry, no protobuf, and nothing of fedward.

    python benchmarks/link_bare.py serve FOLDER SIZE SITES      prints its port
    python benchmarks/link_bare.py attend FOLDER SIZE PORT TURNS
"""

from __future__ import annotations

import asyncio
import hashlib
import ipaddress
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

__all__ = ["seconds"]

PIECE = 1 << 20
TURNS = 5
LIMIT_S = 300.0
OPTIONS = (("grpc.max_receive_message_length", 4 * PIECE),)


def seconds(sites: int, size: int) -> float:
    """Median seconds in which `size` bytes go down to and come back from each of `sites` sites."""
    with tempfile.TemporaryDirectory() as place, ExitStack() as stack:
        _certify(Path(place))
        server = stack.enter_context(_Process("serve", place, size, sites))
        port = int(server.line())
        others = [
            stack.enter_context(_Process("attend", place, size, port, TURNS)) for _ in range(sites)
        ]
        for site in others:
            site.wait(LIMIT_S)
        output, _ = server.communicate("\n", LIMIT_S)
    return median(float(line) for line in output.split()[1:])  # the first finds everything cold


class _Process(subprocess.Popen[str]):
    """One end, as a process that does not outlive its block."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, __file__, *map(str, arguments)]
        super().__init__(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def line(self) -> str:
        """What it prints next."""
        return self.stdout.readline() if self.stdout else ""

    def __exit__(self, *exception: Any) -> None:
        self.kill()
        super().__exit__(*exception)


# --- one end --------------------------------------------------------------------------------------


def _pieces(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), PIECE):
        yield data[start : start + PIECE]


class _Turns:
    """Lets all sites begin a turn at once, and measures it."""

    def __init__(self, sites: int) -> None:
        self._barrier = asyncio.Barrier(sites)
        self._begun = 0.0
        self._done = 0
        self._sites = sites

    async def begin(self) -> None:
        """All are there."""
        if await self._barrier.wait() == 0:
            self._begun = perf_counter()

    def end(self) -> None:
        """One is through."""
        self._done += 1
        if self._done % self._sites == 0:
            print(perf_counter() - self._begun, flush=True)


async def _serve(folder: Path, size: int, sites: int) -> None:
    data, turns = os.urandom(size), _Turns(sites)

    async def down(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        """All bytes, to a site, when all sites are there."""
        await turns.begin()
        hashlib.sha256(data).digest()
        for piece in _pieces(data):
            yield piece

    async def up(requests: AsyncIterator[bytes], _context: object) -> bytes:
        """What a site sends back; gives its hash."""
        digest = hashlib.sha256()
        async for piece in requests:
            digest.update(piece)
        turns.end()
        return digest.digest()

    calls: dict[str, Any] = {
        "Down": grpc.unary_stream_rpc_method_handler(down),
        "Up": grpc.stream_unary_rpc_method_handler(up),
    }
    server = grpc.aio.server(options=OPTIONS)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("Bare", calls),))
    key, certificate, root = (
        (folder / name).read_bytes() for name in ("own.key", "own.crt", "root.crt")
    )
    credentials = grpc.ssl_server_credentials([(key, certificate)], root, require_client_auth=True)
    print(server.add_secure_port("127.0.0.1:0", credentials), flush=True)
    await server.start()
    await asyncio.to_thread(sys.stdin.readline)
    await server.stop(None)


async def _attend(folder: Path, size: int, port: int, turns: int) -> None:
    key, certificate, root = (
        (folder / name).read_bytes() for name in ("own.key", "own.crt", "root.crt")
    )
    credentials = grpc.ssl_channel_credentials(root, key, certificate)
    target = f"127.0.0.1:{port}"
    async with grpc.aio.secure_channel(target, credentials, options=OPTIONS) as channel:
        down: Any = channel.unary_stream("/Bare/Down")
        up: Any = channel.stream_unary("/Bare/Up")
        for _ in range(turns + 1):
            digest, held = hashlib.sha256(), []
            async for piece in down(b""):
                digest.update(piece)
                held.append(piece)
            data = b"".join(held)
            if len(data) != size:
                raise ConnectionError("ended early")
            if await up(_pieces(data)) != digest.digest():
                raise ConnectionError("other bytes")


def _certify(folder: Path) -> None:
    """A root, and one certificate that both ends use."""
    now = datetime.now(UTC)
    keys = [ec.generate_private_key(ec.SECP256R1()) for _ in range(2)]
    issuer = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "root")])
    for key, name, is_root in zip(keys, ("root", "own"), (True, False), strict=True):
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(issuer)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=is_root, path_length=None), critical=True)
        )
        if not is_root:
            address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
            names = x509.SubjectAlternativeName([address])
            builder = builder.add_extension(names, critical=False)
        certificate = builder.sign(keys[0], hashes.SHA256())
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pem = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        (folder / f"{name}.key").write_bytes(pem)


if __name__ == "__main__":
    _, what, place, size, *numbers = sys.argv
    if what == "serve":
        asyncio.run(_serve(Path(place), int(size), *map(int, numbers)))
    else:
        asyncio.run(_attend(Path(place), int(size), *map(int, numbers)))
