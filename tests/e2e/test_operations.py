"""Both services as systemd and Prometheus see them: real processes, told and asked from outside."""

from __future__ import annotations

import json
import os
import queue
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fedward.client.enrolment import install, make_site
from fedward.client.home import SiteFolder
from fedward.common.identity import read_request
from fedward.common.monitoring import probe
from fedward.server.authority import Registrar
from fedward.server.founding import Plan, found
from fedward.server.home import ConsortiumFolder

LONG_S = 300.0
FEDWARD = Path(sys.executable).parent / "fedward"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe_:
        return int(probe_.getsockname()[1])


def with_monitoring(path: Path) -> int:
    port = free_port()
    text = path.read_text(encoding="utf-8")
    changed = re.sub(r"^# port = 0 .*$", f"port = {port}", text, flags=re.M)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    return port


class Running:
    """A service, with an ear for what it tells systemd."""

    def __init__(self, side: str, folder: Path) -> None:
        self._ear = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._ear.bind(str(folder.parent / f"{side}.notify"))
        self._heard: queue.Queue[str] = queue.Queue()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        self._log = (folder.parent / f"{side}.log").open("w+b")
        told = {"NOTIFY_SOCKET": self._ear.getsockname(), "WATCHDOG_USEC": "3000000"}
        self.process = subprocess.Popen(
            [FEDWARD, side, "run", str(folder)],
            env={**os.environ, **told},
            stdout=self._log,
            stderr=self._log,
        )

    def hear(self, word: str) -> None:
        """Wait until it says so."""
        while self._heard.get(timeout=LONG_S) != word:
            pass

    def _listen(self) -> None:
        while said := self._ear.recv(4096).decode():
            for line in said.split("\n"):
                self._heard.put(line)

    def end(self) -> str:
        """Stop it as systemd does, and give its log."""
        self.process.send_signal(signal.SIGTERM)
        self.hear("STOPPING=1")
        assert self.process.wait(LONG_S) == 0
        self._log.seek(0)
        return self._log.read().decode()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as last:
            last.sendto(b"", self._ear.getsockname())
        self._listener.join()
        self._ear.close()
        self._log.close()


@contextmanager
def running(side: str, folder: Path) -> Iterator[Running]:
    service = Running(side, folder)
    try:
        service.hear("READY=1")
        service.hear("WATCHDOG=1")
        yield service
    finally:
        service.close()


@pytest.fixture
def world(tmp_path: Path) -> tuple[ConsortiumFolder, SiteFolder]:
    plan = Plan("Example", "127.0.0.1", port=free_port())
    consortium = found(tmp_path / "consortium", plan, now=datetime.now(UTC))
    site = make_site(tmp_path / "north", "north")
    enrolled = Registrar(consortium).enroll(read_request(site.request.read_bytes()))
    install(site, enrolled.bundle.encode(), confirm=lambda _root: None)
    return consortium, site


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def figure(port: int, name: str) -> float:
    found_ = re.search(rf"^{re.escape(name)} (\S+)$", get(port, "/metrics")[1], flags=re.M)
    assert found_ is not None, name
    return float(found_[1])


def until(port: int, name: str, value: float) -> None:
    end = time.monotonic() + LONG_S
    while figure(port, name) != value:
        assert time.monotonic() < end, name
        time.sleep(0.05)


def shared(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_both_services_are_watched(world: tuple[ConsortiumFolder, SiteFolder]) -> None:
    consortium, site = world
    at_server = with_monitoring(consortium.settings_file)
    at_client = with_monitoring(site.settings_file)
    with running("client", site.path) as client:
        # Nobody serves yet: the daemon lives, and says that it is not well.
        status, said = get(at_client, "/healthz")
        assert (status, list(json.loads(said)["reasons"])) == (503, ["link"])
        assert probe.main([str(at_client)]) == 1
        with running("server", consortium.path) as server:
            until(at_server, "fedward_server_sites_connected", 1.0)
            until(at_client, "fedward_client_connected", 1.0)
            assert probe.main([str(at_client)]) == probe.main([str(at_server)]) == 0
            assert figure(at_server, 'fedward_server_site_connected{site="north"}') == 1.0
            assert figure(at_client, "fedward_client_rounds_trained_total") == 0.0
            for port, name in ((at_server, "server"), (at_client, "client")):
                who = "server" if name == "server" else "north"
                label = f'fedward_{name}_certificate_expiry_seconds{{name="{who}"}}'
                assert 80 * 86400 < figure(port, label) < 91 * 86400
            log = server.end()
        assert all(json.loads(line)["logger"] for line in log.splitlines() if line[0] == "{")
        until(at_client, "fedward_client_connected", 0.0)
        client.end()
    for path in (consortium.path / "logs", site.state / "logs"):
        records = shared(path / "shareable.log")
        assert records
        text = json.dumps(records)
        assert str(consortium.path.parent) not in text
        assert "127.0.0.1" not in text
