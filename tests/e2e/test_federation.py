"""A federation as people know it: who decides, what is refused and said, how runs end.

One server and three daemons, each a process; made patients. Every test offers studies of its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl
import pytest
from tests.e2e.town import LIMIT_S, NAMES, Offered, Town, refused

from fedward.common.errors import PolicyError, PrivacyError, StateError
from fedward.simulations.rehearsal.federation import command

pytestmark = pytest.mark.slow
FIRST, SECOND, THIRD = NAMES


@pytest.fixture(scope="module")
def town(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Town]:
    with Town.founded(tmp_path_factory.mktemp("town")) as town:
        yield town


@pytest.fixture(autouse=True)
def usual(town: Town) -> Iterator[None]:
    """Every test begins under the same policies, and leaves no run behind."""
    for name in NAMES:
        town.policy(name)
    yield
    town.stop_runs()


def is_over(town: Town, site: str, run: str) -> bool:
    """Whether nothing is left of a run at a hospital but its entries in ledger and log."""
    state = town.site(site) / "state"
    left = [*(state / "outbox" / run).glob("*"), *(state / "inbox").glob("*")]
    return not town.ledger_runs(site).get(run) and not town.workers(site) and not left


def test_people_decide_and_a_run_leaves_nothing_behind(town: Town) -> None:
    town.policy(FIRST, approvals_needed=2)
    study = town.offer("people")
    town.approve_at(study, FIRST)
    assert refused("server", "start", town.consortium, study.hash).exit_code == StateError.exit_code
    town.decide(study, THIRD, "refuse", reason="no vote of the ethics board")
    town.approve_at(study, SECOND)
    town.until(lambda: None not in [town.answers(study)[s] for s in (SECOND, THIRD)], LIMIT_S)
    assert town.answers(study) == {FIRST: None, SECOND: "approve", THIRD: "refuse"}
    why = refused("server", "start", town.consortium, study.hash)
    assert "1 of 2 needed sites approved" in str(why.hint)
    assert not town.runs_of(study)

    town.approve_at(study, FIRST, by="Dr B")  # the second of the two that its policy asks for
    run = town.ended(study)
    assert run["sites"] == [FIRST, SECOND]
    assert [r["participants"] for r in run["history"]] == [[FIRST, SECOND]] * 3
    assert 0.0 <= run["history"][-1]["evaluation"]["overall"]["auroc"] <= 1.0
    check_release(town, study, run["run"])
    for site in (FIRST, SECOND):
        town.until(lambda site=site: is_over(town, site, run["run"]), LIMIT_S)
        check_site(town, site, run["run"])
    # Who refused was asked for nothing, and has nothing in its ledger.
    assert run["run"] not in town.ledger_runs(THIRD)
    assert "no vote of the ethics board" not in town.output("server")


def check_release(town: Town, study: Offered, run: str) -> None:
    release, root = town.release(run), town.consortium / "ca/root.crt"
    found = command("server", "verify-release", release, "--root", root)
    assert (found["ok"], found["run"], found["study"]) == (True, run, study.hash)
    assert (found["proven"], found["contributions"]) == (6, 6)
    took_part = json.loads((release / "participation.json").read_text())
    assert took_part["answers"] == {FIRST: "approve", SECOND: "approve", THIRD: "refuse"}
    card = (release / "model" / "MODEL_CARD.md").read_text()
    assert THIRD in card
    assert "refused" in card
    status = command("server", "status", town.consortium)
    assert status["service"]["running"]
    assert next(s for s in status["studies"] if s["study"] == study.hash)["runs"] == [run]
    assert command("server", "log", "verify", town.consortium)["ok"]

    patients = town.folder / "new.csv"
    patients.write_text("patient_id,age,weight\nx1,30,80\nx2,90,60\n")
    scores = command("predict", release / "model", patients)
    assert (scores["study_hash"], scores["simulated"]) == (study.hash, False)
    assert [row["patient_id"] for row in scores["predictions"]] == ["x1", "x2"]


def check_site(town: Town, site: str, run: str) -> None:
    folder = town.site(site)
    # The training process is gone already; the daemon writes that down the next time it looks.
    town.until(lambda: town.status(site)["runs_warm"] == [], LIMIT_S)
    status = command("client", "status", folder)
    assert status["running"]
    assert status["runs"][run]["round"] == 3
    assert status["runs_warm"] == []
    [entry] = [
        entry
        for cohort in town.budget(site)["cohorts"]
        for entry in cohort["runs"]
        if entry["run"] == run
    ]
    assert entry["state"] == "over"
    assert command("client", "log", "verify", folder)["ok"]


def test_two_runs_at_once_and_hospitals_that_withdraw(town: Town) -> None:
    goes_on = town.offer("goes-on", rounds=60, min_sites=2)
    ends = town.offer("ends", rounds=400, min_sites=3)
    for study in (goes_on, ends):
        town.approve_at(study, *NAMES)
    town.begun(goes_on, rounds=2)
    town.begun(ends, rounds=2)
    states = {run["state"] for study in (goes_on, ends) for run in town.runs_of(study)}
    assert states == {"running"}, "they do not run at once"
    for study in (goes_on, ends):
        town.decide(study, THIRD, "withdraw", reason="consent was taken back")

    failed = town.ended(ends, "failed")
    assert "2 of 3 needed sites" in failed["reason"]
    assert failed["round"] < 400
    run = town.ended(goes_on)
    rounds = run["history"]
    assert rounds[0]["participants"] == list(NAMES)
    assert rounds[-1]["participants"] == [FIRST, SECOND]
    left = [r for r in rounds if THIRD in r["refused"]]
    assert left, "nobody says that it left"
    assert any(word in left[0]["refused"][THIRD] for word in ("left", "withdrawn")), left
    card = (town.release(run["run"]) / "model" / "MODEL_CARD.md").read_text()
    assert "withdrew; what it contributed before is in the model" in card
    assert town.answers(goes_on)[THIRD] == "withdraw"
    for site in NAMES:  # a run that failed sets nothing aside any more either
        town.until(lambda site=site: not town.ledger_runs(site)[failed["run"]], LIMIT_S)
        town.until(lambda site=site: not town.ledger_runs(site)[run["run"]], LIMIT_S)
        town.until(lambda site=site: not town.workers(site), LIMIT_S)
    # Whoever withdraws after the release is on record with it too.
    assert town.answers(goes_on)[SECOND] == "approve"
    town.decide(goes_on, SECOND, "withdraw", reason="consent was taken back")
    town.until(lambda: town.answers(goes_on)[SECOND] == "withdraw", LIMIT_S)


def test_changed_data_and_the_wrong_hour_cost_a_hospital_its_place(town: Town) -> None:
    now = datetime.now().astimezone()
    later = [(now + timedelta(hours=hours)).strftime("%H:%M") for hours in (3, 5)]
    town.policy(FIRST, min_sites_at_least=1)
    study = town.offer("places", min_sites=1)
    town.policy(SECOND, min_sites_at_least=1, hours="-".join(later))
    town.policy(THIRD, min_sites_at_least=1)
    town.approve_at(study, SECOND, THIRD)  # outside its hours a study may be approved
    table = town.hospital(THIRD).site_file.parent / "patients.parquet"
    whole = table.read_bytes()
    pl.read_parquet(table)[1:].write_parquet(table)  # one patient less
    town.approve_at(study, FIRST)

    run = town.ended(study)
    assert [r["participants"] for r in run["history"]] == [[FIRST]] * 3
    reasons = run["history"][0]["refused"]
    assert "outside the hours" in reasons[SECOND]
    assert (
        reasons[THIRD] == "the site's data cannot be used as the study demands; the site knows why"
    )
    assert any("hours" in reason for reason in town.refusals(SECOND, study))
    assert any(
        "changed" in reason or "approved" in reason for reason in town.refusals(THIRD, study)
    )
    table.write_bytes(whole)


def test_what_a_policy_does_not_allow_cannot_be_approved(town: Town) -> None:
    town.policy(FIRST, require_dp=True)
    study = town.offer("open")
    town.until(
        lambda: (town.site(FIRST) / "state/studies" / f"{study.hash}.json").exists(), LIMIT_S
    )
    given = ("--by", "Dr A", "--reason", "x")
    error = refused("client", "approve", town.site(FIRST), study.hash, *given)
    assert error.exit_code == PolicyError.exit_code
    assert "require_dp" in str(error.hint)
    town.policy(FIRST)
    error = refused(
        "client", "approve", town.site(FIRST), study.hash, "--by", "Mallory", "--reason", "x"
    )
    assert error.exit_code == PolicyError.exit_code
    # Approved, then forbidden by a new policy: the hospital refuses, and says no more than that.
    town.approve_at(study, *NAMES[:2])
    town.policy(FIRST, require_dp=True)
    town.approve_at(study, THIRD)
    run = town.ended(study)
    assert run["history"][-1]["participants"] == [SECOND, THIRD]
    assert "this site's policy does not allow" in run["history"][0]["refused"][FIRST]
    assert "require_dp" not in json.dumps(run)
    assert any("require_dp" in reason for reason in town.refusals(FIRST, study))


def test_a_study_beyond_the_budget_is_refused_before_its_first_round(town: Town) -> None:
    town.policy(THIRD, max_epsilon_per_study=4.0, max_epsilon_total=4.0)
    one, other = (town.offer(name, epsilon=3.0) for name in ("dear", "dearer"))
    for study in (one, other):
        town.approve_at(study, THIRD)  # alone, each of them fits
    town.approve_at(one, FIRST, SECOND)
    town.ended(one)
    town.approve_at(other, FIRST, SECOND)
    run = town.ended(other)
    assert {tuple(r["participants"]) for r in run["history"]} == {(FIRST, SECOND)}
    told = run["history"][0]["refused"]
    assert told == {THIRD: "the privacy promise cannot be kept at this site; the site knows why"}
    assert run["run"] not in town.ledger_runs(THIRD)
    [cohort] = [c for c in town.budget(THIRD)["cohorts"] if c["spent"] > 0.0]
    assert 2.8 < cohort["spent"] < 3.01
    [reason] = {r for r in town.refusals(THIRD, other) if "left" in r}
    assert f"{4.0 - cohort['set_aside']:.2f} of the site's 4 is left" in reason
    third = town.offer("dearest", epsilon=3.0)
    town.until(
        lambda: (town.site(THIRD) / "state/studies" / f"{third.hash}.json").exists(), LIMIT_S
    )
    error = refused(
        "client", "approve", town.site(THIRD), third.hash, "--by", "Dr A", "--reason", "x"
    )
    assert error.exit_code == PrivacyError.exit_code
    assert "is left" in f"{error.problem} {error.hint}"


def test_a_run_that_is_stopped_is_closed_and_can_be_resumed(town: Town) -> None:
    study = town.offer("stopped", rounds=40, epsilon=3.0)
    for site in NAMES:
        town.policy(site, max_epsilon_per_study=9.0, max_epsilon_total=20.0)
    town.approve_at(study, *NAMES)
    run = town.begun(study, rounds=2)["run"]
    command("server", "stop", town.consortium, run)
    stopped = town.ended(study, "stopped")
    assert 2 <= stopped["round"] < 40
    for site in NAMES:  # what was not spent is free again
        town.until(lambda site=site: not town.ledger_runs(site)[run], LIMIT_S)
    before = {site: town.budget(site)["cohorts"] for site in NAMES}
    assert all(c["set_aside"] == c["spent"] for cohorts in before.values() for c in cohorts)

    town.daemons[THIRD].stop()  # away when it goes on, and when it ends
    command("server", "resume", town.consortium, run)
    done = town.ended(study)
    assert done["round"] == 40
    assert done["history"][-1]["participants"] == [FIRST, SECOND]
    town.daemons[THIRD].start()
    for site in NAMES:
        town.until(lambda site=site: is_over(town, site, run), LIMIT_S)


def test_nothing_private_is_in_what_may_be_shown_to_others(town: Town, tmp_path: Path) -> None:
    for site in NAMES:
        shared = (town.site(site) / "state/logs/shareable.log").read_text()
        assert shared
        for word in (str(town.folder), "parquet", "p0000", "Dr A", "epsilon ="):
            assert word not in shared
