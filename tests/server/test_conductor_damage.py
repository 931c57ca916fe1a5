"""Runs whose history is damaged, or cannot be read for a while: they lose nothing, and say so."""

from __future__ import annotations

import runpy
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text

from fedward.common.audit import verify_log
from fedward.server.checkpoints import HISTORY
from fedward.server.registry import State

_helper = runpy.run_path(str(Path(__file__).with_name("consortium.py")))
Consortium, LoopCarrier, Service = (_helper[n] for n in ("Consortium", "LoopCarrier", "Service"))
LONG_S, a_study = _helper["LONG_S"], _helper["a_study"]
final, same, expected = (_helper[n] for n in ("final", "same", "expected"))
STUDY = a_study(training={"rounds": 4}, algorithm={"name": "fedadam", "server_learning_rate": 0.1})


@pytest.fixture
def consortium(tmp_path: Path) -> Consortium:
    return Consortium(tmp_path)


@pytest.fixture
def serve(consortium: Consortium) -> Iterator[Callable[[], Service]]:
    services: list[Service] = []

    def make() -> Service:
        services.append(Service(consortium, LoopCarrier(consortium, STUDY)))
        return services[-1]

    yield make
    for service in services:
        service.close()


def begun(serve: Callable[[], Service], consortium: Consortium) -> tuple[str, Path]:
    """A run whose service ended in round 3, and the folder of its checkpoints."""
    service = serve()
    reached, answers = threading.Event(), iter(range(1, 100))

    def count(_site: str) -> None:
        if next(answers) == 10:
            reached.set()

    service.carrier.answered, service.carrier.held = count, reached.is_set
    service.approve(service.offer(STUDY))
    service.conductor.look()
    assert reached.wait(LONG_S)
    assert service.conductor.close(LONG_S)
    (run,) = service.registry.runs()
    assert run.round == 2
    return run.id, consortium.folder_for_run(run.id) / "checkpoints"


def flip(path: Path, place: int) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 0x04
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit of the first round": lambda path: flip(path, 20),
    "a bit of the last round": lambda path: flip(path, -20),
    "an end of line": lambda path: flip(path, path.read_bytes().index(b"\n")),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:50]),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_history_is_made_whole_from_the_registry(
    damage: str, consortium: Consortium, serve: Callable[[], Service]
) -> None:
    run, folder = begun(serve, consortium)
    written = (folder / HISTORY).read_bytes()
    DAMAGES[damage](folder / HISTORY)
    service = serve()
    ended = service.until(State.RELEASED, State.FAILED)
    assert (ended.id, ended.state, ended.round) == (run, State.RELEASED, 4)
    assert (folder / HISTORY).read_bytes().startswith(written)
    assert same(final(consortium, run).weights, expected(STUDY))
    logged = [
        (e.kind, e.facts.get("rounds", e.facts.get("after"))) for e in service.audit.entries()
    ]
    assert [e for e in logged if e[0] == "history rebuilt"] == [("history rebuilt", 2)]
    assert ("run resumed", 2) in logged  # no round was done again
    assert verify_log(consortium.folder / "audit.log", consortium.key.public).ok


def test_what_nobody_has_a_copy_of_is_refused_and_nothing_is_lost(
    consortium: Consortium, serve: Callable[[], Service]
) -> None:
    """An older fedward counted the rounds."""
    run, folder = begun(serve, consortium)
    engine = create_engine(f"sqlite:///{consortium.folder / 'registry.sqlite'}")
    with engine.begin() as connection:
        connection.execute(text("UPDATE rounds SET line = ''"))
    engine.dispose()
    kept = (folder / HISTORY).read_bytes()
    flip(folder / HISTORY, 20)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    service = serve()
    ended = service.until(State.RELEASED, State.FAILED)
    assert ended.state is State.FAILED
    assert "history.jsonl is not what was written and the registry has no" in ended.reason
    assert "put back a copy of checkpoints" in ended.reason
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    (folder / HISTORY).write_bytes(kept)
    service.registry.resume(run)
    assert service.until(State.RELEASED, State.FAILED).state is State.RELEASED
    assert same(final(consortium, run).weights, expected(STUDY))


@pytest.mark.parametrize("name", [HISTORY, "round-000002.safetensors"])
def test_what_cannot_be_read_for_a_while_pauses_a_run(
    name: str, consortium: Consortium, serve: Callable[[], Service]
) -> None:
    """It neither goes back a round, which sites would not answer again, nor fails."""
    run, folder = begun(serve, consortium)
    (folder / name).rename(folder.parent / "aside")
    (folder / name).mkdir()
    service = serve()
    deadline = time.monotonic() + LONG_S
    said: list[str] = []
    while len(said) < 3 and time.monotonic() < deadline:  # over several attempts
        service.conductor.look()
        now = service.conductor.waiting.get(run, "")
        if now != (said or [""])[-1]:
            said.append(now)
        threading.Event().wait(0.01)
    assert f"cannot read {name} now" in said[0]
    assert said[0] == said[2]
    (folder / name).rmdir()
    (folder.parent / "aside").rename(folder / name)
    assert service.until(State.RELEASED, State.FAILED).state is State.RELEASED
    assert same(final(consortium, run).weights, expected(STUDY))
    resumed = [e.facts for e in service.audit.entries() if e.kind == "run resumed"]
    assert [(facts["after"], facts["taken_back"]) for facts in resumed] == [(2, 0)]
    assert not [e for e in service.audit.entries() if e.kind == "history rebuilt"]
