"""systemd hears when a service is ready, alive and stopping; without systemd nothing happens."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from fedward.common.notify import Notifier


@pytest.fixture
def ear(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(30)
        listening.bind(str(tmp_path / "notify"))
        yield listening


def heard(ear: socket.socket) -> str:
    return ear.recv(4096).decode()


def test_states_are_sent(ear: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ear.getsockname()})
    assert notifier.ready("listening\nREADY=0")
    assert heard(ear) == "READY=1\nSTATUS=listening READY=0"
    assert notifier.ready()
    assert heard(ear) == "READY=1"
    assert notifier.status("3 sites")
    assert heard(ear) == "STATUS=3 sites"
    assert notifier.watchdog()
    assert heard(ear) == "WATCHDOG=1"
    assert notifier.stopping()
    assert heard(ear) == "STOPPING=1"


def test_an_abstract_address() -> None:
    name = f"fedward-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.settimeout(30)
        ear.bind("\0" + name)
        assert Notifier({"NOTIFY_SOCKET": "@" + name}).ready()
        assert heard(ear) == "READY=1"


@pytest.mark.parametrize("address", ["", "relative", "/nobody/listens/here", "/" + "x" * 300])
def test_nobody_listens(address: str) -> None:
    assert not Notifier({"NOTIFY_SOCKET": address}).ready()


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_whether_somebody_watches(environment: dict[str, str], expected: float | None) -> None:
    assert Notifier(environment).watchdog_s == expected


def test_a_service_manager_that_does_not_read(tmp_path: Path) -> None:
    """A full queue delays a service for a moment, and loses a message: nothing worse."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ear:
        ear.bind(str(tmp_path / "notify"))
        notifier = Notifier({"NOTIFY_SOCKET": ear.getsockname()})
        while notifier.watchdog():
            pass
        assert not notifier.stopping()
        ear.recv(4096)
        assert notifier.stopping()


def test_signs_of_life_only_while_well(ear: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": ear.getsockname(), "WATCHDOG_USEC": "3000"})
    asked: list[bool] = []

    async def scenario() -> None:
        enough = asyncio.Event()

        def well() -> bool:
            asked.append(len(asked) < 2)
            if len(asked) == 4:
                enough.set()
            return asked[-1]

        async with asyncio.TaskGroup() as group:
            task = group.create_task(notifier.keep_alive(well))
            await enough.wait()
            task.cancel()

    asyncio.run(scenario())
    assert asked[:4] == [True, True, False, False]
    assert [heard(ear), heard(ear)] == ["WATCHDOG=1"] * 2
    ear.setblocking(False)
    with pytest.raises(BlockingIOError):
        ear.recv(1)


def test_nobody_watches() -> None:
    asyncio.run(Notifier({}).keep_alive(lambda: pytest.fail("nobody asked")))
