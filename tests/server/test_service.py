"""The service as the coordinator runs it: real folder, real port, real processes, real commands."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import generate_latest

from fedward.common.audit import caused, verify_log
from fedward.common.cli import main
from fedward.common.errors import LinkError, StateError
from fedward.common.identity import PrivateKey, make_request, read_request
from fedward.common.lock import held, is_held
from fedward.common.statements import OFFER, read_statement
from fedward.common.study.load import EXAMPLE
from fedward.common.wire import kinds
from fedward.server.authority import Registrar, utc_now
from fedward.server.founding import Plan, found
from fedward.server.home import ConsortiumFolder
from fedward.server.office import Office
from fedward.server.registry import Choice, Registry, State
from fedward.server.service import Options, Service, serve
from fedward.server.status import read_status

LONG_S = 180.0
SITES = ("north", "south")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def folder(tmp_path: Path) -> ConsortiumFolder:
    path = tmp_path / "consortium"
    found(path, Plan("Test", "localhost", free_port(), "coordinator", None), now=utc_now())
    registrar = Registrar.open(path)
    for site in SITES:
        request = make_request(PrivateKey.generate(), site)
        registrar.enroll(read_request(request), "site")
    return ConsortiumFolder.open(path)


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "study.toml"
    path.write_text(EXAMPLE + "[aggregation]\nmin_sites = 2\n")
    return path


def command(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> Any:
    """What a command of `fedward server` prints as JSON."""
    got = main(["server", *map(str, arguments), "--json"])
    out, err = capsys.readouterr()
    assert got == code, err
    return json.loads(out) if code == 0 else err


# --- commands -----------------------------------------------------------------------------------


def test_a_study_is_submitted_started_stopped_and_resumed(
    folder: ConsortiumFolder, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    offered = command(capsys, "submit", folder.path, study)
    digest = offered["study"]
    assert (offered["state"], offered["answers"]) == ("offered", {"north": None, "south": None})
    with Registry.open(folder.database) as registry:
        evidence = registry.study(digest).evidence
        key = folder.load_roster().current.coordinator.public_key
        content = read_statement(evidence, OFFER, "coordinator", key)
        assert (content["study"], content["consortium"]) == (digest, "Test")
        assert "study example needs" not in command(
            capsys, "start", folder.path, "example", code=15
        )
        for site in SITES:
            registry.decide(site, digest, Choice.APPROVE, b"")
        run = command(capsys, "start", folder.path, digest[:10])["run"]
        assert command(capsys, "runs", folder.path)[0]["state"] == "running"
        command(capsys, "stop", folder.path, run)
        assert registry.run(run).stop
        registry.transition(run, State.STOPPED)
        assert command(capsys, "resume", folder.path, run)["state"] == "running"
        shown = command(capsys, "run-show", folder.path, run)
    assert [event["kind"] for event in shown["events"]][-1] == "run resumed"
    said = command(capsys, "status", folder.path)
    assert said["service"]["running"] is False
    assert said["studies"][0]["runs"] == [run]
    own = folder.load_identity().key.public
    assert verify_log(folder.audit_log, own).ok
    with folder.open_audit_log() as log:
        logged = [entry.kind for entry in log.entries()]
    assert logged[-4:] == ["offer", "run started", "stop asked for", "resume asked for"]


def test_an_offer_is_taken_back_by_the_name_of_its_study(
    folder: ConsortiumFolder, study: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command(capsys, "submit", folder.path, study)
    assert command(capsys, "stop", folder.path, "example")["done"] == "the offer is taken back"
    assert command(capsys, "status", folder.path)["studies"][0]["state"] == "stopped"


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["submit", "{folder}", "{study}", "--sites", "north,east"], 15, "east is no active site"),
        (["submit", "{folder}", "{study}", "--sites", "north"], 15, "needs 2 sites"),
        (["submit", "{folder}", "missing.toml"], 3, "cannot read study file"),
        (["submit", "{study}", "{study}"], 15, "not a consortium's folder"),
        (["start", "{folder}", "nothing"], 15, "no such study"),
        (["stop", "{folder}", "nothing"], 15, "no such study"),
        (["resume", "{folder}", "nothing"], 15, "no such run"),
        (["run-show", "{folder}", "nothing"], 15, "no such run"),
    ],
)
def test_what_does_not_fit_is_refused(
    arguments: list[str],
    code: int,
    said: str,
    folder: ConsortiumFolder,
    study: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    filled = [a.format(folder=folder.path, study=study) for a in arguments]
    assert said in command(capsys, *filled, code=code)


@pytest.mark.parametrize("name", ["status", "runs"])
def test_an_empty_consortium_is_shown(
    name: str, folder: ConsortiumFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["server", name, str(folder.path)]) == 0
    assert capsys.readouterr().err == ""


def test_a_study_that_no_message_holds_is_not_offered(
    folder: ConsortiumFolder, study: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fedward.common.study import load_study

    monkeypatch.setattr(kinds, "LARGEST_OFFER", 1000)
    with Office.open(folder.path) as office:
        with pytest.raises(StateError, match="too large for a message"):
            office.submit(load_study(study), None)
        assert office.registry.studies() == ()


def test_a_study_is_found_by_name_or_hash_but_never_guessed(
    folder: ConsortiumFolder, study: Path
) -> None:
    from fedward.common.study import load_study

    one = load_study(study)
    other = one.model_copy(update={"training": one.training.model_copy(update={"rounds": 9})})
    with Office.open(folder.path) as office:
        for each in (one, other):
            office.submit(each, None)
        with pytest.raises(StateError, match="several studies are called so"):
            office.start("example")
        with pytest.raises(StateError, match="there is no such study"):
            office.start("")


# --- the service --------------------------------------------------------------------------------


async def until(what: Callable[[], Any], task: asyncio.Task[None]) -> Any:
    """The first true value of `what`, which is asked again and again."""
    deadline = time.monotonic() + LONG_S
    while time.monotonic() < deadline:
        if task.done():
            task.result()
        if found_ := what():
            return found_
        await asyncio.sleep(0.02)
    raise AssertionError("it did not happen")


def test_the_service_shows_how_it_is_and_ends_in_good_order(folder: ConsortiumFolder) -> None:
    ports: list[int] = []

    async def run() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(serve(folder, Options(started=ports.append), stop))
        said = await until(lambda: read_status(folder.status), task)
        assert (said["state"], said["port"], said["pid"]) == ("serving", ports[0], os.getpid())
        assert said["sites"]["north"]["reason"] == "never seen"
        assert is_held(folder.lock)
        with pytest.raises(StateError, match="a server already runs"):
            await serve(folder, Options(), stop)
        stop.set()
        await task

    asyncio.run(run())
    assert read_status(folder.status)["state"] == "stopped"
    assert not is_held(folder.lock)
    with folder.open_audit_log() as log:
        logged = [entry.kind for entry in log.entries()]
    assert logged[-2:] == ["service started", "service stopped"]
    assert verify_log(folder.audit_log, folder.load_identity().key.public).ok


def test_a_new_key_and_a_new_certificate_are_taken_up_while_running(
    folder: ConsortiumFolder,
) -> None:
    ports: list[int] = []

    async def run() -> None:
        stop = asyncio.Event()
        task = asyncio.create_task(serve(folder, Options(started=ports.append), stop))
        await until(lambda: ports, task)
        Registrar.open(folder.path).rotate()
        await until(lambda: len(ports) == 2, task)
        await until(lambda: read_status(folder.status).get("roster") == 4, task)
        stop.set()
        await task

    asyncio.run(run())
    own = folder.load_identity().key.public
    report = verify_log(folder.audit_log, own)
    assert report.ok, report.problem
    assert len(report.keys) == 2


def test_who_is_refused_again_and_again_fills_no_log(
    folder: ConsortiumFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(caused, "MOST", 5)
    with Registry.open(folder.database) as registry, folder.open_audit_log() as audit:
        service = Service(folder, Options(), registry, audit)
        for number in range(20):
            reason = f"the clocks are {400 + number} s apart"
            service._refused({"reason": reason, "peer": "x", "name": "north", "error": "LinkError"})
        assert [entry.kind for entry in audit.entries()].count("refusal") == 5
        figures = generate_latest(service._metrics.registry).decode()
    assert 'fedward_server_audit_left_out_total{kind="refusal"} 15.0' in figures
    assert 'fedward_server_refusals_total{reason="LinkError"} 20.0' in figures


def test_a_port_that_is_taken_is_said(folder: ConsortiumFolder) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", folder.settings.server.port))
        other.listen()
        with pytest.raises(LinkError, match="cannot listen"):
            asyncio.run(serve(folder, Options(), asyncio.Event()))
    assert not is_held(folder.lock)


def test_a_lock_is_let_go(tmp_path: Path) -> None:
    assert not is_held(tmp_path / "lock")
    with held(tmp_path / "lock", who="a server"):
        assert is_held(tmp_path / "lock")
    assert not is_held(tmp_path / "lock")


@pytest.fixture
def process(folder: ConsortiumFolder) -> Iterator[subprocess.Popen[str]]:
    started = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys; from fedward.common.cli import main; sys.exit(main())",
            "server",
            "run",
            str(folder.path),
            "--json",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield started
    finally:
        started.kill()
        started.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_on_a_signal(
    number: signal.Signals, folder: ConsortiumFolder, process: subprocess.Popen[str]
) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "{\n"
    assert '"port"' in process.stdout.readline()
    # A service that only adds up has no use for torch, which is most of its memory.
    assert "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text()
    process.send_signal(number)
    _, err = process.communicate(timeout=LONG_S)
    assert process.returncode == 0, err
    for line in err.splitlines():
        assert json.loads(line)["level"] == "info"
    assert read_status(folder.status)["state"] == "stopped"


def test_a_killed_service_leaves_nothing_in_the_way_of_the_next(
    folder: ConsortiumFolder, process: subprocess.Popen[str]
) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == "{\n"
    assert '"port"' in process.stdout.readline()
    process.kill()
    process.wait()
    assert not is_held(folder.lock)

    async def run() -> None:
        stop = asyncio.Event()
        await serve(folder, Options(started=lambda _port: stop.set()), stop)

    asyncio.run(run())
