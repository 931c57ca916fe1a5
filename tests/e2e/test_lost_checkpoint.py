"""The newest checkpoint is damaged: the server goes back, and no hospital trains a round twice."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from fedward.common.records import TRAIN
from fedward.server.registry import Registry
from fedward.simulations.rehearsal.federation import Federation

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
from .test_chaos import check_ledger

pytestmark = pytest.mark.slow
ROUNDS = 10
LIMIT_S = 600.0
"""Only so that a test that hangs ends."""


@pytest.mark.parametrize("private", [False, True], ids=["open", "private"])
def test_going_back_from_a_damaged_checkpoint_costs_no_hospital_anything(
    private: bool, tmp_path: Path
) -> None:
    """Also where a hospital had answered the round after it."""
    text = study_text(rounds=ROUNDS, private=private, min_sites=len(NAMES))
    with running(tmp_path, text) as federation:
        federation.submit()
        approve_everywhere(federation)
        reached(federation, 2, within_s=LIMIT_S)
        federation.daemons["south"].kill()
        # Without south no round is counted; the others have answered the one that is asked.
        federation.until(lambda: tried_again(federation), LIMIT_S)
        federation.server.kill()
        newest = max(federation.consortium.glob("runs/*/checkpoints/round-*.safetensors"))
        number = int(newest.stem.removeprefix("round-"))
        assert number < ROUNDS
        for name in ("east", "north"):
            assert {number, number + 1} <= answered(federation, name)
        newest.write_bytes(newest.read_bytes()[:-1])
        federation.daemons["south"].start()
        federation.server.start()
        run = released(federation, within_s=LIMIT_S)
    check_run(federation, run, everybody=True)
    resumed = [e["facts"] for e in audited(federation.consortium / "audit.log", "run resumed")]
    assert (number - 1, 1) in [(facts["after"], facts["taken_back"]) for facts in resumed]
    if not private:
        assert difference(federation, run) == 0.0
    for name in NAMES:
        log = federation.site(name) / "state" / "audit.log"
        trained = [e["facts"] for e in audited(log, "release") if e["facts"]["action"] == TRAIN]
        assert Counter(facts["round"] for facts in trained) == dict.fromkeys(
            range(1, ROUNDS + 1), 1
        )
        if private:
            check_ledger(federation, run, name)


def tried_again(federation: Federation) -> bool:
    with Registry.open(federation.consortium / "registry.sqlite") as registry:
        return any(event.kind == "round tried again" for event in registry.events())


def answered(federation: Federation, name: str) -> set[int]:
    """Rounds that a hospital keeps its replies of."""
    replies = (federation.site(name) / "state" / "outbox").glob("*/*.reply")
    return {int(path.name.partition(".")[0]) for path in replies}


def audited(log: Path, kind: str) -> list[dict[str, dict[str, object]]]:
    return [entry for entry in entries(log) if entry["kind"] == kind]
