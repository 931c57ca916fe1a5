"""The server is killed at its most delicate moments, disks are full, it errs: then it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest

from fedward.server.registry import Registry, State
from fedward.simulations.rehearsal.federation import Federation, command
from fedward.simulations.rehearsal.services import Service

from .conftest import QUIET
from .federated import (
    approve_everywhere,
    check_run,
    difference,
    entries,
    reached,
    released,
    running,
    study_text,
)
from .small_disk import SmallDisk

pytestmark = pytest.mark.slow
TIMES = 5
LIMIT_S = 300.0
"""Only so that a test that hangs ends."""


def test_a_server_that_is_killed_while_it_evaluates_and_releases(tmp_path: Path) -> None:
    with running(tmp_path, study_text(rounds=4, more="every = 1")) as federation:
        federation.submit()
        approve_everywhere(federation)
        killed_when(federation, lambda: in_state(federation, State.EVALUATING))
        killed_when(federation, lambda: in_state(federation, State.EVALUATING))
        killed_when(
            federation,
            lambda: (
                any(federation.consortium.glob("runs/*/.release*"))
                and not in_state(federation, State.RELEASED)
            ),
        )
        run = released(federation, within_s=LIMIT_S)
    check_run(federation, run, everybody=True)
    assert difference(federation, run) == 0.0
    kinds = [entry["kind"] for entry in entries(federation.consortium / "audit.log")]
    assert kinds.count("release") == 1
    assert kinds.count("service started") == 4
    left = sorted(path.name for path in (federation.consortium / "runs" / run).iterdir())
    assert left == ["checkpoints", "release"]
    assert not list((federation.consortium / "runs").rglob("*.partial"))


def killed_when(federation: Federation, so: Callable[[], bool]) -> None:
    """Kill the server while something is so, which must still be so then; start it again."""
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        if not so():
            time.sleep(0.002)  # nobody tells
            continue
        federation.server.kill()
        still = so()
        federation.server.start()
        if still:
            return
    raise AssertionError("the moment did not come")


def in_state(federation: Federation, state: State) -> bool:
    with Registry.open(federation.consortium / "registry.sqlite") as registry:
        return any(run.state is state for run in registry.runs())


@pytest.mark.parametrize("where", ["server", "site"])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    where: str, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        disks: list[SmallDisk] = []

        def before(federation: Federation) -> None:
            place = federation.consortium if where == "server" else federation.site("north")
            disks.append(stack.enter_context(SmallDisk(place)))

        text = study_text(rounds=40, min_sites=3)
        federation = stack.enter_context(running(tmp_path, text, before=before))
        federation.submit()
        approve_everywhere(federation)
        reached(federation, 3, within_s=LIMIT_S)
        [disk] = disks
        disk.fill()
        federation.until(lambda: complains(federation, where), LIMIT_S)
        assert (command("server", "runs", federation.consortium)[-1]["round"]) < 40
        disk.make_room()
        run = released(federation, within_s=LIMIT_S)
        federation.stop()
        check_run(federation, run, everybody=True)
        assert difference(federation, run) == 0.0


def complains(federation: Federation, where: str) -> bool:
    """Whether who has the full disk has said so several times, and is still there."""
    service = federation.server if where == "server" else federation.daemons["north"]
    lines = service.output.read_text().splitlines()
    assert service.alive
    return sum("cannot write" in line for line in lines) >= TIMES


DEFECT = """
from fedward.server import rounds

real, due = rounds.aggregate, [2, 3]


def aggregate(strategy, number, *others):
    if number in due:
        due.remove(number)
        raise SystemError("patient 17")
    return real(strategy, number, *others)


rounds.aggregate = aggregate
"""
"""In a server that loads it, an error that nothing foresees ends two rounds of their first time."""


def test_a_run_goes_on_by_itself_after_defects_of_the_server(tmp_path: Path) -> None:
    def before(federation: Federation) -> None:
        folder = tmp_path / "defect"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(DEFECT)
        federation.server = Service(
            ["server", "run", str(federation.consortium)],
            folder=tmp_path / "output",
            name="server",
            environment={**QUIET, "PYTHONPATH": str(folder)},
        )

    with running(tmp_path, study_text(rounds=4), before=before) as federation:
        federation.submit()
        approve_everywhere(federation)
        run = released(federation, within_s=LIMIT_S)
        federation.stop()
    check_run(federation, run, everybody=True)
    assert difference(federation, run) == 0.0
    log = entries(federation.consortium / "audit.log")
    reasons = [entry["facts"]["reason"] for entry in log if entry["kind"] == "run goes on"]
    assert len(reasons) == 2
    assert all("SystemError at rounds.py, line " in reason for reason in reasons)
    for place in (federation.consortium / "audit.log", federation.server.output):
        assert "patient 17" not in place.read_text()
