"""Every hospital is killed in the middle of one private round, and the run still ends well."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from fedward.server.registry import Registry
from fedward.simulations.rehearsal.federation import Federation, command

from .federated import NAMES, approve_everywhere, check_run, released, running, study_text
from .test_chaos import check_ledger, interrupted, open_round

pytestmark = pytest.mark.slow
ROUNDS = 5
LIMIT_S = 300.0
"""Only so that a test that hangs ends."""


def test_a_round_that_was_cut_off_everywhere_is_empty_and_the_next_is_done(tmp_path: Path) -> None:
    text = study_text(rounds=ROUNDS, steps=2500, private=True, min_sites=2)
    with running(tmp_path, text) as federation:
        federation.submit()
        approve_everywhere(federation)
        number = cut_off_everywhere(federation)
        for name in NAMES:
            federation.daemons[name].start()
        run = released(federation, within_s=LIMIT_S)
    with Registry.open(federation.consortium / "registry.sqlite") as registry:
        rounds = registry.rounds(run)
        told = [e.facts for e in registry.events(run=run) if "without" in e.kind]
    # Each round is counted once, and only the one that nobody can answer is empty.
    assert [one.round for one in rounds] == list(range(1, ROUNDS + 1))
    assert [one.round for one in rounds if not one.participants] == [number]
    assert [facts["round"] for facts in told] == [number]
    lost = rounds[number - 1]
    assert set(lost.refused) == set(NAMES)
    if number > 1:
        assert lost.model_sha256 == rounds[number - 2].model_sha256
    assert all(len(one.participants) >= 2 for one in rounds[number:])
    spent_at = [name for name in NAMES if number in interrupted(federation, run, name)]
    assert len(spent_at) >= 2
    check_run(federation, run, everybody=False)
    for name in NAMES:
        check_ledger(federation, run, name)  # what was spent is never less than what was released
    participation = json.loads((federation.release(run) / "participation.json").read_text())
    assert participation["rounds"][number - 1]["participants"] == []
    shown = command("server", "run-show", federation.consortium, run)
    assert shown["history"][number - 1]["participants"] == []
    card = (federation.release(run) / "model" / "MODEL_CARD.md").read_text()
    assert f"the model stayed as it was: round {number}." in card


def cut_off_everywhere(federation: Federation) -> int:
    """Kill every daemon and every training process between payment and reply; the round."""
    ledgers = {name: federation.site(name) / "state" / "ledger.sqlite" for name in NAMES}
    until = time.monotonic() + LIMIT_S
    while time.monotonic() < until:
        begun = {open_round(path) for path in ledgers.values()}
        if len(begun) == 1 and None not in begun:
            for name in NAMES:
                federation.daemons[name].kill_child()
                federation.daemons[name].kill()
            if {open_round(path) for path in ledgers.values()} == begun:
                return int(begun.pop() or 0)
            for name in NAMES:
                federation.daemons[name].start()
        time.sleep(0.005)  # nobody tells when a training process has paid
    raise AssertionError("no round could be cut off everywhere")
