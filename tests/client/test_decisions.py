"""Decisions of named people: what counts, what ends it, and that nothing else is believed."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedward.client.decisions import Decisions
from fedward.client.policy import Policy
from fedward.common.audit.log import AuditLog
from fedward.common.errors import PolicyError, StateError
from fedward.common.identity.keys import PrivateKey

STUDY, OTHER, DATA, CHANGED = "a" * 64, "b" * 64, "d" * 64, "e" * 64
TWO = Policy(approvers=("Ann", "Ben", "Cem"), approvals_needed=2)
KEY = PrivateKey.generate()


@pytest.fixture
def decisions(tmp_path: Path) -> Decisions:
    return Decisions(tmp_path, KEY.public, lambda: datetime(2026, 1, 5, tzinfo=UTC))


def approve(
    decisions: Decisions, by: str, study: str = STUDY, policy: Policy = TWO, manifest: str = DATA
) -> None:
    decisions.record(
        KEY, policy, study=study, decision="approve", by=by, reason="ethics vote", manifest=manifest
    )


def end(decisions: Decisions, word: str, by: str) -> None:
    decisions.record(KEY, TWO, study=STUDY, decision=word, by=by, reason="no")  # type: ignore[arg-type]


def test_as_many_different_people_as_the_policy_needs(decisions: Decisions) -> None:
    with pytest.raises(PolicyError, match="0 of 2 approvals"):
        decisions.require_approved(STUDY, TWO)
    approve(decisions, "Ann")
    with pytest.raises(PolicyError, match="1 of 2 approvals"):
        decisions.require_approved(STUDY, TWO)
    with pytest.raises(PolicyError, match="Ann has approved this study before"):
        approve(decisions, "Ann")
    approve(decisions, "Ben")
    status = decisions.require_approved(STUDY, TWO)
    assert [decision.by for decision in status.approvals] == ["Ann", "Ben"]
    assert status.manifest == DATA
    assert {decision.policy for decision in status.approvals} == {TWO.digest}


def test_an_approval_is_for_one_study_only(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    approve(decisions, "Ben", study=OTHER)
    for study in (STUDY, OTHER):
        with pytest.raises(PolicyError, match="1 of 2"):
            decisions.require_approved(study, TWO)


@pytest.mark.parametrize("by", ["Dan", "ann", ""])
def test_only_those_whom_the_policy_names(decisions: Decisions, by: str) -> None:
    with pytest.raises(PolicyError):
        approve(decisions, by)
    assert decisions.all() == ()


def test_a_reason_is_given(decisions: Decisions) -> None:
    with pytest.raises(PolicyError, match="reason"):
        decisions.record(KEY, TWO, study=STUDY, decision="approve", by="Ann", reason="  ")


def test_the_policy_as_it_is_now_decides(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    approve(decisions, "Ben")
    decisions.require_approved(STUDY, TWO)
    without_ben = Policy(approvers=("Ann", "Cem"), approvals_needed=2)
    with pytest.raises(PolicyError, match="1 of 2"):
        decisions.require_approved(STUDY, without_ben)
    three = Policy(approvers=TWO.approvers, approvals_needed=3)
    with pytest.raises(PolicyError, match="2 of 3"):
        decisions.require_approved(STUDY, three)
    with pytest.raises(PolicyError, match="0 of 1"):
        decisions.require_approved(STUDY, Policy())


@pytest.mark.parametrize("word", ["withdraw", "refuse"])
def test_an_end_holds_until_everybody_who_is_needed_approves_anew(
    decisions: Decisions, word: str
) -> None:
    approve(decisions, "Ann")
    approve(decisions, "Ben")
    end(decisions, word, "Cem")
    said = "withdrawn" if word == "withdraw" else "refused"
    with pytest.raises(PolicyError, match=f"{said} at this site"):
        decisions.require_approved(STUDY, TWO)
    approve(decisions, "Ann", manifest=CHANGED)
    with pytest.raises(PolicyError, match="1 of 2"):
        decisions.require_approved(STUDY, TWO)
    assert decisions.status(STUDY, TWO).state == said
    approve(decisions, "Ben", manifest=CHANGED)
    assert decisions.require_approved(STUDY, TWO).manifest == CHANGED


def test_anybody_may_withdraw_and_only_approvers_may_refuse(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    with pytest.raises(PolicyError, match="not among the approvers"):
        end(decisions, "refuse", "Dan")
    end(decisions, "withdraw", "Dan")
    assert decisions.status(STUDY, TWO).state == "withdrawn"


def test_all_approve_the_same_data(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    with pytest.raises(StateError, match="data have changed"):
        approve(decisions, "Ben", manifest=CHANGED)
    with pytest.raises(StateError, match="data have changed"):
        approve(decisions, "Ben", manifest="")
    assert len(decisions.all()) == 1


# --- nothing else is believed -------------------------------------------------------------------


def lines(decisions: Decisions) -> list[bytes]:
    return decisions.path.read_bytes().splitlines(keepends=True)


def test_a_decision_that_was_changed_removed_or_moved_ends_everything(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    approve(decisions, "Ben")
    whole = lines(decisions)
    for damaged in (
        [line.replace(b'"Ben"', b'"Cem"') for line in whole],
        [whole[0], *whole[2:]],
        [whole[0], whole[2], whole[1]],
        whole[1:],
        [*whole, whole[-1]],
    ):
        decisions.path.write_bytes(b"".join(damaged))
        with pytest.raises(StateError, match="cannot be trusted"):
            decisions.require_approved(STUDY, TWO)
    decisions.path.write_bytes(b"".join(whole))
    decisions.require_approved(STUDY, TWO)


def test_a_decision_that_another_key_signed_is_not_believed(
    decisions: Decisions, tmp_path: Path
) -> None:
    stranger = PrivateKey.generate()
    forged = Decisions(tmp_path / "forged", stranger.public)
    (tmp_path / "forged").mkdir()
    for by in ("Ann", "Ben"):
        forged.record(
            stranger, TWO, study=STUDY, decision="approve", by=by, reason="x", manifest=DATA
        )
    forged.require_approved(STUDY, TWO)
    decisions.path.write_bytes(forged.path.read_bytes())
    with pytest.raises(StateError, match="not signed by this key"):
        decisions.require_approved(STUDY, TWO)


def test_an_entry_that_is_not_understood_ends_everything(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    with AuditLog.open(decisions.path, KEY) as log:
        log.append("decision", study=STUDY, decision="approve", by="Ben")
    with pytest.raises(StateError, match="not understood"):
        decisions.status(STUDY, TWO)


def test_a_withdrawal_that_was_cut_off_shows_in_the_head(decisions: Decisions) -> None:
    assert decisions.head is None
    approve(decisions, "Ann")
    end(decisions, "withdraw", "Ann")
    head = decisions.head
    decisions.path.write_bytes(b"".join(lines(decisions)[:-1]))
    assert decisions.head != head


def test_a_status_can_be_shown(decisions: Decisions) -> None:
    approve(decisions, "Ann")
    shown = json.loads(json.dumps(decisions.status(STUDY, TWO).to_dict()))
    assert shown["state"] == "waiting"
    assert (shown["needed"], shown["approved_by"]) == (2, ["Ann"])
