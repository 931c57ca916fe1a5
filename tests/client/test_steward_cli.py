"""What a steward does on the command line: look, try, approve, refuse, withdraw, count."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fedward.client.enrolment import make_site
from fedward.client.home import SiteFolder
from fedward.client.ledger import Ledger, ledger_spending
from fedward.client.steward import Office, approved_manifest, plan_of
from fedward.common.cli import main
from fedward.common.errors import PolicyError, PrivacyError, StateError
from fedward.common.study import canonical_json, study_hash
from fedward.common.study.load import EXAMPLE, parse_study

TEXT = EXAMPLE.replace('mode = "none"', 'mode = "dp"\nepsilon = 3.0\ndelta = 1e-3').replace(
    'name = "fedavg"\n', 'name = "fedavg"\n[aggregation]\nmin_sites = 2\n'
)
STUDY = parse_study(TEXT)
HASH = study_hash(STUDY)
POLICY = """
approvers = ["Ann", "Ben"]
approvals_needed = 2
max_epsilon_per_study = 5.0
max_epsilon_total = 5.0
delta = 1e-3
"""

Run = Callable[..., Any]


def write_patients(folder: Path, *, seed: int = 0, patients: int = 120) -> None:
    rng = np.random.default_rng(seed)
    age = rng.uniform(20, 90, patients).round(1)
    died = np.where(age + rng.normal(0, 10, patients) > 60, "yes", "no")
    rows = "".join(f"p{i},{a},{d}\n" for i, (a, d) in enumerate(zip(age, died, strict=True)))
    (folder / "patients.csv").write_text("patient_id,age,died\n" + rows)


@pytest.fixture
def north(tmp_path: Path) -> Path:
    """A site's folder with patients, a policy, and one offered study."""
    folder = tmp_path / "north"
    home = make_site(folder, "north", None)
    (folder / "policy.toml").write_text(POLICY)
    write_patients(folder)
    home.studies.mkdir(parents=True, exist_ok=True)
    offer = {"content": {"document": canonical_json(STUDY)}}
    (home.studies / f"{HASH}.json").write_text(json.dumps(offer))
    return folder


@pytest.fixture
def run(north: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    def call(command: str, *arguments: str, code: int = 0, as_json: bool = True) -> Any:
        options = ["--json"] if as_json else []
        assert main(["client", command, str(north), *arguments, *options]) == code
        captured = capsys.readouterr()
        if code:
            return captured.err
        return json.loads(captured.out) if as_json else captured.out

    return call


def decided(name: str) -> tuple[str, ...]:
    return ("--by", name, "--reason", "ethics vote 12/26")


def spend(north: Path, name: str = "1") -> None:
    """What a worker does in round 1."""
    office = Office.open(north)
    manifest = approved_manifest(office, HASH)
    with Ledger(office.home.ledger) as ledger:
        plan = plan_of(STUDY, manifest)
        make = ledger_spending(ledger, HASH, name, manifest.members, office.policy.caps, "test")
        spending = make(plan)
        assert plan is not None
        spending.charge(1, "training", plan.training_event())


def test_the_way_of_a_study_through_a_hospital(run: Run, north: Path) -> None:
    (row,) = run("studies")["studies"]
    assert (row["name"], row["state"], row["study"]) == ("example", "waiting", HASH)
    seen = run("review", "example")
    assert seen["not_allowed"] == []
    assert 2.5 < seen["cost"]["study"] <= 3.0
    assert seen["cost"]["left_after"] == pytest.approx(5.0 - seen["cost"]["after"])
    tried = run("dry-run", HASH[:8])
    assert tried["quality"]["patients"] == 120
    assert not (north / "state" / "ledger.sqlite").exists() or run("budget")["length"] == 0

    first = run("approve", "example", *decided("Ann"))
    assert first["status"]["state"] == "waiting"
    with pytest.raises(PolicyError):
        approved_manifest(Office.open(north), HASH)
    assert run("approve", "example", *decided("Ben"))["status"]["state"] == "approved"
    assert approved_manifest(Office.open(north), HASH).digest == first["decision"]["manifest"]

    spend(north)
    budget = run("budget", "--study", "example")
    (cohort,) = budget["cohorts"]
    assert 0 < cohort["spent"] < cohort["set_aside"] <= 3.0
    assert cohort["left"] == pytest.approx(5.0 - cohort["set_aside"])
    assert [(r["run"], r["state"], r["interrupted"]) for r in cohort["runs"]] == [("1", "open", 1)]
    assert budget["study"]["before"] == pytest.approx(cohort["set_aside"])
    assert budget["study"]["after"] > cohort["set_aside"]

    ended = run("withdraw", "example", *decided("whoever"))
    assert ended["status"]["state"] == "withdrawn"
    with pytest.raises(PolicyError, match="withdrawn"):
        approved_manifest(Office.open(north), HASH)
    (after,) = run("budget")["cohorts"]
    assert after["set_aside"] == after["spent"] == cohort["spent"], "only the rest is free again"
    assert after["runs"][0]["state"] == "withdrawn"


def test_people_are_told_the_same_in_words(run: Run, north: Path) -> None:
    assert "example" in run("studies", as_json=False)
    words = " ".join(run("review", "example", as_json=False).split())
    assert "AT THIS SITE" in words
    assert "It fits" in words
    assert "approved by nobody yet" in words
    assert "2 more" not in words
    tried = run("dry-run", "example", as_json=False)
    assert "Nothing left this machine and nothing was charged" in tried
    assert "1 more approval" in run("approve", "example", *decided("Ann"), as_json=False)
    assert "it may run" in run("approve", "example", *decided("Ben"), as_json=False)
    spend(north)
    shown = run("budget", "--study", "example", as_json=False)
    for words in ("spent", "left", "1 not confirmed", "one more run of example", "nobody yet"):
        assert words in shown
    assert "is refused" in run("refuse", "example", *decided("Ann"), as_json=False)


def test_a_dry_run_leaves_no_trace(run: Run, north: Path) -> None:
    before = {path for path in north.rglob("*") if "cache" not in path.parts}
    run("dry-run", "example")
    assert {path for path in north.rglob("*") if "cache" not in path.parts} - before <= {
        north / "state" / "decisions"
    }


def test_the_second_approval_is_for_the_same_data(run: Run, north: Path) -> None:
    run("approve", "example", *decided("Ann"))
    write_patients(north, seed=1)
    error = run("approve", "example", *decided("Ben"), code=5)
    assert "records of patients have changed" in error
    run("withdraw", "example", *decided("Ann"))
    run("approve", "example", *decided("Ben"))
    assert run("approve", "example", *decided("Ann"))["status"]["state"] == "approved"


def test_a_manifest_that_was_changed_is_not_the_approved_one(run: Run, north: Path) -> None:
    for name in ("Ann", "Ben"):
        run("approve", "example", *decided(name))
    path = SiteFolder.open(north).manifests / f"{HASH}.json"
    content = json.loads(path.read_bytes())
    content["training"].popitem()
    path.write_text(json.dumps(content, sort_keys=True, separators=(",", ":")))
    with pytest.raises(StateError, match="not the one that was approved"):
        approved_manifest(Office.open(north), HASH)


def test_what_the_policy_does_not_allow_cannot_be_approved(run: Run, north: Path) -> None:
    (north / "policy.toml").write_text(POLICY + "models = ['mlp']\n")
    assert "not allowed here" in run("studies", as_json=False)
    assert [finding["key"] for finding in run("review", "example")["not_allowed"]] == ["models"]
    assert "models = [mlp]" in run("approve", "example", *decided("Ann"), code=14)
    (north / "policy.toml").write_text(POLICY)
    assert "not among the approvers" in run("approve", "example", *decided("Eve"), code=14)
    run("approve", "example", *decided("Ann"))
    assert "before" in run("approve", "example", *decided("Ann"), code=14)


def test_what_does_not_fit_into_the_budget_cannot_be_approved(run: Run, north: Path) -> None:
    for name in ("Ann", "Ben"):
        run("approve", "example", *decided(name))
    spend(north, "1")
    spend(north, "2")
    with pytest.raises(PrivacyError, match="for one study"):
        spend(north, "3")
    assert run("budget", "--study", "example")["study"]["fits"] is False
    assert "does NOT fit" in run("review", "example", as_json=False)
    run("refuse", "example", *decided("Ann"))
    tight = POLICY.replace("= 5.0", "= 2.0")
    (north / "policy.toml").write_text(tight)
    error = run("approve", "example", *decided("Ann"), code=14)
    assert "max_epsilon_per_study" in error
    (north / "policy.toml").write_text(POLICY.replace("delta = 1e-3", "delta = 1e-9"))
    assert "at delta = 1e-09" in run("approve", "example", *decided("Ann"), code=6)


def test_a_study_without_a_promise_says_so(run: Run, north: Path) -> None:
    (north / "open.toml").write_text(EXAMPLE)
    (north / "policy.toml").write_text(POLICY + "require_dp = false\nmin_sites_at_least = 1\n")
    study = str(north / "open.toml")
    assert run("review", study)["cost"] is None
    assert "promises patients nothing" in run("review", study, as_json=False)
    run("approve", study, *decided("Ann"))
    assert run("approve", study, *decided("Ben"))["status"]["state"] == "approved"


def test_a_review_says_how_often_a_study_without_a_promise_was_run(run: Run, north: Path) -> None:
    (north / "open.toml").write_text(EXAMPLE)
    rules = POLICY + "require_dp = false\nmin_sites_at_least = 1\n"
    (north / "policy.toml").write_text(rules)
    study = str(north / "open.toml")
    assert run("review", study)["runs"] == {"before": 0, "allowed": 1}
    words = " ".join(run("review", study, as_json=False).split())
    assert "Runs of it here so far: 0, of 1 that policy.toml allows" in words
    assert "another would be refused" not in words
    for name in ("Ann", "Ben"):
        run("approve", study, *decided(name))
    known = parse_study(EXAMPLE)
    office = Office.open(north)
    members = approved_manifest(office, study_hash(known)).members
    with Ledger(office.home.ledger) as ledger:
        ledger_spending(ledger, study_hash(known), "1", members, office.policy.caps, "test")(None)
    words = " ".join(run("review", study, as_json=False).split())
    assert "so far: 1, of 1 that policy.toml allows; another would be refused" in words
    (north / "policy.toml").write_text(rules + "max_runs_per_study = 2\n")
    assert run("review", study)["runs"] == {"before": 1, "allowed": 2}
    assert run("review", "example")["runs"] is None  # its budget says how often


@pytest.mark.parametrize(
    ("name", "code", "words"),
    [("nothing", 3, "no such study"), (HASH[:3], 3, "no such study"), ("nowhere.toml", 3, "read")],
)
def test_a_study_that_is_not_there(run: Run, name: str, code: int, words: str) -> None:
    assert words in run("review", name, code=code)


def test_bad_data_are_said_and_not_tried(run: Run, north: Path) -> None:
    (north / "patients.csv").write_text("patient_id,age,died\np1,40,maybe\np2,50,yes\n")
    assert run("review", "example")["problem"] != ""
    run("dry-run", "example", code=5)
    run("approve", "example", *decided("Ann"), code=5)
    assert run("studies")["studies"][0]["approved_by"] == []


def test_a_folder_that_is_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["client", "budget", str(tmp_path)]) == StateError.exit_code
    assert "not a site's folder" in capsys.readouterr().err
