"""A hospital's link in a process of its own, for measuring: says its peak memory after each reply.

Arguments: folder with `site.key`, `chain.pem`, `root.pem`, `roster.json`; port of the server.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sys
from pathlib import Path

from fedward.client.link.assignments import Assignment
from fedward.client.link.connection import Endpoint
from fedward.client.link.link import Link
from fedward.client.link.settings import LinkSettings
from fedward.common.identity import Identity, PrivateKey, read_roster


def peak_kb() -> int:
    """Of this process alone: unlike `ru_maxrss`, not of what it was forked from."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


class Echo:
    def __init__(self, outbox: Path) -> None:
        self._outbox = outbox

    async def decline(self, assignment: Assignment) -> Path | None:
        return None

    async def do(self, assignment: Assignment) -> Path:
        reply = self._outbox / assignment.key
        await asyncio.to_thread(shutil.copyfile, assignment.body, reply)
        return reply

    def closed(self, key: str) -> None:
        pass

    def receipt(self, key: str, evidence: bytes) -> None:
        sys.stdout.write(f"{peak_kb()}\n")
        sys.stdout.flush()

    def roster(self, data: bytes) -> None:
        pass

    def studies_changed(self) -> None:
        pass


def main(folder: Path, port: int) -> None:
    identity = Identity.load(
        PrivateKey.load(folder / "site.key"), folder / "chain.pem", folder / "root.pem"
    )
    roster = read_roster((folder / "roster.json").read_bytes(), identity.root_pem)
    (folder / "outbox").mkdir()
    link = Link(
        LinkSettings(Endpoint("127.0.0.1", port), folder / "inbox"),
        identity,
        roster,
        Echo(folder / "outbox"),
        random=random.random,
        install=lambda _chain: None,
    )
    for heavy in ("torch", "flwr"):
        if heavy in sys.modules:
            raise SystemExit(f"the link loads {heavy}")
    asyncio.run(link.run())


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
