"""What a round costs over the link when nobody trains: `python benchmarks/link.py`.

A server process (LinkServer, GrpcGrid, the round loop with checks, aggregation and a checkpoint
every round) and a process per site (Link), all with certificates, over mutual TLS on loopback. A
site answers with the weights that it was sent. Printed for each size and number of sites: median
and largest seconds of a round, the peak memory of the server, and how that compares with what the
bare minimum moves: the same bytes down and up over one plain TCP connection per site, hashed once
at each end.

    python benchmarks/link.py                      the table
    python benchmarks/link.py --idle 200           what idle connected sites cost
    python benchmarks/link.py --json link.json     for other programs
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import logging
import os
import random
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
STUDY = """
[study]
name = "link"
title = "Nothing is trained"
purpose = "To measure"
contact = "nobody@example.org"
[task]
kind = "binary"
target = "ill"
labels = ["no", "yes"]
[data]
modality = "tabular"
[[data.features]]
name = "age"
min = 0.0
max = 120.0
[preprocess]
standardise = "bounds"
impute = "bounds"
[model]
name = "mlp"
hidden = [{width}, {width}]
[training]
rounds = {rounds}
local_epochs = 1
batch_size = 32
learning_rate = 0.1
[algorithm]
name = "fedavg"
[privacy]
mode = "none"
[aggregation]
weights = "equal"
deadline_s = 300.0
"""
SERVER = "server"


# --- the consortium --------------------------------------------------------------------------


def found(folder: Path, sites: list[str]) -> None:
    """Make keys, certificates and the roster of a consortium."""
    from fedward.common.identity import (
        Authority,
        Member,
        PrivateKey,
        Roster,
        issue,
        make_issuer,
        make_root,
        sign_roster,
    )

    now = datetime.now(UTC)
    root_key, issuer_key = PrivateKey.generate(), PrivateKey.generate()
    root = make_root(root_key, "Benchmark", now=now)
    issuer_certificate = make_issuer(issuer_key.public, Authority(root_key, root), now=now)
    issuer = Authority(issuer_key, issuer_certificate)
    (folder / "root.crt").write_text(root.pem)
    members = []
    for name in (SERVER, *sites):
        key, role = PrivateKey.generate(), "coordinator" if name == SERVER else "site"
        key.save(folder / f"{name}.key")
        hosts = ("127.0.0.1",) if name == SERVER else ()
        leaf = issue(key.public, name, role, issuer, now=now, hosts=hosts)  # type: ignore[arg-type]
        (folder / f"{name}.crt").write_text(leaf.pem + issuer_certificate.pem)
        members.append(Member.make(name, role, key.public, since=now.isoformat()))  # type: ignore[arg-type]
    roster = Roster(
        consortium="Benchmark",
        version=1,
        issued_at=now.isoformat(),
        host="127.0.0.1",
        port=1,
        members=tuple(members),
    )
    (folder / "roster.json").write_bytes(sign_roster(roster, issuer_key, issuer_certificate))


def identity(folder: Path, name: str) -> Any:
    """A member's key and certificates."""
    from fedward.common.identity import Identity, PrivateKey, read_certificate, read_certificates

    leaf, issuer = read_certificates((folder / f"{name}.crt").read_text())
    root = read_certificate((folder / "root.crt").read_text())
    return Identity(PrivateKey.load(folder / f"{name}.key"), leaf, issuer, root)


def roster_of(folder: Path) -> Any:
    """The roster."""
    from fedward.common.identity import read_roster

    return read_roster((folder / "roster.json").read_bytes(), (folder / "root.crt").read_text())


# --- the server ------------------------------------------------------------------------------


class Clock:
    """An observer that writes down when rounds end."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_prepared(self, transform: Any, weights: Any) -> dict[str, Any]:
        """Begin."""
        del transform, weights
        self.ends.append(time.perf_counter())
        return {}

    def on_resumed(self, state: Any) -> None:
        """Never."""

    def on_evaluating(self, number: int) -> None:
        """Not measured."""

    def on_round(self, record: Any, weights: Any) -> dict[str, Any]:
        """One more."""
        del record, weights
        self.ends.append(time.perf_counter())
        return {}


class Nobody:
    """A desk with nothing to say."""

    def __getattr__(self, name: str) -> Any:
        if name == "heads":
            from fedward.common.wire.session import Heads

            return lambda _site: Heads()
        if name == "studies_version":
            return lambda _site: 0
        return lambda _question: {}


async def serve(folder: Path, sites: list[str], *, idle_s: float) -> dict[str, Any]:
    """Run the server's part and give its figures."""
    from fedward.server.link.mailbox import Mailbox
    from fedward.server.link.presence import Presence
    from fedward.server.link.serve import LinkServer, LinkSettings

    mailbox, presence = Mailbox(lambda _run: folder / "spool"), Presence()
    own = identity(folder, SERVER)
    settings = LinkSettings(
        name=SERVER,
        key=own.key,
        certificate_pem=(folder / "server.crt").read_text(),
        root_pem=(folder / "root.crt").read_text(),
        roster=roster_of(folder),
        heartbeat_s=10.0,
    )
    server = LinkServer(settings, mailbox=mailbox, presence=presence, desk=Nobody())
    port = await server.start()
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()
    try:
        while not all(presence.connected(site) for site in sites):
            await asyncio.sleep(0.05)
        if idle_s:
            return await _idle(idle_s)
        return await asyncio.to_thread(_rounds, folder, sites, mailbox, presence)
    finally:
        await server.stop()


async def _idle(seconds: float) -> dict[str, Any]:
    await asyncio.sleep(2.0)
    before, begun = time.process_time(), time.perf_counter()
    await asyncio.sleep(seconds)
    share = (time.process_time() - before) / (time.perf_counter() - begun)
    return {"cpu_share": share, "peak_mb": _peak_mb()}


def _rounds(folder: Path, sites: list[str], mailbox: Any, presence: Any) -> dict[str, Any]:
    from fedward.common.study import parse_study, study_hash
    from fedward.server.checkpoints import CheckpointFolder
    from fedward.server.first_weights import first_weights_in_subprocess
    from fedward.server.flower_internals import quieten
    from fedward.server.link.grid import GrpcGrid
    from fedward.server.rounds import Rounds

    quieten()
    study = parse_study((folder / "study.toml").read_text())
    grid = GrpcGrid(
        mailbox,
        presence,
        study=study_hash(study),
        run="run",
        folder=folder / "tasks",
        nodes=lambda: dict(enumerate(sites, start=2)),
        absence_s=60.0,
    )
    clock = Clock()
    rounds = Rounds(
        study,
        grid,
        checkpoints=CheckpointFolder(folder / "checkpoints"),
        observer=clock,
        make_weights=first_weights_in_subprocess,
    )
    before = time.process_time()
    rounds.run()
    # The last round also evaluates, so it is left out.
    seconds = [b - a for a, b in zip(clock.ends, clock.ends[1:-1], strict=False)]
    return {
        "median_s": statistics.median(seconds),
        "largest_s": max(seconds),
        "rounds": len(seconds),
        "cpu_s": time.process_time() - before,
        "peak_mb": _peak_mb(),
    }


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


# --- a site ----------------------------------------------------------------------------------


class Echo:
    """Answers every task without training."""

    def __init__(self, name: str, outbox: Path) -> None:
        self._name = name
        self._outbox = outbox

    async def do(self, assignment: Any) -> Path:
        """The reply's file."""
        return await asyncio.to_thread(self._do, assignment)

    def _do(self, assignment: Any) -> Path:
        from fedward.common import records
        from fedward.common.wire.body import Body, Content, write_body

        reply = self._outbox / assignment.key
        for old in self._outbox.iterdir():
            old.unlink()
        if assignment.action == records.INTRODUCE:
            write_body(reply, Content(config={records.SITE: self._name}))
        elif assignment.action == records.TRAIN:
            with Body.open(assignment.body) as body:
                arrays = body.content().arrays
            write_body(reply, Content(metrics={records.WEIGHT: 1.0}, arrays=arrays))
        else:
            metrics = {records.WEIGHT: 1.0, records.RELEASED: 0.0}
            write_body(reply, Content(metrics=metrics))
        return reply

    def closed(self, key: str) -> None:
        """Nothing to stop."""

    def receipt(self, key: str, evidence: bytes) -> None:
        """Nothing to keep."""

    def roster(self, data: bytes) -> None:
        """Nothing to keep."""

    def studies_changed(self) -> None:
        """Nothing to look at."""


async def attend(folder: Path, names: list[str], port: int) -> None:
    """Be one site, or several in one process, until told to end."""
    logging.disable(logging.WARNING)  # that the server is gone at the end is no news
    from fedward.client.link.connection import Endpoint
    from fedward.client.link.link import Link
    from fedward.client.link.settings import LinkSettings

    links = []
    for name in names:
        outbox = folder / name / "outbox"
        outbox.mkdir(parents=True)
        settings = LinkSettings(Endpoint("127.0.0.1", port), folder / name / "inbox")
        link = Link(
            settings,
            identity(folder, name),
            roster_of(folder),
            Echo(name, outbox),
            random=random.random,
            install=lambda _pem: None,
        )
        links.append(asyncio.create_task(link.run()))
    await asyncio.gather(*links)


# --- everything together ---------------------------------------------------------------------


def measure(sites: int, *, width: int, rounds: int, idle_s: float = 0.0) -> dict[str, Any]:
    """Figures of one case, from fresh processes."""
    names = [f"site-{index}" for index in range(sites)]
    groups = [names] if idle_s else [[name] for name in names]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        found(folder, names)
        (folder / "study.toml").write_text(STUDY.format(width=width, rounds=rounds))
        (folder / "sites.json").write_text(json.dumps(names))
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "FLWR_TELEMETRY_ENABLED": "0"}
        command = [sys.executable, str(HERE), "--folder", place]
        server = subprocess.Popen(
            [*command, "--role", "server", "--idle-s", str(idle_s)],
            stdout=subprocess.PIPE,
            env=environment,
        )
        clients: list[subprocess.Popen[bytes]] = []
        try:
            if server.stdout is None:
                raise RuntimeError("no pipe")
            port = server.stdout.readline().decode().strip()
            for group in groups:
                role = ["--role", "site", "--names", json.dumps(group), "--port", port]
                clients.append(subprocess.Popen([*command, *role], env=environment))
            figures: dict[str, Any] = json.loads(server.stdout.readline())
            server.wait(60)
        finally:
            for process in (*clients, server):
                process.kill()
                process.wait()
    return figures


def bare(sites: int, size: int) -> float:
    """Seconds to move `size` bytes down to and up from each site over TCP, hashed at both ends."""
    data = os.urandom(1 << 20) * max(size >> 20, 1) if size >= 1 << 20 else os.urandom(size)

    def site(port: int) -> None:
        with socket.create_connection(("127.0.0.1", port)) as link:
            hashlib.sha256(_receive(link, len(data))).digest()
            link.sendall(data)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        threads = [threading.Thread(target=site, args=(port,)) for _ in range(sites)]
        begun = time.perf_counter()
        for thread in threads:
            thread.start()
        links = [listener.accept()[0] for _ in threads]
        for link in links:
            link.sendall(data)
        for link in links:
            hashlib.sha256(_receive(link, len(data))).digest()
            link.close()
        for thread in threads:
            thread.join()
        return time.perf_counter() - begun


def _receive(link: socket.socket, size: int) -> bytearray:
    buffer = bytearray(size)
    view = memoryview(buffer)
    while view:
        view = view[link.recv_into(view) :]
    return buffer


CASES = (
    ("100 kB", 4, 155, 101, 100_000),
    ("50 MB", 4, 3532, 8, 50_000_000),
    ("50 MB", 16, 3532, 5, 50_000_000),
)


def main() -> None:
    """Print the table, or play a role in it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--role", choices=("server", "site"), help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--names", type=json.loads, help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--idle-s", type=float, default=0.0, help=argparse.SUPPRESS)
    parser.add_argument("--idle", type=int, metavar="SITES", help="measure idle sites instead")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    chosen = parser.parse_args()
    if chosen.role == "server":
        names = json.loads((chosen.folder / "sites.json").read_text())
        figures = asyncio.run(serve(chosen.folder, names, idle_s=chosen.idle_s))
        sys.stdout.write(json.dumps(figures) + "\n")
        return
    if chosen.role == "site":
        asyncio.run(attend(chosen.folder, chosen.names, chosen.port))
        return
    results: list[dict[str, Any]] = []
    if chosen.idle:
        figures = measure(chosen.idle, width=8, rounds=1, idle_s=30.0)
        print(
            f"{chosen.idle} idle sites: {100 * figures['cpu_share']:.1f} % of a core, "
            f"peak {figures['peak_mb']:.0f} MB"
        )
        results.append({"sites": chosen.idle, **figures})
    else:
        print(
            f"{'model':>8} {'sites':>6} {'median':>10} {'largest':>10} {'bare TCP':>10} {'peak':>8}"
        )
        for label, sites, width, rounds, size in CASES:
            figures = measure(sites, width=width, rounds=rounds)
            figures |= {"model": label, "sites": sites, "bare_s": bare(sites, size)}
            results.append(figures)
            print(
                f"{label:>8} {sites:>6} {1e3 * figures['median_s']:>7.1f} ms "
                f"{1e3 * figures['largest_s']:>7.1f} ms {1e3 * figures['bare_s']:>7.1f} ms "
                f"{figures['peak_mb']:>5.0f} MB",
                flush=True,
            )
    if chosen.json:
        chosen.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
