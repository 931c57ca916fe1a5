"""Hospitals that stand still, vanish and come back; and what an old disk does to a hospital.

Nobody waits longer than the study says, everybody is called by name, and who is back joins.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.e2e.town import LIMIT_S, NAMES, Offered, Town, refused

from fedward.client.ledger import Ledger
from fedward.common import records
from fedward.common.errors import IdentityError
from fedward.server.home import ConsortiumFolder
from fedward.server.registry import Registry
from fedward.simulations.rehearsal.federation import command

pytestmark = pytest.mark.slow
FIRST, SECOND, THIRD = NAMES


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town.founded(tmp_path_factory.mktemp("town")) as town:
        yield town


@pytest.fixture(autouse=True)
def nothing_left(town: Town) -> Iterator[None]:
    """Whatever a test leaves behind is of no concern to the next."""
    yield
    for name in NAMES:
        town.go_on(name)
    town.stop_runs()


def next_round(town: Town, offered: Offered, site: str, *, there: bool) -> dict[str, Any]:
    """The first round that ends after now in which a site is there, or is not."""
    run = town.runs_of(offered)[-1]
    found: list[dict[str, Any]] = []

    def so() -> bool:
        history = town.shown(run["run"])["history"][run["round"] :]
        found[:] = [r for r in history if (site in r["participants"]) is there]
        return bool(found)

    town.until(so, LIMIT_S)
    return found[0]


def test_who_stands_still_is_named_and_who_is_back_joins(town: Town) -> None:
    study = town.offer("still", rounds=900, local_steps=300, deadline_s=30.0)
    town.approve_at(study, *NAMES)
    town.begun(study, rounds=2)

    # Its training process stands still: it is connected, and misses the deadline.
    [worker] = town.workers(THIRD)
    os.kill(worker, signal.SIGSTOP)
    without = next_round(town, study, THIRD, there=False)
    assert without["refused"] == {THIRD: "no answer before the deadline"}
    assert without["participants"] == [FIRST, SECOND]
    town.until(lambda: worker not in town.workers(THIRD), LIMIT_S)  # nobody trains for nobody
    next_round(town, study, THIRD, there=True)

    # The whole machine stands still: it is not waited for until the deadline.
    town.pause(THIRD)
    without = next_round(town, study, THIRD, there=False)
    assert "not connected" in without["refused"][THIRD]
    town.until(lambda: not town.connected(THIRD), LIMIT_S)
    town.go_on(THIRD)
    next_round(town, study, THIRD, there=True)

    # Too few are left: the run waits, says for whom, and goes on when one is back.
    run = town.runs_of(study)[-1]["run"]
    for site in (SECOND, THIRD):
        town.pause(site)
    town.until(lambda: bool(town.waits_for(run)), LIMIT_S)
    waits = town.waits_for(run)
    assert waits.startswith("1 of 2 needed sites are connected")
    assert SECOND in waits
    before = town.runs_of(study)[-1]
    assert before["state"] == "running"
    town.go_on(SECOND)
    after = next_round(town, study, SECOND, there=True)
    assert after["participants"] == [FIRST, SECOND]
    town.go_on(THIRD)
    next_round(town, study, THIRD, there=True)


def test_an_update_that_is_late_is_in_no_round(town: Town) -> None:
    """Nor does it come in: who hears that a round is over keeps what it has for it.

    That the server refuses one that comes all the same, tests/server has with a raw client.
    """
    study = town.offer("late", rounds=900, local_steps=300)
    town.approve_at(study, *NAMES)
    town.begun(study, rounds=2)
    missed: set[int] = set()
    for _ in range(2):
        # Its training process stands still, then all of it: so it has an answer when the round is
        # over, and has not heard that it is.
        for worker in town.workers(THIRD):
            os.kill(worker, signal.SIGSTOP)
        town.until(lambda: town.status(THIRD)["working"] > 0, LIMIT_S)
        workers = town.workers(THIRD)
        town.pause(THIRD)
        without = next_round(town, study, THIRD, there=False)
        assert "not connected" in without["refused"][THIRD]
        missed.add(without["round"])
        for worker in workers:
            os.kill(worker, signal.SIGCONT)
        town.go_on(THIRD)
        next_round(town, study, THIRD, there=True)
    run = town.runs_of(study)[-1]["run"]
    town.stop_runs()
    with Registry.open(ConsortiumFolder.open(town.consortium).database) as registry:
        receipts = {(r.round, r.site) for r in registry.receipts(run) if r.action == records.TRAIN}
    for found in town.shown(run)["history"]:
        assert {site for number, site in receipts if number == found["round"]} >= set(
            found["participants"]
        )
    assert not [number for number in missed if (number, THIRD) in receipts]


def test_an_older_ledger_is_noticed_and_nothing_is_done(town: Town) -> None:
    study = town.offer("ledger", rounds=1000, epsilon=3.0)
    town.approve_at(study, *NAMES)
    town.begun(study, rounds=2)
    ledger = town.site(THIRD) / "state/ledger.sqlite"
    kept = town.folder / "older.sqlite"
    town.daemons[THIRD].stop()
    shutil.copyfile(ledger, kept)
    # The server may hold this hospital's answer to the round that goes on, and would count it when
    # the hospital is away: what makes the copy an old one is a round that comes after its absence.
    next_round(town, study, THIRD, there=False)
    town.daemons[THIRD].start()
    next_round(town, study, THIRD, there=True)
    town.daemons[THIRD].stop()
    newer = town.folder / "newer.sqlite"
    shutil.copyfile(ledger, newer)
    clear(ledger)
    shutil.copyfile(kept, ledger)

    town.daemons[THIRD].start()
    town.until(lambda: bool(town.status(THIRD)["halted"]), LIMIT_S)
    assert "this site's ledger is older" in town.status(THIRD)["halted"]
    town.until(lambda: not town.connected(THIRD), LIMIT_S)
    without = next_round(town, study, THIRD, there=False)
    assert THIRD not in without["participants"]
    assert not town.workers(THIRD)
    assert [e for e in town.audit(town.site(THIRD) / "state/audit.log") if e["kind"] == "halted"]

    # With the newer one it works again.
    town.daemons[THIRD].stop()
    clear(ledger)
    shutil.copyfile(newer, ledger)
    town.daemons[THIRD].start()
    next_round(town, study, THIRD, there=True)


def clear(ledger: Path) -> None:
    for path in ledger.parent.glob(f"{ledger.name}*"):
        path.unlink()


def test_an_audit_log_that_was_cut_is_noticed_against_what_the_server_saw(town: Town) -> None:
    study = town.offer("log", rounds=2)
    town.approve_at(study, *NAMES)
    town.ended(study)
    log = town.site(SECOND) / "state/audit.log"
    whole = log.read_bytes()
    town.daemons[SECOND].stop()
    lines = whole.splitlines(keepends=True)
    head = town.shown(town.runs_of(study)[-1]["run"])["history"][-1]["heads"][SECOND]["audit"]
    log.write_bytes(b"".join(lines[: head["length"] - 3]))

    # Alone it is a good log; only who saw its end can tell.
    folder = town.site(SECOND)
    assert command("client", "log", "verify", folder)["ok"]
    expected = ("--expected", f"{head['length']}:{head['hash']}")
    error = refused("client", "log", "verify", folder, *expected)
    assert error.exit_code == IdentityError.exit_code
    town.daemons[SECOND].start()
    town.until(lambda: "went back" in town.status(SECOND)["link"], LIMIT_S)
    assert f"the audit of site {SECOND} went back" in town.status(SECOND)["link"]
    town.until(lambda: not town.connected(SECOND), LIMIT_S)

    town.daemons[SECOND].stop()
    log.write_bytes(whole)
    assert command("client", "log", "verify", folder, *expected)["ok"]
    town.daemons[SECOND].start()
    town.until(lambda: town.connected(SECOND), LIMIT_S)


def test_disk_and_server_put_back_together_are_noticed_by_the_others(town: Town) -> None:
    """Both are as they were on one day: only other hospitals know that the ledger was longer."""
    study = town.offer("backup", rounds=1000, epsilon=3.0)
    town.approve_at(study, *NAMES)
    town.begun(study, rounds=2)
    services = town.daemons[THIRD], town.server
    folders = town.site(THIRD), town.consortium
    for service in services:
        service.stop()
    for folder in folders:
        shutil.copytree(folder, town.folder / f"backup-{folder.name}")
    with Ledger(town.site(THIRD) / "state/ledger.sqlite") as ledger:
        before = ledger.head.length
    for service in reversed(services):
        service.start()
    town.until(lambda: signed(town, FIRST) > before, LIMIT_S)
    for service in services:
        service.stop()
    for folder in folders:
        shutil.rmtree(folder)
        shutil.copytree(town.folder / f"backup-{folder.name}", folder)
    for service in reversed(services):
        service.start()

    def stopped() -> bool:
        found = town.status(THIRD)
        return bool(found["halted"]) or "went back" in found["link"]

    town.until(stopped, LIMIT_S)
    town.until(lambda: not town.workers(THIRD), LIMIT_S)
    log = town.audit(town.site(FIRST) / "state/audit.log")
    assert THIRD in [e["facts"]["site"] for e in log if e["kind"] == "witness-refused"]
    next_round(town, study, THIRD, there=False)


def signed(town: Town, site: str) -> int:
    """The length of the third hospital's ledger that a hospital has signed."""
    path = town.site(site) / "state/witnessed.json"
    found = json.loads(path.read_text()) if path.exists() else {}
    return int(found.get(THIRD, {}).get("length", 0))
