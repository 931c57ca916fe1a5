"""The site's policy: every rule refuses what it should, names key and value, and nothing else."""

from __future__ import annotations

import tomllib
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from fedward.client.policy import TEMPLATE, Policy, check, load_policy, require, write_template
from fedward.common.errors import PolicyError, SiteConfigError
from fedward.common.study import study_hash
from fedward.simulations.fakes import small_study

NOON = datetime(2026, 1, 5, 12)  # noqa: DTZ001  (local time, as a policy means it)
PRIVATE = {"privacy": {"mode": "dp", "epsilon": 3.0, "delta": 1e-5}}


def a_study(**changes: Any) -> Any:
    table = {**PRIVATE, "aggregation": {"min_sites": 3}, "evaluation": {"min_cell": 10}, **changes}
    return small_study(**table)


def test_the_template_is_valid_allows_nobody_to_approve_and_shows_every_default(
    tmp_path: Path,
) -> None:
    path = tmp_path / "policy.toml"
    write_template(path)
    policy = load_policy(path)
    assert policy == Policy()
    assert policy.approvers == ()
    shown: dict[str, Any] = {}
    lines = [line.removeprefix("# ") for line in TEMPLATE.splitlines()]
    for line in lines:
        key = line.partition(" = ")[0]
        if key in Policy.model_fields:
            shown |= tomllib.loads(line)
    assert Policy.model_validate(shown) == Policy()
    assert set(shown) == set(Policy.model_fields), "every key is explained"


def test_a_study_within_all_rules_is_allowed() -> None:
    policy = Policy(
        studies=("fake",), models=("logistic",), algorithms=("fedavg",), hours="08:00-18:00"
    )
    assert check(policy, a_study(), NOON) == []
    require(policy, a_study(), NOON)


@pytest.mark.parametrize(
    ("rules", "changes", "key", "value"),
    [
        ({"studies": ("another",)}, {}, "studies", "fake"),
        ({"studies": ()}, {}, "studies", "fake"),
        ({"models": ("mlp",)}, {}, "models", "logistic"),
        ({"algorithms": ("fedprox",)}, {}, "algorithms", "fedavg"),
        ({}, {"evaluation": {"min_cell": 9}}, "min_cell_at_least", "min_cell = 9"),
        ({}, {"aggregation": {"min_sites": 1}}, "min_sites_at_least", "min_sites = 1"),
        ({}, {"privacy": {"mode": "none"}}, "require_dp", "mode = 'none'"),
        (
            {"max_epsilon_per_study": 2.9},
            {},
            "max_epsilon_per_study",
            "epsilon = 3",
        ),
        ({"require_secure_aggregation": True}, {}, "require_secure_aggregation", "secure = false"),
        ({"hours": "12:01-12:00"}, {}, "hours", "12:00"),
    ],
)
def test_each_rule_refuses_and_names_key_and_value(
    rules: dict[str, Any], changes: dict[str, Any], key: str, value: str
) -> None:
    findings = check(Policy(**rules), a_study(**changes), NOON)
    assert [finding.key for finding in findings] == [key]
    assert value in str(findings[0])
    assert findings[0].temporary == (key == "hours")
    with pytest.raises(PolicyError, match=key):
        require(Policy(**rules), a_study(**changes), NOON)


def test_a_study_is_allowed_by_its_hash_and_another_version_is_not() -> None:
    policy = Policy(studies=(study_hash(a_study()),))
    assert check(policy, a_study(), NOON) == []
    other = a_study(study={"version": "2"})
    assert [finding.key for finding in check(policy, other, NOON)] == ["studies"]


@pytest.mark.parametrize(
    ("hours", "clock", "allowed"),
    [
        ("20:00-06:00", "19:59", False),
        ("20:00-06:00", "20:00", True),
        ("20:00-06:00", "23:59", True),
        ("20:00-06:00", "00:00", True),
        ("20:00-06:00", "05:59", True),
        ("20:00-06:00", "06:00", False),
        ("08:00-18:00", "07:59", False),
        ("08:00-18:00", "08:00", True),
        ("08:00-18:00", "18:00", False),
        ("any", "03:00", True),
    ],
)
def test_hours_may_pass_midnight(hours: str, clock: str, allowed: bool) -> None:
    now = datetime.fromisoformat(f"2026-01-05T{clock}")
    assert Policy(hours=hours).open_at(now) is allowed
    assert (check(Policy(hours=hours), a_study(), now) == []) is allowed


@pytest.mark.parametrize(
    "text",
    [
        "hours = '25:00-06:00'",
        "hours = '20:00-20:00'",
        "hours = 'always'",
        "approvers = ['A', 'A']",
        "approvers = ['Dr. Åsa Berg', 'DR  A\u030asa berg']",
        "approvers = ['A']\napprovals_needed = 2",
        "approvals_needed = 0",
        "max_epsilon_total = 0.0",
        "max_epsilon_total = 200.0",
        "max_epsilon_total = 4.0",
        "delta = 1.0",
        "delta = 0.0",
        "min_cell = 5",
        "models = 'some'",
        "require_dp = 'yes'",
    ],
)
def test_a_policy_that_means_nothing_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(SiteConfigError):
        load_policy(path)


def test_the_digest_changes_with_any_rule() -> None:
    digests = {Policy().digest, Policy(require_dp=False).digest, Policy(approvers=("A",)).digest}
    assert len(digests) == 3
    assert Policy().digest == Policy().digest
