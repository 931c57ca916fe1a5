"""A service in a process of its own, for tests that measure it or kill it.

    python -m tests.server.link_process FOLDER

Reads what `save` wrote, prints its port, and serves until its standard input is closed.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.server.link_client import SERVER, Consortium, FakeDesk

from fedward.common.identity import PrivateKey, Roster
from fedward.server.link.grid import GrpcGrid  # loads Flower, as the real service does
from fedward.server.link.handshakes import listening
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.presence import Presence
from fedward.server.link.refusals import Facts
from fedward.server.link.serve import LinkServer, LinkSettings

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


def save(consortium: Consortium, folder: Path, **settings: Any) -> None:
    """Write what the process needs to be this consortium's server."""
    consortium.keys[SERVER].save(folder / "server.key")
    facts = {
        "chain": consortium.chain(SERVER, "coordinator"),
        "root": consortium.root.pem,
        "roster": consortium.roster.model_dump_json(),
        "settings": settings,
    }
    (folder / "facts.json").write_text(json.dumps(facts))


@dataclass
class Process:
    """The running process."""

    pid: int
    port: int

    @property
    def cpu_s(self) -> float:
        """Processor time it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_S

    @property
    def memory_mb(self) -> float:
        """Memory that it has now."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE / 1e6

    @property
    def files(self) -> int:
        """Files and connections that it has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))  # noqa: PTH208  (thousands)


@contextmanager
def process(consortium: Consortium, folder: Path, **settings: Any) -> Iterator[Process]:
    """A service in a process of its own, until the end of the block."""
    save(consortium, folder, **settings)
    command = [sys.executable, "-m", "tests.server.link_process", str(folder)]
    child = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        yield Process(child.pid, int(child.stdout.readline()))
    finally:
        child.stdin.close()
        try:
            child.wait(30)
        finally:
            child.kill()
            child.wait()
            child.stdout.close()


async def serve(folder: Path) -> None:
    """Serve until standard input is closed."""
    facts = json.loads((folder / "facts.json").read_text())
    settings = LinkSettings(
        name=SERVER,
        key=PrivateKey.load(folder / "server.key"),
        certificate_pem=facts["chain"],
        root_pem=facts["root"],
        roster=Roster.model_validate_json(facts["roster"]),
        grace_s=0.2,
        **facts["settings"],
    )
    mailbox = Mailbox(lambda run: folder / run)

    def refused(facts: Facts) -> None:
        with (folder / "refusals").open("a") as file:
            file.write(json.dumps(facts) + "\n")

    server = LinkServer(
        settings, mailbox=mailbox, presence=Presence(), desk=FakeDesk(), on_refusal=refused
    )
    with listening(server.refusals):
        print(await server.start(), flush=True)  # noqa: T201
        await asyncio.to_thread(sys.stdin.read)
        await server.stop()


if __name__ == "__main__":
    assert GrpcGrid
    asyncio.run(serve(Path(sys.argv[1])))
