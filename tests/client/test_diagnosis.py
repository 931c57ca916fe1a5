"""`fedward client doctor` finds what is wrong at a site, on real sockets with real certificates."""

from __future__ import annotations

import asyncio
import json
import shutil
import socket
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import tomli_w
from tests.server.link_client import FakeDesk

from fedward.client.daemon.status import Status
from fedward.client.diagnosis import SiteDiagnosis
from fedward.client.enrolment import install, make_site
from fedward.client.home import SiteFolder
from fedward.common.cli import main
from fedward.common.diagnosis import Finding, diagnose, exit_code
from fedward.common.files import write_atomic
from fedward.common.identity import read_request
from fedward.common.lock import held
from fedward.server.authority import Registrar
from fedward.server.founding import Plan, found
from fedward.server.home import ConsortiumFolder
from fedward.server.link.mailbox import Mailbox
from fedward.server.link.presence import Presence
from fedward.server.link.serve import LinkServer, LinkSettings

HOST = "127.0.0.1"


class World:
    """A consortium and one site, on disk; the service on a port of this machine if wanted."""

    def __init__(self, folder: Path) -> None:
        with socket.create_server((HOST, 0)) as probe:
            self.port = probe.getsockname()[1]
        plan = Plan("Example", HOST, port=self.port)
        self.consortium = found(folder / "consortium", plan, now=datetime.now(UTC))
        self.site = make_site(folder / "north", "north")
        self.registrar = Registrar(self.consortium)
        request = read_request(self.site.request.read_bytes())
        bundle = self.registrar.enroll(request).bundle
        install(self.site, bundle.encode(), confirm=lambda _root: None)

    @contextmanager
    def serving(self) -> Iterator[None]:
        """The service, in a thread of its own."""
        up, done = threading.Event(), asyncio.Event()
        loop = asyncio.new_event_loop()

        async def serve() -> None:
            server = self._server()
            await server.start()
            up.set()
            await done.wait()
            await server.stop()

        thread = threading.Thread(target=lambda: loop.run_until_complete(serve()))
        thread.start()
        try:
            assert up.wait(60)
            yield
        finally:
            loop.call_soon_threadsafe(done.set)
            thread.join()
            loop.close()

    def _server(self) -> LinkServer:
        folder = ConsortiumFolder(self.consortium.path)
        me = folder.load_identity()
        settings = LinkSettings(
            name=me.name,
            key=me.key,
            certificate_pem=me.chain_pem.decode(),
            root_pem=me.root.pem,
            roster=folder.load_roster().current,
            host=HOST,
            port=self.port,
            grace_s=0.1,
        )
        mailbox = Mailbox(folder.run)
        return LinkServer(settings, mailbox=mailbox, presence=Presence(), desk=FakeDesk())

    def findings(self, *, now: datetime | None = None) -> dict[str, Finding]:
        """What the doctor says now."""
        site = SiteDiagnosis(SiteFolder(self.site.path), now=now, timeout_s=20)
        return {finding.check: finding for finding in diagnose(site.checks())}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def states(found: dict[str, Finding]) -> dict[str, str]:
    return {name: finding.state for name, finding in found.items()}


def give_data(world: World) -> None:
    (world.site.path / "patients.csv").write_text("patient_id,age\n1,50\n", encoding="utf-8")
    text = '[site]\nname = "north"\n[source]\nkind = "csv"\npath = "patients.csv"\n'
    world.site.site_file.write_text(f'{text}[patients]\ncolumn = "patient_id"\n', encoding="utf-8")


def test_a_site_that_is_well(world: World) -> None:
    give_data(world)
    with world.serving():
        found_ = world.findings()
    wrong = {name: finding for name, finding in found_.items() if finding.state != "ok"}
    assert set(wrong) <= {"daemon", "disk", "limits"}, wrong
    assert all(finding.state == "soon" for finding in wrong.values())
    assert exit_code(found_.values()) == 0
    assert found_["tls"].says == "TLS 1.3 with coordinator"
    assert found_["greeting"].says.startswith("the server runs fedward 0.")
    assert found_["clock"].says == "agrees with the server's"
    assert found_["data"].says == "no study was offered yet"


def test_what_follows_from_a_cause_is_skipped(world: World) -> None:
    found_ = world.findings()
    assert found_["port"].state == "wrong"
    assert found_["port"].says == f"nothing listens at {HOST}:{world.port}"
    assert states(found_)["tls"] == states(found_)["greeting"] == states(found_)["clock"]
    assert found_["clock"].says == "not looked at, because of port"
    assert found_["audit log"].state == "ok"
    assert exit_code(found_.values()) == found_["port"].exit_code == 13


def test_a_running_daemon_is_not_disturbed(world: World) -> None:
    world.site.state.mkdir(exist_ok=True)
    status = Status(world.site.status, site="north", pid=1)
    with world.serving(), held(world.site.lock, who="a client"):
        status.update(link="the server cannot be reached")
        greeting = world.findings()["greeting"]
        assert greeting.state == "wrong"
        assert "cannot be reached" in greeting.says
        status.update(link="connected", skew_s=-400.0)
        found_ = world.findings()
    assert found_["greeting"].state == found_["daemon"].state == "ok"
    assert found_["clock"].state == "wrong"
    assert "400 s ahead" in found_["clock"].says


def test_secret_files_that_others_may_read(world: World) -> None:
    world.site.key.chmod(0o640)
    found_ = world.findings()
    assert (found_["keys"].state, found_["keys"].exit_code) == ("wrong", 12)
    assert found_["certificate"].state == found_["tls"].state == "skipped"
    world.site.key.chmod(0o600)
    world.site.patients_key.chmod(0o644)
    assert world.findings()["keys"].state == "wrong"


@pytest.mark.parametrize(
    ("days", "state"), [(10, "ok"), (70, "soon"), (91, "wrong"), (-2, "wrong")]
)
def test_dates_of_the_certificate(world: World, days: int, state: str) -> None:
    found_ = world.findings(now=datetime.now(UTC) + timedelta(days=days))
    assert found_["certificate"].state == state


def test_a_revoked_site(world: World) -> None:
    world.registrar.revoke("north", "left the consortium")
    with world.serving():
        tls = world.findings()["tls"]
        greeting = world.findings()["greeting"]
    assert tls.state == "ok" or tls.exit_code == 12
    assert greeting.state in ("wrong", "skipped")
    write_atomic(world.site.roster_file, world.consortium.roster_file.read_bytes())
    roster = world.findings()["roster"]
    assert (roster.state, roster.exit_code) == ("wrong", 12)
    assert "revoked" in roster.says


def test_somebody_else_answers(world: World, tmp_path: Path) -> None:
    """Another consortium, at the very address: a firewall that opens connections looks like it."""
    (tmp_path / "other").mkdir()
    other = World(tmp_path / "other")
    other.port = world.port
    with other.serving():
        tls = world.findings()["tls"]
    assert (tls.state, tls.exit_code) == ("wrong", 12)
    assert "not of this consortium" in tls.says


def test_another_key_of_the_same_consortium_answers(world: World) -> None:
    roster = world.consortium.roster_file.read_bytes()
    world.registrar.rotate()
    assert world.consortium.roster_file.read_bytes() != roster
    with world.serving():
        tls = world.findings()["tls"]
    assert tls.state == "wrong"
    assert "not the coordinator of this site's roster" in tls.says


def plain_server(answer: bytes) -> tuple[socket.socket, threading.Thread]:
    listening = socket.create_server((HOST, 0))

    def serve() -> None:
        for _ in range(2):  # once for the check of the port, once for TLS
            talk, _ = listening.accept()
            with talk:
                talk.settimeout(30)
                if answer:
                    talk.sendall(answer)
                while True:
                    try:
                        if not talk.recv(4096):
                            break
                    except OSError:
                        break
                    if not answer:
                        break

    thread = threading.Thread(target=serve)
    thread.start()
    return listening, thread


def give_address(world: World, port: int) -> None:
    path = world.site.settings_file
    values = tomllib.loads(path.read_text(encoding="utf-8"))
    values["server"] = {"host": HOST, "port": port}
    path.write_text(tomli_w.dumps(values), encoding="utf-8")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak TLS 1.3"),
        (b"", "broke while the two sides greeted"),
    ],
)
def test_no_tls_answers(world: World, answer: bytes, says: str) -> None:
    listening, thread = plain_server(answer)
    with listening:
        give_address(world, listening.getsockname()[1])
        tls = world.findings()["tls"]
        thread.join(60)
    assert tls.state == "wrong"
    assert says in tls.says


def test_files_that_were_tampered_with(world: World) -> None:
    log = world.site.audit_log
    log.write_bytes(log.read_bytes().replace(b"install", b"instead", 1))
    world.site.policy_file.write_text("allow_everything = true\n", encoding="utf-8")
    world.site.site_file.write_text("[site]\n", encoding="utf-8")
    found_ = world.findings()
    assert (found_["audit log"].state, found_["audit log"].exit_code) == ("wrong", 15)
    assert (found_["policy"].state, found_["policy"].exit_code) == ("wrong", 4)
    assert (found_["site.toml"].state, found_["data"].state) == ("wrong", "skipped")


def test_the_command(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    give_data(world)
    assert main(["client", "doctor", str(world.site.path)]) == 13
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("WRONG    port") for line in lines)
    assert any(line.startswith("skipped  clock") for line in lines)
    with world.serving():
        assert main(["client", "doctor", str(world.site.path), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is True
    assert len(report["findings"]) == len(lines)
    shutil.rmtree(world.site.path)
    assert main(["client", "doctor", str(world.site.path)]) == 15
