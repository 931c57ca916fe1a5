"""Events survive storage exactly, and nonsense is refused."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedward.common.errors import PrivacyError
from fedward.common.privacy.events import (
    GaussianRelease,
    PrivacyEvent,
    SampledGaussian,
    compress,
    event_from_dict,
    event_to_dict,
)

multipliers = st.floats(1e-3, 1e5)
any_event = st.one_of(
    st.builds(
        GaussianRelease,
        multipliers,
        st.integers(1, 10**6),
        st.sampled_from(["statistics", "evaluation"]),
    ),
    st.builds(SampledGaussian, st.floats(1e-6, 1.0), multipliers, st.integers(1, 10**9)),
)


@given(any_event)
def test_round_trip_through_json(event: PrivacyEvent) -> None:
    assert event_from_dict(json.loads(json.dumps(event_to_dict(event)))) == event


@given(st.lists(any_event, max_size=8))
def test_compressing_keeps_counts_and_ignores_order(events: list[PrivacyEvent]) -> None:
    once = compress(events + events)
    assert once == compress(reversed(events + events))
    assert compress(once) == once
    assert _count(once) == 2 * _count(events)
    assert len(once) == len({(type(e), _key(e)) for e in events})


def _count(events: Any) -> int:
    return sum(e.count if isinstance(e, GaussianRelease) else e.steps for e in events)


def _key(event: PrivacyEvent) -> tuple[object, ...]:
    if isinstance(event, GaussianRelease):
        return event.noise_multiplier, event.purpose
    return event.sampling_probability, event.noise_multiplier


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, True, "1", None])
def test_noise_must_be_a_positive_number(value: Any) -> None:
    with pytest.raises(PrivacyError, match="noise multiplier"):
        GaussianRelease(value)
    with pytest.raises(PrivacyError, match="noise multiplier"):
        SampledGaussian(0.1, value, 1)


@pytest.mark.parametrize("value", [0.0, -0.1, 1.0001, math.nan, "0.5"])
def test_probability_must_be_one(value: Any) -> None:
    with pytest.raises(PrivacyError, match="sampling probability"):
        SampledGaussian(value, 1.0, 1)


@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_counts_are_whole(value: Any) -> None:
    with pytest.raises(PrivacyError, match="steps"):
        SampledGaussian(0.1, 1.0, value)
    with pytest.raises(PrivacyError, match="count"):
        GaussianRelease(1.0, value)


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"kind": "laplace", "noise_multiplier": 1.0},
        {"kind": ["gaussian"]},
        {"kind": "gaussian"},
        {"kind": "gaussian", "noise_multiplier": 1.0, "more": 1},
        {"kind": "gaussian", "noise_multiplier": 1.0, "purpose": "fun"},
        {"kind": "sampled_gaussian", "noise_multiplier": 1.0, "steps": 3},
        {"kind": "sampled_gaussian", "noise_multiplier": -1.0, "steps": 3,
         "sampling_probability": 0.1},
    ],
)  # fmt: skip
def test_what_is_not_understood_is_refused(content: dict[str, Any]) -> None:
    with pytest.raises(PrivacyError):
        event_from_dict(content)
