"""Everything is killed at random moments, and the run ends as if nothing had been."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import Counter
from contextlib import closing
from pathlib import Path

import pytest

from fedward.client.ledger import Ledger
from fedward.common.privacy.accounting import epsilon
from fedward.common.records import TRAIN
from fedward.server.registry import Registry
from fedward.simulations.rehearsal.chaos import Chaos
from fedward.simulations.rehearsal.federation import Federation, command

from .federated import (
    NAMES,
    approve_everywhere,
    check_run,
    difference,
    entries,
    reached,
    released,
    running,
    study_text,
)

pytestmark = pytest.mark.slow
KILLS = 30
LIMIT_S = 400.0
"""Only so that a test that hangs ends."""


def test_thirty_kills_change_nothing(tmp_path: Path) -> None:
    with running(tmp_path, study_text(rounds=60, more="every = 20")) as federation:
        federation.submit()
        approve_everywhere(federation)
        chaos = Chaos(federation, seed=7, kills=KILLS)
        chaos.start()
        try:
            reached(federation, 59, within_s=LIMIT_S)
        finally:
            chaos.stop()
        run = released(federation, within_s=LIMIT_S)
        assert chaos.failure is None
    assert len(chaos.events) == KILLS
    assert Counter(e.kind for e in chaos.events) == dict.fromkeys(
        ("server", "daemon", "training"), KILLS // 3
    )
    check_run(federation, run, everybody=True)
    assert difference(federation, run) == 0.0
    kinds = Counter(entry["kind"] for entry in entries(federation.consortium / "audit.log"))
    assert kinds["service started"] == KILLS // 3 + 1


def test_private_rounds_are_paid_before_they_are_done_and_only_once(tmp_path: Path) -> None:
    text = study_text(rounds=14, steps=200, private=True)
    with running(tmp_path, text) as federation:
        federation.submit()
        approve_everywhere(federation)
        chaos = Chaos(federation, seed=11, kills=12)
        chaos.start()
        try:
            # In the middle of a round that is paid for, whatever else happens.
            cut_off = {name: cut_off_a_round(federation, name) for name in ("east", "south")}
            reached(federation, 13, within_s=LIMIT_S)
        finally:
            chaos.stop()
        run = released(federation, within_s=LIMIT_S)
        assert chaos.failure is None
    check_run(federation, run, everybody=False)
    for name in NAMES:
        check_ledger(federation, run, name)
    for name, number in cut_off.items():
        assert number in interrupted(federation, run, name)


def cut_off_a_round(federation: Federation, name: str) -> int:
    """Kill a hospital's training process between payment and reply; the number of the round."""
    state, until = federation.site(name) / "state", time.monotonic() + LIMIT_S
    tried = 0
    while time.monotonic() < until:
        number = open_round(state / "ledger.sqlite")
        if number is None or number <= tried or not federation.daemons[name].kill_child():
            time.sleep(0.005)  # nobody tells when a training process has paid
            continue
        tried = number
        outbox = state / "outbox"
        answered = [*outbox.glob(f"*/{number:07d}.*.work"), *outbox.glob(f"*/{number:07d}.*.reply")]
        if not answered and open_round(state / "ledger.sqlite") == number:
            return number
    raise AssertionError("no round could be cut off")


def open_round(ledger: Path) -> int | None:
    """The round of the last entry of a ledger, if that is a reservation of training."""
    if not ledger.exists():
        return None
    try:
        with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as database:
            query = "SELECT kind, body FROM entries ORDER BY number DESC LIMIT 1"
            row = database.execute(query).fetchone()
    except sqlite3.OperationalError:  # its writer was just killed
        return None
    if row is None or row[0] != "reserve":
        return None
    body = json.loads(row[1])
    return int(body["round"]) if body["group"] == "training" else None


def check_ledger(federation: Federation, run: str, name: str) -> None:
    """Nothing left that was not paid for, nothing was paid for twice, nothing is over the cap."""
    privacy = federation.study.privacy
    assert privacy.epsilon is not None
    assert privacy.delta is not None
    with Registry.open(federation.consortium / "registry.sqlite") as registry:
        left = {(r.round, r.action) for r in registry.receipts(run) if r.site == name}
        rounds = registry.rounds(run)
    with Ledger(federation.site(name) / "state" / "ledger.sqlite") as ledger:
        reservations = ledger.reservations(federation.hash, run)
    paid = [(r.entry.round, r.entry.group) for r in reservations]
    assert len(set(paid)) == len(paid)
    took_part = {one.round for one in rounds if name in one.participants}
    assert took_part <= {number for number, action in left if action == TRAIN}
    assert {(number, "training") for number in took_part} <= set(paid)
    [entry] = [
        entry
        for cohort in command("client", "budget", federation.site(name))["cohorts"]
        for entry in cohort["runs"]
        if entry["run"] == run
    ]
    released_events = [
        r.entry.event
        for r in reservations
        if r.entry.group == "training" and r.entry.round in took_part
    ]
    truth = epsilon(released_events, privacy.delta)
    assert 0.0 < truth <= entry["spent"] <= privacy.epsilon
    # A round that was interrupted here is refused here, and the others went on.
    for number in interrupted(federation, run, name):
        [one] = [one for one in rounds if one.round == number]
        assert name not in one.participants
        assert "paid for this before" in one.refused[name]


def interrupted(federation: Federation, run: str, name: str) -> set[int]:
    """Training rounds that were paid for and never answered."""
    with Ledger(federation.site(name) / "state" / "ledger.sqlite") as ledger:
        reservations = ledger.reservations(federation.hash, run)
    return {r.entry.round for r in reservations if not r.reply and r.entry.group == "training"}
