"""Many at once: 200 idle sites, 10,000 connections that never say who they are."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.server.link_client import HOST, Consortium, RawSite
from tests.server.link_process import Process, process

from fedward.common.wire import kinds

pytestmark = pytest.mark.slow

IDLE_SITES = 200
WATCHED_S = 25.0
HALF_OPEN = 10_000


def test_200_idle_sites_cost_little(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    names = tuple(f"site-{number}" for number in range(IDLE_SITES))
    consortium = Consortium(sites=names)

    async def attend(site: RawSite) -> None:
        stream = site.attend()

        async def beat() -> None:
            while True:
                await stream.beat()
                await asyncio.sleep(10)

        beating = asyncio.create_task(beat())
        try:
            while True:
                await stream.notice()
        finally:
            beating.cancel()

    async def main(server: Process) -> tuple[float, float]:
        sites = [RawSite(consortium, server.port, name) for name in names]
        for site in sites:
            assert (await site.greet())["kind"] == kinds.GREET
        streams = [asyncio.create_task(attend(site)) for site in sites]
        await asyncio.sleep(1)  # what connecting cost is not what being there costs
        cpu_s, begin = server.cpu_s, time.monotonic()
        await asyncio.sleep(WATCHED_S)
        share = (server.cpu_s - cpu_s) / (time.monotonic() - begin)
        memory_mb = server.memory_mb
        assert not any(stream.done() for stream in streams)
        for stream in streams:
            stream.cancel()
        await asyncio.gather(*streams, return_exceptions=True)
        await asyncio.gather(*(site.channel.close() for site in sites))
        return share, memory_mb

    with process(consortium, tmp_path) as server:
        share, memory_mb = asyncio.run(main(server))
    record_testsuite_property("cpu_percent", round(100 * share, 2))
    record_testsuite_property("memory_mb", round(memory_mb))
    assert share < 0.05
    assert memory_mb < 400


_OPEN_MANY = """
import resource, socket, sys
host, port, count = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
held = [socket.create_connection((host, port), timeout=30) for _ in range(count)]
print(len(held), flush=True)
sys.stdin.read()
"""


def test_10_000_half_open_connections_end_and_others_get_through(
    tmp_path: Path, record_testsuite_property: Callable[[str, object], None]
) -> None:
    consortium = Consortium()

    async def greets(server: Process) -> None:
        async with RawSite(consortium, server.port) as north:
            async with asyncio.timeout(30):
                assert (await north.greet())["kind"] == kinds.GREET

    with process(consortium, tmp_path) as server:
        asyncio.run(greets(server))
        before, peak_mb = server.files, server.memory_mb
        attackers = [
            subprocess.Popen(
                [sys.executable, "-c", _OPEN_MANY, HOST, str(server.port), str(HALF_OPEN // 4)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
            )
            for _ in range(4)
        ]
        try:
            opened = [int(one.stdout.readline()) for one in attackers if one.stdout]
            assert sum(opened) == HALF_OPEN
            begin = time.monotonic()
            asyncio.run(greets(server))  # while all of them are there
            served_s = time.monotonic() - begin
            most = server.files
            while server.files > before + 100:  # although the attackers hold on
                peak_mb = max(peak_mb, server.memory_mb)
                assert time.monotonic() - begin < 60
                time.sleep(0.1)
            ended_s = time.monotonic() - begin
            while not (tmp_path / "refusals").exists():
                assert time.monotonic() - begin < 60
                time.sleep(0.1)
            asyncio.run(greets(server))
        finally:
            for one in attackers:
                one.communicate()
    record_testsuite_property("files", most)
    record_testsuite_property("memory_mb", round(peak_mb))
    record_testsuite_property("served_s", round(served_s, 2))
    record_testsuite_property("ended_s", round(ended_s, 1))
    assert peak_mb < 900
    refused = (tmp_path / "refusals").read_text()
    assert "connections came and never said who they are" in refused
