"""`fedward server doctor` finds what is wrong with a coordinator's server."""

from __future__ import annotations

import fcntl
import json
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from fedward.common.cli import main
from fedward.common.diagnosis import Finding, diagnose, exit_code, machine, network
from fedward.common.errors import FedwardError, LinkError, OutputError, StateError
from fedward.server.authority import Registrar
from fedward.server.diagnosis import ServerDiagnosis
from fedward.server.founding import Plan, found
from fedward.server.home import ConsortiumFolder
from fedward.server.registry import Registry

HOST = "127.0.0.1"


@pytest.fixture
def consortium(tmp_path: Path) -> ConsortiumFolder:
    with socket.create_server((HOST, 0)) as probe:
        port = probe.getsockname()[1]
    return found(tmp_path / "consortium", Plan("Example", HOST, port=port), now=datetime.now(UTC))


def findings(folder: ConsortiumFolder, now: datetime | None = None) -> dict[str, Finding]:
    server = ServerDiagnosis(ConsortiumFolder(folder.path), now=now)
    return {finding.check: finding for finding in diagnose(server.checks())}


def test_a_server_that_is_well(consortium: ConsortiumFolder) -> None:
    Registry.open(consortium.database).close()
    found_ = findings(consortium)
    assert exit_code(found_.values()) == 0
    not_ok = {name for name, finding in found_.items() if finding.state != "ok"}
    assert {"root key"} <= not_ok <= {"root key", "disk"}
    assert found_["database"].says == "it answers; 0 runs"
    consortium.root_key.rename(consortium.path.parent / "safe")
    assert findings(consortium)["root key"].state == "ok"


@pytest.mark.parametrize(
    ("days", "certificate", "issuer"),
    [(10, "ok", "ok"), (70, "soon", "ok"), (91, "wrong", "ok"), (800, "wrong", "wrong")],
)
def test_dates(consortium: ConsortiumFolder, days: int, certificate: str, issuer: str) -> None:
    found_ = findings(consortium, datetime.now(UTC) + timedelta(days=days))
    assert (found_["certificate"].state, found_["issuer"].state) == (certificate, issuer)


def test_a_roster_of_another_key(consortium: ConsortiumFolder) -> None:
    before = consortium.roster_file.read_bytes()
    Registrar(consortium).rotate()
    assert findings(consortium)["roster"].state == "ok"
    assert findings(consortium)["audit log"].state == "ok"
    consortium.roster_file.write_bytes(before)
    roster = findings(consortium)["roster"]
    assert (roster.state, roster.exit_code) == ("wrong", 12)
    assert "same backup" in roster.todo


def test_a_port_that_is_taken(consortium: ConsortiumFolder) -> None:
    port = consortium.settings.server.port
    assert findings(consortium)["port"].says == f"{port} is free"
    with socket.create_server(("0.0.0.0", port)):  # noqa: S104
        taken = findings(consortium)["port"]
        assert (taken.state, taken.exit_code) == ("wrong", 13)
        with consortium.lock.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            assert findings(consortium)["port"].says == f"the service runs, at port {port}"


def test_what_is_damaged(consortium: ConsortiumFolder) -> None:
    consortium.issuer_key.chmod(0o644)
    Path(consortium.database).write_bytes(b"no database at all, but long enough to be read" * 20)
    found_ = findings(consortium)
    assert (found_["keys"].state, found_["database"].state) == ("wrong", "wrong")
    assert found_["certificate"].says == "not looked at, because of keys"
    assert found_["roster"].says == "not looked at, because of keys"
    consortium.settings_file.write_text("", encoding="utf-8")
    found_ = findings(consortium)
    assert found_["settings"].exit_code == exit_code(found_.values()) == 4


def test_the_command(consortium: ConsortiumFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["server", "doctor", str(consortium.path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("soon     root key") and "safe" in line for line in lines)
    consortium.server_key.chmod(0o644)
    assert main(["server", "doctor", str(consortium.path), "--json"]) == 12
    report = json.loads(capsys.readouterr().out)
    assert report["ok"] is False
    assert len(report["findings"]) == len(lines)


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def left(free_gb: float) -> object:
        usage = type("Usage", (), {"free": int(free_gb * (1 << 30))})
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _folder: usage)
        return machine.disk(tmp_path)

    assert left(100) == "100.0 GB are left"
    assert isinstance(left(3), machine.Advice)
    with pytest.raises(OutputError, match="free some space"):
        left(0.5)


def test_clock() -> None:
    assert machine.clock(1.0) == "agrees with the server's"
    assert isinstance(machine.clock(-30.0), machine.Advice)
    for skew_s, way in ((100.0, "behind"), (-100.0, "ahead of")):
        with pytest.raises(StateError, match=f"100 s {way} the server's.*NTP"):
            machine.clock(skew_s)


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(machine.limits(1), str)
    assert isinstance(machine.limits(1 << 40), machine.Advice)
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _what: (256, 256))
    with pytest.raises(StateError, match="256 files"):
        machine.limits()


def test_names_without_address() -> None:
    with pytest.raises(LinkError, match="has no address"):
        network.resolve("no-such-host.invalid", 1)
    with pytest.raises(LinkError, match="has no address"):
        network.resolve("x" * 300, 1)
    assert "127.0.0.1" in network.resolve("localhost", 1)


def test_ports() -> None:
    assert network.free_port(HOST, 0) == "any free port"
    with pytest.raises(FedwardError, match="cannot be listened on"):
        network.free_port("192.0.2.1", 4000)
